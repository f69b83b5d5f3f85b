"""The rule of `covrl preflight`: from its figures to a method, or to none.

The rule of ``answer_in_sight.md`` section 4.1 (all of it INFERRED; its evidence is arXiv 2602.04942, CONFIRMED in its
text): *go only if greedy answers after a thought are right more often than without one by 5 points, and some template
has a utility of 5 points and a margin above 0.* Three things are ours. A figure counts where it reaches its threshold
and its interval is above 0, so what is not shown does not count. A base whose right thoughts are rare fails the first
condition for the very reason that posterior traces are there for; so it also counts that answers after hinted thoughts
beat answers without a thought by 5 points, where the template passes. And a template does not pass if a wrong hint
pulls answers nearly as far as the right one: its traces defend any answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from covrl.evaluation.anchoring import DEFENDS
from covrl.evaluation.calibration import DOUBTED
from covrl.evaluation.posterior_gain import FORMAT_SHARE

POINTS = 0.05
"""By how much a share has to be higher (spec 4.1)."""

LONG_TOKENS = 16
"""Answers of more tokens are long: the floor of rewards begins to grow there, and sums of log-probs make thoughts
vanish on long answers (arXiv 2602.03979)."""

SHORTER_EARNS = -0.1
"""Correlation of length and reward within questions below which shorter thoughts earn more (spec 2.1)."""

Figure = Mapping[str, Any]


class Check(NamedTuple):
    """A figure with its 95 % ``interval`` (None: not known) against its threshold ``least``; ``share`` or ``nats``.

    ``label`` says where the threshold is from.
    """

    name: str
    value: float | None
    interval: tuple[float, float] | None
    least: float
    unit: str
    label: str
    met: bool


SPEC, OURS = "INFERRED, after arXiv 2602.04942", "INFERRED, ours"


def shown(found: Figure | None, least: float) -> bool:
    """Whether a figure reaches ``least`` and its interval is above 0."""
    return bool(found and found["interval"] and found["value"] >= least and found["interval"][0] > 0)


def usable(template: Figure) -> bool:
    """Whether a template's traces use the hint's content: utility, margin, and no defence of any answer."""
    return shown(template["utility"], POINTS) and shown(template["margin"], 0.0) and not pulled(template)


def pulled(template: Figure) -> bool:
    """Whether a wrong hint pulls answers nearly as far as the right one (:mod:`covrl.evaluation.anchoring`)."""
    found = template["anchoring"]
    return found is not None and found["wrong_hint"] > DEFENDS * found["right_hint"]


def defends(template: Figure) -> bool:
    """Whether that is shown: the wrong hint's pull is above 0 with its interval."""
    return pulled(template) and template["anchoring"]["intervals"]["wrong_hint"][0] > 0


def best_template(templates: Sequence[Figure]) -> Figure | None:
    """The one with the greatest utility among the usable ones, else among all; the first of equals."""
    return max(templates, key=lambda t: (usable(t), t["utility"]["value"]), default=None)


def checks(record: Mapping[str, Any]) -> list[Check]:
    """What the advice is made of, in order."""
    thinking, best = record["thinking"], best_template(record["templates"])
    found = [
        _check("prior traces that close", thinking["closed"], FORMAT_SHARE, "share", OURS, of_zero=False),
        _check("greedy: thinking − not thinking", thinking["difference"], POINTS, "share", SPEC),
    ]
    if best is not None:
        pull = best["anchoring"]
        wrong = pull and {"value": pull["wrong_hint"], "interval": pull["intervals"]["wrong_hint"]}
        most = DEFENDS * pull["right_hint"] if pull else 0.0
        found += [
            _check("after hinted thoughts − after own ones (utility)", best["utility"], POINTS, "share", SPEC),
            _check("price of a wrong hint (margin)", best["margin"], 0.0, "nats", SPEC),
            _check("a wrong hint's pull, at most", wrong, most, "share", OURS)._replace(met=not pulled(best)),
            _check("after hinted thoughts − not thinking", best["hinted"], POINTS, "share", OURS),
        ]
    return [*found, _calibrated(record["calibration"])]


def _check(name: str, found: Figure | None, least: float, unit: str, label: str, of_zero: bool = True) -> Check:
    if found is None:
        return Check(name, None, None, least, unit, label, False)
    ends = found["interval"]
    met = shown(found, least) if of_zero else found["value"] >= least
    return Check(name, found["value"], tuple(ends) if ends else None, least, unit, label, met)


def _calibrated(found: Figure) -> Check:
    """Met unless likelihoods are known to be no guide: what is undecided is said and does not forbid."""
    ends = found["auc_within_interval"]
    met = not found["sentence"].startswith("Likelihood rewards cannot")
    interval = tuple(ends) if ends else None
    return Check("right trace earns more than wrong (AUC)", found["auc_within"], interval, DOUBTED, "share", OURS, met)


def advise(record: Mapping[str, Any]) -> dict[str, Any]:
    """``checks`` and ``advice``: the method (None: none), the template, and the reasons as sentences."""
    best, found = best_template(record["templates"]), checks(record)
    method, why = _decide(record, best)
    template = best["template"] if best is not None and method == "covrl" else None
    advice = {"method": method, "template": template, "why": [*why, *_cautions(record, method)]}
    return {"checks": [check._asdict() for check in found], "advice": advice}


