"""Benchmarks by name: protocols, where their data comes from, multiple choice, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from covrl.config import PromptConfig
from covrl.errors import UserError
from covrl.evaluation.benchmarks import (
    COVRL_OVERALL,
    PROTOCOLS,
    Loaded,
    data_places,
    find_benchmarks,
    load_benchmark,
)
from covrl.evaluation.choices import ASK, Options, load_choices
from covrl.evaluation.exam import Exam
from covrl.records import Problem

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
ROWS = {"GSM8K": 1319, "MATH-500": 500, "AIME24": 30, "AMC23": 40}


def rows(path: Path, *found: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


def local(name: str) -> Loaded:
    if not (DATA / PROTOCOLS[name].file).is_file():
        pytest.skip(f"{DATA / PROTOCOLS[name].file} is not there")
    return load_benchmark(PROTOCOLS[name], {"": str(DATA)}, seed=0)


def test_the_exercised_ones_are_these() -> None:
    assert {name for name, p in PROTOCOLS.items() if p.exercised} == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_local_sets_have_all_their_problems(name: str) -> None:
    found = local(name)
    assert len(found.problems) == ROWS[name]
    assert all(p.answer.strip() and "####" not in p.answer for p in found.problems)


def test_answers_are_taken_as_the_protocol_says() -> None:
    assert local("GSM8K").problems[0].answer == "18"
    assert local("AMC23").problems[0].answer == "27"
    assert local("MATH-500").problems[0].answer == r"\left( 3, \frac{\pi}{2} \right)"
    assert local("AIME24").problems[0].answer == "204"


def test_published_samples_of_covrls_overall() -> None:
    published = {"MMLU-Pro": 1, "GPQA-Diamond": 4, "TheoremQA": 2, "AIME24": 32, "CARP-EN": 2, "MATH-500": 4}
    published |= {"Minerva": 4, "SAT-Math": 32}
    assert {name: PROTOCOLS[name].samples for name in COVRL_OVERALL.members} == published


def test_names_in_any_case_and_suites_spelled_out_once() -> None:
    protocols, suites = find_benchmarks(["math-500", "covrl-overall"])
    assert [p.name for p in protocols] == ["MATH-500", *(n for n in COVRL_OVERALL.members if n != "MATH-500")]
    assert suites == [COVRL_OVERALL]


@pytest.mark.parametrize(("given", "near"), [("MATH500", "MATH-500"), ("AIME-24", "AIME24"), ("gpqa", "GPQA-Diamond")])
def test_an_unknown_name_says_the_nearest(given: str, near: str) -> None:
    with pytest.raises(UserError, match=rf"unknown benchmark '{given}': did you mean {near}\?"):
        find_benchmarks([given])


def test_a_protocol_is_whole_as_data() -> None:
    protocol = PROTOCOLS["MATH-500"]
    assert (protocol.split, protocol.metric, protocol.notes()) == ("test", "avg@4", [])
    for each in PROTOCOLS.values():
        record = each.record()
        assert "{question}" in record["prompts"]["user"]
        assert "<answer>" in record["prompts"]["user"]
        assert record["top_p"] == 1.0
    default = PromptConfig().model_dump()
    assert {key: default[key] for key in protocol.prompts} == protocol.prompts, "a changed default has to be looked at"
    assert "no test of this package" in PROTOCOLS["AIME25"].notes()[0]


def test_data_places(tmp_path: Path) -> None:
    file = rows(tmp_path / "MATH-500.jsonl", {"problem": "1+1", "answer": "2"})
    assert data_places([f"math-500={file}", str(tmp_path)]) == {"MATH-500": file, "": str(tmp_path)}
    found = load_benchmark(PROTOCOLS["MATH-500"], {"": str(tmp_path)}, 0)
    assert (found.source, found.problems[0].answer) == (file, "2")
    for wrong, said in (
        ("nowhere", "no such folder"),
        ("MATH-501=x", "did you mean MATH-500"),
        ("covrl-overall=x", "many files"),
    ):
        with pytest.raises(UserError, match=said):
            data_places([wrong])


def test_what_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    for row, said in (
        ({"question": "1", "answer": "2"}, r"MATH-500: .*no field 'problem' \(question\)"),
        ({"problem": "1", "answer": " "}, "MATH-500: .*nothing but white space"),
    ):
        with pytest.raises(UserError, match=said):
            load_benchmark(PROTOCOLS["MATH-500"], {"MATH-500": rows(tmp_path / "a.jsonl", row)}, 0)
    with pytest.raises(UserError, match=r"MATH-500: .*no such file"):
        load_benchmark(PROTOCOLS["MATH-500"], {"MATH-500": str(tmp_path / "none.jsonl")}, 0)
    with pytest.raises(UserError, match=r"CARP-EN: .* give a file with --data CARP-EN=FILE .fields: content, answer"):
        load_benchmark(PROTOCOLS["CARP-EN"], {}, 0)


def gpqa(number: int) -> dict[str, str]:
    return {"Question": f"q{number}", "Correct Answer": "yes"} | {f"Incorrect Answer {i}": f"no {i}" for i in (1, 2, 3)}


def test_options_are_in_a_seeded_order_and_the_letter_follows_the_right_one(tmp_path: Path) -> None:
    file = rows(tmp_path / "gpqa.jsonl", *(gpqa(i) for i in range(400)))
    one, same, other = (load_benchmark(PROTOCOLS["GPQA-Diamond"], {"GPQA-Diamond": file}, s) for s in (0, 0, 1))
    assert one == same
    assert one.problems != other.problems
    assert one.chance == 0.25
    for problem in one.problems:
        assert f"\n({problem.answer}) yes\n" in problem.question
        assert problem.question.endswith(ASK)
    letters = Counter(p.answer for p in one.problems)
    assert set(letters) == set("ABCD")
    assert min(letters.values()) > 70  # 100 expected; a fixed place or a biased shuffle is far off


@pytest.mark.parametrize("right", [2, "C", "dog", [2]])
def test_the_right_option_by_place_letter_or_text(tmp_path: Path, right: object) -> None:
    for listed in (["cat", "cow", "dog"], "A) cat B) cow C) dog"):
        file = rows(tmp_path / "c.jsonl", {"q": "which", "o": listed, "r": right})
        (problem,) = load_choices(file, Options("q", "r", listed="o"), 3).problems
        assert f"({problem.answer}) dog" in problem.question
        assert problem.accepted == (), "a text that is a letter would be another option"


def test_chance_is_the_mean_over_problems(tmp_path: Path) -> None:
    file = rows(
        tmp_path / "c.jsonl", {"q": "a", "o": ["1", "2"], "r": 0}, {"q": "b", "o": ["1", "2", "3", "4"], "r": 0}
    )
    assert load_choices(file, Options("q", "r", listed="o"), 0).chance == pytest.approx(3 / 8)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"q": "a", "o": ["1", "2"], "r": 2}, "2 is none of the 2 options"),
        ({"q": "a", "o": ["1", "2"], "r": "x"}, "'x' is none of the 2 options"),
        ({"q": "a", "o": ["1"], "r": 0}, "expected 2 to 10 options"),
        ({"q": "a", "o": list("1234567890x"), "r": 0}, "expected 2 to 10 options that are not empty, found 11"),
        ({"q": "a", "o": ["1", ""], "r": 0}, "expected 2 to 10 options that are not empty"),
        ({"q": " ", "o": ["1", "2"], "r": 0}, "question .field 'q'.: expected text"),
        ({"q": "a", "r": 0}, "no field 'o' .options."),
    ],
)
def test_rows_without_a_right_option_are_refused(tmp_path: Path, row: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_choices(rows(tmp_path / "c.jsonl", row), Options("q", "r", listed="o"), 0)


def choice_exam(tmp_path: Path, *options: str) -> tuple[Exam, Problem]:
    """A question whose first option is right, and the exam of its benchmark."""
    protocol = PROTOCOLS["MMLU-Pro"]
    file = rows(tmp_path / "c.jsonl", {"question": "Which of (A) and (B)?", "options": options, "answer_index": 0})
    found = load_benchmark(protocol, {protocol.name: file}, 0)
    exam = Exam(protocol.name, file, found.problems, 1, 1.0, 8, 8, protocol.verifier, protocol.extraction, choice=True)
    return exam, found.problems[0]


def test_options_are_graded_by_the_choice_verifier(tmp_path: Path) -> None:
    exam, problem = choice_exam(tmp_path, "a dog", "a cat", "a cow", "a hen")
    right = problem.answer
    one, other = [c for c in "ABCD" if c != right][:2]
    said = {
        **dict.fromkeys((right, f"({right.lower()})", f"Option {right}", f"({right}) a dog", "A dog."), "right"),
        **dict.fromkeys((f"The answer is ({right}).", rf"so \boxed{{{right}}}"), "right"),
        **dict.fromkeys((one, f"({one})", "a cat" if f"({right}) a cat" not in problem.question else one), "wrong"),
        **dict.fromkeys((f"{right}, {one}, {other}", f"({right}) or ({one})", f"{right}: no, {one}"), "unknown"),
        **dict.fromkeys((f"{right}) a cat", f"I think {right}", f"The answer is {right} or {one}.", "7"), "unknown"),
    }
    grade = exam.grader()
    assert grade is not None
    assert dict(zip(said, grade([(problem, text) for text in said]), strict=True)) == said
    votes = [exam.spelled(problem, text) for text in (right, f"({right}) a dog", "a dog", f"{right} or {one}", "")]
    assert votes == [right, right, right, f"{right} or {one}", None]


def test_an_option_that_is_a_letter_is_no_answer_of_another(tmp_path: Path) -> None:
    _, first = choice_exam(tmp_path, "1", "2", "3", "4")
    other = "B" if first.answer == "A" else "A"
    exam, problem = choice_exam(tmp_path, other, "2", "3", "4")  # the same place: the order hangs on the row alone
    assert problem.answer == first.answer
    grade = exam.grader()
    assert grade is not None
    assert list(grade([(problem, said) for said in (problem.answer, other)])) == ["right", "unknown"]


def test_all_answers_of_a_list_are_due(tmp_path: Path) -> None:
    protocol = PROTOCOLS["OlympiadBench"]
    found = [
        {"question": "Solve.", "final_answer": answer} for answer in (["$2$", "$-3$"], ["$5$"], ["(1,2)", "(3,4)"])
    ]
    problems = load_benchmark(protocol, {protocol.name: rows(tmp_path / "o.jsonl", *found)}, 0).problems
    assert [(p.answer, p.accepted) for p in problems] == [("2, -3", ()), ("$5$", ()), ("(1,2), (3,4)", ())]
    grade = Exam("o", "", problems, 1, 1.0, 8, 8, protocol.verifier, protocol.extraction).grader()
    assert grade is not None
    said = {"-3, 2": "right", r"x = 2 \text{ or } x = -3": "right", "2": "wrong", "-3": "wrong", "2, -3, 4": "wrong"}
    assert dict(zip(said, grade([(problems[0], text) for text in said]), strict=True)) == said
    assert grade([(problems[2], "(3,4), (1,2)"), (problems[2], "(1,2)")]) == ["right", "wrong"]


def test_true_and_false_are_words(tmp_path: Path) -> None:
    protocol = PROTOCOLS["TheoremQA"]
    file = rows(tmp_path / "t.jsonl", {"Question": "Is it?", "Answer": True}, {"Question": "Is it?", "Answer": [1, 2]})
    problems = load_benchmark(protocol, {protocol.name: file}, 0).problems
    assert [p.answer for p in problems] == ["True", "1"]
    grade = Exam("t", "", problems, 1, 1.0, 8, 8, protocol.verifier, protocol.extraction).grader()
    assert grade is not None
    assert list(grade([(problems[0], said) for said in ("true", "False", "1")])) == ["right", "wrong", "unknown"]
