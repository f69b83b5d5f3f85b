"""Proof at load that the fast paths of scoring compute what the model's own forward computes.

A path is compared with the model's own forward on each row alone, in two stages.

1. **Logic**, in float32 without autocast, on a copy with few layers of each kind (:func:`small_copy`). The largest
   difference of a token's log-prob must be within 10 times the noise that the model's own forward shows. A wrong mask,
   position or window is far outside of that, and rounding in bfloat16 cannot hide it.
2. **Numerics**, in the dtype that training computes in, on the whole model. The mean difference is compared with what a
   change of the attention implementation does. Above 3 times as much it is noted, above 10 times the path is given up.

Rows are ordinary text. Special tokens have extreme activations in pretrained models: there even the model's own
forward differs by tens of nats between two batch shapes in bfloat16. Rows reach past each attention window, chunk and
change of the rotary embedding, or to the longest row that the run can make, whichever is shorter.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from covrl.errors import UserError
from covrl.models.flex import can_differentiate, trouble_with_flex
from covrl.models.lean import is_lean
from covrl.models.model import LanguageModel, Paths
from covrl.models.shared import Call, lay_out
from covrl.models.text import rope_switches, text_config, trunk

Ids = tuple[int, ...]
Row = tuple[Ids, int]
"""Ids, and how many of them are a prompt that other rows may have too."""

TEXT = """The ferry to the island leaves at seven in the morning and takes forty minutes when the sea is calm. Maria
bought two tickets for 18 euros and paid with a note of 50, so she got 32 back. On board she read a letter from her
uncle, who repairs clocks in a small town near the border. He wrote that the oldest one, made in 1742, had stopped
again, because a spring was worn and nobody makes such springs any more. "If we file a new one by hand," he asked,
"how long will it last?" She thought about the steel, the weight of the pendulum and the damp air of the tower. A
harder alloy would break, a softer one would bend; therefore the choice was between two kinds that she knew from the
workshop. When the boat arrived, rain was falling, and the three other passengers ran to the bus. Let the force be k
times the length: twice the length gives twice the force, but four times the stored energy. She wrote this down for him,
folded the paper, and walked along the harbour until she found a letter box, a bakery and, at last, a dry place to sit.
"""

PLAIN_REACH = 288
"""Tokens of the longest proof row where the model has no window or switch: more than the 256 that kernels tile by."""

PAST = 32
"""Tokens by which rows reach past a window or a switch."""

SHORT_REACH = 40
"""Tokens of the longest row on which noise is measured and numerics are compared."""

CONTINUATION = 64
"""Most tokens of a proof row after its prompt; these are compared."""

CONTINUED = 7
"""Tokens that are appended to a row to see how much its own log-probs depend on the batch's shape."""

LEAST_NOISE = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""Nats; smallest noise that is assumed, by compute dtype. 1e-5 for wider ones: norms and rotations are computed in
float32 whatever the weights are."""

TRUSTED = 10.0
"""Differences up to so many times the noise count as rounding."""

NOTED = 3.0
"""Mean differences in the compute dtype above so many times the noise are said."""

SAME_FUNCTION = 1e-3
"""Nats in float32 up to which a difference counts as noise. Another attention implementation may ignore what the model
asks for (a soft cap, sinks), and a model may compute something else for longer rows."""


OURS = ("covrl.models.compute", "covrl.models.lean")
"""Where the forwards are that a copy is made without."""


def ordinary_text(tokenizer: Any, vocabulary: int) -> Ids:
    """Ids of ordinary text; of a tokenizer that cannot write it, ids of ordinary tokens in a mixed order.

    ``vocabulary`` is the number of rows of the model's embedding. Special tokens and ids beyond it are left out.
    """
    special = set(tokenizer.all_special_ids)
    written = tokenizer(TEXT, add_special_tokens=False, verbose=False).input_ids  # it may be longer than a context
    ids = [i for i in written if i < vocabulary and i not in special]
    if len(set(ids)) >= 16:
        return tuple(ids)
    added = set(tokenizer.added_tokens_decoder)
    ordinary = [i for i in range(min(len(tokenizer), vocabulary)) if i not in added and i not in special]
    ordinary = ordinary or list(range(vocabulary))
    order = torch.randperm(len(ordinary), generator=torch.Generator().manual_seed(0)).tolist()
    return tuple(ordinary[i] for i in order[:512])


def switches(config: Any) -> set[int]:
    """Row lengths at which a model begins to compute something else: windows, chunks, changes of rotary frequencies.

    Example:
        >>> switches(MistralConfig(sliding_window=4096))
        {4096}
    """
    text = text_config(config)
    found = {getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")}
    return {int(length) for length in found if length} | rope_switches(config)


def reach_of(model: LanguageModel, longest: int) -> int:
    """Tokens of the longest proof row, where a run's longest row has ``longest``."""
    past = [length + PAST for length in switches(model.model.config) if length < longest]
    wanted = max(min(max(PLAIN_REACH, *past, 0), longest), 12)
    return min(wanted, (model.context_length or wanted + CONTINUED) - CONTINUED)


