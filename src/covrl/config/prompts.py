"""The three prompts as text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from covrl.config.base import Settings
from covrl.config.styles import Style, Template, with_style, with_template
from covrl.problems.conversation import CALLED_WITH


class PromptConfig(Settings):
    """The three roles as text. ``{question}`` and ``{hint}`` are replaced; nothing else is interpreted.

    prior prompt      chat(system, user) + prior_open
    posterior prompt  chat(system, posterior_user or user) + posterior_open
    answer            prior prompt + trace + close + answer_prefix + answer + answer_suffix

    ``chat`` is the tokenizer's chat template, up to where the assistant begins; without one (or with ``chat =
    "never"``) system and user text simply follow each other.

    The defaults are our wording of R1-style tags (INFERRED; the paper's wording is not known, spec section 6).
    ``style`` gives the fields that are not set another wording (:mod:`covrl.config.styles`).
    Both openings must end alike, so that a trace starts after the same text in both. ``{hint}`` stands in exactly one
    of ``posterior_user`` and ``posterior_open``; in the former, both openings are equal.
    """

    style: Style = Field(
        "tags",
        description="wording of the fields that are not set: tags, R1-style tags that the question asks for; thinking, "
        "for models that think between <think> tags by themselves; plain, natural words (`covrl prompts` tries them)",
    )
    posterior_template: Template = Field(
        "style",
        description="how the posterior prompt shows the answer in the user's turn: neutral, check (as a proposal that "
        "may be wrong), aloud, plan or bare (docs/own-model.md); style: as the style has it",
    )
    chat: Literal["auto", "never"] = "auto"
    system: str = ""
    user: str = (
        "{question}\n\nReason inside <think></think>, then give the short final answer inside <answer></answer>.\n"
    )
    prior_open: str = "<think>\n"
    posterior_user: str = Field(
        "",
        description="the user's turn of the posterior prompt, with {question} and, in the place of posterior_open, "
        "{hint}; empty: user",
    )
    posterior_open: str = (
        "The reference answer is {hint}. The reasoning below derives it from the question alone, "
        "step by step, without mentioning that it was given.\n<think>\n"
    )
    close: str = "</think>"
    answer_prefix: str = "\n<answer>"
    answer_suffix: str = "</answer>"
    template_options: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="variables for the chat template, the same for all prompts, such as enable_thinking = false",
    )
    date: str = Field(
        "",
        description="what a chat template that writes the date reads, as 2026-01-31; empty: the day on which the run "
        "begins, kept with the run",
    )

    @model_validator(mode="before")
    @classmethod
    def _styled_with_equal_openings(cls, table: Any) -> Any:
        """The style's wording; with the hint in the user's turn, ``posterior_open`` is ``prior_open`` if not given."""
        if not isinstance(table, Mapping):
            return table
        table = with_template(with_style(table), cls.model_fields["user"].default)
        if "{hint}" not in str(table.get("posterior_user", "")):
            return table
        return {"posterior_open": table.get("prior_open", cls.model_fields["prior_open"].default), **table}

    @model_validator(mode="after")
    def _placeholders(self) -> PromptConfig:
        if "{question}" not in self.user:
            raise ValueError("user has no {question}, so the model would never see it")
        if "{hint}" in self.user or "{hint}" in self.prior_open:
            raise ValueError(
                "{hint} may stand in posterior_user or posterior_open only: the prior must not see the answer"
            )
        if self.posterior_user and "{question}" not in self.posterior_user:
            raise ValueError("posterior_user has no {question}, so the posterior would never see it")
        if "{hint}" in self.posterior_user:
            if self.posterior_open != self.prior_open:
                raise ValueError(
                    "posterior_user has the {hint}, so posterior_open must be prior_open: leave it out, or take the "
                    "{hint} out of posterior_user"
                )
        elif "{hint}" not in self.posterior_open:
            raise ValueError("posterior_open has no {hint}, so the posterior would not see the answer")
        if not self.close.strip() or not self.answer_suffix.strip():
            raise ValueError("close and answer_suffix must hold visible text, as generation stops at them")
        return self

    @field_validator("template_options", mode="before")
    @classmethod
    def _options(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise ValueError("expected a table such as {enable_thinking = false}")
        taken = sorted(CALLED_WITH & value.keys())
        if taken:
            raise ValueError(f"{taken[0]} is how the template is called, and no variable that it may be given")
        return value

    @field_validator("date", mode="before")
    @classmethod
    def _day(cls, value: Any) -> Any:
        text = value.isoformat() if isinstance(value, date) else value  # TOML has dates of its own
        if text and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", str(text)):
            raise ValueError("expected a date such as 2026-01-31")
        try:
            return text and date.fromisoformat(text).isoformat()
        except ValueError:
            raise ValueError("there is no such day; expected a date such as 2026-01-31") from None
