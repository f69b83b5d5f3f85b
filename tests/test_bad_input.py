"""Input that cannot be used, through the real command line: one line, exit code 2, and nothing new on disk."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Covrl, process
from models import save_tiny
from projects import PROMPTS, write_rows
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from covrl.extras import install_command

CONFIG = f"""
[model]
path = "model"
device = "cpu"
[problems]
train = "train.jsonl"
{PROMPTS}[generation]
max_trace_tokens = 24
max_answer_tokens = 4
[training]
steps = 1
problems_per_step = 1
rollouts_per_problem = 2
warmup_steps = 0
"""

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small Qwen2 of 128 positions and one token a character."""
    place = tmp_path_factory.mktemp("made") / "model"
    save_tiny("qwen2", place, max_position_embeddings=128)
    return place


@pytest.fixture
def project(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that trains as it is (:func:`test_the_project_itself_is_good`); each test spoils one thing."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path / "model")
    write_rows(tmp_path / "train.jsonl", [{"question": f"{i}+{i}", "answer": str(2 * i)} for i in range(3)])
    (tmp_path / "run.toml").write_text(CONFIG)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def refused(project: Path, covrl: Covrl) -> Refused:
    """Runs ``covrl`` and gives the one line with which it refused; arguments that begin with --set are of train."""

    def call(*arguments: str) -> str:
        if arguments[0].startswith("--set"):
            arguments = ("train", "--config", "run.toml", "--out", "run", *arguments)
        before = contents(project)
        found = covrl(*arguments)
        assert found.code == 2, found
        assert found.out == ""
        (line,) = found.err.splitlines()
        assert contents(project) == before, "nothing is half-written"
        assert line.startswith("covrl: ")
        return line.removeprefix("covrl: ")

    return call


def test_the_project_itself_is_good(project: Path, covrl: Covrl) -> None:
    found = covrl("train", "--config", "run.toml", "--out", "run")
    assert found.code == 0, found.err
    assert (project / "run/checkpoints/step-000001/model/model.safetensors").is_file()


def test_a_process_of_its_own_says_the_same(project: Path) -> None:
    arguments = ["train", "--config", "run.toml", "--out", "run", "--set", "problems.train=none.jsonl"]
    found = process(*arguments, cwd=project)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "covrl: none.jsonl: no such file\n"
    assert not (project / "run").exists()


# Settings


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("trainig.steps=1", "--set: unknown setting trainig: did you mean training?"),
        (
            "generation.max_trace_token=9",
            "--set: unknown setting generation.max_trace_token: did you mean generation.max_trace_tokens?",
        ),
        ("algorithm.nll_wieght=1", "unknown setting nll_wieght: did you mean nll_weight?"),
        ("algorithm.name=cvorl", "unknown method 'cvorl': did you mean covrl?"),
        ("training.steps=many", "--set: setting training.steps: "),
        ("training.steps=1.5", "found 1.5"),
        ("training.adam_betas=3", "--set: setting training.adam_betas: "),
        ("training.learning_rate=-1", "--set: setting training.learning_rate: Input should be greater than 0"),
        ("model.path=3", "--set: setting model.path: Input should be a valid string, found 3"),
        ("model.dtype=float16", "--set: setting model.dtype: "),
        ("problems=train.jsonl", "--set: setting problems: "),
        ("prompts.posterior_open=x", "posterior_open has no {hint}"),
    ],
)
def test_a_setting_that_cannot_be_used(refused: Refused, setting: str, said: str) -> None:
    assert said in refused("--set", setting)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[model]\npath = "model"\n[trainin]\nsteps = 1', "run.toml: unknown setting trainin: did you mean training?"),
        ('[model]\npath = "model"\n[training]\nsteps = "1 000"', "run.toml: setting training.steps: "),
        ("[training]\nsteps = 1", "run.toml: setting model is missing"),
        ("[model\n", "run.toml: not a TOML file: "),
    ],
)
def test_a_file_of_settings_that_cannot_be_used(refused: Refused, project: Path, content: str, said: str) -> None:
    (project / "run.toml").write_text(content)
    assert refused("train", "--config", "run.toml", "--out", "run").startswith(said)


