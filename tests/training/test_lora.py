"""A LoRA run: what moves, what its gradient is, references that share the base, resumes, files, commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Covrl
from models import save_tiny
from projects import LETTERS, InterruptAt
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from covrl import api
from covrl.algorithms import ALGORITHMS, find_algorithm
from covrl.algorithms.base import Reset, Setup
from covrl.algorithms.ppo import VALUE
from covrl.checkpoints.checkpoint import save_trained
from covrl.config import PromptConfig, RunConfig
from covrl.errors import RunInterruptedError, TrainingStoppedError, UserError
from covrl.generation.base import Draw
from covrl.generation.engine import TorchGenerator
from covrl.guards.publish_check import changed_adapter
from covrl.models import adapters
from covrl.models.adapted import Adapted
from covrl.models.beside import follow
from covrl.models.copies import Offloaded, frozen_copy
from covrl.models.critic import HEAD_FILE, Critic
from covrl.models.model import LanguageModel, load_model
from covrl.models.spec import ModelSpec
from covrl.prompts import Prompts
from covrl.quickstart.run import RECIPES
from covrl.records import Credit, Output, Problem, ScoredGroup
from covrl.scoring.pack import make_unit, read
from covrl.training import loop
from covrl.training.gradient import add_gradient
from covrl.training.memory import model_bytes
from covrl.training.publish import begin_anew
from covrl.training.reading_plan import reading_plan
from covrl.training.rollouts import sample
from covrl.training.run import Run
from covrl.training.scores import score_groups
from covrl.training.step import take_step

pytest.importorskip("peft")

PROBLEMS = [Problem(f"p{i}", f"{i}+{i * 7}=?", str(i * 8)) for i in range(5)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied and untied small models; only GPT-2 is float64 all through."""
    found = tmp_path_factory.mktemp("models")
    for family in ("gpt2", "llama"):
        save_tiny(family, found / family)
    return found


def by_text(problem: Problem, text: str) -> float:
    return float(sum(map(ord, text)) % 2)


