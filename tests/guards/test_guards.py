"""Guards under injected faults: what is not finite, diverges, hangs, fills the memory, is interrupted or goes stale."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models import save_tiny
from projects import LETTERS
from torch import Tensor
from training.passes import passes

from covrl import api
from covrl.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from covrl.cli.app import main
from covrl.config import RunConfig, check
from covrl.config.conditions import parse_condition
from covrl.errors import NonFiniteError, OutOfMemoryError, RunInterruptedError, TrainingStoppedError, UserError
from covrl.generation.base import Draw, Sampling
from covrl.generation.engine import TorchGenerator
from covrl.guards.bundle import read_bundle
from covrl.guards.divergence import Divergence
from covrl.guards.publish_check import Probe, canary, changed_weights, probe, stale_reason
from covrl.records import Credit, Problem, Request, Rollout
from covrl.rewards.named import as_named
from covrl.scoring.pack import PassLimits
from covrl.training import loop, step
from covrl.training.gradient import add_gradient
from covrl.training.held_out import held_out_metrics
from covrl.training.memory import is_out_of_memory
from covrl.training.publish import both_sides
from covrl.training.reading_plan import plan_of_step, reading_plan
from covrl.training.rollouts import sample
from covrl.training.run import Run
from covrl.training.scores import score_groups
from covrl.training.step import take_step

PROBLEMS = [Problem(f"p{i}", f"{i}+{i * 7}=?", str(i * 8)) for i in range(6)]
CPU_MESSAGE = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: 12 bytes"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_tiny("gpt2", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def by_length(problem: Problem, text: str) -> float:
    return float(len(text) % 3)


def make_run(
    name: str = "covrl",
    training: dict[str, Any] | None = None,
    guards: dict[str, Any] | None = None,
    every: int = 0,
    dtype: str = "float64",
    **algorithm: Any,
) -> Run:
    table = {
        "model": {"path": "model", "device": "cpu", "dtype": dtype},
        "prompts": LETTERS,
        "generation": {"max_trace_tokens": 24, "max_answer_tokens": 24},
        "training": {
            "rollouts_per_problem": 4,
            "problems_per_step": 3,
            "steps": 4,
            "warmup_steps": 0,
            "learning_rate": 1e-3,
        }
        | (training or {}),
        "evaluation": {"every": every, "verifier": "none", "problems": 2},
        "guards": guards or {},
        "algorithm": {"name": name, **algorithm},
    }
    run = api.build(RunConfig.model_validate(table), PROBLEMS, PROBLEMS[:2], reward=by_length)
    run.folder = Path("run")
    return run


def state(run: Run) -> list[Any]:
    """Everything that decides the next step, as bytes or plain values."""
    moments = [
        {k: v.numpy().tobytes() if isinstance(v, Tensor) else v for k, v in run.optimizers["policy"].state[p].items()}
        if p in run.optimizers["policy"].state
        else None
        for p in run.parameters
    ]
    return [
        run.done,
        run.source.state_dict(),
        run.algorithm.state_dict(),
        [[p.detach().numpy().tobytes() for p in m.model.parameters()] for m in run.models.values()],
        moments,
    ]


def spoil_credit(run: Run, what: str, calls: Sequence[int] = (1,)) -> Callable[[], tuple[str, int]]:
    """Make one trace's weight, reward or constant NaN in these calls of ``credit``; returns which it was."""
    credit, seen, hit = run.algorithm.credit, [0], [("", 0)]

    def spoiled(groups: Any) -> list[list[Credit]]:
        found = credit(groups)
        seen[0] += 1
        if seen[0] in calls:
            group, row = groups[1], found[1]
            index = next(i for i, c in enumerate(row) if c.weights["policy"].any())
            hit[0] = (group.problem.id, index)
            if what == "reward":
                row[index] = replace(row[index], reward=float("nan"))
            elif what == "weight":
                row[index] = replace(
                    row[index], weights=row[index].weights | {"policy": row[index].weights["policy"] / 0}
                )
            else:
                constants = {o: t * float("nan") for o, t in row[index].constants.items()}
                row[index] = replace(row[index], constants=constants)
        return found

    run.algorithm.credit = spoiled  # ty: ignore[invalid-assignment]
    return lambda: hit[0]


def spoil_loss(run: Run, nth: int, gradient_only: bool = False) -> None:
    """From the ``nth`` pass on, the first token's policy loss is NaN; or only its gradient is infinite."""
    loss, seen = run.algorithm.loss, [0]

    def spoiled(tokens: Any) -> dict[str, Tensor]:
        found = loss(tokens)
        seen[0] += 1
        if seen[0] >= nth:
            value = found["policy"]
            first = torch.arange(len(value)) == 0
            bad = torch.sqrt((value * 0).abs()) if gradient_only else value * float("nan")  # sqrt'(0) is infinite
            found["policy"] = torch.where(first, value * 0 + bad, value)
        return found

    run.algorithm.loss = spoiled  # ty: ignore[invalid-assignment]


# --- not finite ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "said"), [("reward", "the reward is nan"), ("weight", "the policy weight is (inf|-inf|nan)")]
)
def test_a_credit_that_is_not_finite_names_the_trace_and_changes_nothing(what: str, said: str) -> None:
    run = make_run()
    take_step(run)
    before = state(run)
    hit = spoil_credit(run, what)
    with pytest.raises(NonFiniteError) as caught:
        take_step(run)
    problem, index = hit()
    assert re.search(f"step 2: {said} at problem {problem}, rollout {index} ", str(caught.value))
    assert state(run) == before


