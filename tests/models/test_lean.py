"""Norms and gated units that keep less: the same forward, the gradients of plain operators, and less memory."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from models import FAMILIES, tiny
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from covrl.config import LoraConfig
from covrl.models import lean
from covrl.models.adapters import add_adapter
from covrl.models.compute import compute_in_bfloat16
from covrl.models.lean import cast_once, is_lean, keep_less, read_by_layers
from covrl.planning.live import LiveBytes

IDS = torch.arange(3, 43).view(2, 20)


def replaced(model: Any) -> Counter[str]:
    return Counter(m.forward.__func__.__name__ for m in model.modules() if is_lean(m.forward))


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(IDS).logits.float().square().mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_forward_has_the_same_bits_and_the_gradient_is_the_plain_ones(family: str) -> None:
    plain = tiny(family)
    changed = copy.deepcopy(plain)
    keep_less(changed)
    assert torch.equal(plain(IDS).logits, changed(IDS).logits)
    with torch.no_grad():
        assert torch.equal(plain(IDS).logits, changed(IDS).logits)
    expected, found = gradients(plain), gradients(changed)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6 * float(value.abs().max() + 1), msg=name)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", {"_norm": 4, "_unit": 2}),
        ("qwen3", {"_norm": 8, "_unit": 2}),
        ("gemma2", {"_norm_from_one": 8, "_unit": 2}),
        ("gpt2", {}),
    ],
)
def test_what_is_replaced_in_each_family(family: str, expected: dict[str, int]) -> None:
    model = tiny(family)
    keep_less(model)
    assert replaced(model) == expected


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_norms_gradient_is_that_of_finite_differences(offset: float) -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, generator=chance).double())
            self.eps = 1e-3

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.weight + offset) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    chance = torch.Generator().manual_seed(0)
    module = Norm()
    given = torch.randn(2, 3, 5, generator=chance).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: lean._Norm.apply(x, w, module, offset), (given, module.weight))


def test_another_formula_is_left_as_it_is() -> None:
    model = tiny("llama")
    block = model.model.layers[0]

    class Centred(type(block.input_layernorm)):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x - x.mean(-1, keepdim=True))

    class Doubled(type(block.mlp)):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    block.input_layernorm.__class__, block.mlp.__class__ = Centred, Doubled
    keep_less(model)
    assert replaced(model) == {"_norm": 3, "_unit": 1}
    assert not is_lean(block.input_layernorm.forward)
    assert not is_lean(block.mlp.forward)


def test_norms_that_linear_layers_alone_read_are_cast_once() -> None:
    """In Gemma 2 half of a block's norms are read by the residual stream, and stay wide."""
    for family, cast in (("llama", 4), ("gemma2", 4)):
        model = tiny(family)
        compute_in_bfloat16(model)
        keep_less(model)
        plain = model(IDS).logits
        cast_once(model, read_by_layers(model, IDS[:1, :4]))
        names = replaced(model)
        assert sum(count for name, count in names.items() if name.endswith("_cast")) == cast
        assert torch.equal(model(IDS).logits, plain)


def test_a_norm_that_something_else_reads_too_stays_wide() -> None:
    model = tiny("llama")
    compute_in_bfloat16(model)
    keep_less(model)
    block = model.model.layers[0]
    block.mlp.register_forward_hook(lambda _, given, out: out + given[0])  # as blocks with parallel branches do
    assert read_by_layers(model, IDS[:1, :4]) == [
        *("model.layers.0.input_layernorm", "model.layers.1.input_layernorm"),
        "model.layers.1.post_attention_layernorm",
    ]


@pytest.mark.parametrize("rank", [0, 4])
def test_no_product_is_made_twice_and_less_is_kept(rank: int) -> None:
    counts, kept = [], []
    for change in (lambda _: None, keep_less):
        model = tiny("llama", hidden_size=64, intermediate_size=256)
        if rank:
            add_adapter(model, LoraConfig(rank=rank), 0, "llama")
        compute_in_bfloat16(model)
        change(model)
        if counts:
            cast_once(model, read_by_layers(model, IDS[:1, :4]))
        with FlopCounterMode(display=False) as products, LiveBytes() as live:
            value = model.model(IDS.repeat(8, 1)).last_hidden_state.sum()
            kept.append(live.live)
            value.backward()
        counts.append(products.get_total_flops())
    assert counts[0] == counts[1]
    assert kept[1] < (0.9 if rank else 0.7) * kept[0]
