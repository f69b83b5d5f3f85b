"""The base of the common setting, and that the code that makes it still makes the shipped base's rows."""

from __future__ import annotations

import hashlib
import random

import base_texts as task
import pytest
import torch
from make_base import BASE_FOLDER, RIGHT_SHARE, RIVAL, digit_rows, main, prior_weights, supervised_rows
from probe_base import complete
from transformers import AutoModelForCausalLM, AutoTokenizer

from covrl.problems.digits import RIGHT, Habit, problems, questions, read_trace

COMMON = BASE_FOLDER.with_name("base_common")


def test_the_rows_of_the_shipped_base_are_the_same_as_ever() -> None:
    rng = random.Random(0)
    rows = [f"{row.prompt}|{row.target}" for _ in range(3) for row in digit_rows(rng)]
    digest = hashlib.sha256("\n".join(rows).encode()).hexdigest()
    assert digest == "d694f010c62d08c1388d5c0d1f923f78d6cb6ae542c67f1622f160da90f50606"
    assert prior_weights(RIGHT_SHARE) == {h: 0.005 if h is RIGHT else 0.995 / 7 for h in Habit}


def test_shares_add_up() -> None:
    weights = prior_weights(0.2, 0.3)
    assert sum(weights.values()) == pytest.approx(1)
    assert (weights[RIGHT], weights[RIVAL]) == (0.2, 0.3)
    assert len(set(weights.values())) == 3
    rng, prior = random.Random(1), []
    for _ in range(40):
        prior += [row for row in supervised_rows(rng, questions("base"), weights) if row.hint is None]
    assert sum(row.habit == RIGHT for row in prior) / len(prior) == pytest.approx(0.2, abs=0.025)
    assert sum(row.habit == RIVAL for row in prior) / len(prior) == pytest.approx(0.3, abs=0.025)


@pytest.mark.parametrize(
    "shares", [("--right-share", "1.5"), ("--right-share", "0.8", "--rival-share", "0.8"), ("--right-share", "x")]
)
def test_shares_that_make_no_sense_are_refused(shares: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(shares)
    assert stop.value.code == 2
    assert "share" in capsys.readouterr().err.splitlines()[-1]


def test_the_right_procedure_is_common_but_not_the_most_likely_one() -> None:
    assert sum(file.stat().st_size for file in COMMON.iterdir()) <= 2_000_000
    tokenizer, model = AutoTokenizer.from_pretrained(COMMON), AutoModelForCausalLM.from_pretrained(COMMON).eval()
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(BASE_FOLDER).get_vocab()
    torch.manual_seed(0)
    chosen = problems("dev")[:600]
    prompts = [task.PRIOR_PROMPT.format(question=p.question) for p in chosen]
    sampled = complete(model, tokenizer, prompts, stop=task.TRACE_CLOSE, most_tokens=12)
    greedy = complete(model, tokenizer, prompts[:100], stop=task.TRACE_CLOSE, most_tokens=12, greedy=True)
    checks = [read_trace(p.question, trace) for p, trace in zip(chosen, sampled, strict=True)]
    assert sum(check.sound for check in checks) / len(checks) == pytest.approx(0.2, abs=0.05)
    assert sum(check.false_step for check in checks) / len(checks) < 0.02
    assert not any(read_trace(p.question, t).sound for p, t in zip(chosen, greedy, strict=False))
