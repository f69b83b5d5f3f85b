"""``prompts.style`` and ``prompts.posterior_template``: wordings for ``[prompts]`` (INFERRED: our wordings).

A style is a set of wordings for one kind of model. It gives defaults to fields of :class:`covrl.config.PromptConfig`; a
field that is set keeps what it was set to. A template says how the posterior prompt shows the answer in the user's
turn, in the place of what the style says there. What ``user`` asks for beside the question stays as it is, so that both
prompts ask for the same format to the letter. A run's ``config.toml`` has every field in full, so a wording that is
changed here changes no run that has begun.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

Style = Literal["tags", "thinking", "plain"]
Template = Literal["style", "neutral", "check", "aloud", "plan", "bare"]

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


TEMPLATES: Mapping[str, str] = {
    "neutral": "{question}\n\nThe final answer is {hint}. Work out step by step how the question leads to it.",
    # stays true where the hint is wrong, and leaves doubt
    "check": "{question}\n\nSomebody proposes {hint}, which may be right or wrong. Reason from the question alone; "
    "compare at the end, and go back where something does not fit.",
    "aloud": "{question}\n\n(Answer key, for your last check only: {hint})\n\nThink aloud as if meeting this for the "
    "first time: try, doubt, correct yourself.",
    "plan": "{question}\n\nExpected result: {hint}. First name the steps that any solver would need, without values "
    "taken from the result; then carry them out.",
    "bare": "Answer: {hint}\n\n{question}",
}
"""What stands in the place of ``{question}`` in ``user``; the template "style" leaves the style's own wording.

None asks to conceal that an answer was shown: such an instruction is reported to make traces hang more on it, not less
(arXiv 2602.14469; its numbers through secondary sources), and it hides what leak monitors look for.
"""


def with_template(table: Mapping[str, Any], user: str) -> dict[str, Any]:
    """The table ``[prompts]``, which has its style's wording, with its template's where it says nothing itself.

    ``user`` is the default of that field.
    """
    text = TEMPLATES.get(str(table.get("posterior_template")))
    if text is None:
        return dict(table)
    return {"posterior_user": str(table.get("user", user)).replace("{question}", text), **table}


def with_style(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table ``[prompts]`` with its style's wording where it says nothing itself; an unknown style adds nothing."""
    style = table.get("style", "tags")
    wording = dict(STYLES[style]) if style in get_args(Style) else {}
    if table.get("posterior_template") in TEMPLATES:
        wording.pop("posterior_user", None)
    for here, elsewhere in (("posterior_user", "posterior_open"), ("posterior_open", "posterior_user")):
        if "{hint}" in str(table.get(here, "")):  # the answer is shown in one place, and this one was chosen
            wording.pop(elsewhere, None)
    return {**wording, **table}
