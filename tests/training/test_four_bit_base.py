"""LoRA on a base of 4 bits: codes, gradients, runs, files, the plan, and what it does not go with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Covrl
from models import save_tiny, tiny
from planning.test_plan import JOB
from safetensors.torch import load_file
from torch import Tensor, nn
from training.test_lora import PROBLEMS, by_text, settings

from covrl import api
from covrl.cli.plan import plan_for
from covrl.config import LoraConfig, RunConfig, check
from covrl.errors import UserError
from covrl.generation.engines import make_generator
from covrl.generation.handover import weights_of
from covrl.models import adapters
from covrl.models.four_bit import FourBitLinear, codes_of, dequantise, packed, quantise, values, weight_of
from covrl.models.model import load_model
from covrl.models.policy import refuse_four_bits_in_parts
from covrl.models.shared import lay_out, nothing_masked
from covrl.planning.live import LiveBytes
from covrl.planning.phases import Hardware, gradient_bytes, loading, weight_bytes
from covrl.planning.weightless import Way, shape_of, trunk_bytes
from covrl.training.memory import model_bytes
from covrl.training.needs import measured
from covrl.training.run import Run
from covrl.training.step import take_step

pytestmark = pytest.mark.usefixtures("proved_once")

pytest.importorskip("peft")

PUBLISHED = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
"""NF4 as the QLoRA paper's appendix lists it."""

