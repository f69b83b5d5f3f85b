"""Which settings `covrl eval` uses with several models: each model's own, and one set of problems for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from covrl import api
from covrl.config import RunConfig
from covrl.errors import UserError
from covrl.evaluation.exam import Exam
from covrl.problems.tasks import task_of

FIELDS = ("question_field", "answer_field", "accepted_field", "id_field", "extract")
SAMPLING = ("temperature", "answer_temperature", "trace_tokens", "answer_tokens")
"""Settings of a model that apply to an exam that is no benchmark."""

TRACES_OWN = "as the trace"
"""Text for an answer's temperature that is not set."""

OPTIONS = {"temperature": "--temperature", "answer_temperature": "--answer-temperature", "trace_tokens": "--max-tokens"}
"""The options that make them the same for all models."""


class Asked(NamedTuple):
    """The settings of each model, by name, and the notes on them for the reader of the results."""

    configs: dict[str, RunConfig]
    notes: list[str]


def settings_of(
    models: Sequence[str], sources: Sequence[str], file: Path | None = None, settings: Sequence[str] = ()
) -> Asked:
    """Each model's settings: those of ``file``, else its own; one that has none gets those of the first that has some.

    Raises:
        UserError: two models with settings of their own read the same problems differently, or grade differently.
    """
    own = [name for name in models if api.has_settings(name)]
    if file is not None or not own:
        return Asked({name: api.config_for(name, file, settings) for name in models}, [])
    first = api.config_for(own[0], None, settings)
    configs: dict[str, RunConfig] = {}
    notes: list[str] = []
    for name in models:
        if name in own:
            configs[name] = api.config_for(name, None, settings)
            continue
        configs[name] = first.model_copy(update={"model": first.model.model_copy(update={"path": name})})
        notes.append(f"{name} has no settings of its own and is evaluated with the settings of {own[0]}")
    for other in own[1:]:
        _agree(own[0], other, configs, sources)
    first_seed = configs[models[0]].training.seed
    seeds = {name: config.training.seed for name, config in configs.items()}
    if len(set(seeds.values())) > 1:
        said = ", ".join(f"{name} {seed}" for name, seed in seeds.items())
        notes.append(f"samples of all models are drawn with seed {first_seed}; training.seed is {said}")
    return Asked(configs, notes)


def _agree(one: str, other: str, configs: Mapping[str, RunConfig], sources: Sequence[str]) -> None:
    """All models need the same problems and the same grading; benchmarks determine both themselves."""
    files = [source for source in sources if task_of(source) is None]
    pairs = [("problems", key) for key in FIELDS] if files else []
    pairs += [("evaluation", "verifier")] if sources else []
    for section, key in pairs:
        a, b = (getattr(getattr(configs[name], section), key) for name in (one, other))
        if a != b:
            raise UserError(
                f"--problems: {one} has {section}.{key} = {a!r} and {other} has {b!r}, but both need the "
                f"same problems and grading: choose with --set {section}.{key}=…"
            )


def exam_for(
    exam: Exam, config: RunConfig, temperature: float | None, answer_temperature: float | None, max_tokens: int | None
) -> Exam:
    """The exam for one model: a benchmark as it is, else with the model's own temperatures and limits.

    Values that are not None come from the command line, and hold for all models.
    """
    if exam.protocol is not None:
        return exam
    generation = config.generation
    return replace(
        exam,
        temperature=generation.temperature if temperature is None else temperature,
        answer_temperature=(config.evaluation.answer_temperature if answer_temperature is None else answer_temperature),
        trace_tokens=max_tokens or generation.max_trace_tokens,
        answer_tokens=generation.max_answer_tokens,
    )


def sampling_of(exams: Mapping[str, Exam]) -> dict[str, dict[str, Any]]:
    """The sampling settings of each model in one exam, for the record; unset values are omitted."""
    return {
        name: {key: value for key in SAMPLING if (value := getattr(exam, key)) is not None}
        for name, exam in exams.items()
    }


def differences(name: str, sampling: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The settings that differ between the models of an exam, as text."""
    said = []
    for key in SAMPLING:
        values = {model: found.get(key) for model, found in sampling.items()}
        if len(set(values.values())) > 1:
            each = ", ".join(
                f"{model} {TRACES_OWN if value is None else f'{value:g}'}" for model, value in values.items()
            )
            same = OPTIONS.get(key, "--set generation.max_answer_tokens=…")
            said.append(
                f"{name}: {key.replace('_', ' ')} as in each model's settings: {each}; what was kept, gained and lost "
                f"does not compare at an equal budget, {same} makes it the same"
            )
    return said