def proof_rows(text: Ids, reach: int) -> list[Row]:
    """Five rows of one prompt that are up to ``reach`` tokens long, two of another, and one without a prompt."""
    own = min(CONTINUATION, max(reach // 3, 1))
    prompt, other = words(text, 0, reach - own), words(text, 40, max(min(17, reach // 3), 1))
    tails = [words(text, 90 + 31 * i, max(own - 3 * i, 1)) for i in range(5)]
    rows = [((*prompt, *tail), len(prompt)) for tail in tails]
    rows += [((*other, *tail[: own // 2 + 1]), len(other)) for tail in tails[1:3]]
    return [*rows, (words(text, 7, min(9, reach)), 0)]


def words(text: Ids, start: int, count: int) -> Ids:
    """``count`` ids of the text from ``start`` on; it is read again from its beginning at its end."""
    return tuple(islice(cycle(text), start, start + count))


def own_log_probs(model: Any, rows: Sequence[Row]) -> list[Tensor]:
    """Log-probs ``[T]`` of each row's tokens after its prompt, nats, by the model's own forward on rows of one length.

    ``rows`` are of one length, so nothing is padded.
    """
    first = [max(prompt, 1) for _, prompt in rows]
    length = len(rows[0][0])
    keep = length - min(first) + 1
    some = {"logits_to_keep": keep} if "logits_to_keep" in inspect.signature(type(model).forward).parameters else {}
    ids = torch.tensor([ids for ids, _ in rows], device=next(model.parameters()).device)
    logits = model(input_ids=ids, use_cache=False, **some).logits
    return [_taken(one[i - length - 1 : -1], row[i:]) for one, (row, _), i in zip(logits, rows, first, strict=True)]


def path_log_probs(model: LanguageModel, rows: Sequence[Row]) -> list[Tensor]:
    """The same of all rows at once, on the model's paths."""
    flat, places = model.states(rows)
    projection, found = model.projection(), []
    for (ids, prompt), place in zip(rows, places, strict=True):
        first = max(prompt, 1)
        at = torch.tensor([place(i - 1) for i in range(first, len(ids))], device=flat.device)
        found.append(_taken(projection(flat[at]) * model.temperature, ids[first:]))
    return found


def _taken(logits: Tensor, ids: Ids) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(wide, -1).gather(1, torch.tensor(ids, device=logits.device)[:, None])[:, 0]


def dtype_name(dtype: torch.dtype) -> str:
    """Such as bfloat16."""
    return str(dtype).removeprefix("torch.")


def apart(found: Sequence[Tensor], expected: Sequence[Tensor]) -> Tensor:
    """Absolute differences ``[N]`` of all rows' tokens; NaN where either is."""
    return torch.cat([(a - b).abs() for a, b in zip(found, expected, strict=True)])


@dataclass(frozen=True, slots=True)
class Stage:
    """One model to compare paths on, and how much of a difference is rounding.

    ``noise`` is in nats: the largest (``mean`` false) or the mean difference of a token's log-prob that the model's own
    forward shows. ``dtype`` is what it computes in.
    """

    model: LanguageModel
    noise: float
    mean: bool
    dtype: torch.dtype

    def gap(self, found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
        """Mean or largest difference, nats; NaN if any is."""
        differences = apart(found, expected)
        return float(differences.mean() if self.mean else differences.max())

    def complaint(self, gap: float) -> str | None:
        """What is wrong with this difference, or None where rounding explains it."""
        if gap <= TRUSTED * self.noise:
            return None
        how = " a token on average" if self.mean else ""
        return f"differ by {gap:.2g} nats{how} in {dtype_name(self.dtype)}, where rounding explains {self.noise:.2g}"

    def remark(self, gap: float) -> str | None:
        """What is to be said of a difference that is large for rounding and kept."""
        if not self.mean or not NOTED * self.noise < gap <= TRUSTED * self.noise:
            return None
        times = f"{gap / self.noise:.1f} times its own noise"
        return f"{gap:.2g} nats a token on average in {dtype_name(self.dtype)}, {times}"


def check_computes(model: LanguageModel, row: Row, dtype: torch.dtype) -> list[str]:
    """Whether the model's own log-probs are finite and the same twice; a note where they are nearly the same.

    Products in bfloat16 may be summed in another order from call to call, so what counts there is the mean difference.

    Raises:
        UserError: they are not finite, or differ by more than rounding in ``dtype`` explains, as with active dropout.
    """
    name = f"model {type(model.model).__name__}"
    once, twice = (own_log_probs(model.model, [row])[0] for _ in range(2))
    if not bool(torch.isfinite(once).all()):
        raise UserError(f"{name}: its logits are not finite on a row of {len(row[0])} tokens")
    moved = (once - twice).abs()
    if dtype in LEAST_NOISE:
        gap, most = float(moved.mean()), TRUSTED * LEAST_NOISE[dtype]
    else:
        gap, most = float(moved.max()), 0.1
    said = f"{name}: the same row gives log-probs that differ by {gap:.2g} nats from call to call"
    if not gap <= most:
        raise UserError(f"{said} in {dtype_name(dtype)}, where rounding explains {most:.2g}")
    return [f"{said}; kept, but a run that goes on from a checkpoint may reach other weights"] if gap else []


def _stage(
    model: LanguageModel, rows: Sequence[Row], dtype: torch.dtype, mean: bool, exchange: bool
) -> tuple[Stage, bool]:
    """The stage with its noise, and whether another attention implementation computes the same function.

    ``exchange``: measure what that changes.
    """
    length = max(len(ids) for ids, _ in rows)
    rows = [(ids + rows[0][0][: length - len(ids)], prompt) for ids, prompt in rows]
    own = own_log_probs(model.model, rows)
    least = Stage(model, LEAST_NOISE.get(dtype, 1e-5), mean, dtype)
    longer = own_log_probs(model.model, [(ids + ids[:CONTINUED], prompt) for ids, prompt in rows])
    noises = [least.gap([a[: len(b)] for a, b in zip(longer, own, strict=True)], own)]
    other = _other_attention_gap(least, rows, own) if exchange else None
    exchangeable = other is not None and (mean or other <= SAME_FUNCTION)
    noises += [other] if exchangeable else []
    noise = max([least.noise, *(n for n in noises if mean or n <= SAME_FUNCTION)])
    return Stage(model, noise, mean, dtype), exchangeable


def _other_attention_gap(stage: Stage, rows: Sequence[Row], own: Sequence[Tensor]) -> float | None:
    """What a change of the attention implementation does; None where the model has one implementation only."""
    config = stage.model.model.config
    before = config._attn_implementation
    try:
        config._attn_implementation = "sdpa" if before == "eager" else "eager"
        return stage.gap(own_log_probs(stage.model.model, rows), own)
    except Exception:  # whatever a model that lacks the other one raises: there is no such noise then
        return None
    finally:
        config._attn_implementation = before


@dataclass(slots=True)
class Trial:
    """What paths of ``model`` are compared on: stages, ordinary ``text``, and rows of at most ``longest`` tokens.

    ``notes``: what was seen on the way and is to be said.

    Example:
        >>> trial = Trial.of(model, ordinary_text(tokenizer, rows), longest=2400)
        >>> notes = prove_scoring(trial)
    """

    model: LanguageModel
    stages: tuple[Stage, ...]
    text: Ids
    longest: int
    notes: list[str]
    _own: dict[tuple[bool, Row], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: LanguageModel, text: Ids, longest: int) -> Trial:
        """Make the small copy and measure the noise of the stages; the model takes no path but the first two.

        There are numerics to compare where the model computes in a short dtype, or in forwards that were replaced.

        Raises:
            UserError: the model's own log-probs are not finite, or not the same twice.
        """
        model.paths = Paths(shared=False)
        compute = model.compute_dtype or next(model.model.parameters()).dtype
        own = (module.__dict__.get("forward") for module in model.model.modules())
        replaced = any(forward is not None and not is_lean(forward) for forward in own)
        with torch.no_grad():
            rows = proof_rows(text, reach_of(model, min(longest, SHORT_REACH)))
            notes = check_computes(model, rows[0], compute)
            small = LanguageModel(small_copy(model.model), model.temperature)
            logic, exchangeable = _stage(small, rows[3:6], next(small.model.parameters()).dtype, False, True)
            found = [logic]
            if compute in LEAST_NOISE or replaced:
                found.append(_stage(model, rows[3:], compute, True, exchangeable)[0])
        return cls(model, tuple(found), text, longest, notes)

    @property
    def name(self) -> str:
        return type(self.model.model).__name__

    def own(self, stage: Stage, rows: Sequence[Row]) -> list[Tensor]:
        """Log-probs of rows by the stage's own forward, with its own attention; kept, as each path needs them.

        Each row is read alone in the first stage. In the second they are read together, continued to one length.
        """
        stage.model.paths = stage.model.paths._replace(shared=False)
        new = [row for row in dict.fromkeys(rows) if (stage.mean, row) not in self._own]
        length = max((len(ids) for ids, _ in new), default=0)
        longer = [(ids + words(self.text, 5, length - len(ids)), prompt) for ids, prompt in new]
        for part in [longer] if stage.mean and new else [[row] for row in new]:
            read = own_log_probs(stage.model.model, part)
            for row, values in zip(new if stage.mean else part, read, strict=True):
                self._own[stage.mean, row] = values[: len(row[0]) - max(row[1], 1)]
        return [self._own[stage.mean, row] for row in rows]

    def rows(self, stage: Stage) -> list[Row]:
        """The rows of a stage: numerics need few and no long ones."""
        reach = reach_of(self.model, self.longest)
        return proof_rows(self.text, min(reach, SHORT_REACH))[3:] if stage.mean else proof_rows(self.text, reach)

    def trouble(self, paths: Paths, where: str, alone: bool, pick: slice = slice(None)) -> tuple[str | None, list[str]]:
        """What is wrong with ``paths``, or None; and remarks. ``alone``: one row after the other, else all at once."""
        remarks: list[str] = []
        for stage in self.stages:
            rows = self.rows(stage)[pick]
            stage.model.paths = paths
            try:
                found = (
                    [path_log_probs(stage.model, [r])[0] for r in rows] if alone else path_log_probs(stage.model, rows)
                )
            except UserError:
                raise
            except Exception as error:  # whatever a model cannot do is said, and the path is given up
                said = str(error).splitlines()[0][:120] if str(error) else ""
                return f"it cannot be computed {where} ({type(error).__name__}: {said})", remarks
            gap = stage.gap(found, self.own(stage, rows))
            if complaint := stage.complaint(gap):
                return f"its log-probs {complaint}, {where}", remarks
            if remark := stage.remark(gap):
                remarks.append(f"model {self.name}: its log-probs differ {where} by {remark}; kept")
        return None, remarks

    def blind(self) -> str | None:
        """Why a wrong mask could not be seen on these rows, or None: log-probs must move where a token is missing."""
        logic = self.stages[0]
        ids, prompt = self.rows(logic)[4]
        less_one = (*ids[: prompt - 2], *ids[prompt - 1 :])
        whole, less = self.own(logic, [(ids, prompt), (less_one, prompt - 1)])
        moved = logic.gap([less[-len(whole) :]], [whole])
        if moved >= 10 * TRUSTED * logic.noise:
            return None
        return f"its log-probs move by {moved:.2g} nats only where a token of the prompt is missing"


@torch.no_grad()
def prove_scoring(trial: Trial) -> list[str]:
    """Take up the fast paths that hold, in the model's ``paths``; sets its ``noise`` too.

    Returns one sentence for each path that was given up, or that differs by more than usual.
    """
    model, name, paths = trial.model, trial.name, Paths(shared=False)
    model.noise = trial.stages[-1].noise
    said = list(trial.notes)

    def holds(wanted: Paths, where: str, loss: str, alone: bool = False, pick: slice = slice(None)) -> bool:
        trouble, remarks = trial.trouble(wanted, where, alone, pick)
        said.extend([f"model {name}: {trouble}, so {loss}"] if trouble else remarks)
        return trouble is None

    whole = "whole logits are computed: slower, and memory grows with the vocabulary"
    if not holds(paths, "from a matrix, a bias and a soft cap on its trunk", whole, True, slice(-3, -2)):
        paths = paths._replace(split_head=False)
    if not holds(
        paths, "with padding after a row", "only rows of one length are scored together: slower", False, slice(-4, None)
    ):
        paths = paths._replace(padded=False)
    apart_loss = "each row is read with its own prompt: slower"
    if paths.padded and (blind := trial.blind()):
        said.append(f"model {name}: {blind}, so {apart_loss}")
    elif paths.padded and holds(paths._replace(shared=True), "where rows share a prompt", apart_loss):
        paths = paths._replace(shared=True)
    if paths.shared and can_differentiate(model.device):
        loss = "rows are padded for attention: slower"
        trouble = _flex_trouble(trial)
        said += [f"model {name}: {trouble}, so {loss}"] if trouble else []
        if not trouble and holds(paths._replace(flex=True), "with FlexAttention", loss):
            paths = paths._replace(flex=True)
    model.paths = paths
    return said


def _flex_trouble(trial: Trial) -> str | None:
    """What is wrong with FlexAttention's outputs and gradients on the proof's rows, or None."""
    model = trial.model
    config = text_config(model.model.config)
    heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    layout = lay_out(trial.rows(trial.stages[0]), model.device)
    return trouble_with_flex(layout, Call(0), heads, size, model.compute_dtype or model.model.dtype)


def small_copy(model: Any) -> Any:
    """The model in at least float32, without autocast, with at most two layers of each kind; wide weights are shared.

    A model whose ``forward`` somebody replaced cannot be copied faithfully, and is returned itself.
    """
    for module in model.modules():
        own = module.__dict__.get("forward")
        ours = isinstance(own, MethodType) and own.__func__.__module__ in OURS
        if own is not None and not ours:
            return model
    config = copy.deepcopy(model.config)
    text = text_config(config)
    memo: dict[int, Any] = {id(model.config): config, id(text_config(model.config)): text}
    layers, kept = _few_layers(model, text)
    dropped = {
        id(t) for i, layer in enumerate(layers) if i not in kept for t in (*layer.parameters(), *layer.buffers())
    }
    memo |= {id(t): _wide(t) for t in (*model.parameters(), *model.buffers()) if id(t) not in dropped}
    if len(kept) < len(layers):
        memo[id(layers)] = few = nn.ModuleList(copy.deepcopy(layers[i], memo) for i in kept)
        for number, module in (
            (n, m) for n, layer in enumerate(few) for m in layer.modules() if hasattr(m, "layer_idx")
        ):
            setattr(module, "layer_idx", number)  # noqa: B010 (no attribute that torch declares)
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        module.__dict__.pop("forward", None)
    return copied


def _wide(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() or tensor.dtype in (torch.float32, torch.float64):
        return tensor
    wide = tensor.detach().float()
    return nn.Parameter(wide, requires_grad=False) if isinstance(tensor, nn.Parameter) else wide


def _few_layers(model: Any, config: Any) -> tuple[nn.ModuleList, list[int]]:
    """The model's layers and the numbers of those to keep, to which ``config`` is changed; all where unsure."""
    count = config.num_hidden_layers
    lists = [m for m in trunk(model).modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(lists) != 1:
        return nn.ModuleList(), []
    layers = lists[0]
    by_layer = {k: v for k, v in vars(config).items() if isinstance(v, (list, tuple)) and len(v) == count}
    kinds: dict[Any, list[int]] = {}
    for i, layer in enumerate(layers):
        kinds.setdefault(_kind(layer, [repr(v[i]) for v in by_layer.values()]), []).append(i)
    kept = sorted(i for members in kinds.values() for i in members[:2])
    config.num_hidden_layers = len(kept)
    for key, values in by_layer.items():
        setattr(config, key, [values[i] for i in kept])
    return layers, kept


def _kind(layer: nn.Module, configured: Sequence[str]) -> Any:
    """What tells a layer from those that compute otherwise: its modules and their plain settings."""
    plain = (bool, int, float, str, type(None))
    parts = [
        (name, type(m).__name__, sorted((k, repr(v)) for k, v in vars(m).items() if isinstance(v, plain)))
        for name, m in layer.named_modules()
    ]
    return repr([(n, t, [(k, v) for k, v in s if k != "layer_idx"]) for n, t, s in parts]), tuple(configured)
