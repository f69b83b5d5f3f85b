"""What every engine must do, as checks that a test runs on any of them.

Each check is given ``make(model, tokenizer) -> Generator``, an engine that samples from the weights of ``model``.
Samples need not be those of another engine; they must be the model's own distribution, told truly, and repeatable.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from models import byte_tokenizer, character_tokenizer, tiny

from covrl.errors import EngineError
from covrl.generation.base import Draw, Generator, Sampling
from covrl.records import Request, Rollout

Make = Callable[[Any, Any], Generator]

DRAW = Draw(seed=7, step=3)
TOLERANCE = 1e-3
"""Nats a token, in float32, between an engine's log-probs and the model's own forward. Engines here are within 1e-4."""

TOKENIZERS = {"characters": cache(character_tokenizer), "bytes": cache(byte_tokenizer)}


def model_of(tokenizer: Any, seed: int = 0) -> Any:
    """A model with heads of 32 dimensions: smaller ones are refused by some kernels."""
    size = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    return tiny("qwen2", len(tokenizer), seed, **size)


def requests(count: int, problems: int = 3) -> list[Request]:
    """Groups that share a prompt, of different lengths."""
    prompts = [tuple(range(5, 9 + 3 * i)) for i in range(problems)]
    return [Request(f"p{i % problems}", i // problems, prompts[i % problems], "prior") for i in range(count)]


def sample(
    engine: Generator, asked: Sequence[Request], draw: Draw = DRAW, tokens: int = 12, stop: str = "Q", temp: float = 1.0
) -> list[Rollout]:
    """Rollouts of ``asked``, of which everything holds that a single rollout can show."""
    wasted = getattr(engine, "wasted", 0)
    found = engine.generate(asked, Sampling(tokens, stop, temp), draw)
    assert [r.request for r in found] == list(asked)
    for r in found:
        assert len(r.log_probs) == len(r.trace_ids) <= tokens
        assert r.valid == (r.text.count(stop) == 1 and r.text.endswith(stop))
        assert (r.closing == "none") == (not r.valid) == (stop not in r.text)
        assert r.finish != "length" or len(r.trace_ids) == tokens
    assert getattr(engine, "wasted", 0) - wasted <= len(asked) // 20, "tokens are sampled behind the end of traces"
    return found


def own_log_probs(model: Any, rollout: Rollout, temperature: float = 1.0) -> torch.Tensor:
    """``[T]`` of a trace by the model's own forward on the bare row."""
    before = rollout.request.prompt_ids + rollout.request.prefix_ids
    with torch.no_grad():
        logits = model(torch.tensor([before + rollout.trace_ids])).logits[0, len(before) - 1 : -1]
    logs = torch.log_softmax(logits.double() / temperature, -1)
    return logs.gather(1, torch.tensor(rollout.trace_ids).long()[:, None])[:, 0]


def assert_told_truly(model: Any, found: Sequence[Rollout], temperature: float = 1.0) -> None:
    for r in found:
        apart = own_log_probs(model, r, temperature) - torch.tensor(r.log_probs, dtype=torch.float64)
        assert not len(apart) or float(apart.abs().max()) < TOLERANCE


def log_probs_are_the_models_own(make: Make) -> None:
    tokenizer = TOKENIZERS["characters"]()
    model = model_of(tokenizer)
    engine = make(model, tokenizer)
    assert_told_truly(model, sample(engine, requests(9)))
    assert_told_truly(model, sample(engine, requests(9), temp=0.7), temperature=0.7)


