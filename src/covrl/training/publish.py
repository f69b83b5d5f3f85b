"""After an update: models that follow the policy, the generator's weights, and whether it really has them."""

from __future__ import annotations

from covrl.algorithms.base import Reset
from covrl.errors import UserError
from covrl.generation.base import Sampling
from covrl.guards.publish_check import TOKENS, BothSides
from covrl.models.beside import follow, move_to_policy
from covrl.training.run import Run


def publish(run: Run) -> dict[str, float]:
    """Hand the new weights on. ``guard/publish_gap`` on the steps on which the generator is compared."""
    follow(run.algorithm.models, run.models, run.done)
    run.generator.publish(run.done)
    if not run.due(run.config.guards.publish_check_every, run.done):
        return {}
    return {"guard/publish_gap": look_at_generator(run)}


def begin_anew(run: Run, wanted: Reset) -> str:
    """Make models the policy, and let the optimizer forget its moments; what happened, for the step's report.

    Raises:
        UserError: a model of them is none that is reset.
    """
    follows = {spec.name: spec.follows for spec in run.algorithm.models}
    for name in wanted.models:
        if follows.get(name) != "reset":
            raise UserError(
                f"algorithm {run.algorithm.name}: reset_after names the model {name!r}, which has follows = "
                f"{follows.get(name)!r}; a model that is reset follows nothing else: follows = 'reset'"
            )
    for name in wanted.models:
        move_to_policy(run.models, name)
    if wanted.optimizer:
        run.optimizers["policy"].state.clear()
    done = [f"{name} is the policy of now" for name in wanted.models]
    done += ["the optimizer's moments begin at 0"] * wanted.optimizer
    return f"reset after step {run.done}: {', and '.join(done) or 'nothing'}"


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
