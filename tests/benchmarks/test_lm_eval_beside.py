"""lm-evaluation-harness beside `covrl eval`: its data and task, and what the page says of differences.

The harness itself is not installed here: ``tests/real/test_lm_eval.py`` runs it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import lm_eval_beside  # ty: ignore[unresolved-import]
import pytest
import yaml
from outside import page  # ty: ignore[unresolved-import]
from outside.rows import rows_of  # ty: ignore[unresolved-import]

from covrl.config import RunConfig, check, read_toml
from covrl.problems.loading import Fields, load_problems

ROOT = Path(__file__).parents[2]
TASK = ROOT / "benchmarks" / "outside" / "covrl_gsm8k.yaml"
ROWS = [
    {"question": "Two and two clips?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"},
    {"question": "Twelve hundred?", "answer": "It is 1,200.\n#### 1,200"},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def convert(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "outside" / "rows.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_rows_hold_the_number_alone_and_are_read_by_covrl_as_they_are(data: Path, tmp_path: Path) -> None:
    done = convert(data, tmp_path / "gsm8k.jsonl")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'gsm8k.jsonl'}: 2 problems\n"), done.stderr
    lines = [json.loads(line) for line in (tmp_path / "gsm8k.jsonl").read_text().splitlines()]
    assert [(row["id"], row["answer"]) for row in lines] == [("test/0", "4"), ("test/1", "1200")]
    assert lines[0]["solution"] == "2 + 2 = <<2+2=4>>4"
    found = load_problems(str(tmp_path / "gsm8k.jsonl"), Fields(id="id"))
    assert [(p.id, p.question, p.answer) for p in found] == [
        ("test/0", "Two and two clips?", "4"),
        ("test/1", "Twelve hundred?", "1200"),
    ]
    assert len(rows_of(data, 1)) == 1


def test_a_row_that_is_none_of_gsm8ks_is_named(data: Path, tmp_path: Path) -> None:
    data.write_text(data.read_text() + json.dumps({"question": "And?", "answer": "7"}) + "\n")
    done = convert(data, tmp_path / "out.jsonl")
    assert done.returncode == 2
    assert re.fullmatch(r".*test\.jsonl:3: problem 'test/2': answer .*there is no #### .*\n", done.stderr)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("text", "stated", "last"),
    [
        ("2 + 2 = 4. The answer is 4.", ["4."], "4."),
        ("The answer is $1,200. That was 3 x 400.", ["1,200."], "400."),
        ("So there are 18 eggs", [], "18"),
        ("The answer is -3 degrees", ["-3"], "-3"),
        ("The answer is four.", [], None),
    ],
)
def test_the_tasks_filters_read_what_their_names_say(text: str, stated: list[str], last: str | None) -> None:
    filters = {
        each["name"]: each["filter"][0]["regex_pattern"] for each in yaml.safe_load(TASK.read_text())["filter_list"]
    }
    assert re.findall(filters["stated"], text) == stated
    assert (re.findall(filters["last-number"], text) or [None])[-1] == last


def test_the_page_of_docs_has_the_task_and_the_settings_as_they_are() -> None:
    docs = (ROOT / "docs" / "lm-eval.md").read_text()
    assert TASK.read_text().partition("task:")[2] in docs
    ours = lm_eval_beside.OURS.read_text().partition("[prompts]")[2]
    assert ours in docs
    config = check(RunConfig, {"model": {"path": "merged"}, **read_toml(lm_eval_beside.OURS)})
    assert config.prompts.close == "The answer is"
    command = lm_eval_beside.command("harness", "merged", "benchmarks/outside", 100, "out")
    assert config.prompts.system in command
    for word in (*command[:4], "--apply_chat_template", "--include_path"):
        assert word in docs


SAID = {"trace": "It is 4. The answer is", "finish": "closed", "said": " four"}
SILENT = {"trace": "It is 4.", "finish": "eos", "said": ""}
OTHER = {"trace": "It is 5", "finish": "length", "said": ""}
LONGER = {"trace": "It is 4. No", "finish": "length", "said": ""}


@pytest.mark.parametrize(
    ("own", "text", "why"),
    [
        (SAID, None, "covrl reads 'four', the harness '4'"),
        (SILENT, None, "covrl: wrong, no answer is stated before the end of its text; the harness reads '4'"),
        (OTHER, "It is 4.", "texts part at character 6"),
        (LONGER, "It is 4.", "texts part at character 8"),
    ],
)
def test_a_difference_has_its_reason(own: dict[str, Any], text: str | None, why: str) -> None:
    other = {"text": text or own["trace"] + " 4.", "stated": "4"}
    assert page.reason(own, other, "stated") == why


def test_the_page_counts_right_answers_and_lists_what_differs() -> None:
    own = [
        {"id": "a", "trace": "2. The answer is", "finish": "closed", "said": "2", "verdict": "right"},
        {"id": "b", "trace": "So 3", "finish": "eos", "said": "", "verdict": "wrong"},
    ]
    read = {"stated": "2", "stated right": True, "last-number": "2", "last-number right": True}
    last = {"stated": "[invalid]", "stated right": False, "last-number": "3", "last-number right": True}
    other = [{"id": "a", "text": "2. The answer is 2.", **read}, {"id": "b", "text": "So 3", **last}]
    arms = {"harness": other, "harness, bfloat16": other, "harness, its own words": other}
    head = {
        "problems": 2,
        "equal prompts": 2,
        "threads": 1,
        "command": ["-m", "lm_eval"],
        "versions": dict.fromkeys(["lm_eval", "transformers", "torch", "our transformers", "our torch"], "1.0"),
    }
    lines = page.lines({"covrl": own, "covrl, default prompts": own}, arms)
    text = page.page([head, *json.loads(json.dumps(lines))])
    assert "| `covrl` | the answer after the close, `numeric` (1 closed) | 1 of 2 " in text
    assert '| `harness` | number after "The answer is" (1 have one) | 1 of 2 ' in text
    assert "| `harness` | last number of the text (2 have one) | 2 of 2 " in text
    assert "- `harness`: 2 of 2 texts are covrl's, as far as its trace goes." in text
    assert "| b | float32 | last-number | wrong | right | covrl: wrong, no answer is stated before the end" in text
    assert "| a |" not in text
    assert "text" not in lines[-1]["rows"][0], "texts of the data set's problems are not kept"
