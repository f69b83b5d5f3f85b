"""What a method says; everything else is the loop's.

A method is one class that overrides two or three of: ``plan`` (what to sample), ``admit`` (what to keep),
``credit`` (what each token is worth), ``loss`` (what is minimised), and declares its contexts, readings and streams.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from covrl.config import Settings
from covrl.generation.base import Draw
from covrl.models.spec import ModelSpec
from covrl.prompts import Prompts
from covrl.records import Credit, Group, Output, Problem, Request, Rollout, ScoredGroup
from covrl.scoring.groups import GroupReading
from covrl.scoring.pack import Context, Reading


class Stream(NamedTuple):
    """One term of the loss: coefficient × Σ weight × per-token loss / denominator(admitted batch of all ranks).

    Example:
        >>> Stream("kl", span="trace", coefficient=1.0, denominator=trace_tokens)
    """

    name: str
    span: str
    coefficient: float
    denominator: Callable[[Sequence[ScoredGroup]], float]


class Admission(NamedTuple):
    """Groups that take part in the step, and whether the method wants the loop to sample more."""

    kept: list[ScoredGroup]
    want_more: bool = False


@dataclass(frozen=True, slots=True)
class LossTokens:
    """What ``loss`` sees of a pack: all tokens of its units one after the other.

    ``new[Output]`` ``[N]`` carry gradient, ``old[Output]`` ``[N]`` are the scores of before the update and the
    credit's constants, ``weight[stream]`` ``[N]`` the credit; ``owner[span]`` ``[N]`` says which unit a token belongs
    to, for losses that need whole sequences. ``written`` ``[N]`` says which tokens of traces the policy wrote itself
    (:attr:`covrl.records.Rollout.written`); None: all of them.
    """

    new: Mapping[Output, Tensor]
    old: Mapping[Output, Tensor]
    weight: Mapping[str, Tensor]
    owner: Mapping[str, Tensor]
    written: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Setup:
    """What a method is given when it is made.

    ``problems_per_step`` and ``rollouts_per_problem`` are the sizes that the run asks for; ``max_tokens`` is the
    longest trace or response that can be sampled. A method sees the whole batch, however many processes share the
    work: its statistics need nothing from other processes.
    """

    prompts: Prompts
    rollouts_per_problem: int
    problems_per_step: int = 1
    max_tokens: int = 2048


class Reset(NamedTuple):
    """What begins anew after a step: ``models`` become the policy, and ``optimizer`` forgets the policy's moments.

    Example:
        >>> Reset(("reference",), optimizer=True)
    """

    models: tuple[str, ...]
    optimizer: bool = False


class Algorithm(ABC):
    """Base class of all methods.

    ``paper`` and ``evidence`` say where the method comes from and how sure we are of it. ``samples`` is what generation
    stops at: the end of the thought (its answer is scored, not sampled) or of the whole response.
    ``verified`` methods take their reward from a verifier or the user's reward function. ``one_update`` says why a
    batch of rollouts serves for a single optimizer step, where it does; ``updates_wanted`` is the fewest that make
    sense, ``rollouts_wanted`` the fewest traces of a problem, where they are compared with each other. ``by_verdict``
    says why a user's reward has to be 0 or 1, where a method tells right from wrong. With ``wants_step_scores``
    rollouts have ``steps`` and ``step_scores``, from a judge or a process reward model; with ``wants_foils`` problems
    have a ``foil``, a wrong answer to show.

    ``scoring`` are the readings whose values at the old weights credit and loss use, ``training`` those that carry
    gradient. ``credit_reads`` names the models whose scores ``credit`` looks at, ``admission_reads`` those that
    ``admit`` and the denominators look at; () where rollouts alone decide. ``credit_scope`` is "group" if a group's
    credit needs only that group. The defaults are always right. What is declared lets the library save forwards
    (:mod:`covrl.training.reading_plan`); a test holds each method to it.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    evidence: ClassVar[str]
    updates_wanted: ClassVar[int] = 1
    Config: ClassVar[type[Settings]]

    verified: bool = False
    samples: Literal["thought", "response"] = "thought"
    one_update: str | None = None
    rollouts_wanted: int = 1
    by_verdict: str | None = None
    models: tuple[ModelSpec, ...] = ()
    contexts: tuple[Context, ...]
    scoring: tuple[Reading, ...]
    training: tuple[Reading, ...]
    streams: tuple[Stream, ...]
    group_readings: tuple[GroupReading, ...] = ()
    wants_step_scores: bool = False
    wants_foils: bool = False
    credit_reads: tuple[str, ...] | Literal["all"] = "all"
    admission_reads: tuple[str, ...] | Literal["all"] = "all"
    credit_scope: Literal["group", "batch"] = "batch"

    @abstractmethod
    def __init__(self, config: Any, setup: Setup) -> None: ...

    @abstractmethod
    def plan(self, problem: Problem, history: Sequence[Rollout], draw: Draw) -> list[Request]:
        """Requests to sample next for one problem; none when the group is complete.

        Called again with what came back in ``history``, so that a sampler can branch or retry.
        """

    def admit(self, groups: Sequence[ScoredGroup]) -> Admission:
        """Which groups take part. What is not admitted was never in the step. Default: all."""
        return Admission(list(groups))

    @abstractmethod
    def credit(self, groups: Sequence[ScoredGroup]) -> list[list[Credit]]:
        """One :class:`Credit` per rollout, by group. Sees all admitted groups of the step."""

    @abstractmethod
    def loss(self, tokens: LossTokens) -> dict[str, Tensor]:
        """Per-token loss of each stream, ``[N]``, before its weight: pure tensor functions."""

    def monitors(self, groups: Sequence[ScoredGroup], credits: Sequence[Sequence[Credit]]) -> dict[str, float]:
        """The method's own metrics of a step, from all sampled groups. Default: none."""
        del groups, credits
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers from step to step, as JSON can hold it. Default: nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave."""
        del state

    def after_step(self, metrics: Mapping[str, float]) -> None:
        """Change what :meth:`state_dict` has, after a step with these metrics, equal on all ranks. Default: nothing."""
        del metrics

    def reset_after(self, metrics: Mapping[str, float]) -> Reset | None:
        """What begins anew after a step with these metrics, equal on all ranks; it may change the memory.

        Called after :meth:`after_step`; the models have ``follows = "reset"``.
        """
        del metrics
        return None

    def survey_wanted(self, problems: Sequence[Problem]) -> list[Problem]:
        """Problems of which the policy as it was before its first update is to be sampled. Default: none.

        They are planned with ``draw.purpose == "survey"``, judged, and given to :meth:`take_survey`.
        """
        del problems
        return []

    def take_survey(self, groups: Sequence[Group]) -> None:
        """Remember what the survey's rollouts say; it has to be in :meth:`state_dict`."""
        del groups

    def stop_reason(self, metrics: Mapping[str, float]) -> str | None:
        """Why going on makes no sense, with advice, or None. Default: never."""
        del metrics
        return None

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """Named troubles that the step's metrics show, one sentence each. Default: none."""
        del metrics
        return []
