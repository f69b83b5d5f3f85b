"""`covrl preflight`: the signal by enumeration, the rule, and its advice for and against on the shipped task."""

from __future__ import annotations

import json
import math
import random
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Covrl
from projects import write_rows

from covrl.config import PromptConfig, read_toml
from covrl.config.styles import TEMPLATES
from covrl.evaluation.preflight_rule import advise, best_template, checks, defends, usable
from covrl.evaluation.signal import method_reward, signal
from covrl.evaluation.styles import template_wordings
from covrl.models.model import SHIPPED
from covrl.problems.tasks import find_task


def test_the_signal_of_a_reward_that_is_the_mark_is_the_marks_own_deviation() -> None:
    for marks in product([False, True], repeat=4):
        found = signal([[(float(m), m) for m in marks]])
        share = sum(marks) / 4
        assert found is not None
        assert found.value == pytest.approx(math.sqrt(share * (1 - share)))
        assert found.mixed == float(0 < sum(marks) < 4)


def test_the_signal_has_no_unit_no_origin_and_the_rewards_sign() -> None:
    rows = [[(-3.0, False), (-1.0, True), (-2.0, False)], [(-9.0, False), (-4.0, True), (-4.5, True)]]
    value = _value(rows)
    assert 0 < value <= 0.5
    assert _value([[(100 - 7 * r, m) for r, m in row] for row in rows]) == pytest.approx(-value)
    assert _value([[(r, not m) for r, m in row] for row in rows]) == pytest.approx(-value)
    assert _value([[(r + 5 * i, m) for r, m in row] for i, row in enumerate(rows)]) == pytest.approx(value)


def test_a_reward_that_does_not_know_has_no_signal_and_groups_of_one_say_nothing() -> None:
    assert _value([[(1.0, True), (1.0, False)], [(0.0, True), (1.0, True)]]) == 0.0
    assert _value([[(1.0, True), (0.0, False)], [(0.0, True), (1.0, False)]]) == 0.0
    assert signal([[(1.0, True)], []]) is None
    found = signal([[(1.0, True), (0.0, False)], [(1.0, True)]])
    assert found is not None
    assert found.groups == 1


def _value(rows: list[list[tuple[float, bool]]]) -> float:
    found = signal(rows)
    assert found is not None
    return found.value


def test_each_methods_reward_is_its_own_form() -> None:
    answer, empty = torch.tensor([0.9, 0.5, 0.1]).log(), torch.tensor([0.8, 0.2, 0.1]).log()
    assert method_reward("jepo", answer, empty) == pytest.approx(-3.101093, abs=1e-5)
    assert method_reward("verifree", answer, empty) == pytest.approx(0.045, abs=1e-6)
    assert method_reward("rlpr", answer, empty) == pytest.approx(0.5, abs=1e-6)
    assert method_reward("nrt", answer, empty) == pytest.approx(0.411936, abs=1e-5)


def test_the_six_templates_ask_for_the_same_format_and_keep_a_wording_of_ones_own() -> None:
    for own in (PromptConfig(), PromptConfig(style="plain"), PromptConfig(posterior_template="check")):
        found = template_wordings(own)
        assert list(found) == ["style", *TEMPLATES]
        assert {each.user for each in found.values()} == {own.user}
        assert all(each.posterior_open == each.prior_open for name, each in found.items() if name != "style")
        for name, each in found.items():
            assert name == "style" or each.posterior_user == own.user.replace("{question}", TEMPLATES[name])
    assert template_wordings(PromptConfig(posterior_template="check"))["style"] == PromptConfig()
    recipe = PromptConfig(**read_toml(SHIPPED / "quickstart.toml")["prompts"])
    assert template_wordings(recipe)["style"] is recipe


def figure(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "interval": [low, high]}


def template(name: str = "check", utility: float = 0.3, margin: float = 2.0, wrong: float = 0.0) -> dict[str, Any]:
    return {
        "template": name,
        "utility": figure(utility, utility - 0.1, utility + 0.1),
        "hinted": figure(utility, utility - 0.1, utility + 0.1),
        "margin": figure(margin, margin - 1, margin + 1),
        "anchoring": {
            "wrong_hint": wrong,
            "right_hint": utility,
            "intervals": {"wrong_hint": [wrong - 0.01, wrong + 0.01]},
        },
    }


def method(name: str, value: float, wide: float = 0.02) -> dict[str, Any]:
    return {"method": name, "signal": figure(value, value - wide, value + wide)}


def figures(**changed: Any) -> dict[str, Any]:
    """A base that thinking helps, with a usable template and more signal for CoVRL than for JEPO."""
    thinking = {
        "closed": {"value": 0.9, "interval": [0.8, 0.95]},
        "with": 0.4,
        "without": 0.2,
        "difference": figure(0.2, 0.1, 0.3),
        "gain": figure(1.0, 0.5, 1.5),
        "answer_tokens": 4.0,
        "lengths": {},
    }
    trusted = {"auc_within": 0.9, "auc_within_interval": [0.8, 0.95], "sentence": "Likelihood rewards can be trusted"}
    made = {
        "thinking": thinking | changed.pop("thinking", {}),
        "templates": [template()],
        "calibration": trusted,
        "methods": [method("covrl", 0.4), method("jepo", 0.2), method("grpo", 0.1)],
    }
    return made | changed


