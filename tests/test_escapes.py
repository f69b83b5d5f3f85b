"""Backslashes that were lost, or kept, on the way in (cases 20 and 21)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from covrl.config import config_from, override
from covrl.errors import UserError
from covrl.escapes import lost_backslash
from covrl.evaluation.grade import grade_stream
from covrl.problems.loading import Fields, load_problems
from covrl.rewards.registry import open_verifier

SHARED = Path(__file__).parents[1] / ".." / "shared"

LOST = [
    *(
        r"\frac{1}{2}",
        r"\boxed{5}",
        r"\binom{5}{2}",
        r"\beta",
        r"\begin{pmatrix}",
        r"\bar{x}",
        r"\forall x",
        r"\fbox{5}",
    ),
    *(
        r"3 \times 5",
        r"\theta",
        r"\text{no}",
        r"\textbf{no}",
        r"\tfrac12",
        r"\tilde{x}",
        r"\triangle ABC",
        r"\therefore",
    ),
    *(r"x \neq 5", r"\nabla f", r"x \notin A", r"\nleq", r"\rho", r"\right)", r"\rightarrow", r"\rfloor", r"\rangle"),
]
LOST_IN_A_FORMULA = [r"\tan x", r"x \to 5", r"\tau", r"x \ne 5", r"2 \nu", r"x \ni 5"]
HONEST = [
    *(
        "a\tb",
        "name\tan apple\to",
        "\tTo be",
        "an\tau pair",
        "col1\textra\ttop",
        "x\n5",
        "It is so.\nnot a word\nu\ne i",
    ),
    *(
        "\nAnswer",
        "Is it $5$?\ne is 2.718",
        "$x$\nin A\nu",
        "page\fThe next",
        "page\f\n2",
        "a\r\nb",
        "a\rbut",
        "\tif x:\n\t\ty",
    ),
    *(
        r"\frac{1}{2}",
        r"\boxed{5}",
        r"\neq",
        r"C:\new\table",
        "a \\\nb",
        "$$\nu + v\n$$",
        "$$\nx\ne^x\n$$",
        "times\ttimes",
    ),
]


@pytest.mark.parametrize("latex", LOST)
def test_case20_a_backslash_lost_in_json_is_seen_and_what_was_meant_is_said(latex: str) -> None:
    read = json.loads(f'"{latex}"')
    assert read != latex
    said = lost_backslash(read)
    assert said is not None
    command = latex[latex.index("\\") :].split("{")[0].split()[0].rstrip(")12")
    assert f"write \\{command}" in said


@pytest.mark.parametrize("latex", LOST_IN_A_FORMULA)
def test_case20_commands_that_begin_like_words_are_seen_in_formulas_only(latex: str) -> None:
    read = json.loads(f'"{latex}"')
    assert lost_backslash(f"Let ${read}$ be.")
    assert lost_backslash(read, is_formula=True)
    assert lost_backslash(f"It is $5$. {read}") is None


@pytest.mark.parametrize("text", HONEST)
def test_case20_honest_tabs_and_line_ends_are_let_through(text: str) -> None:
    assert lost_backslash(text) is None


def test_case20_a_file_with_such_an_answer_is_refused_with_place_and_guess(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"question": "1", "answer": "1"}\n{"question": "2/4", "answer": "\\frac{1}{2}"}\n')
    with pytest.raises(UserError) as caught:
        load_problems(str(path))
    assert str(caught.value) == (
        f"{path}:2: problem 'train/1': answer (field 'answer'): holds a form feed before 'rac', which is what "
        r"\frac with one backslash becomes; write \\frac"
    )


@pytest.mark.parametrize("field", ["question", "answer", "accepted", "solution"])
def test_case20_every_field_is_looked_at(field: str, tmp_path: Path) -> None:
    row = {"question": "q", "answer": "a", "accepted": ["b"], "solution": "s"}
    row[field] = [json.loads(r'"\boxed{5}"')] if field == "accepted" else json.loads(r'"\boxed{5}"')
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(
        UserError, match=rf"train.jsonl:1: problem 'train/0': {field} .*holds a backspace before 'oxed'"
    ):
        load_problems(str(path), Fields(accepted="accepted", solution="solution"))


def test_case20_an_escape_that_json_does_not_know_is_told_how_to_be_written(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"question": "1", "answer": "\\sqrt{2}"}\n')
    with pytest.raises(UserError, match=r"a backslash is written twice in JSON"):
        load_problems(str(path))


def test_case20_grade_refuses_such_a_reference_and_grades_such_a_response(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    rows = ['{"answer": "5", "response": "\\boxed{5}"}\n', '{"answer": "\\frac{1}{2}", "response": "5"}\n']
    with open_verifier("text") as verifier, pytest.raises(UserError, match=r"input line 2: answer holds a form feed"):
        grade_stream(rows, sys.stdout, verifier)
    assert json.loads(capsys.readouterr().out)["verdict"] == "unknown"


@pytest.mark.parametrize("line", [0, 1, 2])
def test_case20_every_row_of_the_shared_file_is_refused(line: int, tmp_path: Path) -> None:
    path = SHARED / "cases" / "latex_escapes.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is missing")
    one = tmp_path / "one.jsonl"
    one.write_bytes(path.read_bytes().splitlines()[line] + b"\n")
    with pytest.raises(UserError, match=r"one.jsonl:1: problem 'one/0': answer .* with one backslash becomes"):
        load_problems(str(one))


@pytest.mark.parametrize(
    "name", ["gsm8k/train", "gsm8k/test", "math500/test", "svamp/train", "aime24/test", "amc23/test"]
)
def test_case20_no_row_of_real_data_is_refused(name: str) -> None:
    path = SHARED / "data" / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is missing")
    for line in path.read_text(encoding="utf-8").splitlines():
        for key, value in json.loads(line).items():
            assert not isinstance(value, str) or lost_backslash(value, is_formula=key == "answer") is None, value


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        (r"prompts.prior_open=<think>\n", "<think>\n"),
        (r"prompts.answer_prefix=\n<answer>", "\n<answer>"),
        (r"prompts.user={question}\n\nthink step by step.\n", "{question}\n\nthink step by step.\n"),
        (r"prompts.system=a\tb\\n", "a\tb\\n"),
        (r"prompts.system=\u00e9\n", "é\n"),
        (r'prompts.system=say "hi"\n', 'say "hi"\n'),
        (r'prompts.system=say \"hi\"\n"', 'say "hi"\n"'),
        ("prompts.system=a\\nb\n", "a\nb\n"),
        (r'prompts.prior_open="<think>\n"', "<think>\n"),
        (r"prompts.prior_open='<think>\n'", r"<think>\n"),
        ("prompts.prior_open=<think>\n", "<think>\n"),
        (r"prompts.user={question} in \boxed{}.", r"{question} in \boxed{}."),
        (r"model.path=C:\new\table", r"C:\new\table"),
        (r"problems.train=x\n.jsonl", r"x\n.jsonl"),
    ],
)
def test_case21_escapes_in_a_bare_word_are_read_where_line_ends_make_sense(assignment: str, value: str) -> None:
    section, key = assignment.partition("=")[0].split(".")
    assert override({}, [assignment])[section][key] == value


@pytest.mark.parametrize(
    "assignment",
    [
        r"prompts.user={question} in \boxed{}.\n",
        r"prompts.user={question} $a \neq b$",
        r"prompts.user=\d\n",
        r"prompts.system=\UFFFFFFFF\n",
        r"prompts.system=\ud800\n",
        "prompts.system=a\\n\\",
    ],
)
def test_case21_what_may_be_meant_in_two_ways_is_refused_with_the_remedy(assignment: str) -> None:
    with pytest.raises(UserError, match=r"may be meant in two ways; put it in quotes") as caught:
        override({}, [assignment])
    assert "\n" not in str(caught.value)


def test_case20_latex_in_a_settings_file_that_toml_has_read_as_an_escape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[model]\npath = "x"\n[prompts]\nuser = "{question} in \\boxed{}"\n')
    with pytest.raises(UserError, match=r"run.toml: prompts.user holds a backspace before 'oxed'.*single quotes"):
        config_from(path, [])
    with pytest.raises(UserError, match=r"--set prompts.user holds a backspace"):
        override({}, [r'prompts.user="{question} in \boxed{}"'])
