"""`covrl preflight`: before training, which method will work on these problems with this model, or that none will.

Nothing is trained. Prior traces are sampled once, posterior traces under each of the six templates, and every trace is
answered from the prior prompt, graded and scored. What the parts are is in :mod:`.bench` (thinking against not
thinking), :mod:`.template_trial`, :mod:`.calibration`, :mod:`.signal` and, for the advice, :mod:`.preflight_rule`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any, get_args

from covrl.algorithms.listing import describe
from covrl.evaluation.bench import ANSWER, TRAINING_READS, Bench, Thoughts, think, thinking_record
from covrl.evaluation.calibration import auc_within, calibration, marked
from covrl.evaluation.posterior_gain import over_problems
from covrl.evaluation.preflight_rule import advise, best_template
from covrl.evaluation.signal import Signal, method_signals
from covrl.evaluation.template_trial import TemplateTrial, try_template
from covrl.problems.foils import foils
from covrl.prompts import Prompts
from covrl.rewards.likelihood import Form


def preflight(
    bench: Bench,
    templates: Mapping[str, Prompts],
    form: Form,
    group: int,
    words: Sequence[str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """All figures and the advice, as plain data.

    ``templates`` are the wordings to try by the template's name, ``form`` that of the settings' reward, ``group`` the
    traces of a problem in a step of training, ``words`` those that show doubt. ``say`` is told what is going on.
    """
    wrong = foils(bench.problems)
    say(f"{len(bench.problems)} problems, {bench.traces} traces each: without the answer in sight …")
    thoughts = think(bench, wrong)
    trials: list[TemplateTrial] = []
    for name, prompts in templates.items():
        say(f"the answer in sight, template {name} …")
        trials.append(try_template(bench, name, prompts, thoughts, wrong, words))
    record: dict[str, Any] = {
        "thinking": thinking_record(bench, thoughts),
        "templates": [trial.figures for trial in trials],
        "calibration": _calibration(bench, thoughts, form),
        "forms": [_form(bench, thoughts, each) for each in get_args(Form)],
    }
    best = best_template(record["templates"])
    trial = next((t for t in trials if best is not None and t.name == best["template"]), None)
    signals = method_signals(bench, thoughts, trial)
    record["methods"] = [
        _method(name, found, thoughts, _prompt_tokens(bench, templates, trial), group)
        for name, found in signals.items()
        if found is not None
    ]
    return record | advise(record)


def _calibration(bench: Bench, thoughts: Thoughts, form: Form) -> dict[str, Any]:
    by = "conclusion" if bench.evaluator.label is None else "sound"
    answers = [s[ANSWER] if ANSWER in s else None for s in thoughts.scores]  # noqa: SIM401 (no mapping)
    found = marked(thoughts.graded, answers, thoughts.own, form)
    return calibration(found, len(thoughts.graded), bench.seed, by, form)


def _form(bench: Bench, thoughts: Thoughts, form: Form) -> dict[str, Any]:
    """How well one form of the reward orders the traces of a question."""
    answers = [s[ANSWER] if ANSWER in s else None for s in thoughts.scores]  # noqa: SIM401 (no mapping)
    rows = [m for m in marked(thoughts.graded, answers, thoughts.own, form) if m.own != "unknown"]
    within = auc_within([(m.problem, m.reward, m.right) for m in rows])
    ends = over_problems(within, bench.seed) if within else None
    return {
        "form": form,
        "auc_within": {"value": fmean(within), "interval": list(ends) if ends else None} if within else None,
        "questions": len(within),
    }


def _prompt_tokens(bench: Bench, templates: Mapping[str, Prompts], trial: TemplateTrial | None) -> dict[str, float]:
    """Mean length of both prompts."""
    shown = bench.evaluator.prompts if trial is None else templates[trial.name]
    return {
        "prior": fmean(len(bench.evaluator.prompts.prior(p)) for p in bench.problems),
        "posterior": fmean(len(shown.posterior(p)) for p in bench.problems),
    }


def _method(name: str, found: Signal, thoughts: Thoughts, prompts: Mapping[str, float], group: int) -> dict[str, Any]:
    """A method's signal and what a problem costs it in a step: tokens sampled, tokens read, seconds on this machine.

    A prompt is read once a problem and context, in training as in scoring; a context that reads an empty thought has
    no trace. Seconds are the pre-flight's own, a token each, with :data:`TRAINING_READS` readings.
    """
    trace = fmean(len(g.rollout.trace_ids) for g in thoughts.graded)
    answer = fmean(len(e) for e in thoughts.empty)
    read = 0.0
    for context in describe(name).contexts:
        prompt = prompts.get(context, prompts["prior"])
        read += prompt + (answer if context == "direct" else group * (trace + (answer if context == "prior" else 0)))
    sampled = group * trace
    seconds = sampled * thoughts.sampling_s / max(thoughts.sampled, 1)
    seconds += TRAINING_READS * read * thoughts.reading_s / max(thoughts.read, 1)
    return {"method": name, **found.record(), "sampled": sampled, "read": read, "seconds": seconds}