def advised(record: dict[str, Any]) -> str | None:
    return advise(record)["advice"]["method"]


UNHELPED = {"difference": figure(0.0, -0.1, 0.1)}
DOUBTED = {"auc_within": 0.4, "auc_within_interval": [0.3, 0.5], "sentence": "Likelihood rewards cannot be trusted"}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (figures(), "covrl"),
        (figures(thinking=UNHELPED), "covrl"),  # hinted thoughts beat answers without one
        (figures(templates=[template(wrong=0.29)]), "jepo"),  # its traces defend any answer
        (figures(templates=[template(margin=0.5)]), "jepo"),  # the margin's interval holds 0
        (figures(templates=[template(utility=0.04)]), "jepo"),
        (figures(templates=[]), "jepo"),
        (figures(thinking=UNHELPED, templates=[template(wrong=0.29)]), None),
        (figures(thinking=UNHELPED, templates=[template(margin=0.5)]), None),
        (figures(thinking={"closed": {"value": 0.2, "interval": [0.1, 0.3]}}), None),
        (figures(calibration=DOUBTED), "grpo"),
        (
            figures(methods=[method("covrl", 0.21), method("jepo", 0.2)]),
            "jepo",
        ),  # not shown to be worth a second prompt
        (figures(methods=[method("covrl", 0.01), method("jepo", 0.01)]), None),
        (figures(thinking={"answer_tokens": 90.0}), "grpo"),  # no sum of log-probs on long answers
    ],
)
def test_the_rule(record: dict[str, Any], expected: str | None) -> None:
    found = advise(record)
    assert found["advice"]["method"] == expected
    assert found["advice"]["why"]
    assert found["advice"]["template"] == ("check" if expected == "covrl" else None)


def test_the_best_template_is_the_best_of_the_usable_ones() -> None:
    rows = [template("bare", 0.9, wrong=0.89), template("neutral", 0.2), template("check", 0.3)]
    best = best_template(rows)
    assert best is not None
    assert best["template"] == "check"
    assert [usable(row) for row in rows] == [False, True, True]
    assert defends(rows[0])
    unsure = template("bare", 0.9, wrong=0.8)
    unsure["anchoring"]["intervals"]["wrong_hint"] = [-0.1, 0.99]
    assert (usable(unsure), defends(unsure)) == (False, False), "what is not shown does not count"
    assert best_template(rows[:1]) is rows[0]


def test_every_check_has_its_figure_threshold_and_label() -> None:
    found = {check.name: check for check in checks(figures())}
    assert len(found) == 7
    assert all(check.met and check.label for check in found.values())
    pull = next(check for name, check in found.items() if "pull" in name)
    assert (pull.value, pull.least) == (0.0, pytest.approx(0.24))


def test_it_advises_for_the_shipped_digits_task_and_says_what_it_costs(covrl: Covrl, tmp_path: Path) -> None:
    asked = ("preflight", "--model", "covrl:digits", "--problems", "digits:dev", "--limit", "12")
    done = covrl(*asked, "--out", str(tmp_path / "found"))
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "found" / "preflight.json").read_text())
    assert record["advice"] == record["advice"] | {"method": "covrl", "template": "style"}
    assert record["cost"]["steps"] == 100
    assert record["cost"]["memory"] > 0
    assert {m["method"] for m in record["methods"]} == {"covrl", "jepo", "rlpr", "verifree", "nrt", "grpo"}
    assert sum("template" in note for note in record["notes"]) == 5  # its tokenizer has no words
    assert "Train with covrl" in done.out
    page = (tmp_path / "found" / "preflight.html").read_text()
    assert "Train with covrl" in page
    assert "Utility of the templates" in page


def test_it_advises_against_answers_that_belong_to_other_questions(covrl: Covrl, tmp_path: Path) -> None:
    problems = find_task("digits").problems("dev")[:24]
    answers = [p.answer for p in problems]
    random.Random(0).shuffle(answers)
    rows = [{"question": p.question, "answer": a} for p, a in zip(problems, answers, strict=True)]
    write_rows(tmp_path / "shuffled.jsonl", rows)
    done = covrl("preflight", "--model", "covrl:digits", "--problems", str(tmp_path / "shuffled.jsonl"), "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert record["advice"]["method"] is None
    assert record["cost"] is None
    assert not any(check["met"] for check in record["checks"] if "margin" in check["name"])


def test_what_it_cannot_measure_is_one_line(covrl: Covrl, tmp_path: Path) -> None:
    asked = ("preflight", "--model", "covrl:digits", "--problems")
    done = covrl(*asked, "digits:dev", "--set", "evaluation.verifier=none")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "evaluation.verifier is none" in done.err
    done = covrl(*asked, "digits:dev", "--templates", "check,chek")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "there is no template 'chek'; known: style, neutral" in done.err
    write_rows(tmp_path / "one.jsonl", [{"question": "12507", "answer": "125"}])
    done = covrl(*asked, str(tmp_path / "one.jsonl"))
    assert done.code == 2
    assert "at least 2 problems, found 1" in done.err
