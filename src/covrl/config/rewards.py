"""Who judges traces and their steps: a verifier, reward functions, a scorer of steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from covrl.config.base import Settings, known_verifier
from covrl.rewards.functions import wrong_name


class RewardsConfig(Settings):
    """Who judges training traces. Likelihood methods (CoVRL and its family) need neither setting.

    A method of the group family (GRPO and its kin) takes the function's value where there is one, else 1 for right
    and 0 for wrong. In a likelihood method the function's value is added to the reward (shaping).
    """

    verifier: str = Field(
        "text",
        description="who marks training responses right, wrong or unknown, for the methods that need it: none, exact, "
        "text, math, numeric, choice, code, reasoning-gym (docs/verifiers.md), or an installed entry point of the "
        "group covrl.verifiers. code needs bubblewrap, or code,allow_unisolated=1 runs programs under limits only",
    )
    function: str = Field(
        "",
        description="name of an installed entry point of the group covrl.rewards: (Problem, text) -> float. "
        "module:function is taken from the command line or Python only",
    )

    _verifier = field_validator("verifier")(known_verifier)


class StepsConfig(Settings):
    """How traces are cut into reasoning steps, and who scores them, for methods that ask (docs/rewards.md)."""

    rule: Literal["lines", "paragraphs", "sentences"] = Field(
        "paragraphs", description="what ends a step; paragraphs have a blank line between them"
    )
    pattern: str = Field("", description="a regular expression in place of the rule: a step ends where a match ends")
    server: str = Field(
        "", description="address of a process reward model, http://HOST:PORT; without one a scorer is given in Python"
    )
    protocol: Literal["plain", "vllm"] = Field("plain", description="what the server speaks")
    model: str = Field("", description="the served model's name, of the protocol vllm")
    timeout_s: float = Field(60.0, gt=0, description="seconds that one request may take")
    shows_answer: bool = Field(False, description="the scorer sees the reference answer too")

    @model_validator(mode="after")
    def _used(self) -> StepsConfig:
        for name in ("protocol", "model", "timeout_s"):  # a run's own file has every setting, the defaults too
            changed = getattr(self, name) != type(self).model_fields[name].default
            self.refuse_idle(name, changed and not self.server, "no steps.server")
        return self


class RewardConfig(Settings):
    """One reward function among several: a table ``[[reward]]`` with its name, or ``[reward.NAME]`` (docs/rewards.md).

    A rollout's reward is the sum of weight x value over all of them; each value is logged as ``reward/NAME``.
    """

    function: str = Field(
        min_length=1,
        description="name of an installed entry point of the group covrl.rewards: (Problem, text) -> float, plain or "
        "async. module:function is taken from the command line (--reward NAME=module:function) or Python only",
    )
    weight: float = Field(1.0, description="factor of its value in the sum; 0 only watches it")
    batched: bool = Field(
        False, description="the function is (problems, texts) -> floats, called once for all traces of a step"
    )
    timeout_s: float = Field(600.0, ge=0, description="seconds that one call may take; 0 for no limit")
    concurrency: int | None = Field(
        None,
        ge=1,
        description="calls that run at once, in threads, or in an event loop for an async function; left out: 1, or 32 "
        "of an async function",
    )

    @model_validator(mode="after")
    def _one_call(self) -> RewardConfig:
        self.refuse_idle("concurrency", self.batched and self.concurrency not in (None, 1), "batched = true")
        return self


def rewards_by_name(given: Any) -> Any:
    """The tables ``[[reward]]`` by their names; anything else as it is."""
    if not isinstance(given, list | tuple):
        return given
    found: dict[str, Any] = {}
    for table in given:
        name = table.get("name") if isinstance(table, Mapping) else None
        if not isinstance(name, str):
            raise ValueError('each table [[reward]] needs a name, such as name = "brevity"')
        if name in found:
            raise ValueError(f"the name {name!r} comes twice; each function has one of its own")
        found[name] = {key: value for key, value in table.items() if key != "name"}
    return found


def _reward_names(found: dict[str, RewardConfig]) -> dict[str, RewardConfig]:
    wrong = next(filter(None, map(wrong_name, found)), None)
    if wrong:
        raise ValueError(wrong)
    return found


Rewards = Annotated[dict[str, RewardConfig], BeforeValidator(rewards_by_name), AfterValidator(_reward_names)]
"""Reward functions by name, in the order of the file."""