# Problems


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "bad.jsonl: there are no problems in it"),
        ([{"question": "1+1"}], "bad.jsonl:1: no field 'answer' (answer): the row has question"),
        ([{"qestion": "1+1", "answer": "2"}], "bad.jsonl:1: no field 'question' (question): did you mean qestion?"),
        ([{"question": "1+1", "answer": "2"}, {"question": "3", "answer": ""}], "bad.jsonl:2: problem 'bad/1': answer"),
        ([{"question": "1+1", "answer": " \n"}], "bad.jsonl:1: problem 'bad/0': answer (field 'answer'): nothing but"),
        ([{"question": "1+1", "answer": None}], "bad.jsonl:1: problem 'bad/0': answer (field 'answer'): expected text"),
        (
            [{"question": "1" * 98, "answer": "2"}],
            "problem bad/0: 102 prompt tokens + 24 trace tokens + 4 answer tokens",
        ),
        (
            [{"question": "1", "answer": "2" * 50}],
            "problem bad/0: 54 prompt tokens + 24 trace tokens + 53 answer token",
        ),
        ([{"question": "1", "answer": "2€"}], "problem bad/0: the tokenizer model has no token for '€' of the answer"),
    ],
)
@pytest.mark.parametrize("arguments", [["--out", "run"], ["--dry-run"]])
def test_problems_that_cannot_be_used(
    refused: Refused, project: Path, rows: list[dict[str, Any]], said: str, arguments: list[str]
) -> None:
    write_rows(project / "bad.jsonl", rows)
    command = ["train", "--config", "run.toml", *arguments, "--set", "problems.train=bad.jsonl"]
    assert refused(*command).startswith(said)


@pytest.mark.parametrize("setting", ["problems.train", "problems.held_out"])
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("none.jsonl", "none.jsonl: no such file"),
        ("table.csv", "table.csv: not a source of problems: a source is a file"),
        ("digts:dev", "digts:dev: unknown task 'digts': did you mean digits?"),
        ("digits:tset", "digits:tset: task digits has no split 'tset'; there are base, train"),
    ],
)
def test_a_source_that_is_not_there(refused: Refused, setting: str, source: str, said: str) -> None:
    assert refused("--set", f"{setting}={source}").startswith(said)


def test_held_out_answers_need_tokens_too(refused: Refused, project: Path) -> None:
    write_rows(project / "held.jsonl", [{"question": "1", "answer": "naïve"}])
    assert refused("--set", "problems.held_out=held.jsonl").startswith("problem held/0: the tokenizer model has no tok")


