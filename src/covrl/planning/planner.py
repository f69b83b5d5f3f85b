"""From a run's settings and a model's config to the table of :mod:`covrl.planning.phases`, and what to change.

No weights are read, and no device is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from covrl.algorithms.base import Algorithm
from covrl.config import RunConfig
from covrl.planning.fitting import FAST_ROWS, FAST_TOKENS_ELSEWHERE, logits_that_fit, power_of_two
from covrl.planning.phases import PLANNED, Hardware, Job, Passes, Phase, phases
from covrl.planning.weightless import HeadBytes, Shape, TrunkBytes, Way, head_bytes, shape_of, trunk_bytes
from covrl.scoring.head import Head

ASSUMED_PROMPT = 512
"""Tokens of a prompt where there is no tokenizer to count them."""

MOST_DEVICES = 256
"""Up to which number of devices a plan that does not fit looks for one that does."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of the longest prompt, of a trace at its limit, of an answer; ``counted``: by the model's tokenizer."""

    prompt: int
    trace: int
    answer: int
    counted: bool


@dataclass(frozen=True, slots=True)
class Readings:
    """What a method reads of a trace in a training pass: under how many prompts, and by which heads.

    ``trace`` and ``answer`` are a head and the number of its contexts, None where the span is not read. ``sources`` are
    the prompts that traces are drawn from. ``frozen``, ``trained``: whole models beside the policy.
    """

    contexts: int
    trace: tuple[Head, int] | None
    answer: tuple[Head, int] | None
    sources: int
    frozen: int
    trained: int


