"""Settings and rows at random: one line and exit code 2, or settings and problems that are what they say."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safe_project import CONFIG, Command

from covrl.config import RunConfig, check, config_from, read_toml, to_toml
from covrl.errors import UserError
from covrl.problems.loading import Fields, load_problems
from covrl.records import Problem

FAST = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WHOLE = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""For what goes through the whole command."""

ODD = (
    "\x00",
    "\x1b[2J",
    "\u2028",
    "\ufeff",
    "\U0010ffff",
    "é",
    '"',
    "'",
    "\\",
    "\\u0000",
    "\\ud800",
    "\n",
    "=",
    "[",
    "]",
    "{",
)


def mutated(text: str) -> st.SearchStrategy[str]:
    """The text with a few pieces put in, taken out or doubled."""
    place = st.integers(0, len(text))
    edit = st.tuples(place, place, st.one_of(st.sampled_from(ODD), st.text(max_size=4), st.just("9" * 5000)))

    def apply(edits: list[tuple[int, int, str]]) -> str:
        made = text
        for a, b, piece in edits:
            a, b = sorted((a % (len(made) + 1), b % (len(made) + 1)))
            made = made[:a] + piece + made[b if b - a < 12 else a :]
        return made

    return st.lists(edit, min_size=1, max_size=4).map(apply)


# Settings


def settings_or_line(path: Path, assignments: list[str]) -> RunConfig | None:
    try:
        config = config_from(path, assignments)
    except UserError:
        return None
    again = path.with_name("again.toml")
    again.write_text(to_toml(config), encoding="utf-8")
    assert to_toml(check(RunConfig, read_toml(again))) == again.read_text(encoding="utf-8")
    return config


@FAST
@given(text=mutated(CONFIG).filter(lambda t: "\r" not in t))
@example(text="a = " + "[" * 20_000)
@example(text="a = {b = " * 5_000)
@example(text=CONFIG.replace("steps = 1", "steps = " + "9" * 5000))
@example(text=CONFIG.replace("steps = 1", "steps = 1979-05-27T07:32:00Z"))
@example(text=CONFIG + "[training.x]\ny = 1\n")
@example(text=CONFIG + '[algorithm]\nname = "os:system"\n')
@example(text=CONFIG + '[rewards]\nfunction = "os:system"\n')
@example(text=CONFIG + '[rewards]\nverifier = "os:system"\n')
def test_a_file_of_settings(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    config = settings_or_line(tmp_path / "run.toml", [])
    named = (config.algorithm.name, config.rewards.function, config.rewards.verifier) if config else ()
    assert not any(":" in name for name in named), "a file names no code"


@FAST
@given(content=st.binary(max_size=60))
def test_a_file_of_bytes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.toml").write_bytes(content)
    settings_or_line(tmp_path / "run.toml", [])


LEAVES = sorted(f"{s}.{k}" for s, v in check(RunConfig, {"model": {"path": "m"}}).model_dump().items() for k in v)
WORDS = st.one_of(
    st.sampled_from(
        [*ODD, "true", "nan", "inf", "-1", "0", "1e400", "0x7f", "[1, 2]", "{a=1}", '"x"', "os:system", "9" * 5000]
    ),
    st.text(max_size=6),
    st.just("[" * 5000),
)


@FAST
@given(key=st.one_of(st.sampled_from(LEAVES), st.text(max_size=6)), value=WORDS)
@example(key="a..b", value="1")
@example(key="training.steps.x", value="1")
@example(key="algorithm.a.b.c", value="1")
@example(key="model.path", value="\udce9")
def test_an_assignment(tmp_path: Path, key: str, value: str) -> None:
    (tmp_path / "run.toml").write_text(CONFIG)
    settings_or_line(tmp_path / "run.toml", [f"{key}={value}"])


SMALL_WORDS = st.sampled_from(
    ["-1", "0", "1", "2", "0.5", "1e-300", "nan", "true", "''", "'\\u0000'", "x", "é", "[]", '["a"]', "\udce9"]
)
SLOW = {"training.rollouts_per_problem", "guards.step_deadline_s"}


@WHOLE
@given(key=st.sampled_from([leaf for leaf in LEAVES if leaf not in SLOW]), value=SMALL_WORDS)
@example(key="model.path", value="'a\\u0000b'")
@example(key="problems.train", value='"a\\u0000.jsonl"')
@example(key="problems.train", value='"a\\u0000.parquet"')
@example(key="problems.held_out", value="\udce9.jsonl")
@example(key="model.device", value="cuda:99999999999999999999")
@example(key="model.device", value="meta")
@example(key="training.seed", value="1" + "0" * 40)
@example(key="training.learning_rate", value="1e300")
@example(key="generation.temperature", value="1e-300")
@example(key="generation.temperature", value="1e300")
@example(key="prompts.close", value='"\\u0000"')
@example(key="prompts.user", value='"{question}\\ud7ff"')
@example(key="report.trackers", value='["tensorboard", "tensorboard"]')
def test_an_assignment_through_the_whole_command(project: Path, command: Command, key: str, value: str) -> None:
    shutil.rmtree(project / "run", ignore_errors=True)
    found = command("train", "--config", "run.toml", "--out", "run", "--set", f"{key}={value}")
    assert found.code in (0, 1, 2), found
    if found.code == 2:
        assert found.out == ""
        assert len(found.err.splitlines()) == 1
        assert found.err.startswith("covrl: ")
        assert len(found.err) < 2100


# Rows


def problems_or_line(path: Path, fields: Fields) -> list[Problem]:
    found: list[Problem] = []
    said = ""
    try:
        found = load_problems(str(path), fields)
    except UserError as error:
        said = str(error)
    assert said.isprintable(), "one line"
    for problem in found:
        assert problem.question.strip()
        assert problem.answer.strip()
        "".join([problem.id, problem.question, problem.answer, *problem.accepted]).encode()
    return found


ROWS = '{"id": "a", "question": "1+1", "answer": "2"}\n{"id": "b", "question": "2+2", "answer": [4, "four"]}\n'
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=4),
        st.sampled_from(["\ud800", "\x00", " "]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=5,
)


