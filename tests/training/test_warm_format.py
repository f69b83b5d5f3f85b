"""Teaching the format on worked solutions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import Covrl
from training.test_step import make_run

from covrl.algorithms.base import Setup
from covrl.errors import UserError
from covrl.generation.base import Draw
from covrl.problems.source import ProblemSource
from covrl.prompts import Role
from covrl.records import Problem, ScoredGroup, Scores
from covrl.training.gradient import add_gradient
from covrl.training.reading_plan import reading_plan
from covrl.training.rollouts import sample
from covrl.training.warm_format import WarmFormat, WarmFormatConfig, given_trace, roles_named, warm_format

SOLVED = [Problem(f"p{i}", f"{i}+{i}=?", str(2 * i), solution=f"add {i}") for i in range(5)]


def test_the_loss_is_the_plain_likelihood_of_solution_and_answer() -> None:
    """Against each row alone through the model's own forward."""
    run = make_run("gpt2", "float64")
    model, prompts = run.models["policy"].model, run.prompts
    lessons = WarmFormat(WarmFormatConfig(), Setup(prompts, 1))
    groups = [ScoredGroup(p, (given_trace(prompts, p, p.solution or ""),), (Scores({}),)) for p in SOLVED[:2]]
    report = add_gradient(
        lessons, run.models, groups, lessons.credit(groups), run.limits, reading_plan(lessons, on_policy=False)
    )
    sums = {"prior": 0.0, "posterior": 0.0, "answer": 0.0}
    tokens = 0
    for group in groups:
        rollout = group.rollouts[0]
        rows = {
            "prior": prompts.prior_row(group.problem, rollout),
            "posterior": prompts.posterior_row(group.problem, rollout),
        }
        tokens += len(rollout.trace_ids)
        for name, row in rows.items():
            log_probs = torch.log_softmax(model(torch.tensor([row.ids])).logits[0], -1)
            for span, (start, stop) in ((s, at) for s, at in row.spans.items() if s != "first"):
                taken = torch.stack([log_probs[i - 1, row.ids[i]] for i in range(start, stop)])
                sums[name if span == "trace" else "answer"] -= float(
                    (taken.sum() if span == "trace" else taken.mean()).detach()
                )
    assert report.losses["prior"] == pytest.approx(sums["prior"] / tokens)
    assert report.losses["posterior"] == pytest.approx(sums["posterior"] / tokens)
    assert report.losses["answer"] == pytest.approx(sums["answer"] / 2)


def test_the_model_learns_to_close_its_traces_and_the_lessons_end_there() -> None:
    run = make_run("gpt2", "float32")
    run.source = ProblemSource(SOLVED, 0)
    lessons = list(warm_format(run, steps=400, rate=3e-3, until=0.9, every=2))
    assert lessons[0].valid < 0.9 <= lessons[-1].valid
    assert lessons[-1].loss < lessons[0].loss
    assert lessons[-1].step < 400
    groups = sample(run, SOLVED, Draw(1, 1))
    texts = [r.text for g in groups for r in g.rollouts]
    assert sum(text.startswith("a") for text in texts) / len(texts) > 0.8


def test_prior_and_posterior_are_taught_unless_one_is_named() -> None:
    run = make_run("gpt2", "float64")
    groups = [ScoredGroup(p, (given_trace(run.prompts, p, p.solution or ""),), (Scores({}),)) for p in SOLVED[:2]]
    losses = {}
    for roles in (("prior", "posterior"), ("prior",), ("posterior",)):
        lessons = WarmFormat(WarmFormatConfig(roles=roles), Setup(run.prompts, 1))
        report = add_gradient(
            lessons, run.models, groups, lessons.credit(groups), run.limits, reading_plan(lessons, on_policy=False)
        )
        losses[roles] = report.losses
    both = losses["prior", "posterior"]
    assert both.keys() == {"prior", "posterior", "answer"}
    assert losses["prior",] == pytest.approx({name: both[name] for name in ("prior", "answer")})
    assert losses["posterior",] == pytest.approx({name: both[name] for name in ("posterior", "answer")})
    assert both["prior"] != pytest.approx(both["posterior"], rel=1e-3)


@pytest.mark.parametrize("role", ["prior", "posterior"])
def test_the_prompt_that_is_taught_learns_to_close_and_shares_are_given_by_prompt(role: Role) -> None:
    run = make_run("gpt2", "float32")
    run.source = ProblemSource(SOLVED, 0)
    *_, last = warm_format(run, steps=60, rate=3e-3, until=1.1, every=60, roles=(role,))
    assert last.by_prompt.keys() == {"prior", "posterior"}
    assert last.valid == pytest.approx(sum(last.by_prompt.values()) / 2)
    assert last.by_prompt[role] > 0.5


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("prior,posterior", ("prior", "posterior")),
        (" posterior , prior", ("prior", "posterior")),
        ("prior", ("prior",)),
    ],
)
def test_roles_are_read_from_the_command_line(text: str, found: tuple[str, ...]) -> None:
    assert roles_named(text) == found


@pytest.mark.parametrize("text", ["", "prior,", "pior", "prior;posterior"])
def test_roles_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="expected prior, posterior or prior,posterior; found "):
        roles_named(text)


def test_a_wrong_role_is_one_line_before_anything_is_loaded_or_written(tmp_path: Path, covrl: Covrl) -> None:
    asked = ["warm-format", "--config", str(tmp_path / "none.toml"), "--out", str(tmp_path / "warm"), "--roles", "both"]
    code, out, err = covrl(*asked)
    assert (code, out) == (2, "")
    assert err == "covrl: --roles both: expected prior, posterior or prior,posterior; found 'both'\n"
    assert not (tmp_path / "warm").exists()


def test_problems_without_solutions_are_refused() -> None:
    run = make_run()
    with pytest.raises(UserError, match=r"carry no worked solutions: set problems\.solution_field"):
        next(warm_format(run, 1, 1e-3, 0.5, 1))


def test_solutions_that_do_not_fit_are_refused() -> None:
    run = make_run()
    run.source = ProblemSource([Problem("p", "q", "a", solution="x" * 100)], 0)
    with pytest.raises(UserError, match=r"no solution fits generation\.max_trace_tokens = 24"):
        next(warm_format(run, 1, 1e-3, 0.5, 1))
