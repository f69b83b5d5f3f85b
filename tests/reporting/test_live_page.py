"""What the live page shows besides traces, of one run and of two."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path

from live_runs import step

from covrl.reporting.catalogue import plan
from covrl.reporting.charts import NOTHING, figure_of_two
from covrl.reporting.html import render_report
from covrl.reporting.live.page import live_page
from covrl.reporting.live.run import LiveRun

A = [step(n, time__generate=1.0, time__train=2.0) for n in (1, 2, 3)]
B = [step(n, time__generate=3.0, warnings=["leak: 1 of 4"]) for n in (5, 9)]


def run(number: int, steps: list, **settings: object) -> LiveRun:
    config = {"algorithm": {"name": "covrl"}, "training": {"steps": 9, **settings}}
    return LiveRun(number, Path(f"/runs/{'ab'[number]}"), config, steps)


def test_a_chart_of_two_runs_spans_both_and_draws_stacks_as_lines() -> None:
    (spec,) = plan(["time/generate", "time/train"])
    drawn = figure_of_two(spec, A, B)
    readings = json.loads(html.unescape(re.search(r"data-chart='([^']*)'", drawn)[1]))  # ty: ignore[not-subscriptable]
    assert readings["x"] == [1, 9]
    assert [(line["c"], line["s"]) for line in readings["series"]] == [
        ("s-0", [1, 2, 3]), ("s-1", [1, 2, 3]), ("s-0 b", [5, 9]),
    ]  # fmt: skip
    assert re.findall(r"(\w+, [AB]) <b>([^<]*)", drawn) == [
        ("generate, A", "1.00"), ("train, A", "2.00"), ("generate, B", "3.00"),
    ]  # fmt: skip
    assert "class='bar" not in drawn
    assert figure_of_two(spec, B, A).count("<circle") == figure_of_two(spec, A, B).count("<circle")
    assert figure_of_two(spec, [], []) == NOTHING
    assert "generate, B" in figure_of_two(spec, [], B)


def test_of_one_run_it_has_the_reports_charts() -> None:
    alone = run(0, A)
    charts = re.compile(r"<figure.*?</figure>", re.DOTALL)
    page = live_page([alone])
    assert charts.findall(page) == charts.findall(render_report(alone.summary()))
    assert len(charts.findall(page)) > 1
    assert "<table class='traces'" not in page


def test_of_two_runs_what_differs_is_listed_and_everything_has_its_letter() -> None:
    page = live_page([run(0, A, seed=1), run(1, B, seed=2, lr=0.5)])
    settings = page.partition("id='config'")[2]
    assert re.findall(r"<th scope='row'>([^<]*)</th><td><code>([^<]*)</code></td><td><code>([^<]*)", settings) == [
        ("training.seed", "1", "2"), ("training.lr", "–", "0.5"),
    ]  # fmt: skip
    assert "B: step 5 to 9, 2 times" in page
    assert "reward of prior traces in training, A" in page
    assert "time/train, A" in page
    assert "time/train, B" not in page


def test_before_the_first_step_there_is_a_page_with_the_search_and_the_settings() -> None:
    page = live_page([replace(run(0, []), steps=[])])
    assert re.findall(r"<section id='(\w+)'", page) == ["traces", "config"]
    assert "<figure" not in page
