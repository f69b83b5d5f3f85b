"""The curves in the docs: which drawing stands on which method's page, and in the table of papers.

    python benchmarks/curve_pages.py          # comparison.py does it too, after it has drawn

A drawing ``docs/results/curves/NAME.svg`` belongs to the page ``docs/methods/NAME.md``, or, for a variant such as
``covrl-shuffled``, to that of the method before the first hyphen.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
SECTION = re.compile(r"## Curve\n.*?(?=^## |\Z)", re.DOTALL | re.MULTILINE)
CELLS = 5
"""Of a row that names a paper, its methods, recipes, tests and curves."""

LINK = re.compile(r"\((?:\.\./)?results/curves/([^)]+)\.svg\)")


def drawings(docs: Path) -> dict[str, list[str]]:
    """The drawings that are there, by method: its own first, then its variants."""
    found: dict[str, list[str]] = {}
    for path in sorted((docs / "results" / "curves").glob("*.svg"), key=lambda path: path.stem):
        found.setdefault(path.stem.partition("-")[0], []).append(path.stem)
    return found


def with_curves(page: str, names: Sequence[str], tables: Sequence[str] = ("rare",)) -> str:
    """A method's page with the drawings ``names`` in its section "Curve", and without that section if there are none.

    ``tables`` are the settings whose tables of all figures are linked.
    """
    bare = SECTION.sub("", page)
    if not names:
        return bare
    shown = "\n\n".join(
        f"![{name}: held-out accuracy against generated and against forward + backward tokens]"
        f"(../results/curves/{name}.svg)"
        for name in names
    )
    figures = ", ".join(f"[{setting}](../results/test-{setting}.md)" for setting in tables)
    section = (
        f"## Curve\n\n{shown}\n\n"
        "Held-out greedy accuracy of every seed at the rate that was tuned for it, other methods in grey.\n"
        f"All figures: {figures} (`python benchmarks/comparison.py`).\n"
    )
    before, heading, tests = bare.partition("## Tests\n")
    return f"{before.rstrip()}\n\n{section}" + (f"\n{heading}{tests}" if heading else "")


def with_links(index: str, found: Mapping[str, Sequence[str]]) -> str:
    """The table of papers with the last cell of each row linking the drawings of the row's methods."""
    return "\n".join(_linked(line, found) for line in index.split("\n"))


def _linked(line: str, found: Mapping[str, Sequence[str]]) -> str:
    cells = line.strip(" |").split(" | ")
    if len(cells) != CELLS or not cells[1].startswith("["):  # another table, or a setting of a method
        return line
    methods = re.findall(r"\[(\w+)\]\(methods/\1\.md\)", cells[1])
    names = [name for method in methods for name in found.get(method, ())]
    links = ", ".join(f"[{name}](results/curves/{name}.svg)" for name in names)
    return f"{line.rstrip(' |').rpartition(' | ')[0]} | {links or 'none yet'} |"


def write_pages(docs: Path = DOCS) -> None:
    """Every page of a method, and the table of papers, with the drawings that are there."""
    found = drawings(docs)
    tables = [s for s in ("rare", "common") if (docs / "results" / f"test-{s}.md").is_file()]
    for page in sorted((docs / "methods").glob("*.md")):
        _rewrite(page, with_curves(page.read_text(encoding="utf-8"), found.get(page.stem, ()), tables))
    index = docs / "papers.md"
    _rewrite(index, with_links(index.read_text(encoding="utf-8"), found))


def _rewrite(path: Path, text: str) -> None:
    if path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_pages()
    sys.exit(0)
