"""What every engine must do, as checks that a test runs on any of them.

Each check is given ``make(model, tokenizer) -> Generator``, an engine that samples from the weights of ``model``.
Samples need not be those of another engine; they must be the model's own distribution, told truly, and repeatable.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from models import byte_tokenizer, character_tokenizer, tiny

from covrl.errors import EngineError, UserError
from covrl.generation.base import Draw, Generator, Sampling
from covrl.records import Observe, Observed, Request, Rollout

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
        most = r.request.max_tokens or tokens
        assert len(r.log_probs) == len(r.trace_ids) <= most
        assert r.valid == (r.text.count(stop) == 1 and r.text.endswith(stop))
        assert (r.closing == "none") == (not r.valid) == (stop not in r.text)
        assert r.finish != "length" or len(r.trace_ids) == most
    assert getattr(engine, "wasted", 0) - wasted <= len(asked) // 20, "tokens are sampled behind the end of traces"
    return found


def own_logs(model: Any, rollout: Rollout, temperature: float = 1.0) -> torch.Tensor:
    """``[T, V]`` at a trace's tokens by the model's own forward on the bare row."""
    before = rollout.request.prompt_ids + rollout.request.prefix_ids
    with torch.no_grad():
        logits = model(torch.tensor([before + rollout.trace_ids])).logits[0, len(before) - 1 : -1]
    return torch.log_softmax(logits.double() / temperature, -1)


def own_log_probs(model: Any, rollout: Rollout, temperature: float = 1.0) -> torch.Tensor:
    """``[T]`` of a trace's own tokens."""
    logs = own_logs(model, rollout, temperature)
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


def a_nucleus_is_sampled_from_its_tokens_alone(make: Make) -> None:
    """With ``top_p`` each token is among the fewest that have this probability, and its log-prob is one of these."""
    tokenizer = TOKENIZERS["characters"]()
    model = model_of(tokenizer)
    engine = make(model, tokenizer)
    for top_p, temperature in ((0.6, 1.0), (0.4, 1.6)):
        found = engine.generate(requests(9), Sampling(8, "Q", temperature, top_p), DRAW)
        assert sum(len(r.trace_ids) for r in found) > 40
        for r in found:
            for token, told, logs in zip(r.trace_ids, r.log_probs, own_logs(model, r, temperature), strict=True):
                probs, ids = logs.exp().sort(descending=True)
                kept = int((probs.cumsum(0) < top_p).sum()) + 1
                assert token in ids[:kept].tolist()
                assert told == pytest.approx(float(logs[token] - probs[:kept].sum().log()), abs=TOLERANCE)


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


def a_prefix_is_read_and_part_of_the_text_and_not_returned_as_sampled(make: Make) -> None:
    """It is read as a prompt's end is; which random numbers a sample is drawn with differs, and the mode does not."""
    tokenizer = TOKENIZERS["characters"]()
    model = model_of(tokenizer)
    engine = make(model, tokenizer)
    whole, split = Request("p0", 0, (5, 6, 7, 8, 9), "prior"), Request("p0", 0, (5, 6, 7), "prior", prefix_ids=(8, 9))
    (one,), (other,) = (sample(engine, [asked], temp=0.0) for asked in (whole, split))
    assert one.trace_ids == other.trace_ids
    assert other.text == str(tokenizer.decode([8, 9])) + one.text
    asked = [replace(r, prefix_ids=tuple(range(20, 20 + i % 4))) for i, r in enumerate(requests(12))]
    found = sample(engine, asked)
    assert_told_truly(model, found)
    assert all(r.text.startswith(str(tokenizer.decode(list(r.request.prefix_ids)))) for r in found)
    assert [r.trace_ids for r in sample(engine, asked[::-1])][::-1] == [r.trace_ids for r in found]


def an_end_that_begins_in_the_prefix_counts(make: Make) -> None:
    """The stop text of two tokens, the first given, the second sampled; a prefix that ends with all of it is closed."""
    tokenizer = TOKENIZERS["characters"]()
    model = model_of(tokenizer)
    engine = make(model, tokenizer)
    (plain,) = sample(engine, [Request("p0", 0, (5, 6, 7), "prior")], temp=0.0, stop="\x00")
    pair, asked = plain.text[3:5], Request("p0", 0, (5, 6, 7), "prior", prefix_ids=plain.trace_ids[:4])
    whole = plain.text[: plain.text.index(pair) + 2]
    assert len(whole) == 5
    (seam,) = sample(engine, [asked], temp=0.0, stop=pair)
    assert (seam.text, seam.trace_ids, seam.closing) == (whole, plain.trace_ids[4:5], "sampled")
    closed = replace(asked, prefix_ids=plain.trace_ids[:5])
    (given, more) = sample(engine, [closed, replace(asked, prefix_ids=())], temp=0.0, stop=pair)
    assert (given.text, given.trace_ids, given.finish, given.closing) == (whole, (), "closed", "sampled")
    assert (more.text, more.trace_ids) == (whole, plain.trace_ids[:5])
    late = replace(asked, prefix_ids=plain.trace_ids[:6])
    with pytest.raises(UserError, match=r"problem p0, rollout 0: Request.prefix_ids go on after .*; cut them there"):
        engine.generate([asked, late], Sampling(12, pair, 0.0), DRAW)


