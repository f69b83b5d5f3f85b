"""Laying rows out in batches, and reading per-token outputs from them.

A unit (here: all contexts of one trace) is never split over packs, as the loss couples its rows. Units of one problem
share their prompts, so they go into one pack as far as it holds them, and packs are filled longest problem first, so
that their rows are of like length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from covrl.config import TrainingConfig
from covrl.models.projection import Projection
from covrl.records import Output, Problem, Rollout, Row, Scores
from covrl.scoring.head import Head, apply_head

if TYPE_CHECKING:  # transformers takes seconds to import, and listing the methods needs none of it
    from covrl.models.model import LanguageModel
    from covrl.models.shared import Place

Ids = tuple[int, ...]


class Context(NamedTuple):
    """One model reading a trace under one prompt.

    Example:
        >>> Context("posterior", render=prompts.posterior_row)

    ``render`` returns None for a rollout that this context has nothing to read of.
    """

    name: str
    render: Callable[[Problem, Rollout], Row | None]
    model: str = "policy"


class Reading(NamedTuple):
    """A head function on one span of the contexts whose logits it needs side by side.

    Example:
        >>> Reading("trace", ("prior", "posterior"), composite, outputs=("prior", "posterior", "kl"))

    The outputs are stored as ``Output(span, name)``. Units whose rows lack the span (an invalid trace has no
    answer) are left out of the reading.
    """

    span: str
    contexts: tuple[str, ...]
    head: Head
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unit:
    """The rows of one trace, by context, and its place in the caller's list."""

    index: int
    rows: Mapping[str, Row]

    @property
    def longest(self) -> int:
        return max((len(row.ids) for row in self.rows.values()), default=0)

    @property
    def prompts(self) -> tuple[Ids, ...]:
        """What its rows begin with, which the traces of one problem have in common."""
        return tuple(row.ids[: row.prompt] for row in self.rows.values())

    @property
    def tokens(self) -> int:
        return sum(len(row.ids) for row in self.rows.values())

    def has(self, contexts: Sequence[str], span: str) -> bool:
        """Whether the span is there in each of these contexts."""
        return all(c in self.rows and span in self.rows[c].spans for c in contexts)


TOKENS = 2048
"""Padded tokens of a pass where they are to be chosen and nothing has chosen them (yet)."""


LEAST = 256
"""Tokens of a pass below which it is not parted for two at once, as each adds to every parameter's gradient."""

LOGITS = 64
"""``training.logits_mb_per_chunk`` where it is to be chosen and nothing has chosen it (yet)."""


@dataclass(frozen=True, slots=True)
class PassLimits:
    """Bounds on one forward and backward pass: padded tokens, and bytes of logits held at once."""

    tokens: int
    logits_bytes: int

    @classmethod
    def of(cls, training: TrainingConfig) -> PassLimits:
        """Those that are set; :mod:`covrl.training.fit` finds tokens that fit the machine."""
        tokens = TOKENS if training.tokens_per_pass == "auto" else training.tokens_per_pass
        logits = LOGITS if training.logits_mb_per_chunk == "auto" else training.logits_mb_per_chunk
        return cls(tokens, logits << 20)


def make_unit(
    index: int, contexts: Sequence[Context], readings: Sequence[Reading], problem: Problem, rollout: Rollout
) -> Unit:
    """The rows of one trace in the contexts that ``readings`` use; none of a rollout that is not scored."""
    if not rollout.request.scored:
        return Unit(index, {})
    used = {name for reading in readings for name in reading.contexts}
    rows = {c.name: c.render(problem, rollout) for c in contexts if c.name in used}
    return Unit(index, {name: row for name, row in rows.items() if row is not None})


def make_packs(units: Sequence[Unit], tokens_per_pass: int) -> Iterator[list[Unit]]:
    """Groups of units whose padded rows hold at most ``tokens_per_pass`` tokens; a larger unit comes alone."""
    families: dict[tuple[Ids, ...], list[Unit]] = {}
    for unit in units:
        families.setdefault(unit.prompts, []).append(unit)
    order = sorted(families.values(), key=lambda family: (-max(u.longest for u in family), family[0].index))
    pack: list[Unit] = []
    rows = longest = 0
    for unit in (unit for family in order for unit in sorted(family, key=lambda u: (-u.longest, u.index))):
        if pack and (rows + len(unit.rows)) * max(longest, unit.longest) > tokens_per_pass:
            yield pack
            pack, rows, longest = [], 0, 0
        pack.append(unit)
        rows += len(unit.rows)
        longest = max(longest, unit.longest)
    if pack:
        yield pack


