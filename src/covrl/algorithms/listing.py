"""What methods there are, for `covrl algorithms`."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Any

from covrl.algorithms import ALGORITHMS, find_algorithm
from covrl.algorithms.base import Algorithm, Setup
from covrl.config import PromptConfig
from covrl.plugins import ALGORITHMS as GROUP
from covrl.plugins import installed
from covrl.prompts import Prompts


@dataclass(frozen=True, slots=True)
class Listed:
    """One method: where it comes from, how sure we are of it, what it reads with its default settings."""

    name: str
    summary: str
    paper: str
    evidence: str
    contexts: tuple[str, ...]
    needs_verifier: bool
    recipe: str | None


def list_algorithms() -> list[Listed]:
    """Ours in the order of the registry, then those of installed packages."""
    others = [name for name in installed(GROUP) if name not in ALGORITHMS]
    return [describe(name) for name in [*ALGORITHMS, *others]]


def describe(name: str) -> Listed:
    """One method by name.

    Raises:
        UserError: it cannot be loaded.
    """
    cls = find_algorithm(name)
    nothing_to_encode: Any = None
    method = cls(cls.Config(), Setup(Prompts(nothing_to_encode, PromptConfig()), 8))
    recipe = f"recipes/{name}.toml" if name in ALGORITHMS else None
    contexts = tuple(context.name for context in method.contexts)
    return Listed(name, _summary(cls), cls.paper, cls.evidence, contexts, cls.verified, recipe)


def _summary(cls: type[Algorithm]) -> str:
    """The first line of the class's docstring, or of its module's where it points there; without citations."""
    own = (cls.__doc__ or "").strip()
    text = own if own and not own.startswith("See the module") else (sys.modules[cls.__module__].__doc__ or "")
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    cited = re.sub(r"; see the module's docstring", "", re.sub(r" \([^()]*arXiv[^()]*\)", "", paragraph))
    return cited.rstrip(".")