@pytest.mark.parametrize(
    ("module", "source"), [("pyarrow", "rows.parquet"), ("datasets", "hf:openai/gsm8k/main:train")]
)
def test_a_source_whose_extra_is_missing(
    refused: Refused, project: Path, monkeypatch: pytest.MonkeyPatch, module: str, source: str
) -> None:
    (project / "rows.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, module, None)
    line = refused("--set", f"problems.train={source}")
    assert line.startswith(f"{source}: this source needs the package {module} (")
    assert line.endswith(install_command("data"))


@pytest.mark.parametrize(
    ("module", "name"),
    [("torch.utils.tensorboard", "tensorboard"), ("wandb", "wandb"), ("trackio", "trackio"), ("mlflow", "mlflow")],
)
def test_a_tracker_whose_extra_is_missing(
    project: Path, covrl: Covrl, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    found = covrl("train", "--config", "run.toml", "--out", "run", "--set", f'report.trackers=["{name}"]')
    assert found.code == 2
    assert found.err == f"covrl: report.trackers: {name} is not installed: {install_command(name)}\n"
    assert not (project / "run/config.toml").exists()


# Models and tokenizers


def test_a_folder_without_weights(refused: Refused, project: Path) -> None:
    (project / "model/model.safetensors").unlink()
    assert refused("--set", "training.steps=1") == "model.path: model holds no *.safetensors weights"


def test_a_folder_whose_config_is_broken(refused: Refused, project: Path) -> None:
    (project / "model/config.json").write_text("{")
    assert refused("--set", "training.steps=1").startswith("model.path: cannot load 'model': ")


def test_a_folder_without_a_tokenizer(refused: Refused, project: Path) -> None:
    for path in (project / "model").glob("token*"):
        path.unlink()
    line = refused("--set", "training.steps=1")
    assert line.startswith("model.path: cannot load 'model'") or "are its files in the model's folder?" in line


def test_a_shipped_model_that_does_not_exist(refused: Refused) -> None:
    assert "'covrl:digit' is not shipped; there is covrl:digits" in refused("--set", "model.path=covrl:digit")


def limited(known: str, unknown: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer of one token a character of ``known``; what else there is becomes ``unknown``, or nothing."""
    pieces = [*([unknown] if unknown else []), *known]
    inner = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token=unknown))
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token=unknown, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("unknown", ["<unk>", None])
@pytest.mark.parametrize(
    ("known", "said"),
    [
        ("0123456789+=():;", "prompts.close: the tokenizer model "),
        ("0123456789+=()e;", "prompts.answer_prefix: the tokenizer model "),
        ("0123456789+=()e:", "prompts.answer_suffix: the tokenizer model "),
        ("0+=()e:;", "problem train/1: the tokenizer model has no token for '2' of the answer '2'"),
    ],
)
def test_a_tokenizer_without_the_tokens_that_are_needed(
    refused: Refused, project: Path, unknown: str | None, known: str, said: str
) -> None:
    for path in (project / "model").glob("token*"):
        path.unlink()
    limited(known, unknown).save_pretrained(project / "model")
    assert refused("--set", "training.steps=1").startswith(said)


# Folders


@pytest.mark.parametrize("out", ["file", "file/run"])
@pytest.mark.parametrize("maker", ["train", "warm-format"])
def test_a_folder_that_cannot_be_written(refused: Refused, project: Path, maker: str, out: str) -> None:
    (project / "file").write_text("")
    arguments = [maker, "--config", "run.toml", "--out", out, "--set", "problems.solution_field=question"]
    assert refused(*arguments).startswith(f"{out}: cannot write there: ")


def test_a_folder_that_holds_a_run(refused: Refused, project: Path) -> None:
    (project / "run").mkdir()
    (project / "run/config.toml").write_text(CONFIG)
    assert refused("--set", "training.steps=1").startswith("run: there is a run in this folder already; resume it")


@pytest.fixture
def going(project: Path, covrl: Covrl) -> Iterator[Path]:
    """A run of two steps of which one is done, and another process that holds its folder."""
    assert covrl("train", "--config", "run.toml", "--out", "run").code == 0
    folder = project / "run"
    (folder / "config.toml").write_text((folder / "config.toml").read_text().replace("\nsteps = 1\n", "\nsteps = 2\n"))
    hold = "import fcntl, sys; f = open('.lock', 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{hold}; sys.stdin.read()"],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield folder
        other.communicate()


def test_a_run_that_is_going(going: Path, covrl: Covrl) -> None:
    before = contents(going)
    found = covrl("train", "--resume", "run")
    assert (found.code, found.out) == (2, "")
    assert found.err == "covrl: run: a run is going on in this folder; wait for it or stop it\n"
    assert contents(going) == before


def test_a_run_without_a_checkpoint(refused: Refused, project: Path, covrl: Covrl) -> None:
    (project / "run").mkdir()
    (project / "run/config.toml").write_text(CONFIG)
    assert refused("eval", "--model", "run", "--problems", "train.jsonl") == "run: the run has no model yet"
    found = covrl("train", "--resume", "run")
    assert found.code == 0
    assert "begins again at step 1" in found.err


# Other commands


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["eval", "--model", "model", "--problems", "none.jsonl", "--config", "run.toml"], "none.jsonl: no such file"),
        (["eval", "--model", "model", "--problems", "train.jsonl", "--config", "no.toml"], "no.toml: no such file"),
        (["ask", "covrl:digit", "12345"], "'covrl:digit' is not shipped"),
        (["ask", "model", "1+1", "--config", "train.jsonl"], "train.jsonl: not a TOML file"),
        (["grade", "train.jsonl"], "train.jsonl line 1: no field 'response'"),
        (["grade", "train.jsonl", "--verifier", "maths"], "unknown verifier maths"),
        (["view", "model"], "model/config.toml: no such file"),
        (["view", "train.jsonl"], "train.jsonl/config.toml: Not a directory"),
    ],
)
def test_other_commands_refuse_alike(refused: Refused, arguments: list[str], said: str) -> None:
    assert said in refused(*arguments)


# What is not right yet


def test_warm_format_without_solutions_leaves_no_folder(refused: Refused) -> None:
    refused("warm-format", "--config", "run.toml", "--out", "warm")


def test_a_missing_tracker_leaves_no_folder(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    refused("--set", 'report.trackers=["trackio"]')


def test_damaged_weights_are_one_line(refused: Refused, project: Path) -> None:
    weights = project / "model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "model" in refused("--set", "training.steps=1")


def test_held_out_problems_must_fit_the_context(refused: Refused, project: Path) -> None:
    write_rows(project / "held.jsonl", [{"question": "1" * 300, "answer": "2"}])
    assert "exceed the model's context" in refused("--set", "problems.held_out=held.jsonl")


def test_traces_that_cannot_be_written_are_one_line(refused: Refused) -> None:
    arguments = ["eval", "--model", "model", "--problems", "train.jsonl", "--config", "run.toml"]
    assert "no/t.jsonl" in refused(*arguments, "--traces", "no/t.jsonl")