def readings_of(algorithm: Algorithm, adapted: bool) -> Readings:
    """Read off a method's declarations; with adapters (``adapted``) a frozen model is the policy's own base."""
    on_trunk = {spec.name for spec in algorithm.models if spec.on_trunk}
    beside = [spec for spec in algorithm.models if not spec.on_trunk and not adapted]
    own = {c.name for c in algorithm.contexts if c.model == "policy" or c.model in on_trunk}
    heads: dict[bool, tuple[Head, int]] = {}
    used: set[str] = set()
    for reading in algorithm.training:
        mine = own.intersection(reading.contexts)
        used |= mine
        is_trace = reading.span == "trace"
        if mine and len(mine) > heads.get(is_trace, (reading.head, 0))[1]:
            heads[is_trace] = (reading.head, len(reading.contexts))
    return Readings(
        contexts=len(used),
        trace=heads.get(True),
        answer=heads.get(False),
        sources=1 + any(c.name == "posterior" for c in algorithm.contexts),
        frozen=len({spec.follows if spec.follows == "frozen" else spec.name for spec in beside if not spec.trainable}),
        trained=sum(spec.trainable for spec in beside),
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """The table for ``hardware``, the settings that it is of, and what to change where it does not fit.

    ``tokens`` and ``rows`` of a pass are those that a rank takes; ``advice`` is empty where all phases fit.
    """

    hardware: Hardware
    config: RunConfig
    shape: Shape
    lengths: Lengths
    tokens: int
    rows: int
    phases: tuple[Phase, ...]
    advice: tuple[str, ...] = ()

    @property
    def limit(self) -> float:
        """Bytes of a device that are planned for."""
        return PLANNED * self.hardware.memory

    @property
    def largest(self) -> Phase:
        """The phase that takes most."""
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def fits(self) -> bool:
        """Whether every phase does."""
        return self.largest.total <= self.limit


@dataclass
class Planner:
    """Makes plans for one model and method; what a pass takes is counted once for each way of computing it."""

    model: Any
    readings: Readings
    lengths: Lengths
    _lines: dict[Any, Any] = field(default_factory=dict)

    def plan(self, config: RunConfig, hardware: Hardware) -> Plan:
        """The table for these settings, with what to change where it does not fit."""
        made = self._table(config, hardware)
        return made if made.fits else replace(made, advice=tuple(self._advice(made)))

    def _once(self, key: Any, count: Callable[[], Any]) -> Any:
        if key not in self._lines:
            self._lines[key] = count()
        return self._lines[key]

    def _table(self, config: RunConfig, hardware: Hardware) -> Plan:
        training, generation = config.training, config.generation
        config = config.model_copy(update={"model": _on_accelerator(config)})
        shape = self._once(("shape", config.lora), lambda: shape_of(self.model, config.lora))
        share = -(-training.problems_per_step * training.rollouts_per_problem // hardware.devices)
        rows = min(FAST_ROWS if generation.rows_per_pass == "auto" else generation.rows_per_pass, share)
        tokens = FAST_TOKENS_ELSEWHERE if training.tokens_per_pass == "auto" else training.tokens_per_pass
        while True:
            made = self._of(config, hardware, shape, tokens, rows)
            _, sampling, *passes = made.phases[:-1]
            fewer_tokens = training.tokens_per_pass == "auto" and tokens > self._trace
            if generation.rows_per_pass == "auto" and rows > 1 and sampling.total > made.limit:
                rows = power_of_two(rows - 1)
            elif fewer_tokens and any(phase.total > made.limit for phase in passes):
                tokens = max(self._trace, tokens // 2)
            else:
                return made

    @property
    def _trace(self) -> int:
        """Padded tokens of a trace's rows."""
        return max(1, self.readings.contexts) * sum((self.lengths.prompt, self.lengths.trace, self.lengths.answer))

    def _of(self, config: RunConfig, hardware: Hardware, shape: Shape, tokens: int, rows: int) -> Plan:
        job = self._job(config, hardware, rows)
        passes = self._passes(config, hardware, shape, job, tokens)
        table = phases(shape, job, passes, config.training.recompute)
        return Plan(hardware, config, shape, self.lengths, max(tokens, self._trace), rows, table)

    def _job(self, config: RunConfig, hardware: Hardware, rows: int) -> Job:
        training, generation, reads = config.training, config.generation, self.readings
        return Job(
            dtype=config.model.dtype,
            ranks=hardware.devices,
            sharded=training.weights == "sharded",
            offload_moments=training.offload_moments,
            rows=rows,
            prompt=self.lengths.prompt,
            trace=self.lengths.trace,
            siblings=max(1, training.rollouts_per_problem // reads.sources),
            engine_bytes=round(generation.engine_memory * hardware.memory) if generation.engine == "vllm" else 0,
            samples_here=generation.engine in ("torch", "vllm"),
            # one that is trained has a gradient and two moments, which are half a copy where they are codes
            copies=reads.frozen + (3 if training.eight_bit_moments else 4) * reads.trained,
            away=config.model.offload_reference and not reads.trained,
            loads_parts=training.load == "parts" and hardware.devices > 1,
            eight_bit=training.eight_bit_moments,
        )

    def _passes(self, config: RunConfig, hardware: Hardware, shape: Shape, job: Job, tokens: int) -> Passes:
        way = Way(config.model.dtype, config.training.recompute, config.lora, casts=job.parts == 1)
        traces = max(1, tokens // self._trace)
        unit = [self._trace // max(1, self.readings.contexts)] * max(1, self.readings.contexts)
        prompts = -(-job.rows // job.siblings)
        megabytes = config.training.logits_mb_per_chunk
        if megabytes == "auto":
            megabytes = logits_that_fit("cuda", 0.8 * hardware.memory)

        def of_span(read: tuple[Head, int] | None, length: int) -> HeadBytes | None:
            if read is None:
                return None
            made = (shape, way.dtype, read[0], length * traces, read[1], megabytes << 20)
            return self._once((*made[1:2], id(read[0]), *made[3:]), lambda: head_bytes(*made))

        return Passes(
            trunk=self._trunk(way, unit, traces),
            prefill=self._trunk(replace(way, recompute=False), [self.lengths.prompt], prompts),
            trace=of_span(self.readings.trace, self.lengths.trace),
            answer=of_span(self.readings.answer, self.lengths.answer),
        )

    def _trunk(self, way: Way, unit: Sequence[int], times: int) -> TrunkBytes:
        """What ``times`` units of rows of these lengths take: with fused attention, so much more for each."""

        def count(units: int) -> TrunkBytes:
            return trunk_bytes(self.model, way, [((0,) * length, 0) for _ in range(units) for length in unit])

        one, two = self._once((way, tuple(unit)), lambda: (count(1), count(2)))
        more = {f.name: getattr(two, f.name) - getattr(one, f.name) for f in fields(TrunkBytes)}
        return TrunkBytes(**{name: getattr(one, name) + (times - 1) * more[name] for name in more})

    def _advice(self, made: Plan) -> Iterator[str]:
        """Settings that help, one after the other as far as they do; then more devices, or adapters."""
        said: list[str] = []
        config = made.config
        for name, change in _changes(self._trace):
            changed = change(config)
            if changed is None:
                continue
            then = self._table(changed, made.hardware)
            over = [p.total for p in made.phases if p.total > made.limit]
            less = [t.total for p, t in zip(made.phases, then.phases, strict=True) if p.total > made.limit]
            if sum(less) >= sum(over):
                continue
            said.append(name)
            config, made = changed, then
            if made.fits:
                break
        if said:
            verdict = "it fits" if made.fits else "it does not fit yet"
            largest = f"the largest phase ({made.largest.name}) takes {gb(made.largest.total)}"
            yield f"set {', '.join(said)}: {largest}, {verdict}"
        if not made.fits:
            yield from self._otherwise(config, made)

    def _otherwise(self, config: RunConfig, made: Plan) -> Iterator[str]:
        also = " besides" if config is not made.config else ""
        devices = made.hardware.devices * 2
        while config.training.weights == "sharded" and devices <= MOST_DEVICES:
            then = self._table(config, replace(made.hardware, devices=devices))
            if then.fits:
                yield f"or take {devices} devices{also}: {gb(then.largest.total)}, it fits"
                break
            devices *= 2
        if not config.training.eight_bit_moments:
            narrow = {"eight_bit_moments": True, "offload_moments": False}
            training = config.training.model_copy(update=narrow)
            then = self._table(config.model_copy(update={"training": training}), made.hardware)
            if then.fits:
                away = ", training.offload_moments = false" * config.training.offload_moments
                yield f"or set training.eight_bit_moments = true{away}{also}: {gb(then.largest.total)}, it fits"
        if not config.lora.rank and not self.readings.trained:
            adapters = config.lora.model_copy(update={"rank": 32})
            then = self._table(config.model_copy(update={"lora": adapters}), made.hardware)
            verdict = "it fits" if then.fits else "it does not fit either; take a smaller model"
            yield f"or train adapters (lora.rank = 32){also}: {gb(then.largest.total)}, {verdict}"


def _on_accelerator(config: RunConfig) -> Any:
    chosen = "mixed" if config.model.dtype == "auto" else config.model.dtype
    return config.model.model_copy(update={"dtype": chosen})


Change = Callable[[RunConfig], RunConfig | None]
"""The settings with one of them changed; None where that is so already."""


def _changes(trace: int) -> Iterator[tuple[str, Change]]:
    """What can be changed, the cheapest first: as a user would write it, and the change."""

    def setting(section: str, name: str, value: Any, better: Callable[[Any], bool]) -> tuple[str, Change]:
        def change(config: RunConfig) -> RunConfig | None:
            part = getattr(config, section)
            if not better(getattr(part, name)):
                return None
            return config.model_copy(update={section: part.model_copy(update={name: value})})

        return f"{section}.{name} = {str(value).lower()}", change

    yield setting("training", "recompute", True, lambda now: not now)
    yield setting("training", "tokens_per_pass", trace, lambda now: now != "auto" and now > trace)
    for rows in (128, 64, 32, 16):
        yield setting("generation", "rows_per_pass", rows, lambda now, rows=rows: now != "auto" and now > rows)
    yield setting("training", "logits_mb_per_chunk", 64, lambda now: now == "auto" or now > 64)
    yield setting("model", "offload_reference", True, lambda now: not now)
    yield setting("training", "offload_moments", True, lambda now: not now)
    yield setting("training", "weights", "sharded", lambda now: now != "sharded")
    yield setting("training", "load", "parts", lambda now: now != "parts")


def gb(size: float) -> str:
    """Bytes as GB of 10⁹.

    Example:
        >>> gb(79_640_000_000)
        '79.6 GB'
    """
    return f"{size / 1e9:.1f} GB"
