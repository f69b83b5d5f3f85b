"""Several sources of training problems: shares and figures of each, errors, and a resume bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import Covrl
from models import save_tiny
from projects import PROMPTS, InterruptAt, write_rows

from covrl import api
from covrl.assembly import problems_of, source_weights, training_problems
from covrl.config import ProblemsConfig, RunConfig, check, read_toml, to_toml
from covrl.errors import RunInterruptedError, UserError

SOURCES = """
[[problems.train]]
source = "sums.jsonl"
weight = 2

[[problems.train]]
source = "train.jsonl"
name = "doubles"
question_field = "q"
answer_field = "a"
extract = "hash"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model and two files of problems whose fields have other names."""
    monkeypatch.chdir(tmp_path)
    save_tiny("qwen2", tmp_path / "model", max_position_embeddings=128)
    write_rows(tmp_path / "sums.jsonl", [{"question": f"{i}+1", "answer": str(i + 1)} for i in range(5)])
    write_rows(tmp_path / "train.jsonl", [{"q": f"{i}+{i}", "a": f"add #### {2 * i}"} for i in range(3)])
    (tmp_path / "run.toml").write_text(
        f"""
[model]
path = "model"
device = "cpu"
{SOURCES}{PROMPTS}[generation]
max_trace_tokens = 12
max_answer_tokens = 4
[training]
steps = 4
problems_per_step = 3
rollouts_per_problem = 2
learning_rate = 1e-3
warmup_steps = 0
schedule = "constant"
[evaluation]
every = 0
[checkpoint]
every = 2
"""
    )
    return tmp_path


def figures(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line)["metrics"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in lines]


def test_each_source_has_its_share_and_figures_and_a_resume_is_the_same(covrl: Covrl, project: Path) -> None:
    assert covrl("train", "--config", "run.toml", "--out", "whole").code == 0
    found = figures(project / "whole")
    assert [(row["data/sums/problems"], row["data/doubles/problems"]) for row in found] == [(2.0, 1.0)] * 4
    assert all({"data/sums/reward", "data/doubles/invalid_share"} <= row.keys() for row in found)
    assert "Reward by source of data" in (project / "whole/report.html").read_text()

    cut = project / "cut"
    api.new_run_folder(cut)
    with pytest.raises(RunInterruptedError):
        api.train_run(api.build(check(RunConfig, read_toml(project / "run.toml"))), cut, [InterruptAt(3)])
    assert covrl("train", "--resume", "cut").code == 0
    weights = [(project / f"{name}/checkpoints/step-000004/model/model.safetensors") for name in ("whole", "cut")]
    state = [json.loads((path.parents[1] / "state.json").read_text())["problems"] for path in weights]
    assert state[0] == state[1] == {"position": 12, "of sums": 8, "of doubles": 4}
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert figures(project / "cut") == found

    config = cut / "config.toml"
    config.write_text(config.read_text().replace("weight = 2.0", "weight = 3.0").replace("steps = 4\n", "steps = 5\n"))
    refused = covrl("train", "--resume", "cut")
    assert refused.code == 2
    assert "problems.train is" in refused.err


def test_tables_are_kept_with_the_run(project: Path) -> None:
    config = check(RunConfig, read_toml(project / "run.toml"))
    (project / "again.toml").write_text(to_toml(config))
    assert check(RunConfig, read_toml(project / "again.toml")) == config
    assert source_weights(config.problems) == {"sums": 2.0, "doubles": 1.0}
    problems = training_problems(config.problems)
    assert [(p.id, p.origin) for p in problems[4:6]] == [("sums/4", "sums"), ("doubles/0", "doubles")]
    assert (problems[5].question, problems[5].answer) == ("0+0", "0")


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ([{"source": "a", "wieght": 1}], "unknown setting problems.train.0.wieght: did you mean .*.train.0.weight"),
        ([{"source": "a.jsonl"}, {"weight": 1}], "setting problems.train.1.source is missing"),
        ([{"source": "a.jsonl", "weight": 0}], "setting problems.train.0.weight: .*greater than 0, found 0"),
        ([{"source": "a.jsonl", "name": "a b"}], "problems.train.0.name: a name has letters, digits"),
        ([], "setting problems.train: .*at least 1 item"),
        (7, "setting problems.train: .*valid string, found 7"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_used_name_the_key(tables: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check(RunConfig, {"model": {"path": "x"}, "problems": {"train": tables}})


def test_sources_that_cannot_be_told_apart(project: Path) -> None:
    sums = {"source": "sums.jsonl"}
    with pytest.raises(UserError, match=r"sums.jsonl and sums.jsonl would both be called sums"):
        training_problems(ProblemsConfig.model_validate({"train": [sums, sums]}))
    same = [{**sums, "name": name, "id_field": "question"} for name in ("one", "two")]
    with pytest.raises(UserError, match=r"the sources one and two both have a problem '0\+1'"):
        training_problems(ProblemsConfig.model_validate({"train": same}))


def test_a_source_with_too_few_problems_for_its_share(covrl: Covrl, project: Path) -> None:
    found = covrl("train", "--config", "run.toml", "--out", "run", "--set", "training.problems_per_step=8")
    assert found.code == 2
    assert "by its weight sums gives up to 6 of the 8 problems of a step, but it has only 5" in found.err


HELD_OUT = """
[problems]
train = "chat.jsonl"
system_field = "instructions"

[problems.held_out]
source = "train.jsonl"
name = "doubles"
question_field = "q"
answer_field = "a"
system_field = ""
extract = "hash"
"""


def test_held_out_problems_may_have_fields_of_their_own(covrl: Covrl, project: Path) -> None:
    talk = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]
    write_rows(project / "chat.jsonl", [{"messages": talk, "instructions": None}] * 3)
    text = (project / "run.toml").read_text().replace(SOURCES, HELD_OUT).replace("steps = 4", "steps = 1")
    (project / "run.toml").write_text(text.replace("[evaluation]\nevery = 0", "[evaluation]\nevery = 1"))
    config = check(RunConfig, read_toml(project / "run.toml"))
    run = api.build(config)
    assert [(p.id, p.question, p.answer) for p in run.source.problems] == [(f"chat/{i}", "1+1", "2") for i in range(3)]
    assert [(p.id, p.question, p.answer) for p in run.held_out] == [
        (f"doubles/{i}", f"{i}+{i}", str(2 * i)) for i in range(3)
    ]
    assert covrl("train", "--config", "run.toml", "--out", "run").code == 0
    assert "eval/accuracy" in figures(project / "run")[0]
    assert check(RunConfig, read_toml(project / "run/config.toml")).problems == config.problems
    assert covrl("train", "--resume", "run").code == 0, "the folder's own settings are read again"


def test_conversations_are_held_out_without_any_setting(project: Path) -> None:
    talk = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]
    write_rows(project / "chat.jsonl", [{"prompt": talk[:1], "completion": talk[1:]}])
    config = check(ProblemsConfig, {"train": "sums.jsonl", "held_out": "chat.jsonl"})
    assert [(p.question, p.answer) for p in problems_of(config.held_out, config)] == [("1+1", "2")]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"source": "a.jsonl", "weight": 2}, "held_out: weight: there is one such source"),
        ({"question_field": "q"}, "held_out.source is missing"),
        ({"source": "a.jsonl", "qustion_field": "q"}, "did you mean held_out.question_field"),
        ([{"source": "a.jsonl"}], "held_out: expected one source, by name or as a table"),
    ],
)
def test_a_table_of_held_out_problems_that_cannot_be_used_is_named(table: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check(ProblemsConfig, {"train": "b.jsonl", "held_out": table})