def settings(folder: Path, name: str = "grpo", lora: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    table = {
        "model": {"path": str(folder / "gpt2"), "device": "cpu", "dtype": "float64"} | sections.pop("model", {}),
        "lora": {"rank": 3} if lora is None else lora,
        "prompts": LETTERS,
        "generation": {"max_trace_tokens": 20, "max_answer_tokens": 8},
        "training": {"rollouts_per_problem": 3, "problems_per_step": 3, "steps": 3, "warmup_steps": 0}
        | {"learning_rate": 1e-2}
        | sections.pop("training", {}),
        "evaluation": {"every": 2, "problems": 2, "verifier": "none"},
        "checkpoint": {"every": 2},
        "algorithm": {"name": name, **sections.pop("algorithm", {})},
    }
    return RunConfig.model_validate(table | sections)


def make_run(folder: Path, name: str = "grpo", lora: dict[str, Any] | None = None, **sections: Any) -> Run:
    return api.build(settings(folder, name, lora, **sections), PROBLEMS, reward=by_text)


def admitted(run: Run) -> tuple[list[ScoredGroup], list[list[Credit]]]:
    groups = run.algorithm.admit(score_groups(run, sample(run, PROBLEMS, Draw(0, 0)))).kept
    assert groups
    return groups, run.algorithm.credit(groups)


def shake(run: Run, amount: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in run.parameters:
            p.add_(amount * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def base_weights(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if ".lora_" not in name}


def bits(run: Run) -> Tensor:
    return torch.cat([p.detach().flatten() for p in run.parameters])


def test_only_the_adapter_moves_and_nothing_else_is_in_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    run = api.build(settings(folder, "covrl", model={"dtype": "float32"}), PROBLEMS, PROBLEMS)
    policy = run.models["policy"].model
    before, start = base_weights(policy), bits(run)
    api.new_run_folder(tmp_path / "run")
    trained = api.train_run(run, tmp_path / "run")
    after = base_weights(policy)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(bits(run), start)
    mine = adapters.adapter_weights(policy)
    assert len(mine) == len(run.parameters) == 16
    for written in (trained.last, trained.best):
        assert written is not None
        assert load_file(written / adapters.WEIGHTS).keys() == mine.keys()
        assert {p.name for p in written.glob("*.safetensors")} == {adapters.WEIGHTS}
    moments = load_file(trained.last.parent / "optimizer.safetensors")
    assert len(moments) == 3 * len(mine)
    held = sum(p.stat().st_size for p in trained.last.parent.rglob("*.safetensors"))
    adapter = sum(p.numel() for p in run.parameters)
    assert (
        3 * 4 * adapter < held < 3 * 4 * adapter + 16_000
    )  # weights and two moments, 4 bytes each, and the files' heads


def plain_with(run: Run, weights: dict[str, Tensor]) -> LanguageModel:
    """The plain model whose matrices are W + scale · B A: the other way of writing the same function."""
    model, _ = load_model(run.config.model)
    scale = run.config.lora.alpha / run.config.lora.rank
    with torch.no_grad():
        for name, module in model.model.named_modules():
            a = weights.get(f"base_model.model.{name}.lora_A.weight")
            if a is not None:
                assert isinstance(module, (nn.Linear, Conv1D))
                delta = scale * weights[f"base_model.model.{name}.lora_B.weight"] @ a
                module.weight.add_(delta.T if isinstance(module, Conv1D) else delta)
    return model


@pytest.mark.parametrize("name", ["covrl", "grpo"])
def test_the_gradient_is_that_of_the_merged_weights_by_differences(folder: Path, name: str) -> None:
    """Along a random direction of each factor of each layer: 32 central differences of the loss of plain models."""
    run = make_run(
        folder, name, {"rank": 3, "alpha": 5}, algorithm={"kl": "k3", "kl_weight": 0.3} if name == "grpo" else {}
    )
    shake(run)
    groups, credits = admitted(run)

    def loss(weights: dict[str, Tensor]) -> float:
        models = run.models | {"policy": plain_with(run, weights)}
        made_of = (run.algorithm, models, groups, credits, run.limits, reading_plan(run.algorithm, on_policy=False))
        return sum(add_gradient(*made_of).losses.values())

    add_gradient(run.algorithm, run.models, groups, credits, run.limits, reading_plan(run.algorithm, on_policy=False))
    weights = adapters.adapter_weights(run.models["policy"].model)
    now = {key: w.detach().clone() for key, w in weights.items()}
    generator = torch.Generator().manual_seed(0)
    assert len(weights) == 16
    for key, weight in weights.items():
        direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        step = 1e-5
        up, down = (loss(now | {key: now[key] + sign * step * direction}) for sign in (1, -1))
        assert weight.grad is not None
        slope = float((weight.grad * direction).sum())
        assert abs(slope) > 1e-4
        assert (up - down) / (2 * step) == pytest.approx(slope, rel=1e-4, abs=1e-7), key


@pytest.mark.parametrize("recompute", [False, True])
def test_a_critics_adapter_has_the_gradient_of_merged_weights_by_differences(folder: Path, recompute: bool) -> None:
    """Beside the policy's on one base: each factor of both, and the head; the losses of two plain models."""
    run = make_run(folder, "ppo", {"rank": 3, "alpha": 5}, training={"recompute": recompute})
    policy, critic = run.models["policy"], run.models["critic"]
    assert isinstance(critic, Critic)
    assert critic.model is policy.model
    assert not set(map(id, policy.parameters())) & set(map(id, critic.parameters()))
    shake(run)
    groups, credits = admitted(run)
    plan = reading_plan(run.algorithm, on_policy=False)
    names = ("policy", "critic")
    now = {name: adapters.adapter_weights(policy.model, name) for name in names}
    start = {name: {key: w.detach().clone() for key, w in now[name].items()} for name in names}
    head = {key: w.detach().clone() for key, w in critic.head.state_dict().items()}

    def loss(weights: dict[str, dict[str, Tensor]], head: dict[str, Tensor]) -> float:
        beside = Critic(plain_with(run, weights["critic"]))
        beside.head.load_state_dict(head)
        models = {"policy": plain_with(run, weights["policy"]), "critic": beside}
        return sum(add_gradient(run.algorithm, models, groups, credits, run.limits, plan).losses.values())

    add_gradient(run.algorithm, run.models, groups, credits, run.limits, plan)
    generator = torch.Generator().manual_seed(0)
    step = 1e-5
    for name in names:
        for key, weight in now[name].items():
            direction = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            up, down = (
                loss(start | {name: start[name] | {key: start[name][key] + sign * step * direction}}, head)
                for sign in (1, -1)
            )
            assert weight.grad is not None
            slope = float((weight.grad * direction).sum())
            assert abs(slope) > 1e-6
            assert (up - down) / (2 * step) == pytest.approx(slope, rel=1e-4, abs=1e-7), (name, key)
    slope = critic.head.bias.grad
    up, down = (loss(start, head | {"bias": head["bias"] + sign * step}) for sign in (1, -1))
    assert (up - down) / (2 * step) == pytest.approx(float(slope), rel=1e-4, abs=1e-7)


def test_a_critic_beside_an_adapter_begins_at_zero_moves_alone_and_resumes_to_the_same_bytes(
    folder: Path, tmp_path: Path
) -> None:
    def build() -> Run:
        config = settings(folder, "ppo", training={"steps": 4}, algorithm={"kl": "k3", "kl_weight": 0.1})
        return api.build(config, PROBLEMS, PROBLEMS, reward=by_text)

    run = build()
    assert list(run.models) == ["policy", "reference", "critic"]
    before = base_weights(run.models["policy"].model)
    scores = [s for g in score_groups(run, sample(run, PROBLEMS, Draw(0, 0))) for s in g.scores]
    assert not any(bool(s[VALUE].any()) for s in scores)
    for part in ("whole", "parts"):
        api.new_run_folder(tmp_path / part)
    api.train_run(run, tmp_path / "whole")
    after = base_weights(run.models["policy"].model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    critic = tmp_path / "whole" / "checkpoints" / "step-000004" / "critic"
    assert {p.name for p in critic.iterdir()} == {adapters.CONFIG, adapters.WEIGHTS, HEAD_FILE}
    other = build()
    with pytest.raises(RunInterruptedError):
        api.train_run(other, tmp_path / "parts", [InterruptAt(2)])
    resumed = api.resume(tmp_path / "parts", PROBLEMS, PROBLEMS, reward=by_text)
    assert resumed.done == 2
    api.train_run(resumed, tmp_path / "parts")
    files = [p.relative_to(critic.parent) for p in critic.parent.rglob("*") if p.is_file()]
    assert len(files) >= 9
    for file in files:
        made = tmp_path / "parts" / "checkpoints" / "step-000004" / file
        assert made.read_bytes() == (critic.parent / file).read_bytes(), file


@pytest.mark.parametrize("recompute", [False, True])
def test_on_policy_the_log_probs_of_the_update_are_those_of_the_scoring(folder: Path, recompute: bool) -> None:
    run = make_run(folder, training={"recompute": recompute})
    shake(run)
    (group, *_) = score_groups(run, sample(run, PROBLEMS, Draw(0, 0)))
    algorithm, output = run.algorithm, Output("trace", "prior")
    for i, (rollout, scores) in enumerate(zip(group.rollouts, group.scores, strict=True)):
        unit = make_unit(i, algorithm.contexts, algorithm.training, group.problem, rollout)
        tokens = read(run.models, algorithm.contexts, algorithm.training, [unit], run.limits.logits_bytes)
        assert tokens.values[output].requires_grad
        assert torch.allclose(tokens.values[output], scores[output], atol=1e-12)


def test_recomputed_activations_give_the_same_gradient(folder: Path) -> None:
    found = []
    for recompute in (False, True):
        run = make_run(folder, training={"recompute": recompute})
        shake(run)
        groups, credits = admitted(run)
        add_gradient(
            run.algorithm, run.models, groups, credits, run.limits, reading_plan(run.algorithm, on_policy=False)
        )
        found.append(torch.cat([p.grad.flatten() for p in run.parameters if p.grad is not None]))
    assert len(found[0]) == sum(p.numel() for p in run.parameters)
    assert found[0].norm() > 0
    assert torch.allclose(found[0], found[1], atol=1e-14)


WITH_REFERENCE: dict[str, dict[str, Any]] = {
    name: {} for name in ("rlpr", "rapo", "dash", "nover", "latro", "reinforce_pp", "opsd", "a_star_po")
}
WITH_REFERENCE |= {"jepo": {"kl_weight": 0.1}, "grpo": {"kl": "k3", "kl_weight": 0.1}, "prorl": {"reset": "every"}}
"""Of the group family with a KL term one is enough: their references are the same lines of one class."""


def test_every_method_that_has_a_reference_of_itself_is_among_the_cases() -> None:
    nothing: Any = None
    for name in ALGORITHMS:
        cls = find_algorithm(name)
        models = cls(cls.Config(), Setup(Prompts(nothing, PromptConfig()), 8)).models
        assert name in WITH_REFERENCE or all(spec.trainable for spec in models)


def test_a_reset_makes_the_reference_the_adapted_policy(folder: Path) -> None:
    run = make_run(folder, "prorl", algorithm={"reset": "every"})
    take_step(run)
    shake(run)

    def apart() -> float:
        groups = score_groups(run, sample(run, PROBLEMS, Draw(0, 5)))
        rows = [
            (v[Output("trace", "prior")], v[Output("trace", "reference")])
            for g in groups
            for s in g.scores
            for v in (s.values,)
        ]
        return max(float((own - other).abs().max()) for own, other in rows if len(own))

    assert apart() > 1e-3
    begin_anew(run, Reset(("reference",), optimizer=True))
    assert apart() == 0
    assert not run.optimizers["policy"].state


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_references_share_the_base_and_read_what_a_copy_would(folder: Path, name: str) -> None:
    """One step of the method; then its reference's scores are, to the last bit, those of a model that never moved."""
    run = make_run(folder, name, algorithm=WITH_REFERENCE[name])
    assert list(run.models) == ["policy", "reference"]
    reference = run.models["reference"]
    assert isinstance(reference, Adapted)
    assert reference.model is run.models["policy"].model
    take_step(run)
    shake(run)
    groups = score_groups(run, sample(run, PROBLEMS, Draw(0, 5)))
    plain, _ = load_model(run.config.model)
    plain.paths = reference.paths
    alone = make_run(folder, name, {}, algorithm=WITH_REFERENCE[name])
    alone.models["reference"] = plain
    alone.models["policy"] = run.models["policy"]
    again = score_groups(alone, [*groups])
    outputs = {o for g in groups for s in g.scores for o in s.values}
    read_by_reference = {
        Output(r.span, n)
        for r in run.algorithm.scoring
        for n in r.outputs
        for c in run.algorithm.contexts
        if c.name in r.contexts and c.model == "reference"
    }
    assert read_by_reference
    assert read_by_reference <= outputs
    for one, other in zip(groups, again, strict=True):
        for mine, theirs in zip(one.scores, other.scores, strict=True):
            for output in mine.values:
                assert torch.equal(mine[output], theirs[output]), output


def test_a_following_reference_is_an_adapter_more(folder: Path) -> None:
    run = make_run(folder)
    policy = run.models["policy"]
    assert isinstance(policy, Adapted)
    whole = sum(p.numel() for p in policy.model.parameters())
    for name in ("copied", "mean"):
        adapters.copy_adapter(policy.model, adapters.POLICY, name)
    models = {"policy": policy, "base": Adapted(policy, None)}
    models |= {name: Adapted(policy, name) for name in ("copied", "mean")}
    specs = (ModelSpec("copied", "copy", every=2), ModelSpec("mean", "average", keep=0.75), ModelSpec("base"))
    assert sum(p.numel() for p in policy.model.parameters()) == whole + 2 * bits(run).numel()
    before = base_weights(policy.model)
    start = bits(run)
    with torch.no_grad():
        for p in run.parameters:
            p.add_(1.0)

    def flat(name: str) -> Tensor:
        return torch.cat([p.detach().flatten() for p in models[name].own_weights()])

    follow(specs, models, done=1)
    assert torch.equal(flat("copied"), start)
    assert torch.allclose(flat("mean"), start + 0.25)
    follow(specs, models, done=2)
    assert torch.equal(flat("copied"), start + 1)
    assert torch.allclose(flat("mean"), start + 1 - 0.75**2)
    assert all(torch.equal(before[name], w) for name, w in base_weights(policy.model).items())
    assert bits(run).equal(start + 1)


def test_memory_counts_shared_weights_once(folder: Path) -> None:
    sizes = model_bytes(make_run(folder, "rlpr"))
    alone = model_bytes(make_run(folder, "covrl"))
    assert sizes == alone
    assert sizes["gradients"] < sizes["weights"] / 5
    assert (
        model_bytes(make_run(folder, "rlpr", {}))["weights"]
        == 2 * model_bytes(make_run(folder, "covrl", {}))["weights"]
    )


@pytest.mark.parametrize(
    ("name", "sections", "at"),
    [
        ("covrl", {}, 1),
        ("nover", {"algorithm": {"sync_every": 1}}, 3),
        ("rlpr", {"algorithm": {"filter": 0}, "training": {"mini_batches": 2}}, 2),
        ("covrl", {"model": {"dtype": "bfloat16"}}, 2),
    ],
)
def test_a_resumed_run_ends_with_the_same_bytes(
    folder: Path, tmp_path: Path, name: str, sections: dict[str, Any], at: int
) -> None:
    def build() -> Run:
        more = {**sections, "training": {"steps": 4} | sections.get("training", {})}
        return api.build(settings(folder, name, **more), PROBLEMS, PROBLEMS)

    for part in ("whole", "parts"):
        api.new_run_folder(tmp_path / part)
    api.train_run(build(), tmp_path / "whole")
    run = build()
    with pytest.raises(RunInterruptedError):
        api.train_run(run, tmp_path / "parts", [InterruptAt(at)])
    resumed = api.resume(tmp_path / "parts", PROBLEMS, PROBLEMS)
    assert resumed.done == at
    assert isinstance(resumed.models["policy"], Adapted)
    assert torch.equal(bits(resumed), bits(run))
    api.train_run(resumed, tmp_path / "parts")
    one, other = (tmp_path / part / "checkpoints" / "step-000004" for part in ("whole", "parts"))
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    assert len(files) >= 7
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


def test_the_settings_of_an_adapter_may_not_change_on_a_resume(folder: Path, tmp_path: Path) -> None:
    api.train(settings(folder, "covrl", training={"steps": 1}), PROBLEMS, out=tmp_path / "run")
    file = tmp_path / "run" / "config.toml"
    file.write_text(file.read_text().replace("rank = 3", "rank = 8"))
    with pytest.raises(UserError, match=r"lora\.rank is 8, but up to step 1 the run was trained with 3"):
        api.resume(tmp_path / "run", PROBLEMS)


def test_an_engine_with_other_weights_is_found_out(folder: Path) -> None:
    """The base alone, say: an engine that does not take the adapter."""
    run = make_run(folder, guards={"publish_check_every": 1})
    stale, tokenizer = load_model(run.config.model)
    run.generator = TorchGenerator(stale.model, tokenizer, 64)
    with pytest.raises(TrainingStoppedError, match="other weights than are trained"):
        list(loop.steps(run))
    assert [
        r.metrics["guard/publish_gap"] < 1e-9 for r in loop.steps(make_run(folder, guards={"publish_check_every": 1}))
    ]


def test_an_adapter_changed_on_purpose_comes_back_to_the_bit_and_changes_much(folder: Path) -> None:
    """Of every layer; the base is not touched, and a few tokens' log-probs move by far more than rounding."""
    run = make_run(folder)
    take_step(run)
    policy = run.models["policy"]
    ids = torch.arange(12)[None]
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    with torch.no_grad():
        own = torch.log_softmax(policy.model(ids).logits, -1)
        with changed_adapter(policy):
            changed = {name for name, p in policy.model.named_parameters() if not torch.equal(p, before[name])}
            moved = (torch.log_softmax(policy.model(ids).logits, -1) - own).abs().mean()
    assert changed == {name for name in before if ".lora_B." in name}
    assert 0.05 < float(moved) < 50
    assert all(torch.equal(p, before[name]) for name, p in policy.model.named_parameters())


def test_an_adapter_is_not_trained_as_if_it_were_a_model(folder: Path, tmp_path: Path) -> None:
    run = make_run(folder)
    save_trained(run, tmp_path / "adapter")
    for lora in ({}, {"rank": 2}):
        with pytest.raises(
            UserError, match=r"^model.path: .* is a LoRA adapter: make a model of it with `covrl merge "
        ):
            make_run(folder, "grpo", lora, model={"path": str(tmp_path / "adapter")})


def test_the_weights_of_an_offloaded_copy_are_on_the_device_only_while_they_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On "meta", a device of every machine: what it reads has shapes and no values, and the copy at home is whole."""
    model, _ = load_model(make_run(folder).config.model)
    there = torch.device("meta")
    away = Offloaded(frozen_copy(model, torch.device("cpu")), there)
    before = [w.clone() for w in away.own_weights()]
    devices = lambda: {t.device.type for t in (*away.model.parameters(), *away.model.buffers())}  # noqa: E731
    assert devices() == {"cpu"}
    assert away.device == there
    shaped = lambda model, ids, **_: torch.zeros(*ids.shape, 32, dtype=torch.float64, device=model.device)  # noqa: E731
    monkeypatch.setattr(LanguageModel, "_forward", shaped)
    hidden = away.hidden([(1, 2, 3), (4, 5)])
    assert hidden.device == there
    assert away.projection()(hidden).device == there
    assert devices() == {"meta"}
    away.rest()
    assert devices() == {"cpu"}
    assert all(torch.equal(a, b) for a, b in zip(before, away.own_weights(), strict=True))
    assert away.model.get_output_embeddings().weight is away.model.get_input_embeddings().weight
    assert away.parameters() == []


@pytest.mark.parametrize("name", ["rlpr", "nover"])
def test_an_offloaded_reference_changes_nothing(folder: Path, tmp_path: Path, name: str) -> None:
    runs = [make_run(folder, name, {}, model={"offload_reference": offload}) for offload in (False, True)]
    assert [isinstance(run.models["reference"], Offloaded) for run in runs] == [False, True]
    seen: list[bool] = []
    away = runs[1].models["reference"]
    assert isinstance(away, Offloaded)
    own = away.rest
    away.rest = lambda: (seen.append(bool(away._home)), own())[-1]  # ty: ignore
    reports = [list(loop.steps(run)) for run in runs]
    assert any(seen)
    assert not away._home
    assert torch.equal(*(bits(run) for run in runs))
    assert torch.equal(*(run.models["reference"].own_weights()[0] for run in runs))
    for one, other in zip(*reports, strict=True):
        assert {k: v for k, v in one.metrics.items() if "time/" not in k} == pytest.approx(
            {k: v for k, v in other.metrics.items() if "time/" not in k}, abs=0, rel=0, nan_ok=True
        )


def test_frozen_references_are_one_copy(folder: Path) -> None:
    from covrl.models.beside import load_beside

    run = make_run(folder, "rlpr", {})
    specs = (ModelSpec("a"), ModelSpec("b"), ModelSpec("c", "copy"))
    found = load_beside(run.models["policy"], specs, run.config, resumed=False)
    assert found["a"] is found["b"]
    assert found["c"] is not found["a"]
    mine = {p.data_ptr() for p in run.models["policy"].model.parameters()}
    assert not mine & {p.data_ptr() for model in found.values() for p in model.model.parameters()}


def test_the_commands_take_the_folder_of_a_lora_run(
    tmp_path: Path, covrl: Covrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    recipe, short = (
        str(RECIPES["digits"].file),
        ["training.steps=1", "lora.rank=2", "evaluation.problems=8", "generation.max_trace_tokens=6"],
    )
    settings = [part for text in [*short, "training.problems_per_step=2"] for part in ("--set", text)]
    code, out, err = covrl("train", "--config", recipe, "--out", "run", *settings)
    assert code == 0, err
    assert "LoRA of rank 2 on 21 layers: 10,944 weights are trained beside 335,424" in err
    assert f"adapter  {tmp_path}/run/best" in out
    few = ("--problems", "digits:test", "--limit", "4", "--json")
    for command in (("eval", "--model", "run"), ("leak", "--model", "run"), ("calibrate", "--model", "run", "-n", "2")):
        code, out, err = covrl(*command, *few)
        assert code == 0, err
        assert '"problem_source": "digits:test"' in out
    code, out, err = covrl("ask", "run", "1+2=?", "--answer", "3", "-n", "1")
    assert code == 0, err
    assert "base" in out
    assert "trained" in out
    code, out, err = covrl("merge", "run", "--out", "plain")
    assert code == 0, err
    assert "AutoModelForCausalLM" in out
    assert "adapter" not in out
    code, out, err = covrl(
        "eval", "--model", "run", "--model", "plain", "--config", recipe, *few, "--out", "e", "-n", "1"
    )
    assert code == 0, err
    code, _, err = covrl("train", "--config", recipe, "--set", "model.path=run/best", "--out", "again")
    assert code == 2
    assert err.strip().count("\n") == 0
    assert "is a LoRA adapter: make a model of it with `covrl merge run/best --out FOLDER`" in err
    code, out, err = covrl("train", "--config", recipe, "--set", "lora.rank=2", "--dry-run")
    assert code == 0, err
    assert "gradients" in out
