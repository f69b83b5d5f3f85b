"""What somebody's method gets wrong is one line that names the method, the place, and what would be right."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from training.test_step import PROBLEMS, make_run
from training.test_step_methods import COVRL, METHODS, method_run

from covrl.algorithms.group import outcome
from covrl.algorithms.grpo import GRPO
from covrl.algorithms.verifree import VeriFree
from covrl.errors import UserError
from covrl.generation.base import Draw
from covrl.models.spec import ModelSpec
from covrl.records import Credit, Output, Request, Rollout, ScoredGroup
from covrl.training.losses import has_weight
from covrl.training.method_checks import check_credit_shapes, check_method
from covrl.training.rollouts import sample
from covrl.training.scores import score_groups
from covrl.training.step import take_step


@pytest.mark.parametrize("case", [*METHODS, *COVRL])
def test_our_own_methods_pass(case: str) -> None:
    check_method(method_run(case).algorithm)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("streams", None, "self.streams has to be set"),
        ("credit_reads", ("critc",), "credit_reads names the model 'critc'; there is policy"),
        ("credit_reads", "policy", "credit_reads is 'policy'; expected 'all' or a tuple"),
        ("scope", "batch", "scope is no longer read; declare credit_scope in its place"),
        ("late", (), "late is no longer read; declare credit_reads in its place"),
        ("credit_scope", "family", "credit_scope is 'family'; there is batch, group"),
        ("samples", "thoughts", "samples is 'thoughts'; there is response, thought"),
        ("models", (ModelSpec("critic", trainable=True),), "trainable and head = 'value' go together"),
        ("models", (ModelSpec("critic", trainable=True, head="value", rate=-1.0),), "rate is -1.0"),
        (
            "models",
            (ModelSpec("critic", trainable=True, head="value", rate=2.0, learning_rate=1e-5),),
            "learning_rate is 1e-05 and rate 2.0; learning_rate has to be above 0, and rate multiplies",
        ),
        (
            "models",
            (ModelSpec("critic", trainable=True, head="value", learning_rate=0.0),),
            "learning_rate is 0.0 and rate 1.0",
        ),
        ("models", (ModelSpec("a", follows="copies"),), "follows is 'copies'; there is average, copy, frozen"),  # ty: ignore
        ("models", (ModelSpec("a"), ModelSpec("a")), "two models are named 'a'"),
    ],
)
def test_declarations_that_do_not_fit(name: str, value: Any, said: str) -> None:
    algorithm = make_run().algorithm
    setattr(algorithm, name, value)
    with pytest.raises(UserError, match=f"^algorithm covrl: .*{said}".replace("(", r"\(")):
        check_method(algorithm)


class Unjudged(GRPO):
    """A verified family's method that says it needs no verdict."""

    name: ClassVar[str] = "unjudged"
    verified: bool = False


def is_right(rollout: Rollout) -> bool:
    return outcome(rollout) == 1.0


class ByHelper(VeriFree):
    """A likelihood method that asks for outcomes in a helper of its module, inside a comprehension."""

    name: ClassVar[str] = "by_helper"

    def rights(self, group: ScoredGroup) -> list[bool]:
        return [is_right(rollout) for rollout in group.rollouts]


class Judged(ByHelper):
    name: ClassVar[str] = "judged"
    verified: bool = True


class BySettings(ByHelper):
    name: ClassVar[str] = "by_settings"

    def __init__(self, config: Any, setup: Any) -> None:
        super().__init__(config, setup)
        self.verified = False


def test_a_method_that_asks_for_outcomes_that_nobody_gives_is_refused_when_it_is_loaded() -> None:
    setup = make_run(name="grpo").algorithm.setup  # ty: ignore[unresolved-attribute]
    for cls, asks in ((Unjudged, "mark"), (ByHelper, "rights")):
        said = f"^algorithm {cls.name}: {asks} calls outcome\\(\\), but verified is False, .*; set verified = True$"
        with pytest.raises(UserError, match=said):
            check_method(cls(cls.Config(), setup))
    for cls in (Judged, BySettings, VeriFree):
        check_method(cls(cls.Config(), setup))


def test_contexts_readings_and_streams_name_what_there_is() -> None:
    algorithm = make_run().algorithm
    context, reading, stream = algorithm.contexts[0], algorithm.training[0], algorithm.streams[0]
    wrong = {
        "contexts": ((context._replace(model="critic"),), "'prior' is read by the model 'critic'; there is policy"),
        "training": ((reading._replace(contexts=("before",)),), "in the context 'before'; there is posterior, prior"),
        "streams": (
            (stream._replace(span="traces"),),
            "stream 'policy' is on the span 'traces'; there is answer, trace",
        ),
    }
    for name, (value, said) in wrong.items():
        algorithm = make_run().algorithm
        setattr(algorithm, name, value)
        with pytest.raises(UserError, match=said):
            check_method(algorithm)


