"""Every drawing of the comparison stands on its method's page, and every drawing that a page shows is there."""

from __future__ import annotations

from pathlib import Path

import curve_pages as module
import pytest

ROOT = Path(__file__).parents[2]

PAGE = "# grpo\n\nText.\n\n## Tests\n\n`test_x`\n"
INDEX = "\n".join([
    "| paper | method | recipe | test | curve |",
    "|---|---|---|---|---|",
    "| A, arXiv 1 | [grpo](methods/grpo.md) | r | `t` | none yet |",
    "| B | [psr](methods/psr.md), [nsr](methods/nsr.md) | r | `t` | [rare](results/curves/old.svg) |",
    "| C | `switch` of [grpo](methods/grpo.md) | r | `t` | written by hand |",
    "| D, 2023 | theory | kin of [grpo](methods/grpo.md) |",
    "",
])  # fmt: skip


def test_the_docs_show_the_drawings_that_are_there_and_no_others() -> None:
    docs = ROOT / "docs"
    there = {path.stem for path in (docs / "results" / "curves").glob("*.svg")}
    found = module.drawings(docs)
    for page in (docs / "methods").glob("*.md"):
        shown = module.LINK.findall(page.read_text(encoding="utf-8"))
        assert shown == found.get(page.stem, []), f"{page.name}: run python benchmarks/curve_pages.py"
    assert {name for names in found.values() for name in names} == there
    assert all((docs / "methods" / f"{method}.md").is_file() for method in found)
    linked = module.LINK.findall((docs / "papers.md").read_text(encoding="utf-8"))
    assert sorted(linked) == sorted(there), "papers.md: run python benchmarks/curve_pages.py"


@pytest.mark.parametrize("page", [PAGE, PAGE.partition("## Tests")[0]])
def test_a_page_gets_its_drawings_loses_old_ones_and_stays_as_it_is_the_second_time(page: str) -> None:
    shown = module.with_curves(page, ["grpo", "grpo-posterior"])
    assert module.LINK.findall(shown) == ["grpo", "grpo-posterior"]
    assert module.with_curves(shown, ["grpo", "grpo-posterior"]) == shown
    assert module.LINK.findall(module.with_curves(shown, ["grpo"], ["rare", "common"])) == ["grpo"]
    assert "test-common.md" in module.with_curves(shown, ["grpo"], ["rare", "common"])
    without = module.with_curves(shown, [])
    assert without.rstrip() == page.rstrip()
    assert shown.count("## Tests") == page.count("## Tests")


def test_the_table_of_papers_links_what_is_there() -> None:
    linked = module.with_links(INDEX, {"grpo": ["grpo", "grpo-posterior"], "nsr": ["nsr"]})
    rows = linked.split("\n")
    assert rows[0] == INDEX.split("\n")[0]
    assert rows[2].endswith(
        "| `t` | [grpo](results/curves/grpo.svg), [grpo-posterior](results/curves/grpo-posterior.svg) |"
    )
    assert rows[3] == "| B | [psr](methods/psr.md), [nsr](methods/nsr.md) | r | `t` | [nsr](results/curves/nsr.svg) |"
    assert rows[4:] == INDEX.split("\n")[4:]
    assert module.with_links(linked, {}).count("| none yet |") == 2


def test_a_drawing_belongs_to_the_method_before_its_hyphen(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "curves"
    folder.mkdir(parents=True)
    for name in ("ravr-beta-0.3", "covrl-shuffled", "covrl", "dr_grpo"):
        (folder / f"{name}.svg").touch()
    assert module.drawings(tmp_path) == {
        "covrl": ["covrl", "covrl-shuffled"], "dr_grpo": ["dr_grpo"], "ravr": ["ravr-beta-0.3"],
    }  # fmt: skip
