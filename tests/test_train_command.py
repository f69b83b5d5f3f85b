"""The first day of a user: own model, own problems, `covrl train` and what follows it."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from commands import Covrl
from models import save_tiny
from projects import PROMPTS, write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

import covrl as covrl_package
from covrl.api import alone_in
from covrl.extras import install_command


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs: a small Qwen2 whose traces often end, seven problems with solutions, and a config."""
    monkeypatch.chdir(tmp_path)
    save_tiny("qwen2", tmp_path / "model", max_position_embeddings=128)
    rows = [{"q": f"{i}+{i}", "a": f"add them #### {2 * i}"} for i in range(7)]
    write_rows(tmp_path / "train.jsonl", rows)
    (tmp_path / "run.toml").write_text(
        f"""
[model]
path = "model"
device = "cpu"
[problems]
train = "train.jsonl"
held_out = "train.jsonl"
question_field = "q"
answer_field = "a"
extract = "hash"
{PROMPTS}[generation]
max_trace_tokens = 24
max_answer_tokens = 4
[training]
steps = 3
problems_per_step = 3
rollouts_per_problem = 4
learning_rate = 1e-3
warmup_steps = 0
[evaluation]
every = 1
problems = 4
[checkpoint]
every = 2
"""
    )
    return tmp_path


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("algorithm.name=clip_delta",), "clip_delta takes scores of reasoning steps: set steps.server to the address"),
        (("algorithm.name=clip_delta", "steps.server=localhost:1"), "expected http://HOST:PORT"),
        (("algorithm.name=grpo", "steps.server=http://localhost:1"), "grpo takes no scores of reasoning steps"),
        (("algorithm.name=cure", "training.rollouts_per_problem=6"), "so it needs a multiple of 4"),
        (("algorithm.name=vineppo", "algorithm.steps=chapters"), "[algorithm] "),
        (("algorithm.name=opsd", "algorithm.teacher=hinter"), "[algorithm] "),
        (("algorithm.name=grpo", "algorithm.contrast=-1"), "[algorithm] "),
        (("prompts.posterior_template=loud",), "prompts.posterior_template"),
        (("steps.rule=words",), "steps.rule"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(
    covrl: Covrl, project: Path, settings: tuple[str, ...], said: str
) -> None:
    given = [part for setting in ("rewards.verifier=numeric", *settings) for part in ("--set", setting)]
    code, _, err = covrl("train", "--config", "run.toml", "--out", "run", *given)
    last = err.strip().splitlines()[-1]
    assert code == 2
    assert said in last, err
    assert not (project / "run").exists() or not any((project / "run").iterdir())


def test_train_writes_a_run_and_its_last_lines_load_the_model(covrl: Covrl, project: Path) -> None:
    code, out, _ = covrl("train", "--config", "run.toml", "--out", "run")
    assert code == 0
    lines = out.strip().splitlines()
    assert lines[-3].startswith("model  ")
    scope: dict = {}
    exec("\n".join(lines[-2:]), scope)
    ids = torch.tensor([scope["tokenizer"]("1+1=").input_ids])
    assert scope["model"](ids).logits.shape[:2] == ids.shape
    metrics = [json.loads(line)["metrics"] for line in (project / "run/metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 3
    assert all({"eval/accuracy", "eval/log_prob", "reward/prior"} <= set(m) for m in metrics)
    assert "eval/log_prob" in (project / "run/report.html").read_text()


def test_the_python_api_trains_in_one_call(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    settings = tomllib.loads((project / "run.toml").read_text()) | {"problems": {}}
    problems = [covrl_package.Problem(str(i), f"{i}+{i}", str(2 * i)) for i in range(7)]
    trained = covrl_package.train(settings, problems, problems[:3], out="python")
    assert len(trained.reports) == 3
    assert trained.best == Path("python/best")
    AutoModelForCausalLM.from_pretrained(project / trained.last)
    with pytest.raises(covrl_package.UserError, match="there is a run in this folder already"):
        covrl_package.train(settings, problems, out="python")
    with pytest.raises(covrl_package.UserError, match="unknown setting trainin"):
        covrl_package.train(settings | {"trainin": {}}, problems, out="other")


def test_checkpoints_and_the_best_model_load_in_plain_transformers(covrl: Covrl, project: Path) -> None:
    covrl("train", "--config", "run.toml", "--out", "run")
    for folder in ("run/best", "run/checkpoints/step-000003/model"):
        AutoModelForCausalLM.from_pretrained(project / folder)
        AutoTokenizer.from_pretrained(project / folder)


def test_resume_continues_and_says_when_nothing_is_left(covrl: Covrl, project: Path) -> None:
    assert covrl("train", "--config", "run.toml", "--out", "run", "--set", "training.steps=2")[0] == 0
    code, out, _ = covrl("train", "--resume", "run")
    assert code == 0
    assert "all 2 steps are done; there is nothing left to resume" in out
    config = (project / "run/config.toml").read_text().replace("steps = 2\n", "steps = 4\n")
    (project / "run/config.toml").write_text(config)
    assert covrl("train", "--resume", "run")[0] == 0
    steps = [json.loads(line)["step"] for line in (project / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]


def test_a_run_that_is_going_is_left_alone(covrl: Covrl, project: Path) -> None:
    assert covrl("train", "--config", "run.toml", "--out", "run", "--set", "training.steps=2")[0] == 0
    config = (project / "run/config.toml").read_text().replace("steps = 2\n", "steps = 4\n")
    (project / "run/config.toml").write_text(config)
    before = (project / "run/metrics.jsonl").read_bytes()
    with alone_in(project / "run"):
        code, _, err = covrl("train", "--resume", "run")
    assert code == 2
    assert "a run is going on in this folder" in err
    assert (project / "run/metrics.jsonl").read_bytes() == before


def test_dry_run_shows_prompts_traces_and_cost_and_writes_nothing(covrl: Covrl, project: Path) -> None:
    before = sorted(project.rglob("*"))
    code, out, err = covrl("train", "--config", "run.toml", "--dry-run")
    assert code == 0, err
    assert "prior: " in out
    assert "posterior: " in out
    assert "trace " in out
    assert "answer 2" in out
    assert "8 traces" in out
    assert "time, all steps" in out
    assert sorted(project.rglob("*")) == before


def test_a_base_that_does_not_know_the_format_is_named_with_figures(covrl: Covrl, project: Path) -> None:
    code, _, err = covrl("train", "--config", "run.toml", "--dry-run", "--set", "prompts.close=</think>")
    assert code == 2
    assert "the base does not know the format: 0% of 8 traces end with the closing tag" in err


def test_warm_format_teaches_it(covrl: Covrl, project: Path) -> None:
    arguments = ["--config", "run.toml", "--out", "warm", "--learning-rate", "5e-3", "--every", "10", "--until", "0.6"]
    code, out, err = covrl("warm-format", *arguments, "--set", "prompts.close=</t>", "--steps", "150")
    assert code == 0, err
    assert "valid traces" in err
    assert str(project / "warm") in out
    assert (
        covrl("train", "--config", "run.toml", "--set", "prompts.close=</t>", "--set", "model.path=warm", "--dry-run")[
            0
        ]
        == 0
    )


def test_eval_reads_runs_and_models_and_prints_one_json_line(covrl: Covrl, project: Path) -> None:
    covrl("train", "--config", "run.toml", "--out", "run")
    code, out, err = covrl(
        "eval", "--model", "run", "--problems", "train.jsonl", "-n", "2", "--json", "--traces", "t.jsonl"
    )
    assert code == 0, err
    figures = json.loads(out)
    assert figures["problems"] == 7
    assert figures["n"] == 2
    assert 0 <= figures["avg@n"] <= 1
    assert len((project / "t.jsonl").read_text().splitlines()) == 21
    code, out, err = covrl(
        "eval", "--model", "model", "--problems", "train.jsonl", "--config", "run.toml", "--limit", "3"
    )
    assert code == 0, err
    assert "greedy" in out


def test_eval_of_the_shipped_base_needs_no_config(
    covrl: Covrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = covrl("eval", "--model", "covrl:digits", "--problems", "digits:dev", "--limit", "64", "--json")
    assert code == 0, err
    assert json.loads(out)["greedy"] <= 0.1


def test_ask_sets_base_against_trained_and_prior_against_posterior(covrl: Covrl, project: Path) -> None:
    covrl("train", "--config", "run.toml", "--out", "run")
    code, out, err = covrl("ask", "run", "2+2", "--answer", "4", "-n", "1")
    assert code == 0, err
    for name in ("base", "trained"):
        for source in ("prior", "posterior"):
            assert any(name in line and source in line for line in out.splitlines())
    code, out, _ = covrl("ask", "covrl:digits", "72941")
    assert code == 0
    assert "posterior" not in out


def test_view_makes_the_report_again(covrl: Covrl, project: Path) -> None:
    covrl("train", "--config", "run.toml", "--out", "run")
    (project / "run/report.html").unlink()
    code, out, _ = covrl("view", "run")
    assert code == 0
    assert Path(out.strip()) == project / "run/report.html"
    assert "Held-out accuracy" in (project / "run/report.html").read_text()


def test_doctor_names_what_is_there(covrl: Covrl) -> None:
    code, out, _ = covrl("doctor")
    assert code == 0
    assert "torch" in out
    assert "device" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [  # what follows "train" has --config run.toml where it begins with --set
        (["train"], "give either --config FILE or --resume RUN"),
        (["train", "--config", "nowhere.toml"], "nowhere.toml: no such file"),
        (["--set", "trainig.steps=1"], "--set: unknown setting trainig: did you mean training?"),
        (["--set", "problems.train=no.jsonl"], "no.jsonl"),
        (["--set", "problems.question_field=question"], "'question'"),
        (["--set", "problems.extract=boxed"], "boxed"),
        (["--set", "training.problems_per_step=8"], "problems_per_step = 8, but there are only 7 problems"),
        (["--set", "generation.max_trace_tokens=200"], "exceed the model's context of 128"),
        (["--set", "report.trackers=[\"trackio\"]", "--out", "x"], install_command("trackio")),
        (["train", "--resume", "nowhere"], "nowhere/config.toml: no such file"),
        (["train", "--resume", "run", "--set", "training.steps=9"], "leave --set out, but for generation.engine"),
        (["train", "--resume", "run", "--set", "generation=3"], "leave --set out, but for generation.engine"),
        (["train", "--resume", "run", "--out", "other"], "leave --out and --dry-run out"),
        (["view", "nowhere"], "nowhere/config.toml: no such file"),
        (["eval", "--model", "nowhere", "--problems", "train.jsonl", "--config", "run.toml"], "cannot load 'nowhere'"),
        (["grade", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(
    covrl: Covrl, project: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    if arguments[0] == "--set":
        arguments = ["train", "--config", "run.toml", *arguments]
    code, out, err = covrl(*arguments)
    assert code == 2
    assert out == ""
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("covrl: ")
    assert said in last
    assert not list(project.rglob("metrics.jsonl"))
