"""What a method of somebody else's can get wrong, each in one line that names it: declarations, credit, losses."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import CodeType, FunctionType
from typing import Any

from torch import Tensor

from covrl.algorithms.base import Algorithm, Stream
from covrl.algorithms.group import outcome
from covrl.errors import UserError
from covrl.generation.base import Draw
from covrl.models.spec import ModelSpec
from covrl.records import Credit, Output, Problem, Request, Rollout, ScoredGroup

MOST_WAVES = 100
"""How often a method may ask for more rollouts of one problem within a step."""

RENAMED = {
    "scope": "credit_scope",
    "late": "credit_reads",
    "merged": "credit_reads, admission_reads and credit_scope",
}
"""Declarations of versions up to f21ff7b, and what a method declares now. Unread, ``scope`` would let a method that
needs the whole batch be credited group by group."""

HEADS, FOLLOWS = ("lm", "value"), ("frozen", "copy", "average", "reset")


def check_method(algorithm: Algorithm) -> None:
    """That a method's declarations fit each other.

    Raises:
        UserError: one does not; names the method, what is declared, and what there is.
    """
    said = f"algorithm {algorithm.name}: "
    for name in ("contexts", "scoring", "training", "streams", "group_readings"):
        if not isinstance(getattr(algorithm, name, None), tuple):
            raise UserError(f"{said}self.{name} has to be set in __init__, to a tuple")
    for old, new in RENAMED.items():
        if hasattr(algorithm, old):
            raise UserError(f"{said}{old} is no longer read; declare {new} in its place (docs/methods/README.md)")
    for spec in algorithm.models:
        _check_model(said, spec)
    for what, names in (
        ("models", [spec.name for spec in algorithm.models]),
        ("contexts", [context.name for context in algorithm.contexts]),
        ("streams", [stream.name for stream in algorithm.streams]),
    ):
        if twice := next((a for a, b in pairwise(sorted(names)) if a == b), None):
            raise UserError(f"{said}two {what} are named {twice!r}")
    models, contexts = {"policy", *(s.name for s in algorithm.models)}, {c.name for c in algorithm.contexts}
    for context in algorithm.contexts:
        _known(f"{said}the context {context.name!r} is read by the model", context.model, models)
    for reading in (*algorithm.scoring, *algorithm.training):
        for name in reading.contexts:
            _known(f"{said}a reading of the span {reading.span!r} is in the context", name, contexts)
    for reading in algorithm.group_readings:
        _known(f"{said}the group reading {reading.output!r} is in the context", reading.context, contexts)
    for stream in algorithm.streams:
        spans = {reading.span for reading in algorithm.training}
        _known(f"{said}the stream {stream.name!r} is on the span", stream.span, spans)
    for name in ("credit_reads", "admission_reads"):
        declared = getattr(algorithm, name)
        if declared != "all" and not isinstance(declared, tuple):
            raise UserError(f"{said}{name} is {declared!r}; expected 'all' or a tuple of models' names")
        for model in () if declared == "all" else declared:
            _known(f"{said}{name} names the model", model, models)
    _known(f"{said}credit_scope is", algorithm.credit_scope, {"group", "batch"})
    _known(f"{said}samples is", algorithm.samples, {"thought", "response"})
    if not algorithm.verified and (asks := _asks_for_outcomes(type(algorithm))):
        raise UserError(
            f"{said}{asks} calls outcome(), but verified is False, so no rollout gets a verdict and nothing would be "
            "trained; set verified = True"
        )


def _asks_for_outcomes(cls: type[Algorithm]) -> str | None:
    """The name of a function of the class that calls :func:`covrl.algorithms.group.outcome`; None for none.

    A class whose ``__init__`` speaks of ``verified`` decides by its settings, and is left alone.
    """
    own = dict(inspect.getmembers(cls, inspect.isfunction))
    if any("verified" in part.__dict__["__init__"].__code__.co_names for part in cls.__mro__ if _begins(part)):
        return None
    return next((name for name, function in own.items() if _calls(function, outcome)), None)


def _begins(cls: type) -> bool:
    return inspect.isfunction(cls.__dict__.get("__init__"))


def _calls(function: FunctionType, called: FunctionType) -> bool:
    """Whether the code of a function, or of one of its module that it names, names ``called`` as a global."""
    waiting, seen = [function.__code__], set()
    while waiting:
        code = waiting.pop()
        if code in seen:
            continue
        seen.add(code)
        globals_read = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
        named = [function.__globals__.get(name) for name in globals_read]
        if any(value is called for value in named):
            return True
        waiting += [part for part in code.co_consts if isinstance(part, CodeType)]  # lambdas, comprehensions
        waiting += [v.__code__ for v in named if inspect.isfunction(v) and v.__module__ == function.__module__]
    return False


def _check_model(said: str, spec: ModelSpec) -> None:
    where = f"{said}the model {spec.name!r}: "
    _known(f"{where}head is", spec.head, set(HEADS))
    _known(f"{where}follows is", spec.follows, set(FOLLOWS))
    if not spec.rate > 0:
        raise UserError(f"{where}rate is {spec.rate!r}; it multiplies the learning rate and has to be above 0")
    if spec.learning_rate is not None and not (spec.learning_rate > 0 and spec.rate == 1.0):
        raise UserError(
            f"{where}learning_rate is {spec.learning_rate!r} and rate {spec.rate!r}; learning_rate has to be above 0, "
            "and rate multiplies the policy's: give one of the two"
        )
    if spec.name == "policy":
        raise UserError(f"{where}policy is the model that is trained; a model beside it needs another name")
    if spec.trainable != (spec.head == "value"):
        raise UserError(
            f"{where}trainable and head = 'value' go together: what is trained beside the policy is a critic"
        )
    if spec.on_trunk and spec.head != "value":
        raise UserError(f"{where}on_trunk is for head = 'value'")
    if spec.trainable and spec.follows != "frozen":
        raise UserError(f"{where}a trainable model follows nothing; leave follows out")


def _known(said: str, name: Any, known: set[str]) -> None:
    if name not in known:
        raise UserError(f"{said} {name!r}; there is {', '.join(sorted(known)) or 'none'}")


def planned(algorithm: Algorithm, problem: Problem, history: Sequence[Rollout], draw: Draw, wave: int) -> list[Request]:
    """What the method's ``plan`` asks for in this wave of requests.

    Raises:
        UserError: a request cannot be made, or does not fit those before it; or the plan comes to no end.
    """
    said = f"algorithm {algorithm.name}: plan of problem {problem.id}: "
    if wave >= MOST_WAVES:
        raise UserError(f"{said}asks for more after {wave} waves of requests; it has to return none at its end")
    try:
        requests = algorithm.plan(problem, history, draw)
    except ValueError as error:
        raise UserError(f"{said}{error}") from error
    if not isinstance(requests, Sequence) or not all(isinstance(request, Request) for request in requests):
        raise UserError(f"{said}gave {type(requests).__name__}; expected a list of Request")
    taken = {rollout.request.index for rollout in history}
    for request in requests:
        if request.problem_id != problem.id:
            raise UserError(f"{said}request {request.index} is of problem {request.problem_id}")
        if request.index in taken:
            raise UserError(f"{said}two requests have the index {request.index}; they would sample the same tokens")
        taken.add(request.index)
    for request in requests:
        if request.parent is not None and request.parent not in taken:
            raise UserError(f"{said}request {request.index} has the parent {request.parent}, which is no rollout of it")
    return list(requests)


def check_credit_shapes(algorithm: Algorithm, groups: Sequence[ScoredGroup], credits: Any) -> None:
    """That ``credit`` gave one :class:`Credit` a rollout, each weight ``[T]`` or ``[A]`` for its stream's span.

    Raises:
        UserError: it did not; names the method, problem, rollout and stream.
    """
    said = f"algorithm {algorithm.name}: credit "
    if not isinstance(credits, Sequence) or len(credits) != len(groups):
        raise UserError(
            f"{said}gave {_count(credits)} for {len(groups)} groups; it has to give a list for each, in order"
        )
    streams = {stream.name: stream for stream in algorithm.streams}
    for group, row in zip(groups, credits, strict=True):
        if not isinstance(row, Sequence) or len(row) != len(group.rollouts):
            raise UserError(
                f"{said}gave {_count(row)} for the {len(group.rollouts)} rollouts of problem {group.problem.id}; "
                "expected a Credit for each, in order"
            )
        for rollout, scores, own in zip(group.rollouts, group.scores, row, strict=True):
            where = f"{said}of problem {group.problem.id}, rollout {rollout.request.index}: "
            if not isinstance(own, Credit):
                raise UserError(f"{where}expected a Credit, found {type(own).__name__}")
            lengths = {output.span: len(values) for output, values in scores.values.items()}
            lengths["trace"] = len(rollout.trace_ids)
            _check_credit(where, own, streams, lengths)


def _check_credit(where: str, own: Credit, streams: Mapping[str, Stream], lengths: Mapping[str, int]) -> None:
    for name, weight in own.weights.items():
        _known(f"{where}a weight for the stream", name, set(streams))
        _check_length(f"{where}the weight of {name}", weight, lengths.get(streams[name].span))
    for output, values in own.constants.items():
        if not isinstance(output, Output):
            raise UserError(f"{where}constants are named by Output(span, name), found {output!r}")
        _check_length(f"{where}the constant {output.span}/{output.name}", values, lengths.get(output.span))
    for name, value in (("reward", own.reward), ("advantage", own.advantage)):
        if value is not None and not isinstance(value, int | float):
            raise UserError(f"{where}{name} has to be a float or None, found {type(value).__name__}")


def _check_length(said: str, values: Any, length: int | None) -> None:
    found = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if not isinstance(values, Tensor) or values.ndim != 1 or (length is not None and len(values) != length):
        expected = "[its tokens]" if length is None else f"[{length}]"
        raise UserError(f"{said} is {found}; expected a tensor {expected}, a number for each token that was read")


def _count(found: Any) -> str:
    return f"{len(found)} items" if isinstance(found, Sequence) else type(found).__name__


def check_losses(algorithm: Algorithm, losses: Any, weights: Mapping[str, Tensor]) -> None:
    """That ``loss`` gave each stream's loss of each token, ``[N]``.

    Raises:
        UserError: it did not; names the method and the stream.
    """
    said = f"algorithm {algorithm.name}: loss "
    if not isinstance(losses, Mapping):
        raise UserError(f"{said}gave {type(losses).__name__}; expected a dict from stream to a tensor [N]")
    for name, weight in weights.items():
        if name not in losses:
            raise UserError(f"{said}gave nothing for the stream {name!r}; it gave {', '.join(map(str, losses))}")
        found = losses[name]
        if not isinstance(found, Tensor) or found.shape != weight.shape:
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(
                f"{said}of {name} is {shape}; expected {list(weight.shape)}, one number a token before its weight"
            )


def check_learns(algorithm: Algorithm, terms: Mapping[str, Tensor]) -> None:
    """That each stream's part of the loss, where it is not 0, has a gradient.

    Raises:
        UserError: one has none; names the method and the stream.
    """
    for name, term in terms.items():
        if not term.requires_grad and float(term) != 0.0:
            raise UserError(
                f"algorithm {algorithm.name}: loss of {name} has no gradient: it depends on tokens.old and constants "
                "alone; use tokens.new"
            )
