"""Grading a stream of responses: JSON lines in, one JSON line out for each, in order and in constant memory."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from covrl.errors import UserError
from covrl.escapes import lost_backslash
from covrl.records import Problem, Verdict
from covrl.rewards.extract import DEFAULT_ORDER
from covrl.rewards.judgement import Judgement, Verifier, judge_all
from covrl.rewards.registry import open_verifier

ROWS_AT_ONCE = 256
CHARS_AT_ONCE = 4_000_000
MANY_UNKNOWN = 0.1
"""Share of unknown verdicts above which the other shares mean little (INFERRED, as in training)."""

VERDICTS: tuple[Verdict, ...] = ("right", "wrong", "unknown")


@dataclass(frozen=True, slots=True)
class GradeSummary:
    """How many rows got which verdict, why the unknown ones did, and how long it took."""

    counts: Mapping[Verdict, int]
    unknown_reasons: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def rows(self) -> int:
        return sum(self.counts.values())

    def share(self, verdict: Verdict) -> float:
        """Share of all rows, 0 if there are none. Unknown is a separate share and not part of another."""
        return self.counts.get(verdict, 0) / self.rows if self.rows else 0.0

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds if self.seconds > 0 else 0.0


def grade_file(
    path: str,
    out: TextIO,
    verifier: str = "math",
    *,
    order: Sequence[str] = DEFAULT_ORDER,
    time_limit_s: float | None = None,
) -> GradeSummary:
    """Grade the file at ``path``, or standard input for ``-``, with the verifier of that name.

    The name is one of ours, an installed entry point, or ``module:function`` (:mod:`covrl.rewards.registry`).

    Raises:
        UserError: no such file or verifier, or a line that cannot be graded (:func:`grade_stream`).
    """
    with open_verifier(verifier, order, time_limit_s, code=True) as judge:
        if path == "-":
            return grade_stream(sys.stdin.buffer, out, judge, "standard input")
        with _opened(path) as lines:
            return grade_stream(lines, out, judge, path)


def _opened(path: str) -> BinaryIO:
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def grade_stream(lines: Iterable[str | bytes], out: TextIO, verifier: Verifier, name: str = "input") -> GradeSummary:
    """Write one JSON line for each line of ``lines``; return the summary.

    In: ``{"answer": …, "response": "…"}``; ``answer`` is text or a number; ``accepted`` (a list of further answers, of
    tests for ``code``), ``question`` (for ``choice``) and ``id`` may follow, other fields are ignored.

    Out: ``verdict``, ``extracted`` (null if the response has no
    answer), ``how`` it was extracted, ``why``; ``id`` first if there was one.

    Lines are read a few hundred at a time, at most 4 MB together and never fewer than one. The first line that cannot
    be graded ends the work with an error; the lines before it are graded and written before that.

    Raises:
        UserError: a line is not JSON or lacks a field, with ``name`` and the line's number.
    """
    begun = time.perf_counter()
    counts: Counter[Verdict] = Counter(dict.fromkeys(VERDICTS, 0))
    reasons: Counter[str] = Counter()
    batch: list[tuple[Mapping[str, Any], Problem, str]] = []
    chars = 0

    def finish_batch() -> None:
        judgements = judge_all(verifier, [(problem, response) for _, problem, response in batch])
        for (record, _, _), judgement in zip(batch, judgements, strict=True):
            counts[judgement.verdict] += 1
            if judgement.verdict == "unknown":
                reasons[judgement.why.split(":")[0]] += 1
            out.write(_line_out(record, judgement))
        out.flush()
        batch.clear()

    try:
        for number, line in enumerate(lines, 1):
            batch.append(_line_in(line, f"{name} line {number}"))
            chars += len(line)
            if len(batch) >= ROWS_AT_ONCE or chars >= CHARS_AT_ONCE:
                finish_batch()
                chars = 0
    except UserError:
        finish_batch()
        raise
    finish_batch()
    return GradeSummary(dict(counts), dict(reasons.most_common()), time.perf_counter() - begun)


def summary_text(summary: GradeSummary) -> str:
    """The summary as text, one fact per line; reasons of unknown with the most frequent first."""
    shares = "  ".join(f"{v} {summary.counts.get(v, 0):,} ({summary.share(v):.1%})" for v in VERDICTS)
    lines = [f"{summary.rows:,} rows  {shares}"]
    lines += [f"  unknown: {reason}  {count:,}" for reason, count in summary.unknown_reasons.items()]
    if summary.share("unknown") > MANY_UNKNOWN:
        lines.append(f"warning: more than {MANY_UNKNOWN:.0%} of the rows cannot be graded; see the reasons above")
    lines.append(f"{summary.seconds:.1f} s, {summary.rows_per_second:,.0f} rows a second")
    return "\n".join(lines)


_SHAPE = 'expected {"answer": "42", "response": "… \\\\boxed{42}"}'


def _line_in(line: str | bytes, where: str) -> tuple[Mapping[str, Any], Problem, str]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # bytes that are no UTF-8 are a ValueError too
        detail = getattr(error, "msg", None) or str(error) or type(error).__name__
        raise UserError(f"{where}: not JSON ({detail}); {_SHAPE}") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: not a JSON object; {_SHAPE}")
    for key in ("answer", "response"):
        if key not in record:
            raise UserError(f"{where}: no field {key!r}; {_SHAPE}")
    response = record["response"]
    if not isinstance(response, str):
        raise UserError(f"{where}: response is {_kind(response)}, not text; {_SHAPE}")
    accepted = record.get("accepted") or []
    if not isinstance(accepted, list):
        raise UserError(f"{where}: accepted is {_kind(accepted)}, not a list of answers")
    texts = [_answer_text(a, where) for a in (record["answer"], *accepted)]
    question = record.get("question")
    asked = question if isinstance(question, str) else ""
    return record, Problem(id=where, question=asked, answer=texts[0], accepted=tuple(texts[1:])), response


def _answer_text(answer: object, where: str) -> str:
    if isinstance(answer, str):
        if lost := lost_backslash(answer, is_formula=True):
            raise UserError(f"{where}: answer {lost}")
        return answer
    if isinstance(answer, bool) or not isinstance(answer, (int, float)) or not math.isfinite(answer):
        raise UserError(f"{where}: answer is {_kind(answer)}, neither text nor a number; {_SHAPE}")
    # Data sets keep whole numbers as 27.0 too.
    return str(int(answer)) if float(answer).is_integer() and abs(answer) < 1e15 else str(answer)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _line_out(record: Mapping[str, Any], judgement: Judgement) -> str:
    shown = {"id": record["id"]} if "id" in record else {}
    shown |= {"verdict": judgement.verdict, "extracted": judgement.extracted}
    shown |= {"how": judgement.how, "why": judgement.why}
    return json.dumps(shown) + "\n"
