"""A searchable index of traces: what can be filtered and the text, but not the tokens, which stay in the run's file.

It is a temporary database of SQLite, which goes to the disk where it is large and is deleted with its connection.
Text is stored as it is shown, so that what can be seen can be found. Every value is bound, never part of a statement.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from covrl.records import Problem, StepReport, TraceView
from covrl.reporting.browser import by_advantage
from covrl.reporting.text import visible

TABLES = """
CREATE TABLE problems (problem TEXT PRIMARY KEY, question TEXT, turns TEXT) WITHOUT ROWID;
CREATE TABLE groups (
  grouped INTEGER PRIMARY KEY, run INTEGER, step INTEGER, place INTEGER, at INTEGER, size INTEGER, problem TEXT,
  id TEXT, answer TEXT, hint TEXT, traces INTEGER);
CREATE TABLE traces (
  trace INTEGER PRIMARY KEY AUTOINCREMENT, grouped INTEGER, rank INTEGER, source TEXT, text TEXT, finish TEXT,
  reward REAL, advantage REAL, correct TEXT);
CREATE INDEX groups_of ON groups (run, step);
CREATE INDEX traces_of ON traces (grouped, rank);
CREATE INDEX traces_from ON traces (source);
"""

ORDERS = {
    "newest": "step DESC, run, place, rank",
    "oldest": "step, run, place, rank",
    "highest": "reward IS NULL, reward DESC, step DESC, trace",
    "lowest": "reward IS NULL, reward, step DESC, trace",
}

ALL = "traces JOIN groups USING (grouped) JOIN problems USING (problem)"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which traces are asked for, and in which order; what is empty or ``None`` asks for nothing.

    ``text`` and ``problem`` are parts of a trace, and of a question, its id or its answer, in any case of letters.
    ``only`` is the key of one problem, ``verdict`` may be "none". Rewards and steps are between ``low`` and ``high``,
    ``first`` and ``last``, both included.
    """

    text: str = ""
    problem: str = ""
    only: str = ""
    source: str = ""
    verdict: str = ""
    finish: str = ""
    low: float | None = None
    high: float | None = None
    first: int | None = None
    last: int | None = None
    order: str = "newest"


class Place(NamedTuple):
    """A group: of which run and step, where it is in the run's traces file (the line's bytes, and its place in it), its
    problem's key, id, answer and what the posterior was shown, and how many traces it has."""

    group: int
    run: int
    step: int
    place: int
    at: int
    size: int
    problem: str
    id: str
    answer: str
    hint: str | None
    traces: int


class Found(NamedTuple):
    """A trace in the index: its rank in its group by advantage, and what is known of it without its file."""

    group: int
    rank: int
    trace: TraceView


class Pair(NamedTuple):
    """The groups of one problem, each run's from the same visit to it, if it has come to that."""

    problem: str
    groups: tuple[int | None, ...]


