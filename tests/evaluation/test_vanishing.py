"""Long answers make thoughts vanish, in a world of three tokens; the run says so before its accuracy falls.

The base thinks four tokens and is then sure of one answer of six tokens, which is right for half of the problems; or it
does not think, and hedges. Problems of one question cannot be told apart, so a sure thought earns −0.1 nats where it is
right and −28 or −14 where it is wrong, and none earns −3 to −6 everywhere. Log-likelihood prefers not to think, and
greedy accuracy goes from a half to 0: arXiv 2602.03979's finding, small enough to see why.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from exact import world
from exact.world import CLOSE, A, B

from covrl.evaluation.accuracy import Evaluator
from covrl.generation.engine import TorchGenerator
from covrl.problems.source import ProblemSource
from covrl.records import Problem, Verdict
from covrl.training import loop
from covrl.training.run import Run

ANSWER_TOKENS, TRACE_TOKENS = 6, 5
PROBLEMS = [Problem(f"p{i}", "a", ["aaaaaa", "aaaaaa", "bbbbbb", "ababab"][i % 4]) for i in range(12)]


def thinks(place: int) -> list[float]:
    """p of the next token of a thought: at its start it may be closed at once, and else goes on to four tokens."""
    if place == 0:
        return [0.55, 0.10, 0.35]
    closed = 0.02 if place < TRACE_TOKENS - 2 else 0.95
    return [(1 - closed) / 2, (1 - closed) / 2, closed]


def answers(thought: int, place: int) -> list[float]:
    """p of an answer's next token: sure after a thought, a hedge without one."""
    if place == ANSWER_TOKENS:
        return [0.005, 0.005, 0.99]
    sure = 0.4 if thought <= 1 else 0.99
    return [0.99 * sure, 0.99 * (1 - sure), 0.01]


def teach(model: torch.nn.Module) -> None:
    """Fit these probabilities, on all thoughts and on answers of one letter after those that are closed."""
    rows, wanted = [], []
    for ids in world.stopping_traces(TRACE_TOKENS):
        thought = [thinks(place) for place in range(len(ids))]
        for letter in (A, B) if ids[-1] == CLOSE else ():
            rows.append([A, *ids, *[letter] * ANSWER_TOKENS, CLOSE])
            wanted.append([*thought, *(answers(len(ids), place) for place in range(ANSWER_TOKENS + 1))])
        if ids[-1] != CLOSE:
            rows.append([A, *ids])
            wanted.append(thought)
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    target = torch.zeros(len(rows), longest - 1, 3, dtype=torch.float64)
    for place, found in enumerate(wanted):
        target[place, : len(found)] = torch.tensor(found, dtype=torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(250):
        loss = -(target * model(input_ids=ids[:, :-1]).logits.log_softmax(-1)).sum() / target.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def grade(rows: Sequence[tuple[Problem, str]]) -> list[Verdict]:
    """The tokenizer of this world decodes with spaces between tokens."""
    return ["right" if said.replace(" ", "") == problem.answer else "wrong" for problem, said in rows]


def make_run() -> Run:
    """JEPO's policy gradient alone: with the answer's own term it would learn to be less sure."""
    run = world.make_run(name="jepo", group=8, nll_weight=0.0)
    training = {"steps": 12, "problems_per_step": 12, "learning_rate": 4e-4, "schedule": "constant"}
    training |= {"warmup_steps": 0, "stream_norms_every": 0}
    limits = {"max_trace_tokens": TRACE_TOKENS, "max_answer_tokens": ANSWER_TOKENS + 1}
    config = run.config
    run.config = config.model_copy(
        update={
            "training": config.training.model_copy(update=training),
            "generation": config.generation.model_copy(update=limits),
            "guards": config.guards.model_copy(update={"publish_check_every": 0}),
            "evaluation": config.evaluation.model_copy(update={"every": 1}),
        }
    )
    policy = run.models["policy"].model
    teach(policy)
    run.generator = TorchGenerator(policy, run.prompts.tokenizer, 128)
    run.source, run.held_out = ProblemSource(PROBLEMS, 0), PROBLEMS
    run.evaluator = Evaluator(run.generator, run.prompts, *limits.values(), grade)
    return run


def test_the_warning_comes_before_accuracy_falls() -> None:
    reports = list(loop.steps(make_run()))
    accuracy = {r.step: r.metrics["eval/accuracy"] for r in reports}
    said = {r.step: [text.partition(":")[0] for text in r.warnings] for r in reports}
    fell = min(step for step, value in accuracy.items() if value < accuracy[1])
    warned = min(step for step, names in said.items() if "long traces earn less" in names)
    assert accuracy[1] == 0.5
    assert accuracy[12] == 0.0
    assert warned < fell, (accuracy, said)
    assert reports[-1].metrics["length/median_prior"] < reports[0].metrics["length/median_prior"]
    assert reports[-1].metrics["eval/log_prob"] > reports[0].metrics["eval/log_prob"], "and the likelihood rose"
    assert any("length collapse" in names for names in said.values())
