"""Rollouts that a server samples ahead: which weights they are of, what overlaps, what a resumed run does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fake_vllm
import pytest
from contract import TOKENIZERS, model_of

from covrl.api import build, resume, train, train_run
from covrl.config import RunConfig, check
from covrl.errors import EngineError, RunInterruptedError, UserError
from covrl.generation.base import Draw
from covrl.generation.outside import OutsideGenerator, Turns
from covrl.generation.vllm_server import ServerVllm
from covrl.records import Problem
from covrl.training import step as step_module
from covrl.training.ahead import Ahead
from covrl.training.loop import steps
from covrl.training.rollouts import sampling_of

PROBLEMS = [Problem(str(i), f"{i}+{i}", str(2 * i)) for i in range(6)]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_vllm.Server]:
    monkeypatch.chdir(tmp_path)
    tokenizer = TOKENIZERS["characters"]()
    model_of(tokenizer).save_pretrained("model")
    tokenizer.save_pretrained("model")
    with fake_vllm.serve("model") as running:
        yield running


def settings(server: fake_vllm.Server, ahead: int, **training: Any) -> RunConfig:
    """The learning rate moves weights by far more than rounding, so that old ones are seen."""
    table = {
        "model": {"path": "model", "device": "cpu"},
        "prompts": {
            "user": "{question}",
            "prior_open": "=",
            "posterior_open": "({hint})=",
            "close": "e",
            "answer_prefix": ":",
            "answer_suffix": ";",
        },
        "generation": {"max_trace_tokens": 10, "max_answer_tokens": 4, "engine": server.address, "ahead": ahead},
        "training": {"steps": 4, "problems_per_step": 2, "rollouts_per_problem": 3, "warmup_steps": 0}
        | {"learning_rate": 1e-3, "stream_norms_every": 0}
        | training,
        "evaluation": {"every": 0},
        "guards": {"publish_check_every": 1},
    }
    return check(RunConfig, table)


def traces_of(run: Any) -> list[Any]:
    """The traces that each step of a run samples, in their order."""
    found: list[Any] = []
    take = run.ahead.metrics

    def kept(groups: Any, done: int) -> Any:
        found.append([rollout for group in groups for rollout in group.rollouts])
        return take(groups, done)

    run.ahead.metrics = kept
    return found


def train_while_sampling(run: Any, patch: pytest.MonkeyPatch) -> None:
    """Let no step move the weights before the server has begun with the next one, however slow this machine is."""
    own = step_module.optimize

    def optimize(*given: Any) -> Any:
        job = run.ahead.jobs.get(run.done + 1)
        while job is not None and not (job.done() or run.generator._turns._sampling):
            time.sleep(0.01)
        return own(*given)

    patch.setattr(step_module, "optimize", optimize)


@pytest.mark.parametrize("ahead", [1, 2])
def test_a_step_trains_on_traces_of_older_weights_and_no_older_than_asked(
    ahead: int, server: fake_vllm.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batches are those of the untrained weights; all have the keys and problems of a run that waits."""
    run = build(settings(server, ahead, steps=5), PROBLEMS)
    train_while_sampling(run, monkeypatch)
    assert isinstance(run.generator, OutsideGenerator)
    position = run.source.state_dict()
    first = []
    for number in range(2):
        draw = Draw(0, number)
        asked = [r for p in run.source.take(2) for r in run.algorithm.plan(p, [], draw)]
        first.append(run.generator.generate(asked, sampling_of(run), draw))
    run.source.load_state_dict(position)
    seen = traces_of(run)
    reports = list(steps(run))
    assert len(reports) == 5
    for number, traces in enumerate(first):
        assert [r.trace_ids for r in seen[number]] == [r.trace_ids for r in traces]
    waiting = build(settings(server, 0, steps=5), PROBLEMS)
    expected = traces_of(waiting)
    assert all("sampler/staleness_max" not in r.metrics for r in steps(waiting))
    assert [[r.request for r in one] for one in seen] == [[r.request for r in one] for one in expected]
    assert run.source.state_dict() == waiting.source.state_dict()
    for number, report in enumerate(reports):
        metrics = report.metrics
        assert metrics["sampler/staleness_max"] <= min(number, ahead)
        assert metrics["sampler/unused_share"] == 0
        assert (metrics["sampler/gap_mean"] > 1e-4) == (metrics["sampler/staleness_max"] > 0)
        assert metrics["guard/publish_gap"] < 1e-3, "the engine has the newest weights after each step"
    assert reports[1].metrics["sampler/staleness_mean"] == 1
    assert {r.version for one in seen[2:] for r in one} <= {0, 1, 2, 3}
    assert all(len({r.version for r in one}) == 1 for one in seen), "a batch is of one policy"