def samples_follow_the_distribution(make: Make) -> None:
    """Chi-square over eight sets of tokens of like probability, at two temperatures."""
    tokenizer = TOKENIZERS["characters"]()
    model = model_of(tokenizer)
    engine = make(model, tokenizer)
    for temperature in (1.0, 1.6):
        asked = [Request("p", i, (5, 6, 7), "prior") for i in range(400)]
        found = sample(engine, asked, tokens=1, stop="Q", temp=temperature)
        first = torch.tensor([r.trace_ids[0] if r.trace_ids else tokenizer.convert_tokens_to_ids("Q") for r in found])
        expected = torch.softmax(model(torch.tensor([[5, 6, 7]])).logits[0, -1].double() / temperature, -1).detach()
        order = expected.argsort(descending=True)
        bins = torch.empty_like(order)
        bins[order] = ((expected[order].cumsum(0) - expected[order] / 2) * 8).long().clamp_max(7)
        wanted = 400 * torch.zeros(8, dtype=torch.float64).index_add(0, bins, expected)
        counts = torch.bincount(bins[first], minlength=8)
        full = wanted > 5
        assert float(((counts - wanted) ** 2 / wanted)[full].sum()) < 24.3  # 7 degrees of freedom, p = 0.001


def a_sample_depends_on_its_key_alone(make: Make) -> None:
    tokenizer = TOKENIZERS["characters"]()
    engine = make(model_of(tokenizer), tokenizer)
    asked = requests(12)
    found = [r.trace_ids for r in sample(engine, asked)]
    assert [r.trace_ids for r in sample(engine, asked)] == found
    assert [r.trace_ids for r in sample(engine, asked[::-1])][::-1] == found
    assert [r.trace_ids for r in sample(engine, asked[3:7])] == found[3:7]
    assert len(set(found)) > 6
    for other in (Draw(8, 3), Draw(7, 4), Draw(7, 3, "answer")):
        assert sum(r.trace_ids != ids for r, ids in zip(sample(engine, asked, other), found, strict=True)) > 6


def temperature_zero_is_greedy(make: Make) -> None:
    tokenizer = TOKENIZERS["characters"]()
    model = model_of(tokenizer)
    found = sample(make(model, tokenizer), requests(3), tokens=6, temp=0.0)
    assert_told_truly(model, found)
    for r in found:
        row = torch.tensor([r.request.prompt_ids + r.trace_ids])
        best = model(row).logits[0, len(r.request.prompt_ids) - 1 : -1].argmax(-1)
        assert tuple(best.tolist()) == r.trace_ids


def a_trace_ends_at_the_stop_text_or_at_its_limit(make: Make) -> None:
    tokenizer = TOKENIZERS["characters"]()
    model = model_of(tokenizer)
    engine = make(model, tokenizer)
    found = sample(engine, requests(60, problems=2), stop="a")
    assert {r.finish for r in found} >= {"closed", "length"}
    assert all(r.closing == "sampled" for r in found if r.valid)
    assert_told_truly(model, found)
    pair = next(r.text[3:5] for r in found if r.finish == "length")
    again = sample(engine, requests(60, problems=2), stop=pair)  # a stop text of two tokens
    assert any(r.valid and len(r.trace_ids) == 5 for r in again)
    special = sample(engine, requests(90, problems=2), stop="<unk>")  # as the closing tag of many models is
    assert any(r.valid for r in special)
    assert {len(r.trace_ids) for r in sample(engine, requests(6), tokens=1)} <= {0, 1}


def an_end_counts_only_behind_the_texts_before_it(make: Make) -> None:
    """Of two letters that this model often writes, one that comes before the other is no end."""
    tokenizer = TOKENIZERS["characters"]()
    model = model_of(tokenizer)
    engine = make(model, tokenizer)
    free = "".join(r.text for r in engine.generate(requests(20), Sampling(20, "\x00", 1.0), DRAW))
    (end, _), (before, _) = Counter(c for c in free if c.isalnum()).most_common(2)
    found = engine.generate(requests(60), Sampling(20, end, 1.0, after=(before,)), DRAW)
    whole = re.compile(rf"[^{before}]*{before}[^{end}]*{end}", re.DOTALL)
    assert {r.finish for r in found} >= {"closed", "length"}
    for r in found:
        ended = whole.match(r.text)
        assert r.valid == (ended is not None)
        assert ended is None or ended[0] == r.text
    assert any(r.text.index(end) < len(r.text) - 1 for r in found if end in r.text)
    assert_told_truly(model, found)