def test_a_score_that_is_not_finite_is_caught_before_the_method_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """RLPR's filter would drop the groups without a word, and its running mean would be NaN for ever."""
    run = make_run("rlpr")
    take_step(run)
    before = state(run)

    def spoiled(*given: Any) -> Any:
        found = score_groups(*given)
        next(iter(found[2].scores[1].values.values()))[0] = float("nan")
        return found

    monkeypatch.setattr("covrl.training.collect.score_groups", spoiled)
    with pytest.raises(NonFiniteError, match=r"step 2: the score \w+/\w+ is nan at problem p\d, rollout 1 \(prior\)"):
        take_step(run)
    assert state(run) == before


@pytest.mark.parametrize("nth", [1, 2, 5])
@pytest.mark.parametrize("gradient_only", [False, True])
def test_a_loss_or_gradient_that_is_not_finite_leaves_weights_and_optimizer_as_before_all_updates(
    nth: int, gradient_only: bool
) -> None:
    """Three updates a step; the fault comes in the first, the second, or the second step's second."""
    run = make_run("grpo", {"mini_batches": 3, "tokens_per_pass": 1 << 20})
    if nth == 5:
        take_step(run)
    before = state(run)
    spoil_loss(run, 2 if nth == 5 else nth, gradient_only)
    said = "gradient's norm is (inf|nan), from the policy loss" if gradient_only else "policy loss is nan"
    with pytest.raises(
        NonFiniteError, match=rf"step {run.done + 1}: the {said} at problem p\d, rollout \d \(prior\); no step"
    ):
        take_step(run)
    assert state(run) == before


@pytest.mark.parametrize(("nth", "tokens"), [(2, 100), (1, 300), (2, 300), (1, 1 << 20)])
@pytest.mark.parametrize("gradient_only", [False, True])
def test_what_is_not_finite_where_groups_are_scored_in_their_training_forward_changes_nothing(
    nth: int, tokens: int, gradient_only: bool
) -> None:
    """Of 300 tokens a pass holds some of the groups, of 100 none."""
    run = make_run(training={"stream_norms_every": 0, "tokens_per_pass": tokens, "problems_per_step": 4})
    take_step(run)
    before = state(run)
    assert plan_of_step(run, 2).in_pass
    spoil_loss(run, nth, gradient_only)
    said = "gradient's norm is (inf|nan), from the policy loss" if gradient_only else "policy loss is nan"
    with pytest.raises(NonFiniteError, match=rf"step 2: the {said} at problem p\d, rollout \d \(\w+\); no step"):
        take_step(run)
    assert state(run) == before


def test_the_bundle_holds_all_that_the_loss_of_the_trace_is_made_of(folder: Path) -> None:
    run = make_run(training={"seed": 7, "problems_per_step": 5}, kl="sampled")
    hit = spoil_credit(run, "constant")
    with pytest.raises(NonFiniteError) as caught:
        take_step(run)
    problem, index = hit()
    (where,) = (folder / "run/non-finite").iterdir()
    assert str(caught.value).endswith(f"no step was taken; what it was made of is in run/non-finite/{where.name}")
    facts, (culprit,) = read_bundle(where)
    assert (culprit.problem, culprit.rollout.request.index) == (PROBLEMS[int(problem[1])], index)
    assert (facts["step"], facts["seed"], facts["update"]) == (1, 7, 1)
    assert RunConfig.model_validate(facts["config"]) == run.config
    text = json.dumps(facts)
    assert not [v for k, v in os.environ.items() if len(v) > 12 and k not in ("PWD", "OLDPWD") and v in text]
    assert culprit.credit is not None
    again = make_run(training={"seed": 7}, kl="sampled")
    (group,) = score_groups(
        again, [type(sample(run, PROBLEMS[:1], Draw(0, 0))[0])(culprit.problem, (culprit.rollout,))]
    )
    for output, kept in culprit.scores.values.items():  # alone it is laid out otherwise, which rounds otherwise
        assert torch.allclose(group.scores[0].values[output], kept, rtol=0, atol=1e-4)
    with pytest.raises(NonFiniteError, match=f"kl loss is nan at problem {problem}, rollout {index}"):
        add_gradient(
            again.algorithm,
            again.models,
            [group],
            [[culprit.credit]],
            PassLimits(1 << 20, 1 << 20),
            reading_plan(again.algorithm, on_policy=False),
        )


@pytest.mark.parametrize(("name", "value"), [("covrl", "nan"), ("rlpr", "inf"), ("grpo", "-inf")])
def test_a_users_reward_that_is_not_finite_obeys_the_policy(folder: Path, name: str, value: str) -> None:
    """It ends the run with a bundle, or its step is left out and the method sees nothing of it."""
    stopped, skipping = make_run(name), make_run(name, guards={"non_finite": "skip"})
    for run in (stopped, skipping):
        run.reward = lambda problem, text, run=run: float(value) if run.done == 1 else by_length(problem, text)
        take_step(run)
    before = state(stopped)
    with pytest.raises(NonFiniteError) as caught:
        take_step(stopped)
    assert state(stopped) == before
    said = str(caught.value)
    assert re.match(
        rf"step 2: the reward of test_guards:\S+ is {value} at problem p\d, rollout 0 \(\w+\); no step", said
    )
    (where,) = (folder / "run/non-finite").iterdir()
    assert said.endswith(f"what it was made of is in run/non-finite/{where.name}")
    _, (culprit,) = read_bundle(where)
    assert str(culprit.rollout.reward) == value
    report = take_step(skipping)
    assert report.metrics["guard/skipped"] == 1
    assert "step left out (1 of at most" in report.warnings[0]
    assert state(skipping)[2:] == before[2:]  # weights, optimizer and the method's memory
    assert "guard/skipped" not in take_step(skipping).metrics


