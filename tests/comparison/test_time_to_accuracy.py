"""How soon one method learns and how soon another."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from comparison.results import cell, result
from covrl.comparison.cells import Result
from covrl.comparison.summary import AXES, Line, Reach, lines, reach, sooner
from covrl.comparison.table import grids, times_text
from covrl.comparison.time_to_accuracy import (
    Pair,
    came,
    pairs_at_equal_rates,
    sooner_at_equal_rates,
    times_as_long,
    times_at_equal_rates,
)


def made(*results: Result) -> list[Line]:
    return lines([r.cell for r in results], {r.cell: r for r in results})


def quick(method: str = "covrl", seed: int = 0, rate: float = 1e-4) -> Result:
    """95 % after 100 tokens; what :func:`comparison.results.result` makes of 1.0 needs between 100 and 200."""
    found = result(cell(method, seed, rate=rate), 1.0)
    found.figures["curve"][1]["accuracy"] = 0.95
    return found


def test_how_many_times_the_tokens_another_needed_decides_on_both_axes() -> None:
    fast = [result(cell(seed=s), 1.0) for s in range(3)]
    for seed, r in enumerate(fast):
        r.figures["curve"][1]["accuracy"] = 0.9 + seed / 100
    slow = [result(cell("grpo", s), 1.0) for s in range(3)]
    mine, other = made(*fast, *slow)
    times = [times_as_long(mine, other, axis, 0.9) for axis in AXES]
    assert times[0] is not None
    assert times[0].points[0] == pytest.approx(180 / 100)
    assert sooner(times) == "sooner"
    assert sooner([times_as_long(other, mine, axis, 0.9) for axis in AXES]) == "later"
    back = times_as_long(other, mine, "generated", 0.9)
    assert back is not None
    assert back.mean == pytest.approx(1 / times[0].mean), "the geometric mean has no favourite"
    assert sooner([times[0], back]) == sooner([times[0], None]) == sooner([]) == "undecided"
    never = made(*(result(cell("rlpr", s), 1.0 if s else 0.2) for s in range(3)))[0]
    assert times_as_long(mine, never, "generated", 0.9) is None, "one seed never came there"
    assert times_text(times[0]).startswith("1.82 [1.")
    soon = grids([mine, other])["rare"][2]
    assert (soon.title, soon.head[-1], soon.rows[0][-1]) == ("rare: how soon covrl learns", "covrl learns", "sooner")
    slow[1].figures["curve"][1]["accuracy"] = 0.95
    assert times_as_long(mine, other, "generated", 0.9) is None, "both between the same evaluations"


def test_a_course_reaches_a_level_between_two_evaluations() -> None:
    points = [(0.0, 0.1), (10.0, 0.5), (30.0, 1.0), (40.0, 0.2), (50.0, 0.95)]
    assert reach(points, 0.75) == Reach(10.0, 30.0, 20.0), "the first time"
    assert reach(points, 0.1) == Reach(0.0, 0.0, 0.0)
    assert reach(points[:2], 0.9) is None
    assert reach([], 0.9) is None


@pytest.mark.parametrize(
    ("first", "other", "times"),
    [
        (Reach(0, 100, 90), Reach(100, 200, 180), 2.0),
        (Reach(100, 200, 180), Reach(0, 100, 90), 0.5),
        (Reach(0, 100, 90), Reach(80, 160, 144), 1.0),  # other evaluations, and yet their tokens overlap
        (Reach(0, 100, 50), Reach(0, 100, 100), 1.0),
        (Reach(0, 0, 0), Reach(100, 200, 180), 1.0),  # one knows the task before it is trained
        (Reach(100, 200, 180), Reach(0, 0, 0), 1.0),
        (None, Reach(0, 100, 90), None),
        (Reach(0, 100, 90), None, None),
    ],
)
def test_two_are_told_apart_only_where_their_evaluations_do_not_overlap(
    first: Reach | None, other: Reach | None, times: float | None
) -> None:
    pair = Pair(1.0, first, other)
    assert pair.times == times
    assert pair.told_apart == (times not in (None, 1.0))


def equal_rates(mine: Sequence[Result], theirs: Sequence[Result]) -> list[list[Pair]]:
    return [pairs_at_equal_rates(made(*mine), made(*theirs), axis, 0.9) for axis in AXES]


def test_at_equal_rates_every_rate_is_a_point_and_the_mean_is_geometric() -> None:
    mine = [quick(seed=s, rate=rate) for rate in (1e-4, 2e-4, 4e-4, 8e-4) for s in (0, 1)]
    theirs = [result(cell("grpo", s, rate=rate), 1.0) for rate in (1e-4, 2e-4, 3e-4) for s in (0, 1)]
    theirs += [quick("grpo", 0, 4e-4), result(cell("grpo", 1, rate=4e-4), 1.0)]
    pairs = equal_rates(mine, theirs)
    assert [pair.rate for pair in pairs[0]] == [1e-4, 1e-4, 2e-4, 2e-4, 4e-4, 4e-4], "rates that both have"
    figure = times_at_equal_rates(pairs[0])
    assert figure is not None
    apart = 180 / (100 * 0.9 / 0.95)
    assert figure.points == pytest.approx([apart, apart, math.sqrt(apart)]), "seeds first, 1 where not told apart"
    assert figure.mean == pytest.approx(math.prod(figure.points) ** (1 / 3))
    assert figure.interval is not None
    assert figure.over == "rates"


def test_one_that_alone_came_there_is_counted_and_can_deny_the_verdict() -> None:
    rates = (1e-4, 2e-4, 4e-4)
    mine = [quick(rate=rate) for rate in rates]
    theirs = [result(cell("grpo", rate=rate), 1.0 - i / 100) for i, rate in enumerate(rates)]
    assert sooner_at_equal_rates(equal_rates(mine, theirs)) == "sooner"
    assert sooner_at_equal_rates(equal_rates(theirs, mine)) == "later"
    never, alone = result(cell(rate=8e-4), 0.5), quick("grpo", rate=8e-4)
    pairs = equal_rates([*mine, never], [*theirs, alone])
    assert (came(pairs[0]), sooner_at_equal_rates(pairs)) == ((3, 0, 1), "undecided")
    swapped = equal_rates([*theirs, alone], [*mine, never])
    assert (came(swapped[0]), sooner_at_equal_rates(swapped)) == ((3, 1, 0), "undecided")
    helped = equal_rates([*mine, quick(rate=8e-4)], [*theirs, result(cell("grpo", rate=8e-4), 0.5)])
    assert (came(helped[0]), sooner_at_equal_rates(helped)) == ((3, 1, 0), "sooner")
    assert sooner_at_equal_rates(equal_rates(mine[:1], theirs[:1])) == "undecided", "one rate does not decide"
    assert sooner_at_equal_rates(equal_rates(mine, [])) == "undecided"


def test_a_comparison_with_several_rates_says_how_soon_at_equal_ones() -> None:
    rates = (1e-4, 2e-4, 4e-4)
    mine = [quick(rate=rate) for rate in rates]
    theirs = [result(cell("grpo", rate=rate), 1.0 - i / 100) for i, rate in enumerate(rates)]
    soon = grids(made(*mine, *theirs, result(cell("rlpr", rate=9e-4), 1.0)))["rare"][1]
    assert (soon.title, soon.head[-1]) == ("rare: how soon covrl learns at equal rates", "covrl learns")
    assert soon.rows[0][:3] == ["grpo", "0.0001, 0.0002, 0.0004", "3, 0, 0"]
    assert soon.rows[0][-1] == "sooner"
    assert soon.rows[1] == ["rlpr", "–", "0, 0, 0", "–", "–", "undecided"]
    assert [grid.title for grid in grids(made(*mine))["rare"]] == ["rare: accuracy", "rare: cost"], (
        "none to hold against"
    )
