"""Rates are chosen from results alone, and the grid grows where the best is at its edge."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from curves import curves, up_to
from tuning import Tuning

from comparison.results import cell, result
from covrl.comparison.cells import Budget, Cell, Exam, Result
from covrl.comparison.summary import lines

TUNING = Tuning((100, 101), Budget("steps", 50), Exam("dev", 4, 1000), rates=(2.0, 4.0), least=0.5, most=16.0)


def known(scores: dict[float, float], seeds: tuple[int, ...] = TUNING.seeds) -> list[Result]:
    """Results whose avg@n is the score, a little more for the second seed."""
    found = []
    for rate, score in scores.items():
        for more, seed in enumerate(seeds):
            one = result(Cell("covrl", "rare", rate, seed, TUNING.budget, TUNING.exam), 0.5)
            one.figures["exam"]["avg@n"] = score + 0.01 * more
            found.append(one)
    return found


@pytest.mark.parametrize(
    ("scores", "tried", "best"),
    [
        ({}, [2, 4], None),
        ({2: 0.9}, [2, 4], None),
        ({2: 0.9, 4: 0.8}, [1, 2, 4], None),
        ({1: 0.1, 2: 0.9, 4: 0.8}, [1, 2, 4], 2),
        ({2: 0.7, 4: 0.8}, [2, 4, 8], None),
        ({2: 0.7, 4: 0.8, 8: 0.9}, [2, 4, 8, 16], None),
        ({2: 0.7, 4: 0.8, 8: 0.9, 16: 0.95}, [2, 4, 8, 16], 16),
        ({0.5: 0.9, 1: 0.8, 2: 0.7, 4: 0.6}, [0.5, 1, 2, 4], 0.5),
    ],
)
def test_the_grid_grows_at_its_edge_within_bounds(
    scores: dict[float, float], tried: list[float], best: float | None
) -> None:
    assert TUNING.tried("covrl", "rare", known(scores)) == tried
    assert TUNING.best("covrl", "rare", known(scores)) == best


def test_a_rate_counts_when_every_seed_is_there_and_only_of_the_same_exam() -> None:
    half = known({2: 0.9, 4: 0.8}, seeds=(100,))
    assert TUNING.score("covrl", "rare", 2.0, half) is None
    assert TUNING.best("covrl", "rare", half) is None
    assert TUNING.score("covrl", "rare", 2.0, known({2: 0.9})) == pytest.approx(0.905)
    assert TUNING.score("covrl", "common", 2.0, known({2: 0.9})) is None
    other = Tuning((100, 101), Budget("steps", 100), TUNING.exam, (2.0,), 0.5, 16.0)
    assert other.score("covrl", "rare", 2.0, known({2: 0.9})) is None


def test_a_drawing_ends_where_its_method_does() -> None:
    course = [(0.0, 0.0), (10.0, 0.4), (20.0, 0.6)]
    assert up_to(course, 15.0) == [(0.0, 0.0), (10.0, 0.4), (15.0, pytest.approx(0.5))]
    assert up_to(course, 20.0) == course
    assert up_to(course, 30.0) == course, "one that ends before"
    far = result(cell("dapo"), 0.4, tokens=(0, 5000, 10000))
    every = [result(cell(seed=s), 0.5) for s in range(2)]
    drawn = curves("covrl", lines([r.cell for r in (*every, far)], {r.cell: r for r in (*every, far)}))
    assert ">200<" in drawn
    assert "10 k" not in drawn, "dapo goes on beyond the drawing"


def test_the_curves_of_a_method_are_one_drawing_with_every_seed() -> None:
    mine = [result(cell(seed=s), g) for s, g in enumerate((0.5, 0.6))]
    others = [result(cell("grpo"), 0.4), result(cell("base"), 0.05, tokens=(0,))]
    common = [result(cell(setting="common"), 0.7), result(cell("grpo", setting="common"), 0.7, counting=1)]
    made = [*mine, *others, *common]
    every = lines([r.cell for r in made], {r.cell: r for r in made})
    drawn = curves("covrl", every)
    root = ElementTree.fromstring(drawn)
    panels = [node for node in root if node.tag.endswith("}g")]
    drawings = [[n.get("class") for n in panel.iter() if n.tag[-4:] in ("path", "line")] for panel in panels]
    classes = [sorted(filter(None, found)) for found in drawings]
    assert classes == [["chance", "mean", "rest", "seed", "seed"]] * 2 + [["chance", "mean", "seed"]] * 2
    texts = ["".join(panel.itertext()) for panel in panels]
    for name, row in (("generated tokens", (0, 2)), ("forward + backward tokens", (1, 3))):
        assert all(f"% right against {name};" in texts[i] for i in row)
    assert ["covrl, rare" in text for text in texts] == [True, True, False, False]
    assert len({panel.get("transform") for panel in panels}) == 4, "side by side"
    assert "2 seeds" in texts[0]
    assert curves("rloo", every) == ""
    assert curves("base", every) == ""
