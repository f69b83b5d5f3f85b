"""`covrl eval` for several models and benchmarks: everything is checked first, then each model is loaded once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from covrl.cli.eval_config import differences, exam_for, sampling_of, settings_of
from covrl.config import PromptConfig, RunConfig
from covrl.distributed.processes import join_world
from covrl.distributed.world import World
from covrl.errors import UserError
from covrl.evaluation.accuracy import Evaluator
from covrl.evaluation.benchmarks import Protocol, Suite, data_places, find_benchmarks, load_benchmark
from covrl.evaluation.choices import Options
from covrl.evaluation.exam import Exam, Solved, check_room, row_needed, sit
from covrl.evaluation.metrics import check_ks, figures, overall, supports, unknown_note
from covrl.evaluation.store import Fingerprints, Store, open_store, slug
from covrl.files import alone_in, made
from covrl.generation.engines import make_generator, rows_of
from covrl.generation.outside import OutsideGenerator
from covrl.generation.proof import prove
from covrl.models.model import load_model, resolve_dtype, without_weights
from covrl.models.text import context_length
from covrl.problems.loading import load_problems
from covrl.problems.tasks import task_of
from covrl.prompt_checks import check_rows, check_tokens
from covrl.prompts import Prompts, dated
from covrl.rewards.code_tests import isolation_notes

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Order:
    """The options of an evaluation; None means the benchmark's protocol or the first model's settings.

    ``problems`` are sources as ``covrl train`` takes them, ``benchmarks`` names, ``data`` where their files are.
    Each model has its own prompts and, for ``problems``, its own temperature and token limits; the fields, the grader
    and the seed are the same for all (:mod:`covrl.cli.eval_config`).
    """

    models: Sequence[str]
    problems: Sequence[str] = ()
    benchmarks: Sequence[str] = ()
    data: Sequence[str] = ()
    n: int | None = None
    ks: Sequence[int] = ()
    limit: int | None = None
    temperature: float | None = None
    answer_temperature: float | None = None
    max_tokens: int | None = None
    config: Path | None = None
    settings: Sequence[str] = ()

    @property
    def single(self) -> bool:
        """Whether there is one model and one set of problems, so that its figures and traces can stand alone."""
        return len(self.models) == len(self.problems) == 1 and not self.benchmarks


@dataclass(frozen=True, slots=True)
class Outcome:
    """All results, as :mod:`covrl.cli.eval_results` shows them, and the records that they come from."""

    record: dict[str, Any]
    solved: dict[tuple[str, str], list[Solved]]
    """(exam, model) -> records."""


@dataclass(slots=True)
class _Candidate:
    """A model that is to be examined, before its weights are loaded."""

    name: str
    config: RunConfig
    tokenizer: Any
    context: int | None
    weights: str
    exams: dict[str, Exam]
    stores: dict[str, Store] = field(default_factory=dict)

    def prompts(self, exam: Exam) -> Prompts:
        """The model's own prompts; the benchmark sets those that have the package's default."""
        default, own = PromptConfig(), self.config.prompts
        changed = {k: v for k, v in exam.prompts.items() if getattr(own, k) == getattr(default, k)}
        return Prompts(self.tokenizer, own.model_copy(update=changed))


def evaluate_several(order: Order, out: Path, say: Say = lambda _: None) -> Outcome | None:
    """Examine every model with every set of problems; finished problems in ``out`` are not sampled again.

    Writes ``out/samples/EXAM/MODEL.jsonl`` while it goes. Of several processes all call it: each samples and grades a
    share of the problems, the first writes, and the others get None.

    Raises:
        UserError: any input that cannot be used; all is checked before the first trace.
    """
    if not order.models:
        raise UserError("--model is missing: name at least one model")
    if len(set(order.models)) < len(order.models):
        raise UserError("--model: the same model is named twice")
    if not order.problems and not order.benchmarks:
        raise UserError("nothing to evaluate on: give --problems or --benchmark")
    configs, notes = settings_of(order.models, order.problems, order.config, order.settings)
    exams, suites = _exams(order, next(iter(configs.values())))
    for exam in exams:
        exam.grader()  # one that cannot work here is refused before anything is sampled
    notes += isolation_notes(*(exam.verifier for exam in exams))
    ks = {exam.name: check_ks(order.ks, exam.samples, exam.name) for exam in exams}
    prints = Fingerprints(out / "fingerprints.json")
    today = date.today()
    candidates = [_candidate(name, config, exams, order, prints, today) for name, config in configs.items()]
    for c in candidates:
        said = [note for exam in c.exams.values() for note in c.prompts(exam).notes]
        notes += [f"{c.name}: {note}" for note in dict.fromkeys(said)]
    for exam in exams:
        notes += exam.notes
        notes += differences(exam.name, sampling_of({c.name: c.exams[exam.name] for c in candidates}))
    seed = candidates[0].config.training.seed
    world = join_world(candidates[0].config.model.device)
    with ExitStack() as held:
        world.on_rank0(lambda: _open(candidates, exams, seed, out, prints, held))
        say(f"finished problems go to {out / 'samples'}; the same command with --out {out} goes on where it was left")
        for note in notes:
            say(note)
        for candidate in candidates:
            _examine(candidate, exams, seed, say, world)
    world.close()
    if not world.first:
        return None
    solved = {
        (exam.name, c.name): [c.stores[exam.name].solved[p.id] for p in exam.problems]
        for exam in exams
        for c in candidates
    }
    record = _record(exams, suites, candidates, solved, ks, seed, notes)
    for note in record["notes"][len(notes) :]:
        say(note)
    return Outcome(record, solved)


def _open(
    candidates: Sequence[_Candidate], exams: Sequence[Exam], seed: int, out: Path, prints: Fingerprints, held: ExitStack
) -> None:
    """The folder ``out`` for this evaluation alone, while ``held`` is, and the records that are there."""
    held.enter_context(alone_in(made(out), "an evaluation"))
    prints.save()
    for candidate in candidates:
        for exam in exams:
            path = out / "samples" / slug(exam.name) / f"{slug(candidate.name)}.jsonl"
            candidate.stores[exam.name] = open_store(path, _header(candidate, candidate.exams[exam.name], seed))


def _exams(order: Order, config: RunConfig) -> tuple[list[Exam], list[Suite]]:
    protocols, suites = find_benchmarks(order.benchmarks)
    places = data_places(order.data)
    exams = [_source_exam(source, order, config) for source in order.problems]
    exams += [_benchmark_exam(protocol, places, order, config) for protocol in protocols]
    names = [exam.name for exam in exams]
    if len(set(names)) < len(names):
        raise UserError("--problems: the same source is named twice")
    return exams, suites


def _source_exam(source: str, order: Order, config: RunConfig) -> Exam:
    task = task_of(source)
    problems = load_problems(source, config.problems.fields)[: order.limit]
    generation = config.generation
    exam = Exam(
        name=source,
        source=source,
        problems=tuple(problems),
        samples=1 if order.n is None else order.n,
        temperature=generation.temperature,
        trace_tokens=generation.max_trace_tokens,
        answer_tokens=generation.max_answer_tokens,
        verifier=config.evaluation.verifier,
        chance=task.chance() if task else None,
        label=task.label if task else None,
    )
    return _as_sat(exam, config, order)


def _as_sat(exam: Exam, config: RunConfig, order: Order) -> Exam:
    return exam_for(exam, config, order.temperature, order.answer_temperature, order.max_tokens)


def _benchmark_exam(protocol: Protocol, places: dict[str, str], order: Order, config: RunConfig) -> Exam:
    loaded = load_benchmark(protocol, places, config.training.seed)
    samples = protocol.samples if order.n is None else order.n
    temperature = protocol.temperature if order.temperature is None else order.temperature
    tokens = order.max_tokens or protocol.trace_tokens
    notes = protocol.notes()
    asked = (("n", protocol.samples, samples), ("temperature", protocol.temperature, temperature))
    for what, own, now in (*asked, ("token limit", protocol.trace_tokens, tokens)):
        if own != now:
            notes.append(f"{protocol.name}: {what} {now:g}, where the protocol has {own:g}")
    if order.answer_temperature is not None:
        notes.append(
            f"{protocol.name}: answer temperature {order.answer_temperature:g}, where the protocol has the trace's"
        )
    if order.limit is not None and order.limit < len(loaded.problems):
        notes.append(f"{protocol.name}: only the first {order.limit} of {len(loaded.problems)} problems")
    return Exam(
        name=protocol.name,
        source=loaded.source,
        problems=loaded.problems[: order.limit],
        samples=samples,
        temperature=temperature,
        trace_tokens=tokens,
        answer_tokens=protocol.answer_tokens,
        verifier=protocol.verifier,
        extraction=protocol.extraction,
        choice=isinstance(protocol.fields, Options),
        chance=loaded.chance,
        prompts=protocol.prompts,
        notes=tuple(notes),
        protocol=protocol.record(),
        top_p=protocol.top_p,
        answer_temperature=order.answer_temperature,
    )


def _candidate(
    name: str, config: RunConfig, exams: Sequence[Exam], order: Order, prints: Fingerprints, today: date
) -> _Candidate:
    """Everything about a model that can be checked without its weights."""
    model = without_weights(config.model)
    context = context_length(model.config)
    prompts = dated(config.prompts, model.tokenizer, today)
    config = config.model_copy(update={"model": resolve_dtype(config.model), "prompts": prompts})
    own = {exam.name: _as_sat(exam, config, order) for exam in exams}
    candidate = _Candidate(name, config, model.tokenizer, context, prints.of_model(model), own)
    for exam in own.values():
        prompts = candidate.prompts(exam)
        check_tokens(prompts, [])
        check_rows(prompts, getattr(model.config.get_text_config(), "vocab_size", sys.maxsize), exam.problems)
        check_room(exam, prompts, context, name)
    return candidate


def _header(candidate: _Candidate, exam: Exam, seed: int) -> dict[str, Any]:
    prompts = candidate.prompts(exam).config.model_dump(mode="json", exclude={"style"})  # it has its whole wording
    made = {"model": candidate.name, "weights": candidate.weights, "dtype": candidate.config.model.dtype}
    made |= {"engine": "" if candidate.config.generation.engine == "torch" else "vllm"}  # another engine, other samples
    return {"covrl_eval": 1} | made | {"seed": seed, "exam": exam.settings(), "prompts": prompts}


def _examine(candidate: _Candidate, exams: Sequence[Exam], seed: int, say: Say, world: World) -> None:
    """Sample the unfinished problems of every exam; the weights are loaded only if there are any."""
    stores = candidate.stores  # of the first rank alone
    found: dict[str, set[str]] = {}
    world.on_rank0(lambda: found.update({e.name: {p.id for p in stores[e.name].left(e.problems)} for e in exams}))
    ids = world.broadcast(found)
    left = {e.name: [p for p in e.problems if p.id in ids[e.name]] for e in exams}
    if not any(left.values()):
        say(f"{candidate.name}: all problems were answered before")
        return
    model, tokenizer = load_model(candidate.config.model)
    rows, engine = rows_of(candidate.config.generation), candidate.config.generation.engine
    generator = make_generator(candidate.config, engine, model.model, tokenizer, world)
    longest = max(row_needed(exam, candidate.prompts(exam)) for exam in exams if left[exam.name])
    for note in (*model.given_up, *prove(model, generator, tokenizer, longest, candidate.config.model.path, world)):
        say(note)
    if isinstance(generator, OutsideGenerator):
        generator.start(engine)
    for exam in candidate.exams.values():
        evaluator = Evaluator(
            generator,
            candidate.prompts(exam),
            exam.trace_tokens,
            exam.answer_tokens,
            exam.grader(),
            exam.label,
            exam.top_p,
            exam.answer_temperature,
            world,
        )
        done = len(exam.problems) - len(left[exam.name])
        for finished in sit(exam, evaluator, left[exam.name], seed, rows):
            world.on_rank0(partial(_keep, candidate, exam, finished))
            done += len(finished)
            say(f"{candidate.name} on {exam.name}: {done} of {len(exam.problems)} problems")


def _keep(candidate: _Candidate, exam: Exam, finished: list[Solved]) -> None:
    candidate.stores[exam.name].add(finished)


def _record(
    exams: Sequence[Exam],
    suites: Sequence[Suite],
    candidates: Sequence[_Candidate],
    solved: dict[tuple[str, str], list[Solved]],
    ks: dict[str, list[int]],
    seed: int,
    notes: Sequence[str],
) -> dict[str, Any]:
    names = [c.name for c in candidates]
    found = {e.name: {m: figures(solved[e.name, m], ks[e.name], e.chance) for m in names} for e in exams}
    compare = partial(_support, solved)
    return {
        "models": [{"name": c.name, "path": c.config.model.path, "weights": c.weights} for c in candidates],
        "seed": seed,
        "exams": [
            {"name": e.name, "source": e.source, "problems": len(e.problems), "chance": e.chance, "k": ks[e.name]}
            | e.settings()
            | {"protocol": e.protocol, "notes": list(e.notes)}
            | {"prompts": {c.name: c.prompts(e).config.model_dump(mode="json") for c in candidates}}
            | {"sampling": sampling_of({c.name: c.exams[e.name] for c in candidates})}
            for e in exams
        ],
        "figures": found,
        "support": [r for e in exams for m in names[1:] if (r := compare(e.name, names[0], m))],
        "overall": [overall(suite, model, found) for suite in suites for model in names],
        "notes": [
            *notes,
            *(note for e in exams for m in names for note in unknown_note(f"{m} on {e.name}", found[e.name][m])),
            *(f"{s.name}: {s.note}" for s in suites),
        ],
    }


def _support(solved: dict[tuple[str, str], list[Solved]], exam: str, base: str, other: str) -> dict[str, Any] | None:
    found = supports(solved[exam, base], solved[exam, other])
    return found and {"exam": exam, "base": base, "other": other} | found