def a_stop_text_inside_a_token_is_left_to_the_template(make: Make) -> None:
    """A trace keeps the tokens before the one that holds the stop text; what comes behind it is dropped."""
    tokenizer = TOKENIZERS["bytes"]()
    model = model_of(tokenizer)
    found = sample(make(model, tokenizer), requests(60, problems=2), stop=">")
    assert {"sampled", "appended"} <= {r.closing for r in found}
    for r in found:
        decoded = str(tokenizer.decode(list(r.trace_ids))) if r.trace_ids else ""
        assert decoded + (">" if r.closing == "appended" else "") == r.text
        assert (">" in decoded) == (r.closing == "sampled")
    assert_told_truly(model, found)


def an_end_of_sequence_before_the_stop_text_is_its_own_ending(make: Make) -> None:
    tokenizer = TOKENIZERS["characters"]()
    model = model_of(tokenizer)
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids("e"), tokenizer.convert_tokens_to_ids("t")]
    found = sample(make(model, tokenizer), requests(60))
    ended = [r for r in found if r.finish == "eos"]
    assert ended
    ends = {*model.generation_config.eos_token_id, tokenizer.eos_token_id}
    assert all(r.trace_ids[-1] in ends and not ends & set(r.trace_ids[:-1]) for r in ended)
    assert not any(ends & set(r.trace_ids) for r in found if r.finish != "eos")


def prefix_ids_are_read_but_not_returned(make: Make) -> None:
    tokenizer = TOKENIZERS["characters"]()
    engine = make(model_of(tokenizer), tokenizer)
    whole, split = Request("p0", 0, (5, 6, 7, 8, 9), "prior"), Request("p0", 0, (5, 6, 7), "prior", prefix_ids=(8, 9))
    assert sample(engine, [whole])[0].trace_ids == sample(engine, [split])[0].trace_ids


def a_publish_changes_the_next_sample(make: Make) -> None:
    """All weights, from the next call on, for prompts that were read before too."""
    tokenizer = TOKENIZERS["characters"]()
    model, other = model_of(tokenizer), model_of(tokenizer, seed=1)
    engine = make(model, tokenizer)
    before = sample(engine, requests(9))
    assert_told_truly(model, before)
    with torch.no_grad():
        for own, new in zip(model.parameters(), other.parameters(), strict=True):
            own.copy_(new)
    engine.publish(5)
    after = sample(engine, requests(9))
    assert {r.version for r in after} == {5}
    assert [r.trace_ids for r in after] != [r.trace_ids for r in before]
    assert_told_truly(model, after)
    with torch.no_grad():
        for name, own in model.named_parameters():  # each layer by itself: an engine may keep copies of some
            if "mlp.up_proj" in name or "o_proj" in name:
                own.mul_(1.5)
    engine.publish(6)
    assert_told_truly(model, sample(engine, requests(9)))


def an_engine_that_dies_is_an_error_with_its_name(make: Make) -> None:
    """Nothing is made up for it, and weights that it cannot take are no error before the next sample."""
    tokenizer = TOKENIZERS["characters"]()
    engine = make(model_of(tokenizer), tokenizer)
    sample(engine, requests(3))
    make.kill()  # ty: ignore
    for _ in range(2):
        with pytest.raises(EngineError, match=f"{engine.backend.name} does not answer"):  # ty: ignore
            engine.generate(requests(3), Sampling(4, "Q", 1.0), DRAW)
        engine.publish(1)


CONTRACT = {
    check.__name__: check
    for check in (
        log_probs_are_the_models_own,
        samples_follow_the_distribution,
        a_sample_depends_on_its_key_alone,
        temperature_zero_is_greedy,
        a_trace_ends_at_the_stop_text_or_at_its_limit,
        an_end_counts_only_behind_the_texts_before_it,
        a_stop_text_inside_a_token_is_left_to_the_template,
        an_end_of_sequence_before_the_stop_text_is_its_own_ending,
        prefix_ids_are_read_but_not_returned,
        a_publish_changes_the_next_sample,
        an_engine_that_dies_is_an_error_with_its_name,
    )
}
