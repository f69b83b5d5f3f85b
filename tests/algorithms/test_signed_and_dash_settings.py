"""What PSR, NSR, W-REINFORCE and DASH refuse, with a reason that names the settings which do not go together."""

from __future__ import annotations

from typing import Any

import pytest
from algorithms.scored import PROMPTS

from covrl.algorithms import make_algorithm
from covrl.algorithms.base import Setup
from covrl.config import AlgorithmTable
from covrl.errors import UserError

SIGNED = ("psr", "nsr", "w_reinforce")
# settings, and what the message has to name
BY_VERDICT: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"advantage": "std"}, ("advantage", "right_weight", "wrong_weight", "verdict")),
    ({"advantage": "mean"}, ("advantage", "right_weight", "wrong_weight", "verdict")),
    ({"kl": "k1", "kl_in": "reward", "kl_weight": 0.1}, ("kl_in = 'reward'", "right_weight", "kl_in = 'loss'")),
    ({"kl": "k3", "kl_in": "reward", "kl_weight": 0.1}, ("kl_in = 'reward'", "right_weight", "kl_in = 'loss'")),
    ({"overlong_buffer": 4}, ("overlong_buffer", "right_weight", "verdict")),
    ({"resample": True}, ("resample", "right_weight", "all wrong")),
    ({"right_weight": 0.0, "wrong_weight": 0.0}, ("right_weight = 0", "wrong_weight = 0")),
    *(
        ({"denominator": "kept", "aggregation": how}, ("denominator = 'kept'", f"aggregation = '{how}'"))
        for how in ("sequence_mean", "sequence_sum", "constant")
    ),
]
DASH: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    *(
        ({"filter": "paper", "aggregation": how}, ("filter = 'paper'", f"aggregation = '{how}'"))
        for how in ("token_mean", "sequence_mean", "sequence_sum")
    ),
    ({"tau": 0.2}, ("tau", "filter = 'exact'")),
    ({"tau": 0.2, "filter": "exact"}, ("tau", "filter = 'exact'")),
    ({"kl_weight": 0.1, "kl": "none"}, ("kl_weight", "kl = 'none'")),
]
TAKEN: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    (SIGNED, {}),
    (SIGNED, {"kl": "k2", "kl_weight": 0.1, "entropy_weight": 1e-3}),
    (SIGNED, {"kl": "exact", "kl_weight": 0.1, "denominator": "kept"}),
    (SIGNED, {"aggregation": "constant"}),
    (("w_reinforce",), {"right_weight": 1.0}),
    (("dash",), {"filter": "paper", "tau": 0.01}),
    (("dash",), {"aggregation": "token_mean"}),
    (("dash",), {"kl": "none", "kl_weight": 0.0}),
]


def make(name: str, settings: dict[str, Any]) -> Any:
    return make_algorithm(AlgorithmTable.model_validate({"name": name, **settings}), Setup(PROMPTS, 4))


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [(name, *case) for name in SIGNED for case in BY_VERDICT] + [("dash", *case) for case in DASH],
)
def test_combinations_without_sense_are_refused(name: str, settings: dict[str, Any], named: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refused:
        make(name, settings)
    said = str(refused.value)
    assert "\n" not in said
    assert all(part in said for part in named), said


@pytest.mark.parametrize(("name", "settings"), [(name, settings) for names, settings in TAKEN for name in names])
def test_combinations_with_sense_are_taken(name: str, settings: dict[str, Any]) -> None:
    assert make(name, settings).name == name
