from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from covrl.errors import UserError
from covrl.evaluation.grade import ROWS_AT_ONCE, GradeSummary, grade_file, grade_stream, summary_text
from covrl.records import Problem
from covrl.rewards.judgement import Judgement
from covrl.rewards.verifiers import exact_text, normalised_text


def rows(*records: dict[str, Any]) -> list[str]:
    return [json.dumps(r) + "\n" for r in records]


def written(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_one_line_out_a_line_in_and_nothing_hidden() -> None:
    out = io.StringIO()
    lines = rows(
        {"id": 7, "answer": "42", "response": r"\boxed{42}"},
        {"answer": 42, "response": "#### 42.0", "more": 1},
        {"answer": 27.0, "response": "the answer is 27"},
        {"answer": "1/2", "accepted": ["0.5", 2], "response": "<answer>.50</answer>"},
        {"answer": "42", "response": r"\boxed{41}"},
        {"answer": "42", "response": "perhaps 42"},
        {"id": "ü", "answer": "42", "response": "\ud800 the answer is \ud800"},
    )
    summary = grade_stream(lines, out, normalised_text)
    said = written(out)
    assert [s["verdict"] for s in said] == ["right"] * 4 + ["wrong", "unknown", "wrong"]
    assert said[0] == {"id": 7, "verdict": "right", "extracted": "42", "how": "boxed", "why": "equal as text"}
    assert said[5]["extracted"] is None
    assert said[5]["how"] is None
    assert said[6]["id"] == "ü"
    assert summary.counts == {"right": 4, "wrong": 2, "unknown": 1}
    assert summary.unknown_reasons == {"no answer found": 1}
    text = summary_text(summary)
    assert "7 rows  right 4 (57.1%)  wrong 2 (28.6%)  unknown 1 (14.3%)" in text
    assert "unknown: no answer found  1" in text
    assert "rows a second" in text
    assert "warning: more than 10% of the rows cannot be graded" in text
    assert "warning" not in summary_text(GradeSummary({"right": 9, "wrong": 0, "unknown": 1}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"answer": "42", "response": ', r"rows.jsonl line 2: not JSON \(Expecting value\); expected"),
        ("\n", "rows.jsonl line 2: not JSON"),
        (b'{"answer": "\xff", "response": ""}', "rows.jsonl line 2: not JSON"),
        ("[" * 100_000, "rows.jsonl line 2: not JSON"),
        ('{"answer": ' + "1" * 5000 + ', "response": ""}', "rows.jsonl line 2: not JSON"),
        ("[1]", "line 2: not a JSON object"),
        ('{"response": ""}', "line 2: no field 'answer'"),
        ('{"answer": "42"}', "line 2: no field 'response'"),
        ('{"answer": "42", "response": 42}', "line 2: response is a number, not text"),
        ('{"answer": null, "response": ""}', "line 2: answer is null, neither text nor a number"),
        ('{"answer": true, "response": ""}', "line 2: answer is true or false"),
        ('{"answer": NaN, "response": ""}', "line 2: answer is a number, neither"),
        ('{"answer": "1", "accepted": "2", "response": ""}', "line 2: accepted is text, not a list"),
    ],
)
def test_a_line_that_cannot_be_graded_is_named_and_what_came_before_stays(line: str | bytes, message: str) -> None:
    out = io.StringIO()
    with pytest.raises(UserError, match=message) as caught:
        grade_stream([*rows({"answer": "42", "response": r"\boxed{42}"}), line], out, exact_text, "rows.jsonl")
    assert "\n" not in str(caught.value)
    assert [s["verdict"] for s in written(out)] == ["right"]


def test_rows_are_written_while_more_are_read() -> None:
    out = io.StringIO()
    seen: list[int] = []

    def endless() -> Iterator[str]:
        for number in range(4 * ROWS_AT_ONCE):
            seen.append(number - out.getvalue().count("\n"))
            yield rows({"id": number, "answer": "1", "response": r"\boxed{1}"})[0]

    grade_stream(endless(), out, exact_text)
    assert max(seen) <= ROWS_AT_ONCE
    assert [s["id"] for s in written(out)] == list(range(4 * ROWS_AT_ONCE))


def test_long_rows_are_not_gathered() -> None:
    sizes: list[int] = []

    class Recorder:
        def __call__(self, problem: Problem, response: str) -> Judgement:
            return Judgement("wrong", None, "")

    out = io.StringIO()

    def big() -> Iterator[str]:
        for _ in range(20):
            sizes.append(out.getvalue().count("\n"))
            yield rows({"answer": "1", "response": "x" * 1_500_000})[0]

    grade_stream(big(), out, Recorder())
    assert sizes == [3 * (n // 3) for n in range(20)]  # three of them are more than 4 MB


@pytest.mark.parametrize(("verifier", "expected"), [("exact", "wrong"), ("text", "right"), ("math", "right")])
def test_a_file_and_standard_input(
    verifier: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = rows({"answer": "1,234", "response": r"\boxed{$1234$}"})[0].encode()
    (tmp_path / "rows.jsonl").write_bytes(content)
    out = io.StringIO()
    summary = grade_file(str(tmp_path / "rows.jsonl"), out, verifier)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert grade_file("-", out, verifier).counts == summary.counts
    assert [s["verdict"] for s in written(out)] == [expected] * 2


def test_what_cannot_be_opened_is_said() -> None:
    with pytest.raises(UserError, match=r"nowhere\.jsonl: No such file"):
        grade_file("nowhere.jsonl", io.StringIO(), "exact")
    with pytest.raises(UserError, match="unknown verifier nuneric: did you mean numeric"):
        grade_file("-", io.StringIO(), "nuneric")
    with pytest.raises(UserError, match="unknown extractor last"):
        grade_file("-", io.StringIO(), "exact", order=("last",))


def test_no_rows() -> None:
    summary = grade_stream([], io.StringIO(), exact_text)
    assert summary.rows == 0
    assert summary_text(GradeSummary({}, {}, 0.0)).startswith("0 rows  right 0 (0.0%)")
