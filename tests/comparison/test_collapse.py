"""The rule of the collapse at a weak KL, on made-up courses."""

from __future__ import annotations

import pytest
from collapse import Ending, endings, table, verdict

from comparison.results import cell, result
from covrl.comparison.cells import Cell, Result
from covrl.comparison.summary import lines

WEAK, PLAIN = "covrl-beta-0.1", "covrl"


def run(of: Cell, *accuracies: float) -> Result:
    made = result(of, 0.5, tokens=range(len(accuracies)), counting=1)
    for point, accuracy in zip(made.figures["curve"], accuracies, strict=True):
        point["accuracy"] = accuracy
    return made


def test_peak_and_end_are_of_the_mean_over_seeds_at_every_rate() -> None:
    results = [
        run(cell(WEAK, 0, rate=2e-4), 0.0, 0.8, 0.4),
        run(cell(WEAK, 1, rate=2e-4), 0.0, 0.6, 0.6),
        run(cell(PLAIN, 0, rate=2e-4), 0.0, 0.9, 0.9),
        run(cell(PLAIN, 1, rate=2e-4), 0.0, 0.7),  # stopped there
        run(cell(WEAK, 0, rate=1e-4), 0.0, 0.2, 0.1),
        run(cell("base"), 0.0),
    ]
    absent = [cell(WEAK, 1, rate=1e-4), cell(PLAIN, 0, rate=4e-4)]
    every = lines([*(r.cell for r in results), *absent], {r.cell: r for r in results})
    low, high, highest = endings(every, WEAK, PLAIN)
    assert low == (1e-4, None, None, None), "a seed is missing"
    assert high == pytest.approx((2e-4, 0.7, 0.5, 0.8))
    assert highest == (4e-4, None, None, None)


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ([(0.7, 0.5, 0.8), (0.6, 0.1, 0.2)], "It does, at all 2 rates."),
        ([(0.7, 0.5, 0.8), (0.6, 0.3, 0.2)], "It does not: not at rate 0.0002."),  # not below the other one
        ([(0.5, 0.5, 0.8), (0.6, 0.1, 0.2)], "It does not: not at rate 0.0001."),  # not below its own peak
        ([(0.7, 0.8, 0.8), (None, None, 0.2)], "It does not: not at rate 0.0001."),  # whatever the missing ones say
        ([(0.7, 0.5, 0.8), (0.7, 0.5, None)], "Not decided: results are missing at rate 0.0002."),
        ([], "Not decided: results are missing."),
    ],
)
def test_the_verdict_holds_for_every_rate_or_not_at_all(ends: list[tuple[float, float, float]], said: str) -> None:
    found = [Ending((i + 1) * 1e-4, *values) for i, values in enumerate(ends)]
    assert verdict(found, WEAK, PLAIN).endswith(said)
    assert said in table(found, WEAK, PLAIN).about
    assert [row[-1] for row in table(found, WEAK, PLAIN).rows] == [
        {True: "yes", False: "no", None: "–"}[e.collapsed] for e in found
    ]


def test_the_table_shows_the_figures() -> None:
    assert table([Ending(1e-4, 0.7, 0.5, None)], WEAK, PLAIN).rows == [["0.0001", "70.0", "50.0", "–", "–"]]
