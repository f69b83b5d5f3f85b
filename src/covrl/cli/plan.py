"""`covrl train --dry-run --plan "8x80GB"`: the table of memory by phase, for hardware that is not there."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from covrl.assembly import build_algorithm, training_problems
from covrl.config import RunConfig
from covrl.errors import UserError
from covrl.models.adapters import is_adapter
from covrl.models.gguf import is_gguf
from covrl.models.model import load_tokenizer, resolve_path
from covrl.models.policy import refuse_four_bits_in_parts
from covrl.models.trust import quoted, safe_config, tried
from covrl.planning.phases import LINES, Hardware
from covrl.planning.planner import ASSUMED_PROMPT, Lengths, Plan, Planner, gb, readings_of
from covrl.prompts import Prompts, dated
from covrl.training.needs import longest_of
from covrl.training.rollouts import response_tokens

TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
"""A folder that has none of these files has no tokenizer."""


def run_plan(config: RunConfig, hardware: str) -> None:
    """Print the table of a run with ``config``, and what to change where it does not fit.

    Raises:
        UserError: ``hardware`` is not of the form 8x80GB, or the model's config or the problems cannot be read.
    """
    show_plan(Console(), plan_for(config, Hardware.named(hardware)))


def plan_for(config: RunConfig, hardware: Hardware) -> Plan:
    """The plan of a run with ``config``. Of the model its config is read, and its tokenizer if it is there.

    With a tokenizer the prompts of the longest problem are counted; a folder without one has assumed lengths.

    Raises:
        UserError: the model's config or the problems cannot be read, or the method does not fit the settings.
    """
    refuse_four_bits_in_parts(config, hardware.devices)
    source = str(resolve_path(config.model.path))
    if is_adapter(source) or is_gguf(source):
        raise UserError(
            f"model.path: {source}: a plan wants the folder or hub id of a whole model with its config.json"
        )
    model = safe_config(source, weights=False)
    tokenizer = _tokenizer(source)
    day = date.today()
    stand_in = tokenizer or load_tokenizer(str(resolve_path("covrl:digits")))  # the method is the same with any
    prompts = Prompts(stand_in, dated(config.prompts, stand_in, day))
    method = build_algorithm(config, prompts, None, rewarded=True)
    generation = config.generation
    trace = response_tokens(prompts, generation) if method.samples == "response" else generation.max_trace_tokens
    lengths = Lengths(ASSUMED_PROMPT, trace, generation.max_answer_tokens, counted=False)
    if tokenizer is not None:
        lengths = _counted(config, prompts, trace)
    planner = Planner(model, readings_of(method, bool(config.lora.rank)), lengths)
    return tried(f"--plan: {model.model_type} cannot be planned for", lambda: planner.plan(config, hardware))


def _tokenizer(source: str) -> PreTrainedTokenizerBase | None:
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZERS):
        return None
    return quoted(source, lambda: load_tokenizer(source))


def _counted(config: RunConfig, prompts: Prompts, trace: int) -> Lengths:
    problems = training_problems(config.problems)
    longest = longest_of(problems)
    answer = max(problems, key=lambda problem: len(problem.answer))
    prompt = max(len(prompts.prior(longest)), len(prompts.posterior(longest)))
    return Lengths(prompt, trace, len(prompts.answer(answer)), counted=True)


def show_plan(console: Console, plan: Plan) -> None:
    """The table, what it is of, and what to change."""
    hardware, config = plan.hardware, plan.config
    kind = f"{config.model.dtype}, weights {config.training.weights}" if hardware.devices > 1 else config.model.dtype
    console.print(
        Text(f"{plan.shape.base:,} weights ({kind}) on {hardware.devices} x {gb(hardware.memory)}, GB a rank", "bold")
    )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for phase in plan.phases:
        table.add_column(phase.name, justify="right")
    for line in LINES:
        sizes = [phase.lines.get(line, 0) for phase in plan.phases]
        if any(sizes):
            table.add_row(line, *(f"{size / 1e9:.1f}" if size else "" for size in sizes))
    totals = [Text(f"{p.total / 1e9:.1f}", "bold red" if p.total > plan.limit else "bold") for p in plan.phases]
    table.add_row("all live tensors", *totals)
    console.print(table)
    lengths = plan.lengths
    source = "counted on the longest problem" if lengths.counted else "assumed, as the folder has no tokenizer"
    console.print(
        f"a pass of {plan.tokens:,} tokens, {plan.rows} rows while sampling; prompt of {lengths.prompt:,} and answer "
        f"of {lengths.answer:,} tokens ({source}), trace of {lengths.trace:,}",
        highlight=False,
    )
    verdict = "it fits" if plan.fits else "it does not fit"
    console.print(f"{gb(plan.limit)} of each device are planned for: {verdict}", style="bold", highlight=False)
    for advice in plan.advice:
        console.print(advice, highlight=False)
