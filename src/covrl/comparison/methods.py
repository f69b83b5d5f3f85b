"""The methods that can be compared, with controls and ablations: settings by name."""

from __future__ import annotations

import difflib

from covrl.errors import UserError

BASE = "base"
"""The untrained model: a row of every table, evaluated once per setting."""

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
    "dhpo-reuse": ("algorithm.name=dhpo", "training.mini_batches=4"),
    # three quarters of the tokens that the digits task samples in a step
    "c3po": ("algorithm.name=c3po", "algorithm.budget=3000"),
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


def settings_of(method: str) -> tuple[str, ...]:
    """The ``section.key=value`` settings that make a run one of this method."""
    return VARIANTS.get(method, (f"algorithm.name={method}",))


def check_variant(name: str) -> None:
    """Raise UserError for a name that is almost that of a variant."""
    near = difflib.get_close_matches(name, VARIANTS, n=1, cutoff=0.8)
    if near and name not in VARIANTS and "-" in name:
        raise UserError(f"--algorithms: unknown variant {name!r}: did you mean {near[0]}?")
