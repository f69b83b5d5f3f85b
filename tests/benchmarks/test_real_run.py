"""`make real` from end to end on a tiny model: every control, continuing, and the table of what was run."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from models import save_tiny

from covrl.config import RunConfig, check, read_toml

REAL = Path(__file__).resolve().parents[2] / "benchmarks/real"
WORDS = {
    'close = "\\nThe answer is"': 'close = "e"',
    "system = \"Write one short calculation for each step, then end with 'The answer is' and the number.\"\n": "",
    "problems_per_step = 8": "problems_per_step = 2",
    "problems_per_step = 4": "problems_per_step = 2",
    "rollouts_per_problem = 8": "rollouts_per_problem = 4",
    "every = 12": "every = 1",
    "every = 4": "every = 1",
    "keep = 1": "keep = 2",
    "max_trace_tokens = 48": "max_trace_tokens = 24",
}
"""For one token a character and no chat template; the letter that closes a trace is one that the model often draws."""

FILES = {"taught": ((2,), 4), "train": ((4,), 8), "held_out": ((4,), 3), "test": ((4,), 5), "longer": ((5,), 2)}


def loaded(name: str) -> ModuleType:
    """A script of benchmarks/real under a name of its own: ``run`` is one of benchmarks/ too."""
    spec = importlib.util.spec_from_file_location(f"real_{name}", REAL / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REAL))
        yield patch


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, patch: pytest.MonkeyPatch) -> ModuleType:
    """The script with settings for a tiny model, its commands in this process."""
    import several_steps  # ty: ignore[unresolved-import]

    from covrl.cli.app import main

    module, here = loaded("run"), tmp_path_factory.mktemp("benchmarks") / "real"
    here.mkdir()
    for name in ("format.toml", "train.toml"):
        text = (REAL / name).read_text()
        for word, other in WORDS.items():
            text = text.replace(word, other)
        (here / name).write_text(text)
    shutil.copy(REAL.parent / "reading.py", here.parent)

    def in_process(*words: str, cwd: Path | None = None, spent: Path | None = None) -> float:
        code = 0
        with pytest.MonkeyPatch.context() as inner:
            inner.chdir(cwd or Path.cwd())
            inner.setattr(sys, "argv", ["covrl", *words[2:]])
            module.calls.append(words[2:])
            try:
                main()
            except SystemExit as stop:
                code = int(stop.code or 0)
        assert code == 0, " ".join(words)
        assert spent is not None
        module.write_json(spent, {"cpu_s": module.seconds_in(spent) + 1.0})
        return module.seconds_in(spent)

    patch.setattr(several_steps, "FILES", FILES)
    patch.setattr(module, "HERE", here)
    for name, value in {"covrl_python": in_process, "LESSONS": 1, "CLOSED": "0", "calls": []}.items():
        patch.setattr(module, name, value, raising=name != "calls")
    return module


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, real: ModuleType, patch: pytest.MonkeyPatch) -> Path:
    """A folder with a run of the method and of each control, two steps each; one has a setting of its own."""
    folder = tmp_path_factory.mktemp("out")
    save_tiny("llama", folder / "tiny")
    for control in ("none", "shuffled-answers", "format"):
        start(patch, real, folder, "--control", control)
    start(patch, real, folder, "--control", "shuffled-hints", "--set", "algorithm.nll=read")
    return folder


HINTS = "covrl-shuffled-hints-steps2-algorithm.nll=read-seed0"


def start(patch: pytest.MonkeyPatch, real: ModuleType, out: Path, *words: str) -> None:
    shared = ["--out", str(out), "--model", str(out / "tiny"), "--steps", "2", "--lessons", "1"]
    patch.setattr(sys, "argv", ["run.py", *shared, *words])
    assert real.main() == 0


def records(out: Path) -> dict[str, dict[str, Any]]:
    return {file.parent.name: json.loads(file.read_text()) for file in sorted(out.glob("*/real.json"))}


def test_every_control_has_a_record_of_the_same_problems_from_the_same_base(out: Path) -> None:
    found = records(out)
    assert set(found) == {
        "covrl-steps2-seed0",
        "covrl-format-steps2-seed0",
        HINTS,
        "covrl-shuffled-answers-steps2-seed0",
    }
    assert len({json.dumps(record["base"]) for record in found.values()}) == 1
    for record in found.values():
        after = record["trained"]
        assert after["problems"] == len(after["marks"]) == len(after["sampled_marks"]) == 5
        assert after["greedy"] == after["marks"].count("1") / 5
        assert after["sampled"] == after["sampled_marks"].count("1") / 5
        assert 0 <= after["closed"] <= 1
        assert 0 < after["tokens"] <= 25
        assert ("course" in record) == (record["control"] != "format")
    for record in (r for r in found.values() if "course" in r):
        assert [step["step"] for step in record["course"]] == [1, 2]
        assert "eval/accuracy" in record["course"][-1]


def test_each_control_changes_what_it_says(out: Path, real: ModuleType) -> None:
    hints, answers = (
        (out / name / "config.toml").read_text() for name in (HINTS, "covrl-shuffled-answers-steps2-seed0")
    )
    assert "shuffle_hints = true" in hints
    assert 'nll = "read"' in hints
    assert "shuffled0.jsonl" in answers
    plain, shuffled = (
        [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "shuffled0")
    )
    assert [row["question"] for row in plain] == [row["question"] for row in shuffled]
    assert sorted(row["answer"] for row in plain) == sorted(row["answer"] for row in shuffled)
    assert [row["answer"] for row in plain] != [row["answer"] for row in shuffled]
    lessons = [call for call in real.calls if call[0] == "warm-format"]
    assert [call[call.index("--steps") + 1] for call in lessons] == ["1", "2"]
    assert "model.path=taught" in lessons[1]


def test_what_is_there_is_not_done_again(out: Path, real: ModuleType, patch: pytest.MonkeyPatch) -> None:
    before = len(real.calls)
    start(patch, real, out)
    start(patch, real, out, "--steps", "0")
    assert len(real.calls) == before
    with pytest.raises(
        SystemExit, match=r"lessons, roles and problems are \(1, 'prior', 5\), not \(1, 'prior,posterior', 5\)"
    ):
        start(patch, real, out, "--roles", "prior,posterior")
    with pytest.raises(SystemExit, match=r"not \(1, 'prior', 3\)"):
        start(patch, real, out, "--problems", "3")


def test_a_run_that_was_cut_goes_on_and_ends_alike(out: Path, real: ModuleType, patch: pytest.MonkeyPatch) -> None:
    folder = out / "covrl-steps2-seed0"
    whole = json.loads((folder / "real.json").read_text())
    (folder / "real.json").unlink()
    shutil.rmtree(sorted((folder / "checkpoints").glob("step-*"))[-1])
    start(patch, real, out)
    assert real.calls[-1] == ("train", "--resume", folder.name)
    again = json.loads((folder / "real.json").read_text())
    assert again["train_cpu_s"] == whole["train_cpu_s"] + 1.0
    assert again["trained"] == whole["trained"]
    assert again["course"] == whole["course"]


def test_the_table_has_every_run_and_names_what_is_missing(
    out: Path, real: ModuleType, patch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as inner:
        inner.setitem(sys.modules, "run", real)
        table = loaded("table")
    patch.setattr(table, "LINES", tmp_path / "lines.jsonl")
    patch.setattr(table, "PAGE", tmp_path / "page.md")
    patch.setattr(sys, "argv", ["table.py", str(tmp_path)])
    assert table.main() == 2
    assert capsys.readouterr().err.startswith(f"no taught.json in {tmp_path}")
    (tmp_path / "taught.json").write_text((out / "taught.json").read_text())
    assert table.main() == 0  # nothing trained yet: the taught model, and all that is missing
    assert "| after 1 lessons (prior prompt) | – | – |" in table.PAGE.read_text()
    assert "is not measured yet" not in table.PAGE.read_text()
    assert table.PAGE.read_text().count("python benchmarks/real/run.py --seed") == 3
    patch.setattr(sys, "argv", ["table.py", str(out)])
    for _ in range(2):  # a second time changes nothing
        assert table.main() == 0
        assert len((tmp_path / "lines.jsonl").read_text().splitlines()) == 5
    with (
        pytest.MonkeyPatch.context() as inner
    ):  # lessons of another number: none of these runs is one of those asked for
        inner.setattr(table, "LESSONS", 2)
        other = "\n".join(
            table.missing([line for line in table.read_lines() if "trained" not in line], table.read_lines())
        )
    assert "2 lessons (prior prompt). That model is not measured yet" in other
    assert other.count("benchmarks/real/run.py") == 12
    page = (tmp_path / "page.md").read_text()
    for control in real.CONTROLS:
        assert table.NAMES[control].format(method="covrl") in page
    absent = [line for line in page.splitlines() if line.startswith("python benchmarks/real/run.py")]
    assert len(absent) == 9  # the run with a setting of its own stands for none of them
    assert "python benchmarks/real/run.py --control format --seed 1" in absent
    assert "the task is" in page


def test_the_trial_is_made_of_short_solutions_and_small_numbers(
    real: ModuleType, tmp_path: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as inner:
        inner.setitem(sys.modules, "run", real)
        trial = loaded("trial")
    patch.setattr(trial, "HELD_OUT", 2)
    patch.setattr(trial, "HERE", REAL)
    solved = [
        {"question": "How many?", "answer": "It is 3+4=<<3+4=7>>7.\n#### 1,007"},
        {"question": "Long?", "answer": f"{'so ' * 80}\n#### 1"},
    ]
    asked = [{"id": f"s{i}", "question": f"{i} and 2?", "answer": str(i + 2)} for i in (1, 2, 3, 20, 21)]
    asked += [{"id": "none", "question": "How many?", "answer": "3"}, {"id": "much", "question": "1?", "answer": "41"}]
    files = {"gsm8k": solved, "svamp": asked}
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [word for name in files for word in (f"--{name}", str(tmp_path / f"{name}.jsonl"))]
    out = tmp_path / "trial"
    (out / "warm").mkdir(parents=True)
    (out / "warm/model.safetensors").touch()  # its lessons were given
    patch.setattr(sys, "argv", ["trial.py", *words, "--out", str(out), "--model", str(tmp_path)])
    assert trial.main() == 0
    assert f"--config {out / 'trial.toml'} --name trial" in capsys.readouterr().out
    (taught,) = map(json.loads, (out / "format.jsonl").read_text().splitlines())
    assert taught == {"id": "g0", "question": "How many?", "answer": "1007", "solution": "It is 3+4=7.\n"}
    found = [
        json.loads(row) for name in ("train", "held_out") for row in (out / f"{name}.jsonl").read_text().splitlines()
    ]
    assert {row["id"] for row in found} == {"s1", "s2", "s3", "s20"}
    assert len((out / "held_out.jsonl").read_text().splitlines()) == 2
    config = check(RunConfig, read_toml(out / "trial.toml"))
    assert config.model.path == str(out / "warm")
    assert config.problems.train == str(out / "train.jsonl")
    patch.setattr(sys, "argv", ["trial.py", "--gsm8k", str(tmp_path / "no"), "--svamp", "x", "--out", str(out)])
    with pytest.raises(SystemExit, match="no: no such file"):
        trial.main()


def test_seconds_of_several_tries_add_up_and_a_failure_ends_the_command(tmp_path: Path) -> None:
    run, spent = loaded("run"), tmp_path / "cpu.json"
    first = run.covrl_python("-c", "sum(range(10**7))", spent=spent)
    assert 0 < first == run.seconds_in(spent)
    with pytest.raises(SystemExit) as stop:
        run.covrl_python("-c", "import sys; sum(range(10**7)); sys.exit(3)", spent=spent)
    assert stop.value.code == 3
    assert run.seconds_in(spent) > first


def test_gains_are_over_the_same_problems() -> None:
    sys.modules["run"], before = loaded("run"), sys.modules.get("run")
    try:
        table = loaded("table")
    finally:
        sys.modules.pop("run") if before is None else sys.modules.update(run=before)
    runs = [{"base": {"marks": a}, "trained": {"marks": b}} for a, b in (("0101", "1111"), ("0111", "0111"))]
    assert table.gain(runs, "marks").startswith("+25.0 (")
    assert table.first_and_last([[{"x": 1.0}, {}, {"x": 3.0}]], "x", "{:.1f}") == "2.0 → 2.0"
    assert table.first_and_last([[{}]], "x", "{:.1f}") == "–"
