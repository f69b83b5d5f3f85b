"""The wheel, without the repository in reach: it holds recipes and bases, and its commands work.

Built as a release is: the wheel from the source distribution. ``make check-slow`` runs this. Skipped where the build
tools cannot be had from a package index.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "hub"))

from fake_hub import TOKEN, serve  # noqa: E402

TOOLS = ("build", "hatchling>=1.27", "twine")
Run = Callable[..., subprocess.CompletedProcess[str]]


def run(
    *command: str | Path, cwd: Path | None = None, given: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A command in an environment that names no folder of the repository, with further ``variables``."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, input=given, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the build tools."""
    folder = tmp_path_factory.mktemp("tools")
    assert run(sys.executable, "-m", "venv", folder).returncode == 0
    python = folder / "bin" / "python"
    if run(python, "-m", "pip", "install", "--quiet", *TOOLS).returncode:
        pytest.skip(f"{', '.join(TOOLS)} cannot be installed")
    return python


@pytest.fixture(scope="module")
def built(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with source distribution and wheel."""
    folder = tmp_path_factory.mktemp("dist")
    made = run(tools, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that ``covrl`` is called in."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def covrl(tools: Path, wheel: Path, home: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """``covrl`` of an environment that has the wheel, and what it needs from this one, but not this one's covrl.

    A path in a ``.pth`` file is searched, and the ``.pth`` files in it are not: an editable install stays out of reach.
    """
    folder = tmp_path_factory.mktemp("environment")
    assert run(sys.executable, "-m", "venv", "--without-pip", folder).returncode == 0
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "needs.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    put = run(tools, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    assert put.returncode == 0, put.stderr
    where = run(python, "-c", "import covrl; print(covrl.__file__)", cwd=home)
    assert where.stdout.startswith(str(packages)), where
    return lambda *arguments, **how: run(folder / "bin" / "covrl", *arguments, cwd=home, **how)


def test_the_files_may_be_uploaded(tools: Path, built: Path) -> None:
    found = run(tools, "-m", "twine", "check", "--strict", *built.iterdir())
    assert found.returncode == 0, found.stdout


def test_the_wheel_has_all_that_the_package_reads(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    source = ROOT / "src"
    read = {path.relative_to(source).as_posix() for path in (source / "covrl").rglob("*") if path.is_file()}
    wanted = {path for path in read if "__pycache__" not in path}
    wanted |= {f"covrl/recipe_files/{path.name}" for path in (ROOT / "recipes").glob("*.toml")}
    assert wanted <= inside
    assert not [path for path in inside if not path.startswith("covrl")]


def test_recipes_are_printed_and_checked(covrl: Run) -> None:
    listed = covrl("recipe")
    assert "covrl recipe NAME" in listed.stdout, listed.stderr
    for path in sorted((ROOT / "recipes").glob("*.toml")):
        assert f"\n{path.stem} " in f"\n{listed.stdout}"
    printed = covrl("recipe", "grpo")
    assert printed.stdout == (ROOT / "recipes" / "grpo.toml").read_text()


def test_the_shipped_base_can_be_trained_and_evaluated(covrl: Run) -> None:
    assert covrl("quickstart", "--help").returncode == 0
    graded = covrl("grade", given='{"answer": "1200", "response": "so it is \\\\boxed{1,200}"}\n')
    assert json.loads(graded.stdout)["verdict"] == "right", graded.stderr
    found = covrl("eval", "--model", "covrl:digits", "--problems", "digits:dev", "--limit", "4", "--json")
    assert found.returncode == 0, found.stderr
    assert "greedy" in found.stdout


def test_quickstart_trains_and_reports(covrl: Run, home: Path) -> None:
    done = covrl("quickstart", "--steps", "2", "--out", "first", "--json")
    assert done.returncode == 0, done.stderr
    assert {"base", "trained"} <= json.loads(done.stdout).keys()
    assert "<html" in (home / "first" / "report.html").read_text(encoding="utf-8")


TALKS = [[2, 3], [14, 5], [8, 9]]
ONE_GO = (
    "problems.train=chat.jsonl",
    "problems.held_out=",
    "problems.extract=none",
    "prompts.user={question}",
    "prompts.prior_open=",
    "prompts.posterior_open={hint}: ",
    "prompts.close=.",
    'prompts.answer_prefix=" So it is"',
    "prompts.answer_suffix=.",
    "lora.rank=4",
    "rewards.verifier=numeric",
    "generation.max_trace_tokens=16",
    "generation.max_answer_tokens=4",
    "training.steps=2",
    "training.problems_per_step=2",
    "training.rollouts_per_problem=2",
    "training.mini_batches=1",
    "evaluation.every=0",
    "model.device=cpu",
)


def test_conversations_train_a_real_model_by_a_printed_recipe_and_it_is_pushed(
    covrl: Run, home: Path, real_model: Path
) -> None:
    system = {"role": "system", "content": "Answer in one short sentence."}
    rows = [
        {"prompt": [system, {"role": "user", "content": f"What is {a} plus {b}?"}], "completion": str(a + b)}
        for a, b in TALKS
    ]
    (home / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "run.toml").write_text(covrl("recipe", "grpo").stdout)
    changed = [word for setting in (f"model.path={real_model}", *ONE_GO) for word in ("--set", setting)]
    done = covrl("train", "--config", "run.toml", "--out", "chat", *changed)
    assert done.returncode == 0, done.stderr
    metrics = (home / "chat" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [1, 2]
    with serve() as hub:
        to = {"HF_ENDPOINT": hub.address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        pushed = covrl("push", "chat", "someone/chat", **to)
    assert pushed.stdout == f"{hub.address}/someone/chat\n", pushed.stderr
    files = hub.repos["someone/chat"]
    assert {"README.md", "report.html", "config.toml", "adapter_model.safetensors", "tokenizer.json"} <= files.keys()
    assert files["adapter_model.safetensors"] == next(
        path.read_bytes() for path in sorted(home.glob("chat/checkpoints/step-000002/model/adapter_model.safetensors"))
    )


def test_what_is_missing_is_named_with_a_command_that_works_without_a_clone(covrl: Run) -> None:
    advice = [line for line in covrl("doctor").stdout.splitlines() if "not installed" in line]
    assert not [line for line in advice if "covrl[" in line]
