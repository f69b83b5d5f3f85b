"""Benchmarks by name, each with its protocol as data.

The source of each number is stated beside it. n is that of the published CoVRL evaluation if it has the benchmark
(CONFIRMED-2nd, spec section 7); temperatures and token limits were not published and are INFERRED (temperature 1
and 2,048 tokens are CoVRL's sampling in training). Field names of the sets that no test here has read
(``exercised=False``) are from their public descriptions; a wrong one is an error that lists the row's fields.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from covrl.errors import UserError
from covrl.evaluation.choices import Options, load_choices
from covrl.problems.loading import SUFFIXES, Fields, load_problems
from covrl.records import Problem

BOXED_OR_WHOLE = ("boxed", "none")
CHOICE_USER = (
    "{question}\n\nReason inside <think></think>, then give the letter of the right option inside <answer></answer>.\n"
)


@dataclass(frozen=True, slots=True)
class Protocol:
    """How one benchmark is run.

    ``source`` is a Hugging Face data set (``hf:owner/name[/config]:split``), empty where none is known to hold it;
    ``file`` is where a folder of local data has it. ``extraction`` are the extractors that are tried, in order, on
    what stands between the answer tags, ``prompts`` settings of ``[prompts]`` that replace the package's defaults
    (never a model's own). ``top_p`` is that of traces and answers; training has none
    (:class:`covrl.generation.base.Sampling`).
    """

    name: str
    source: str
    file: str
    fields: Fields | Options
    samples: int
    temperature: float = 1.0
    top_p: float = 1.0
    trace_tokens: int = 2048
    answer_tokens: int = 64
    extraction: tuple[str, ...] = BOXED_OR_WHOLE
    verifier: str = "math"
    prompts: Mapping[str, str] = field(default_factory=lambda: MATH_PROMPTS)
    exercised: bool = False
    note: str = ""

    @property
    def split(self) -> str:
        """The split of the data set; empty without one."""
        return self.source.rpartition(":")[2]

    @property
    def metric(self) -> str:
        """The figure that the benchmark is quoted with."""
        return f"avg@{self.samples}"

    def notes(self) -> list[str]:
        """What a reader of the results must know."""
        said = [f"{self.name}: {self.note}"] if self.note else []
        if not self.exercised:
            said.append(f"{self.name}: no test of this package has read this set; its field names are unproved")
        return said

    def record(self) -> dict[str, Any]:
        """Everything as plain data, for the results file."""
        return asdict(self) | {"split": self.split, "metric": self.metric}


@dataclass(frozen=True, slots=True)
class Suite:
    """Benchmarks whose figures are averaged, one vote each."""

    name: str
    members: tuple[str, ...]
    note: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """A benchmark's problems, where they came from, and the accuracy of guessing (None: not known)."""

    problems: tuple[Problem, ...]
    source: str
    chance: float | None = None


MATH_PROMPTS = {
    "system": "",
    "user": "{question}\n\nReason inside <think></think>, then give the short final answer inside <answer></answer>.\n",
    "prior_open": "<think>\n",
}
"""Prompts for mathematics: the package's defaults, written out so that a changed default changes no protocol."""

_CHOICE: dict[str, Any] = {
    "verifier": "choice", "extraction": ("boxed", "answer_is", "none"), "prompts": MATH_PROMPTS | {"user": CHOICE_USER},
    "answer_tokens": 32,
}  # fmt: skip

PROTOCOLS: Mapping[str, Protocol] = {
    p.name: p
    for p in (
        Protocol(
            "GSM8K", "hf:openai/gsm8k/main:test", "gsm8k/test.jsonl", Fields(extract="hash"), 1,
            trace_tokens=1024, exercised=True,
        ),
        Protocol(
            "MATH-500", "hf:HuggingFaceH4/MATH-500:test", "math500/test.jsonl", Fields("problem", "answer"), 4,
            exercised=True,
        ),
        Protocol(
            "AIME24", "hf:HuggingFaceH4/aime_2024:train", "aime24/test.jsonl", Fields("problem", "answer"), 32,
            exercised=True,
        ),
        Protocol(
            "AIME25", "hf:math-ai/aime25:test", "aime25/test.jsonl", Fields("problem", "answer"), 32,
        ),
        Protocol(
            "AMC23", "hf:math-ai/amc23:test", "amc23/test.jsonl", Fields("question", "answer"), 32, exercised=True,
        ),
        Protocol(
            "Minerva", "hf:math-ai/minervamath:test", "minerva/test.jsonl", Fields("question", "answer"), 4,
        ),
        Protocol(
            "OlympiadBench", "hf:Hothan/OlympiadBench/OE_TO_maths_en_COMP:train", "olympiadbench/test.jsonl",
            Fields("question", "final_answer", every=True), 1,
            note="open-ended English competition mathematics without pictures",
        ),
        Protocol(
            "GPQA-Diamond", "hf:Idavidrein/gpqa/gpqa_diamond:train", "gpqa_diamond/test.jsonl",
            Options("Question", "Correct Answer", wrong=tuple(f"Incorrect Answer {i}" for i in (1, 2, 3))), 4,
            **_CHOICE,
        ),
        Protocol(
            "MMLU-Pro", "hf:TIGER-Lab/MMLU-Pro:test", "mmlu_pro/test.jsonl",
            Options("question", "answer_index", listed="options"), 1, **_CHOICE,
        ),
        Protocol(
            "TheoremQA", "hf:TIGER-Lab/TheoremQA:test", "theoremqa/test.jsonl",
            Fields("Question", "Answer", truth=True), 2, note="questions with a picture are asked without it",
        ),
        Protocol(
            "SAT-Math", "", "sat_math/test.jsonl", Options("question", "Answer", listed="options"), 32, **_CHOICE,
        ),
        Protocol("CARP-EN", "", "carp_en/test.jsonl", Fields("content", "answer"), 2),
    )
}  # fmt: skip
"""The names that ``--benchmark`` takes."""

COVRL_OVERALL = Suite(
    "CoVRL-overall",
    ("GPQA-Diamond", "MMLU-Pro", "TheoremQA", "AIME24", "MATH-500", "Minerva", "SAT-Math", "CARP-EN"),
    "the mean of eight benchmarks; the published overall has a ninth that is not known, so the two do not compare",
)

SUITES: Mapping[str, Suite] = {s.name: s for s in (COVRL_OVERALL,)}
"""Sets of benchmarks by name."""


def find_benchmarks(names: Iterable[str]) -> tuple[list[Protocol], list[Suite]]:
    """The protocols of these names, suites spelled out, each once; and the suites among the names.

    Raises:
        UserError: an unknown name; the message has the nearest known one.
    """
    known = {name.casefold(): name for name in (*PROTOCOLS, *SUITES)}
    protocols: dict[str, Protocol] = {}
    suites: list[Suite] = []
    for given in names:
        name = known.get(given.casefold())
        if name is None:
            near = difflib.get_close_matches(given.casefold(), known, n=1, cutoff=0.5)
            hint = f"did you mean {known[near[0]]}?" if near else f"known: {', '.join(known.values())}"
            raise UserError(f"--benchmark: unknown benchmark {given!r}: {hint}")
        if name in SUITES:
            suites.append(SUITES[name])
        members = SUITES[name].members if name in SUITES else (name,)
        protocols |= {member: PROTOCOLS[member] for member in members}
    return list(protocols.values()), suites


def data_places(given: Sequence[str]) -> dict[str, str]:
    """``--data``: ``NAME=FILE`` for one benchmark, a folder (key ``""``) for all that it has a file of.

    Raises:
        UserError: no such folder or file, or an unknown benchmark.
    """
    places: dict[str, str] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if equals and not Path(text).exists():
            found, suites = find_benchmarks([name])
            if suites:
                raise UserError(f"--data {text}: {suites[0].name} has many files: give their folder, or NAME=FILE each")
            places[found[0].name] = path
        elif Path(text).is_dir():
            places[""] = text
        else:
            raise UserError(f"--data {text}: expected a folder or NAME=FILE, and there is no such folder")
    return places


def load_benchmark(protocol: Protocol, places: Mapping[str, str], seed: int) -> Loaded:
    """The problems: from the file that was given, else from the folder that was given, else from the hub.

    ``seed`` fixes the order of the options of multiple-choice questions.

    Raises:
        UserError: no source, or it cannot be read.
    """
    source = places.get(protocol.name) or _in_folder(protocol, places.get("")) or protocol.source
    if not source:
        raise UserError(
            f"{protocol.name}: no data set of the hub is known to hold it: give a file with "
            f"--data {protocol.name}=FILE (fields: {', '.join(_names(protocol))})"
        )
    try:
        if isinstance(protocol.fields, Options):
            found = load_choices(source, protocol.fields, seed)
            return Loaded(found.problems, source, found.chance)
        return Loaded(tuple(load_problems(source, protocol.fields)), source)
    except UserError as error:
        raise UserError(f"{protocol.name}: {error}") from None


def _in_folder(protocol: Protocol, folder: str | None) -> str | None:
    """The benchmark's file under the folder: at its own place, or ``NAME.jsonl`` (any suffix that is read)."""
    if folder is None:
        return None
    named = [f"{protocol.name}{suffix}" for suffix in SUFFIXES]
    return next((str(Path(folder) / name) for name in (protocol.file, *named) if (Path(folder) / name).is_file()), None)


def _names(protocol: Protocol) -> Sequence[str]:
    if isinstance(protocol.fields, Fields):
        return protocol.fields.names
    options = protocol.fields
    return [options.question, options.right, *options.wrong, *([options.listed] if options.listed else [])]