def flat_tokens(units: Sequence[Unit]) -> int:
    """Tokens of the units' rows end to end, each prompt once."""
    prompts = {prompt for unit in units for prompt in unit.prompts}
    return sum(map(len, prompts)) + sum(len(row.ids) - row.prompt for unit in units for row in unit.rows.values())


def even_packs(units: Sequence[Unit], most: int, at_once: int) -> list[list[Unit]]:
    """Packs for ``at_once`` passes at a time: about equal, of at most ``most`` tokens end to end, a larger unit alone.

    Units that share their prompts are parted only where they are more than a pack, as each part reads these again.
    """
    families: dict[tuple[Ids, ...], list[Unit]] = {}
    for unit in units:
        families.setdefault(unit.prompts, []).append(unit)
    total = sum(map(flat_tokens, families.values()))
    size = min(most, max(LEAST, -(-total // at_once)))
    parts = [part for family in families.values() for part in _parts(family, size)]
    shares = even_shares([flat_tokens(part) for part in parts], most, at_once)
    return [[unit for i in share for unit in parts[i]] for share in shares]


def _parts(family: Sequence[Unit], size: int) -> list[list[Unit]]:
    """Units with the same prompts in a few about equal parts, each of about ``size`` tokens at most."""
    count = min(-(-flat_tokens(family) // size), len(family))
    longest_first = sorted(family, key=lambda unit: (-unit.longest, unit.index))
    return [longest_first[i::count] for i in range(count)]


def even_shares(sizes: Sequence[int], most: int, at_once: int) -> list[list[int]]:
    """Items of these ``sizes`` in about equal shares of at most ``most``, a multiple of ``at_once`` in number if many.

    The largest item comes first, each into the share that has least; one that is larger than ``most`` is alone.

    Example:
        >>> even_shares([500, 400, 300, 200], most=800, at_once=2)
        [[0, 3], [1, 2]]
    """
    total = sum(sizes)
    count = at_once if total >= at_once * LEAST else 1
    while True:
        shares: list[list[int]] = [[] for _ in range(count)]
        filled = [0] * count
        for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
            least = filled.index(min(filled))
            shares[least].append(item)
            filled[least] += sizes[item]
        if max(filled) <= most or count >= len(sizes):
            return [share for share in shares if share]
        count += at_once if count > 1 else at_once - 1


def padded_tokens(units: Sequence[Unit]) -> int:
    """Tokens of the units' rows side by side, as long as the longest."""
    return sum(len(unit.rows) for unit in units) * max((unit.longest for unit in units), default=0)


@dataclass(frozen=True, slots=True)
class Tokens:
    """A reading's tokens of all units of a pack, one after the other: ``[N]`` each.

    ``owner[span]`` is the index of the unit that a token belongs to; ``values[Output(span, name)]`` what was read.
    """

    values: Mapping[Output, Tensor]
    owner: Mapping[str, Tensor]
    lengths: Mapping[str, Sequence[tuple[int, int]]]  # span -> (unit index, tokens), in order


class Trunk:
    """Hidden states of a pack's rows, each model's trunk run once over the rows of its contexts.

    A trace that two contexts of one trunk (a policy and a value head on it) show in the same row goes through once.
    """

    def __init__(self, models: Mapping[str, LanguageModel], contexts: Sequence[Context], pack: Sequence[Unit]) -> None:
        self.model_of = {context.name: context.model for context in contexts}
        self.trunk_of = {name: id(models[model].trunk_of) for name, model in self.model_of.items()}
        self.flat: dict[int, Tensor] = {}
        self.places: dict[tuple[int, str], Place] = {}
        for model in {id(m.trunk_of): m.trunk_of for m in (models[name] for name in self.model_of.values())}.values():
            mine = [
                (unit, c.name)
                for unit in pack
                for c in contexts
                if self.trunk_of[c.name] == id(model) and c.name in unit.rows
            ]
            rows = {(u.index, u.rows[c].ids, u.rows[c].prompt): None for u, c in mine}
            if not rows:
                continue
            self.flat[id(model)], places = model.states([(ids, prompt) for _, ids, prompt in rows])
            at = dict(zip(rows, places, strict=True))
            self.places |= {(u.index, c): at[u.index, u.rows[c].ids, u.rows[c].prompt] for u, c in mine}

    def before(self, units: Sequence[Unit], context: str, span: str) -> Tensor:
        """Hidden states ``[N, D]`` that predict the span's tokens: those one position before each."""
        flat = self.flat[self.trunk_of[context]]
        places = [self.places[u.index, context](i - 1) for u in units for i in range(*u.rows[context].spans[span])]
        return flat[torch.tensor(places, dtype=torch.long, device=flat.device)]


def read(
    models: Mapping[str, LanguageModel],
    contexts: Sequence[Context],
    readings: Sequence[Reading],
    pack: Sequence[Unit],
    logits_bytes: int,
) -> Tokens:
    """Run each model once over the pack's rows and apply every reading's head in chunks."""
    trunk = Trunk(models, contexts, pack)
    read_by = {trunk.model_of[context] for reading in readings for context in reading.contexts}
    projections = {name: models[name].projection() for name in read_by}
    values: dict[Output, Tensor] = {}
    owner: dict[str, Tensor] = {}
    lengths: dict[str, list[tuple[int, int]]] = {}
    for span, coupled, head, names in readings:
        units = [unit for unit in pack if unit.has(coupled, span)]
        sizes = [(unit.index, _length(unit, coupled[0], span)) for unit in units]
        assert lengths.setdefault(span, sizes) == sizes, f"span {span} is of other traces in {coupled}"
        if not units:
            model = models[trunk.model_of[coupled[0]]]
            nothing = torch.zeros(0, dtype=model.score_dtype, device=model.device)
            values |= {Output(span, name): nothing for name in names}
            owner[span] = nothing.long()
            continue
        hidden = [trunk.before(units, context, span) for context in coupled]
        targets = hidden[0].new_tensor(_targets(units, coupled, span), dtype=torch.long)
        project = [projections[trunk.model_of[context]] for context in coupled]
        chunk = max(1, logits_bytes // (4 * _vocabulary(project[0], hidden[0])))
        outputs = apply_head(head, hidden, targets, project, chunk)
        values |= {Output(span, name): out for name, out in zip(names, outputs, strict=True)}
        owner[span] = targets.new_tensor([i for i, n in lengths[span] for _ in range(n)])
    return Tokens(values, owner, lengths)


def _vocabulary(project: Projection, hidden: Tensor) -> int:
    return hidden.shape[-1] if project.weight is None else project.weight.shape[0]


def _length(unit: Unit, context: str, span: str) -> int:
    start, stop = unit.rows[context].spans[span]
    return stop - start


def _targets(units: Sequence[Unit], contexts: Sequence[str], span: str) -> list[int]:
    """The span's ids of all units, which must be the same in every context that the head couples."""
    ids = [_span_ids(u.rows[contexts[0]], span) for u in units]
    for unit, own in zip(units, ids, strict=True):
        assert all(_span_ids(unit.rows[c], span) == own for c in contexts), f"span {span} differs between contexts"
    return [token for own in ids for token in own]


def _span_ids(row: Row, span: str) -> tuple[int, ...]:
    return row.ids[row.spans[span].start : row.spans[span].stop]


def score(
    models: Mapping[str, LanguageModel],
    contexts: Sequence[Context],
    readings: Sequence[Reading],
    pairs: Sequence[tuple[Problem, Rollout]],
    tokens_per_pass: int,
    logits_bytes: int,
) -> list[Scores]:
    """Read every rollout without gradients; one :class:`Scores` per pair, in the same order."""
    units = [make_unit(i, contexts, readings, *pair) for i, pair in enumerate(pairs)]
    found: list[dict[Output, Tensor]] = [{} for _ in units]
    with torch.no_grad():
        for pack in make_packs(units, tokens_per_pass):
            tokens = read(models, contexts, readings, pack, logits_bytes)
            for output, values in tokens.values.items():
                sizes = tokens.lengths[output.span]
                parts = values.split([n for _, n in sizes])
                for (index, _), part in zip(sizes, parts, strict=True):
                    found[index][output] = part
    return [Scores(values, unit.tokens) for values, unit in zip(found, units, strict=True)]