FOUR = {"rank": 3, "four_bit_base": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its layers are 32 and 48 wide."""
    found = tmp_path_factory.mktemp("models")
    for family in ("gpt2", "llama"):
        save_tiny(family, found / family)
    return found


def config(folder: Path, lora: dict[str, Any] = FOUR, dtype: str = "float32", **sections: Any) -> RunConfig:
    model = {"path": str(folder / "llama"), "dtype": dtype}
    return settings(folder, "grpo", lora, model=model, **sections)


def make_run(folder: Path, **given: Any) -> Run:
    return api.build(config(folder, **given), PROBLEMS, reward=by_text)


def test_the_values_are_the_published_ones() -> None:
    assert values().tolist() == pytest.approx(PUBLISHED, abs=1e-6)


@pytest.mark.parametrize("width", [2, 48, 64, 130, 576])
def test_a_weight_becomes_the_nearest_value_of_its_blocks_scale(width: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(7, width) * torch.logspace(-3, 1, width)
    codes, scales = codes_of(weight)
    assert (codes.dtype, codes.shape) == (torch.uint8, (7, width // 2))
    found, size = weight_of(codes, scales), -(-width // scales.shape[1])
    assert size <= 64
    for i in range(width):
        scale = weight[:, i // size * size : (i // size + 1) * size].abs().amax(-1)
        table = values() * scale[:, None]
        nearest = table.gather(1, (table - weight[:, i : i + 1]).abs().argmin(-1, keepdim=True))[:, 0]
        assert torch.equal(found[:, i], nearest)
    assert not weight_of(*codes_of(torch.zeros(2, width))).any()
    again, _ = codes_of(found)
    assert torch.equal(weight_of(again, scales), found), "rounding twice is rounding once"


def test_a_layer_takes_four_and_a_half_bits_a_weight() -> None:
    layer = FourBitLinear.of(nn.Linear(4096, 16, bias=False))
    assert sum(p.nbytes for p in layer.parameters()) == 4096 * 16 * 4.5 / 8
    assert not any(p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_layer_computes_and_its_gradient_is_that_of_the_rounded_matrix(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(48, 20).to(dtype)
    four = FourBitLinear.of(plain)
    whole = four.whole()
    assert whole.weight.dtype == dtype
    assert 0 < (whole.weight - plain.weight).abs().max() < 0.2 * plain.weight.abs().max()
    rows = [torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_() for _ in "ab"]
    found, expected = four(rows[0]), whole(rows[1])
    close = {torch.bfloat16: 2e-2, torch.float32: 1e-6}.get(dtype, 1e-14)
    assert torch.allclose(found, expected, rtol=close, atol=close)
    for out in (found, expected):
        out.square().sum().backward()
    assert rows[0].grad is not None
    assert torch.allclose(rows[0].grad, rows[1].grad, rtol=close, atol=20 * close)  # ty: ignore[invalid-argument-type]


def test_under_autocast_products_are_in_bfloat16() -> None:
    layer = FourBitLinear.of(nn.Linear(48, 20, bias=False))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(3, 48)).dtype == torch.bfloat16


def test_the_linear_layers_of_the_trunk_alone_are_put_into_four_bits() -> None:
    model = tiny("llama")
    before = {name: w.clone() for name, w in model.state_dict().items()}
    count = quantise(model)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    head = model.get_output_embeddings()
    assert {type(m) for m in layers if m is not head} == {FourBitLinear}
    assert type(head) is nn.Linear
    assert count == sum(m.in_features * m.out_features for m in packed(model))
    ids = torch.arange(12)[None]
    with torch.no_grad():
        four = model(ids).logits
        dequantise(model)
        assert not packed(model)
        assert torch.allclose(model(ids).logits, four, atol=1e-5)
    after = model.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name, w in after.items() if not torch.equal(w, before[name])}
    assert changed == {name for name in before if "proj" in name}


def base_bytes(run: Run) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in run.models["policy"].model.named_parameters() if ".lora_" not in n}


@pytest.mark.parametrize("dtype", ["float32", "mixed", "bfloat16"])
def test_a_run_trains_the_adapter_alone_and_loses_no_path(folder: Path, dtype: str) -> None:
    run = make_run(folder, dtype=dtype)
    plain = make_run(folder, dtype=dtype, lora={"rank": 3})
    assert run.models["policy"].paths == plain.models["policy"].paths
    assert run.generator.paths == plain.generator.paths  # ty: ignore[unresolved-attribute]
    assert any("are rounded to 4 bits (NF4)" in note for note in run.notes)
    before = base_bytes(run)
    own = [p.clone() for p in run.parameters]
    assert take_step(run).metrics["grad_norm/total"] > 0
    assert all(torch.equal(w, before[n]) for n, w in base_bytes(run).items())
    assert not all(map(torch.equal, own, run.parameters))


def test_a_resumed_run_and_the_commands_compute_with_the_same_base(folder: Path, tmp_path: Path, covrl: Covrl) -> None:
    """The codes are made of the same files again; the merged model has the rounded base, which is said."""
    whole = api.train(config(folder, checkpoint={"every": 2}), PROBLEMS, out=tmp_path / "run", reward=by_text)
    step = whole.last.parent
    assert set(load_file(whole.last / "adapter_model.safetensors")) == {
        name for name in load_file(whole.last / "adapter_model.safetensors") if ".lora_" in name
    }
    assert json.loads((whole.last / "adapter_config.json").read_text())["covrl_base"] == "nf4"
    expected = {p.relative_to(step): p.read_bytes() for p in step.rglob("*") if p.is_file()}
    kept = tmp_path / "kept"
    step.rename(kept)
    run = api.resume(tmp_path / "run", PROBLEMS, reward=by_text)
    assert run.done == 2
    api.train_run(run, tmp_path / "run")
    assert {p.relative_to(step): p.read_bytes() for p in step.rglob("*") if p.is_file()} == expected
    ids = torch.arange(12)[None]
    with torch.no_grad():
        trained = run.models["policy"].model(ids).logits
        loaded, _ = load_model(run.config.model.model_copy(update={"path": str(whole.last)}))
        assert torch.equal(loaded.model(ids).logits, trained)
        merged = covrl("merge", str(whole.last), "--out", str(tmp_path / "merged"))
        assert "trained on a base of 4 bits (NF4), so the merged model has that base's rounded weights" in merged.err
        plain, _ = load_model(run.config.model.model_copy(update={"path": str(tmp_path / "merged")}))
        assert torch.allclose(plain.model(ids).logits, trained, atol=1e-4)
        base, _ = load_model(run.config.model)
        assert not torch.allclose(base.model(ids).logits, trained, atol=1e-2)
    file = whole.last / "adapter_config.json"
    file.write_text(file.read_text().replace('"nf4"', '"int8"'))
    with pytest.raises(UserError, match="covrl_base = 'int8' is not known here"):
        load_model(run.config.model.model_copy(update={"path": str(whole.last)}))


def test_engines_get_the_matrices_that_it_computes_with(folder: Path) -> None:
    run = make_run(folder)
    take_step(run)
    model = run.models["policy"].model
    sent = dict(weights_of(model, torch.float32))
    plain, _ = load_model(run.config.model)
    assert sent.keys() == dict(plain.model.named_parameters()).keys()
    plain.model.load_state_dict(sent)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.allclose(plain.model(ids).logits, model(ids).logits, atol=1e-5)


def test_the_plan_counts_codes_and_scales(folder: Path) -> None:
    run = make_run(folder)
    model = run.models["policy"].model
    lora = LoraConfig(**FOUR)
    shape, plain = shape_of(model.config, lora), shape_of(model.config, LoraConfig(rank=3))
    job = replace(JOB, dtype="float32")
    assert weight_bytes(shape, job) == model_bytes(run)["weights"] == measured(run).weights
    assert gradient_bytes(shape, job) == model_bytes(run)["gradients"]
    assert (shape.base, shape.trained) == (plain.base, plain.trained)
    assert shape.packed_bytes == pytest.approx(shape.packed * (0.5 + 4 / 40), rel=0.1)  # blocks of 32 and 48
    assert loading(shape, job) == loading(plain, job)  # the files' weights come first
    assert shape.linear == 0 < plain.linear


def test_the_plan_counts_the_matrix_that_a_pass_makes(folder: Path) -> None:
    """No pass keeps a layer's matrix for its backward; the bytes are those of a real pass."""
    run = make_run(folder)
    model = run.models["policy"].model
    rows = [((3,) * 40, 0)]
    planned = trunk_bytes(model.config, Way("float32", lora=LoraConfig(**FOUR), fused=False), rows)
    plain = trunk_bytes(model.config, Way("float32", lora=LoraConfig(rank=3), fused=False), rows)
    assert planned.kept == plain.kept
    held = [*model.parameters(), *model.buffers()]
    layout = lay_out(rows, torch.device("cpu"))
    embedded = model.get_input_embeddings()(torch.full((1, 40), 3)).detach().requires_grad_()
    for parameter in run.parameters:
        parameter.grad = torch.zeros_like(parameter)
    numbers = (layout.ids, layout.positions, layout.prompts, layout.own, layout.keys, layout.back)
    with LiveBytes([*held, *numbers, *(p.grad for p in run.parameters if p.grad is not None)]) as live:
        before = live.live
        hidden = model.base_model(
            inputs_embeds=embedded,
            position_ids=layout.positions[None],
            attention_mask=nothing_masked(layout.ids.device),
            use_cache=False,
            covrl_layout=layout,
        ).last_hidden_state
        live.restart()
        hidden.backward(torch.zeros_like(hidden))
        took = live.peak - before
    assert planned.backward == pytest.approx(took, rel=0.1)


def test_what_it_does_not_go_with(folder: Path) -> None:
    with pytest.raises(UserError, match="four_bit_base is set, but rank is 0, so all weights are trained"):
        check(LoraConfig, {"four_bit_base": True})
    said = 'lora.four_bit_base does not go with sharded weights: set training.weights = "replicated"'
    with pytest.raises(UserError, match=said):
        refuse_four_bits_in_parts(config(folder), 2)
    with pytest.raises(UserError, match=said):
        plan_for(config(folder), Hardware(2, 10**9))
    refuse_four_bits_in_parts(config(folder), 1)
    refuse_four_bits_in_parts(config(folder, training={"weights": "replicated"}), 2)
    with pytest.raises(UserError, match="this model has no linear layers that can be kept in 4 bits"):
        api.build(settings(folder, "grpo", FOUR), PROBLEMS, reward=by_text)  # GPT-2's are of another class
    engine = {"max_trace_tokens": 20, "engine": "http://127.0.0.1:9", "handover": "adapters"}
    separate = config(folder, generation=engine)
    with pytest.raises(UserError, match="the servers' base is not rounded to 4 bits"):
        make_generator(separate, engine["engine"], nn.Linear(1, 1), None, None)  # ty: ignore[invalid-argument-type]
    assert adapters.BASE == "covrl_base"
