"""The bridges' rewards are those of the library's own methods, on the same responses and weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from covrl.algorithms import make_algorithm
from covrl.algorithms.base import Setup
from covrl.assembly import build
from covrl.bridges.trl import AnswerLikelihood
from covrl.bridges.verl import compute_score
from covrl.config import AlgorithmTable, RunConfig, check, override, read_toml
from covrl.errors import UserError
from covrl.generation.base import Draw
from covrl.models.model import SHIPPED
from covrl.records import Problem, Request, Rollout, ScoredGroup
from covrl.training.rollouts import sampling_of
from covrl.training.run import Run
from covrl.training.scores import scores_of

TAGS = {"close": "</think>", "answer_prefix": "<answer>", "answer_suffix": "</answer>"}
GROUP = 5


@pytest.fixture(scope="module")
def run() -> Run:
    settings = ["algorithm.name=rlpr", f"training.rollouts_per_problem={GROUP}", "training.problems_per_step=2"]
    return build(check(RunConfig, override(read_toml(SHIPPED / "quickstart.toml"), [*settings, "evaluation.every=0"])))


@pytest.fixture(scope="module")
def groups(run: Run) -> list[tuple[Problem, list[Rollout]]]:
    """Two problems with sampled responses each, of which one is cut inside its thought and one inside its answer."""
    made = []
    for problem in run.source.problems[:2]:
        asked = [Request(problem.id, i, run.prompts.prior(problem), "prior") for i in range(GROUP)]
        rollouts = run.generator.generate(asked, sampling_of(run), Draw(0, 0))
        thought = run.prompts.thought(rollouts[0])
        assert thought is not None
        whole = [cut(run, rollouts[0], 3), cut(run, rollouts[0], len(thought.trace_ids) + 2), *rollouts[2:]]
        made.append((problem, whole))
    return made


def cut(run: Run, rollout: Rollout, tokens: int) -> Rollout:
    ids = rollout.trace_ids[:tokens]
    text = run.prompts.tokenizer.decode(list(ids), skip_special_tokens=False)
    return Rollout(rollout.request, ids, rollout.log_probs[:tokens], "length", "none", str(text))


@pytest.fixture
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(SHIPPED / "base").train()


def library_rewards(run: Run, groups: list[tuple[Problem, list[Rollout]]], form: str) -> list[float]:
    """What the method of that name pays for the same responses, by its own credit."""
    setup = Setup(run.prompts, GROUP, 2, 24)
    method = make_algorithm(AlgorithmTable(name=form), setup)
    found: list[float] = []
    for problem, whole in groups:
        rollouts = whole
        if form != "rlpr":  # their traces are thoughts; one that was not closed is there, and no answer follows it
            rollouts = [run.prompts.thought(rollout) or rollout for rollout in whole]
        pairs = [(problem, rollout) for rollout in rollouts]
        scores = scores_of(run, method.contexts, method.scoring, pairs)
        group = ScoredGroup(problem, tuple(rollouts), tuple(scores))
        rewards = [c.reward for c in method.credit([group])[0]]
        found += [r for r in rewards if r is not None]
    return found


def asked_by_trl(run: Run, groups: list[tuple[Problem, list[Rollout]]]) -> dict[str, Any]:
    """The arguments that a trainer calls a reward function with."""
    pairs = [(problem, rollout) for problem, rollouts in groups for rollout in rollouts]
    return {
        "prompts": [run.prompts.text(problem, "prior") for problem, _ in pairs],
        "completions": [rollout.text for _, rollout in pairs],
        "completion_ids": [list(rollout.trace_ids) for _, rollout in pairs],
        "answer": [problem.answer for problem, _ in pairs],
        "trainer_state": None,
    }


@pytest.mark.parametrize("form", ["rlpr", "verifree", "jepo"])
def test_a_trainer_gets_the_rewards_of_the_librarys_method(
    run: Run, groups: list[tuple[Problem, list[Rollout]]], model: Any, form: Any
) -> None:
    reward = AnswerLikelihood(model, run.prompts.tokenizer, form, **TAGS)
    found = reward(**asked_by_trl(run, groups))
    assert found == pytest.approx(library_rewards(run, groups, form), rel=1e-4, abs=1e-6)
    assert len({round(value, 9) for value in found}) > 3, "responses are told apart"
    assert reward.__name__ == f"answer_likelihood_{form}"


def test_rewards_are_in_the_order_of_the_batch(
    run: Run, groups: list[tuple[Problem, list[Rollout]]], model: Any
) -> None:
    """Groups may be scattered over a batch."""
    reward = AnswerLikelihood(model, run.prompts.tokenizer, "jepo", **TAGS)
    asked = asked_by_trl(run, groups)
    order = [7, 0, 3, 9, 1, 5, 2, 8, 6, 4]
    shuffled = {key: [value[i] for i in order] if isinstance(value, list) else value for key, value in asked.items()}
    whole = reward(**asked)
    assert reward(**shuffled) == pytest.approx([whole[i] for i in order], rel=1e-5)


def test_the_trainers_model_stays_as_it_is(run: Run, groups: list[tuple[Problem, list[Rollout]]], model: Any) -> None:
    frozen = next(iter(model.parameters()))
    frozen.requires_grad_(False)
    model.model.layers[0].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    attention = model.config._attn_implementation
    AnswerLikelihood(model, run.prompts.tokenizer, "rlpr", **TAGS)(**asked_by_trl(run, groups))
    assert [module.training for module in model.modules()] == modes
    assert not frozen.requires_grad
    assert sum(p.requires_grad for p in model.parameters()) == len(list(model.parameters())) - 1
    assert all(p.grad is None for p in model.parameters())
    assert model.config._attn_implementation == attention
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_answers_are_scored_with_the_weights_of_the_moment(
    run: Run, groups: list[tuple[Problem, list[Rollout]]], model: Any
) -> None:
    """The policy's part follows the trainer; the baseline of rlpr is that of the model as it was given."""
    asked = asked_by_trl(run, groups)
    rlpr = AnswerLikelihood(model, run.prompts.tokenizer, "rlpr", **TAGS)
    verifree = AnswerLikelihood(model, run.prompts.tokenizer, "verifree", **TAGS)
    first, base = verifree(**asked), _baselines(rlpr)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.5)
    assert verifree(**asked) != pytest.approx(first, rel=1e-2)
    rlpr(**asked)
    assert _baselines(rlpr) == base


