"""Requests and rollouts: what they refuse, how they are cut and branched, and that old files are read."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from covrl.records import Observe, Observed, Request, Rollout

REQUEST = Request("p", 3, (1, 2), "posterior", prefix_ids=(8, 9), max_tokens=7, observe=Observe(True, 2))
SEEN = Observed((0.1, 0.2, 0.3), ((4, 5), (5, 6), (6, 7)), ((-0.1, -2.0),) * 3)
ROLLOUT = Rollout(
    REQUEST, (4, 5, 6), (-0.1, -0.2, -0.3), "closed", "sampled", "ab", 2, "right", 1.0, (True, False, True), SEEN
)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; it has to be at least 1"),
        ({"observe": Observe(False, -1)}, "observe.top_k is -1; it has to be at least 0"),
        ({"parent": 3}, "parent is 3; it has to be the index of another rollout"),
        ({"parent": -1}, "parent is -1"),
        ({"scored": False}, "scored=False goes with trains=False alone"),
    ],
)
def test_a_request_that_makes_no_sense_names_its_field(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"request 3 of problem p: {said}"):
        Request("p", 3, (1,), "prior", **fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"written": (True,)}, "written is of 1 tokens, and its trace_ids are 2"),
        ({"observed": Observed((0.1, 0.2, 0.3))}, "observed.entropy is of 3 tokens"),
        ({"observed": Observed(None, ((1,),), ((-0.5,), (-0.5,)))}, "observed.top_ids is of 1 tokens"),
    ],
)
def test_a_rollout_whose_parts_are_of_other_lengths_names_them(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"rollout 3 of problem p: {said}"):
        Rollout(REQUEST, (4, 5), (-0.1, -0.2), "length", "none", "ab", **fields)


@given(tokens=st.integers(0, 5))
def test_a_rollout_is_cut_in_all_its_parts(tokens: int) -> None:
    cut = ROLLOUT.first(tokens)
    kept = min(tokens, 3)
    assert (cut.trace_ids, cut.log_probs) == ((4, 5, 6)[:kept], (-0.1, -0.2, -0.3)[:kept])
    assert cut.written == (True, False, True)[:kept]
    assert cut.loss_tokens == sum((True, False, True)[:kept])
    assert [len(part or ()) for part in cut.observed] == [kept] * 3


@given(tokens=st.integers(0, 5))
def test_a_branch_begins_with_the_traces_first_tokens_prefix_included(tokens: int) -> None:
    branch = ROLLOUT.branch(tokens, index=6, max_tokens=4)
    assert branch.prefix_ids == (8, 9, 4, 5, 6)[:tokens]
    assert (branch.index, branch.parent, branch.max_tokens) == (6, 3, 4)
    assert (branch.problem_id, branch.prompt_ids, branch.source, branch.observe) == (
        *("p", (1, 2), "posterior"),
        REQUEST.observe,
    )


@pytest.mark.parametrize(("tokens", "index"), [(6, 4), (-1, 4), (2, 3)])
def test_a_branch_that_cannot_be_is_refused(tokens: int, index: int) -> None:
    with pytest.raises(ValueError, match="problem p"):
        ROLLOUT.branch(tokens, index)


def test_an_answer_after_a_trace_has_nothing_of_the_traces_own() -> None:
    asked = REQUEST.answer_after((1, 2, 3))
    assert asked == Request("p", 3, (1, 2, 3), "posterior")


def test_tokens_without_a_mask_all_carry_loss() -> None:
    plain = Rollout(REQUEST, (4, 5), (-0.1, -0.2), "length", "none", "ab")
    assert plain.loss_tokens == 2
    assert ROLLOUT.loss_tokens == 2


def test_rollouts_survive_their_file() -> None:
    adapter = TypeAdapter(Rollout)
    assert adapter.validate_python(json.loads(json.dumps(asdict(ROLLOUT)))) == ROLLOUT


def test_files_of_before_are_read() -> None:
    """Written when requests named a model, and observed names in a tuple; what is new has its default."""
    request = {
        "problem_id": "p",
        "index": 0,
        "prompt_ids": [1, 2],
        "source": "prior",
        "prefix_ids": [],
        "model": "policy",
        "parent": None,
        "trains": True,
        "observe": [],
    }
    rollout = {
        "request": request,
        "trace_ids": [5],
        "log_probs": ["nan"],
        "finish": "closed",
        "closing": "sampled",
        "text": "x",
        "version": 1,
        "correct": None,
        "reward": None,
    }
    found = TypeAdapter(Rollout).validate_python(rollout)
    assert found.request == Request("p", 0, (1, 2), "prior")
    assert (found.trace_ids, found.written, found.observed) == ((5,), None, Observed())