def test_of_several_functions_the_one_that_is_not_finite_is_named(folder: Path) -> None:
    run = make_run("rlpr")
    run.reward = as_named({"fine": by_length, "bad": (lambda problem, text: float("nan"), 0.0)})
    with pytest.raises(NonFiniteError, match=r"the reward of bad \(test_guards:\S+\) is nan at problem p\d, rollout 0"):
        take_step(run)


def test_steps_that_are_skipped_are_counted_and_one_too_many_stops() -> None:
    run = make_run("rlpr", guards={"non_finite": "skip", "skip_at_most": 2})
    reference = make_run("rlpr")
    spoil_credit(run, "weight", calls=(2, 3, 4))
    take_step(run), take_step(reference)
    before = state(run)
    for skipped in (1, 2):
        report = take_step(run)
        assert report.metrics["guard/skipped"] == skipped
        assert report.metrics["optim/updates"] == 0
        assert f"step left out ({skipped} of at most 2): step {1 + skipped}: the policy weight" in report.warnings[0]
        assert state(run)[2:] == before[2:]  # weights, optimizer and the method's memory
        assert (run.done, run.source.position) == (1 + skipped, 3 * (1 + skipped))
    kept = state(run)
    with pytest.raises(NonFiniteError, match=r"2 steps were left out before, as many as guards.skip_at_most allows"):
        take_step(run)
    assert state(run) == kept
    assert run.guard.state_dict()["skipped"] == 2


def test_weights_that_cannot_be_sampled_from_are_named() -> None:
    run = make_run()
    with torch.no_grad():
        run.parameters[0].fill_(float("nan"))
    with pytest.raises(
        NonFiniteError, match=r"step 1: model \w+.*: its logits are not finite at problem p\d.*earlier checkpoint"
    ):
        take_step(run)


# --- divergence ---------------------------------------------------------------------------------------------------


def test_a_condition_stops_when_the_mean_of_a_whole_window_meets_it() -> None:
    watch = Divergence([parse_condition("kl/x > 2"), parse_condition("length/prior<5")], window=3)
    kl = [9.0, 9.0, float("nan"), -20.0, 1.0, 3.0, 2.5]
    found = [watch.check({"kl/x": v, "length/prior": 5.0}) for v in kl]
    assert [f is None for f in found] == [True, True, True, True, True, True, False] or found[:6] == [None] * 6
    assert found[6] is not None
    assert "the mean of kl/x over the last 3 steps is 2.167, above the 2 of guards.stop_when" in found[6]
    short = Divergence([parse_condition("length/prior < 5")], window=2)
    assert short.check({"length/prior": 4.0}) is None
    assert "below the 5" in (short.check({"length/prior": 5.5}) or "")


def test_what_divergence_remembers_survives_a_checkpoint() -> None:
    one = Divergence([parse_condition("a/b > 1")], window=3)
    one.check({"a/b": 4.0})
    one.check({"a/b": 4.0})
    other = Divergence([parse_condition("a/b > 1")], window=3)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert other.check({"a/b": 4.0}) is not None


@pytest.mark.parametrize("text", ["kl/x", "kl > 2", "kl/x >= 2", "kl/x > many", "kl/x > inf", "x/y > 1 > 2"])
def test_a_condition_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"guards.stop_when.* is not a condition such as 'kl/nats_per_token > 2'"):
        check(RunConfig, {"model": {"path": "x"}, "guards": {"stop_when": [text]}})


def test_a_condition_on_a_metric_that_is_not_there_is_refused() -> None:
    run = make_run(guards={"stop_when": ["entropy/pior < 0.1"]})
    with pytest.raises(
        UserError, match="no metric entropy/pior; of its family there is entropy/posterior, entropy/prior"
    ):
        list(loop.steps(run))


@pytest.mark.parametrize("name", ["eval/log_prob", "grad_norm/policy", "guard/publish_gap"])
@pytest.mark.parametrize("resumed", [False, True])
def test_a_condition_on_a_metric_that_is_not_due_yet_waits_for_it(folder: Path, name: str, resumed: bool) -> None:
    """Step 1, on which everything is due, is skipped, or was before the condition was added on a resume."""
    guards = {"non_finite": "skip", "publish_check_every": 4}
    watching = guards | {"stop_when": [f"{name} < 1e9"], "window": 1}
    run = make_run(training={"stream_norms_every": 4}, guards=guards if resumed else watching, every=4)
    if resumed:
        take_step(run)
        run.guard.divergence = Divergence([parse_condition(f"{name} < 1e9")], 1)
    else:
        spoil_credit(run, "weight", calls=(1,))
    with pytest.raises(TrainingStoppedError, match=f"stopped after step 4: diverged: the mean of {name}"):
        list(loop.steps(run))


def test_a_condition_waits_for_a_step_of_which_something_was_admitted() -> None:
    """DAPO admits no group of equal rewards; then the step has no reward."""
    run = make_run("dapo", guards={"stop_when": ["reward/group_std < 1e9"], "window": 1})
    run.reward = lambda problem, text: 1.0 if run.done == 0 else by_length(problem, text)
    with pytest.raises(TrainingStoppedError, match="stopped after step 2: diverged: the mean of reward/group_std"):
        list(loop.steps(run))


