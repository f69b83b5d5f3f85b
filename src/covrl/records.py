"""The records that cross module borders, in the order in which one step makes them.

    Problem -> Request -> Rollout -> Group -> Row -> Scores -> Credit -> StepReport

They are plain frozen data (ids as tuples of int, no device, no model), so importing this module does not
import torch and a rollout can be written to disk or sent to another process as it is. The two exceptions
are :class:`Scores` and :class:`Credit`, which hold one small tensor per rollout and span.

Shape letters: ``T`` trace tokens, ``A`` answer tokens (the closing tag of the answer included).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Finish = Literal["closed", "length", "eos"]
"""Why sampling ended: the closing tag, the token limit, or an end-of-sequence token before the tag."""

Closing = Literal["sampled", "appended", "none"]
"""Whether the closing tag's ids are sampled trace tokens, are appended by the template, or are absent."""

Verdict = Literal["right", "wrong", "unknown"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A question and its reference answer.

    Example:
        >>> Problem(id="gsm8k/train/0", question="What is 6 x 7?", answer="42")

    ``answer`` is the one that likelihoods score; ``accepted`` lists further answers that a verifier takes.
    ``hint`` is what the posterior prompt shows; ``None`` means the answer itself. ``foil`` is a wrong answer that a
    method may show in the hint's place (:func:`covrl.problems.foils.with_foils` gives each problem one).
    ``solution`` is a worked solution where the data has one: it teaches a base the format before RL, and RL never
    sees it.
    """

    id: str
    question: str
    answer: str
    accepted: tuple[str, ...] = ()
    hint: str | None = None
    solution: str | None = None
    foil: str | None = None

    @property
    def shown(self) -> str:
        """The text that the posterior prompt shows in the place of the answer."""
        return self.answer if self.hint is None else self.hint


class Observe(NamedTuple):
    """What a request wants to know of the distribution that each of its tokens is drawn from.

    Example:
        >>> Observe(entropy=True, top_k=5)

    It comes back as :class:`Observed`. ``top_k`` is how many of the likeliest tokens; 0 means none.
    """

    entropy: bool = False
    top_k: int = 0

    @property
    def anything(self) -> bool:
        """Whether there is anything to observe."""
        return self.entropy or self.top_k > 0


NOT_OBSERVED = Observe()
"""Nothing is asked for."""


class Observed(NamedTuple):
    """What was observed of each sampled token of a trace; a field that nobody asked for is None.

    All three are of the distribution that the sampler's ``log_probs`` are of: at its temperature, and within its
    nucleus where it has one. At temperature 0, where the likeliest token is taken, they are of temperature 1.
    ``entropy`` ``[T]`` is in nats, exact over the vocabulary. ``top_ids`` and ``top_log_probs`` ``[T, k]`` are the k
    likeliest tokens, likeliest first, and their log-probs in nats.
    """

    entropy: tuple[float, ...] | None = None
    top_ids: tuple[tuple[int, ...], ...] | None = None
    top_log_probs: tuple[tuple[float, ...], ...] | None = None

    def first(self, tokens: int) -> Observed:
        """What was observed of the first so many sampled tokens."""
        return Observed(
            None if self.entropy is None else self.entropy[:tokens],
            None if self.top_ids is None else self.top_ids[:tokens],
            None if self.top_log_probs is None else self.top_log_probs[:tokens],
        )


NOTHING_OBSERVED = Observed()
"""Nothing was asked for."""


@dataclass(frozen=True, slots=True)
class Request:
    """One trace to sample. Every engine honours every field, or refuses the request before it samples anything.

    Example:
        >>> Request(problem_id="gsm8k/train/0", index=3, prompt_ids=(1, 15, 8), source="prior")

    ``index`` is the place in the problem's group; with (run seed, step, purpose, problem id) it fixes every random
    number of the trace. ``prefix_ids`` are the trace's first tokens, which are given and carry no loss: texts and stop
    rules see them, and the first sampled token is at position ``len(prefix_ids)`` of the trace. A prefix that ends
    with the stop text or an end-of-sequence token is a whole trace, of which nothing is sampled; one that goes on after
    the stop text is refused.
    ``max_tokens`` is the most tokens to sample here, the prefix not counted; None means as many as the call allows.
    ``parent`` is the ``index`` of the rollout that this one branched from, for the report.
    ``trains=False`` marks an auxiliary rollout, ``scored=False`` one that no model reads afterwards: its
    :class:`Scores` are empty. ``observe`` asks for quantities of the sampling distribution.

    Raises:
        ValueError: a number cannot be used, or a rollout would train without being scored.
    """

    problem_id: str
    index: int
    prompt_ids: tuple[int, ...]
    source: str
    prefix_ids: tuple[int, ...] = ()
    max_tokens: int | None = None
    parent: int | None = None
    trains: bool = True
    scored: bool = True
    observe: Observe = NOT_OBSERVED

    def __post_init__(self) -> None:
        name = f"request {self.index} of problem {self.problem_id}"
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"{name}: max_tokens is {self.max_tokens}; it has to be at least 1, or None")
        if self.observe.top_k < 0:
            raise ValueError(f"{name}: observe.top_k is {self.observe.top_k}; it has to be at least 0")
        if self.parent is not None and (self.parent < 0 or self.parent == self.index):
            raise ValueError(f"{name}: parent is {self.parent}; it has to be the index of another rollout, or None")
        if self.trains and not self.scored:
            raise ValueError(f"{name}: scored=False goes with trains=False alone, as a trace that trains is read")

    def answer_after(self, prompt_ids: tuple[int, ...]) -> Request:
        """The request for an answer after a trace of this one: what holds for the trace alone is left out."""
        return Request(self.problem_id, self.index, prompt_ids, self.source, trains=self.trains, scored=self.scored)


@dataclass(frozen=True, slots=True)
class Rollout:
    """A sampled (or given) trace.

    Example:
        >>> Rollout(request, trace_ids=(7, 7, 2), log_probs=(-0.1, -1.2, -0.3), finish="closed",
        ...         closing="sampled", text="6 x 7 = 42</think>", version=12)

    ``trace_ids`` are the tokens that were sampled after ``request.prefix_ids``: ``[T]`` ids, never tokenised again,
    the only ones that carry loss. ``text`` is the whole trace, prefix included. ``log_probs`` are the
    sampler's own (nats, at its temperature); training uses the trainer's, these serve to compare the two.
    ``version`` counts the weight updates the sampler had seen. ``correct`` is a verifier's verdict and ``reward`` the
    weighted sum of the user's reward functions; each is None where there is none. ``rewards`` has each function's own
    value under its name, before its weight. ``observed`` is what the request asked for. ``steps`` are spans of
    ``trace_ids`` that follow each other without a gap, and ``step_scores`` what a judge or a process reward model gave
    each; both are empty where nobody asked.

    ``written`` ``[T]`` tells the tokens that the policy wrote from those that were put into the trace on the way (a
    tool's output, another's turn): the latter are read and carry no loss, and what their ``log_probs`` are does not
    matter. None means that the policy wrote all of them. Engines sample in one go and leave it at None;
    :func:`covrl.objectives.written_only` applies it.

    Raises:
        ValueError: ``written`` or what was observed is not of as many tokens as were sampled.
    """

    request: Request
    trace_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    finish: Finish
    closing: Closing
    text: str
    version: int = 0
    correct: Verdict | None = None
    reward: float | None = None
    written: tuple[bool, ...] | None = None
    observed: Observed = NOTHING_OBSERVED
    rewards: Mapping[str, float] = field(default_factory=dict)
    steps: tuple[Span, ...] = ()
    step_scores: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        parts = {"written": self.written} | {f"observed.{n}": v for n, v in self.observed._asdict().items()}
        for name, part in parts.items():
            if part is not None and len(part) != len(self.trace_ids):
                raise ValueError(
                    f"rollout {self.request.index} of problem {self.request.problem_id}: {name} is of {len(part)} "
                    f"tokens, and its trace_ids are {len(self.trace_ids)}"
                )

    @property
    def valid(self) -> bool:
        """Whether the trace ended with the closing tag, so that an answer can follow it."""
        return self.finish == "closed"

    @property
    def source(self) -> str:
        return self.request.source

    @property
    def whole_ids(self) -> tuple[int, ...]:
        """All tokens of the trace: the given prefix, then the sampled ones."""
        return self.request.prefix_ids + self.trace_ids

    @property
    def loss_tokens(self) -> int:
        """How many of the sampled tokens carry loss: those that the policy wrote."""
        return len(self.trace_ids) if self.written is None else sum(self.written)

    def first(self, tokens: int) -> Rollout:
        """The rollout with its first so many sampled tokens alone; its ending and text are left as they are."""
        return replace(
            self,
            trace_ids=self.trace_ids[:tokens],
            log_probs=self.log_probs[:tokens],
            written=None if self.written is None else self.written[:tokens],
            observed=self.observed.first(tokens),
        )

    def branch(self, tokens: int, index: int, max_tokens: int | None = None) -> Request:
        """The request for another rollout that goes on from the first so many tokens of this trace, prefix included.

        Example:
            >>> rollout.branch(tokens=12, index=8)      # in a method's plan: rollout 8 of the group

        Raises:
            ValueError: the trace has not so many tokens, or ``index`` is this rollout's own.
        """
        if not 0 <= tokens <= len(self.whole_ids):
            raise ValueError(
                f"rollout {self.request.index} of problem {self.request.problem_id}: a branch after {tokens} tokens of "
                f"its trace, which has {len(self.whole_ids)}"
            )
        prefix = self.whole_ids[:tokens]
        return replace(self.request, index=index, prefix_ids=prefix, parent=self.request.index, max_tokens=max_tokens)


@dataclass(frozen=True, slots=True)
class Group:
    """All rollouts of one problem in one step; group statistics always run over the whole of it."""

    problem: Problem
    rollouts: tuple[Rollout, ...]


class Span(NamedTuple):
    """A half-open range of token positions in a row."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids that go through a model in one piece, and what the parts are.

    Example:
        >>> Row(ids=(1, 15, 8, 7, 7, 2, 30, 4, 31), spans={"trace": Span(3, 6), "answer": Span(7, 9)}, prompt=3)

    The first ``prompt`` ids are those that other rows of the problem begin with too; they may be read once for all.
    """

    ids: tuple[int, ...]
    spans: Mapping[str, Span]
    prompt: int = 0


class Output(NamedTuple):
    """Names one per-token quantity: what a head function returned for a span.

    Example:
        >>> Output("trace", "posterior")   # log q(z_t | z_<t, x, y), one number a trace token
    """

    span: str
    name: str


@dataclass(frozen=True, slots=True)
class Scores:
    """What the scoring pass read for one rollout: ``values[Output("trace", "prior")]`` is ``[T]``, nats.

    ``tokens`` is how many its rows had together.
    """

    values: Mapping[Output, Tensor]
    tokens: int = 0

    def __getitem__(self, key: tuple[str, str]) -> Tensor:
        return self.values[Output(*key)]

    def __contains__(self, key: tuple[str, str]) -> bool:
        return Output(*key) in self.values


@dataclass(frozen=True, slots=True)
class Credit:
    """What one rollout is worth.

    ``weights[stream]`` is ``[T]`` or ``[A]``, by the stream's span: the constant that multiplies the stream's
    per-token loss. A stream that is absent weighs nothing. ``constants`` are further per-token numbers that the
    loss needs and that do not change with the weights (the log-prob under the trace's source, a target value).
    ``reward`` and ``advantage`` are plain numbers, for the report. Weights and constants may be on any device and of
    any floating dtype: they are brought to where the losses are.
    """

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    constants: Mapping[Output, Tensor] = field(default_factory=dict)
    reward: float | None = None
    advantage: float | None = None


@dataclass(frozen=True, slots=True)
class OffendingRollout:
    """A trace with everything that its loss is made of; ``credit`` is None before credit was given."""

    problem: Problem
    rollout: Rollout
    scores: Scores
    credit: Credit | None = None

    @property
    def name(self) -> str:
        """The trace as messages name it."""
        return f"problem {self.problem.id}, rollout {self.rollout.request.index} ({self.rollout.source})"


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """A group with the scores of each of its rollouts, in the same order."""

    problem: Problem
    rollouts: tuple[Rollout, ...]
    scores: tuple[Scores, ...]


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one step did; reporters get it and nothing else.

    Example:
        >>> StepReport(step=4, metrics={"reward/prior": -2.1, "time/step": 0.9}, warnings=(), groups=())

    ``metrics`` are plain numbers named ``family/name`` (rewards and KL in nats, lengths in tokens, times in
    seconds). ``groups`` is filled only on the steps whose traces are to be shown.
    """

    step: int
    metrics: Mapping[str, float]
    warnings: tuple[str, ...] = ()
    groups: Sequence[TraceGroup] = ()


class TokenView(NamedTuple):
    """One token of a trace with its log-probs (nats) under the two prompts, as the report shows it."""

    text: str
    prior: float | None
    posterior: float | None


@dataclass(frozen=True, slots=True)
class TraceView:
    """One trace as a person reads it in the report; ``tokens`` may be left out.

    ``index`` is the rollout's place in its group, ``parent`` that of the rollout that it branched from.
    ``rewards`` is what each of the user's reward functions gave, by its name.
    """

    source: str
    text: str
    finish: Finish
    reward: float | None
    advantage: float | None
    kl: float | None
    correct: Verdict | None = None
    tokens: tuple[TokenView, ...] = ()
    index: int | None = None
    parent: int | None = None
    rewards: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TraceGroup:
    """All traces of one problem at one step, for the report."""

    problem: Problem
    traces: tuple[TraceView, ...]


Grader = Callable[[Sequence[tuple[Problem, str]]], Sequence[Verdict]]
"""Pairs (problem, what was said between the answer tags) -> a verdict each."""

TraceLabel = Callable[[Problem, Rollout], str]
"""What a trace does, where a task can tell: "sound", or the name of what is wrong. For reports, never for training."""

SOUND = "sound"
"""The label of a trace that does what it should."""
