"""Kills tiny runs at seeded moments, resumes them, and compares all they leave with runs that were not killed.

    python benchmarks/kill_sweep.py --kills 60 --out docs/results

Every moment of tests/checkpoints/kill_driver.py takes its turn; which of four runs, which pass of the moment, SIGKILL
or SIGTERM, and whether the resumed process is struck as well, is drawn with the seed. Writes kills.md and kills.jsonl.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "checkpoints")]

from kill_cases import CASES, Driver, contents, difference, write_project  # noqa: E402

SECOND = 0.3
TERMINATED = 0.2


@dataclass(frozen=True, slots=True)
class Strike:
    """One signal that a process got: where, at which pass, and which."""

    point: str
    at: int
    signal: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run that was struck and resumed to its end; ``differs`` names the first thing that is not the same."""

    case: str
    strikes: tuple[Strike, ...]
    differs: str | None


def struck(answer: Mapping[str, Any], number: int) -> bool:
    """Whether the process was reached by its signal."""
    return answer["exit"] == -number if number == signal.SIGKILL else "SIGTERM: stopping" in answer["said"]


def one(
    covrl: Driver, project: Path, case: str, wanted: Sequence[Strike], whole: Mapping[str, Any], run: str
) -> Outcome:
    """A run of a case, struck as wanted, one process after the other, and then resumed to its end."""
    strikes: list[Strike] = []
    for strike in [*wanted, None]:
        begun = (project / run / "config.toml").exists()
        arguments = ("--resume", run) if begun else ("--config", f"{case}.toml", "--out", run)
        number = signal.Signals[strike.signal] if strike else signal.SIGKILL
        point, at = (strike.point, strike.at) if strike else (None, 1)
        answer = covrl(project, "train", *arguments, point=point, at=at, number=number)
        if strike and struck(answer, number):
            strikes.append(strike)
        elif answer["exit"]:
            last = answer["said"].strip().splitlines()[-1:]
            return Outcome(case, tuple(strikes), f"exit code {answer['exit']}: {' '.join(last)}")
    found = contents(project / run)
    terminated = any(strike.signal == "SIGTERM" for strike in strikes)
    if terminated:  # its extra checkpoint leads to others being kept: the last one is compared
        found, whole = newest(found), newest(whole)
    return Outcome(case, tuple(strikes), difference(whole, found))


def newest(found: Mapping[str, Any]) -> dict[str, Any]:
    """The contents with the last checkpoint only."""
    folders = sorted({m[0] for name in found if (m := re.match(r"checkpoints/step-\d+", name))})
    return {k: v for k, v in found.items() if not k.startswith("checkpoints/") or k.startswith(folders[-1])}


def draw(passes: Mapping[str, Mapping[str, int]], kills: int, seed: int) -> list[tuple[str, list[Strike]]]:
    """Which run is struck where: points in turn, everything else by the seed."""
    random_ = random.Random(seed)
    points = sorted({point for counts in passes.values() for point in counts})
    drawn: list[tuple[str, list[Strike]]] = []
    while sum(len(strikes) for _, strikes in drawn) < kills:
        point = points[len(drawn) % len(points)]
        case = random_.choice([name for name in passes if passes[name].get(point)])
        strikes = [_strike(random_, point, passes[case][point])]
        if random_.random() < SECOND:
            other = random_.choice([p for p in points if passes[case].get(p)])
            strikes.append(_strike(random_, other, max(1, passes[case][other] // 2)))
        drawn.append((case, strikes))
    return drawn


def _strike(random_: random.Random, point: str, passes: int) -> Strike:
    name = "SIGTERM" if random_.random() < TERMINATED else "SIGKILL"
    return Strike(point, random_.randint(1, passes), name)


def table(outcomes: Sequence[Outcome], command: str) -> str:
    """The page: totals, and a row a moment."""
    strikes = [(strike, outcome) for outcome in outcomes for strike in outcome.strikes]
    same = sum(outcome.differs is None for outcome in outcomes)
    twice = sum(len(outcome.strikes) > 1 for outcome in outcomes)
    import torch

    lines = [
        "# Kills",
        "",
        f"`{command}` (CPU, one thread, torch {torch.__version__}, {platform.machine()}).",
        "",
        f"{len(strikes)} signals reached {len(outcomes)} runs, {twice} of them twice. **{same} of {len(outcomes)}** "
        "runs ended, after `covrl train --resume`, with the same bytes of every checkpoint file (weights, optimizer, "
        "copies, state), best model, `config.toml` and `traces.jsonl`, and the same lines of `metrics.jsonl` apart "
        "from `time/*` and `system/*`, as a run that nothing happened to. After a SIGTERM, which leaves a checkpoint "
        "of its own, only the last checkpoint is compared.",
        "",
        "| moment | SIGKILL | SIGTERM | runs that ended the same |",
        "|---|---:|---:|---:|",
    ]
    for point in sorted({strike.point for strike, _ in strikes}):
        mine = [(s, o) for s, o in strikes if s.point == point]
        numbers = [sum(s.signal == name for s, _ in mine) for name in ("SIGKILL", "SIGTERM")]
        good = sum(o.differs is None for _, o in mine)
        lines.append(f"| {point} | {numbers[0]} | {numbers[1]} | {good} of {len(mine)} |")
    cases = ", ".join(f"{name} {sum(o.case == name for o in outcomes)}" for name in CASES)
    lines += ["", f"Runs by method: {cases}. What each is made of is in `tests/checkpoints/kill_cases.py`.", ""]
    failed = [o for o in outcomes if o.differs]
    lines += [
        f"- {o.case}, {', '.join(f'{s.signal} {s.point} {s.at}' for s in o.strikes)}: {o.differs}" for o in failed
    ]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Run the sweep; exit code 1 if a run ended differently."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    asked = parser.parse_args()
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as scratch:
        project, covrl = Path(scratch), Driver()
        write_project(project)
        whole, passes = {}, {}
        for case in CASES:
            answer = covrl(project, "train", "--config", f"{case}.toml", "--out", f"whole-{case}")
            assert answer["exit"] == 0, answer["said"]
            whole[case], passes[case] = contents(project / f"whole-{case}"), answer["passes"]
        drawn = draw(passes, asked.kills, asked.seed)
        for index, (case, strikes) in enumerate(drawn):
            outcome = one(covrl, project, case, strikes, whole[case], f"run-{index}")
            outcomes.append(outcome)
            print(f"{index + 1}/{len(drawn)} {outcome}", flush=True)
            if outcome.differs is None:
                shutil.rmtree(project / f"run-{index}")
        covrl.close()
    asked.out.mkdir(parents=True, exist_ok=True)
    command = f"python benchmarks/kill_sweep.py --kills {asked.kills} --seed {asked.seed}"
    (asked.out / "kills.md").write_text(table(outcomes, command), encoding="utf-8")
    (asked.out / "kills.jsonl").write_text("".join(json.dumps(asdict(o)) + "\n" for o in outcomes), encoding="utf-8")
    sys.exit(any(outcome.differs for outcome in outcomes))


if __name__ == "__main__":
    main()