@pytest.mark.parametrize(
    ("method", "name", "every"),
    [
        ("covrl", "eval/log_prob", 0),
        ("covrl", "eval/acuracy", 1),
        ("covrl", "eval/accuracy", 1),  # there is no grader
        ("covrl", "grad_norm/polcy", 1),
        ("covrl", "label/x", 1),
        ("covrl", "guard/publish_gap", 1),
        ("grpo", "kl/nats_per_token", 1),
        ("grpo", "kl/capped_share", 1),
    ],
)
def test_a_condition_that_can_never_hold_in_this_run_is_refused(method: str, name: str, every: int) -> None:
    guards = {"stop_when": [f"{name} > 1"], "publish_check_every": 0}
    run = make_run(method, guards=guards, every=every)
    with pytest.raises(UserError, match=f"guards.stop_when: this run reports no metric {name};"):
        list(loop.steps(run))


@pytest.mark.parametrize(
    "condition", ["kl/nats_per_token > 1e-9", "entropy/prior < 50", "length/prior > 1", "reward/group_std < 1e9"]
)
def test_each_kind_of_divergence_ends_a_run_with_its_checkpoint(folder: Path, condition: str) -> None:
    run = make_run(guards={"stop_when": [condition], "window": 2})
    api.new_run_folder(folder / "run")
    with pytest.raises(
        TrainingStoppedError, match=f"stopped after step 2: diverged: the mean of {condition.split()[0]}"
    ):
        api.train_run(run, folder / "run")
    assert [json.loads(row)["step"] for row in (folder / "run/metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert (folder / "run/checkpoints/step-000002/state.json").is_file()


def test_what_guards_remember_is_in_the_checkpoint(folder: Path) -> None:
    guards = {"stop_when": ["length/prior > 1"], "window": 2, "non_finite": "skip"}
    run = make_run(guards=guards)
    spoil_credit(run, "weight", calls=(2,))
    api.new_run_folder(folder / "run")
    with pytest.raises(
        TrainingStoppedError, match="stopped after step 3: diverged"
    ):  # a step left out is not looked at
        api.train_run(run, folder / "run")
    resumed = api.resume(folder / "run", PROBLEMS, PROBLEMS[:2], reward=run.reward)
    assert resumed.guard.state_dict() == run.guard.state_dict()
    assert resumed.guard.skipped == 1
    assert len(resumed.guard.state_dict()["recent"]["length/prior"]) == 2


# --- memory -------------------------------------------------------------------------------------------------------


def fail_backwards(
    monkeypatch: pytest.MonkeyPatch, which: Sequence[int], error: type[Exception], text: str
) -> list[int]:
    """Backward passes of these numbers (from 1) run out of memory when half of the parameters have their gradient."""
    backward, seen = Tensor.backward, [0]

    def failing(self: Tensor, *args: Any, **kwargs: Any) -> None:
        seen[0] += 1
        backward(self, *args, **kwargs)
        if seen[0] in which:
            raise error(text)

    monkeypatch.setattr(Tensor, "backward", failing)
    return seen


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize(
    ("error", "text", "nth"),
    [(torch.OutOfMemoryError, "CUDA out of memory.", 1), (RuntimeError, CPU_MESSAGE, 3), (MemoryError, "", 3)],
)
def test_a_pass_that_runs_out_of_memory_is_made_again_with_half_and_counts_once(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], text: str, nth: int, merged: bool
) -> None:
    """The failing pass has added its gradient already: counted twice it would show. And half is half."""
    method, training = "covrl" if merged else "grpo", {"tokens_per_pass": 200, "stream_norms_every": 0}
    small, run = make_run(method, training), make_run(method, training)
    small.limits = PassLimits(100, 32 << 20)
    expected = take_step(small)
    seen = fail_backwards(monkeypatch, [nth], error, text)
    with passes(run) as made:
        report = take_step(run)
    assert seen[0] > nth
    tokens = [p.tokens for p in made if p.learns]
    assert max(tokens[:nth]) > 100
    assert max(tokens[-seen[0] + nth :]) <= 100
    assert state(run) == state(small)
    assert report.metrics["grad_norm/total"] == expected.metrics["grad_norm/total"]
    assert report.warnings[0].startswith(
        "out of memory: done again with training.tokens_per_pass = 100 instead of 200 and logits of 32.0 MiB, which is "
        "kept from here on"
    )
    assert run.limits == PassLimits(100, 32 << 20)
    assert not any("memory" in said for said in take_step(run).warnings), "the next step begins with what fitted"
    take_step(small)
    assert state(run) == state(small)


MEMORY = {  # method, [training], whether its groups are scored in their training forward
    "merged": ("covrl", {"stream_norms_every": 0}, True),
    "streams measured": ("covrl", {"stream_norms_every": 1}, False),
    "late": ("grpo", {"stream_norms_every": 0}, False),
    "scored first": ("rlpr", {"stream_norms_every": 0}, False),
    "two updates": ("covrl", {"mini_batches": 3}, False),
}


@pytest.mark.parametrize("case", MEMORY)
@pytest.mark.parametrize("tokens", [240, 1000])
def test_half_the_tokens_fit_where_the_memory_depends_on_the_size_of_a_pass(case: str, tokens: int) -> None:
    """Of 1000 tokens a pass holds whole groups; of 240 and of half as many none."""
    method, training, merges = MEMORY[case]
    plain, run = (make_run(method, {"tokens_per_pass": tokens} | training) for _ in range(2))
    assert bool(plan_of_step(run, 1).in_pass) == merges
    with passes(plain) as made:
        take_step(plain)
    assert tokens // 2 < max(p.tokens for p in made) <= tokens
    with passes(run, most=tokens // 2) as made:
        report = take_step(run)
    assert made[-1].tokens <= tokens // 2 < max(p.tokens for p in made)
    assert f"training.tokens_per_pass = {tokens // 2} instead of {tokens}" in report.warnings[0]
    states = [[r.optimizers["policy"].state[p] for p in r.parameters] for r in (run, plain)]
    first = [torch.cat([state["exp_avg"].flatten() for state in each]) for each in states]
    assert float((first[0] - first[1]).norm() / first[1].norm()) < 1e-10


def test_what_half_does_not_fit_is_halved_again_and_said_once() -> None:
    """What fits holds neither half nor a quarter; the lower limit is in the checkpoint, and a resumed run keeps it."""
    training = {"tokens_per_pass": 4096, "stream_norms_every": 0, "problems_per_step": 4}
    run = make_run("grpo", training)
    with passes(run, most=200) as made:
        report = take_step(run)
    tried = [p.tokens for p in made if p.tokens > 200]
    assert len(tried) > 1
    assert made[-1].tokens <= 200
    assert len([said for said in report.warnings if "memory" in said]) == 1
    limit = run.limits.tokens
    assert limit in (64, 128)
    assert f"training.tokens_per_pass = {limit} instead of 4096" in report.warnings[0]
    folder = save_checkpoint(run, Path("low"), 1)
    again = api.build(run.config, PROBLEMS, PROBLEMS[:2], reward=by_length, policy_path=folder / "model")
    load_checkpoint(again, folder)
    assert again.limits == run.limits
    changed = make_run("grpo", training | {"tokens_per_pass": 2048})
    load_checkpoint(changed, folder)
    assert changed.limits.tokens == 2048, "who sets it anew is obeyed"
    assert [take_step(r).warnings for r in (run, again)] == [(), ()]
    assert state(run) == state(again)


def test_when_no_part_of_it_fits_the_message_has_the_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(training={"tokens_per_pass": 200, "stream_norms_every": 0})
    take_step(run)
    before = state(run)
    fail_backwards(monkeypatch, range(1, 99), RuntimeError, CPU_MESSAGE)
    with pytest.raises(OutOfMemoryError) as caught:
        take_step(run)
    said = str(caught.value)
    size = sum(p.numel() for p in run.parameters) * 8 / 2**20
    assert said.startswith(CPU_MESSAGE)
    assert "training.tokens_per_pass = 50 and logits of" in said, "a trace comes alone, so less would change nothing"
    vocabulary = run.models["policy"].model.config.vocab_size
    chunk = (16 << 20) // (4 * vocabulary)
    assert f"{chunk} positions x {vocabulary} tokens x 4 bytes x 2 contexts" in said
    assert f"weights {size:,.1f} MiB, gradients {size:,.1f} MiB, optimizer {2 * size:,.1f} MiB" in said
    assert "2 rows x" in said
    assert state(run) == before


def test_other_errors_are_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(training={"stream_norms_every": 0})
    fail_backwards(monkeypatch, [1], RuntimeError, "shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        take_step(run)


def test_torchs_own_allocator_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_scoring_is_retried_and_sampling_says_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    run, plain = (
        make_run(training={"tokens_per_pass": 200}),
        make_run(training={"tokens_per_pass": 100, "logits_mb_per_chunk": 32}),
    )
    groups = sample(plain, PROBLEMS, Draw(0, 0))
    expected = score_groups(plain, groups)
    states, seen = run.models["policy"].states, [0]

    def failing(rows: Any) -> Any:
        seen[0] += 1
        if seen[0] == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return states(rows)

    run.models["policy"].states = failing  # ty: ignore[invalid-assignment]
    for a, b in zip(score_groups(run, groups), expected, strict=True):
        assert all(torch.equal(x[o], y[o]) for x, y in zip(a.scores, b.scores, strict=True) for o in y.values)

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    run.generator.generate = full  # ty: ignore[invalid-assignment]
    with pytest.raises(OutOfMemoryError, match=r"while sampling: up to generation.rows_per_pass = 1 rows x \d+ tokens"):
        sample(run, PROBLEMS, Draw(0, 0))


class Room:
    """Lets an engine decode at most ``most`` rows side by side, and keeps how many it was asked for."""

    def __init__(self, run: Run, most: int) -> None:
        assert isinstance(run.generator, TorchGenerator)
        self.most, self.asked, self.prefill = most, list[int](), run.generator.prefill
        run.generator.prefill = self  # ty: ignore[invalid-assignment]

    def __call__(self, prompts: Sequence[Any], *given: Any, **named: Any) -> Any:
        self.asked.append(len(prompts))
        if len(prompts) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.prefill(prompts, *given, **named)


@pytest.mark.parametrize("evaluates", [False, True])
def test_sampling_that_runs_out_of_memory_goes_on_with_fewer_rows_and_keeps_to_them(evaluates: bool) -> None:
    """The samples are those of the whole batch; an evaluation's too."""
    plain, run = (make_run("grpo", {"problems_per_step": 4}, every=1 if evaluates else 0) for _ in range(2))
    room = Room(run, 3)
    reports = [[take_step(r), take_step(r)] for r in (plain, run)]
    assert isinstance(run.generator, TorchGenerator)
    assert run.generator.rows_per_pass == 2
    assert max(room.asked[-3:]) <= 2
    said = [w for report in reports[1] for w in report.warnings if "memory" in w]
    assert len(said) == 1
    assert "generation.rows_per_pass = 2 instead of 256, which is kept from here on" in said[0]
    for a, b in zip(*reports, strict=True):
        assert a.metrics["tokens/generated"] == b.metrics["tokens/generated"]
        assert b.metrics["grad_norm/total"] == pytest.approx(a.metrics["grad_norm/total"], rel=1e-9)
    folder = save_checkpoint(run, Path("few"), 1)
    again = make_run("grpo", {"problems_per_step": 4}, every=1 if evaluates else 0)
    load_checkpoint(again, folder)
    assert isinstance(again.generator, TorchGenerator)
    assert again.generator.rows_per_pass == 2


def test_an_engine_of_its_own_rows_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("grpo")
    asked: list[int] = []

    def full(*_: Any) -> Any:
        asked.append(1)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    run.generator = SimpleNamespace(generate=full)  # ty: ignore[invalid-assignment]
    with pytest.raises(OutOfMemoryError, match="while sampling"):
        sample(run, PROBLEMS, Draw(0, 0))
    assert asked == [1]


def test_scoring_in_an_evaluation_is_retried_with_less_too(monkeypatch: pytest.MonkeyPatch) -> None:
    training = {"tokens_per_pass": 200, "stream_norms_every": 0}
    plain, run = make_run(training=training, every=1), make_run(training=training, every=1)
    for one in (plain, run):  # another problem's trace makes rows of more than 40 tokens
        report = one.config.report.model_copy(update={"thoughts_every": 0})
        one.config = one.config.model_copy(update={"report": report})
    expected = take_step(plain)

    def in_less_memory(run: Run) -> tuple[dict[str, float], str]:
        with passes(run, most=40) as made:
            found = held_out_metrics(run)
        assert made[-1].tokens <= 40 < made[0].tokens
        return found

    monkeypatch.setattr(step, "held_out_metrics", in_less_memory)
    run.limits = PassLimits(80, run.limits.logits_bytes)
    report = take_step(run)
    assert report.metrics["eval/log_prob"] == pytest.approx(expected.metrics["eval/log_prob"], abs=1e-9)
    assert "training.tokens_per_pass = 40 instead of 80" in report.warnings[0]


@pytest.mark.parametrize("where", ["scoring", "traces", "answers"])
def test_an_evaluation_without_memory_ends_with_the_arithmetic(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(training={"stream_norms_every": 0}, every=1)
    assert run.evaluator is not None
    run.evaluator = replace(run.evaluator, grade=lambda asked: ["right"] * len(asked))
    calls: list[int] = []

    def full(*given: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def evaluate(run: Run) -> tuple[dict[str, float], str]:
        if where == "scoring":
            run.models["policy"].states = full  # ty: ignore[invalid-assignment]
        elif where == "traces":
            run.generator.generate = full  # ty: ignore[invalid-assignment]
        elif run.evaluator is not None:
            run.evaluator = replace(run.evaluator, generator=SimpleNamespace(generate=full))  # ty: ignore[invalid-argument-type]
        calls.append(1)
        return held_out_metrics(run)

    monkeypatch.setattr(step, "held_out_metrics", evaluate)
    said = {"scoring": "CUDA out of memory: with training.tokens_per_pass"}
    with pytest.raises(OutOfMemoryError, match=said.get(where, "out of memory while sampling: up to generation.rows")):
        take_step(run)
    assert calls


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory.\nof 7"), MemoryError()])
def test_memory_that_runs_out_in_any_command_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def full(**_: Any) -> None:
        raise error

    monkeypatch.setattr("covrl.cli.app.app", full)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "emory" in line
    assert line.endswith(": lower generation.rows_per_pass, or take a smaller model or a larger device")


# --- interruption inside a step -------------------------------------------------------------------------------------


class StopAfter:
    """Says stop from its ``count``-th question on."""

    def __init__(self, count: int) -> None:
        self.left = count

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def forwards(run: Run, step: int) -> int:
    """How often it is asked (before each forward and backward pass) until ``step`` is whole."""
    run.stopping = lambda: bool(count.append(1))  # ty: ignore[invalid-assignment]
    count: list[int] = []
    for report in loop.steps(run):
        if report.step == step:
            return len(count)
    raise AssertionError


@pytest.mark.parametrize(
    ("name", "training", "settings"),
    [
        ("rlpr", {}, {}),
        ("covrl", {"mini_batches": 3}, {}),
        ("covrl", {"stream_norms_every": 0}, {}),  # groups are scored in their training forward, or before
        ("nover", {"epochs": 2}, {"sync_every": 1}),  # its reference moves after each step
    ],
)
def test_a_step_that_is_interrupted_anywhere_never_happened(
    name: str, training: dict[str, Any], settings: dict[str, Any]
) -> None:
    """At places spread over the second step (sampling, scoring, updates, evaluation); then the run goes on."""
    training = training | {"tokens_per_pass": 300, "steps": 2, "problems_per_step": 2}

    def fresh() -> Run:
        return make_run(name, training, every=1, **settings)

    whole = fresh()
    first, both = forwards(fresh(), 1), forwards(whole, 2)
    end = state(whole)
    for at in sorted({*range(first + 1, both, max(1, (both - first) // 2)), both - 1}):
        run = fresh()
        run.stopping = StopAfter(at)
        steps = loop.steps(run)
        next(steps)
        before = state(run)
        with pytest.raises(RunInterruptedError, match="interrupted inside step 2, of which nothing was kept"):
            next(steps)
        assert state(run) == before
        run.stopping = None
        take_step(run)
        assert state(run) == end


def test_it_is_asked_before_each_backward_pass_of_each_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one large pack, which is most of a step, would have to be gone through."""
    run = make_run(training={"steps": 1, "stream_norms_every": 1})
    grad, events = torch.autograd.grad, [""]
    run.stopping = lambda: bool(events.append("asked"))
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: (events.append("backward"), grad(*a, **k))[1])
    report = next(loop.steps(run))
    streams = sum(norm > 0 for name, norm in report.metrics.items() if name in ("grad_norm/policy", "grad_norm/kl"))
    before = [a for a, b in pairwise(events) if b == "backward"]
    assert before.count("asked") >= streams == 2


def test_without_a_copy_of_the_weights_an_update_that_was_made_is_kept() -> None:
    """One update and no evaluation: nothing behind the update is interrupted, the step is whole."""
    run = make_run(training={"steps": 1})
    total = forwards(make_run(training={"steps": 1}), 1)
    made: list[int] = []
    update = run.optimizers["policy"].step
    run.optimizers["policy"].step = lambda *a, **k: (made.append(1), update(*a, **k))[1]  # ty: ignore[invalid-assignment]
    run.stopping = lambda: bool(made)
    assert [report.step for report in loop.steps(run)] == [1]
    assert total > 8


@pytest.mark.parametrize("at", [1, 6])
def test_sigterm_inside_a_step_leaves_a_checkpoint_that_resumes_bit_for_bit(
    folder: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The signal comes between two of a step's updates: of the first step (no checkpoint yet) and of the third."""
    settings = {"mini_batches": 2}
    calls: list[int] = []

    def accumulate(*args: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return add_gradient(*args, **named)

    whole, parts = make_run("rlpr", settings, every=2), make_run("rlpr", settings, every=2)
    for name in ("whole", "parts"):
        api.new_run_folder(folder / name)
    api.train_run(whole, folder / "whole")
    monkeypatch.setattr("covrl.training.step.add_gradient", accumulate)
    done = (at - 1) // 2
    with pytest.raises(RunInterruptedError, match=f"interrupted inside step {done + 1}, of which nothing was kept"):
        api.train_run(parts, folder / "parts")
    assert len(calls) == at
    assert [p.name for p in (folder / "parts/checkpoints").iterdir()] == [f"step-00000{done}"]
    resumed = api.resume(folder / "parts", PROBLEMS, PROBLEMS[:2], reward=parts.reward)
    api.train_run(resumed, folder / "parts")
    for file in ("optimizer.safetensors", "model/model.safetensors", "state.json"):
        last = "checkpoints/step-000004"
        assert (folder / "whole" / last / file).read_bytes() == (folder / "parts" / last / file).read_bytes()
    rows = [
        [
            {k: v for k, v in json.loads(line)["metrics"].items() if not k.startswith("time/")}
            for line in (folder / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "parts")
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 4


# --- the watchdog -------------------------------------------------------------------------------------------------

HANGS = """
import ctypes, sys
from pathlib import Path
from covrl.guards.watchdog import Watchdog

dog = Watchdog(0.5, Path(sys.argv[1]))
for step in (3, 4):
    dog.arm(step)
if sys.argv[2] == "hang":
    ctypes.PyDLL(None).sleep(30)  # PyDLL keeps the interpreter's lock: no other Python thread can run
dog.disarm()
print("went on")
"""


def test_a_step_that_hangs_in_c_with_the_interpreters_lock_ends_with_its_stack(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", HANGS, str(folder), "hang"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "went on" not in done.stdout
    (file,) = folder.glob("hung-*.txt")
    for text in (file.read_text(), done.stderr):
        assert "step 4 was not done after 0.5 s; all threads at" in text
        assert 'File "<string>", line 10 in <module>' in text
    assert done.stderr.strip().splitlines()[-1].startswith("covrl: step 4 hung: it was not done after guards.step")


def test_a_run_that_does_not_hang_leaves_nothing_of_the_watchdog(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", HANGS, str(folder), "go"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("went on\n", "")
    assert not list(folder.glob("hung-*"))


def test_the_loop_arms_it_for_each_step_and_disarms_it_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Dog:
        def __init__(self, seconds: float, folder: Path | None) -> None:
            told.append((seconds, folder))

        def arm(self, step: int) -> None:
            told.append(step)

        def disarm(self) -> None:
            told.append("end")

    monkeypatch.setattr("covrl.training.loop.Watchdog", Dog)
    run = make_run(training={"steps": 2}, guards={"step_deadline_s": 60.0})
    list(loop.steps(run))
    assert told == [(60.0, Path("run")), 1, 2, "end"]


# --- publish ------------------------------------------------------------------------------------------------------


class Engine:
    """An engine of its own, which takes weights ``takes`` times and confirms every publish.

    ``part``: it takes norms and embeddings alone, as one that keeps packed copies of its matrices. ``deaf``: it misses
    the publishes of these numbers (0, 1, …).
    """

    def __init__(self, run: Run, takes: int = 10**6, part: bool = False, deaf: Sequence[int] = ()) -> None:
        import copy

        self.live, self.takes, self.part, self.deaf, self.count = run.models["policy"].model, takes, part, deaf, 0
        self.inner = TorchGenerator(copy.deepcopy(self.live), run.prompts.tokenizer, 8)

    def generate(self, requests: Sequence[Request], sampling: Sampling, draw: Draw) -> list[Rollout]:
        return self.inner.generate(requests, sampling, draw)

    def publish(self, version: int) -> None:
        if self.count < self.takes and self.count not in self.deaf:
            new = self.live.state_dict()
            kept = {n: w for n, w in new.items() if not (self.part and w.ndim == 2 and ".h." in n)}
            self.inner.model.load_state_dict(kept, strict=False)
        self.count += 1
        self.inner.publish(version)


CANARY = 2
"""Publishes before the first step: changed weights, and the run's own."""


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rate", [1e-2, 1e-6])
def test_a_generator_that_keeps_old_weights_from_some_step_on_is_caught(dtype: str, rate: float) -> None:
    run = make_run(training={"learning_rate": rate, "steps": 6}, guards={"publish_check_every": 2}, dtype=dtype)
    run.generator = Engine(run, takes=CANARY)
    with pytest.raises(TrainingStoppedError, match=r"stopped after step \d: after publish the generator's log-probs"):
        list(loop.steps(run))


@pytest.mark.parametrize("broken", [{"takes": 0}, {"part": True}, {"takes": 1}])
def test_a_generator_that_takes_no_weights_is_caught_before_the_first_step(broken: dict[str, Any]) -> None:
    """Whatever the learning rate: weights are changed on purpose."""
    run = make_run(training={"learning_rate": 1e-9})
    before = state(run)
    run.generator = Engine(run, **broken)
    with pytest.raises(TrainingStoppedError, match=r"stopped before step 1: (its weights were changed|after publish)"):
        next(loop.steps(run))
    assert state(run) == before


def test_a_publish_that_was_missed_once_is_made_again() -> None:
    run = make_run(training={"learning_rate": 1e-2, "steps": 3}, guards={"publish_check_every": 1})
    run.generator = Engine(run, deaf=(CANARY + 1,))
    assert len(list(loop.steps(run))) == 3
    assert run.generator.count == CANARY + 3 + 1


def test_a_generator_that_takes_its_weights_is_left_alone() -> None:
    run = make_run(training={"learning_rate": 1e-2}, guards={"publish_check_every": 1})
    run.generator = Engine(run)
    reports = list(loop.steps(run))
    assert all(0 <= r.metrics["guard/publish_gap"] < 1e-9 for r in reports)
    assert not any("publish" in warning for r in reports for warning in r.warnings)


def test_a_generator_of_another_model_is_caught_before_the_first_step() -> None:
    run = make_run()
    run.generator = Engine(run, takes=0)
    with torch.no_grad():
        next(run.generator.inner.model.parameters()).mul_(1.01)
    with pytest.raises(
        TrainingStoppedError, match=r"stopped before step 1: after publish .* differ from the trainer's by"
    ):
        next(loop.steps(run))


def test_weights_changed_on_purpose_come_back_to_the_bit_and_change_much() -> None:
    run = make_run()
    before = state(run)
    with changed_weights(run.models["policy"]):
        assert state(run) != before
    assert state(run) == before
    assert canary(both_sides(run)) == (None, None)


def test_a_model_whose_known_rows_say_nothing_of_its_weights_is_noted() -> None:
    run = make_run()
    with torch.no_grad():
        run.models["policy"].model.get_output_embeddings().weight.zero_()  # all tokens are as likely, whatever it reads
    stale, note = canary(both_sides(run))
    assert stale is None
    assert "cannot see old weights" in (note or "")


def test_enough_tokens_are_looked_at() -> None:
    found = probe(both_sides(make_run()))
    assert sum(map(len, found.ids)) == len(found.generator) == len(found.trainer) >= 64


def test_the_check_is_made_as_often_as_asked_and_changes_nothing() -> None:
    ends = []
    for every, steps in ((0, []), (3, [1, 3, 4])):
        run = make_run(guards={"publish_check_every": every})
        reports = list(loop.steps(run))
        assert [r.step for r in reports if "guard/publish_gap" in r.metrics] == steps
        ends.append(state(run))
    assert ends[0] == ends[1]


def test_small_movements_are_seen_by_the_bits_and_rounding_is_not_taken_for_one() -> None:
    before, limits = Probe(((1, 2),), (-1.0, -2.0), (-1.0, -2.0)), (1e-3, 1e-6)
    assert stale_reason(before, Probe(((1, 2),), (-1.0, -2.0), (-1.0, -2.00001)), *limits) is not None
    assert stale_reason(before, Probe(((1, 2),), (-1.0, -2.0), (-1.0 - 1e-6, -2.0)), *limits) is None
    assert stale_reason(before, Probe(((1, 2),), (-1.00001, -2.0), (-1.00001, -2.0)), *limits) is None
    assert stale_reason(before, Probe(((1, 3),), (-1.0, -2.0), (-1.0, -2.00001)), *limits) is None
    assert stale_reason(None, Probe(((1, 2),), (-1.0, -2.0), (-1.1, -2.0)), *limits) is not None
    assert stale_reason(None, Probe(((1, 2),), (-1.0, -2.0), (-1.0015, -2.0)), *limits) is None  # a mean of 0.00075
    assert stale_reason(None, Probe(((1, 2),), (-1.0, float("nan")), (-1.0, -2.0)), *limits) is not None
