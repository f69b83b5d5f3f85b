"""The torch engine against plain forwards: log-probs, seeds, stops, batches."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from models import FAMILIES, byte_tokenizer, character_tokenizer, prove, prove_engine, tiny
from transformers import MambaConfig, MambaForCausalLM

from covrl.config import PromptConfig
from covrl.errors import UserError
from covrl.generation import decoding
from covrl.generation import engine as engine_module
from covrl.generation.base import Draw, Sampling
from covrl.generation.engine import DecodingPaths, TorchGenerator, choose, next_tokens, nucleus
from covrl.generation.random import trace_key, uniforms
from covrl.models.model import LanguageModel
from covrl.prompts import Prompts
from covrl.records import Problem, Request, Rollout

TOKENIZER = character_tokenizer()
DRAW = Draw(seed=7, step=3)


def requests(count: int, problems: int = 3) -> list[Request]:
    """Groups that share a prompt, of different lengths, so that batches hold padding and shared prefixes."""
    prompts = [tuple(range(5, 9 + 3 * i)) for i in range(problems)]
    return [Request(f"p{i % problems}", i // problems, prompts[i % problems], "prior") for i in range(count)]


def generate(
    family: str, asked: list[Request], rows: int = 64, double: bool = False, **sampling: object
) -> list[Rollout]:
    model = tiny(family, len(TOKENIZER))
    engine = TorchGenerator(model.double() if double else model, TOKENIZER, rows)
    return engine.generate(asked, Sampling(**{"max_tokens": 12, "stop": "Q", **sampling}), DRAW)  # ty: ignore


@pytest.mark.parametrize("rows", [5, 64])
@pytest.mark.parametrize("way", ["shared", "copied", "padded", "recorded"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("error::FutureWarning")  # users would see those of transformers
def test_every_sample_is_what_a_plain_forward_and_the_keyed_draw_give(
    family: str, way: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared prompts, padding, cache and leaving rows change nothing: each token is re-derived from one bare row."""
    shared = way != "padded"
    if way == "shared":
        monkeypatch.setattr(decoding, "LONG", 1)
        monkeypatch.setattr(decoding, "MANY", 1)  # while two rows of a prompt are left, then they get copies
    model = tiny(family, len(TOKENIZER)).double()
    if shared:
        assert not prove(LanguageModel(model))
    engine = TorchGenerator(model, TOKENIZER, rows)
    prove_engine(engine)  # Gemma 2's eager attention in transformers gives NaN for left padding in float64
    assert engine.paths.shared == shared
    assert engine.paths.cached
    engine.paths = engine.paths._replace(recorded=way == "recorded")
    for rollout in engine.generate(requests(9), Sampling(max_tokens=12, stop="Q"), DRAW):
        ids = rollout.request.prompt_ids + rollout.trace_ids
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, len(rollout.request.prompt_ids) - 1 : -1]
        log_probs = torch.log_softmax(logits, -1)
        key = np.array([trace_key(DRAW, rollout.request.problem_id, rollout.request.index)], dtype=np.uint64)
        drawn = [int(choose(row[None], uniforms(key, t))[0]) for t, row in enumerate(log_probs)]
        assert tuple(drawn) == rollout.trace_ids
        taken = log_probs.gather(1, torch.tensor(rollout.trace_ids)[:, None])[:, 0]
        tolerance = 1e-4 if family != "gpt2" else 1e-10  # the other families round their norms to float32
        assert torch.allclose(taken, torch.tensor(rollout.log_probs, dtype=torch.float64), atol=tolerance)


def test_the_cache_is_passed_by_the_name_that_the_model_knows() -> None:
    class Old:
        def forward(self, input_ids: Any, past_key_values: Any = None) -> Any: ...

    class New:
        def forward(self, input_ids: Any, cache: Any = None) -> Any: ...

    assert [decoding.cache_keyword(kind) for kind in (Old, New)] == ["past_key_values", "cache"]


def test_the_same_call_gives_the_same_bits() -> None:
    assert generate("qwen2", requests(9)) == generate("qwen2", requests(9))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("family", ["qwen2", "mistral"])
