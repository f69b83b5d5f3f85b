r"""Where an answer stands, and what stands around it (cases 10, 11 and 15); all rows of the shared file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from covrl.records import Problem
from covrl.rewards.extract import after_thought, extract_answer, unboxed
from covrl.rewards.graders import make_grader
from covrl.rewards.judgement import judge_all
from covrl.rewards.registry import open_verifier
from covrl.rewards.verifiers import MathVerifier

ROWS = Path(__file__).parents[2] / ".." / "shared" / "cases" / "grade_rows.jsonl"
CLIPS = "How many clips did Natalia sell altogether in April and May?"


@pytest.fixture(scope="module")
def math() -> Iterator[MathVerifier]:
    with MathVerifier() as verifier:
        yield verifier


def test_every_row_of_the_shared_file_is_judged_as_wanted(math: MathVerifier) -> None:
    if not ROWS.exists():
        pytest.skip(f"{ROWS} is missing")
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    judged = judge_all(math, [(Problem("p", r["question"], r["answer"]), r["response"]) for r in rows])
    other = [(r, j) for r, j in zip(rows, judged, strict=True) if (j.verdict == "right") != (r["want"] == "right")]
    assert other == []


# Case 10

BOXES = [
    *(r"\boxed{%s}", r"$\boxed{%s}$", r"\(\boxed{%s}\)", r"\[\boxed{%s}\]", r"$$\boxed{%s}$$", r"**\boxed{%s}**"),
    *(
        r" \boxed{%s}. ",
        r"The answer is \boxed{%s}.",
        r"The final answer is $\boxed{%s}$",
        r"\fbox{%s}",
        r"x = \boxed{%s}",
    ),
    *(
        r"\boxed{\boxed{%s}}",
        r"\\boxed{%s}",
        r"\boxed{ %s }",
        r"$x = \boxed{%s}$",
        "\n\\boxed{%s}\n",
        r"Answer: \boxed{%s}",
    ),
    *(r"\boxed {%s}", r"\displaystyle\boxed{%s}", r"\boxed{$%s$}", r"\boxed{\text{%s}}", r"\boxed{%s.}"),
]
NO_ONE_BOX = [
    *(r"\boxed{4} or \boxed{5}", r"maybe \boxed{5}", r"2\boxed{5}", r"\boxed{5}5", r"not \boxed{5}", r"\boxed{5}, 6"),
    *(r"\boxed{6}", r"\boxed{}", r"\boxed{5", r"\boxed{5}^2", r"-\boxed{5}", r"\boxed{5}, \boxed{6}", r"\boxed{5} + 1"),
]


@pytest.mark.parametrize("verifier", ["text", "math", "numeric", "exact"])
def test_case10_a_box_between_the_answer_tags_is_its_content_in_training_and_held_out(verifier: str) -> None:
    grade = make_grader(verifier)
    assert grade is not None
    boxes = [b for b in BOXES if verifier != "exact" or ("$%s" not in b and "text" not in b and "." not in b[-3:])]
    right, wrong = (grade([(Problem("p", "?", "5"), box % said) for box in boxes]) for said in "56")
    assert [box for box, verdict in zip(boxes, right, strict=True) if verdict != "right"] == []
    assert "right" not in wrong
    assert "right" not in grade([(Problem("p", "?", "5"), said) for said in NO_ONE_BOX])


@pytest.mark.parametrize("verifier", ["text", "math", "numeric"])
def test_case10_boxes_hold_numbers_in_any_spelling_and_references_may_have_one(verifier: str) -> None:
    grade = make_grader(verifier)
    assert grade is not None
    pairs = [
        ("1200", r"$\boxed{1,200}$"),
        ("0.50", r"\boxed{0.5}"),
        (r"\boxed{5}", "5"),
        (r"$\boxed{5}$", r"\boxed{5}"),
    ]
    pairs += [("1200", r"\boxed{1{,}200}"), ("18", r"\boxed{\$18}"), (r"\boxed{5}", "5."), ("5", r"\boxed{5.0}")]
    assert grade([(Problem("p", "?", reference), said) for reference, said in pairs]) == ["right"] * len(pairs)


def test_case10_a_letter_in_a_box_is_a_choice() -> None:
    grade = make_grader("choice")
    assert grade is not None
    said = [r"\boxed{C}", r"$\boxed{\text{C}}$", r"\boxed{(C)}", r"\boxed{B}", r"\boxed{B} \boxed{C}"]
    verdicts = grade([(Problem("p", "(A) 1 (B) 2 (C) 3", "C"), text) for text in said])
    assert verdicts == ["right", "right", "right", "wrong", "unknown"]


def test_case10_only_what_a_box_frames_alone_is_taken_out() -> None:
    assert [unboxed(b % "5") for b in BOXES[:8]] == ["5"] * 8
    assert [unboxed(text) for text in NO_ONE_BOX[:6]] == NO_ONE_BOX[:6]


# Case 11


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"<think>\boxed{4}, no.</think><answer>5</answer>", "5"),
        (r"<think>\boxed{4}, no.</think>" + "\n#### 5", "5"),
        (r"<think>#### 4</think> The answer is 5.", "5"),
        (r"\boxed{4}, no. </think> \boxed{5}", "5"),  # the prompt opened the thought
        (r"<think>\boxed{4}</think> The answer is \boxed{5}.", "5"),
        (r"<think>a</think>\boxed{4}<think>no</think>\boxed{5}", "5"),
        ("<THINK>#### 4</THINK>\n#### 5", "5"),
        (r"<thinking>\boxed{4}</thinking>\boxed{5}", "5"),
        (r"[THINK]\boxed{4}[/THINK]\boxed{5}", "5"),
        (r"<think></think>\boxed{5}", "5"),
        (r"<think>\boxed{4}</think> I do not know.", None),
        (r"<think>\boxed{4}</think>", None),
        (r"<think>\boxed{4} and again", None),
        (r"<think>a</think>\boxed{4}<think>or \boxed{5}", None),
        ("<think><answer>4</answer> hm", None),
        (r"\boxed{4}", "4"),
    ],
)
def test_case11_the_answer_is_what_follows_the_last_thought(response: str, answer: str | None) -> None:
    found = extract_answer(response)
    assert (found and found.text) == answer


@pytest.mark.usefixtures("isolator")
def test_case11_the_program_of_a_response_follows_its_thought_too() -> None:
    program = "```python\ndef f(x):\n    return x + {}\n```"
    problem = Problem("p", "", "assert f(1) == 2")
    responses = [f"<think>{program.format(2)}</think>{program.format(1)}", f"<think>{program.format(1)}"]
    with open_verifier("code") as code:
        assert [j.verdict for j in judge_all(code, [(problem, r) for r in responses])] == ["right", "unknown"]


def test_case11_a_text_without_thoughts_is_whole() -> None:
    assert after_thought("a <b> c") == "a <b> c"


# Case 15

FOUND = [
    *(
        "Answer: 72",
        "**Answer:** 72",
        "**Answer**: 72",
        "Final Answer: **72**",
        "✅ Final Answer: **72**",
        "ANSWER: 72",
    ),
    *(
        "### Final Answer\n72",
        "**Final Answer**\n\n72",
        "The answer is:\n\n72",
        "The answer is\n72",
        "> **Answer:** 72",
    ),
    *("The answer is:\n\\[\n72\n\\]", "The answer is:\n$$72$$", "The answer is: $72$.", "So the answer is \\(72\\)."),
    *("The answer is 72 clips.", "The answer is 72 clips, altogether.", "The answer is **72** clips.", "Ans: 72"),
    *(
        "The answer is **72 clips**.",
        "The answer is 72 clips in total.",
        "The final answer is $\\boxed{72}$.",
        "- Answer: 72",
    ),
    *(
        "\\\\boxed{72}",
        "\\\\boxed{\\\\frac{144}{2}}",
        "Answer: \\\\frac{144}{2}",
        "answer = 72",
        "Answer\uff1a72",
        "#### 72 clips",
    ),
    *(
        "The answer to the problem is 72.",
        "The answer to this is 72 clips",
        "<think>hm</think>Answer: 72",
        "Answer: 72.0",
    ),
    *("\\boxed{72 clips}", "\\boxed{72\\text{ clips}}", "<answer>72 clips</answer>", "Answer: 72\n\nThat was it."),
]
HEDGED = [
    *("The answer is not 72.", "Answer: either 72 or 73", "Answer: maybe 72", "The answer might be 72.", "Answer: 72?"),
    *("The answer is probably 72", "Answer: 72 (not sure)", "Answer: about 72", "Answer: ~72", "Answer: \u224872"),
    *("The answer isn't 72.", "The answer is at least 72.", "Answer: between 72 and 73", "Answer: 72 friends", "72"),
    *("Answer: 72 dozen clips", "Answer: 72 clips each", "Answer: 72 hundred clips", "Answer: 72 clips or more"),
    *("Answer: 72 more clips", "The answer is 72 - no, 73.", "The answer is more than 72 clips", "Answer: 72 thousand"),
    *(
        "Answer: half of 72 clips",
        "Is the answer 72",
        "Answer:",
        "Answer: none",
        "The answer is 72 clips less than 100",
    ),
    *("Answer: I do not know, 72 maybe", "The answer is 36 clips times 2", "Answer key: 72", "<think>Answer: 72"),
]
OTHER = ["Answer: 73", "so 72.\n✅ Final Answer: **73**", "Answer: 720", "Answer: 7.2", "Answer: -72", "\\\\boxed{73}"]
OTHER += ["The answer is 72. No, the answer is 73.", "Answer: 73 clips", "Answer: 72 or 73", "The answer is:\n\n73"]


@pytest.mark.parametrize("verifier", ["math", "numeric"])
def test_case15_answers_are_found_and_hedges_are_not(verifier: str) -> None:
    assert min(len(FOUND), len(HEDGED) + len(OTHER)) >= 30
    with open_verifier(verifier) as judge:
        every = FOUND + HEDGED + OTHER
        judged = judge_all(judge, [(Problem("p", CLIPS, "72"), response) for response in every])
    verdicts = dict(zip(every, (j.verdict for j in judged), strict=True))
    assert [r for r in FOUND if verdicts[r] != "right"] == []
    assert [r for r in HEDGED if verdicts[r] != "unknown"] == []
    assert [r for r in OTHER if verdicts[r] == "right"] == []


@pytest.mark.parametrize(
    ("question", "answer", "response", "right"),
    [
        ("Which is it?", "C", "Answer: C", True),
        ("Which is it?", "C", "The correct answer is **(C)**.", True),
        ("Which is it?", "C", "Answer: B", False),
        ("How many eggs are in 6 dozen?", "72", "Answer: 72 dozen", False),
        ("How many dozen eggs are 72 eggs?", "6", "Answer: 6 dozen eggs", True),
        ("How many hair clips did 48 friends buy?", "72", "Answer: 72 clips", True),
        ("How many hair clips did 48 friends buy?", "72", "Answer: 72 friends", False),
        ("How many apples are left?", "3", "The answer is 3 apples left.", True),
        ("How many apples did he eat?", "3", "The answer is 3 apples left.", False),
        ("How many people came?", "1200", "Answer: 1,200 people", True),
        ("He sold clips.", "72", "Answer: 72 clips", False),
        ("How many pages did she read?", "1/2", "Answer: 1/2 pages", True),
        ("How many clips did he sell?", "72 clips", "Answer: 72", True),
    ],
)
def test_case15_a_noun_counts_where_the_question_counts_it(
    question: str, answer: str, response: str, right: bool, math: MathVerifier
) -> None:
    assert (math(Problem("p", question, answer), response).verdict == "right") == right
