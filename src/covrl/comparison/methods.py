"""What can be compared, as data: the settings, and every method with its controls and ablations."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import NamedTuple

from covrl.config import RunConfig, check, override, read_toml
from covrl.errors import UserError

CONFIGS = Path(__file__).with_name("configs")
"""Our own tasks, each a file of settings."""

BASE = "base"
"""The untrained model: a row of every table, evaluated once per setting."""


class Setting(NamedTuple):
    """A base and problems that all methods start from, as a file of settings, and what a table says of it."""

    file: Path
    about: str

    @property
    def model(self) -> str:
        """Where the base is."""
        return read_toml(self.file)["model"]["path"]


SETTINGS = {
    "rare": Setting(CONFIGS / "rare.toml", "the right procedure in about 0.5 % of the base's traces"),
    "common": Setting(CONFIGS / "common.toml", "the right procedure in about 20 % of the base's traces"),
    "animals": Setting(CONFIGS / "animals.toml", "answers in words, in five phrasings"),
}

VARIANTS: dict[str, tuple[str, ...]] = {
    # a method that is refused with a single update a batch
    "rover": ("algorithm.name=rover", "training.mini_batches=2"),
    # controls of the claim that the answer guides the posterior
    "covrl-shuffled": ("algorithm.name=covrl", "problems.shuffle_hints=true"),
    "grpo-posterior": ("algorithm.name=grpo", "algorithm.posterior_share=0.5"),
    # with its default of 1, q collapses to p here
    "ravr-beta-0.1": ("algorithm.name=ravr", "algorithm.beta=0.1"),
    "ravr-beta-0.3": ("algorithm.name=ravr", "algorithm.beta=0.3"),
    # several updates a batch of rollouts, without which gspo is grpo and no clip ever binds
    "grpo-reuse": ("algorithm.name=grpo", "training.mini_batches=4"),
    "gspo-reuse": ("algorithm.name=gspo", "training.mini_batches=4"),
    "cispo-reuse": ("algorithm.name=cispo", "training.mini_batches=4"),
    "rlpr-reuse": ("algorithm.name=rlpr", "training.mini_batches=4"),
    # with a KL every row has weight, so the exact filter drops none
    "dash-no-kl": ("algorithm.name=dash", "algorithm.kl=none", "algorithm.kl_weight=0.0"),
    # ablations
    "covrl-beta-0": ("algorithm.name=covrl", "algorithm.beta=0.0"),
    "covrl-beta-0.1": ("algorithm.name=covrl", "algorithm.beta=0.1"),
    "covrl-beta-3": ("algorithm.name=covrl", "algorithm.beta=3.0"),
    "covrl-alpha-0.1": ("algorithm.name=covrl", "algorithm.alpha=0.1"),
    "covrl-alpha-0.9": ("algorithm.name=covrl", "algorithm.alpha=0.9"),
    "covrl-nll-0": ("algorithm.name=covrl", "algorithm.nll_weight=0.0"),
    "covrl-nll-0.1": ("algorithm.name=covrl", "algorithm.nll_weight=0.1"),
    "covrl-reward-mean": ("algorithm.name=covrl", "algorithm.reward=mean"),
    # β is divided like the reward: by the four tokens of an answer, its closing tag included
    "covrl-reward-mean-scaled": ("algorithm.name=covrl", "algorithm.reward=mean", "algorithm.beta=0.25"),
    "covrl-reward-prob": ("algorithm.name=covrl", "algorithm.reward=prob"),
    "covrl-reward-mean_prob": ("algorithm.name=covrl", "algorithm.reward=mean_prob"),
    "covrl-mixture": ("algorithm.name=covrl", "algorithm.ratio=mixture"),
    "covrl-band": ("algorithm.name=covrl", "algorithm.kl_band=[0.02, 0.1]"),
    "covrl-band-both": ("algorithm.name=covrl", "algorithm.kl_band=[0.02, 0.1]", "algorithm.kl_band_moves=both"),
    "covrl-contrast": ("algorithm.name=covrl", "algorithm.contrast=0.5"),
    "covrl-detached": ("algorithm.name=covrl", "algorithm.kl_reference=detached"),
}
"""Settings by name: variants of methods, and methods that need other settings than the recipe's. Any other name is the
method of that name with its own defaults."""

TUNED = Path(__file__).with_name("rates.toml")
"""The file of tuned learning rates: one table per setting, one rate per method."""


def read_rates(path: Path = TUNED) -> dict[tuple[str, str], float]:
    """Learning rates that were tuned on dev, by (method, setting)."""
    return {(method, setting): rate for setting, rates in read_toml(path).items() for method, rate in rates.items()}


RATES = read_rates()


def settings_of(method: str) -> tuple[str, ...]:
    """The ``section.key=value`` settings that make a run one of this method."""
    return VARIANTS.get(method, (f"algorithm.name={method}",))


def default_rate(method: str, setting: str) -> float:
    """The default learning rate of a method: the tuned one, else the recipe's."""
    recipe = read_toml(SETTINGS[setting].file)["training"]["learning_rate"]
    return RATES.get((method, setting), recipe)


def updates_a_step(method: str) -> int:
    """Optimizer steps that a method takes on each batch of rollouts; by default that of the recipe."""
    training = recipe_config(VARIANTS.get(method, ())).training
    return min(training.mini_batches, training.problems_per_step) * training.epochs


def recipe_config(settings: tuple[str, ...], setting: str = "rare") -> RunConfig:
    """The file of one of our tasks with settings applied; raises UserError like every config."""
    return check(RunConfig, override(read_toml(SETTINGS[setting].file), settings))


def check_names(methods: tuple[str, ...], settings: tuple[str, ...]) -> None:
    """Every name must be known, and the variants' settings must be the method's, before anything is trained.

    Raises:
        UserError: names the first that is not, and the nearest that is.
    """
    from covrl.algorithms import find_algorithm

    for name in settings:
        if name not in SETTINGS:
            raise UserError(f"--settings: unknown setting {name!r}; there are {', '.join(SETTINGS)}")
    for name in methods:
        if name == BASE:
            continue
        check_variant(name)
        table = recipe_config(settings_of(name)).algorithm
        check(find_algorithm(table.name).Config, table.settings, where=f"--algorithms {name}: ")


def check_variant(name: str) -> None:
    """Raise UserError for a name that is almost that of a variant."""
    near = difflib.get_close_matches(name, VARIANTS, n=1, cutoff=0.8)
    if near and name not in VARIANTS and "-" in name:
        raise UserError(f"--algorithms: unknown variant {name!r}: did you mean {near[0]}?")