def a_branch_goes_on_from_the_tokens_it_was_given(make: Make) -> None:
    """As a method asks for it in the plan of a second wave."""
    tokenizer = TOKENIZERS["characters"]()
    model = model_of(tokenizer)
    engine = make(model, tokenizer)
    first = sample(engine, requests(6))
    roots = [r for r in first if len(r.trace_ids) >= 4]
    assert len(roots) > 2
    branches = sample(engine, [r.branch(3, index=10 + r.request.index, max_tokens=5) for r in roots])
    assert_told_truly(model, branches)
    for root, branch in zip(roots, branches, strict=True):
        assert branch.request.parent == root.request.index
        assert branch.whole_ids[:3] == root.trace_ids[:3]
        assert branch.text[:3] == root.text[:3]
    assert any(b.trace_ids != r.trace_ids[3:8] for b, r in zip(branches, roots, strict=True))


def a_request_has_its_own_budget(make: Make) -> None:
    tokenizer = TOKENIZERS["characters"]()
    model = model_of(tokenizer)
    engine = make(model, tokenizer)
    budgets = [1, 2, 5, 12, None, 3, None, 7, 12]
    asked = [replace(r, max_tokens=b) for r, b in zip(requests(9), budgets, strict=True)]
    found, free = sample(engine, asked), sample(engine, requests(9))
    for r, whole, budget in zip(found, free, budgets, strict=True):
        assert r.trace_ids == whole.trace_ids[:budget]
        assert r.finish == ("length" if budget is not None and len(whole.trace_ids) > budget else whole.finish)
    assert len({len(r.trace_ids) for r in found if r.finish == "length"}) > 3
    assert_told_truly(model, found)
    with pytest.raises(UserError, match=r"problem p0, rollout 2: Request.max_tokens is 13, and at most 12 "):
        engine.generate([*asked, replace(asked[0], index=2, max_tokens=13)], Sampling(12, "Q"), DRAW)


def the_likeliest_tokens_come_back_where_they_are_asked_for(make: Make) -> None:
    """As many as each request wants, at the temperature, and samples stay what they are without."""
    tokenizer = TOKENIZERS["characters"]()
    model = model_of(tokenizer)
    engine = make(model, tokenizer)
    wanted = [0, 3, 20, 0, 1, 5, 3, 2, 0]
    asked = [replace(r, observe=Observe(top_k=k)) for r, k in zip(requests(9), wanted, strict=True)]
    for temp in (1.0, 0.7):
        found, plain = sample(engine, asked, temp=temp), sample(engine, requests(9), temp=temp)
        assert [r.trace_ids for r in found] == [r.trace_ids for r in plain]
        for r, k in zip(found, wanted, strict=True):
            assert_likeliest(model, r, k, temp)
            assert r.observed.entropy is None


def assert_likeliest(model: Any, rollout: Rollout, k: int, temperature: float = 1.0) -> None:
    ids, log_probs = rollout.observed.top_ids, rollout.observed.top_log_probs
    if k == 0:
        assert ids is log_probs is None
        return
    assert ids is not None
    assert log_probs is not None
    assert {len(row) for row in (*ids, *log_probs)} <= {k}
    best = own_logs(model, rollout, temperature).topk(k)
    told = torch.tensor(log_probs, dtype=torch.float64).reshape(-1, k)
    assert not len(told) or float((told - best.values).abs().max()) < TOLERANCE
    at = own_logs(model, rollout, temperature).gather(1, torch.tensor(ids, dtype=torch.long).reshape(-1, k))
    assert not len(told) or float((told - at).abs().max()) < TOLERANCE, "the ids are not those of the log-probs"


def what_cannot_be_observed_is_refused_before_anything_is_sampled(make: Make) -> None:
    """An exact entropy is given as the model's own, or refused in one line with engine, field and remedy."""
    tokenizer = TOKENIZERS["characters"]()
    model = model_of(tokenizer)
    engine = make(model, tokenizer)
    plain = requests(3)
    asked = [*plain[:2], replace(plain[2], observe=Observe(entropy=True))]
    if hasattr(engine, "backend"):
        drawn: list[Any] = []
        engine.backend.draw = lambda *given: drawn.append(given)
        with pytest.raises(
            UserError, match=r"(?i)generation.engine: .*vllm.* entropy .*generation.engine = torch"
        ) as e:
            engine.generate(asked, Sampling(12, "Q"), DRAW)
        assert "\n" not in str(e.value)
        many = [*plain[:2], replace(plain[2], observe=Observe(top_k=21))]
        with pytest.raises(UserError, match=r"at most the 20 likeliest .*top_k is 21; set it to 20 or less"):
            engine.generate(many, Sampling(12, "Q"), DRAW)
        assert not drawn
        del engine.backend.draw
        return
    *others, one = sample(engine, asked)
    assert all(r.observed == Observed() for r in others)
    logs = own_logs(model, one)
    assert one.observed.entropy == pytest.approx((-logs.exp() * logs).sum(-1).tolist(), abs=TOLERANCE)
    with pytest.raises(UserError, match=r"torch gives at most the .* likeliest tokens"):
        sample(engine, [replace(plain[0], observe=Observe(top_k=10_000))])


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
        a_nucleus_is_sampled_from_its_tokens_alone,
        a_sample_depends_on_its_key_alone,
        temperature_zero_is_greedy,
        a_trace_ends_at_the_stop_text_or_at_its_limit,
        an_end_counts_only_behind_the_texts_before_it,
        a_stop_text_inside_a_token_is_left_to_the_template,
        an_end_of_sequence_before_the_stop_text_is_its_own_ending,
        a_prefix_is_read_and_part_of_the_text_and_not_returned_as_sampled,
        an_end_that_begins_in_the_prefix_counts,
        a_branch_goes_on_from_the_tokens_it_was_given,
        a_request_has_its_own_budget,
        the_likeliest_tokens_come_back_where_they_are_asked_for,
        what_cannot_be_observed_is_refused_before_anything_is_sampled,
        a_publish_changes_the_next_sample,
        an_engine_that_dies_is_an_error_with_its_name,
    )
}
