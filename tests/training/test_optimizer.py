from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from training.test_step import credited, make_run
from training.test_step_methods import method_run

from covrl.algorithms.ppo import PPOConfig
from covrl.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from covrl.config import TrainingConfig, check
from covrl.errors import UserError
from covrl.training.optimizer import MOMENTS, learning_rate, make_optimizer, moments_there, warm_up_note
from covrl.training.run import Run
from covrl.training.step import set_rate, take_step
from covrl.training.undo import whole_or_undone


@pytest.mark.parametrize(
    ("schedule", "halfway", "end"), [("constant", 1.0, 1.0), ("linear", 0.55, 0.1), ("cosine", 0.55, 0.1)]
)
def test_schedules(schedule: str, halfway: float, end: float) -> None:
    config = TrainingConfig.model_validate(
        {"steps": 110, "warmup_steps": 10, "schedule": schedule, "learning_rate": 2.0, "final_lr_share": 0.1}
    )
    assert learning_rate(config, 0) == pytest.approx(2 / 11)
    assert learning_rate(config, 10) == pytest.approx(2.0)
    assert learning_rate(config, 60) == pytest.approx(2 * halfway)
    assert learning_rate(config, 110) == pytest.approx(2 * end)
    assert all(learning_rate(config, i) < learning_rate(config, i + 1) for i in range(10))
    assert [learning_rate(config, i, peak=6.0) for i in (0, 10, 60)] == pytest.approx([6 / 11, 6.0, 6 * halfway])


@pytest.mark.parametrize(
    ("settings", "critic"), [({}, 1e-2), ({"critic_rate": 3.0}, 3e-3), ({"critic_learning_rate": 5e-4}, 5e-4)]
)
def test_a_critic_has_a_learning_rate_of_its_own_or_a_multiple(settings: dict[str, float], critic: float) -> None:
    """On the policy's schedule: half of the largest in the first of two steps of warm-up."""
    run = method_run("ppo", **settings)
    training = {"learning_rate": 1e-3, "warmup_steps": 1, "schedule": "constant"}
    run.config = run.config.model_copy(update={"training": run.config.training.model_copy(update=training)})
    for done, share in ((0, 0.5), (1, 1.0)):
        run.done = done
        assert set_rate(run) == pytest.approx(share * 1e-3)
        rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in run.optimizers.items()}
        assert rates == pytest.approx({"policy": share * 1e-3, "critic": share * critic})


def test_two_learning_rates_of_a_critic_are_one_too_many() -> None:
    with pytest.raises(UserError, match="critic_rate does nothing with a critic_learning_rate"):
        check(PPOConfig, {"critic_rate": 3.0, "critic_learning_rate": 1e-5})


def test_only_matrices_decay() -> None:
    matrix, norm = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = make_optimizer([matrix, norm], TrainingConfig(weight_decay=0.1, learning_rate=0.5))
    matrix.grad, norm.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    assert torch.allclose(matrix, torch.full((2, 2), 0.95))
    assert torch.equal(norm, torch.ones(2))


def test_the_whole_gradient_is_clipped_before_the_step() -> None:
    run = make_run(training={"gradient_clip": 1e-3, "steps": 1})
    taken: list[torch.Tensor] = []
    run.optimizers["policy"].register_step_pre_hook(
        lambda *_: taken.append(torch.cat([p.grad.flatten() for p in run.parameters if p.grad is not None]))
    )
    report = take_step(run)
    assert report.metrics["grad_norm/total"] > 0.01
    (norm,) = (gradient.norm() for gradient in taken)
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_sampler_and_scorer_share_the_temperature() -> None:
    run = make_run()
    run.models["policy"].temperature = 0.6
    run.config = run.config.model_copy(
        update={"generation": run.config.generation.model_copy(update={"temperature": 0.6})}
    )
    groups, _ = credited(run)
    for group in groups:
        for rollout, scores in zip(group.rollouts, group.scores, strict=True):
            expected = torch.tensor(rollout.log_probs, dtype=torch.float64)
            assert torch.allclose(scores["trace", rollout.source], expected, atol=1e-10)


