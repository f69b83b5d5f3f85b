"""The split forward proves itself at load, for several families, and says so where it does not hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from models import FAMILIES, character_tokenizer, prove, tiny
from torch import Tensor
from transformers import CohereConfig, CohereForCausalLM

from covrl.config import ModelConfig
from covrl.errors import UserError
from covrl.models.model import LanguageModel, Paths, load_model, resolve_device
from covrl.records import Problem, Request, Rollout, Row, Span
from covrl.scoring.head import log_prob
from covrl.scoring.pack import Context, Reading, score


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_known_families_keep_every_fast_path(family: str, dtype: torch.dtype) -> None:
    model = LanguageModel(tiny(family).to(dtype))
    assert prove(model) == []
    assert model.paths == Paths()


def plain_scores(model: Any, rows: list[tuple[int, ...]]) -> list[Tensor]:
    """Log-probs of each row's tokens after the first, one row at a time through the model's own forward."""
    with torch.no_grad():
        every = [torch.log_softmax(model(torch.tensor([row])).logits[0].float(), -1) for row in rows]
    return [logs[:-1].gather(1, torch.tensor(row[1:])[:, None])[:, 0] for logs, row in zip(every, rows, strict=True)]


def scores_through_packs(model: LanguageModel, rows: list[tuple[int, ...]]) -> list[Tensor]:
    """The same through the production path."""
    made = {
        str(i): Row(row, {"trace": Span(1, len(row))}) for i, row in enumerate(rows)
    }  # rendered by problem id below
    context = Context("prior", lambda problem, rollout: made[problem.id])
    rollout = Rollout(Request("", 0, (), "prior"), (), (), "closed", "sampled", "")
    pairs = [(Problem(key, "", ""), rollout) for key in made]
    reading = Reading("trace", ("prior",), log_prob, ("prior",))
    return [s["trace", "prior"] for s in score({"policy": model}, (context,), (reading,), pairs, 4096, 1 << 12)]


def cohere() -> Any:
    """Its output layer scales the logits, which no matrix, bias and soft cap can tell."""
    torch.manual_seed(0)
    config = CohereConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        logit_scale=0.5,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    return CohereForCausalLM(config).eval()


def capped_in_secret() -> Any:
    """A soft cap that the config does not tell."""
    model = tiny("gemma2", 50)
    own = model.forward

    def capped(*args: Any, **kwargs: Any) -> Any:
        out = own(*args, **kwargs)
        out.logits = 3.0 * torch.tanh(out.logits / 3.0)
        return out

    model.forward = capped
    return model


def looks_behind_the_row() -> Any:
    """A trunk whose states depend on how wide the batch is: padding is not harmless."""
    model = tiny("llama", 50)
    own = model.base_model.forward

    def wide(*args: Any, **kwargs: Any) -> Any:
        out = own(*args, **kwargs)
        out.last_hidden_state = out.last_hidden_state * (1 + 0.1 * kwargs["input_ids"].shape[1])
        return out

    model.base_model.forward = wide
    return model


@pytest.mark.parametrize(
    ("make", "paths", "said"),
    [
        (cohere, Paths(split_head=False), "CohereForCausalLM: its log-probs differ by .* from a matrix"),
        (capped_in_secret, Paths(split_head=False), "whole logits are computed"),
        (looks_behind_the_row, Paths(padded=False, shared=False), "differ by .* with padding after a row"),
    ],
)
def test_a_path_that_does_not_hold_is_given_up_and_scores_stay_right(make: Any, paths: Paths, said: str) -> None:
    model = LanguageModel(make())
    (note,) = prove(model)
    assert re.search(said, note)
    assert model.paths == paths
    rows = [tuple(range(2, 2 + n)) for n in (9, 4, 9, 6)]
    for found, expected in zip(scores_through_packs(model, rows), plain_scores(model.model, rows), strict=True):
        assert torch.allclose(found, expected, atol=1e-4)


def test_whole_logits_have_the_gradient_of_the_plain_model() -> None:
    model = LanguageModel(cohere())
    prove(model)
    row = (3, 4, 5, 6, 7)
    logits = model.projection()(model.hidden([row])[0])
    torch.log_softmax(logits, -1)[1, 6].backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.model.zero_grad()
    torch.log_softmax(model.model(torch.tensor([row])).logits[0], -1)[1, 6].backward()
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


def test_logits_that_are_not_finite_are_refused() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="LlamaForCausalLM: its logits are not finite"):
        prove(LanguageModel(model))


def test_a_model_that_answers_differently_each_time_is_refused() -> None:
    model = tiny("llama")
    own, calls = model.forward, iter(range(1000))

    def noisy(*args: Any, **kwargs: Any) -> Any:
        out = own(*args, **kwargs)
        out.logits = out.logits * (1 + next(calls))
        return out

    model.forward = noisy
    with pytest.raises(UserError, match=r"from call to call in float32, where rounding explains 0\.1"):
        prove(LanguageModel(model))


@pytest.mark.parametrize(("part", "kept"), [(1.0, False), (0.1, True)])
def test_rounding_that_differs_from_call_to_call_is_said_and_no_fault(part: float, kept: bool) -> None:
    """In bfloat16 one token of many may move by more than 0.1 nats; a change of all of them is no rounding."""
    model = tiny("llama").bfloat16()
    own, calls = model.forward, iter(range(1000))

    def noisy(*args: Any, **kwargs: Any) -> Any:
        out = own(*args, **kwargs)
        moved = max(int(out.logits.shape[1] * part), 1)
        out.logits[:, :moved, ::2] += 0.3 * (next(calls) % 2)
        return out

    model.forward = noisy
    if kept:
        notes = prove(LanguageModel(model))
        assert any("differ by 0.0" in note and "may reach other weights" in note for note in notes)
    else:
        with pytest.raises(UserError, match=r"in bfloat16, where rounding explains 0\.078"):
            prove(LanguageModel(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_folder_loads_with_its_tokenizer(family: str, tmp_path: Path) -> None:
    tokenizer = character_tokenizer()
    model = tiny(family, len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, read_back = load_model(ModelConfig(path=str(tmp_path), device="cpu"))
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.model.state_dict().values(), strict=True)
    )
    if (
        family != "qwen2"
    ):  # transformers puts its own byte-level tokenizer in the place of any that a Qwen2 folder holds
        assert read_back("ab 1").input_ids == tokenizer("ab 1").input_ids


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    model = tiny("gpt2")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"holds no \*.safetensors weights"):
        load_model(ModelConfig(path=str(tmp_path), device="cpu"))


def test_an_unknown_device_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"model\.device: gpu"):
        resolve_device("gpu")
