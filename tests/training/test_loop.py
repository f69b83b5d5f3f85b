"""What the loop does for methods: verdicts, user's rewards, resampling, reuse of rollouts, models that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import character_tokenizer, save_tiny, tiny
from projects import LETTERS
from torch import Tensor

from covrl.algorithms import ALGORITHMS
from covrl.algorithms.base import Admission
from covrl.api import build, build_algorithm
from covrl.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from covrl.config import RunConfig
from covrl.errors import UserError
from covrl.generation.base import Draw
from covrl.models.beside import follow
from covrl.models.copies import frozen_copy
from covrl.models.spec import ModelSpec
from covrl.prompts import Prompts
from covrl.records import Problem, Verdict
from covrl.training.rollouts import judged, sample
from covrl.training.run import Run
from covrl.training.scores import score_groups
from covrl.training.step import take_step

ALONE = (
    *("rationalise", "opsd", "reinforce_pp", "psr", "nsr", "w_reinforce", "ppo", "vineppo", "clip_delta"),
    *("rlsp", "a_star_po"),
)
"""Methods to which a single trace of a problem teaches something."""

PROBLEMS = [Problem(f"p{i}", f"{i}+{i * 7}=?", str(i * 8)) for i in range(6)]


def table(name: str, training: dict[str, Any] | None = None, **algorithm: Any) -> dict[str, Any]:
    return {
        "model": {"path": "model", "device": "cpu", "dtype": "float64"},
        "prompts": LETTERS,
        "generation": {"max_trace_tokens": 40, "max_answer_tokens": 40},
        "training": {
            "rollouts_per_problem": 4,
            "problems_per_step": 3,
            "steps": 4,
            "warmup_steps": 0,
            "learning_rate": 1e-3,
        }
        | (training or {}),
        "evaluation": {"every": 0, "verifier": "none"},
        "algorithm": {"name": name, **algorithm},
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_tiny("gpt2", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_run(name: str, training: dict[str, Any] | None = None, **algorithm: Any) -> Run:
    return build(RunConfig.model_validate(table(name, training, **algorithm)), PROBLEMS)


def parity(rows: Sequence[tuple[Problem, str]]) -> list[Verdict]:
    """A verifier with all three verdicts: by the length of what was said."""
    return [("right", "wrong", "unknown")[len(said) % 3] for _, said in rows]


def weights(run: Run) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in run.parameters])


def test_a_response_is_read_between_the_tags_and_one_without_answer_is_wrong(folder: Path) -> None:
    run = make_run("grpo")
    asked: list[str] = []

    def note(rows: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        asked.extend(said for _, said in rows)
        return parity(rows)

    run.verify = note
    (group,) = sample(run, PROBLEMS[:1], Draw(0, 0))
    texts = {"abe12t": "12", "abe 345t": " 345", "abe12": None, "ab12t": None, "abe12345t": "12345"}
    rollouts = [replace(group.rollouts[0], text=text, correct=None) for text in texts]
    asked.clear()
    (found,) = judged(run, [replace(group, rollouts=tuple(rollouts))], Draw(0, 0))
    assert asked == [said for said in texts.values() if said is not None]
    assert [r.correct for r in found.rollouts] == ["unknown", "wrong", "wrong", "wrong", "unknown"]


def test_unknown_responses_are_in_no_statistics_and_have_no_weight(folder: Path) -> None:
    run = make_run("dr_grpo")
    run.verify = parity
    kept = score_groups(run, sample(run, PROBLEMS, Draw(0, 0)))
    for group, credits in zip(kept, run.algorithm.credit(kept), strict=True):
        outcomes = [{"right": 1.0, "wrong": 0.0}[r.correct] for r in group.rollouts if r.correct in ("right", "wrong")]
        mean = sum(outcomes) / max(len(outcomes), 1)
        for rollout, credit in zip(group.rollouts, credits, strict=True):
            expected = 0.0 if rollout.correct == "unknown" else float(rollout.correct == "right") - mean
            assert torch.allclose(credit.weights["policy"], torch.full_like(credit.weights["policy"], expected))


def test_the_posterior_control_verifies_answers_of_the_prior_prompt(folder: Path) -> None:
    run = make_run("grpo", posterior_share=0.5)
    run.verify = parity
    groups = sample(run, PROBLEMS, Draw(0, 0))
    assert [r.source for r in groups[0].rollouts] == ["prior", "prior", "posterior", "posterior"]
    assert all(r.text.endswith("e") for g in groups for r in g.rollouts if r.valid)
    assert {r.correct for g in groups for r in g.rollouts if not r.valid} <= {"wrong"}
    kept = score_groups(run, groups)
    for group, credits in zip(kept, run.algorithm.credit(kept), strict=True):
        for rollout, scores, credit in zip(group.rollouts, group.scores, credits, strict=True):
            if rollout.source == "posterior" and credit.advantage:
                capped = (scores["trace", "prior"] - scores["trace", "posterior"]).exp().clamp_max(2.0)
                expected = capped * credit.advantage / len(capped)
                assert torch.allclose(credit.weights["policy"], expected)
    take_step(run)


def test_dapo_keeps_groups_with_both_outcomes_and_samples_others(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("dapo", {"problems_per_step": 2})
    run.reward = lambda problem, text: float(problem.id in ("p1", "p4") and len(text) % 2)
    rounds: list[int] = []

    def counted(run: Run, problems: Any, draw: Draw) -> Any:
        rounds.append(len(problems))
        return sample(run, problems, draw)

    monkeypatch.setattr("covrl.training.collect.sample", counted)
    report = take_step(run)
    assert report.metrics["groups/kept"] == 2
    assert len(rounds) > 1
    assert report.metrics["groups/sampled"] == sum(rounds)


def test_dapo_gives_up_after_its_rounds_and_takes_no_step(folder: Path) -> None:
    run = make_run("dapo")
    run.reward = lambda problem, text: 1.0
    before = weights(run)
    report = take_step(run)
    assert report.metrics["groups/kept"] == 0
    assert report.metrics["optim/updates"] == 0
    assert torch.equal(before, weights(run))


@pytest.mark.parametrize("calls", [2, 3, 5])
def test_how_often_the_generator_is_called_changes_nothing(folder: Path, calls: int) -> None:
    one, many = make_run("dr_grpo"), make_run("dr_grpo", {"sampling_batches": calls})
    for run in (one, many):
        run.reward = lambda problem, text: float(len(text) % 2)
        take_step(run)
    assert torch.allclose(weights(one), weights(many), rtol=0, atol=1e-12)


def test_epochs_and_mini_batches_are_updates_on_the_same_rollouts(folder: Path) -> None:
    run = make_run("grpo", {"mini_batches": 3, "epochs": 2})
    run.reward = lambda problem, text: float(len(text) % 3)
    report = take_step(run)
    assert report.metrics["optim/updates"] == 6
    once = make_run("grpo", {"mini_batches": 3})
    once.reward = run.reward
    first = take_step(once)
    assert report.metrics["tokens/trained"] == 2 * first.metrics["tokens/trained"]
    assert report.metrics["tokens/generated"] == first.metrics["tokens/generated"]


@pytest.mark.parametrize(("admitted", "updates"), [(3, 3), (2, 2), (1, 2), (0, 0)])
def test_a_method_that_wants_two_updates_takes_them_however_few_groups_are_admitted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, admitted: int, updates: int
) -> None:
    run = make_run("rover", {"mini_batches": 3})
    run.reward = lambda problem, text: float(len(text) % 3)
    monkeypatch.setattr(run.algorithm, "admit", lambda groups: Admission(list(groups)[:admitted]))
    assert take_step(run).metrics["optim/updates"] == updates


@pytest.mark.parametrize(
    ("name", "training", "rewards", "said"),
    [
        ("rloo", {"mini_batches": 2}, {}, "rloo takes one update a batch, because its loss has no importance ratio"),
        ("rover", {}, {}, "rover needs at least 2 updates a batch"),
        (
            "rover",
            {"mini_batches": 2, "problems_per_step": 1},
            {},
            r"x epochs = 2 of 1 problem\(s\): rover needs at least 2 updates",
        ),
        ("grpo", {}, {"verifier": "none"}, "grpo takes its reward from a verifier"),
        *(
            (name, {"rollouts_per_problem": 1}, {}, f"rollouts_per_problem = 1: {name} compares the traces")
            for name in ALGORITHMS
            if name not in ALONE and name != "ravr"
        ),
        ("ravr", {"rollouts_per_problem": 2}, {}, "= 2: ravr needs at least 3"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(
    name: str, training: dict[str, Any], rewards: dict[str, Any], said: str
) -> None:
    config = RunConfig.model_validate(table(name, training) | {"rewards": rewards})
    with pytest.raises(UserError, match=said):
        build_algorithm(config, Prompts(character_tokenizer(), config.prompts), None, rewarded=False)


@pytest.mark.parametrize("name", ALONE)
def test_methods_that_compare_no_traces_take_a_single_one(name: str) -> None:
    config = RunConfig.model_validate(table(name, {"rollouts_per_problem": 1}))
    method = build_algorithm(config, Prompts(character_tokenizer(), config.prompts), None, rewarded=True)
    assert method.name == name


@pytest.mark.parametrize("name", ["psr", "nsr", "w_reinforce", "rapo", "thr", "nthr", "grpo_lambda"])
def test_a_shaped_reward_is_no_verdict(folder: Path, name: str) -> None:
    run = make_run(name)
    run.reward = lambda problem, text: 0.4
    with pytest.raises(UserError, match=r"problem p0, rollout 0 \(\w+\): gave 0.4; it must be 1 for right or 0"):
        take_step(run)
    run = make_run(name)
    run.reward = lambda problem, text: float(len(text) % 2)
    assert take_step(run).metrics["tokens/trained"] > 0


def test_rapo_takes_any_reward_where_wrong_responses_are_as_right_ones(folder: Path) -> None:
    run = make_run("rapo", phi0=1.0)
    run.reward = lambda problem, text: 0.3 * (len(text) % 3)
    assert take_step(run).metrics["tokens/trained"] > 0


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("grpo", {"kl": "k1", "kl_weight": 1.0}, "expected gradient of zero"),
        ("grpo", {"kl": "exact", "kl_in": "reward", "kl_weight": 1.0}, "'exact' is a loss"),
        ("grpo", {"kl": "k3"}, "kl_weight = 0"),
        ("gspo", {"surrogate": "cispo"}, "surrogate = 'clip' only"),
        ("reinforce_pp", {"kl_in": "loss"}, "kl_in = 'loss'|expected gradient of zero"),
        ("rapo", {"kl": "k3"}, "set penalty and alpha"),
        ("rover", {"clip_low": 0.2}, "clip_low makes no sense here: rover's squared Bellman error takes the place of"),
        ("rover", {"kl": "k3"}, "kl makes no sense here"),
        ("rover", {"resample": True}, "resample makes no sense here: a group in which all outcomes are equal"),
        ("rover", {"overlong_buffer": 4}, "overlong_buffer makes no sense here: returns are made of outcomes"),
        ("rover", {"skale": 2.0}, "unknown setting skale: did you mean scale?"),
        ("nsr", {"advantage": "std"}, "weighed by its own verdict"),
        ("reinforce_pp", {"advantage": "mean"}, "normalises over the batch"),
        ("reinforce_pp", {"resample": True}, "resample = true drops the groups that are all right or all wrong"),
        ("rapo", {"penalty": "fkl_full", "phi0": 0}, "phi0 = 0 with penalty = 'fkl_full' pulls every token"),
        ("ravr", {"beta": 0}, "beta = 0 with nll_weight = 0 trains the posterior alone"),
        ("rlpr", {"probability_weight": 0, "format_weight": 0}, "leaves no reward"),
        ("rloo", {"clip_low": 0.1}, "clip_low does nothing with surrogate = 'plain'"),
        ("cispo", {"clip_low": 0.1}, "clip_low does nothing with surrogate = 'cispo'"),
        ("grpo", {"kl_weight": 0.1}, "kl_weight does nothing with kl = 'none'"),
        ("grpo", {"overlong_weight": 0.5}, "overlong_weight does nothing with overlong_buffer = 0"),
        ("grpo", {"source_cap": 3.0}, "source_cap does nothing with posterior_share = 0"),
        ("gspo", {"posterior_share": 0.5}, "ratio = 'sequence' with posterior_share: p/q corrects each token's"),
        ("grpo", {"posterior_share": 0.5, "kl": "k3", "kl_weight": 0.1}, "kl = 'k3' with posterior_share"),
        ("reinforce_pp", {"posterior_share": 0.5}, "kl = 'k1' with posterior_share"),
        ("grpo", {"posterior_share": 0.5, "entropy_weight": 0.1}, "entropy_weight with posterior_share"),
        ("rapo", {"posterior_share": 0.5, "entropy_weight": 0}, "penalty = 'fkl_f' with posterior_share"),
        ("rapo", {"penalty": "none", "alpha": 0.1}, "alpha does nothing with penalty = 'none'"),
        ("rapo", {"penalty": "none", "phi0": 0.5}, "phi0 does nothing with penalty = 'none'"),
        ("rapo", {"penalty": "k3", "phi0": 0.5}, "phi0 does nothing with penalty = 'k3'"),
        ("rapo", {"penalty": "rkl_k2", "largest_weight": 5}, "largest_weight does nothing with penalty = 'rkl_k2'"),
        ("grpo", {"contrast_temperature": 0.1}, "contrast_temperature does nothing with contrast = 0"),
        ("ppo", {"contrast": 0.5}, "PPO's advantages are its critic's"),
        ("vineppo", {"contrast": 0.5}, "differences of its states' values"),
        ("reinforce_pp", {"contrast": 0.5}, "REINFORCE\\+\\+ compares over the batch"),
        ("nsr", {"contrast": 0.5}, "weighed by its own verdict"),
        ("dash", {"contrast": 0.5, "filter": "paper"}, "filter = 'paper' drops rows by these alone"),
        ("covrl", {"nll": "off", "nll_weight": 1}, "nll_weight does nothing with nll = 'off'"),
        ("covrl", {"reward": "prob", "floor": -5}, "floor does nothing with reward = 'prob'"),
        ("covrl", {"beta": 0, "kl_in_return": True}, "kl_in_return does nothing with beta = 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, settings: dict[str, Any], said: str) -> None:
    config = RunConfig.model_validate(table(name, **settings))
    with pytest.raises(UserError, match=said):
        build_algorithm(config, Prompts(character_tokenizer(), config.prompts), None, rewarded=True)


def test_a_users_reward_shapes_the_likelihood_reward(folder: Path) -> None:
    plain, shaped = make_run("covrl"), make_run("covrl")
    shaped.reward = lambda problem, text: 0.25 * len(text)
    groups, marked = (score_groups(run, sample(run, PROBLEMS, Draw(0, 0))) for run in (plain, shaped))
    kept = [i for i, g in enumerate(groups) if any(r.valid for r in g.rollouts)]
    assert kept
    for i in kept:
        before = plain.algorithm.credit([groups[i]])[0]
        after = shaped.algorithm.credit([marked[i]])[0]
        for rollout, a, b in zip(marked[i].rollouts, before, after, strict=True):
            if rollout.valid:
                assert b.reward == pytest.approx(a.reward + 0.25 * len(rollout.text))


def test_models_that_follow() -> None:
    policy = _language_model(1)
    models = {"policy": policy, "copied": frozen_copy(policy), "mean": frozen_copy(policy), "base": frozen_copy(policy)}
    specs = (ModelSpec("copied", "copy", every=2), ModelSpec("mean", "average", keep=0.75), ModelSpec("base"))
    start = next(policy.model.parameters()).detach().clone()
    with torch.no_grad():
        for p in policy.model.parameters():
            p.add_(1.0)
    moved = [next(models[name].model.parameters()) for name in ("copied", "mean", "base")]
    follow(specs, models, done=1)
    assert torch.allclose(moved[0], start)
    assert torch.allclose(moved[1], start + 0.25)
    follow(specs, models, done=2)
    assert torch.allclose(moved[0], start + 1)
    assert torch.allclose(moved[1], start + 1 - 0.75**2)
    assert torch.equal(moved[2], start)
    assert all(not p.requires_grad for name in ("copied", "mean", "base") for p in models[name].model.parameters())


def _language_model(seed: int) -> Any:
    from covrl.models.model import LanguageModel

    return LanguageModel(tiny("gpt2", seed=seed).double())


@pytest.mark.parametrize("name", ["rapo", "reinforce_pp"])
def test_a_resumed_run_reads_the_base_and_goes_on_bit_for_bit(folder: Path, name: str) -> None:
    whole = make_run(name)
    parts = make_run(name)
    for run in (whole, parts):
        run.reward = lambda problem, text: float(len(text) % 2)
    for _ in range(4):
        take_step(whole)
    for _ in range(2):
        take_step(parts)
    saved = save_checkpoint(parts, folder / "checkpoints", keep=1)
    config = RunConfig.model_validate(table(name))
    resumed = build(config, PROBLEMS, policy_path=saved / "model")
    load_checkpoint(resumed, saved)
    resumed.reward = whole.reward
    for _ in range(2):
        take_step(resumed)
    assert torch.equal(weights(whole), weights(resumed))


def test_followers_are_in_the_checkpoint(folder: Path) -> None:
    run = make_run("rapo")
    run.algorithm.models = (replace_spec(run.algorithm.models[0]),)
    run.reward = lambda problem, text: float(len(text) % 2)
    take_step(run)
    saved = save_checkpoint(run, folder / "checkpoints", keep=1)
    other = make_run("rapo")
    other.algorithm.models = run.algorithm.models
    load_checkpoint(other, saved)
    for a, b in zip(
        run.models["reference"].model.parameters(), other.models["reference"].model.parameters(), strict=True
    ):
        assert torch.equal(a, b)


def replace_spec(spec: ModelSpec) -> ModelSpec:
    return spec._replace(follows="average", keep=0.5)


def test_tokens_are_counted(folder: Path) -> None:
    run = make_run("covrl")
    groups = sample(run, PROBLEMS[:3], Draw(0, 0))
    scored = score_groups(run, groups)
    prompts = run.prompts
    for group, back in zip(groups, scored, strict=True):
        for rollout, scores in zip(group.rollouts, back.scores, strict=True):
            rows = (prompts.prior_row(group.problem, rollout), prompts.posterior_row(group.problem, rollout))
            assert scores.tokens == sum(len(row.ids) for row in rows)
    metrics = take_step(run).metrics
    assert metrics["tokens/generated"] > 0
    assert metrics["tokens/scored"] > metrics["tokens/generated"]
    assert 0 < metrics["tokens/trained"] <= metrics["tokens/scored"]


def test_groups_are_not_changed_by_replace() -> None:
    """Rollouts are records: judging makes new ones."""
    problem = PROBLEMS[0]
    assert replace(problem, answer="x").answer == "x"
    assert problem.answer == "0"


def test_seconds_are_those_of_the_runs_timer(folder: Path) -> None:
    run = make_run("covrl")
    ticks = iter(range(10**6))
    run.timer = lambda: float(next(ticks))
    found = {name: value for name, value in take_step(run).metrics.items() if name.startswith("time/")}
    assert {"time/generate", "time/train", "time/step", "time/other"} <= found.keys()
    assert all(seconds == int(seconds) > 0 for seconds in found.values()), "every reading of the timer is one later"
    assert found["time/step"] == next(ticks) - 1, "nothing else was read, first reading to last"
