"""Our side: ``python -m speed.ours '{"workload": "M-34", "model": …, "threads": 1, "dtype": "mixed"}'``.

Prints one JSON line. All steps are those of the production loop, built by the public API.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from speed.meter import Meter, asked, begin, emit
from speed.workloads import CLOSE, Workload, letter, questions, reward, word_problems, workload_of

NO_STOP = 8 * letter(1)  # eight given letters in a row are not sampled
ANSWER = letter(5) + letter(6)  # as long as a random model gives it a likelihood above the floor of rewards

REAL_PROMPTS = {
    "user": "{question}",
    "prior_open": "",
    "posterior_open": "The result is {hint}, because of this calculation.\n",
    "close": "The answer is",
    "answer_prefix": " ",
    "answer_suffix": ".",
}
"""Of a real model, whose chat template both sides use."""


def config_of(workload: Workload, model: str, dtype: str, algorithm: str, steps: int) -> dict[str, Any]:
    """Settings of a run on the workload.

    A response ends at the end token, or never before ``new`` tokens. Where the workload's thoughts close, a thought
    and a response both end at :data:`CLOSE`, so both have the same lengths.
    """
    prompts, tags = (REAL_PROMPTS, 0) if workload.real else prompts_of_letters(workload, algorithm == "covrl")
    return {
        "model": {"path": model, "device": "cpu", "dtype": dtype},
        "algorithm": {"name": algorithm},
        "prompts": prompts,
        "generation": {"max_trace_tokens": workload.new - tags, "max_answer_tokens": 1, "rows_per_pass": 512},
        "training": {
            "steps": steps,
            "problems_per_step": workload.problems,
            "rollouts_per_problem": workload.rollouts,
            "learning_rate": 1e-6,
            "schedule": "constant",
            "warmup_steps": 0,
            "stream_norms_every": 0,
        },
        "evaluation": {"every": 0},
        "guards": {"publish_check_every": 0},
    }


def prompts_of_letters(workload: Workload, thoughts: bool) -> tuple[dict[str, str], int]:
    """``[prompts]`` for a model of letters, and the tokens that a response has room for beyond its trace."""
    stop = CLOSE if workload.close else NO_STOP
    suffix = 8 * letter(3) if not workload.close else letter(3) if thoughts else CLOSE
    prompts = {
        "chat": "never",
        "user": "{question}",
        "prior_open": "",
        "posterior_open": "{hint}",
        "close": stop,
        "answer_prefix": letter(2),
        "answer_suffix": suffix,
    }
    return prompts, 0 if thoughts else len(stop) + 2  # the closing tag, the opening one, the answer


def end_at(length: int) -> None:
    """Let every sampled trace end with its token number ``length``, as if closed there, and never before.

    What is sampled is looked at as ever, so that a token costs as much. The closing tag is appended, so an answer is
    read after each thought.
    """
    from covrl.generation import trace
    from covrl.generation.stop import Stop

    class OfLength(trace.Trace):
        def take(self, token: int, log_prob: float, rule: Any, eos: frozenset[int], *seen: Any) -> None:
            if self.ended:
                return
            super().take(token, log_prob, rule, eos, *seen)
            whole = len(self.ids) == length
            self.ended, self.stop = ("closed", Stop(length, "appended")) if whole else (None, None)

    trace.Trace = OfLength


def build_run(
    workload: Workload,
    model: str,
    dtype: str,
    algorithm: str = "grpo",
    steps: int = 1,
    settings: dict[str, dict[str, Any]] | None = None,
    judge: Callable[[Any, str], float] | None = None,
    problems: int | None = None,
) -> Any:
    """A run that has not taken a step. ``settings`` change sections; ``judge`` is the reward, for the group family."""
    from covrl.api import build
    from covrl.config import RunConfig, check
    from covrl.records import Problem

    table = config_of(workload, model, dtype, algorithm, steps)
    for section, values in (settings or {}).items():
        table[section] = table.get(section, {}) | values
    count = problems or steps * workload.problems
    texts = questions(workload, -(-count // workload.problems))[:count]
    answers = [answer for _, answer in word_problems(count)] if workload.real else [ANSWER] * count
    asked = [Problem(str(i), text, answer) for i, (text, answer) in enumerate(zip(texts, answers, strict=True))]
    if workload.real:
        end_at(workload.new)
    hand = None if algorithm == "covrl" else judge or (lambda _, text: reward(text))
    return build(check(RunConfig, table), asked, reward=hand)


def take_steps(run: Any, meter: Meter, count: int) -> list[dict[str, float]]:
    """Metrics of the measured steps; those to warm up come before them."""
    from covrl.training import loop

    metrics = []
    steps = loop.steps(run)
    for _ in range(meter.warm + count):
        with meter.step():
            metrics.append(next(steps).metrics)
    return metrics[meter.warm :]


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """Steps of the production loop, measured one by one; ``phases`` are in seconds of the workload's clock."""
    begin(asked["threads"], asked.get("memory_mb"))
    workload, count, warm = workload_of(asked), asked["steps"], asked.get("warm", 1)
    # one more than are taken: a run's last step looks at more than others
    given = asked.get("algorithm", "grpo"), warm + count + 1, asked.get("settings")
    run = build_run(workload, asked["model"], asked["dtype"], *given)
    if workload.clock == "cpu":
        run.timer = time.process_time  # it stands still while another process has the core
    meter = Meter([p for model in run.models.values() for p in model.model.parameters()], warm)
    metrics = take_steps(run, meter, count)
    phases = {name: [m.get(f"time/{name}", 0.0) for m in metrics] for name in ("generate", "score", "train", "other")}
    tokens = {name: [m[f"tokens/{name}"] for m in metrics] for name in ("generated", "trained")}
    shown = {k: [m[k] for m in metrics] for k in ("trace/invalid_share", "train/dropped_traces") if k in metrics[0]}
    return meter.record(run.optimizers["policy"]) | {"tokens": tokens, "phases": phases, "metrics": shown}


if __name__ == "__main__":
    emit(main(asked()))
