"""What a model's passes take, from its config alone: they are made with tensors that have shapes and no numbers.

A model of two and of three blocks goes through the production code (packed rows, autocast, recomputation, adapters),
and what is alive is counted. Blocks of a model are alike, so what a block adds gives the figure of the whole model.
Only attention has a stand-in: what a fused kernel keeps, which is its inputs, its output and a number for each query.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.initialization import no_init_weights

from covrl.config import LoraConfig
from covrl.models.adapters import add_adapter, all_adapters
from covrl.models.attention import NAME
from covrl.models.compute import blocks, compute_in_bfloat16, recompute_activations
from covrl.models.eight_bit import is_narrow, scales_of
from covrl.models.four_bit import FourBitLinear, packed, quantise
from covrl.models.lean import cast_once, keep_less, read_by_layers
from covrl.models.projection import Projection
from covrl.models.shared import Call, lay_out, nothing_masked
from covrl.models.text import cache_numbers, model_class, text_config, trunk
from covrl.planning.live import LiveBytes
from covrl.scoring.head import Head, apply_head

Rows = Sequence[tuple[tuple[int, ...], int]]
"""Of each row its ids, and how many of them are a prompt that other rows may have too."""

WEIGHTS = {"float32": torch.float32, "mixed": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
"""The weights' dtype for each ``model.dtype``."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Elements of a model's weights, each once, and other numbers of its config.

    ``base`` are all weights but adapters, ``trained`` those that take a gradient, ``blocks`` those of all blocks,
    ``block`` those of the largest, ``layers`` their number, ``head`` the output layer's (``tied``: it is the
    embedding), ``linear`` those of the blocks' linear layers, which a mixed pass casts. ``keys`` are numbers that a
    token leaves in the cache. ``packed`` are those of ``base`` that are kept in ``packed_bytes`` of 4 bits each and
    scales. ``codes`` are the trained numbers whose moments 8 bits can hold, and ``scales`` those of
    the blocks that they are in (:mod:`covrl.models.eight_bit`); ``largest`` are those of the largest matrix.
    """

    base: int
    adapters: int
    trained: int
    blocks: int
    block: int
    layers: int
    head: int
    tied: bool
    linear: int
    keys: int
    vocabulary: int
    width: int
    packed: int = 0
    packed_bytes: int = 0
    codes: int = 0
    scales: int = 0
    largest: int = 0

    @property
    def ends(self) -> int:
        """Elements outside of the blocks: embedding, last norm, and output layer."""
        return self.base - self.blocks


@dataclass(frozen=True, slots=True)
class TrunkBytes:
    """What a pass of the trunk takes beside weights and gradients, in bytes.

    ``read``: at most, in a pass without gradients. ``forward``: at most, in one that keeps what its backward needs.
    ``kept``: after it, with the hidden states. ``backward``: at most, in the backward pass of the blocks; that of the
    embedding, whose gradient is as large as itself, comes after them.
    """

    read: int
    forward: int
    kept: int
    backward: int


@dataclass(frozen=True, slots=True)
class HeadBytes:
    """What the output layer takes for the tokens of one reading: at most without gradients, kept, and at most with."""

    read: int
    kept: int
    backward: int


def shape_of(config: Any, lora: LoraConfig) -> Shape:
    """The numbers of a model of a Transformers config.

    Raises:
        UserError: it is no causal language model.
    """
    model = _model(config, Way("float32", lora=lora))
    adapted = {id(p) for p in all_adapters(model)}
    sizes = [sum(p.numel() for p in block.parameters() if id(p) not in adapted) for block in blocks(model)]
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    in_codes = {id(p) for layer in packed(model) for p in (layer.weight, layer.scales)}
    four_bits = sum(layer.in_features * layer.out_features for layer in packed(model))
    narrow = [p for p in model.parameters() if p.requires_grad and is_narrow(p)]
    return Shape(
        base=sum(p.numel() for p in model.parameters() if id(p) not in adapted | in_codes) + four_bits,
        adapters=sum(p.numel() for p in all_adapters(model)),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        blocks=sum(sizes),
        block=max(sizes),
        layers=len(sizes),
        head=head.weight.numel(),
        tied=head.weight is embedding.weight,
        linear=sum(p.numel() for m in _linear(model) for p in m.parameters()),
        keys=cache_numbers(config),
        vocabulary=head.weight.shape[0],
        width=head.weight.shape[1],
        packed=four_bits,
        packed_bytes=sum(p.nbytes for layer in packed(model) for p in (layer.weight, layer.scales)),
        codes=sum(p.numel() for p in narrow),
        scales=sum(scales_of(p) for p in narrow),
        largest=max((p.numel() for p in narrow), default=0),
    )


NO_ADAPTERS = LoraConfig()


@dataclass(frozen=True, slots=True)
class Way:
    """How a trunk is computed. ``fused``: attention as on an accelerator. ``casts``: a mixed pass casts the weights of
    linear layers itself; without, it finds them in bfloat16, as FSDP's gathers bring them."""

    dtype: str
    recompute: bool = False
    lora: LoraConfig = NO_ADAPTERS
    fused: bool = True
    casts: bool = True


def trunk_bytes(config: Any, way: Way, rows: Rows) -> TrunkBytes:
    """What a pass over ``rows`` takes in a model of a Transformers config."""
    layers = text_config(config).num_hidden_layers
    two, three = (_trunk_bytes(shortened(config, n), way, rows) for n in (2, 3))
    more = {f.name: getattr(three, f.name) - getattr(two, f.name) for f in fields(TrunkBytes)}
    return replace(two, **{name: getattr(two, name) + (layers - 2) * more[name] for name in more})