def _decide(record: Mapping[str, Any], best: Figure | None) -> tuple[str | None, list[str]]:
    thinking = record["thinking"]
    if thinking["closed"]["value"] < FORMAT_SHARE:
        return None, [
            f"No method will work yet: only {thinking['closed']['value']:.0%} of the prior traces close, and without a "
            "closed trace no answer follows. Raise --max-tokens, choose another wording (covrl prompts), or teach the "
            "format first (covrl warm-format)."
        ]
    hinted = best is not None and usable(best)
    helps = shown(thinking["difference"], POINTS)
    reachable = hinted and best is not None and shown(best["hinted"], POINTS)
    if not (helps or reachable):
        return None, [
            f"No method is advised: thinking does not help this model here. Greedy answers are right in "
            f"{thinking['with']:.1%} after a thought and in {thinking['without']:.1%} without one"
            f"{_ends(thinking['difference'])}.",
            _hint_said(best),
            "Take a stronger base or easier problems; look at the answers, whether they belong to the questions.",
        ]
    if helps:
        why = [
            f"Thinking helps: greedy answers are right in {thinking['with']:.1%} after a thought and in "
            f"{thinking['without']:.1%} without one{_ends(thinking['difference'])}."
        ]
    else:
        why = ["The base's own thoughts do not help it yet, but those that it writes with the answer in sight do."]
    return _method(record, best if hinted else None, [*why, _hint_said(best)])


def _method(record: Mapping[str, Any], best: Figure | None, why: list[str]) -> tuple[str | None, list[str]]:
    """The method with the most signal; CoVRL only if its template is usable and it has more than cheaper ones."""
    trusted = not record["calibration"]["sentence"].startswith("Likelihood rewards cannot")
    long = record["thinking"]["answer_tokens"] > LONG_TOKENS
    left_out = {"jepo", "verifree", "covrl"} if long else set()
    signals = {
        m["method"]: m["signal"]
        for m in record["methods"]
        if m["signal"]["interval"][0] > 0
        and (trusted or m["method"] == "grpo")
        and m["method"] not in left_out
        and (best is not None or m["method"] != "covrl")
    }
    if not signals:
        return None, [
            *why,
            "No method is advised: no reward is shown to agree with the rightness of the traces of a question, so the "
            "first steps would have no direction. Take more problems (--limit), or a base that is right now and then.",
        ]
    own = {name: s for name, s in signals.items() if name != "covrl"}
    first = max(own, key=lambda name: own[name]["value"], default=None)
    if "covrl" in signals and (first is None or signals["covrl"]["interval"][0] > own[first]["value"]):
        second = f"; the best of the others is {first} with {own[first]['value']:.2f}" if first else ""
        return "covrl", [*why, f"Take covrl: its first step has a signal of {_signal(signals['covrl'])}{second}."]
    assert first is not None
    said = (
        f"Take {first}: its first step has a signal of {_signal(own[first])}, the most of the methods with one prompt"
    )
    if "covrl" in signals:
        said += f"; covrl's, {_signal(signals['covrl'])}, is not shown to be more, and it pays for a second prompt"
    return first, [*why, f"{said}."]


def _hint_said(best: Figure | None) -> str:
    """What the best template does, as a sentence."""
    if best is None:
        return "No posterior template can be used with this model and these problems."
    utility, margin = best["utility"], best["margin"]
    priced = (
        f"a wrong hint costs {margin['value']:.1f} nats{_ends(margin, 'nats')}" if margin else "its price is not known"
    )
    said = (
        f"With the answer in sight (template {best['template']}) {100 * utility['value']:+.1f} points of the answers "
        f"are right{_ends(utility)}, and {priced}"
    )
    if defends(best):
        return f"{said}; but its traces defend any answer: a wrong hint pulls them as well."
    if usable(best):
        return f"{said}: the hint's content is used."
    return f"{said}: the base is not shown to use the hint's content."


def _cautions(record: Mapping[str, Any], method: str | None) -> list[str]:
    """What to know of the figures, whatever is advised."""
    thinking, found = record["thinking"], []
    lengths = thinking["lengths"]
    if thinking["answer_tokens"] > LONG_TOKENS:
        found.append(
            f"The answers are long ({thinking['answer_tokens']:.0f} tokens): sums of log-probs make thoughts vanish on "
            "such (docs/methods/covrl.md, when not to use it)."
        )
    if lengths.get("length/within_corr", 0.0) < SHORTER_EARNS and lengths["length/within_corr_upper"] < 0:
        found.append(
            f"Within questions shorter thoughts earn more (correlation {lengths['length/within_corr']:.2f}): expect "
            "them to shrink; a reward per token (algorithm.reward = 'mean') or a verifier is safer."
        )
    gain = thinking["gain"]
    if gain is not None and gain["interval"] and gain["interval"][1] < 0:
        found.append(f"The answer is less likely after a thought than after none (gain {gain['value']:.1f} nats).")
    if not record["methods"]:
        found.append(
            "The signal of first steps is not known: of no question have two traces closed and stated a conclusion of "
            "their own."
        )
    if method is not None:
        found.append(record["calibration"]["sentence"])
    if len(record["templates"]) > 1:
        found.append(
            f"The template is the best of {len(record['templates'])} on the same problems, so its figures are a little "
            "too good."
        )
    return found


def _signal(found: Figure) -> str:
    return f"{found['value']:.2f} (95 % {found['interval'][0]:.2f} to {found['interval'][1]:.2f})"


def _ends(found: Figure, unit: str = "points") -> str:
    if not found["interval"]:
        return ""
    factor = 100 if unit == "points" else 1
    low, high = (factor * end for end in found["interval"])
    return f" (95 %: {low:.1f} to {high:.1f} {unit})"