@pytest.mark.parametrize(("warmup", "steps", "reached"), [(64, 20, 20 / 65), (64, 64, 64 / 65), (1, 1, 0.5)])
def test_case19_a_warm_up_as_long_as_the_run_is_noted_with_the_largest_rate(
    warmup: int, steps: int, reached: float
) -> None:
    config = TrainingConfig(steps=steps, warmup_steps=warmup, learning_rate=1e-3)
    note = warm_up_note(config)
    assert max(learning_rate(config, step) for step in range(steps)) == pytest.approx(1e-3 * reached)
    assert note is not None
    assert f"rises to {1e-3 * reached:.3g} in the last step and never reaches training.learning_rate = 0.001" in note
    assert f"training.warmup_steps = {warmup} is not below training.steps = {steps}" in note


@pytest.mark.parametrize(("warmup", "steps"), [(63, 64), (0, 1), (64, 100)])
def test_case19_a_warm_up_that_ends_in_time_is_not_noted(warmup: int, steps: int) -> None:
    config = TrainingConfig(steps=steps, warmup_steps=warmup)
    assert warm_up_note(config) is None
    assert max(learning_rate(config, step) for step in range(steps)) == config.learning_rate


def states(run: Run) -> list[torch.Tensor]:
    (optimizer,) = run.optimizers.values()
    return [optimizer.state[parameter][name] for parameter in run.parameters for name in MOMENTS]


def test_moments_in_host_memory_give_the_same_bits(tmp_path: Path) -> None:
    """Also through a checkpoint, and back from a step that is undone."""
    runs = [make_run(training={"offload_moments": away}) for away in (False, True)]
    for run in runs:
        take_step(run)
    plain, away = runs
    assert all(t.untyped_storage().nbytes() == 0 for t in states(away))
    assert all(t.untyped_storage().nbytes() > 0 for t in states(plain))
    folders = [save_checkpoint(run, tmp_path / name, 1) for run, name in zip(runs, ("plain", "away"), strict=True)]
    files = [(folder / "optimizer.safetensors").read_bytes() for folder in folders]
    assert files[0] == files[1]
    assert all(t.untyped_storage().nbytes() == 0 for t in states(away))
    later = make_run(training={"offload_moments": True})
    later.models["policy"].model.load_state_dict(away.models["policy"].model.state_dict())
    load_checkpoint(later, folders[1])
    assert all(t.untyped_storage().nbytes() == 0 for t in states(later))
    for run in (*runs, later):
        take_step(run)
    for other in (away, later):
        for a, b in zip(plain.parameters, other.parameters, strict=True):
            assert torch.equal(a, b)
        with moments_there(other.optimizers.values()):
            for a, b in zip(states(plain), states(other), strict=True):
                assert torch.equal(a, b)


def test_a_step_that_is_undone_leaves_moments_in_host_memory() -> None:
    run = make_run(training={"offload_moments": True, "mini_batches": 2})
    take_step(run)
    with moments_there(run.optimizers.values()):
        before = [t.clone() for t in states(run)]

    def fails() -> None:
        with whole_or_undone(run):
            for parameter in run.parameters:
                parameter.grad = torch.ones_like(parameter)
            run.optimizers["policy"].step()
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fails()
    assert all(t.untyped_storage().nbytes() == 0 for t in states(run))
    with moments_there(run.optimizers.values()):
        for a, b in zip(before, states(run), strict=True):
            assert torch.equal(a, b)


def test_one_kernel_is_taken_where_there_is_one_and_computes_adamw() -> None:
    torch.manual_seed(0)
    config = TrainingConfig(weight_decay=0.1, learning_rate=0.01)
    mine = [nn.Parameter(torch.randn(5, 3, dtype=torch.float64)), nn.Parameter(torch.randn(7, dtype=torch.float64))]
    peer = [nn.Parameter(p.detach().clone()) for p in mine]
    optimizer = make_optimizer(mine, config)
    assert all(group["fused"] for group in optimizer.param_groups)
    groups = [{"params": peer[:1], "weight_decay": 0.1}, {"params": peer[1:], "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, lr=0.01, betas=config.adam_betas, foreach=False, fused=False)
    for _ in range(5):
        for a, b in zip(mine, peer, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        optimizer.step()
        plain.step()
    for a, b in zip(mine, peer, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)
    nowhere = [nn.Parameter(torch.zeros(2, device="meta"))]
    assert not make_optimizer(nowhere, config).param_groups[0]["fused"]