class TraceIndex:
    """The traces of one run or several, which are numbered from 0. Callers take turns."""

    def __init__(self) -> None:
        self._base = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._base.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {TABLES}")
        self._base.create_function("holds", 2, _holds, deterministic=True)

    def close(self) -> None:
        self._base.close()

    def add(self, run: int, report: StepReport, at: int, size: int) -> None:
        """Add the groups of one line of a traces file, which is ``size`` bytes long and begins at the byte ``at``."""
        for place, group in enumerate(report.groups):
            problem, key = group.problem, problem_key(group.problem)
            turns = json.dumps([{"role": visible(turn.role), "text": visible(turn.text)} for turn in problem.turns])
            known = (key, visible(problem.question), turns)
            self._base.execute("INSERT OR IGNORE INTO problems VALUES (?, ?, ?)", known)
            hint = None if problem.hint is None else visible(problem.hint)
            told = (visible(problem.id), visible(problem.answer), hint, len(group.traces))
            row = (run, report.step, place, at, size, key, *told)
            made = self._base.execute(f"INSERT INTO groups VALUES (NULL{', ?' * len(row)})", row).lastrowid
            rows = [(made, rank, *_told(trace)) for rank, (trace, _) in enumerate(by_advantage(group))]
            self._base.executemany("INSERT INTO traces VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def forget(self, run: int, step: int = 0) -> bool:
        """Remove a run's traces from ``step`` on; whether there were any."""
        which = "(SELECT grouped FROM groups WHERE run = ? AND step >= ?)"
        self._base.execute(f"DELETE FROM traces WHERE grouped IN {which}", (run, step))
        return self._base.execute("DELETE FROM groups WHERE run = ? AND step >= ?", (run, step)).rowcount > 0

    def newest(self) -> int:
        """The number of the trace that was added last; numbers rise and are not used again."""
        return self._one("SELECT max(trace) FROM traces") or 0

    def count(self, wanted: Wanted, after: int = 0) -> int:
        """How many traces are as wanted, of those added after the one with the number ``after``."""
        where, values = _where(wanted)
        return self._one(f"SELECT count(*) FROM {ALL} WHERE {where} AND trace > :after", values | {"after": after})

    def sources(self) -> list[str]:
        """The names of the traces' sources."""
        return [name for (name,) in self._all("SELECT DISTINCT source FROM traces ORDER BY source DESC")]

    def find(self, wanted: Wanted, upto: int) -> list[int]:
        """The numbers of the wanted traces in the wanted order, of those up to the number ``upto``."""
        where, values = _where(wanted)
        query = f"SELECT trace FROM {ALL} WHERE {where} AND trace <= :upto ORDER BY {ORDERS[wanted.order]}"
        return [number for (number,) in self._all(query, values | {"upto": upto})]

    def pairs(self, wanted: Wanted, upto: int, start: int, most: int) -> tuple[int, list[Pair]]:
        """How many pairs have a wanted trace, and ``most`` of them from ``start`` on.

        Pairs that have both groups come first, then the newest. A run's first group of a problem is paired with the
        other run's first, its second with the second, and so on.
        """
        where, values = _where(wanted)
        pairs = f"""
            WITH visits AS (
              SELECT grouped, run, step, problem,
                row_number() OVER (PARTITION BY run, problem ORDER BY step, place) AS visit
              FROM groups),
            found AS (SELECT DISTINCT grouped FROM {ALL} WHERE {where} AND trace <= :upto)
            SELECT problem, max(CASE run WHEN 0 THEN grouped END), max(CASE run WHEN 1 THEN grouped END),
              count(*) OVER ()
            FROM visits GROUP BY problem, visit HAVING max(grouped IN (SELECT grouped FROM found))
            ORDER BY count(*) DESC, max(step) DESC, problem LIMIT :most OFFSET :start"""
        rows = self._all(pairs, values | {"upto": upto, "most": most, "start": start})
        return (rows[0][3] if rows else 0), [Pair(problem, (first, second)) for problem, first, second, _ in rows]

    def traces(self, numbers: Sequence[int]) -> list[Found]:
        """The traces with these numbers, in their order."""
        rows = self._all(f"{_SELECT} WHERE trace IN (SELECT value FROM json_each(?))", [json.dumps(list(numbers))])
        found = {row[0]: _found(row) for row in rows}
        return [found[number] for number in numbers if number in found]

    def traces_of(self, group: int, wanted: Wanted, most: int) -> list[Found]:
        """The first ``most`` wanted traces of a group, best advantage first."""
        where, values = _where(wanted)
        which = f"SELECT trace FROM {ALL} WHERE {where} AND grouped = :group"
        query = f"{_SELECT} WHERE trace IN ({which}) ORDER BY rank LIMIT :most"
        return [_found(row) for row in self._all(query, values | {"group": group, "most": most})]

    def places(self, groups: Sequence[int]) -> dict[int, Place]:
        """The groups with these numbers."""
        query = "SELECT * FROM groups WHERE grouped IN (SELECT value FROM json_each(?))"
        return {row[0]: Place(*row) for row in self._all(query, [json.dumps(list(groups))])}

    def problems(self, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        """What is shown of the problems with these keys: ``question`` and ``turns``."""
        query = "SELECT * FROM problems WHERE problem IN (SELECT value FROM json_each(?))"
        rows = self._all(query, [json.dumps(list(keys))])
        return {key: {"question": question, "turns": json.loads(turns)} for key, question, turns in rows}

    def _all(self, query: str, values: Any = ()) -> list[tuple[Any, ...]]:
        return self._base.execute(query, values).fetchall()

    def _one(self, query: str, values: Any = ()) -> int:
        return self._all(query, values)[0][0]


_SELECT = "SELECT trace, grouped, rank, source, text, finish, reward, advantage, correct FROM traces"


def problem_key(problem: Problem) -> str:
    """What tells problems apart: the text before the answer. Ids of other files may be the same numbers."""
    texts = [*chain.from_iterable(problem.turns), problem.question]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:24]


def _told(trace: TraceView) -> tuple[Any, ...]:
    numbers = (
        value if value is not None and math.isfinite(value) else None for value in (trace.reward, trace.advantage)
    )
    return visible(trace.source), visible(trace.text), trace.finish, *numbers, trace.correct


def _found(row: Sequence[Any]) -> Found:
    _, group, rank, source, text, finish, reward, advantage, correct = row
    return Found(group, rank, TraceView(source, text, finish, reward, advantage, None, correct))


def _holds(text: str, part: str) -> bool:
    return part in text.casefold()


def _where(wanted: Wanted) -> tuple[str, dict[str, Any]]:
    """The conditions as SQL, and the values that they name."""
    conditions = {
        "holds(text, :text)": wanted.text,
        "(holds(question, :problem) OR holds(id, :problem) OR holds(answer, :problem))": wanted.problem,
        "problem = :only": wanted.only,
        "source = :source": wanted.source,
        "coalesce(correct, 'none') = :verdict": wanted.verdict,
        "finish = :finish": wanted.finish,
        "reward >= :low": wanted.low,
        "reward <= :high": wanted.high,
        "step >= :first": wanted.first,
        "step <= :last": wanted.last,
    }
    used = [condition for condition, value in conditions.items() if value not in ("", None)]
    values: dict[str, Any] = {"text": wanted.text.casefold(), "problem": wanted.problem.casefold(), "only": wanted.only}
    values |= {"source": wanted.source, "verdict": wanted.verdict, "finish": wanted.finish}
    values |= {"low": wanted.low, "high": wanted.high, "first": wanted.first, "last": wanted.last}
    return " AND ".join(used) or "true", values