def spoilt(kind: str, rows: list[list[Credit]]) -> Any:
    """The credits with one fault in the first group's second rollout, or in how many there are."""
    own = rows[0][1]
    weight, value = own.weights["policy"], next(iter(own.constants))
    changed = {
        "column": replace(own, weights={**own.weights, "policy": weight[:, None]}),
        "short": replace(own, weights={**own.weights, "policy": weight[:-1]}),
        "list": replace(own, weights={**own.weights, "policy": weight.tolist()}),
        "stream": replace(own, weights={"polcy": weight}),
        "constant": replace(own, constants={value: weight[:-1]}),
        "key": replace(own, constants={"drawn": weight}),
        "reward": replace(own, reward=torch.tensor(1.0)),
        "none": None,
    }
    if kind in changed:
        return [[rows[0][0], changed[kind], *rows[0][2:]], *rows[1:]]
    return {"groups": rows[:-1], "rollouts": [rows[0][:-1], *rows[1:]], "nothing": None}[kind]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("column", r"problem p\d, rollout 1: the weight of policy is \[\d+, 1\]; expected a tensor \[\d+\]"),
        ("short", r"rollout 1: the weight of policy is \[\d+\]; expected a tensor \[\d+\]"),
        ("list", "rollout 1: the weight of policy is list"),
        ("stream", "rollout 1: a weight for the stream 'polcy'; there is kl, nll, policy"),
        ("constant", r"rollout 1: the constant trace/source is \[\d+\]; expected"),
        ("key", r"constants are named by Output\(span, name\), found 'drawn'"),
        ("reward", "reward has to be a float or None, found Tensor"),
        ("none", "expected a Credit, found NoneType"),
        ("groups", r"gave \d items for \d groups"),
        ("rollouts", r"gave 3 items for the 4 rollouts of problem p\d"),
        ("nothing", r"gave NoneType for \d groups"),
    ],
)
def test_credit_of_the_wrong_form(kind: str, said: str) -> None:
    run = make_run()
    groups = run.algorithm.admit(score_groups(run, sample(run, PROBLEMS, Draw(0, 0)))).kept
    rows = run.algorithm.credit(groups)
    check_credit_shapes(run.algorithm, groups, rows)
    with pytest.raises(UserError, match=f"^algorithm covrl: credit .*{said}"):
        check_credit_shapes(run.algorithm, groups, spoilt(kind, rows))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "gave nothing for the stream 'policy'; it gave kl, nll"),
        ("mean", r"of policy is \[\]; expected \[\d+\]"),
        ("old", "of policy has no gradient: it depends on tokens.old"),
        ("none", "gave NoneType; expected a dict"),
    ],
)
def test_a_loss_of_the_wrong_form_ends_the_step_and_changes_nothing(kind: str, said: str) -> None:
    run = make_run()
    loss, before = run.algorithm.loss, [p.detach().clone() for p in run.parameters]

    def spoil(tokens: Any) -> Any:
        found = loss(tokens)
        if kind == "missing":
            found.pop("policy")
        elif kind == "none":
            return None
        else:
            found["policy"] = found["policy"].mean() if kind == "mean" else -tokens.old[Output("trace", "prior")]
        return found

    run.algorithm.loss = spoil  # ty: ignore[invalid-assignment]
    with pytest.raises(UserError, match=f"^algorithm covrl: loss {said}"):
        take_step(run)
    assert all(map(torch.equal, before, run.parameters))
    assert run.done == 0


def test_weight_is_looked_for_in_streams_that_there_are() -> None:
    run = make_run()
    assert not has_weight(Credit({"other": torch.ones(3)}), run.algorithm.streams)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("index", "two requests have the index 0; they would sample the same tokens"),
        ("problem", "request 0 is of problem other"),
        ("parent", "request 1 has the parent 77, which is no rollout of it"),
        ("budget", "max_tokens is 0; it has to be at least 1, or None"),
        ("none", "gave NoneType; expected a list of Request"),
        ("endless", "asks for more after 100 waves of requests"),
    ],
)
def test_a_plan_that_cannot_be_sampled(kind: str, said: str) -> None:
    run = make_run()

    def plan(problem: Any, history: Any, draw: Draw) -> Any:
        def one(index: int, **more: Any) -> Request:
            return Request(more.pop("problem_id", problem.id), index, run.prompts.prior(problem), "prior", **more)

        if kind == "endless":
            return [one(len(history), max_tokens=1)]
        if history:
            return []
        faults: dict[str, Any] = {"parent": {"parent": 77}, "budget": {"max_tokens": 0}}
        return {
            "index": lambda: [one(0), one(0)],
            "problem": lambda: [one(0, problem_id="other")],
            "none": lambda: None,
        }.get(kind, lambda: [one(0), one(1, **faults[kind])])()

    run.algorithm.plan = plan  # ty: ignore[invalid-assignment]
    with pytest.raises(UserError, match=rf"^algorithm covrl: plan of problem p\d: .*{said}"):
        sample(run, PROBLEMS[:1], Draw(0, 0))
