from __future__ import annotations

import pytest
import torch
from torch import nn
from training.test_step import credited, make_run

from covrl.config import TrainingConfig
from covrl.training.optimizer import learning_rate, make_optimizer


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


def test_only_matrices_decay() -> None:
    matrix, norm = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = make_optimizer([matrix, norm], TrainingConfig(weight_decay=0.1, learning_rate=0.5))
    matrix.grad, norm.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    assert torch.allclose(matrix, torch.full((2, 2), 0.95))
    assert torch.equal(norm, torch.ones(2))


def test_the_whole_gradient_is_clipped_before_the_step() -> None:
    run = make_run(training={"gradient_clip": 1e-3, "steps": 1})
    report = run.step()
    assert report.metrics["grad_norm/total"] > 0.01
    norm = torch.cat([p.grad.flatten() for p in run.parameters if p.grad is not None]).norm()
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
