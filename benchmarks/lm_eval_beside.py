"""The same problems, the same model: lm-evaluation-harness and ``covrl eval`` side by side, down to single problems.

    python benchmarks/lm_eval_beside.py MODEL --gsm8k test.jsonl --lm-eval ENV/bin/python [--out runs/outside]
    python benchmarks/lm_eval_beside.py --table

``ENV`` is an environment of its own with ``lm-eval[hf]``. MODEL is the folder of a chat model. It is trained for two
steps as a LoRA run on a file of conversations, and merged by ``covrl merge``: what is compared is the merged folder.
Nothing is downloaded. What is in ``--out`` already is not done again. The page is written from
``docs/results/lm-eval.jsonl``, which has neither questions nor solutions of the data set.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outside import page
from outside.rows import write

from covrl.config import PromptConfig
from covrl.models.model import load_tokenizer
from covrl.problems.loading import Fields, load_problems
from covrl.prompts import Prompts

HERE = Path(__file__).resolve().parent / "outside"
OURS = HERE / "ours.toml"
SUMS = [(2, 3), (14, 5), (8, 9), (31, 6), (7, 7), (25, 12)]

TRAINED = (
    "algorithm.name=grpo",
    "lora.rank=8",
    "problems.id_field=",
    "training.steps=2",
    "training.problems_per_step=2",
    "training.rollouts_per_problem=4",
    "generation.max_trace_tokens=32",
    "generation.max_answer_tokens=8",
    "rewards.verifier=numeric",
    "checkpoint.every=2",
)
"""Settings of the run that is merged. Two steps teach nothing; its adapter is one all the same."""

HARNESS = {
    "harness": ("covrl_gsm8k", "float32"),
    "harness, bfloat16": ("covrl_gsm8k", "bfloat16"),
    "harness, its own words": ("covrl_gsm8k_own_words", "float32"),
}
"""Arms of lm-evaluation-harness: task and dtype."""

BATCH = "50"

COVRL = {
    "covrl": ("--config", str(OURS)),
    "covrl, default prompts": (
        *("--set", "evaluation.verifier=numeric"),
        *("--set", "problems.id_field=id"),
        *("--set", "generation.max_trace_tokens=184"),
        *("--set", "generation.max_answer_tokens=16"),
    ),
}
"""Arms of ``covrl eval``: further options."""


def conversations(file: Path) -> None:
    """A file to train on, as TRL writes one: a system message, the user's, and the assistant's with the answer."""
    system = {"role": "system", "content": tomllib.loads(OURS.read_text())["prompts"]["system"]}
    rows = [
        {
            "messages": [
                system,
                {"role": "user", "content": f"What is {a} plus {b}?"},
                {"role": "assistant", "content": str(a + b)},
            ]
        }
        for a, b in SUMS
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def merged(model: Path, out: Path) -> Path:
    """The folder ``out/merged``: the model with the adapter of a short LoRA run added to its weights."""
    if (out / "merged" / "config.json").is_file():
        return out / "merged"
    conversations(out / "chat.jsonl")
    given = ("train", "--config", str(OURS), "--out", "lora")
    covrl(*given, *sets(f"model.path={model}", "problems.train=chat.jsonl", *TRAINED), cwd=out)
    covrl("merge", "lora", "--out", "merged", cwd=out)
    return out / "merged"


def sets(*settings: str) -> list[str]:
    """Options of the command line for settings."""
    return [word for setting in settings for word in ("--set", setting)]


def covrl(*words: str, cwd: Path) -> None:
    """Run a command of this project."""
    subprocess.run([sys.executable, "-m", "covrl", *words], cwd=cwd, check=True)


def ours(arm: str, limit: int, out: Path) -> list[dict[str, Any]]:
    """The greedy sample of each problem as ``covrl eval`` records it."""
    folder = out / page.file_name(arm)
    if not list(folder.glob("results.json")):
        words = ("eval", "--model", "merged", "--problems", "gsm8k.jsonl", "-n", "0", "--out", folder.name)
        covrl(*words, "--limit", str(limit), *COVRL[arm], cwd=out)
    (file,) = folder.glob("samples/*/*.jsonl")
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[1:]]
    return [{"id": record["problem"], **record["greedy"]} for record in records]


def command(arm: str, model: str, include: str, limit: int, out: str) -> list[str]:
    """The harness' command line for an arm, after its Python."""
    task, dtype = HARNESS[arm]
    words = ["-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={model},dtype={dtype}", "--device", "cpu"]
    words += ["--tasks", task, "--include_path", include, "--limit", str(limit), "--batch_size", BATCH]
    if arm != "harness, its own words":
        system = tomllib.loads(OURS.read_text())["prompts"]["system"]
        words += ["--apply_chat_template", "--system_instruction", system]
    return [*words, "--log_samples", "--output_path", out]


