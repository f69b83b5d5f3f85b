"""Chat models through the command line: what is refused before anything is written, what is said, what is kept."""

from __future__ import annotations

import datetime
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import templates
from commands import Covrl
from models import byte_tokenizer, tiny
from projects import write_rows
from templates import tokenizer_with
from tokenizers import AddedToken

from covrl import api, assembly, files
from covrl.algorithms.covrl import CoVRL
from covrl.checkpoints.resuming import check_config
from covrl.config import PromptConfig, RunConfig, check, override, to_toml
from covrl.errors import UserError

RUN = """
[model]
path = "model"
device = "cpu"
[problems]
train = "train.jsonl"
held_out = "train.jsonl"
[prompts]
prior_open = "<think>"
close = "a"
posterior_open = "It is {hint}.<think>"
[generation]
max_trace_tokens = 8
max_answer_tokens = 2
[training]
steps = 2
problems_per_step = 1
rollouts_per_problem = 2
warmup_steps = 0
[evaluation]
every = 0
[checkpoint]
every = 1
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "train.jsonl", [{"question": f"What is {i} + 2?", "answer": str(i + 2)} for i in range(3)])
    (tmp_path / "run.toml").write_text(RUN)
    save(templates.PLAIN)
    return tmp_path


def save(template: Any, tokenizer: Any = None) -> None:
    """A model in ``model``, with a tokenizer of this chat template."""
    made = tokenizer_with(template) if tokenizer is None else tokenizer
    tiny("qwen2", len(made)).save_pretrained("model")
    made.save_pretrained("model")


def train(covrl: Covrl, *arguments: str) -> tuple[int, str]:
    found = covrl("train", "--config", "run.toml", "--out", "run", *arguments)
    return found.code, found.err


@pytest.mark.parametrize(
    ("template", "setting", "said"),
    [
        (templates.NO_SYSTEM, "prompts.system=Be brief.", "leave prompts.system empty"),
        (templates.DROPS_SYSTEM, "prompts.system=Be brief.", "drops the system message"),
        ("{{ messages ", "training.steps=2", 'prompts.chat = "never"'),
        (templates.CLOSES, "training.steps=2", "template_options.enable_thinking = true"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line_before_anything_is_written(
    project: Path, covrl: Covrl, template: str, setting: str, said: str
) -> None:
    save(template)
    code, err = train(covrl, "--set", setting)
    (line,) = (line for line in err.splitlines() if line and "model shards" not in line)
    assert code == 2
    assert said in line
    assert not (project / "run").exists()


def test_case_8_a_tokenizer_that_outgrew_its_model_is_one_line_before_anything_is_written(
    project: Path, covrl: Covrl
) -> None:
    tokenizer = byte_tokenizer()
    rows = len(tokenizer)
    save(None, tokenizer)
    tokenizer.add_tokens([AddedToken("What is", normalized=False)])
    tokenizer.save_pretrained("model")
    code, err = train(covrl)
    said = (
        f"the prompt of problem train/0: the token 'What is' has the id {rows}, but the model's embedding has {rows} "
    )
    assert code == 2
    assert said in " ".join(err.split())
    assert not (project / "run").exists()
    found = covrl("eval", "--model", "model", "--problems", "train.jsonl", "--out", "eval")
    assert found.code == 2
    assert said in " ".join(found.err.split())


@pytest.mark.parametrize(
    "setting",
    ["prompts.template_options={enable_thinking=true}", "prompts.template_options.enable_thinking=true"],
)
def test_options_are_set_on_the_command_line_and_kept_with_the_run(project: Path, covrl: Covrl, setting: str) -> None:
    save(templates.CLOSES)
    code, err = train(covrl, "--set", setting, "--set", "prompts.template_options.colour=red")
    assert code == 0, err
    assert "prompts.template_options.colour does nothing" in " ".join(err.split())
    kept = tomllib.loads((project / "run" / "config.toml").read_text())
    assert kept["prompts"]["template_options"] == {"enable_thinking": True, "colour": "red"}
    assert check(RunConfig, kept).prompts.template_options == kept["prompts"]["template_options"]


def test_notes_are_in_the_dry_run(project: Path, covrl: Covrl) -> None:
    save(templates.OPENS)
    found = covrl("train", "--config", "run.toml", "--dry-run")
    said = " ".join(found.out.split())
    assert "note: the chat template opens <think> itself, so prompts.prior_open does not open it again" in said
    assert "the hint of prompts.posterior_open stands at the end of the user's turn" in said


class Later(datetime.date):
    """The clock of somebody who goes on with a run on another day."""

    @classmethod
    def today(cls) -> Later:
        return cls(2031, 5, 6)


@pytest.fixture
def dated_run(project: Path, covrl: Covrl, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of one step whose template reads the date, and a clock that has gone on since."""
    save(templates.DATED)
    code, err = train(covrl, "--set", "training.steps=1")
    assert code == 0, err
    for module in (api, assembly):
        monkeypatch.setattr(module, "date", Later)
    return project / "run"