def shortened(config: Any, layers: int) -> Any:
    """A copy of a Transformers config with so many blocks, the first of them."""
    short = copy.deepcopy(config)
    text = text_config(short)
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return short


def _model(config: Any, way: Way) -> Any:
    """A model as a run has it, on the meta device."""
    config = copy.deepcopy(config)
    kind = model_class(config, config.model_type)
    with torch.device("meta"), no_init_weights():
        model = kind.from_config(config, dtype=WEIGHTS[way.dtype], attn_implementation="sdpa").eval()
        model.tie_weights()
    model.config._attn_implementation = NAME
    if way.lora.four_bit_base:
        quantise(model)
    if way.lora.rank:
        add_adapter(model, way.lora, 0, config.model_type)
    if way.dtype == "mixed":
        compute_in_bfloat16(model)
    if not way.casts:
        for linear in _linear(model):
            for name, weight in linear.named_parameters(recurse=False):
                setattr(linear, name, nn.Parameter(weight.detach().bfloat16(), weight.requires_grad))
    keep_less(model)
    if way.recompute:
        recompute_activations(model)
    return model


def _linear(model: Any) -> list[nn.Linear]:
    """The linear layers of the blocks, those of adapters apart."""
    adapted = {id(p) for p in all_adapters(model)}
    every = [m for block in blocks(model) for m in block.modules() if isinstance(m, nn.Linear)]
    return [m for m in every if id(m.weight) not in adapted and not isinstance(m, FourBitLinear)]


def _on_cpu(model: Any) -> None:
    """Give a model on the meta device tensors of the CPU, inside of a mode that makes them without numbers.

    The meta device itself has no autocast.
    """
    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if tensor not in made:
                plain = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                learns = isinstance(tensor, nn.Parameter)
                made[tensor] = nn.Parameter(plain, tensor.requires_grad) if learns else plain
            setattr(module, name, made[tensor])


def _trunk_bytes(config: Any, way: Way, rows: Rows) -> TrunkBytes:
    layout = lay_out(rows, torch.device("cpu"))
    model = _model(config, way)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        _on_cpu(model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        if way.dtype == "mixed" and way.casts:
            cast_once(model, read_by_layers(model, torch.zeros(1, 4, dtype=torch.long)))
        own = ("ids", "positions", "prompts", "own", "keys", "back")
        fake = replace(layout, **{f: mode.from_tensor(getattr(layout, f)) for f in own}, masks={}, blocks={})
        arrangement = _Fused() if way.fused else fake
        held = [t for p in model.parameters() for t in (p, p.grad) if t is not None] + list(model.buffers())

        def forward(embedded: Tensor) -> Tensor:
            return trunk(model)(
                inputs_embeds=embedded,
                position_ids=fake.positions[None],
                attention_mask=nothing_masked(fake.ids.device),
                use_cache=False,
                covrl_layout=arrangement,
            ).last_hidden_state

        with _Experts(), LiveBytes([*held, *(getattr(fake, f) for f in own)]) as live:
            before = live.live
            embedded = model.get_input_embeddings()(fake.ids[None]).detach().requires_grad_()
            with torch.no_grad():
                forward(embedded)
            read = live.peak - before
            live.restart()
            hidden = forward(embedded)
            peak, kept = live.peak - before, live.live - before
            live.restart()
            hidden.backward(torch.zeros_like(hidden))
            return TrunkBytes(read, peak, kept, live.peak - before)


class _Experts(TorchDispatchMode):
    """Lets products by expert have shapes in every dtype; torch knows them for bfloat16 alone (CONFIRMED with 2.13)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten._grouped_mm.default:
            return func(*args, **(kwargs or {}))
        left, right, *other = args
        return func(left.bfloat16(), right.bfloat16(), *other, **(kwargs or {})).to(left.dtype)


class _Fused:
    """Rows whose attention is one kernel (FlexAttention), which keeps what :class:`_Kernel` does."""

    decodes = False

    def attend(self, call: Call, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        del call
        return _Kernel.apply(query, key, value).transpose(1, 2)


class _Kernel(torch.autograd.Function):
    """Attention's shapes: query ``[1, H, N, D]``, key and value ``[1, H', N, D]`` -> ``[1, H, N, D]``."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, ...]:
        del grads
        return tuple(torch.empty_like(t) for t in ctx.saved_tensors[:3])


def head_bytes(
    shape: Shape, dtype: str, head: Head, tokens: int, contexts: int, logits_bytes: int, device: str = "meta"
) -> HeadBytes:
    """What a head function takes for ``tokens`` of so many contexts; on the meta device as an accelerator would.

    The sum of the weight's gradient is in it, the weight and its ``.grad`` are not.
    """
    weights = WEIGHTS[dtype]
    weight = torch.zeros(shape.vocabulary, shape.width, dtype=weights, device=device, requires_grad=True)
    hidden = [torch.zeros(tokens, shape.width, dtype=weights, device=device) for _ in range(contexts)]
    project = Projection(weight, dtype=torch.bfloat16 if dtype == "mixed" else None)
    targets = torch.zeros(tokens, dtype=torch.long, device=device)
    chunk = max(1, logits_bytes // (4 * shape.vocabulary))
    with LiveBytes([weight, targets]) as live:
        before = live.live
        copies = [h.clone().requires_grad_() for h in hidden]
        kept = live.live - before
        with torch.no_grad():
            apply_head(head, copies, targets, [project] * contexts, chunk)
        read = live.peak - before
        outputs = apply_head(head, copies, targets, [project] * contexts, chunk)
        live.restart()
        torch.autograd.grad([out.sum() for out in outputs if out.requires_grad], [weight, *copies])
        return HeadBytes(read, kept, live.peak - before)