def theirs(arm: str, python: Path, limit: int, out: Path) -> list[dict[str, Any]]:
    """Each problem's text and what each of the harness' filters reads in it."""
    folder = out / page.file_name(arm)
    if not list(folder.rglob("samples_*.jsonl")):
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": str(out / "cache")}
        words = command(arm, "merged", str(HERE), limit, folder.name)
        subprocess.run([str(python), *words], cwd=out, env=os.environ | offline, check=True)
    (file,) = folder.rglob("samples_*.jsonl")
    found: dict[int, dict[str, Any]] = {}
    for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        text, context = line["resps"][0][0], line["arguments"]["gen_args_0"]["arg_0"]
        own = found.setdefault(line["doc_id"], {"id": line["doc"]["id"], "text": text, "context": context})
        own[line["filter"]] = line["filtered_resps"][0]
        own[f"{line['filter']} right"] = bool(line["exact_match"])
    return [found[number] for number in sorted(found)]


def equal_prompts(records: Sequence[dict[str, Any]], out: Path) -> int:
    """Of how many problems the harness' context has the ids of covrl's prompt."""
    tokenizer = load_tokenizer(str(out / "merged"))
    prompts = Prompts(tokenizer, PromptConfig(**tomllib.loads(OURS.read_text())["prompts"]))
    mine = {p.id: list(prompts.prior(p)) for p in load_problems(str(out / "gsm8k.jsonl"), Fields(id="id"))}
    return sum(tokenizer(r["context"], add_special_tokens=False)["input_ids"] == mine[r["id"]] for r in records)


def versions(python: Path) -> dict[str, str]:
    """Versions of what ran, on both sides."""
    ask = "import json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in %s}))"
    there = subprocess.run(
        [str(python), "-c", ask % ["lm_eval", "transformers", "torch"]], capture_output=True, text=True, check=True
    )
    here = subprocess.run(
        [sys.executable, "-c", ask % ["transformers", "torch"]], capture_output=True, text=True, check=True
    )
    return json.loads(there.stdout) | {f"our {name}": value for name, value in json.loads(here.stdout).items()}


def compare(
    model: Path, data: Path, python: Path, out: Path, limit: int, arms: Sequence[str] = (*COVRL, *HARNESS)
) -> list[dict[str, Any]]:
    """The arms on the same problems, ``covrl`` and ``harness`` among them; the lines of the record."""
    out.mkdir(parents=True, exist_ok=True)
    count = write(data, out / "gsm8k.jsonl", limit)
    merged(model.resolve(), out)
    head = {
        "problems": count,
        "model": model.name,
        "machine": platform.machine(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "versions": versions(python),
        "command": command("harness", "merged", "benchmarks/outside", limit, "harness"),
    }
    own = {arm: ours(arm, limit, out) for arm in COVRL if arm in arms}
    other = {arm: theirs(arm, python, limit, out) for arm in HARNESS if arm in arms}
    head["equal prompts"] = equal_prompts(other["harness"], out)
    return [head, *page.lines(own, other)]


def main(words: Sequence[str] | None = None) -> int:
    """Run what is asked for, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="the folder of a chat model")
    parser.add_argument("--gsm8k", type=Path, help="the data set's test.jsonl")
    parser.add_argument("--lm-eval", type=Path, help="the Python of an environment with lm-eval[hf]")
    parser.add_argument("--out", type=Path, default=Path("runs/outside"))
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--arms", default="/".join((*COVRL, *HARNESS)), help="with slashes between them")
    parser.add_argument("--table", action="store_true", help="write the page of what is recorded, and run nothing")
    given = parser.parse_args(words)
    if not given.table:
        if not (given.model and given.gsm8k and given.lm_eval):
            parser.error("a model, --gsm8k and --lm-eval are needed, or --table")
        places = (given.model, given.gsm8k, given.lm_eval.absolute(), given.out.resolve())
        record = compare(*places, given.limit, given.arms.split("/"))
        page.LINES.write_text("".join(json.dumps(line) + "\n" for line in record), encoding="utf-8")
    page.write_page()
    return 0


if __name__ == "__main__":
    sys.exit(main())
