"""Code that is not ours: reward functions and methods by entry point, by ``module:object``, and from Python."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tomllib
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Covrl
from models import save_tiny
from projects import MARKS

import covrl as covrl_package
from covrl import api
from covrl.algorithms import ALGORITHMS, find_algorithm
from covrl.algorithms.covrl import CoVRL
from covrl.errors import UserError
from covrl.records import Problem, Request, Rollout
from covrl.reporting.sinks import read_traces
from covrl.rewards.functions import find_reward
from covrl.rewards.named import named_rewards, values_of
from covrl.rewards.user_worker import checked
from covrl.training.rollouts import sample

PACKAGE = '''
from typing import ClassVar

import torch

from covrl.algorithms.base import Algorithm, Stream
from covrl.config import Settings
from covrl.objectives import trace_tokens
from covrl.records import Credit, Output, Request
from covrl.scoring.head import log_prob
from covrl.scoring.pack import Context, Reading

P = Output("trace", "prior")


class EchoConfig(Settings):
    strength: float = 1.0


class Echo(Algorithm):
    """Makes its own traces likelier, the shorter the more: a method that nobody needs."""

    name: ClassVar[str] = "echo"
    paper: ClassVar[str] = "none"
    evidence: ClassVar[str] = "a test"
    Config: ClassVar[type[Settings]] = EchoConfig

    def __init__(self, config, setup):
        self.config, self.prompts, self.size = config, setup.prompts, setup.rollouts_per_problem
        self.contexts = (Context("prior", self.prompts.prior_row),)
        self.scoring = self.training = (Reading("trace", ("prior",), log_prob, ("prior",)),)
        self.streams = (Stream("policy", "trace", config.strength, trace_tokens),)

    def plan(self, problem, history, draw):
        prompt = self.prompts.prior(problem)
        return [] if history else [Request(problem.id, i, prompt, "prior") for i in range(self.size)]

    def credit(self, groups):
        return [[Credit({"policy": torch.ones_like(s[P])}, reward=r.reward) for r, s in zip(g.rollouts, g.scores)]
                for g in groups]

    def loss(self, tokens):
        return {"policy": -tokens.new[P]}


def shortness(problem, text):
    return -float(len(text))


async def words(problem, text):
    return len(text.split())


def lengths(problems, texts):
    return [len(text) for text in texts]


def broken(problem, text):
    raise KeyError("colour")


NOT_A_METHOD = 3
'''

ENTRY_POINTS = """
[covrl.algorithms]
echo = echo_method:Echo
number = echo_method:NOT_A_METHOD
gone = echo_method:Nowhere

[covrl.rewards]
shortness = echo_method:shortness
lengths = echo_method:lengths
broken = echo_method:broken
number = echo_method:NOT_A_METHOD
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution with entry points, installed in a folder of its own that is on the path."""
    site = tmp_path / "site"
    info = site / "echo_method-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "echo_method.py").write_text(PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: echo-method\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "echo_method", raising=False)
    return site


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    save_tiny("llama", folder / "model", max_position_embeddings=128)
    (folder / "train.jsonl").write_text("".join(f'{{"question": "{i}+{i}", "answer": "{2 * i}"}}\n' for i in range(4)))
    (folder / "run.toml").write_text(
        """
[model]
path = "model"
device = "cpu"
[problems]
train = "train.jsonl"
[prompts]
user = "{question}"
prior_open = " "
posterior_open = "({hint}) "
close = "e"
answer_prefix = ":"
answer_suffix = ";"
[generation]
max_trace_tokens = 12
max_answer_tokens = 4
[training]
steps = 2
problems_per_step = 4
rollouts_per_problem = 4
warmup_steps = 0
learning_rate = 1e-3
[evaluation]
every = 0
"""
    )
    monkeypatch.chdir(folder)
    return folder


def in_file(project: Path, text: str) -> None:
    """Put ``text`` behind the file's other settings."""
    with (project / "run.toml").open("a") as file:
        file.write(text)


def test_a_file_may_name_an_installed_method_and_reward(package: Path, project: Path, covrl: Covrl) -> None:
    in_file(project, '[algorithm]\nname = "echo"\nstrength = 0.5\n[rewards]\nfunction = "shortness"\n')
    code, _, err = covrl("train", "--config", "run.toml", "--out", "run")
    assert code == 0, err
    assert "reward/prior" in (project / "run" / "metrics.jsonl").read_text()
    code, out, _ = covrl("train", "--resume", "run")
    assert "nothing left" in out


