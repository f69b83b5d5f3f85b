"""What a request asks of the torch engine: where it goes on, how far, and what it sees. Against plain forwards."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from contract import assert_likeliest, own_logs
from hypothesis import given
from hypothesis import strategies as st
from models import FAMILIES, byte_tokenizer, character_tokenizer, prove, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from covrl.errors import UserError
from covrl.generation import decoding
from covrl.generation import engine as engine_module
from covrl.generation.base import Draw, Sampling
from covrl.generation.engine import DecodingPaths, TorchGenerator, next_tokens
from covrl.generation.observe import look
from covrl.generation.random import uniforms
from covrl.generation.stop import StopRule
from covrl.generation.trace import begin
from covrl.models.model import LanguageModel
from covrl.records import Observe, Observed, Request, Rollout

TOKENIZER = character_tokenizer()
DRAW = Draw(seed=7, step=3)
PATHS = {
    "shared": DecodingPaths(),
    "recorded": DecodingPaths(recorded=True),
    "padded": DecodingPaths(shared=False),
    "uncached": DecodingPaths(shared=False, padded=False, cached=False),
}


def requests(count: int, problems: int = 3, **fields: Any) -> list[Request]:
    prompts = [tuple(range(5, 9 + 3 * i)) for i in range(problems)]
    return [Request(f"p{i % problems}", i // problems, prompts[i % problems], "prior", **fields) for i in range(count)]


def engine_of(way: str = "padded", family: str = "gpt2", rows: int = 64) -> TorchGenerator:
    model = tiny(family, len(TOKENIZER)).double()
    if way in ("shared", "recorded"):
        assert not prove(LanguageModel(model))
    engine = TorchGenerator(model, TOKENIZER, rows)
    engine.paths = PATHS[way]
    return engine


def from_token(rollout: Rollout, k: int, most: int) -> Request:
    """The same trace again from its token ``k`` on, under its own key."""
    return replace(rollout.request, prefix_ids=rollout.whole_ids[:k], max_tokens=max(most - k, 1))


@pytest.mark.parametrize("rows", [3, 64])
@pytest.mark.parametrize("way", PATHS)
def test_the_random_numbers_after_a_prefix_are_those_of_its_positions(
    way: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trace that is given its own beginning goes on as it did, wherever it is cut and whatever is beside it."""
    if way == "shared":
        monkeypatch.setattr(decoding, "LONG", 1)
        monkeypatch.setattr(decoding, "MANY", 1)
    engine = engine_of(way, rows=rows)
    free = engine.generate(requests(24), Sampling(14, "\x00"), DRAW)
    often = Counter(c for r in free for c in r.text if c.isalnum()).most_common(1)[0][0]
    sampling = Sampling(14, often)
    whole = engine.generate(requests(24), sampling, DRAW)
    assert {r.finish for r in whole} == {"closed", "length", "eos"}
    last = {id(r): len(r.trace_ids) - (r.finish == "length") for r in whole}
    cut = [(r, k) for r in whole for k in {1, 2, 5, last[id(r)]} if 0 < k <= last[id(r)]]
    again = engine.generate([from_token(r, k, 14) for r, k in cut], sampling, DRAW)
    assert len(cut) > 60
    for (r, k), rest in zip(cut, again, strict=True):
        assert rest.trace_ids == r.trace_ids[k:]
        assert rest.log_probs == pytest.approx(r.log_probs[k:], abs=1e-9)
        assert (rest.text, rest.finish, rest.closing) == (r.text, r.finish, r.closing)


def test_a_branch_of_another_index_is_another_sample() -> None:
    engine, sampling = engine_of(), Sampling(14, "\x00")
    whole = [r for r in engine.generate(requests(12), sampling, DRAW) if len(r.trace_ids) == 14]
    assert len(whole) > 6
    branches = engine.generate([r.branch(4, 100, max_tokens=10) for r in whole], sampling, DRAW)
    assert all(b.trace_ids != r.trace_ids[4:] for b, r in zip(branches, whole, strict=True))


@given(keys=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5), position=st.integers(0, 10_000))
def test_a_position_for_each_key_gives_what_the_key_alone_gives(keys: list[int], position: int) -> None:
    every = np.array(keys, dtype=np.uint64)
    own = np.arange(len(keys)) * 3 + position
    apart = [uniforms(every[i : i + 1], int(at))[0] for i, at in enumerate(own)]
    assert uniforms(every, own).tolist() == apart
    assert uniforms(every, np.full(len(keys), position)).tolist() == uniforms(every, position).tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.8])
