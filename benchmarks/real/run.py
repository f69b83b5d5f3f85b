"""A real model learns without a verifier: ``python benchmarks/real/run.py [--out runs/real]``, or ``make real``.

Fetches SmolLM2-135M-Instruct, makes word problems of several steps, teaches the form of a trace from solutions of two
and three steps, trains on problems of four steps with their answers alone, and shows accuracy on held-out problems
before and after. What is there already is not done again, so the command may be cut and started anew.

    --method NAME   the method of the training (default: covrl)
    --seed N        of the training
    --steps N       of the training; 0: no training, only the model after its lessons and its figures
    --lessons N     in the format, under the prompts of --roles
    --problems N    measure on the first N test problems alone
    --control KIND  shuffled-hints: the posterior is shown another problem's answer; shuffled-answers: every problem has
                    another problem's answer; format: the lessons in the format go on instead of the training

Everything stands in ``--out``: ``model``, ``taught`` and the problems, which runs of other methods and seeds share, and
a folder for each run with its report and ``real.json`` (figures, the training's course, CPU seconds, machine).

The task is chosen by measurement: after the lessons greedy accuracy with a thought has to be at least 5 points above
that without one. The command says whether it is; ``table.py`` writes it into the page.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import several_steps

if TYPE_CHECKING:
    from covrl.evaluation.accuracy import Evaluation
    from covrl.records import Problem
    from covrl.training.run import Run

HERE = Path(__file__).resolve().parent
CONTROLS = ("none", "shuffled-hints", "shuffled-answers", "format")
LESSONS, ROLES, LESSON_RATE = 20, "prior", "3e-5"
"""The posterior prompt is not taught: of 32 traces sampled from it after these lessons 56 % ended."""

CLOSED = "0.5"
"""The share of sampled traces that have to end with the closing words after the lessons."""

HELPS = 0.05
"""What a thought has to add to the taught model's greedy accuracy, so that the task is one of thinking."""

COURSE = (
    *("eval/accuracy", "eval/sampled", "eval/log_prob", "answer/information", "answer/entropy", "thought/gain"),
    *("thought/read", "reward/prior", "length/prior", "kl/nats_per_token", "trace/invalid_share"),
)
"""What ``real.json`` keeps of each step of the training."""

SHOWN = 3


