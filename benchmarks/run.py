"""How fast we are: ``python benchmarks/run.py [--part NAME] [--workload NAME] [--threads 1 2] [--json] [--save]``.

    step         a GRPO step against TRL's at its best settings, on each workload, with the floor of matrix products
    generation   useful tokens a CPU second against transformers' generate, responses of different lengths
    refill       the same against waves of our own, where more prompts wait than are decoded side by side
    covrl        CoVRL's training part over GRPO's
    memory       what a step takes over model, gradients and optimizer at a wide vocabulary, against TRL's
    dash         DASH against its micro-batched baseline, and what its filter saves
    passes       from which size of a pass on training and sampling are within 5 % of the fastest
    growth       a step's time as problems, rollouts and prompts grow
    first-step   covrl quickstart until its first step is shown
    device       tokens a second, time by phase and MFU at 0.5 B and 1.5 B on an accelerator

Without a part all but the last are run, which takes hours; ``--repeats 1`` is a quick look. Both sides have the same
weights, prompts, number of new tokens and optimizer, and every measurement is a process of its own. TRL has to be
installed in the environment of ``--peer-python``: pip install trl datasets. The workload REAL (of the parts step and
covrl, in wall seconds of two threads) wants a pretrained model: ``--model`` or COVRL_REAL_MODEL. ``--save``
writes the figures to docs/results/speed, and ``--tables`` makes docs/results/speed.md from what is there without
measuring.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from speed import covrl_share, dash, device, first_step, generation, growth, memory, passes, refill, step, tables
from speed.processes import Bench, WorkerError, commit, machine, split_prefix
from speed.workloads import STEP_WORKLOADS, WORKLOADS

SAVED = Path(__file__).parent.parent / "docs" / "results" / "speed"
PARTS: dict[str, Any] = {
    "step": step,
    "generation": generation,
    "refill": refill,
    "covrl": covrl_share,
    "memory": memory,
    "dash": dash,
    "passes": passes,
    "growth": growth,
    "first-step": first_step,
    "device": device,
}
AT_EACH_NUMBER_OF_THREADS = ("step", "generation")
WITH_PEER = ("step", "memory")


def main() -> int:
    """Measure what is asked for; 1 where something could not be run, 2 where it cannot be begun."""
    asked = options().parse_args()
    if asked.tables:
        print(*tables.write(SAVED), sep="\n")
        return 0
    if wrong := what_is_wrong(asked):
        print(wrong, file=sys.stderr)
        return 2
    failed = False
    for name, threads, measure, text in chosen(asked):
        bench = Bench(
            models=asked.models,
            peer_python=asked.peer_python,
            threads=threads,
            repeats=asked.repeats,
            prefix=split_prefix(asked.prefix),
            real=asked.model,
            search=asked.search,
            log=sys.stderr if asked.verbose else None,
        )
        try:
            found = measure(bench)
        except WorkerError as error:
            print(f"{name}, {threads} thread(s): {error}", file=sys.stderr)
            failed = True
            continue
        failed = failed or bool(found.get("failed"))
        about = {"name": name, "threads": threads, "repeats": asked.repeats, "commit": commit()}
        record = {**about, "machine": machine(), "peer_versions": bench.peer_versions, **found}
        lines = [f"{name}, {threads} thread(s), {asked.repeats} repeat(s): median (least to most)", *text(found)]
        print(json.dumps(record) if asked.json else "\n  ".join(lines), flush=True)
        if asked.save:
            save(record, found)
    return int(failed)


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS), action="append", help="may be repeated; default: all but device")
    parser.add_argument(
        "--workload",
        choices=sorted({*STEP_WORKLOADS, *covrl_share.ASKED}),
        action="append",
        help="of the parts step (default: all but REAL) and covrl (M-close or REAL; default: M-close)",
    )
    given = os.environ.get("COVRL_REAL_MODEL")
    parser.add_argument(
        "--model", type=Path, default=Path(given) if given else None, help="folder of the model of the workload REAL"
    )
    parser.add_argument("--search", action="store_true", help="search the settings of REAL too")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each side")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="for the parts step and generation")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter of the environment that has TRL")
    parser.add_argument("--models", type=Path, default=Path.home() / ".cache" / "covrl-speed", help="where models go")
    parser.add_argument("--prefix", default="", help="command put before every measuring one, such as 'taskset -c 0'")
    parser.add_argument("--json", action="store_true", help="a JSON line for each measurement instead of text")
    parser.add_argument("--save", action="store_true", help="write the figures to docs/results/speed")
    parser.add_argument("--tables", action="store_true", help="only write docs/results/speed.md from saved figures")
    parser.add_argument("--verbose", action="store_true", help="say on standard error what is being run")
    return parser


def parts_of(asked: argparse.Namespace) -> list[str]:
    """The parts that are asked for."""
    return asked.part or (["step"] if asked.workload else [part for part in PARTS if part != "device"])


def what_is_wrong(asked: argparse.Namespace) -> str | None:
    """Why nothing can be measured, before the minutes that it would take to find out."""
    if asked.repeats < 1 or min(asked.threads) < 1:
        return "--repeats and --threads: at least 1"
    peer = Bench(models=asked.models, peer_python=asked.peer_python)
    needing = [part for part in parts_of(asked) if part in WITH_PEER]
    if needing and not peer.peer_versions:
        return f"--peer-python {asked.peer_python}: cannot be run or has no TRL, needed for {' and '.join(needing)}"
    if wrong := next((part for part, names in workloads_of(asked).items() if not names), None):
        return f"--workload {' '.join(asked.workload)}: none of them is of the part {wrong}"
    wants_real = any("REAL" in names for names in workloads_of(asked).values())
    if wants_real and not (asked.model and (asked.model / "config.json").is_file()):
        return f"--workload REAL: {asked.model or 'no --model'} is no model's folder: {REMEDY}"
    return None


REMEDY = (
    "download HuggingFaceTB/SmolLM2-135M-Instruct from the hub, or make it from a .gguf file with "
    "`python benchmarks/real_model.py FOLDER [FILE.gguf]`, and give its folder with --model or COVRL_REAL_MODEL"
)


def workloads_of(asked: argparse.Namespace) -> dict[str, list[str]]:
    """The workloads of each part that has several."""
    known = {"step": [*STEP_WORKLOADS, "REAL"], "covrl": list(covrl_share.ASKED)}
    usual = {"step": list(STEP_WORKLOADS), "covrl": ["M-close"]}
    return {
        part: [name for name in known[part] if name in asked.workload] if asked.workload else usual[part]
        for part in parts_of(asked)
        if part in known
    }


Measure = Callable[[Bench], dict[str, Any]]


def chosen(asked: argparse.Namespace) -> Iterator[tuple[str, int, Measure, Callable[[dict[str, Any]], list[str]]]]:
    """Name, threads, measurement and text of everything that is asked for."""
    searches: dict[str, Any] = {}
    several = workloads_of(asked)
    for part in parts_of(asked):
        module = PARTS[part]
        fixed = [os.cpu_count() or 1] if part == "first-step" else [1]  # the quickstart has the threads of a user
        if part not in several:
            for threads in asked.threads if part in AT_EACH_NUMBER_OF_THREADS else fixed:
                yield part, threads, module.measure, module.text
            continue
        for name in several[part]:
            own = WORKLOADS[name].threads
            counts = [own] if own else asked.threads if part in AT_EACH_NUMBER_OF_THREADS else fixed
            how = partial(measure_step, name, searches) if part == "step" else partial(module.measure, name=name)
            for threads in counts:
                yield part if name == "M-close" else f"{part} {name}", threads, how, module.text


def measure_step(name: str, searches: dict[str, Any], bench: Bench) -> dict[str, Any]:
    """The figures of one workload; its settings are searched at the first number of threads only."""
    if name not in searches:
        searches[name] = step.find_settings(bench, WORKLOADS[name])
    return step.measure(bench, WORKLOADS[name], searches[name])


def save(record: dict[str, Any], found: dict[str, Any]) -> None:
    """Write a measurement's figures, and its plot where it has one."""
    SAVED.mkdir(parents=True, exist_ok=True)
    several = record["name"].split()[0] in AT_EACH_NUMBER_OF_THREADS
    name = record["name"].replace(" ", "-") + (f"-{record['threads']}-threads" if several else "")
    (SAVED / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    if record["name"] == "growth":
        (SAVED / "growth.svg").write_text(growth.plot(found))


if __name__ == "__main__":
    sys.exit(main())
