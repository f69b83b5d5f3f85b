"""The model card of a run: what was trained, on what, how, with which figures; from the run's folder alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covrl import files
from covrl.algorithms import ALGORITHMS
from covrl.checkpoints.checkpoint import made_with, newest_whole, read_state, step_of
from covrl.config import read_toml
from covrl.config_help import Setting, method_settings, section_settings
from covrl.errors import UserError
from covrl.models.adapters import is_adapter
from covrl.records import StepReport
from covrl.reporting.folder import MEASURES
from covrl.reporting.format import number
from covrl.reporting.sinks import read_metrics
from covrl.reporting.text import one_line
from covrl.statistics import wilson

SHARES = frozenset({"eval/accuracy", "eval/sampled", "eval/sound"})
"""Figures that are shares of problems, so that Wilson's interval is theirs."""

LONGEST_VALUE = 200
"""Characters of a setting's value that the card shows."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What of a run goes to the hub: its folder, the model's folder and step, and what the card says of the licence.

    Example:
        >>> Pushed(Path("runs/first"), Path("runs/first/best"), step=40, license="apache-2.0", base="owner/name")

    ``step`` is None where the model's folder does not say it. ``license`` is that of the base, "" if nobody knows it.
    ``base`` is the base's name on the hub, "" if it is not from there.
    """

    folder: Path
    model: Path
    step: int | None
    license: str
    base: str


def step_of_model(model: Path) -> int | None:
    """The step after which a run's model was written: the best one's manifest says it, or its checkpoint's name."""
    if model.name == "model":
        return step_of(model.parent)
    try:
        return int(files.manifest(model)["step"])
    except (UserError, KeyError, TypeError, ValueError):  # of an earlier version, which kept no manifest
        return None