def test_rows_longer_than_their_first_room_go_on_as_before(
    family: str, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their keys and values move to twice the room, once or more often."""
    monkeypatch.setattr(decoding, "ROOM", 4)
    monkeypatch.setattr(decoding, "LONG", 1 if shared else 128)
    monkeypatch.setattr(decoding, "MANY", 0)
    model = tiny(family, len(TOKENIZER)).double()
    prove(LanguageModel(model))
    rollouts = TorchGenerator(model, TOKENIZER, 64).generate(requests(7), Sampling(max_tokens=40, stop="~"), DRAW)
    assert max(len(r.trace_ids) for r in rollouts) == 40
    for rollout in rollouts:
        ids = rollout.request.prompt_ids + rollout.trace_ids
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, len(rollout.request.prompt_ids) - 1 : -1]
        taken = torch.log_softmax(logits, -1).gather(1, torch.tensor(rollout.trace_ids)[:, None])[:, 0]
        assert torch.allclose(taken, torch.tensor(rollout.log_probs, dtype=torch.float64), atol=1e-4)


def test_a_prompt_that_no_row_continues_any_more_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "LONG", 1)
    monkeypatch.setattr(decoding, "MANY", 0)
    model = tiny("qwen2", len(TOKENIZER))
    prove(LanguageModel(model))
    with torch.no_grad():
        _, state = decoding.prefill_shared(model, [(5, 6), (7, 8, 9), (5, 6), (10,)], torch.device("cpu"))
    assert [t.shape[0] for t in state.prompts[0]] == [3, 3]
    state.select(torch.tensor([3, 0]))
    assert [t.shape[0] for t in state.prompts[0]] == [2, 2]
    assert state.lengths[state.of].tolist() == [1, 2]
    assert not state.own
    monkeypatch.setattr(decoding, "MANY", 1)
    state.select(torch.tensor([1]))
    assert not state.prompts
    assert state.own[0][0].shape[:3] == (1, 2, 3 + decoding.ROOM)


@pytest.mark.parametrize("rows", [1, 2, 4, 64])
def test_batch_composition_does_not_matter_in_float64(rows: int) -> None:
    asked = requests(12)
    expected = [r.trace_ids for r in generate("gpt2", asked, double=True)]
    assert [r.trace_ids for r in generate("gpt2", asked[::-1], rows, double=True)][::-1] == expected
    assert [r.trace_ids for r in generate("gpt2", asked[3:7], rows, double=True)] == expected[3:7]


def test_in_float32_another_batch_differs_only_at_a_decision_edge() -> None:
    asked = requests(40)
    model = tiny("qwen2", len(TOKENIZER))
    for a, b in zip(generate("qwen2", asked), generate("qwen2", asked, rows=3), strict=True):
        if a.trace_ids == b.trace_ids:
            continue
        first = next(i for i, (x, y) in enumerate(zip(a.trace_ids, b.trace_ids, strict=False)) if x != y)
        ids = torch.tensor([a.request.prompt_ids + a.trace_ids[:first]])
        edges = torch.softmax(model(ids).logits[0, -1].double(), -1).cumsum(-1)
        key = np.array([trace_key(DRAW, a.request.problem_id, a.request.index)], dtype=np.uint64)
        assert float((edges - float(uniforms(key, first)[0])).abs().min()) < 1e-5


def test_draws_depend_on_every_part_of_the_key() -> None:
    base = trace_key(Draw(1, 2, "trace"), "p", 3)
    others = [
        trace_key(Draw(9, 2, "trace"), "p", 3),
        trace_key(Draw(1, 9, "trace"), "p", 3),
        trace_key(Draw(1, 2, "answer"), "p", 3),
        trace_key(Draw(1, 2, "trace"), "q", 3),
        trace_key(Draw(1, 2, "trace"), "p", 4),
        trace_key(Draw(1, 2, "trace"), "3\x1fp", 3),
    ]
    assert len({base, *others}) == 7


def test_uniforms_are_uniform_and_uncorrelated_between_positions() -> None:
    keys = np.array([trace_key(DRAW, f"p{i}", 0) for i in range(20_000)], dtype=np.uint64)
    first, second = uniforms(keys, 0), uniforms(keys, 1)
    assert first.min() >= 0
    assert first.max() < 1
    counts, _ = np.histogram(first, bins=20, range=(0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.025


def test_known_random_numbers() -> None:
    """Fixed for ever: changing them would change every run of every user."""
    assert trace_key(Draw(0, 0), "p", 0) == 13173355306201185088
    assert uniforms(np.array([0], dtype=np.uint64), 0)[0] == pytest.approx(0xE220A8397B1DCDAF / 2**64, abs=1e-15)


def test_choose_is_the_inverse_cdf_and_never_takes_the_impossible() -> None:
    log_probs = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).log().repeat(4, 1)
    assert choose(log_probs, np.array([0.0, 0.2499, 0.2501, 1 - 2**-53])).tolist() == [1, 1, 3, 3]
    assert choose(log_probs, None).tolist() == [3] * 4


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.7, "top_p": 0.8}, {"temperature": 0.0}])
def test_tokens_drawn_a_few_rows_at_a_time_are_the_same_bits(
    sampling: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = 3 * torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    how = Sampling(max_tokens=1, stop="Q", **sampling)  # ty: ignore[invalid-argument-type]
    draws = None if how.temperature == 0 else np.linspace(0.01, 0.99, 7)
    whole = next_tokens(logits, how, draws)
    for bytes_at_once in (1, 2 * 8 * 11, 5 * 8 * 11 + 3):
        monkeypatch.setattr(engine_module, "DRAWN_BYTES", bytes_at_once)
        assert all(torch.equal(*pair) for pair in zip(whole, next_tokens(logits, how, draws), strict=True))


def test_logits_that_are_not_finite_are_an_error_and_not_a_token() -> None:
    with pytest.raises(FloatingPointError):
        choose(torch.tensor([[0.0, float("nan")]]), np.array([0.5]))


def test_sampling_follows_the_distribution() -> None:
    model = tiny("gpt2", len(TOKENIZER)).double()
    engine = TorchGenerator(model, TOKENIZER, 4096)
    asked = [Request("p", i, (5, 6, 7), "prior") for i in range(4000)]
    first = [r.trace_ids[0] for r in engine.generate(asked, Sampling(1, "Q"), DRAW)]
    expected = torch.softmax(model(torch.tensor([[5, 6, 7]])).logits[0, -1], -1).detach()
    found = torch.bincount(torch.tensor(first), minlength=len(expected)) / len(first)
    assert float((found - expected).abs().sum() / 2) < 0.05


def test_temperature_zero_is_greedy() -> None:
    model = tiny("llama", len(TOKENIZER))
    engine = TorchGenerator(model, TOKENIZER, 8)
    (rollout,) = engine.generate(requests(1), Sampling(6, "Q", temperature=0.0), DRAW)
    ids = list(rollout.request.prompt_ids)
    for token in rollout.trace_ids:
        assert token == int(model(torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)


def test_finish_reasons() -> None:
    asked = requests(60, problems=2)
    found = generate("qwen2", asked, stop="a")
    closed = [r for r in found if r.finish == "closed"]
    assert closed
    assert all(r.text.count("a") == 1 and r.text.endswith("a") and r.closing == "sampled" for r in closed)
    cut = [r for r in found if r.finish == "length"]
    assert cut
    assert all(len(r.trace_ids) == 12 and r.closing == "none" and "a" not in r.text for r in cut)


def test_an_end_of_sequence_token_before_the_tag_is_its_own_ending() -> None:
    model = tiny("qwen2", len(TOKENIZER))
    model.generation_config.eos_token_id = [TOKENIZER.convert_tokens_to_ids("e"), TOKENIZER.convert_tokens_to_ids("t")]
    found = TorchGenerator(model, TOKENIZER, 64).generate(requests(60), Sampling(12, "Q"), DRAW)
    ended = [r for r in found if r.finish == "eos"]
    assert ended
    ends = {*model.generation_config.eos_token_id, TOKENIZER.eos_token_id}
    assert all(r.trace_ids[-1] in ends and not ends & set(r.trace_ids[:-1]) and not r.valid for r in ended)


def test_a_tag_inside_a_merged_token_leaves_the_trace_and_is_appended_by_the_template(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """End to end with a BPE that merges ``>`` and newline: what is kept, what text is shown, what a row holds."""
    tokenizer = byte_tokenizer()
    script = [*tokenizer("so 42").input_ids, *tokenizer("</think").input_ids, tokenizer.convert_tokens_to_ids(">\n")]
    steps = iter(script)
    monkeypatch.setattr(engine_module, "choose", lambda log_probs, draws: torch.full((len(log_probs),), next(steps)))
    engine = TorchGenerator(tiny("gpt2", len(tokenizer)), tokenizer, 8)
    prompts = Prompts(tokenizer, PromptConfig())
    problem = Problem("p", "q", "42")
    request = Request("p", 0, prompts.prior(problem), "prior")
    (rollout,) = engine.generate([request], Sampling(40, "</think>"), DRAW)
    assert (rollout.finish, rollout.closing, rollout.text) == ("closed", "appended", "so 42</think>")
    assert rollout.trace_ids == tuple(tokenizer("so 42").input_ids)
    assert len(rollout.log_probs) == len(rollout.trace_ids)
    row = prompts.prior_row(problem, rollout)
    assert str(tokenizer.decode(list(row.ids))).endswith("<think>\nso 42</think>\n<answer>42</answer>")


def test_published_version_is_stamped() -> None:
    engine = TorchGenerator(tiny("gpt2", len(TOKENIZER)), TOKENIZER, 8)
    engine.publish(5)
    assert engine.generate(requests(1), Sampling(2, "Q"), DRAW)[0].version == 5


def mamba() -> Any:
    """A recurrent model: its state cannot be padded on the left."""
    torch.manual_seed(0)
    return MambaForCausalLM(
        MambaConfig(vocab_size=len(TOKENIZER), hidden_size=32, num_hidden_layers=2, state_size=4)
    ).eval()


def no_cache() -> Any:
    """A model that has no way to go on from a cache."""
    model = tiny("llama", len(TOKENIZER))
    own = model.forward

    def forward(*given: Any, **named: Any) -> Any:
        if named.get("use_cache"):
            raise NotImplementedError("no cache")
        return own(*given, **named)

    model.forward = forward
    return model


def no_left_padding() -> Any:
    """A model that ignores the attention mask, as some do without a word."""
    model = tiny("llama", len(TOKENIZER))
    own = model.forward

    def deaf(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        return own(*args, **kwargs)

    model.forward = deaf
    return model


def knows_arrangements() -> Any:
    """A model as it is loaded: its attention is the one that reads shared prompts."""
    model = LanguageModel(tiny("mistral", len(TOKENIZER)))
    assert not prove(model)
    return model.model


def breaks_shared() -> Any:
    """The same, with logits for one position only where several are asked for by number, as some models have them."""
    model = knows_arrangements()
    own = model.forward

    def one(*args: Any, logits_to_keep: Any = 0, **kwargs: Any) -> Any:
        return own(*args, logits_to_keep=logits_to_keep if isinstance(logits_to_keep, int) else 1, **kwargs)

    model.forward = one
    return model


@pytest.mark.parametrize(
    ("make", "paths", "notes"),
    [
        (
            no_cache,
            DecodingPaths(False, False, False, refilled=False),
            ["only prompts of one length", "without a cache"],
        ),
        (mamba, DecodingPaths(False, False, refilled=False), ["only prompts of one length"]),
        (no_left_padding, DecodingPaths(False, False, refilled=False), ["differ by .* only prompts of one length"]),
        (lambda: tiny("gemma2", len(TOKENIZER)), DecodingPaths(False, refilled=False), []),
        (knows_arrangements, DecodingPaths(), []),
        (breaks_shared, DecodingPaths(False, refilled=False), ["fails .* each row keeps its own copy of its prompt"]),
    ],
)
def test_decoding_falls_back_and_samples_stay_those_of_the_model(
    make: Callable[[], Any], paths: DecodingPaths, notes: list[str]
) -> None:
    model = make()
    engine = TorchGenerator(model, TOKENIZER, 5)
    found = prove_engine(engine)
    assert engine.paths == paths
    assert len(found) == len(notes)
    assert all(re.search(note, text) for note, text in zip(notes, found, strict=True))
    for rollout in engine.generate(requests(9), Sampling(max_tokens=8, stop="Q"), DRAW):
        ids = rollout.request.prompt_ids + rollout.trace_ids
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, len(rollout.request.prompt_ids) - 1 : -1]
        taken = torch.log_softmax(logits, -1).gather(1, torch.tensor(rollout.trace_ids)[:, None])[:, 0]
        assert torch.allclose(taken, torch.tensor(rollout.log_probs), atol=1e-4)


def test_a_generator_that_no_path_makes_right_is_refused() -> None:
    model = tiny("llama", len(TOKENIZER))
    own, calls = model.forward, iter(range(1000))

    def noisy(*args: Any, **kwargs: Any) -> Any:
        out = own(*args, **kwargs)
        if "logits_to_keep" not in kwargs:  # decoding alone asks so
            out.logits = out.logits * (2 + next(calls))
        return out

    model.forward = noisy
    with pytest.raises(UserError, match="does not agree with the model's own forward"):
        prove_engine(TorchGenerator(model, TOKENIZER, 5))


def test_a_nucleus_is_the_fewest_tokens_with_that_probability() -> None:
    log_probs = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.25, 0.25, 0.25, 0.25]]).log()
    kept = nucleus(log_probs, 0.7).exp()
    torch.testing.assert_close(kept[0], torch.tensor([0.0, 2 / 3, 0.0, 1 / 3]))
    torch.testing.assert_close(kept[1], torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.0]))
    torch.testing.assert_close(nucleus(log_probs, 1e-9).exp()[0], torch.tensor([0.0, 1.0, 0.0, 0.0]))
    torch.testing.assert_close(nucleus(log_probs, 0.9999).exp(), log_probs.exp())