@pytest.mark.parametrize("way", PATHS)
def test_entropies_are_those_of_a_plain_forward(way: str, temperature: float) -> None:
    """−Σ p log p over the whole vocabulary at the sampler's temperature, for rows that ask, prefixes and all."""
    asked = [replace(r, observe=Observe(i % 3 > 0, 4 * (i % 2))) for i, r in enumerate(requests(9))]
    asked = [replace(r, prefix_ids=(30, 31)[: i % 3], max_tokens=12 - i) for i, r in enumerate(asked)]
    engine = engine_of(way)
    for r in engine.generate(asked, Sampling(12, "Q", temperature), DRAW):
        logs = own_logs(engine.model, r, temperature)
        entropy = (-logs.exp() * logs).sum(-1).tolist()
        assert r.observed.entropy == (pytest.approx(entropy, abs=1e-9) if r.request.observe.entropy else None)
        assert_likeliest(engine.model, r, r.request.observe.top_k, temperature)
        assert max(entropy, default=1.0) > 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_entropies_hold_in_every_family_in_float32(family: str) -> None:
    model = tiny(family, len(TOKENIZER))
    asked = requests(6, observe=Observe(True, 3))
    for r in TorchGenerator(model, TOKENIZER, 4).generate(asked, Sampling(10, "Q"), DRAW):
        logs = own_logs(model, r)
        assert r.observed.entropy == pytest.approx((-logs.exp() * logs).sum(-1).tolist(), abs=1e-3)


def test_known_entropies() -> None:
    """A half, a quarter and two eighths have 1.75 bits; what cannot be drawn adds nothing."""
    rows = torch.tensor([[0.5, 0.25, 0.125, 0.125, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0], [0.2] * 5]).log()
    found = look(rows, [Observe(True, 2), Observe(True), Observe(False, 1)])
    assert found[0].entropy == pytest.approx(1.75 * np.log(2), abs=1e-6)
    assert (found[0].top_ids, found[0].top_log_probs) == ((0, 1), pytest.approx((-np.log(2), -2 * np.log(2))))
    assert found[1] == (0.0, (), ())
    assert np.isnan(found[2].entropy)
    assert found[2].top_log_probs == pytest.approx((-np.log(5),))


def test_a_nucleus_and_a_mode_are_observed_as_their_log_probs_are() -> None:
    """The entropy within the nucleus; at temperature 0 that of temperature 1, as log-probs are."""
    engine, asked = engine_of(), requests(3, observe=Observe(True, 5))
    for r in engine.generate(asked, Sampling(6, "Q", 1.3, top_p=0.6), DRAW):
        narrow = engine_module.nucleus(own_logs(engine.model, r, 1.3), 0.6)
        assert r.observed.entropy == pytest.approx(torch.special.entr(narrow.exp()).sum(-1).tolist(), abs=1e-9)
    for r in engine.generate(asked, Sampling(6, "Q", 0.0), DRAW):
        logs = own_logs(engine.model, r)
        assert r.observed.entropy == pytest.approx((-logs.exp() * logs).sum(-1).tolist(), abs=1e-9)
        assert r.observed.top_log_probs is not None
        assert [row[0] for row in r.observed.top_log_probs] == pytest.approx(list(r.log_probs))


def test_what_is_observed_changes_no_bit_of_the_samples() -> None:
    engine = engine_of("shared")
    plain = engine.generate(requests(9), Sampling(12, "Q"), DRAW)
    seen = engine.generate(requests(9, observe=Observe(True, 7)), Sampling(12, "Q"), DRAW)
    assert [replace(r, request=p.request, observed=Observed()) for r, p in zip(seen, plain, strict=True)] == plain


class Widest(TorchDispatchMode):
    """Notes the most numbers that any tensor with a vocabulary axis holds, the logits given aside."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.numbers, self.given = vocabulary, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor) and t.ndim == 2 and t.shape[1] == self.vocabulary and t._base is None:
                self.numbers = max(self.numbers, t.numel())
        return out


@pytest.mark.parametrize("sampling", [Sampling(1, "Q"), Sampling(1, "Q", 0.7, 0.9), Sampling(1, "Q", 0.0)])
def test_observing_holds_no_more_logits_than_drawing(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor over the vocabulary has more rows than are drawn from at once, however many rows ask."""
    vocabulary, at_once = 501, 3
    monkeypatch.setattr(engine_module, "DRAWN_BYTES", at_once * 8 * vocabulary)
    logits = torch.randn(17, vocabulary, generator=torch.Generator().manual_seed(0))
    draws = None if sampling.temperature == 0 else np.linspace(0.01, 0.99, 17)
    wanted = [Observe(True, 5)] * 17
    seen: list[Any] = []

    def note(start: int, log_probs: torch.Tensor) -> None:
        seen.extend(look(log_probs, wanted[start : start + len(log_probs)]))

    with Widest(vocabulary) as observing:
        tokens, _ = next_tokens(logits, sampling, draws, note)
    with Widest(vocabulary) as drawing:
        next_tokens(logits, sampling, draws)
    assert (len(tokens), len(seen)) == (17, 17)
    assert observing.numbers == drawing.numbers == at_once * vocabulary