def _baselines(reward: AnswerLikelihood) -> float:
    return float(sum(p.double().sum() for p in reward._reward._models["reference"].model.parameters()))


def test_a_group_without_a_closed_thought_has_equal_rewards(run: Run, model: Any) -> None:
    problem = run.source.problems[0]
    reward = AnswerLikelihood(model, run.prompts.tokenizer, "jepo", **TAGS)
    ids = [list(run.prompts.encode(text)) for text in ("sort", "copy", "sort 01")]
    found = reward(["<user>12507"] * 3, ["-"] * 3, ids, answer=[problem.answer] * 3)
    assert found == [-31.0] * 3, "the floor of 30 nats and the penalty"


def test_messages_are_rendered_by_the_chat_template(
    run: Run, groups: list[tuple[Problem, list[Rollout]]], model: Any
) -> None:
    tokenizer = copy.deepcopy(run.prompts.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<user>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant><think>"
        "{% endif %}"
    )
    asked = asked_by_trl(run, groups)
    plain = AnswerLikelihood(model, tokenizer, "verifree", **TAGS)(**asked)
    texts = [text.removeprefix("<user>").removesuffix("<assistant><think>") for text in asked["prompts"]]
    asked["prompts"] = [[{"role": "user", "content": text}] for text in texts]
    asked["completions"] = [[{"role": "assistant", "content": text}] for text in asked["completions"]]
    assert AnswerLikelihood(model, tokenizer, "verifree", **TAGS)(**asked) == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("form", ["rlpr", "verifree", "jepo"])
def test_verl_gets_the_same_of_a_text(
    run: Run, groups: list[tuple[Problem, list[Rollout]]], model: Any, form: Any
) -> None:
    problem, rollouts = groups[0]
    prompt = run.prompts.text(problem, "prior")
    reward = AnswerLikelihood(model, run.prompts.tokenizer, form, **TAGS)
    for rollout in rollouts[1:3]:
        ids = list(run.prompts.tokenizer(rollout.text, add_special_tokens=False)["input_ids"])
        (wanted,) = reward([prompt], [rollout.text], [ids], answer=[problem.answer])
        extra = {"prompt": prompt, "index": 3}
        given = {"model": "covrl:digits", "form": form, "device": "cpu", **TAGS}
        assert compute_score("digits", rollout.text, problem.answer, extra, **given) == pytest.approx(wanted, rel=1e-5)


def test_what_is_missing_is_one_line(run: Run, model: Any, tmp_path: Path) -> None:
    tokenizer = run.prompts.tokenizer
    with pytest.raises(UserError, match=r"form: 'rpr' is none; there are rlpr, verifree, jepo"):
        AnswerLikelihood(model, tokenizer, "rpr")  # ty: ignore[invalid-argument-type]
    reward = AnswerLikelihood(model, tokenizer, "verifree", **TAGS)
    with pytest.raises(UserError, match=r"no column 'answer' \(column=…\); there is solution"):
        reward(["a"], ["b"], [[1]], solution=["4"], trainer_state=None)
    with pytest.raises(UserError, match=r"column 'answer', row 1 of the batch: expected a text, found 4"):
        reward(["a", "a"], ["b", "b"], [[1], [1]], answer=["4", 4])
    with pytest.raises(UserError, match="no model to score with"):
        compute_score("gsm8k", "x", "4", {"question": "2 + 2"})
    with pytest.raises(UserError, match="a row of gsm8k has neither prompt nor question in extra_info"):
        compute_score("gsm8k", "x", "4", model="covrl:digits")
    with pytest.raises(UserError, match="expected a text as ground_truth, found None"):
        compute_score("gsm8k", "x", None, {"question": "2"}, model="covrl:digits")  # ty: ignore[invalid-argument-type]


def test_the_bridge_needs_no_trainer() -> None:
    """Neither TRL nor verl is imported by covrl, so neither is a dependency."""
    folder = Path(__file__).parents[2] / "src" / "covrl" / "bridges"
    for file in folder.glob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "import trl" not in text
        assert "from trl" not in text
        assert "import verl" not in text