def test_the_settings_of_an_installed_method_are_checked(package: Path, project: Path, covrl: Covrl) -> None:
    in_file(project, '[algorithm]\nname = "echo"\nstrenght = 0.5\n')
    code, _, err = covrl("train", "--config", "run.toml", "--out", "run")
    assert code == 2
    assert "did you mean strength?" in err
    assert not (project / "run").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[algorithm]\nname = "echo_method:Echo"\n', "--algorithm echo_method:Echo"),
        ('[rewards]\nfunction = "os:system"\n', "--reward os:system"),
        ('[algorithm]\nname = "ehco"\n', "unknown method 'ehco': did you mean echo?"),
        ('[rewards]\nfunction = "shortnes"\n', "unknown reward function 'shortnes': did you mean shortness?"),
        ('[algorithm]\nname = "number"\n', "is not a subclass of"),
        ('[algorithm]\nname = "gone"\n', "cannot be loaded"),
        ('[rewards]\nfunction = "number"\n', "is of type int, not a function"),
    ],
)
def test_what_a_file_may_not_name(package: Path, project: Path, covrl: Covrl, text: str, said: str) -> None:
    in_file(project, text)
    code, _, err = covrl("train", "--config", "run.toml", "--out", "run")
    assert code == 2
    assert said in err
    assert err.count("\n") == 1
    assert not (project / "run").exists()


