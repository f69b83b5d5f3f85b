"""All settings, read off the classes that check them: a list for people, a JSON schema for editors."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covrl.algorithms import ALGORITHMS, find_algorithm
from covrl.config import RewardConfig, RunConfig, SourceConfig, check, config_from
from covrl.errors import UserError
from covrl.plugins import ALGORITHMS as GROUP
from covrl.plugins import installed

METHOD = "algorithm"
"""The section whose keys depend on the method."""

_LABEL = re.compile(r"\b(?:CONFIRMED(?:-\w+)?|INFERRED|VERIFIED)\b")

UNITS = {
    "evaluation.every": "steps",
    "evaluation.problems": "problems",
    "checkpoint.every": "steps",
    "checkpoint.keep": "checkpoints",
    "generation.max_answer_tokens": "tokens",
    "generation.max_trace_tokens": "tokens",
    "generation.ahead": "steps",
    "generation.rows_per_pass": "traces",
    "guards.publish_check_every": "steps",
    "guards.skip_at_most": "steps",
    "guards.step_deadline_s": "seconds",
    "guards.window": "steps",
    "report.groups_shown": "problems",
    "report.thoughts_every": "steps",
    "report.traces_every": "steps",
    "reward.NAME.timeout_s": "seconds",
    "steps.timeout_s": "seconds",
    "training.logits_mb_per_chunk": "MiB",
    "training.problems_per_step": "problems",
    "training.rollouts_per_problem": "traces",
    "training.steps": "steps",
    "training.stream_norms_every": "steps",
    "training.tokens_per_pass": "tokens",
    "training.warmup_steps": "steps",
}
"""Of settings that count or measure something; those of a method are in its descriptions."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its dotted key, what it may be, its default, unit, evidence and meaning.

    ``evidence`` has the labels of the description: CONFIRMED (by a paper or its code), INFERRED (our choice), VERIFIED
    (measured by us); empty where the setting is no claim about a paper.
    """

    key: str
    kind: str
    default: Any
    required: bool
    unit: str
    evidence: str
    about: str


def list_settings() -> list[Setting]:
    """Every setting of a configuration file, section by section; then those of each method of this package."""
    return [*section_settings(), *(setting for method in ALGORITHMS for setting in method_settings(method))]


def section_settings() -> list[Setting]:
    """The settings that every run has. No method is imported for them, and so no torch."""
    whole = RunConfig.model_json_schema()
    found = [
        setting
        for section, part in whole["properties"].items()
        if section not in (METHOD, "reward")
        for setting in _section(section, _resolved(part, whole["$defs"]), whole["$defs"])
    ]
    found += _section("problems.train", SourceConfig.model_json_schema(), {})
    found += _section("reward.NAME", RewardConfig.model_json_schema(), {})
    name = Setting(f"{METHOD}.name", "text", "covrl", False, "", "", "the method; `covrl algorithms` lists them")
    return [*found, name]


def method_settings(name: str) -> list[Setting]:
    """The settings of a method, whose keys are ``algorithm.KEY`` in a file.

    Raises:
        UserError: no such method.
    """
    schema = find_algorithm(name).Config.model_json_schema()
    return list(_section(f"{METHOD}({name})", schema, schema.get("$defs", {})))


def chosen_settings(names: Sequence[str]) -> list[Setting]:
    """Those of the sections, settings or methods of these names; without names those of every section.

    Raises:
        UserError: there is none of a name; says which is near.
    """
    every = section_settings()
    found: list[Setting] = [] if names else every
    for name in names:
        own = _of_name(name, every) or _of_name(name, list_settings())
        own = own or (method_settings(name) if name in installed(GROUP) else [])
        if not own:
            raise UserError(_unknown(name, list_settings()))
        found += own
    return found


def _of_name(name: str, settings: Sequence[Setting]) -> list[Setting]:
    return [s for s in settings if s.key == name or s.key.startswith((f"{name}.", f"{METHOD}({name})."))]


def _unknown(name: str, every: Sequence[Setting]) -> str:
    sections = [section for section in RunConfig.model_fields if section != METHOD]
    near = difflib.get_close_matches(name, [*sections, *ALGORITHMS, *(setting.key for setting in every)], n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are the sections {', '.join(sections)}, and each method"
    return f"no section, setting or method {name!r}: {hint}"


def _section(name: str, schema: Mapping[str, Any], defs: Mapping[str, Any]) -> Iterator[Setting]:
    for key, part in schema.get("properties", {}).items():
        text = part.get("description", "")
        labels = ", ".join(dict.fromkeys(_LABEL.findall(text)))
        required = key in schema.get("required", ())
        unit = UNITS.get(f"{name}.{key}", "")
        yield Setting(f"{name}.{key}", _kind(part, defs), part.get("default"), required, unit, labels, text)


def _resolved(part: Mapping[str, Any], defs: Mapping[str, Any]) -> Mapping[str, Any]:
    return defs[part["$ref"].rpartition("/")[2]] if "$ref" in part else part


_KINDS = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false", "object": "table"}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _kind(part: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """What a value may be, in words."""
    part = _resolved(part, defs)
    if forms := part.get("anyOf", part.get("oneOf")):
        return " or ".join(_kind(each, defs) for each in forms if each.get("type") != "null")
    if "enum" in part:
        return " | ".join(map(str, part["enum"]))
    if "const" in part:
        return str(part["const"])
    if part.get("type") == "array":
        inner = part.get("items") or (part.get("prefixItems") or [{}])[0]
        return f"list of {_kind(inner, defs)}"
    bounds = [f"{sign} {part[name]:g}" for name, sign in _BOUNDS.items() if name in part]
    return " ".join([_KINDS.get(part.get("type", ""), "value"), *bounds])


def config_schema() -> dict[str, Any]:
    """The JSON schema of a configuration file, with the settings of each method under ``algorithm``."""
    whole = RunConfig.model_json_schema()
    whole["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    whole["title"] = "covrl"
    defs = whole["$defs"]
    named = defs["RewardConfig"] | {"title": "NamedReward"}
    named["properties"] = {"name": {"type": "string"}, **named["properties"]}
    named["required"] = ["name", *named["required"]]
    table = {"type": "object", "additionalProperties": {"$ref": "#/$defs/RewardConfig"}}
    whole["properties"]["reward"] = {"anyOf": [table, {"type": "array", "items": named}]}
    own = [_method_schema(name, defs) for name in ALGORITHMS]
    others = {
        "type": "object",
        "description": "a method of another package, or module:class",
        "properties": {"name": {"type": "string", "not": {"enum": list(ALGORITHMS)}}},
        "required": ["name"],
    }
    whole["properties"][METHOD] = {"oneOf": [*own, others]}
    return whole


def _method_schema(name: str, defs: dict[str, Any]) -> dict[str, Any]:
    """The table of one method; what it refers to goes to ``defs`` under a name of its own."""
    reference = f"#/$defs/{name}.{{model}}"
    schema = find_algorithm(name).Config.model_json_schema(ref_template=reference)
    defs.update({f"{name}.{model}": part for model, part in schema.pop("$defs", {}).items()})
    schema["properties"] = {"name": {"const": name}, **schema.get("properties", {})}
    if name != RunConfig.model_fields[METHOD].default.name:
        schema["required"] = ["name", *schema.get("required", ())]
    return schema


def check_file(file: Path, assignments: Sequence[str] = ()) -> RunConfig:
    """The settings of a file, checked as `covrl train` does before it loads anything; the method's own too.

    Raises:
        UserError: the first setting that is wrong, with what would be right.
    """
    config = config_from(file, assignments)
    check(find_algorithm(config.algorithm.name).Config, config.algorithm.settings, where=f"{file}: [algorithm] ")
    return config
