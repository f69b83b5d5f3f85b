"""A run as a record: everything that it is made of, and where it stands. What is done with it are functions elsewhere.

:func:`covrl.training.loop.steps` takes its steps, :func:`covrl.training.step.take_step` one of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from covrl.algorithms.base import Algorithm
from covrl.config import RunConfig
from covrl.distributed.world import World
from covrl.evaluation.accuracy import Evaluator
from covrl.generation.base import Generator, samples_with_trainer
from covrl.guards.guard import Guard
from covrl.models.model import LanguageModel
from covrl.problems.source import ProblemSource
from covrl.prompts import Prompts
from covrl.records import Grader, Problem, TraceLabel
from covrl.rewards.named import Reward
from covrl.rewards.steps import StepScorer
from covrl.scoring.pack import PassLimits
from covrl.training.ahead import Ahead
from covrl.training.boundary import StepInProgress
from covrl.training.mismatch import Mismatch
from covrl.training.optimizer import make_optimizer


@dataclass
class Run:
    """Everything a run is made of.

    ``verify`` gives verdicts on what responses answered, for methods that need a verifier; CoVRL needs none.
    ``reward`` is the user's own function, or several with their names, called for every sampled trace or response.
    ``step_scorer`` scores reasoning steps for methods that want it. ``label`` names what traces do, for monitors and
    the report alone. ``best`` is the best held-out (accuracy, log-likelihood) so far. ``notes`` say which fast paths
    the model made impossible. ``folder`` is where guards write what they found, and ``stopping`` says whether the run
    has been asked to end; it is called before each forward and backward pass. ``timer`` gives the seconds of the
    metrics ``time/…``: those on the wall unless another is set. ``world`` is the processes that share the work: each
    does a part of it, and all hold every group, credit and metric.

    ``remarks`` are shown with the next step's report. ``in_progress`` is None between steps. ``trained`` has the
    parameters of each model that trains, by the model's name, ``optimizers`` an optimizer for each, and ``parameters``
    are those of all of them. They are taken once: while whole weights are gathered, a sharded model shows others.
    """

    config: RunConfig
    algorithm: Algorithm
    models: dict[str, LanguageModel]
    generator: Generator
    prompts: Prompts
    source: ProblemSource
    verify: Grader | None = None
    reward: Reward | None = None
    step_scorer: StepScorer | None = None
    label: TraceLabel | None = None
    evaluator: Evaluator | None = None
    held_out: Sequence[Problem] = ()
    world: World = field(default_factory=World)
    done: int = 0
    best: tuple[float, float] | None = None
    notes: Sequence[str] = ()
    folder: Path | None = None
    stopping: Callable[[], bool] | None = None
    timer: Callable[[], float] = time.perf_counter
    remarks: list[str] = field(default_factory=list)
    in_progress: StepInProgress | None = None

    def __post_init__(self) -> None:
        self.limits = PassLimits.of(self.config.training)
        self.guard = Guard(self.config)
        self.ahead = Ahead(self.config.generation.ahead)
        self.take_parameters()

    def take_parameters(self) -> None:
        """Make the optimizers anew, of the parameters that the models have now."""
        every = {name: model.parameters() for name, model in self.models.items()}
        self.trained = {name: own for name, own in every.items() if own}
        self.parameters = [p for own in self.trained.values() for p in own]
        self.optimizers = {name: make_optimizer(own, self.config.training) for name, own in self.trained.items()}

    def forget_gradient(self) -> None:
        """Let no parameter have a gradient; the memory is free again."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def weights_for_sampling(self) -> AbstractContextManager[None]:
        """Whole weights on every rank, where samples come from the trained model itself; other engines have theirs."""
        return self.world.whole_weights() if samples_with_trainer(self.generator) else nullcontext()

    @property
    def mismatch(self) -> Mismatch:
        """What measures the generator against the trainer and corrects for it."""
        return Mismatch(self.config.generation, samples_with_trainer(self.generator))

    def due(self, every: int, number: int) -> bool:
        """Whether step ``number`` (1, 2, …) is one of every ``every``; the first and the last always are."""
        return bool(every) and (number % every == 0 or number in (1, self.config.training.steps))