@FAST
@given(text=mutated(ROWS), packed=st.booleans())
@example(text="[" * 100_000, packed=False)
@example(text='{"a":' * 900 + "1" + "}" * 900, packed=False)
@example(text='{"question": "q", "answer": ' + "9" * 5000 + "}", packed=False)
@example(text='{"question": "q", "answer": NaN}', packed=True)
@example(text='{"question": "\\ud800", "answer": "1"}', packed=False)
def test_rows_of_text(tmp_path: Path, text: str, packed: bool) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    path = tmp_path / ("rows.jsonl.gz" if packed else "rows.jsonl")
    path.write_bytes(gzip.compress(raw, 1) if packed else raw)
    problems_or_line(path, Fields())


@FAST
@given(raw=st.binary(max_size=80), name=st.sampled_from(["r.jsonl", "r.jsonl.gz", "r.json"]))
@example(raw=gzip.compress(b'{"question": "q", "answer": "1"}\n')[:-9], name="r.jsonl.gz")
def test_rows_of_bytes(tmp_path: Path, raw: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(raw)
    problems_or_line(tmp_path / name, Fields())


@FAST
@given(row=st.fixed_dictionaries({"question": JSON, "answer": JSON}, optional={"id": JSON, "meta": JSON}), whole=JSON)
@example(row={"question": "q", "answer": 10**5000}, whole=None)
def test_rows_of_values(tmp_path: Path, row: dict[str, Any], whole: Any) -> None:
    path = tmp_path / "rows.jsonl"
    try:
        path.write_text(json.dumps(row) + "\n" + json.dumps(whole) + "\n")
    except ValueError:  # Python itself does not write a number of over 4,300 digits
        path.write_text('{"question": "q", "answer": ' + "9" * 5000 + "}\n")
    problems_or_line(path, Fields())
    problems_or_line(path, Fields(question="meta.a", answer="answer.0.-1", accepted="meta", id="id", extract="boxed"))


NAMES = [
    "../../evil",
    "/etc/evil",
    "a/b",
    "..",
    ".",
    "",
    "a\0b",
    "-rf",
    "~",
    "C:\\x",
    "x" * 300,
    "%s{0}{question}{hint}",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_from_a_data_set_is_no_path(project: Path, command: Command, name: str) -> None:
    """Ids go into files, never into their names."""
    row = {"id": name or "0", "question": f"{name} 1+1", "answer": "2"}
    (project / "train.jsonl").write_text(json.dumps(row) + "\n")
    before = {p for p in project.parent.rglob("*") if project / "run" not in p.parents}
    found = command("train", "--config", "run.toml", "--out", "run")
    assert found.code in (0, 2), found.err
    after = {p for p in project.parent.rglob("*") if project / "run" not in p.parents}
    assert after - before <= {project / "run"}
    assert not any("evil" in str(p) for p in (project / "run").rglob("*"))


@WHOLE
@given(
    question=st.text(min_size=1, max_size=12).filter(str.strip),
    answer=st.one_of(st.text(max_size=3), st.sampled_from(["<eos>", "e", ";", "e:2;", "\x00", " "])),
)
@example(question="\x00", answer="1")
@example(question="<eos><unk>", answer="<eos>")
@example(question="10", answer="<eos>")
@example(question="\ud800", answer="1")
@example(question="{hint}{question}", answer="{question}")
@example(question="\u2028\u202e\U000e0001", answer="e;")
def test_odd_texts_through_the_whole_command(project: Path, command: Command, question: str, answer: str) -> None:
    shutil.rmtree(project / "run", ignore_errors=True)
    (project / "train.jsonl").write_text(json.dumps({"id": "1", "question": question, "answer": answer}) + "\n")
    found = command("train", "--config", "run.toml", "--out", "run")
    # 1: a guard ended the run, as where no trace reaches the answer; its report and checkpoint are there all the same.
    assert found.code in (0, 1, 2), found.err
    if found.code == 2:
        assert len(found.err.splitlines()) == 1
    else:
        assert found.code == 0 or "covrl: stopped after step" in found.err.splitlines()[-1], found.err
        assert (project / "run/report.html").read_bytes().decode("utf-8")


@pytest.mark.parametrize("question", ["\udce9", "a\ud800", "<eos>", "\x01", " ", "", "x" * 5000])
@pytest.mark.parametrize("answer", ["4", "\udce9", ""])
def test_odd_questions_of_the_command_line(project: Path, command: Command, question: str, answer: str) -> None:
    found = command("ask", "model", question, "--answer", answer, "--config", "run.toml", "-n", "1")
    assert found.code in (0, 2), found.err
    if found.code == 2:
        assert len(found.err.splitlines()) == 1


def test_a_name_may_hold_any_character_but_controls(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(CONFIG)
    for name in ("a b/c", "数学　.jsonl", "naïve\u00a0.jsonl"):
        assert config_from(tmp_path / "run.toml", [f"problems.train={name}"]).problems.train == name
    with pytest.raises(UserError, match="a name must not hold control characters"):
        config_from(tmp_path / "run.toml", ['problems.train="a\\u001b"'])