def kept_date(run: Path) -> str:
    return str(tomllib.loads((run / "config.toml").read_text())["prompts"]["date"])


def test_case_5_a_resumed_run_and_its_evaluation_read_the_day_on_which_it_began(dated_run: Path, covrl: Covrl) -> None:
    began = kept_date(dated_run)
    assert began == datetime.date.today().isoformat()
    config = dated_run / "config.toml"
    config.write_text(config.read_text().replace("steps = 1", "steps = 2"))
    found = covrl("train", "--resume", "run")
    assert found.code == 0, found.err
    assert kept_date(dated_run) == began
    assert api.config_for("run").prompts.date == began


def test_case_5_a_run_of_an_older_version_takes_the_day_of_its_resume(dated_run: Path, covrl: Covrl) -> None:
    """Its checkpoint knows no date, and its first prompts were of a day that nobody wrote down."""
    config = dated_run / "config.toml"
    text = config.read_text().replace("steps = 1", "steps = 2")
    config.write_text("".join(line for line in text.splitlines(keepends=True) if not line.startswith("date =")))
    (state,) = (dated_run / "checkpoints").glob("step-*/state.json")
    old = json.loads(state.read_text())
    for name in ("date", "posterior_user", "template_options"):
        del old["config"]["prompts"][name]
    state.write_text(json.dumps(old))
    about = {k: v for k, v in files.manifest(state.parent).items() if k != "files"}
    (state.parent / "manifest.json").unlink()
    files.seal(state.parent, about)
    found = covrl("train", "--resume", "run")
    assert found.code == 0, found.err
    assert "from here on it reads 2031-05-06" in " ".join(found.err.split())
    assert kept_date(dated_run) == "2031-05-06"
    now = check(RunConfig, tomllib.loads(config.read_text()))
    notes = check_config(old, now, CoVRL, config)
    assert notes != [], "the steps, which may change"
    assert not any("date" in note for note in notes), "a second resume is no refusal either"


def test_override_reaches_tables_in_tables_and_leaves_what_it_was_given_alone() -> None:
    given = {"prompts": {"template_options": {"a": 1}}}
    found = override(given, ["prompts.template_options.b=true", "prompts.system=x"])
    assert found == {"prompts": {"template_options": {"a": 1, "b": True}, "system": "x"}}
    assert given == {"prompts": {"template_options": {"a": 1}}}


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ({"posterior_user": "It is {hint}."}, "posterior_user has no {question}"),
        ({"posterior_user": "{question} {hint}", "posterior_open": "x {hint}"}, "posterior_open must be prior_open"),
        ({"posterior_user": "{question}", "posterior_open": "x"}, "posterior_open has no {hint}"),
        ({"user": "{question} {hint}"}, "the prior must not see the answer"),
        ({"template_options": {"tokenize": True}}, "tokenize is how the template is called"),
        ({"template_options": True}, "expected a table such as"),
        ({"date": "2026-02-30"}, "there is no such day"),
        ({"date": "tomorrow"}, "expected a date such as 2026-01-31"),
    ],
)
def test_settings_that_contradict_each_other_are_named(prompts: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        check(RunConfig, {"model": {"path": "-"}, "prompts": prompts})
    assert said in str(error.value)


def test_with_the_hint_in_the_users_turn_both_openings_are_one_also_after_reading_it_back() -> None:
    turn = {"posterior_user": "{question} ({hint})", "prior_open": "Well, "}
    config = RunConfig.model_validate({"model": {"path": "-"}, "prompts": turn | {"date": datetime.date(2026, 1, 31)}})
    assert config.prompts.posterior_open == "Well, "
    assert config.prompts.date == "2026-01-31"
    assert check(RunConfig, tomllib.loads(to_toml(config))) == config
    assert PromptConfig(posterior_user="Explain. {question}").posterior_open == PromptConfig().posterior_open