def main() -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/real"))
    parser.add_argument("--model", type=Path, help="a folder with the model, in the place of the download")
    parser.add_argument("--method", default="covrl")
    parser.add_argument("--control", choices=CONTROLS, default="none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=12, help="of the training, or lessons of --control format")
    parser.add_argument("--lessons", type=int, default=LESSONS)
    parser.add_argument("--roles", default=ROLES)
    parser.add_argument("--problems", type=int, metavar="N")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    given = parser.parse_args()
    base = prepare(given)
    print_table("the model after its lessons in the format", base)
    print(f"  {helps(base)}")
    if given.steps == 0:
        return 0
    folder = given.out / run_name(given)
    done = folder / "real.json"
    if not done.exists():
        seconds = train(given, folder)
        start = time.process_time()
        found = measure(given.out, trained_model(folder), given.seed, base["problems"])
        record = {"method": given.method, "control": given.control, "seed": given.seed, "steps": given.steps}
        record |= {"settings": given.settings, "base": base, "trained": found, **course(folder)}
        record |= {"train_cpu_s": seconds, "measure_cpu_s": round(time.process_time() - start, 1)}
        write_json(done, record | {"machine": machine()})
    record = json.loads(done.read_text(encoding="utf-8"))
    minutes = record["train_cpu_s"] / 60
    print_table(f"after {record['steps']} steps of {folder.name} ({minutes:.0f} CPU minutes)", record["trained"])
    for before, after in list(zip(base["examples"], record["trained"]["examples"], strict=True))[:SHOWN]:
        print(f"\n{before['question']}  [{before['reference']}]\n  before: {before['said']}\n  after:  {after['said']}")
    if (folder / "report.html").exists():
        print(f"\nreport: {folder / 'report.html'}")
    return 0


def run_name(given: argparse.Namespace) -> str:
    """The folder of a run: all that tells it from another one."""
    parts = [given.method, *([] if given.control == "none" else [given.control])]
    parts += [f"steps{given.steps}", *given.settings, f"seed{given.seed}"]
    return re.sub(r"[^\w.=+-]+", "_", "-".join(parts))


def helps(base: Mapping[str, Any]) -> str:
    """Whether the task is one where this model's thoughts help, in a sentence."""
    gain = base["greedy"] - base["without_thought"]
    verdict = "the task is one of thinking" if gain >= HELPS else "the task is none where thinking helps this model"
    return f"a thought adds {gain * 100:+.1f} points to greedy accuracy (asked: {HELPS * 100:.0f}): {verdict}"


def prepare(given: argparse.Namespace) -> dict[str, Any]:
    """The model, the problems and the taught model in ``--out``; the figures of the taught model on the test problems.

    Those of other lessons, or of another number of problems, end the program.
    """
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    fetch(out, given.model)
    for name, rows in several_steps.splits().items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (out / f"{name}.jsonl").write_text(text, encoding="utf-8")
    for name in ("format.toml", "train.toml"):
        text = (HERE / name).read_text(encoding="utf-8")
        (out / name).write_text(text.replace('dtype = "float32"', f'dtype = "{dtype()}"'), encoding="utf-8")
    done = out / "taught.json"
    if not done.exists():
        seconds = teach(out, "model", "taught", given.lessons, given.roles, 0)
        start = time.process_time()
        found = measure(out, out / "taught", 0, given.problems)
        found |= {"lessons": given.lessons, "roles": given.roles, "lessons_cpu_s": seconds}
        found |= {"measure_cpu_s": round(time.process_time() - start, 1)}
        write_json(done, found | {"machine": machine()})
    base = json.loads(done.read_text(encoding="utf-8"))
    asked = (given.lessons, given.roles, given.problems or base["problems"])
    there = (base["lessons"], base["roles"], base["problems"])
    if there != asked:
        sys.exit(f"{done}: lessons, roles and problems are {there}, not {asked}; name another --out, or these")
    return base


def fetch(out: Path, model: Path | None) -> None:
    """The model in ``out/model``: a link to ``model``, or else what the package index has."""
    if (out / "model").exists():
        return
    if model is not None:
        (out / "model").symlink_to(model.resolve())
    else:
        covrl_python(str(HERE.parent / "real_model.py"), str(out / "model"))


def dtype() -> str:
    """Products in bfloat16 where the processor has units for them, which take a third of the time there."""
    import torch

    from covrl.models.compute import emulated_note

    known = platform.machine().lower() in ("x86_64", "amd64")
    return "mixed" if known and emulated_note("mixed", torch.device("cpu")) is None else "float32"


def teach(out: Path, start: str, target: str, steps: int, roles: str, seed: int) -> float:
    """Lessons in the format, from the model of folder ``start`` to that of folder ``target``; their CPU seconds.

    Lessons that were given are not given again.
    """
    spent = (out / target).with_name(f"{Path(target).name}-cpu.json")
    if (out / target / "model.safetensors").exists():
        return seconds_in(spent)
    words = ["warm-format", "--config", "format.toml", "--out", target, "--roles", roles, "--steps", str(steps)]
    words += ["--every", str(steps), "--until", CLOSED, "--learning-rate", LESSON_RATE]
    words += ["--set", f"model.path={start}", "--set", f"training.seed={seed}"]
    return covrl_python("-m", "covrl", *words, cwd=out, spent=spent)


def train(given: argparse.Namespace, folder: Path) -> float:
    """The training of one run, resumed where it was cut; its CPU seconds."""
    if given.control == "format":
        return teach(given.out, "taught", f"{folder.name}/model", given.steps, given.roles, given.seed)
    settings = [f"algorithm.name={given.method}", f"training.seed={given.seed}", f"training.steps={given.steps}"]
    if given.control == "shuffled-hints":
        settings.append("problems.shuffle_hints=true")
    if given.control == "shuffled-answers":
        shuffle_answers(given.out, given.seed)
        settings.append(f"problems.train=shuffled{given.seed}.jsonl")
    words = [part for setting in (*settings, *given.settings) for part in ("--set", setting)]
    begun = (folder / "config.toml").exists()
    how = ["--resume", folder.name] if begun else ["--config", "train.toml", "--out", folder.name, *words]
    return covrl_python("-m", "covrl", "train", *how, cwd=given.out, spent=folder.with_name(f"{folder.name}-cpu.json"))


def shuffle_answers(out: Path, seed: int) -> None:
    """``shuffledN.jsonl``: the training problems, each with another one's answer."""
    rows = [json.loads(line) for line in (out / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    answers = [row["answer"] for row in rows]
    random.Random(seed).shuffle(answers)
    text = "".join(json.dumps(row | {"answer": a}) + "\n" for row, a in zip(rows, answers, strict=True))
    (out / f"shuffled{seed}.jsonl").write_text(text, encoding="utf-8")


def course(folder: Path) -> dict[str, Any]:
    """What :data:`COURSE` names, of each step, and the step at which each warning came first; {} without a training."""
    from covrl.reporting.sinks import read_metrics

    if not (folder / "metrics.jsonl").exists():
        return {}
    warnings: dict[str, int] = {}
    kept = []
    for report in read_metrics(folder / "metrics.jsonl"):
        for warning in report.warnings:
            warnings.setdefault(warning.partition(":")[0], report.step)
        values = {name: round(report.metrics[name], 4) for name in COURSE if name in report.metrics}
        kept.append({"step": report.step} | {name: value for name, value in values.items() if math.isfinite(value)})
    return {"course": kept, "warnings": warnings}


def trained_model(folder: Path) -> Path:
    """The last model of a run, or that of the format control."""
    last = sorted((folder / "checkpoints").glob("step-*"))
    return last[-1] / "model" if last else folder / "model"


def measure(out: Path, model: Path, seed: int, problems: int | None) -> dict[str, Any]:
    """Accuracy on test problems: greedy with a thought and without, and sampled; five steps; lengths; examples.

    On the first ``problems`` of each file, or on all of them where that is None.
    """
    from covrl.assembly import build
    from covrl.config import RunConfig, check, override, read_toml
    from covrl.generation.base import Draw
    from covrl.problems.loading import load_problems

    table = override(read_toml(out / "train.toml"), (f"model.path={model}",))
    table["problems"] = {"train": str(out / "held_out.jsonl")}
    run = build(check(RunConfig, table), evaluation_only=True)
    test, longer = (load_problems(str(out / f"{name}.jsonl"))[:problems] for name in ("test", "longer"))
    assert run.evaluator is not None
    greedy, sampled = (run.evaluator(test, heat, Draw(seed, 0)) for heat in (0.0, 1.0))
    return {
        "problems": len(test),
        "greedy": greedy.accuracy,
        "sampled": sampled.accuracy,
        "without_thought": direct_accuracy(run, test),
        "longer_greedy": run.evaluator(longer, 0.0, Draw(seed, 0)).accuracy,
        "tokens": sum(len(g.rollout.trace_ids) for g in sampled.graded) / len(test),
        "closed": sum(g.rollout.valid for g in sampled.graded) / len(test),
        "marks": marks(greedy),
        "sampled_marks": marks(sampled),
        "examples": [
            {"question": g.problem.question, "reference": g.problem.answer, "said": f"{g.rollout.text} {g.answer}"}
            for g in greedy.graded[:SHOWN]
        ],
    }


def marks(found: Evaluation) -> str:
    """A mark a problem: ``1`` if the answer is right, else ``0``."""
    return "".join("1" if g.verdict == "right" else "0" for g in found.graded)


def direct_accuracy(run: Run, test: Sequence[Problem]) -> float:
    """Greedy accuracy of answers after an empty thought."""
    from covrl.evaluation.accuracy import said_in
    from covrl.generation.base import Draw, Sampling
    from covrl.records import Request, Rollout

    prompts, evaluator = run.prompts, run.evaluator
    assert evaluator is not None
    assert evaluator.grade is not None
    empty = Rollout(Request("", 0, (), "prior"), prompts.close_ids, (), "closed", "sampled", prompts.config.close)
    asked = [Request(p.id, 0, prompts.answer_prompt(p, empty), "prior") for p in test]
    replies = evaluator.generator.generate(
        asked, Sampling(evaluator.max_answer_tokens, prompts.config.answer_suffix, 0.0), Draw(0, 0, "direct")
    )
    verdicts = evaluator.grade([(p, said_in(reply, prompts)) for p, reply in zip(test, replies, strict=True)])
    return sum(verdict == "right" for verdict in verdicts) / len(test)


def print_table(title: str, found: Mapping[str, Any]) -> None:
    """One model's figures as a person reads them."""
    print(f"\n{title}: {found['problems']} test problems of four steps")
    rows = {"greedy": "greedy, with a thought", "sampled": "sampled, with a thought"}
    rows |= {"without_thought": "greedy, without a thought", "longer_greedy": "five steps, greedy"}
    for key, words in rows.items():
        print(f"  {words:28} {found[key]:6.1%}")
    print(f"  {'tokens of a thought':28} {found['tokens']:6.1f}   closed {found['closed']:.0%}")


def covrl_python(*words: str, cwd: Path | None = None, spent: Path | None = None) -> float:
    """This interpreter with ``words``; ends this program where that one fails.

    Returns its CPU seconds, and with ``spent`` those of earlier tries too, which that file adds up.
    """
    before = children_seconds()
    try:
        done = subprocess.run([sys.executable, *words], cwd=cwd, check=False)
    finally:
        seconds = children_seconds() - before
        if spent is not None:
            seconds = round(seconds + seconds_in(spent), 2)
            write_json(spent, {"cpu_s": seconds})
    if done.returncode:
        sys.exit(done.returncode)
    return seconds


def children_seconds() -> float:
    """CPU seconds of all processes that this one started and that have ended."""
    now = os.times()
    return now.children_user + now.children_system


def seconds_in(file: Path) -> float:
    """The seconds that were added up; 0 where there are none."""
    return float(json.loads(file.read_text(encoding="utf-8"))["cpu_s"]) if file.exists() else 0.0


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def machine() -> str:
    """The machine in words."""
    import torch

    sys.path.append(str(HERE.parent))
    from reading import processor

    threads = torch.get_num_threads()
    kind = torch.backends.cpu.get_cpu_capability()
    return f"{processor()}, {threads} thread{'s' * (threads > 1)}, {kind}, {dtype()}"


if __name__ == "__main__":
    sys.exit(main())
