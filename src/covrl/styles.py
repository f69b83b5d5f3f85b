"""``prompts.style``: sets of wordings for ``[prompts]``, each for one kind of model (INFERRED: our wordings).

A style gives defaults to fields of :class:`covrl.config.PromptConfig`; a field that is set keeps what it was set to.
A run's ``config.toml`` has every field in full, so a wording that is changed here changes no run that has begun.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

Style = Literal["tags", "thinking", "plain"]

STYLES: Mapping[Style, Mapping[str, str]] = {
    # R1-style tags, asked for in words: the defaults of PromptConfig itself.
    "tags": {},
    # For models that think between <think> and </think> by themselves, or whose template opens the thought. Nobody has
    # to ask them for the tags; the box is what they were trained to answer in. It stands between dollar signs so that
    # its end, "}$", cannot stand inside an answer such as \frac{1}{2}, where "}" alone would cut it.
    "thinking": {
        "user": "{question}\n\nPut the final answer within \\boxed{}.\n",
        "posterior_user": "{question}\n\nThe final answer is {hint}. Work out step by step how the question leads to "
        "it, and put the final answer within \\boxed{}.\n",
        "answer_prefix": "\n\nThe final answer is $\\boxed{",
        "answer_suffix": "}$",
    },
    # For models that do not know tags: words that they have read often. The line break after the full stop keeps
    # decimals whole: "." alone would end 3.5 at 3.
    "plain": {
        "user": "{question}\n\nReason in a few short sentences. End with the words 'The answer is' and the answer.\n",
        "prior_open": "",
        "posterior_user": "{question}\n\nThe result is {hint}. Reason in a few short sentences how the question leads "
        "to it. End with the words 'The answer is' and the answer.\n",
        "close": "The answer is",
        "answer_prefix": " ",
        "answer_suffix": ".\n",
    },
}

STYLED = frozenset(name for wording in STYLES.values() for name in wording) | {"posterior_open"}
"""The fields that hang on the style; both openings are equal where a style shows the answer in the user's turn, so that
a trace starts after the same text whatever a chat template ends with."""


def with_style(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table ``[prompts]`` with its style's wording where it says nothing itself; an unknown style adds nothing."""
    style = table.get("style", "tags")
    wording = dict(STYLES[style]) if style in get_args(Style) else {}
    for here, elsewhere in (("posterior_user", "posterior_open"), ("posterior_open", "posterior_user")):
        if "{hint}" in str(table.get(here, "")):  # the answer is shown in one place, and this one was chosen
            wording.pop(elsewhere, None)
    return {**wording, **table}
