"""Figures, remarks, table and page of a comparison."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from comparison.results import cell, result
from covrl.comparison.cells import Cell, Result
from covrl.comparison.page import mean_course, render
from covrl.comparison.summary import (
    AXES,
    Line,
    common_tokens,
    course,
    lead_at,
    lead_in,
    lines,
    measures,
    remarks,
    value_at,
    verdict,
)
from covrl.comparison.table import count_text, figure_text, grids, markdown, reach_text, show


def made(*results: Result, absent: tuple[Cell, ...] = ()) -> list[Line]:
    return lines([*(r.cell for r in results), *absent], {r.cell: r for r in results})


SEEDS = [result(cell(seed=s), g) for s, g in enumerate((0.5, 0.6, 0.7))]
BASE = result(cell("base"), 0.05, tokens=(0,))


def test_several_seeds_have_student_s_interval_and_one_the_bootstrap_over_problems() -> None:
    (line,) = made(*SEEDS)
    figure = line.figure("greedy")
    assert figure is not None
    assert (figure.mean, figure.points, figure.over) == (pytest.approx(0.6), (0.5, 0.6, 0.7), "seeds")
    assert figure.interval == pytest.approx((0.6 - 0.248414, 0.6 + 0.248414), abs=1e-6)
    assert figure_text(figure) == "60.0 [35.2, 84.8]\n50.0, 60.0, 70.0"
    (single,) = made(SEEDS[0])
    assert figure_text(single.figure("greedy")) == "50.0 [49.0, 52.0] †"
    assert figure_text(single.figure("sound")) == "20.0", "the sampled share, for which there is no interval"
    (alike,) = made(result(cell(), 0.5), result(cell(seed=1), 0.5))
    assert figure_text(alike.figure("greedy")) == "50.0\n50.0, 50.0", "equal seeds do not tell how far others would go"
    (nothing,) = made(absent=(cell(),))
    assert figure_text(nothing.figure("greedy")) == "–"


def test_measures_name_n_and_the_largest_k() -> None:
    assert measures(SEEDS) == {"greedy": "greedy", "avg@n": "avg@8", "pass@8": "pass@8", "sound": "sound"}
    seven = result(cell(), 0.5)
    seven.figures["exam"]["n"] = 7
    assert "pass@4" in measures([seven])
    seven.figures["exam"]["n"] = 0
    assert measures([seven]) == {"greedy": "greedy", "sound": "sound"}


def test_lines_hold_seeds_and_what_is_missing() -> None:
    every = made(*SEEDS[:2], BASE, absent=(cell(seed=7), cell("grpo", 1), cell(seed=0, rate=3e-4)))
    assert [(x.method, x.rate, len(x.results), x.missing) for x in every] == [
        ("covrl", 1e-4, 2, (7,)),
        ("base", 1e-4, 1, ()),
        ("grpo", 1e-4, 0, (1,)),
        ("covrl", 3e-4, 0, (0,)),
    ]


def test_forward_and_backward_count_trained_tokens_twice_and_scored_ones_once() -> None:
    assert course(SEEDS[0], "generated") == [(0, 0), (100, 0.25), (200, 0.5)]
    assert course(SEEDS[0], "passed") == [(0, 0), (400, 0.25), (800, 0.5)]
    uncounted = result(cell(), 0.5)
    for point in uncounted.figures["curve"]:
        point["scored"] = None
    assert course(uncounted, "passed") == []


def test_value_at_is_on_the_line_between_points() -> None:
    points = [(0.0, 0.0), (100.0, 0.5), (100.0, 0.7), (200.0, 0.9)]
    assert [value_at(points, x) for x in (0, 50, 150, 200)] == pytest.approx([0.0, 0.25, 0.8, 0.9])
    assert value_at(points, 201) is None
    assert value_at(points, -1) is None
    assert value_at([], 0) is None
    assert value_at([(0.0, 0.4)], 0) == 0.4


def test_methods_are_compared_at_the_tokens_that_all_reached() -> None:
    short = result(cell("grpo"), 0.8, tokens=(0, 50, 150))
    every = made(*SEEDS, short, BASE)
    assert common_tokens(every, "generated") == 150
    assert common_tokens(every, "passed") == 600
    covrl, grpo, base = every
    at = covrl.at("generated", 150)
    assert at is not None
    assert at.points == pytest.approx((0.375, 0.45, 0.525))
    assert grpo.at("generated", 150).points == (0.8,)  # ty: ignore[unresolved-attribute]
    assert base.at("generated", 150) is None
    assert common_tokens([base], "generated") is None


def test_a_lead_is_taken_seed_by_seed() -> None:
    grpo = [result(cell("grpo", s), g) for s, g in enumerate((0.3, 0.45, 0.5))]
    first, other = made(*SEEDS, *grpo[:2], result(cell("grpo", 9), 0.9), absent=(cell("grpo", 2),))
    figure = lead_in(first, other, "greedy")
    assert figure is not None
    assert figure.points == pytest.approx((0.2, 0.15)), "seeds 0 and 1, which both have"
    assert figure.mean == pytest.approx(0.175)
    # deviation 0.035355, so half = 12.7062 * 0.035355 / √2
    assert figure.interval == pytest.approx((0.175 - 0.317655, 0.175 + 0.317655), abs=1e-5)
    assert lead_in(first, made(absent=(cell("grpo"),))[0], "greedy") is None


def test_a_verdict_needs_both_axes() -> None:
    close = [result(cell("grpo", s), g) for s, g in enumerate((0.4, 0.51, 0.59))]
    first, other = made(*SEEDS, *close)
    leads = [lead_at(first, other, axis) for axis in AXES]
    assert verdict(leads) == "ahead"
    assert verdict([lead_at(other, first, axis) for axis in AXES]) == "behind"
    # The same accuracies for three times the forward and backward tokens: no longer ahead on that axis.
    costly = [result(r.cell, r.figures["exam"]["greedy"]) for r in SEEDS]
    for r in costly:
        for point in r.figures["curve"]:
            point |= {"scored": 3 * point["scored"], "trained": 3 * point["trained"]}
    first = made(*costly)[0]
    leads = [lead_at(first, other, axis) for axis in AXES]
    assert leads[0].interval.low > 0 > leads[1].interval.high  # ty: ignore[unresolved-attribute]
    assert verdict(leads) == "undecided"
    assert verdict([None, None]) == verdict([]) == "undecided"


def test_results_of_another_counting_are_not_compared_in_tokens_and_time() -> None:
    old = [result(cell("grpo", s), 0.4, counting=1) for s in range(3)]
    every = made(*SEEDS, *old, result(cell("base"), 0.05, tokens=(0,), counting=1))
    reached, against, soon, cost = grids(every)["rare"]
    assert reached.rows[2][3] == "40.0\n40.0, 40.0, 40.0", "accuracies are compared"
    assert reached.rows[2][-2:] == ["–", "–"]
    assert against.rows[0][3].startswith("20.0 [")
    assert against.rows[0][-3:] == ["–", "–", "undecided"]
    assert soon.rows[0][-3:] == ["–", "–", "undecided"]
    assert cost.rows[0][2:7] == ["20", "20", "200", "400", "200"]
    assert set(cost.rows[1][4:]) == {"–"}
    (said,) = [text for text in remarks(every, {}) if "tokens" in text]
    assert said.startswith("Not compared in tokens and time, ")
    assert said.endswith(": grpo, rare, rate 0.0001 (3).")
    assert len(remarks(made(*SEEDS), {})) == 1, "only commits"
    parsed(render(every, {}))


def test_a_method_whose_rate_is_not_tuned_is_shown_as_missing() -> None:
    every = [*made(*SEEDS), Line("rlpr", "rare", None, (), (0, 1))]
    assert remarks(every, {})[0] == "Missing: rlpr, rare, rate not tuned yet, seeds 0, 1."
    (tables,) = grids(every).values()
    assert [row[:3] for grid in tables for row in grid.rows if row[0] == "rlpr"] == [
        ["rlpr", "–", "0/2"], ["rlpr", "–", "0"], ["rlpr", "–", "–"], ["rlpr", "–", "–"],
    ]  # fmt: skip
    parsed(render(every, {}))


def test_the_lead_has_a_table_where_the_first_method_has_one_rate() -> None:
    other = result(cell("grpo"), 0.4)
    (tables,) = grids(made(BASE, *SEEDS, other)).values()
    against = tables[1]
    assert against.rows[0][:4] == ["grpo", "0.0001", "1", "10.0"]
    assert against.rows[0][-1] == "undecided", "one seed does not decide"
    (tables,) = grids(made(*SEEDS, result(cell(rate=3e-4), 0.5), other)).values()
    assert [grid.title for grid in tables] == [
        *("rare: accuracy", "rare: how soon covrl learns at equal rates", "rare: cost"),
    ]


def test_the_mean_course_is_over_seeds() -> None:
    (line,) = made(*SEEDS[:2])
    assert [x for x, _ in mean_course(line, "generated")] == [0, 100, 200]
    assert [y for _, y in mean_course(line, "passed")] == pytest.approx([0, 0.275, 0.55])


def test_the_cost_counts_updates_beside_steps() -> None:
    every = made(*(result(cell(name), 0.5, updates=n) for name, n in (("grpo", 20), ("grpo-reuse", 80), ("rover", 40))))
    rows = grids(every)["rare"][-1].rows
    assert [(row[0], row[2], row[3]) for row in rows] == [
        ("grpo", "20", "20"),
        ("grpo-reuse", "20", "80"),
        ("rover", "20", "40"),
    ]


def test_the_cost_says_how_soon_a_method_has_learnt() -> None:
    good, better, bad = result(cell(), 0.95), result(cell(seed=1), 1.0), result(cell(seed=2), 0.5)
    (line,) = made(good, better)
    assert reach_text(line, "generated") == "185 (180–189)"
    (some,) = made(good, better, bad)
    assert reach_text(some, "passed").endswith("(720–758), 2 of 3 seeds")
    assert [reach_text(found, "generated") for found in made(bad)] == ["never"]
    assert [reach_text(found, "generated") for found in made(result(cell(), 1.0, counting=1))] == ["–"]
    assert grids(made(good))["rare"][-1].head[-2:] == [
        "generated tokens to 90 %",
        "forward + backward tokens to 90 %",
    ]


def test_methods_that_are_alike_in_everything_are_named() -> None:
    grpo, gspo = ([result(cell(name, seed), 0.3 + seed / 10) for seed in range(2)] for name in ("grpo", "gspo"))
    said = "Alike in every figure of every seed that they share: grpo (rate 0.0001), gspo (rate 0.0001)."
    assert said in remarks(made(*SEEDS, *grpo, *gspo), {})
    assert said in remarks(made(*SEEDS, *grpo, result(cell("grpo", 2), 0.9), *gspo), {}), "of which one has more"
    gspo[1].figures["curve"][1]["accuracy"] += 0.1
    assert not [text for text in remarks(made(*SEEDS, *grpo, *gspo), {}) if text.startswith("Alike")]


def test_remarks_say_what_a_reader_must_know() -> None:
    stopped = result(cell(seed=3), 0.1, commit="abc-dirty", stopped="stopped after step 4: nan")
    said = remarks(made(*SEEDS, stopped, absent=(cell("grpo", 1), cell("grpo", 2))), {cell("grpo", 1): "it broke"})
    assert said[:4] == [
        "Missing: grpo, rare, rate 0.0001, seeds 1, 2.",
        "Failed: grpo, rare, rate 0.0001, seed 1: it broke",
        "Stopped: covrl, rare, rate 0.0001, seed 3: stopped after step 4: nan",
        "Commits (results): abc (3), abc-dirty (1).",
    ]
    assert "-dirty" in said[4]
    assert remarks(made(), {}) == []


def test_the_markdown_shows_chance_seeds_cost_and_what_is_missing() -> None:
    text = markdown(made(BASE, *SEEDS, absent=(cell("grpo"),)), {}, "covrl compare --seeds 0")
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    assert "Made by `covrl compare --seeds 0`." in text
    assert rows[0][:5] == ["method", "rate", "seeds", "greedy", "avg@8"]
    assert rows[0][-2:] == ["at 200 generated tokens", "at 800 forward + backward tokens"]
    assert rows[2][:5] == ["chance", "", "", "4.8", "4.8"]
    assert rows[3][:4] == ["base", "", "1/1", "5.0 [4.0, 7.0] †"]
    assert rows[4][:4] == ["covrl", "0.0001", "3/3", "60.0 [35.2, 84.8]: 50.0, 60.0, 70.0"]
    assert rows[5][:4] == ["grpo", "0.0001", "0/1", "–"]
    cost = [
        "covrl",
        "0.0001",
        "20",
        "20",
        "200",
        "400",
        "200",
        "10s (10%)",
        "20s (20%)",
        "1m10s (70%)",
        "never",
        "never",
    ]
    assert cost in rows
    assert "- Missing: grpo, rare, rate 0.0001, seeds 0." in text
    assert {len(row) for row in rows[:6]} == {9}


def test_text_of_others_does_not_break_the_table_or_the_page() -> None:
    failed = {cell("grpo"): "a|b <script>alert(1)</script>"}
    every = made(*SEEDS, absent=(cell("grpo"),))
    assert "a\\|b" in markdown(every, failed, "c")
    page = render(every, failed)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(" ".join([tag, *(v or "" for k, v in attrs if k == "class")]))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(" ".join([tag, *(v or "" for k, v in attrs if k == "class")]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(page: str) -> list[str]:
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    return tags.seen


def test_the_page_draws_every_seed_and_both_axes() -> None:
    seen = parsed(render(made(BASE, *SEEDS, absent=(cell("grpo"),)), {}))
    assert seen.count("circle") == 4 * (3 + 1), "four measures, three seeds and the base"
    assert seen.count("path raw") == 2 * 3, "two axes, three seeds"
    assert seen.count("path line") == 2
    assert seen.count("line chance") == 2 + 2, "chance in greedy and avg@n, and in both charts"


def test_many_methods_have_a_chart_each_with_the_others_in_grey() -> None:
    seen = parsed(render(made(*(result(cell(f"m{i}"), 0.1 * i) for i in range(9))), {}))
    assert seen.count("path line") == 2 * 9
    assert seen.count("path rest") == 2 * 9 * 8


def test_a_page_without_results_says_what_is_missing() -> None:
    page = render(made(absent=(cell(),)), {})
    parsed(page)
    assert "Missing: covrl, rare" in page


def test_the_terminal_shows_the_same() -> None:
    out = io.StringIO()
    show(Console(file=out, width=200), made(BASE, *SEEDS, absent=(cell("grpo"),)), {cell("grpo"): "[bold]broke"})
    text = out.getvalue()
    assert "60.0 [35.2, 84.8]" in text
    assert "50.0, 60.0, 70.0" in text
    assert "[bold]broke" in text
    narrow = io.StringIO()
    show(Console(file=narrow, width=80), made(BASE, *SEEDS), {})
    assert "[35.2, 84.8]" in narrow.getvalue(), "figures are not torn apart"
    assert max(map(len, narrow.getvalue().splitlines())) <= 80
    assert "50.0, 60.0, 70.0" not in narrow.getvalue()


def test_a_narrow_terminal_shows_the_methods_before_all_measures() -> None:
    every = [result(cell(seed=s), 0.1 + s / 10) for s in range(3)]
    for r in every:
        r.figures["exam"] |= {"log_prob": -10.0 - r.cell.seed, "trace_tokens": 11.0 + r.cell.seed}
    for width in (80, 100):
        narrow = io.StringIO()
        show(Console(file=narrow, width=width), made(*every), {})
        accuracy = narrow.getvalue().partition("In brackets")[0].partition("rare: cost")[0]
        assert re.search(r"^ covrl +3/3 +20\.0 ", accuracy, re.MULTILINE), accuracy
        assert "greedy" in accuracy
        assert max(map(len, narrow.getvalue().splitlines())) <= width
    wide = io.StringIO()
    show(Console(file=wide, width=250), made(*every), {})
    assert "trace, tokens" in wide.getvalue()


def test_a_narrow_terminal_keeps_methods_apart_that_differ_in_their_rates() -> None:
    narrow = io.StringIO()
    every = [
        result(cell(name, seed=s, rate=rate), 0.95)
        for name in ("covrl", "grpo")
        for rate in (1e-4, 2e-4)
        for s in (0, 1)
    ]
    show(Console(file=narrow, width=80), made(BASE, *every), {})
    text = narrow.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert len(re.findall(r"^ 0\.0002 ", text, re.MULTILINE)) == 4, "a row of each method in two tables"
    soon = text.partition("how soon covrl learns at equal rates")[2].partition("A larger rate")[0]
    assert re.search(r"^ grpo +4, 0, 0 +1 +1 +undecided", soon, re.MULTILINE), soon


@pytest.mark.parametrize(("count", "text"), [(None, "–"), (0, "0"), (999, "999"), (1234, "1.23 k"), (5.6e6, "5.6 M")])
def test_counts(count: float | None, text: str) -> None:
    assert count_text(count) == text