def test_the_server_samples_while_a_step_trains(server: fake_vllm.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server answers no request for the second step before the first step trains: a run that waited would hang."""
    trains, own, update = threading.Event(), ServerVllm.draw, step_module.optimize
    held: list[bool] = []

    def draw(self: ServerVllm, *given: Any) -> Any:
        if threading.current_thread() is not threading.main_thread() and not held:
            held.append(trains.wait(60))
        return own(self, *given)

    def optimize(*given: Any) -> Any:
        trains.set()
        return update(*given)

    monkeypatch.setattr(ServerVllm, "draw", draw)
    monkeypatch.setattr(step_module, "optimize", optimize)
    list(steps(build(settings(server, 1, steps=2), PROBLEMS)))
    assert held == [True]


def test_without_it_nothing_is_sampled_elsewhere(server: fake_vllm.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("nothing is sampled ahead")

    monkeypatch.setattr(Ahead, "generated", never)
    monkeypatch.setattr(OutsideGenerator, "generate_ahead", never)
    assert len(list(steps(build(settings(server, 0), PROBLEMS)))) == 4


def test_problems_that_another_step_takes_first_are_sampled_again(
    server: fake_vllm.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 2 asks for more groups, so that step 3 has others than were foreseen."""
    run = build(settings(server, 1), [Problem(str(i), f"{i}+1", str(i + 1)) for i in range(12)])  # one epoch
    train_while_sampling(run, monkeypatch)
    admit = run.algorithm.admit

    def twice(groups: Any) -> Any:
        kept, _ = admit(groups)
        return kept, run.done == 1 and len(groups) == 2

    monkeypatch.setattr(run.algorithm, "admit", twice)
    found = [report.metrics for report in steps(run)]
    assert [m["sampler/unused_share"] for m in found] == [0, 0, 1, 0]
    assert [m["sampler/staleness_max"] for m in found] == [0, 1, 0, 1]
    assert found[1]["sampler/staleness_mean"] == 0.5, "the second round of step 2 has the newest weights"


def test_a_resumed_run_says_what_it_samples_again_and_keeps_its_place(
    server: fake_vllm.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(server, 1)
    run = build(config, PROBLEMS)
    Path("run").mkdir()
    whole = traces_of(run)
    stop = run.guard.divergence.check

    def after_two(metrics: Any, later: Any) -> Any:
        return "told to" if run.done == 2 else stop(metrics, later)

    run.guard.divergence.check = after_two  # ty: ignore[invalid-assignment]
    with pytest.raises(Exception, match="told to"):
        train_run(run, Path("run"))
    assert len(whole) == 2
    again = resume(Path("run"), PROBLEMS, engine=server.address)
    (note,) = [note for note in again.notes if "ahead" in note]
    assert "what was sampled ahead for step 3 is sampled again, with the weights of step 2" in note
    rest = traces_of(again)
    train_while_sampling(again, monkeypatch)
    reports = train_run(again, Path("run")).reports
    assert [r.step for r in reports] == [3, 4]
    assert [r.metrics["sampler/staleness_max"] for r in reports] == [0, 1]
    other = build(config, PROBLEMS)
    expected = traces_of(other)
    list(steps(other))
    assert [[r.request for r in one] for one in (*whole, *rest)] == [[r.request for r in one] for one in expected]


def test_a_server_that_dies_while_it_samples_ahead_is_named(server: fake_vllm.Server) -> None:
    config = settings(server, 1)
    quiet = config.guards.model_copy(update={"publish_check_every": 0})
    run = build(config.model_copy(update={"guards": quiet}), PROBLEMS)
    seen = steps(run)
    next(seen)
    run.ahead.jobs[1].result()
    server.die_at = "/v1/completions"
    next(seen)  # its traces were there before
    with pytest.raises(EngineError, match=f"the vLLM server at {server.address} does not answer"):
        next(seen)
    assert run.done == 2


def test_an_interrupted_run_leaves_nothing_that_waits(server: fake_vllm.Server) -> None:
    run = build(settings(server, 2), PROBLEMS)
    Path("run").mkdir()

    def told() -> bool:
        return run.done == 1 and run.in_progress is not None

    run.stopping = told
    with pytest.raises(RunInterruptedError):
        list(steps(run))
    run.ahead.close()
    assert run.done == 1
    assert all(job.done() or job.running() for job in run.ahead.jobs.values())


@pytest.mark.parametrize("engine", ["torch", "vllm"])
def test_other_engines_cannot_sample_ahead(
    engine: str, server: fake_vllm.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vllm", fake_vllm)
    config = settings(server, 1)
    config = config.model_copy(update={"generation": config.generation.model_copy(update={"engine": engine})})
    with pytest.raises(UserError, match=f"generation.ahead = 1: only a vLLM server .* generation.engine is {engine}"):
        train(config, PROBLEMS, out="run")
    assert not Path("run").exists()


def test_weights_are_not_replaced_while_a_batch_is_sampled_and_go_first() -> None:
    turns, order = Turns(), []
    first, asked = threading.Event(), threading.Event()

    def sample(name: str, until: threading.Event | None = None) -> None:
        with turns.sampling():
            order.append(f"{name} begins")
            first.set()
            assert until is None or until.wait(20)
            order.append(f"{name} ends")

    def publish() -> None:
        first.wait(20)
        with turns.publishing():
            order.append("published")

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(sample, "one", asked), pool.submit(publish)]
        while not turns._publishing:  # the publish waits from here on
            first.wait(0.01)
        jobs.append(pool.submit(sample, "two"))
        asked.set()
        for job in jobs:
            job.result(20)
    assert order == ["one begins", "one ends", "published", "two begins", "two ends"]
