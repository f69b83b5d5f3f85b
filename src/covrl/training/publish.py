"""After an update: models that follow the policy, the generator's weights, and whether it really has them."""

from __future__ import annotations

from covrl.generation.base import Sampling
from covrl.training.models import follow
from covrl.training.publish_check import TOKENS, BothSides
from covrl.training.run import Run


def publish(run: Run) -> dict[str, float]:
    """Hand the new weights on. ``guard/publish_gap`` on the steps on which the generator is compared."""
    follow(run.algorithm.models, run.models, run.done)
    run.generator.publish(run.done)
    if not run.due(run.config.guards.publish_check_every, run.done):
        return {}
    return {"guard/publish_gap": look_at_generator(run)}


def look_at_generator(run: Run, first: bool = False) -> float:
    """Compare generator and trainer on known rows; the mean difference of their log-probs, nats a token.

    ``run.guard.stale`` says afterwards why the generator cannot have the trainer's weights, or None. ``first``: weights
    are changed on purpose too, to see whether that is noticed.

    Raises:
        BrokenModelError: the rows cannot be sampled or read, as the model's numbers are not finite.
    """
    gap, note = run.guard.look_at_generator(both_sides(run), first)
    run.remarks += [note] if note else []
    return gap


def both_sides(run: Run) -> BothSides:
    """What the check compares: the first problem's traces, a few tokens long."""
    config, problem = run.config, run.source.problems[0]
    return BothSides(
        policy=run.models["policy"],
        generator=run.generator,
        problem=problem,
        prompt=run.prompts.prior(problem),
        sampling=Sampling(TOKENS, config.prompts.close, config.generation.temperature),
        seed=config.training.seed,
        tokens=run.limits.tokens,
        version=run.done,
        world=run.world,
    )
