"""The plans that docs/memory.md shows: ``python benchmarks/plan_tables.py`` writes them into the page.

The published CoVRL setting on 8 x 80 GB, by the recipes covrl-paper-7b and covrl-paper-14b: what
``covrl train --config RECIPE --dry-run --plan 8x80GB`` prints where the model can be downloaded. The models' shapes
stand here, as no weights are needed. Arithmetic: the same on every machine.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from covrl.cli.plan import plan_for
from covrl.config import RunConfig, check, read_toml
from covrl.planning.phases import LINES, Hardware
from covrl.planning.planner import Plan, gb

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "memory.md"
BEGIN, END = "<!-- plan_tables: begin -->", "<!-- plan_tables: end -->"
HARDWARE = "8x80GB"

SHAPES: dict[str, dict[str, Any]] = {
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4},
    "14b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48, "num_attention_heads": 40,
            "num_key_value_heads": 8},
}  # fmt: skip
"""Of Qwen2.5, by the end of the recipe's name."""


def plan_of(name: str, folder: Path) -> Plan:
    """The plan of a recipe, with its model's config in ``folder``."""
    shape = {"model_type": "qwen2", "vocab_size": 152064, "tie_word_embeddings": False, **SHAPES[name]}
    (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    table = read_toml(ROOT / "recipes" / f"covrl-paper-{name}.toml")
    table["model"]["path"] = str(folder)
    return plan_for(check(RunConfig, table), Hardware.named(HARDWARE))


def markdown(name: str, plan: Plan) -> str:
    """A plan as a table of GB a rank."""
    lines = [f"`covrl-paper-{name}`, {plan.shape.base:,} weights, {plan.rows} rows while sampling:", ""]
    lines.append("| GB a rank | " + " | ".join(phase.name for phase in plan.phases) + " |")
    lines.append("|---|" + "---:|" * len(plan.phases))
    for line in LINES:
        sizes = [phase.lines.get(line, 0) for phase in plan.phases]
        if any(sizes):
            lines.append(f"| {line} | " + " | ".join(f"{s / 1e9:.1f}" if s else "" for s in sizes) + " |")
    lines.append("| **all** | " + " | ".join(f"**{phase.total / 1e9:.1f}**" for phase in plan.phases) + " |")
    verdict = "it fits" if plan.fits else "it does not fit"
    return "\n".join([*lines, "", f"{gb(plan.limit)} of each device are planned for: {verdict}."])


def tables() -> str:
    """What stands between the marks."""
    found = []
    for name in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            found.append(markdown(name, plan_of(name, Path(folder))))
    return "\n\n".join(found)


def main() -> int:
    """Write the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}", encoding="utf-8")
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
