from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covrl.errors import UserError
from covrl.rewards.extract import DEFAULT_ORDER, EXTRACTORS, Extracted, extract_answer

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"


@pytest.mark.parametrize(
    ("response", "text", "how"),
    [
        (r"answer is 4, #### 3 <answer>2</answer> \boxed{1}", "1", "boxed"),
        (r"\boxed{1} <answer>2</answer> #### 3" + "\nThe answer is 4", "1", "boxed"),
        ("#### 3\n<answer>2</answer> the answer is 4", "2", "answer_tag"),
        ("The answer is 4.\n#### 3\n", "3", "hash"),
        ("The answer is 3. No, the answer is 4.", "4", "answer_is"),
    ],
)
def test_default_order(response: str, text: str, how: str) -> None:
    assert extract_answer(response) == Extracted(text, how)


@pytest.mark.parametrize(
    "response", ["", "42", "So we get 6 x 7 = 42", "the answer might be 42", "##### 42", r"\boxed 42"]
)
def test_never_the_last_number(response: str) -> None:
    assert extract_answer(response) is None


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{ \fbox{ 5 } }", "5"),
        (r"\boxed{x=\boxed{5}+1}", r"x=\boxed{5}+1"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{1\right.}", r"\left\{1\right."),
        (r"a line \\\boxed{5}", "5"),
        (r"\boxed {5}", "5"),
        (r"stray { and } } \boxed{5} {", "5"),
        (r"\boxed{5} and write it in \boxed{}", "5"),
        (r"\boxed{5} but \boxed{6", "5"),
        (r"\boxed{5", None),
        (r"\boxed{5\}", None),
        (r"\boxed{{5}", None),
        (r"\\boxed{5}", "5"),
        (r"\boxedtext{5}", None),
    ],
)
def test_boxed(response: str, expected: str | None) -> None:
    assert EXTRACTORS["boxed"](response) == expected


@pytest.mark.parametrize(
    ("name", "response", "expected"),
    [
        ("answer_tag", "<answer>1</answer><answer>\n 2 \n</answer>", "2"),
        ("answer_tag", "<answer>1</answer> <answer>2", "1"),
        ("answer_tag", "<answer>put it into <Answer>2</ANSWER>", "2"),
        ("answer_tag", "</answer>2<answer>", None),
        ("hash", "work\n#### 1,234 \nmore", "1,234"),
        ("hash", "#### 1\n#### \n", "1"),
        ("answer_is", "The final answer is: **42**.", "42"),
        ("answer_is", "**The answer is:** 42.", "42"),
        ("answer_is", "The answer is $3.5$. I hope that helps.", "$3.5$"),
        ("answer_is", "the answer is 3.5.", "3.5"),
        ("answer_is", "the answer is 0.33...", "0.33..."),
        ("answer_is", "the Answer  is\n42", "42"),
        ("answer_is", "the answer isn't 42", None),
        ("answer_is", "the answer is 5? No, the answer is 6.", "6"),
        ("none", "  42\n", "42"),
        ("none", " \n", None),
    ],
)
def test_by_name(name: str, response: str, expected: str | None) -> None:
    assert EXTRACTORS[name](response) == expected


def test_an_order_of_ones_own_and_an_unknown_name() -> None:
    both = r"\boxed{1} <answer>2</answer>"
    assert extract_answer(both, ("answer_tag", "boxed")) == Extracted("2", "answer_tag")
    assert extract_answer(both, ("hash",)) is None
    with pytest.raises(UserError, match="unknown extractor last_number: known are boxed, answer_tag, hash"):
        extract_answer(both, ("last_number",))


balanced = st.recursive(
    st.text("ab1 \\$%", max_size=4).filter(lambda s: not s.endswith("\\")),
    lambda inner: st.lists(inner, max_size=3).map("".join) | inner.map(lambda s: "{" + s + "}"),
    max_leaves=8,
)


@given(answer=balanced, before=st.text(), after=st.text("ab {1"))
def test_whatever_balances_comes_back_from_its_box(answer: str, before: str, after: str) -> None:
    response = before.replace("\\", "") + "\\boxed{" + answer + "}" + after
    assert EXTRACTORS["boxed"](response) == (answer.strip() or None)


@given(st.text())
def test_any_text_is_taken_and_what_is_found_was_there(response: str) -> None:
    found = extract_answer(response)
    assert found is None or (found.text in response and found.how in DEFAULT_ORDER)


@pytest.mark.parametrize(
    "make",
    [
        lambda n: "\\boxed{" * (n // 7),
        lambda n: "\\boxed{" * (n // 8) + "5" + "}" * (n // 8),
        lambda n: "\\boxed{ " * (n // 10) + " }" * (n // 10),
        lambda n: "\\boxed{1+" * (n // 10) + "}" * (n // 10),
        lambda n: "\\boxed" + " " * n,
        lambda n: "{" * n,
        lambda n: "}" * n,
        lambda n: "\\" * n,
        lambda n: "<answer>" * (n // 8),
        lambda n: "<answer></answer>" * (n // 17),
        lambda n: "#" * n,
        lambda n: "####\n" * (n // 5),
        lambda n: "answer is " * (n // 10),
        lambda n: "answer is.\n" * (n // 11),
        lambda n: "answer " + " " * n,
        lambda n: "the answer is " + "*" * n,
    ],
)
def test_a_megabyte_of_anything_is_read_in_linear_time(make: Callable[[int], str]) -> None:
    """A square of its characters would be 10¹² steps: hours. Reading it takes tenths of a second."""
    text = make(1_000_000)
    begun = time.process_time()
    extract_answer(text)
    assert time.process_time() - begun < 60


def test_every_worked_solution_of_math_gives_its_answer() -> None:
    path = DATA / "math500" / "test.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is missing")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [r["answer"] for r in rows] == [EXTRACTORS["boxed"](r["solution"]) for r in rows]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So the **final answer is: 42**", "42"),
        ("the **answer is 42**.", "42"),
        ("the answer is **42**", "42"),
        ("the answer is 2**3", "2**3"),
        ("the answer is 2*", "2*"),
    ],
)
def test_emphasis_that_began_before_the_answer_is_taken_off(text: str, answer: str) -> None:
    assert EXTRACTORS["answer_is"](text) == answer
