"""The trial in which answers stopped to read their traces, made ready: ``python benchmarks/real/trial.py``.

    python benchmarks/real/trial.py --gsm8k FILE --svamp FILE [--out runs/trial] [--model FOLDER]
    python benchmarks/reading.py --config runs/trial/trial.toml --name trial --steps 16 --seeds 0,1,2

``--gsm8k`` and ``--svamp`` are the training files of both sets (MIT), as JSON lines with ``question`` and ``answer``.
SmolLM2-135M-Instruct is taught the form of a trace from GSM8K's short solutions. It is then trained, by the second
command, on SVAMP's problems with small numbers, with their answers alone. What is there already is not done again.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from run import HERE, covrl_python, dtype, fetch

LESSONS, LESSON_RATE = 60, "2e-5"
LESSON_SETTINGS = (
    "generation.max_trace_tokens=120",
    "training.problems_per_step=16",
    "training.rollouts_per_problem=2",
)
CLOSED = "0.3"
"""The share of sampled traces that have to end with the closing words after the lessons."""

SHORT = 220
"""Characters of the longest solution that is taught, and of the longest question that is trained on."""

LARGEST, LARGEST_ANSWER = 20, 40
HELD_OUT = 80

Row = Mapping[str, str]


def main() -> int:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gsm8k", type=Path, required=True, help="problems with worked solutions, which end in #### N")
    parser.add_argument("--svamp", type=Path, required=True, help="problems with answers")
    parser.add_argument("--out", type=Path, default=Path("runs/trial"))
    parser.add_argument("--model", type=Path, help="a folder with the model, in the place of the download")
    given = parser.parse_args()
    out: Path = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    write(out / "format.jsonl", taught(rows_of(given.gsm8k)))
    small = small_numbers(rows_of(given.svamp))
    write(out / "train.jsonl", small[:-HELD_OUT])
    write(out / "held_out.jsonl", small[-HELD_OUT:])
    settings = (HERE / "trial.toml").read_text(encoding="utf-8").replace('dtype = "float32"', f'dtype = "{dtype()}"')
    for name in ("warm", "train.jsonl", "held_out.jsonl"):  # so that the file can be named from anywhere
        settings = settings.replace(f'= "{name}"', f"= {json.dumps(str(out / name))}")
    (out / "trial.toml").write_text(settings, encoding="utf-8")
    fetch(out, given.model)
    teach(out)
    print(f"python benchmarks/reading.py --config {given.out / 'trial.toml'} --name trial --steps 16")
    return 0


def rows_of(file: Path) -> Iterator[Row]:
    """The problems of a file of JSON lines; ends this program where there is none."""
    if not file.is_file():
        sys.exit(f"{file}: no such file; expected JSON lines with question and answer")
    return (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())


def taught(rows: Iterable[Row]) -> list[Row]:
    """GSM8K's problems with short solutions, without the marks of its calculator."""
    found = []
    for i, row in enumerate(rows):
        solution, _, answer = row["answer"].partition("####")
        solution = re.sub(r"<<.*?>>", "", solution).strip()
        if len(solution) < SHORT:
            number = answer.strip().replace(",", "")
            found.append({"id": f"g{i}", "question": row["question"], "answer": number, "solution": f"{solution}\n"})
    return found


def small_numbers(rows: Iterable[Row]) -> list[Row]:
    """Problems whose numbers are small, in an order of their own."""
    found = [row for row in rows if is_small(row)]
    random.Random(1).shuffle(found)
    return found


def is_small(row: Row) -> bool:
    """Whether the question is short, and neither its numbers nor the answer are large."""
    numbers = [float(number) for number in re.findall(r"\d+\.?\d*", row["question"])]
    fits = 0 <= float(row["answer"]) <= LARGEST_ANSWER and len(row["question"]) < SHORT
    return bool(numbers) and max(numbers) <= LARGEST and fits


def teach(out: Path) -> None:
    """The taught model in ``out/warm``, with the words of the training that follows."""
    if (out / "warm/model.safetensors").exists():
        return
    words = ["warm-format", "--config", "trial.toml", "--out", "warm", "--steps", str(LESSONS), "--every", str(LESSONS)]
    words += ["--until", CLOSED, "--learning-rate", LESSON_RATE]
    for setting in (*LESSON_SETTINGS, f"model.path={out / 'model'}", f"problems.train={out / 'format.jsonl'}"):
        words += ["--set", setting]
    covrl_python("-m", "covrl", *words, "--set", "problems.solution_field=solution", cwd=out)


def write(file: Path, rows: Iterable[Row]) -> None:
    """Problems as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