def test_the_command_line_may_name_module_and_object(package: Path, project: Path, covrl: Covrl) -> None:
    named = ["--algorithm", "echo_method:Echo", "--reward", "echo_method:shortness"]
    code, _, err = covrl("train", "--config", "run.toml", "--out", "run", "--set", "training.steps=1", *named)
    assert code == 0, err
    config = project / "run" / "config.toml"
    config.write_text(config.read_text().replace("steps = 1", "steps = 2"))
    code, _, err = covrl("train", "--resume", "run")
    assert code == 2
    assert "--algorithm echo_method:Echo" in err
    code, _, err = covrl("train", "--resume", "run", *named)
    assert code == 0, err
    assert len((project / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    code, _, err = covrl("eval", "--model", "run", "--problems", "train.jsonl", "--json")
    assert code == 0, err


def test_a_reward_that_fails_names_function_and_problem(package: Path, project: Path, covrl: Covrl) -> None:
    code, _, err = covrl("train", "--config", "run.toml", "--out", "run", "--reward", "broken")
    assert code == 2
    assert re.search(r"reward function echo_method:broken: problem \S+, rollout 0 \(prior\): KeyError", err)
    assert "KeyError: 'colour'" in err


SEVERAL = """
[[reward]]
name = "brevity"
function = "shortness"
weight = 0.25

[[reward]]
name = "length"
function = "lengths"
weight = 0.0
batched = true

[[reward]]
name = "words"
timeout_s = 5
concurrency = 4
"""


def test_several_functions_in_a_file_and_on_the_command_line(package: Path, project: Path, covrl: Covrl) -> None:
    """Each is logged under its own name, also on the traces that are shown, and a resumed run has them all."""
    in_file(project, '[algorithm]\nname = "echo"\n[report]\ntraces_every = 1\n' + SEVERAL)
    typed = ["--reward", "words=echo_method:words"]
    code, _, err = covrl("train", "--config", "run.toml", "--out", "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "setting reward.words.function is missing" in err
    code, _, err = covrl("train", "--config", "run.toml", "--out", "run", "--set", "training.steps=1", *typed)
    assert code == 0, err
    config = project / "run" / "config.toml"
    assert tomllib.loads(config.read_text())["reward"]["brevity"]["weight"] == 0.25
    config.write_text(config.read_text().replace("steps = 1", "steps = 2"))
    code, _, err = covrl("train", "--resume", "run")
    assert code == 2
    assert "--reward words=echo_method:words" in err
    code, _, err = covrl("train", "--resume", "run", *typed)
    assert code == 0, err
    steps = [json.loads(line)["metrics"] for line in (project / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 2
    for metrics in steps:
        assert metrics["reward/brevity"] == -metrics["reward/length"]
        assert metrics["reward/prior"] == pytest.approx(0.25 * metrics["reward/brevity"] + metrics["reward/words"])
    lines = (project / "run" / "traces.jsonl").read_text().splitlines()
    traces = [t for line in lines for g in json.loads(line)["groups"] for t in g["traces"]]
    assert traces
    for trace in traces:
        length = len(trace["text"])
        assert trace["rewards"] == {"brevity": -length, "length": length, "words": len(trace["text"].split())}
        assert trace["reward"] == pytest.approx(-0.25 * length + trace["rewards"]["words"])
    shown = read_traces(project / "run" / "traces.jsonl")
    assert shown[2][-1].traces[-1].rewards == trace["rewards"]
    page = (project / "run" / "report.html").read_text()
    assert all(f"<i>{name}</i>" in page for name in trace["rewards"])


def test_what_several_functions_in_a_file_may_not_be(package: Path, project: Path, covrl: Covrl) -> None:
    written = (project / "run.toml").read_text()
    for text, said in {
        '[[reward]]\nname = "b"\nfunction = "os:system"\n': "--reward b=os:system",
        '[[reward]]\nname = "b"\nfunction = "shortnes"\n': "reward.b.function: unknown reward function 'shortnes': did",
        '[[reward]]\nname = "b"\nfunction = "number"\n': "reward.b.function: 'number' is of type int, not a function",
        '[[reward]]\nname = "b"\nfunction = "broken"\n': "reward function b (echo_method:broken): problem ",
        SEVERAL + '[rewards]\nfunction = "broken"\n': "setting reward.words.function is missing",
    }.items():
        (project / "run.toml").write_text(written + text)
        code, _, err = covrl("train", "--config", "run.toml", "--out", "run-" + str(len(text)))
        assert code == 2
        assert said in err
        assert "Traceback" not in err


def test_several_functions_in_python_and_a_resume_with_them(package: Path, project: Path) -> None:
    problems = [Problem(str(i), f"{i}+{i}", str(2 * i)) for i in range(4)]

    async def vowels(problem: Problem, text: str) -> int:
        return sum(c in "aeiou" for c in text)

    rewards = {"short": ("shortness", 0.5), "vowels": vowels}
    settings = tomllib.loads((project / "run.toml").read_text())
    settings["training"]["steps"] = 1
    trained = covrl_package.train(settings, problems, out="run", reward=rewards, algorithm="echo")
    assert trained.reports[0].metrics["reward/vowels"] >= 0
    config = project / "run" / "config.toml"
    config.write_text(config.read_text().replace("steps = 1", "steps = 2"))
    with pytest.raises(UserError, match="--reward short=echo_method:shortness"):
        api.resume(project / "run", problems, algorithm="echo_method:Echo")
    with pytest.raises(UserError, match=r"reward.short is .*'weight': 1.0.*put it back, or begin a new run"):
        api.resume(
            project / "run", problems, reward={"short": "shortness", "vowels": vowels}, algorithm="echo_method:Echo"
        )
    again = api.resume(project / "run", problems, reward=rewards, algorithm="echo_method:Echo")
    assert api.train_run(again, project / "run").reports[0].metrics.keys() >= {"reward/short", "reward/vowels"}


def test_python_takes_functions_and_classes(package: Path, project: Path) -> None:
    seen: list[tuple[str, str]] = []

    def reward(problem: Problem, text: str) -> float:
        seen.append((problem.question, text))
        return 1.0

    problems = [Problem(str(i), f"{i}+{i}", str(2 * i)) for i in range(4)]
    settings = {
        "model": {"path": "model", "device": "cpu"},
        "prompts": MARKS,
        "generation": {"max_trace_tokens": 12, "max_answer_tokens": 4},
        "training": {"steps": 1, "problems_per_step": 4, "rollouts_per_problem": 4, "warmup_steps": 0},
    }
    trained = covrl_package.train(settings, problems, out="with-function", reward=reward, algorithm=CoVRL)
    assert len(seen) == 16
    assert all(s.reward == 1.0 for s in [r for g in sample(trained.run, problems[:1], _draw()) for r in g.rollouts])
    assert "test_python_takes_functions_and_classes.<locals>.reward" in (trained.folder / "config.toml").read_text()
    named = covrl_package.train(settings, problems, out="named", reward="shortness", algorithm="echo")
    assert named.run.algorithm.name == "echo"


def _draw() -> object:
    from covrl.generation.base import Draw

    return Draw(0, 0)


def rewarded(value: Any) -> float:
    (given,) = named_rewards(lambda problem, text: value)
    rollout = Rollout(Request("p", 2, (), "prior"), (), (), "closed", "sampled", "")
    return values_of([given], [(Problem("p", "", ""), rollout)])[0][given.name]


def test_case22_what_is_no_number_is_refused_in_one_line() -> None:
    wrong = [
        "1",
        None,
        1j,
        [1.0],
        np.array([1.0, 2.0]),
        np.array([[1.0]]),
        torch.ones(2, 2),
        np.str_("1"),
        np.complex64(1),
    ]
    for value in wrong:
        with pytest.raises(UserError, match=r"problem p, rollout 2 \(prior\): gave .*; it must be a number") as caught:
            rewarded(value)
        assert "\n" not in str(caught.value)


def test_case22_numbers_of_every_kind_are_rewards() -> None:
    halves = [0.5, np.float32(0.5), np.float64(0.5), np.float16(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2)]
    halves += [Decimal("0.5"), torch.tensor(0.5, dtype=torch.bfloat16), torch.tensor(0.5, requires_grad=True)]
    ones = [1, True, np.bool_(True), np.int64(1), np.uint8(1), np.array(True), torch.tensor(1), torch.tensor(True)]
    assert [(type(r), r) for r in map(rewarded, halves)] == [(float, 0.5)] * len(halves)
    assert [(type(r), r) for r in map(rewarded, ones)] == [(float, 1.0)] * len(ones)
    assert rewarded(False) == rewarded(np.bool_(False)) == 0.0


def test_case22_a_reward_that_is_not_finite_is_left_to_the_guards() -> None:
    assert math.isnan(rewarded(np.float32("nan")))
    assert rewarded(torch.tensor(float("inf"))) == math.inf


def test_case22_a_verdict_may_be_a_bool_of_numpys() -> None:
    assert [checked(np.bool_(said), "v")[0] for said in (True, False)] == ["right", "wrong"]
    assert checked((np.True_, "so"), "v") == ["right", "so"]
    assert checked(np.float32(1), "v")[0] == "error"


def test_no_name_is_no_reward() -> None:
    assert find_reward("") is None


def test_what_cannot_be_imported_is_said() -> None:
    with pytest.raises(UserError, match="cannot import 'no_such_module:f'"):
        find_reward("no_such_module:f")
    with pytest.raises(UserError, match="cannot import 'covrl:nothing_here'"):
        find_algorithm("covrl:nothing_here")


def test_importing_the_settings_imports_no_torch() -> None:
    code = "import covrl.config, covrl.plugins, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_listing_the_methods_imports_no_transformers() -> None:
    """It would be half of what `covrl algorithms` takes."""
    code = "import sys, covrl.algorithms.listing as l; l.list_algorithms(); sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_methods_are_listed_with_those_of_others(
    package: Path, monkeypatch: pytest.MonkeyPatch, covrl: Covrl
) -> None:
    (package / "echo_method-1.0.dist-info" / "entry_points.txt").write_text(
        "[covrl.algorithms]\necho = echo_method:Echo\n"
    )
    monkeypatch.setenv("COLUMNS", "250")
    done = covrl("algorithms", "--json")
    assert done.code == 0, done.err
    listed = {row["name"]: row for row in json.loads(done.out)}
    assert list(listed) == [*ALGORITHMS, "echo"], "ours in their order, then the others"
    assert all({"name", "paper", "evidence", "contexts", "recipe"} <= row.keys() for row in listed.values())
    root = Path(__file__).parents[1]
    for name in ALGORITHMS:
        row = listed[name]
        assert row["paper"], name
        assert row["evidence"], name
        assert row["contexts"][0] == "prior", name
        assert (root / row["recipe"]).is_file(), name
    assert listed["covrl"]["contexts"] == ["prior", "posterior"]
    assert listed["covrl"]["paper"] == "arXiv 2512.12576"
    theirs = {"paper": "none", "evidence": "a test", "contexts": ["prior"], "recipe": None}
    assert {key: listed["echo"][key] for key in theirs} == theirs
    assert listed["echo"]["summary"].startswith("Makes its own traces likelier")
    table = covrl("algorithms")
    assert table.code == 0
    rows = table.out.splitlines()
    for name, row in listed.items():
        (at,) = [i for i, text in enumerate(rows) if text.split()[:1] == [name]]
        assert row["summary"] in rows[at], name
        below = [row["paper"], row["evidence"], f"reads {', '.join(row['contexts'])}", row["recipe"] or "no recipe"]
        assert all(text in rows[at + 1] for text in below), name