def card(pushed: Pushed, repo: str) -> str:
    """The text of README.md: metadata, method, settings with labels, data, figures with intervals, command, licence.

    Raises:
        UserError: the run's files cannot be read.
    """
    config = read_toml(pushed.folder / "config.toml")
    name = str(_section(config, "algorithm").get("name", "covrl"))
    parts = [
        _metadata(pushed, config, name),
        f"# {repo.partition('/')[2]}",
        _origin(pushed, config, name),
        "## Figures\n\n" + _figures(pushed, config),
        "## Data\n\n" + _data(config),
        "## Use\n\n" + _use(pushed, config, repo),
        "## Made with\n\n" + _command(config, name),
        "## Settings\n\n" + _settings(config, name),
        "## Licence\n\n" + _licence(pushed),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(pushed: Pushed, config: Mapping[str, Any], name: str) -> str:
    from huggingface_hub import ModelCardData

    adapter = is_adapter(pushed.model)
    data = ModelCardData(
        license=pushed.license or None,
        base_model=pushed.base or None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["covrl", "reinforcement-learning", "reasoning", name.partition(":")[0]],
        datasets=sorted({s.removeprefix("hf:").partition(":")[0] for s in sources(config) if s.startswith("hf:")}),
    )
    return f"---\n{data.to_yaml()}\n---"


def _origin(pushed: Pushed, config: Mapping[str, Any], name: str) -> str:
    base = pushed.base or Path(str(_section(config, "model").get("path", "?"))).name
    when = "" if pushed.step is None else f", after step {pushed.step} of {_section(config, 'training').get('steps')}"
    kind = "An adapter (LoRA) for" if is_adapter(pushed.model) else "A fine-tuning of"
    paper = _paper(name)
    return (
        f"{kind} {_code(base)} by reinforcement learning with the method {_code(name)}{paper}, trained with covrl "
        f"{made_with()['covrl']}{when}. `report.html` has every curve, and traces of single steps."
    )


def _paper(name: str) -> str:
    if name not in ALGORITHMS:
        return " (a method that is not part of covrl)"
    from covrl.algorithms import find_algorithm

    paper = find_algorithm(name).paper
    return f" ({one_line(paper)})" if paper else ""


def _figures(pushed: Pushed, config: Mapping[str, Any]) -> str:
    """Held-out figures at the first evaluation and at the model's step, shares with Wilson's 95 % interval."""
    path = pushed.folder / "metrics.jsonl"
    reports = read_metrics(path) if path.exists() else []
    count = problems_counted(pushed.folder)
    found = {name: row for name in MEASURES if (row := _row(name, reports, pushed.step, count)) is not None}
    head = "| | first evaluation | this model |\n|---|---|---|"
    if not any(name.startswith("eval/") for name in found):
        said = "Nothing was measured on held-out problems."
        return "\n".join([said, "", head.replace("evaluation", "step"), *found.values()]) if found else said
    held = held_out(config) or "problems that were given in Python"
    said = f"On {count or 'the'} held-out problems ({_code(_plain(held))}), measured by the run itself."
    if pushed.model.name == "best" and count:
        said += " The model was chosen as the best on these same problems, so its figures are too high on average."
    if count:
        said += " Shares have Wilson's 95 % interval over problems; means in nats have none here."
    return "\n".join([said, "", head, *found.values()])


def _row(name: str, reports: Sequence[StepReport], step: int | None, count: int | None) -> str | None:
    seen = [(r.step, r.metrics[name]) for r in reports if math.isfinite(r.metrics.get(name, math.nan))]
    until = [pair for pair in seen if step is None or pair[0] <= step]
    if not until:
        return None
    label, unit = MEASURES[name]
    cells = [f"{_figure(name, value, unit, count)} (step {at})" for at, value in (seen[0], until[-1])]
    return f"| {label} | {cells[0]} | {cells[1]} |"


def _figure(name: str, value: float, unit: str, count: int | None) -> str:
    shown = number(value, unit) + ("" if unit == "share" else f" {unit}")
    if name not in SHARES or not count:
        return shown
    low, high = wilson(value, count)
    return f"{shown} [{number(low, unit)}, {number(high, unit)}]"


def problems_counted(folder: Path) -> int | None:
    """On how many held-out problems the run measured accuracy; None where its checkpoint does not say."""
    found, _ = newest_whole(folder / "checkpoints")
    looks = read_state(found).get("guards", {}).get("watch", {}).get("looks", []) if found else []
    return len(looks[-1][1]) or None if looks else None


def sources(config: Mapping[str, Any]) -> Iterator[str]:
    """The names of all problems that the run was trained on, from its settings."""
    train = _section(config, "problems").get("train", "")
    several = train if isinstance(train, list) else [{"source": train}]
    yield from (str(part["source"]) for part in several if isinstance(part, Mapping) and part.get("source"))


def held_out(config: Mapping[str, Any]) -> str:
    """The name of the held-out problems in the settings; empty where there is none."""
    named = _section(config, "problems").get("held_out") or ""
    return str(named.get("source", "") if isinstance(named, Mapping) else named)


def _data(config: Mapping[str, Any]) -> str:
    train = [_code(_plain(source)) for source in sources(config)]
    held = held_out(config)
    return (
        f"Trained on {', '.join(train) if train else 'problems that were given in Python'}. Held out: "
        f"{_code(_plain(held)) if held else 'none named in the settings'}."
    )


def _use(pushed: Pushed, config: Mapping[str, Any], repo: str) -> str:
    prompts = _section(config, "prompts")
    written = ", ".join(
        f"{key} {_code(_plain(str(prompts[key])))}" for key in ("system", "user", "close") if key in prompts
    )
    where = "on its base, by peft" if is_adapter(pushed.model) else "like any causal language model of transformers"
    return (
        f"It loads {where}: {_code(repo)}. It was trained with prompts of its own: {written or 'the defaults'}; "
        f'`covrl ask FOLDER "question" --config config.toml` renders them.'
    )


def _command(config: Mapping[str, Any], name: str) -> str:
    given = [] if name in ALGORITHMS else [f"--algorithm {one_line(name)}"]
    rewards = _section(config, "rewards").get("function")
    given += [f"--reward {one_line(str(rewards))}"] if rewards else []
    command = " ".join(["covrl train --config config.toml", *given])
    where = "`config.toml` is in this repository; paths in it are those of the machine that trained."
    return f"```\n{command}\n```\n\n{where}"


def _settings(config: Mapping[str, Any], name: str) -> str:
    """The settings that are not defaults, and the method's own, with their evidence labels."""
    known = {s.key: s for s in section_settings()}
    if name in ALGORITHMS:
        known |= {s.key.replace(f"({name})", ""): s for s in method_settings(name)}
    rows = [
        f"| {_code(f'{section}.{key}')} | {_code(_value(value))} | {_label(known.get(f'{section}.{key}'))} |"
        for section, part in config.items()
        if isinstance(part, Mapping)
        for key, value in part.items()
        if section == "algorithm" or _changed(known.get(f"{section}.{key}"), value)
    ]
    return (
        "What differs from covrl's defaults, and all of the method's own. CONFIRMED: by the paper or its authors' "
        "code; INFERRED: covrl's choice; VERIFIED: measured or proved by covrl.\n\n"
        + "\n".join(["| setting | value | evidence |", "|---|---|---|", *rows])
    )


def _changed(setting: Setting | None, value: Any) -> bool:
    if setting is None:
        return True
    default = list(setting.default) if isinstance(setting.default, tuple) else setting.default
    return value != default


def _label(setting: Setting | None) -> str:
    return setting.evidence if setting and setting.evidence else "–"


def _value(value: Any) -> str:
    return _plain(value) if isinstance(value, str) else one_line(repr(value), LONGEST_VALUE)


def _plain(text: str) -> str:
    """A value on one line; of an absolute path the last part alone, as the rest says where somebody works."""
    path = Path(text)
    return one_line(path.name if path.is_absolute() else text.replace("\n", "\\n"), LONGEST_VALUE)


def _code(text: str) -> str:
    """Text as code on one line, also in a table of Markdown: nothing in it is markup."""
    shown = one_line(text).replace("|", "\\|")
    ticks = "``" if "`" in shown else "`"
    return f"{ticks} {shown} {ticks}" if "`" in shown else f"`{shown}`" if shown else "(empty)"


def _licence(pushed: Pushed) -> str:
    if not pushed.license:
        return (
            "The licence of the base could not be read when this was written. It holds for these weights: look it up "
            "with the base, and name it in this card's metadata."
        )
    return f"The base has the licence {_code(pushed.license)}, which holds for these weights too."


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}
