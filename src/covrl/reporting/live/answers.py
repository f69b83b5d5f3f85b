"""What the page's script asks for, as JSON: how the runs are going, and the traces that are searched for.

All text in an answer is made visible here, and the script puts it into the page as text.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from covrl.records import TraceGroup, TraceView
from covrl.reporting.browser import by_advantage, place_of, shown_tokens
from covrl.reporting.folder import METRICS, headline
from covrl.reporting.format import duration, end_word, number, typeset, verdict_class, verdict_word
from covrl.reporting.live.index import Found, Place, TraceIndex, Wanted
from covrl.reporting.live.page import LETTERS, lettered, version_of
from covrl.reporting.live.run import LiveRun, trace_tokens
from covrl.reporting.text import clip, visible

TRACES_A_PAGE = 24
PAIRS_A_PAGE = 4
TRACES_A_SIDE = 8
MOST_CHARACTERS = 8000  # of a trace without tokens


def encode(answer: Any) -> bytes:
    """The answer as JSON in which every text is visible."""
    return json.dumps(_visible(answer), ensure_ascii=False, allow_nan=False).encode()


def _visible(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {key: _visible(each) for key, each in value.items()}
    return [_visible(each) for each in value] if isinstance(value, list | tuple) else value


def state(runs: Sequence[LiveRun], index: TraceIndex, wanted: Wanted, after: int) -> dict[str, Any]:
    """How the runs are going, what has changed, and how many wanted traces were added after the number ``after``."""
    two = len(runs) == 2
    return {
        "page": version_of(run.version for run in runs),
        "traces": traces_version(runs),
        "behind": any(size for run in runs for size in run.behind.values()),
        "fresh": index.count(wanted, after),
        "sources": index.sources(),
        "said": [lettered(_progress(run), place, two) for place, run in enumerate(runs)],
        "faults": [lettered(fault, place, two) for place, run in enumerate(runs) for fault in run.said()],
    }


def traces_version(runs: Sequence[LiveRun]) -> str:
    """Changes when traces that were shown may be gone."""
    return version_of(run.traces_version for run in runs)


def found(runs: Sequence[LiveRun], index: TraceIndex, wanted: Wanted, page: int, upto: int | None) -> dict[str, Any]:
    """A page of the wanted traces, by problem; of two runs in pairs of groups, side by side.

    Pages are numbered from 1. With ``upto`` only traces that had been added by then count, so that pages do not move
    while somebody turns them.
    """
    upto = index.newest() if upto is None else upto
    size, search = (PAIRS_A_PAGE, _pairs) if len(runs) == 2 else (TRACES_A_PAGE, _groups)
    total, parts = search(runs, index, wanted, upto, (page - 1) * size)
    about = {"total": total, "page": page, "pages": math.ceil(total / size), "upto": upto}
    return about | {"traces": traces_version(runs), "parts": parts}


def _progress(run: LiveRun) -> str:
    """How far the run is, and when it wrote last."""
    behind = sum(run.behind.values())
    reading = f" {behind / 1e6:,.0f} MB are still to be read." if behind else ""
    if not run.steps:
        return f"No step is recorded yet.{reading}"
    said = headline(run.steps, run.config)
    try:
        age = time.time() - (run.folder / METRICS).stat().st_mtime
    except OSError:
        return f"{said}{reading}"
    return f"{said} The last was recorded {duration(max(age, 0))} ago.{reading}"


Part = dict[str, Any]


def _groups(
    runs: Sequence[LiveRun], index: TraceIndex, wanted: Wanted, upto: int, start: int
) -> tuple[int, list[Part]]:
    numbers = index.find(wanted, upto)
    rows = index.traces(numbers[start : start + TRACES_A_PAGE])
    places = index.places([row.group for row in rows])
    problems = index.problems([place.problem for place in places.values()])
    parts = []
    for group, some in groupby(rows, key=lambda row: row.group):
        place = places[group]
        side = _side(runs[place.run], place, list(some), f"Step {place.step}")
        parts.append({"problem": problems[place.problem], "only": place.problem, "sides": [side]})
    return len(numbers), parts


def _pairs(runs: Sequence[LiveRun], index: TraceIndex, wanted: Wanted, upto: int, start: int) -> tuple[int, list[Part]]:
    total, pairs = index.pairs(wanted, upto, start, PAIRS_A_PAGE)
    places = index.places([group for pair in pairs for group in pair.groups if group is not None])
    problems = index.problems([pair.problem for pair in pairs])
    parts = []
    for pair in pairs:
        sides = []
        for letter, run, group in zip(LETTERS, runs, pair.groups, strict=True):
            if group is None:
                sides.append(
                    {"at": letter, "hint": None, "note": "No traces of this problem at this visit.", "rows": []}
                )
                continue
            rows = index.traces_of(group, wanted, TRACES_A_SIDE)
            sides.append(_side(run, places[group], rows, f"{letter}, step {places[group].step}"))
        parts.append({"problem": problems[pair.problem], "only": pair.problem, "sides": sides})
    return total, parts


def _side(run: LiveRun, place: Place, rows: Sequence[Found], at: str) -> Part:
    """Some traces of a group, best advantage first; ``note`` says if there are more."""
    group = trace_tokens(run, place)
    note = "" if len(rows) == place.traces else f"{len(rows)} of {place.traces} traces"
    told = {"id": place.id, "answer": place.answer, "hint": place.hint}
    return {"at": at, "problem": told, "note": note, "rows": [_row(row, group) for row in rows]}


def _row(found: Found, group: TraceGroup | None) -> Part:
    """A trace as it is shown; without its group's record in the file, there are no tokens and fewer figures."""
    trace, share, place = found.trace, None, ""
    if group is not None:
        trace, share = by_advantage(group)[found.rank]
        place = place_of(trace, group)
    text, more = clip(trace.text, MOST_CHARACTERS)
    tokens = shown_tokens(trace)
    unit, left = ("tokens", len(trace.tokens) - len(tokens)) if tokens else ("characters", more)
    return {
        "source": trace.source,
        "place": place,
        "reward": _number(trace.reward),
        "rewards": [[name, _number(value)] for name, value in _several(trace)],
        "advantage": typeset(number(trace.advantage, sign=True)),
        "share": share,
        "kl": _number(trace.kl),
        "end": end_word(trace.finish),
        "broken": trace.finish != "closed",
        "verdict": verdict_word(trace.correct),
        "judged": verdict_class(trace.correct),
        "tokens": tokens,
        "text": "" if tokens else text,
        "more": f"{left:,} more {unit}" if left > 0 else "",
    }


def _several(trace: TraceView) -> list[tuple[str, float | None]]:
    """The rewards of the user's functions, where they say more than the reward itself."""
    given = list(trace.rewards.items())
    return given if len(given) > 1 or (given and trace.reward not in trace.rewards.values()) else []


def _number(value: float | None) -> str:
    return typeset(number(value))
