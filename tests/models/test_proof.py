"""The proof at load: no false alarm, and each planted fault of scoring or decoding is caught, in every dtype."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import FAMILIES, byte_tokenizer, character_tokenizer, prove, tiny, trial_of
from torch import Tensor
from transformers import Phi3Config, Phi3ForCausalLM, PhimoeConfig, PhimoeForCausalLM

from covrl.generation import decoding
from covrl.generation.decoding import Shared
from covrl.generation.engine import DecodingPaths, TorchGenerator
from covrl.generation.proof import prove_decoding
from covrl.generation.recorded import Fixed
from covrl.models import shared as sharing
from covrl.models.compute import compute_in_bfloat16
from covrl.models.model import LanguageModel, Paths
from covrl.models.proof import Stage, ordinary_text, proof_rows, prove_scoring, reach_of, small_copy, switches
from covrl.models.shared import Layout

DTYPES = ["float32", "bfloat16", "mixed"]


def made(family: str, dtype: str, **extra: Any) -> LanguageModel:
    model = LanguageModel(tiny(family, **extra))
    if dtype == "bfloat16":
        model.model.to(torch.bfloat16)
    if dtype == "mixed":
        compute_in_bfloat16(model.model)
        model.compute_dtype = torch.bfloat16
    return model


def proved(model: LanguageModel, longest: int = 240) -> tuple[Paths, DecodingPaths, list[str]]:
    """Both proofs; the paths that hold, and what is said."""
    trial = trial_of(model, longest)
    said = prove_scoring(trial)
    engine = TorchGenerator(model.model, character_tokenizer(), 8)
    said += prove_decoding(engine, trial)
    return model.paths, engine.paths, said


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_false_alarm(family: str, dtype: str) -> None:
    """Prompts of over 128 tokens with six rows each, so they are kept apart from their rows too."""
    assert proved(made(family, dtype)) == (Paths(), DecodingPaths(), [])


# --- faults of reading rows end to end -----------------------------------------------------------------------------


def other_rows_are_seen(patch: pytest.MonkeyPatch) -> None:
    """A mask without the future: each token sees all keys of its row."""
    own = Layout.mask

    def mask(self: Layout, queries: str, window: int | None, dtype: torch.dtype) -> Tensor:
        return own(self, queries, window, dtype) * 0

    patch.setattr(Layout, "mask", mask)


def window_is_missing(patch: pytest.MonkeyPatch) -> None:
    own = Layout.mask
    patch.setattr(Layout, "mask", lambda self, queries, window, dtype: own(self, queries, None, dtype))


def positions_are_off_by_one(patch: pytest.MonkeyPatch) -> None:
    """After a prompt that rows share, which is where positions are counted anew."""
    own = sharing.lay_out

    def lay_out(*given: Any) -> Layout:
        layout = own(*given)
        first = int(layout.own[0, 0])
        layout.positions[first:] += 1
        return layout

    patch.setattr("covrl.models.model.lay_out", lay_out)


def rows_are_swapped(patch: pytest.MonkeyPatch) -> None:
    """The keys before a row's own are those of another row's prompt."""
    own = sharing.lay_out

    def lay_out(*given: Any) -> Layout:
        layout = own(*given)
        layout.keys.copy_(torch.where(layout.own.new_ones(1) > 0, layout.keys.roll(1, 0), layout.keys))
        return layout

    patch.setattr("covrl.models.model.lay_out", lay_out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("family", "fault"),
    [
        ("llama", other_rows_are_seen),
        ("mistral", window_is_missing),
        ("gemma2", window_is_missing),
        ("qwen2", positions_are_off_by_one),
        ("gpt2", positions_are_off_by_one),
        ("qwen3", rows_are_swapped),
    ],
)
def test_a_fault_of_shared_prompts_is_caught(
    family: str, fault: Callable[[pytest.MonkeyPatch], None], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    model = made(family, dtype)
    (said,) = prove(model)
    assert model.paths == Paths(shared=False)
    assert "where rows share a prompt, so each row is read with its own prompt" in said


# --- faults of decoding --------------------------------------------------------------------------------------------


def keys_are_stale(patch: pytest.MonkeyPatch) -> None:
    """Once the room for keys has grown, new ones go where older ones stand."""
    own = Shared._keep

    def keep(self: Shared, layer: int, *fresh: Tensor) -> tuple[Tensor, Tensor]:
        held = own(self, layer, *fresh)
        if self.taken > decoding.ROOM:
            for t in held:
                t[:, :, self._filled] = t[:, :, self._filled - 1]
        return held

    patch.setattr(Shared, "_keep", keep)


def decoded_window_is_missing(patch: pytest.MonkeyPatch) -> None:
    own = Shared._mask
    patch.setattr(Shared, "_mask", lambda self, window, dtype: own(self, None, dtype))


def decoded_positions_are_off(patch: pytest.MonkeyPatch) -> None:
    own = Shared.advance

    def advance(self: Shared, model: Any, tokens: Tensor) -> Tensor:
        self.lengths = self.lengths + 1
        try:
            return own(self, model, tokens)
        finally:
            self.lengths = self.lengths - 1

    patch.setattr(Shared, "advance", advance)


def rows_that_stay_are_swapped(patch: pytest.MonkeyPatch) -> None:
    own = Shared.select
    patch.setattr(Shared, "select", lambda self, rows: own(self, rows.flip(0)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("family", "fault"),
    [
        ("llama", keys_are_stale),
        ("mistral", decoded_window_is_missing),
        ("gemma2", decoded_window_is_missing),
        ("qwen3", decoded_positions_are_off),
        ("gpt2", decoded_positions_are_off),
        ("qwen2", rows_that_stay_are_swapped),
    ],
)
def test_a_fault_of_decoding_is_caught(
    family: str, fault: Callable[[pytest.MonkeyPatch], None], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    scoring, ways, said = proved(made(family, dtype))
    assert scoring == Paths()
    assert not ways.shared
    assert ways.padded == (family != "gemma2")  # whose eager attention is not a number at left padding
    assert "so each row keeps its own copy of its prompt: slower" in said[0]


def test_a_fault_of_recorded_steps_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CUDA device, where steps are recorded; here the same steps run as they are."""
    model = made("llama", "float32")
    trial = trial_of(model, 240)
    assert prove_scoring(trial) == []
    engine = TorchGenerator(model.model, character_tokenizer(), 8)
    monkeypatch.setattr(TorchGenerator, "records", property(lambda self: True))
    assert prove_decoding(engine, trial) == []
    assert engine.paths == DecodingPaths(recorded=True)
    own = Fixed._seen
    monkeypatch.setattr(Fixed, "_seen", lambda self, window, dtype: own(self, window, dtype).clamp_min(-1.0))
    said = prove_decoding(engine, trial)
    assert engine.paths == DecodingPaths(refilled=False), "places that are refilled are read by the same mask"
    assert "the operations of a step are launched one by one" in said[0]
    assert "rows that have finished are not replaced" in said[1]