def test_rows_that_ask_for_nothing_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are those that are at their end already and only wait for the others."""
    looked: list[int] = []

    def counted(log_probs: torch.Tensor, wanted: Any) -> Any:
        looked.append(sum(w.anything for w in wanted))
        return look(log_probs, wanted)

    monkeypatch.setattr(engine_module, "look", counted)
    engine = engine_of()
    engine.generate(requests(9), Sampling(12, "\x00"), DRAW)
    assert looked == []
    asked = [replace(r, max_tokens=2, observe=Observe(True)) if i < 2 else r for i, r in enumerate(requests(9))]
    found = engine.generate(asked, Sampling(12, "\x00"), DRAW)
    assert looked == [2, sum(len(r.trace_ids) > 1 for r in found[:2])]
    assert len(found[4].trace_ids) == 12


def test_no_more_steps_are_decoded_than_the_largest_budget_of_the_rows() -> None:
    engine, steps = engine_of(), []
    own = engine.model.forward
    engine.model.forward = lambda *a, **k: steps.append(1) or own(*a, **k)
    engine.generate(requests(9, max_tokens=3), Sampling(1000, "\x00"), DRAW)
    assert len(steps) == 3


@pytest.mark.parametrize("rows", [2, 64])
def test_closed_prefixes_cost_no_pass_and_stay_in_their_places(rows: int) -> None:
    engine = engine_of(rows=rows)
    end = tuple(TOKENIZER("so Q").input_ids)
    asked = [replace(r, prefix_ids=end) if i % 2 else r for i, r in enumerate(requests(8))]
    found = engine.generate(asked, Sampling(5, "Q"), DRAW)
    plain = engine.generate(requests(8), Sampling(5, "Q"), DRAW)
    for i, (r, other) in enumerate(zip(found, plain, strict=True)):
        if i % 2:
            assert (r.trace_ids, r.finish, r.closing, r.text, r.log_probs) == ((), "closed", "sampled", "so Q", ())
        else:
            assert r.trace_ids == other.trace_ids
    engine.model.forward = None
    (alone,) = engine.generate([replace(asked[1], observe=Observe(True, 2))], Sampling(5, "Q"), DRAW)
    assert alone.observed == Observed((), (), ())


TAG = "</think>"
BYTES = byte_tokenizer()


@given(text=st.text(alphabet="ab </think>\n", max_size=14), cut=st.integers(0, 40))
def test_a_prefix_is_closed_refused_or_open_by_where_its_first_end_is(text: str, cut: int) -> None:
    rule, ids = StopRule(BYTES, TAG), BYTES(f"{text}{TAG}\nab", add_special_tokens=False).input_ids
    prefix = tuple(ids[: min(cut, len(ids))])
    ends = next((n for n in range(1, len(prefix) + 1) if TAG in rule.text(prefix[:n])), None)
    request = Request("p", 4, (5,), "prior", prefix_ids=prefix)
    if ends is not None and ends < len(prefix):
        with pytest.raises(UserError, match=r"problem p, rollout 4: Request.prefix_ids go on after '</think>'"):
            begin([request], Sampling(9, TAG), rule, frozenset())
        return
    (trace,) = begin([request], Sampling(9, TAG), rule, frozenset())
    assert trace.open == (ends is None)
    rollout = trace.rollout(request, rule, 0)
    assert rollout.text == rule.text(prefix)
    assert rollout.valid == (ends is not None)


@given(prefix=st.text(alphabet="ab.</think>", max_size=12), then=st.text(alphabet="ab.</think>", max_size=12))
def test_an_engine_that_sees_samples_alone_is_stopped_by_the_rest_of_a_text(prefix: str, then: str) -> None:
    """Wherever the whole text ends after the seam, its rest ends too; without a beginning before it, it is whole."""
    rule = StopRule(TOKENIZER, TAG)
    ids = TOKENIZER(prefix).input_ids
    rest = rule.rest(ids)
    assert rest
    assert TAG.endswith(rest)
    whole = prefix + then
    after_seam = whole.find(TAG, max(len(prefix) - len(TAG) + 1, 0))
    if after_seam >= 0:
        assert rest in then[: after_seam + len(TAG) - len(prefix)]
    if not any(prefix.endswith(TAG[:n]) for n in range(1, len(TAG))):
        assert rest == TAG


def test_requests_of_all_kinds_in_one_call() -> None:
    """Every combination of prefix, budget and observation, side by side, is what it is alone."""
    engine, base = engine_of(), (5, 6, 7)
    kinds = product([(), (40,), (40, 41, 42)], [None, 1, 6], [Observe(), Observe(True), Observe(False, 2)])
    asked = [Request("p", i, base, "prior", prefix_ids=p, max_tokens=m, observe=o) for i, (p, m, o) in enumerate(kinds)]
    together = engine.generate(asked, Sampling(8, "Q"), DRAW)
    for request, found in zip(asked, together, strict=True):
        (alone,) = engine.generate([request], Sampling(8, "Q"), DRAW)
        assert (alone.trace_ids, alone.finish, alone.text) == (found.trace_ids, found.finish, found.text)
        assert found.log_probs == pytest.approx(alone.log_probs, abs=1e-9)
        if request.observe.entropy:
            assert found.observed.entropy == pytest.approx(alone.observed.entropy, abs=1e-9)
        assert found.observed.top_ids == alone.observed.top_ids