def old_slots_are_seen(patch: pytest.MonkeyPatch) -> None:
    """A row sees what the row before it left in its place."""
    patch.setattr(
        Fixed, "_seen", lambda self, window, dtype: torch.zeros(len(self.base), 1, 1, self._width, dtype=dtype)
    )


def another_prompt_is_copied(patch: pytest.MonkeyPatch) -> None:
    own = Fixed._copy
    patch.setattr(Fixed, "_copy", lambda self, at, source, *rest: own(self, at, (source + 1) % len(self.ids), *rest))


def a_new_prompt_is_not_copied(patch: pytest.MonkeyPatch) -> None:
    own = Fixed._copy
    patch.setattr(Fixed, "_copy", lambda self, at, source, longest, kept: own(self, at, source, longest, {}))


def a_place_keeps_its_position(patch: pytest.MonkeyPatch) -> None:
    own = Fixed.refill

    def refill(self: Fixed, model: Any, places: Any, prompts: Any) -> Tensor:
        before = self.filled.clone()
        fed = own(self, model, places, prompts)
        self.filled.copy_(before)
        return fed

    patch.setattr(Fixed, "refill", refill)


@pytest.mark.parametrize(
    "fault", [old_slots_are_seen, another_prompt_is_copied, a_new_prompt_is_not_copied, a_place_keeps_its_position]
)
def test_a_fault_of_refilled_places_is_caught(
    fault: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made("llama", "float32")
    trial = trial_of(model, 240)
    assert prove_scoring(trial) == []
    engine = TorchGenerator(model.model, character_tokenizer(), 8)
    fault(monkeypatch)
    (said,) = prove_decoding(engine, trial)
    assert engine.paths == DecodingPaths(refilled=False)
    assert "with refilled places" in said
    assert "rows that have finished are not replaced" in said


# --- rows that reach past what changes with length -----------------------------------------------------------------


def longrope() -> Any:
    """Rotary frequencies change for every row of a batch where one of them is longer than 64 tokens."""
    torch.manual_seed(0)
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0, 3.0, 2.0, 8.0]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64} | factors
    config = Phi3Config(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=97,
        max_position_embeddings=512,
        original_max_position_embeddings=64,
        rope_parameters=rope,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return Phi3ForCausalLM(config).eval()


def test_case_16_rows_reach_past_the_switch_of_longrope() -> None:
    assert switches(longrope().config) == {64}
    scoring, ways, said = proved(LanguageModel(longrope()), longest=150)
    assert scoring == Paths(padded=False, shared=False)
    assert ways == DecodingPaths(shared=False, padded=False, cached=False, refilled=False)
    assert any("only rows of one length are scored together" in line for line in said)
    assert any("without a cache" in line for line in said)


def test_case_16_what_no_row_of_the_run_reaches_costs_no_path() -> None:
    assert proved(LanguageModel(longrope()), longest=60) == (Paths(), DecodingPaths(), [])


def test_case_16_a_window_that_the_attention_is_not_told_of() -> None:
    """PhiMoE hands its window on in the mask alone, which rows end to end do not have."""
    torch.manual_seed(0)
    config = PhimoeConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        vocab_size=97,
        sliding_window=40,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = PhimoeForCausalLM(config).eval()
    scoring, _, said = proved(LanguageModel(copy.deepcopy(model)), longest=150)
    assert not scoring.shared
    assert "where rows share a prompt" in said[0]
    assert proved(LanguageModel(model), longest=38)[0] == Paths()


def test_rows_are_as_long_as_they_must_be() -> None:
    model = LanguageModel(tiny("llama", max_position_embeddings=4096))
    assert reach_of(model, 2000) == 288
    assert reach_of(model, 50) == 50
    windowed = LanguageModel(tiny("mistral", max_position_embeddings=4096))
    windowed.model.config.sliding_window = 1024
    assert reach_of(windowed, 2000) == 1024 + 32
    assert reach_of(windowed, 1030) == 1030
    assert reach_of(windowed, 900) == 288
    assert reach_of(LanguageModel(tiny("gpt2")), 900) == 256 - 7  # its context, and what is appended
    text = tuple(range(97))
    assert max(len(ids) for ids, _ in proof_rows(text, 288)) == 288
    assert [prompt for _, prompt in proof_rows(text, 288)] == [224] * 5 + [17] * 2 + [0]


# --- what is proved on ---------------------------------------------------------------------------------------------


def test_the_text_holds_no_special_token_and_none_that_the_model_has_no_row_for() -> None:
    tokenizer = byte_tokenizer()
    ids = ordinary_text(tokenizer, 300)
    assert len(set(ids)) >= 16
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert max(ids) < 300
    assert len(set(ordinary_text(tokenizer, 40))) >= 16  # of which the text has too few: all ordinary ones, mixed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_small_copy_has_a_pair_of_layers_of_each_kind(dtype: str) -> None:
    own = tiny("gemma2", num_hidden_layers=6).to(getattr(torch, dtype))
    before = copy.deepcopy(own.state_dict())
    small = small_copy(own)
    assert len(small.base_model.layers) == small.config.num_hidden_layers == 4  # two with a window, two without
    assert small.config.layer_types == own.config.layer_types[:4]
    assert [layer.self_attn.layer_idx for layer in small.base_model.layers] == [0, 1, 2, 3]
    assert {p.dtype for p in small.parameters()} == {torch.float32}
    assert (next(small.parameters()) is next(own.parameters())) == (dtype == "float32")
    assert own.config.num_hidden_layers == len(own.base_model.layers) == 6
    assert all(torch.equal(a, b) for a, b in zip(before.values(), own.state_dict().values(), strict=True))


def test_the_small_copy_computes_what_a_model_of_these_layers_does() -> None:
    own = tiny("llama", num_hidden_layers=5)
    small = small_copy(own)
    expected = tiny("llama", num_hidden_layers=2)
    expected.load_state_dict({k: v for k, v in own.state_dict().items() if k in expected.state_dict()})
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(small(ids).logits, expected(ids).logits)


def test_mixed_is_proved_without_autocast() -> None:
    own = tiny("qwen2")
    plain = copy.deepcopy(own)
    compute_in_bfloat16(own)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(small_copy(own)(ids).logits, plain(ids).logits)
        assert not torch.equal(own(ids).logits, plain(ids).logits)


def test_what_counts_as_rounding() -> None:
    """10 times the noise is given up, above 3 times in the compute dtype is said."""
    model = LanguageModel(tiny("llama"))
    logic, numerics = (Stage(model, 0.01, mean, torch.bfloat16) for mean in (False, True))
    far, near = [torch.tensor([0.25, 0.01])], [torch.zeros(2)]
    assert logic.gap(far, near) == pytest.approx(0.25)
    assert numerics.gap(far, near) == pytest.approx(0.13)
    assert numerics.complaint(0.13) is not None
    assert (numerics.complaint(0.05), numerics.remark(0.05) is not None) == (None, True)
    assert (numerics.complaint(0.02), numerics.remark(0.02)) == (None, None)
    assert logic.remark(0.05) is None
    assert logic.complaint(float("nan")) is not None


def test_a_model_that_forgets_its_prompt_cannot_be_proved() -> None:
    """A mask that does not matter now may matter after some steps of training."""
    model = LanguageModel(tiny("llama"))
    with torch.no_grad():
        for layer in model.model.base_model.layers:
            layer.self_attn.o_proj.weight.zero_()
    (said,) = prove(model)
    assert "where a token of the prompt is missing" in said
    assert model.paths == Paths(shared=False)


def test_logits_that_are_not_finite_in_a_layer_that_is_not_copied_are_refused() -> None:
    from covrl.errors import UserError

    own = tiny("llama", num_hidden_layers=6)
    with torch.no_grad():
        own.base_model.layers[4].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(UserError, match="its logits are not finite"):
        prove(LanguageModel(own))
