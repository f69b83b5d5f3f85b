"""The command line: thin callers of the Python API.

Nothing heavy is imported before a command runs, so that ``covrl --help`` answers at once. Results go to standard
output, progress and messages to standard error. Exit codes: 0 done, 1 training was stopped, 2 unusable input,
130 interrupted.
"""

from __future__ import annotations

import logging
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import covrl
from covrl.cli.console import crash, end, several
from covrl.errors import RunInterruptedError, TrainingStoppedError, UserError

if TYPE_CHECKING:
    from covrl.quickstart.run import Outcome

Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change any setting; may be repeated.")
]

app = typer.Typer(
    help="Reinforcement learning of language-model reasoning, with or without a verifier.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


ON_SEVERAL = ("train", "eval", "leak", "calibrate")
"""Commands whose work several processes share."""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"covrl {covrl.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Reinforcement learning of language-model reasoning, with or without a verifier."""
    del version
    if several() and context.invoked_subcommand not in ON_SEVERAL:
        raise UserError(f"covrl {context.invoked_subcommand} works as one process: start it without torchrun")


@app.command()
def quickstart(
    task: Annotated[str, typer.Option(help="Which shipped task: digits, animals or countdown.")] = "digits",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON line.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the run: order of problems and every sample.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps. [the recipe's if left out]")] = None,
    shuffle_answers: Annotated[
        bool, typer.Option("--shuffle-answers", help="Control: the posterior sees another problem's answer.")
    ] = False,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. [runs/quickstart-DATE-TIME]")] = None,
) -> None:
    """Train a tiny shipped base without a verifier (countdown: with one), and show what it learnt."""
    assignments = [f"training.seed={seed}", *([f"training.steps={steps}"] if steps else [])]
    assignments += ["problems.shuffle_hints=true"] if shuffle_answers else []
    folder = out or Path("runs") / f"quickstart-{datetime.now():%Y%m%d-%H%M%S}"
    _cpu_defaults()
    from rich.console import Console

    console = Console(stderr=True)
    console.print("covrl quickstart: loading torch and transformers …", style="dim", highlight=False)
    from covrl.problems.tasks import find_task
    from covrl.quickstart.run import find_recipe, load_config
    from covrl.quickstart.run import quickstart as run_quickstart
    from covrl.reporting.terminal import Progress

    config = load_config([*assignments, *(settings or [])], task)
    title = f"{config.algorithm.name} on {find_recipe(task).title}"
    progress = Progress(config.training.steps, chance=find_task(task).chance(), title=title, console=console)
    outcome = run_quickstart(config, folder, progress, task)
    if as_json:
        import json

        print(json.dumps(outcome.record()))
    else:
        _show(outcome)


def _show(outcome: Outcome) -> None:
    from rich.console import Console

    from covrl.reporting.tables import comparison_table, trace_panel

    console = Console()
    console.print()
    console.print(comparison_table(outcome.summary.results, title=f"{len(outcome.base.greedy.graded):,} test problems"))
    console.print(trace_panel(outcome.summary.examples[:4]))
    console.print(f"trained model  {outcome.training.last.resolve()}", highlight=False, soft_wrap=True, markup=False)
    console.print(f"report         {outcome.report}", highlight=False, soft_wrap=True, markup=False)


@app.command()
def train(
    config: Annotated[Path | None, typer.Option(help="TOML file with the run's settings.")] = None,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run. [runs/NAME-DATE-TIME]")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Continue a run from its newest checkpoint.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show prompts, sampled traces and the cost; train nothing.")
    ] = False,
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="8x80GB",
            help="With --dry-run: memory by phase on hardware that is not there, from the model's config alone.",
        ),
    ] = None,
    algorithm: Annotated[
        str | None, typer.Option(metavar="NAME", help="Method: a name of `covrl algorithms`, or module:class.")
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Reward function: an entry point, or module:function; as NAME=module:function one of several, and may "
            "be repeated.",
        ),
    ] = None,
) -> None:
    """Train a model on problems, with the settings of a TOML file."""
    if (config is None) == (resume is None):
        raise UserError("give either --config FILE or --resume RUN")
    engine = _only_engine(settings or []) if resume is not None else None
    if resume is not None and (out or dry_run):
        raise UserError("--resume continues the run as it is: leave --out and --dry-run out")
    if plan is not None and not dry_run:
        raise UserError("--plan shows what a run would take and trains nothing: give --dry-run with it")
    if dry_run and several():
        raise UserError("--dry-run works as one process: start it without torchrun")
    _cpu_defaults()
    from covrl.config import config_from, reward_assignments

    named = [f"algorithm.name={algorithm}"] * bool(algorithm) + reward_assignments(reward or [])
    checked = config_from(config, [*named, *(settings or [])]) if config else None  # before the seconds of torch
    if plan is not None and checked is not None:
        from covrl.cli.plan import run_plan

        run_plan(checked, plan)
        return
    folder = resume or out or Path("runs") / f"{config.stem if config else 'run'}-{datetime.now():%Y%m%d-%H%M%S}"
    from covrl.cli.train import run_train

    run_train(checked, folder, dry_run, algorithm, reward, engine)


def _only_engine(settings: list[str]) -> str | None:
    """The one setting that a resume accepts: an engine's address on another machine has to be typed."""
    from covrl.config import override

    typed = override({}, settings)
    generation = typed.pop("generation", {})
    if typed or not isinstance(generation, dict) or generation.keys() - {"engine"}:
        raise UserError(
            "--resume continues the run as it is: leave --set out, but for generation.engine; the other settings that "
            "may change are changed in the run's config.toml"
        )
    return generation.get("engine")


@app.command()
def push(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository of the Hugging Face hub.")],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Of a repository that is made. [the run's hub.private: private]"),
    ] = None,
    license: Annotated[str, typer.Option(metavar="ID", help="Licence of the base. [what the base's card says]")] = "",
) -> None:
    """Put a run's model, tokenizer, card and report on the Hugging Face hub."""
    _cpu_defaults()
    from covrl.cli.push import run_push

    run_push(run, repo, private, license)


@app.command("warm-format")
def warm_format(
    config: Annotated[Path, typer.Option(help="TOML file of the training run that follows.")],
    out: Annotated[Path, typer.Option(help="Folder for the model that knows the format.")],
    settings: Settings = None,
    steps: Annotated[int, typer.Option(min=1, help="Most steps.")] = 200,
    rate: Annotated[float, typer.Option("--learning-rate", help="Of AdamW, constant.")] = 1e-5,
    until: Annotated[float, typer.Option(min=0, max=1, help="Stop at this share of valid traces.")] = 0.5,
    every: Annotated[int, typer.Option(min=1, help="Steps between checks with sampled traces.")] = 20,
    roles: Annotated[str, typer.Option(help="Prompts that are taught: prior, posterior, or both.")] = "prior,posterior",
) -> None:
    """Teach a base the format on worked solutions (supervised), if too few of its traces are valid."""
    _cpu_defaults()
    from covrl.cli.train import run_warm_format

    run_warm_format(config, out, settings or [], steps, rate, until, every, roles)


@app.command("eval")
def evaluate(
    model: Annotated[
        list[str],
        typer.Option(help="Folder of a run or model, .gguf file, hub id, or covrl:digits; may be repeated."),
    ],
    problems: Annotated[
        list[str] | None, typer.Option(help="File, hf:NAME:SPLIT, or digits:test; may be repeated.")
    ] = None,
    benchmark: Annotated[
        list[str] | None, typer.Option(help="A benchmark by name, such as MATH-500; may be repeated.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="FOLDER|NAME=FILE", help="Local files of benchmarks; may be repeated.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file for prompts and fields. [the run's, if it is one]")
    ] = None,
    settings: Settings = None,
    n: Annotated[
        int | None,
        typer.Option("--n", "-n", min=0, help="Samples per problem beside the greedy one. [the benchmark's, else 1]"),
    ] = None,
    k: Annotated[str, typer.Option(metavar="1,4,…", help="Report pass@k and maj@k for these. [1, 2, 4, … n]")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first problems.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="Of the samples. [the benchmark's]")] = None,
    answer_temperature: Annotated[
        float | None, typer.Option(min=0, help="Of the answers after sampled traces. [the trace's]")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of a trace. [the benchmark's]")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for traces and results; an interrupted evaluation continues. [runs/eval-DATE-TIME]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON line.")] = False,
    traces: Annotated[
        Path | None, typer.Option(help="One model, one --problems: write traces to this JSONL file.")
    ] = None,
) -> None:
    """Grade answers under the prior prompt: greedy, avg@n, pass@k, maj@k, entropies, and two models side by side."""
    _cpu_defaults()
    from covrl.cli.eval_run import Order
    from covrl.cli.evaluate import numbers, run_eval

    order = Order(
        models=model,
        problems=problems or [],
        benchmarks=benchmark or [],
        data=data or [],
        n=n,
        ks=numbers(k),
        limit=limit,
        temperature=temperature,
        answer_temperature=answer_temperature,
        max_tokens=max_tokens,
        config=config,
        settings=settings or [],
    )
    run_eval(order, out, as_json, traces)


@app.command()
def leak(
    model: Annotated[str, typer.Option(help="Folder of a run or model, .gguf file, hub id, or covrl:digits.")],
    problems: Annotated[str, typer.Option(help="File, hf:NAME:SPLIT, or digits:test.")],
    config: Annotated[Path | None, typer.Option(help="TOML file for prompts and fields.")] = None,
    settings: Settings = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Traces per problem and prompt.")] = 4,
    limit: Annotated[int, typer.Option(min=1, help="Only the first problems.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON line.")] = False,
    traces: Annotated[Path | None, typer.Option(help="Write every trace and what was found to this JSONL.")] = None,
) -> None:
    """Measure how often posterior traces give away the answer that they were shown, against shuffled answers."""
    _cpu_defaults()
    from covrl.cli.evaluate import TraceRequest, run_leak

    run_leak(TraceRequest(model, problems, config, settings or [], n, limit, as_json), traces)


@app.command()
def calibrate(
    model: Annotated[str, typer.Option(help="Folder of a run or model, .gguf file, hub id, or covrl:digits.")],
    problems: Annotated[str, typer.Option(help="File, hf:NAME:SPLIT, or digits:test.")],
    config: Annotated[Path | None, typer.Option(help="TOML file for prompts and fields.")] = None,
    settings: Settings = None,
    n: Annotated[int, typer.Option("--n", "-n", min=2, help="Traces per problem.")] = 8,
    limit: Annotated[int, typer.Option(min=1, help="Only the first problems.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON line.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for calibration.json and calibration.html.")] = None,
) -> None:
    """Measure before training whether log p(answer) distinguishes right from wrong traces of these problems."""
    _cpu_defaults()
    from covrl.cli.evaluate import TraceRequest, run_calibrate

    run_calibrate(TraceRequest(model, problems, config, settings or [], n, limit, as_json), out)


@app.command()
def preflight(
    model: Annotated[str, typer.Option(help="Folder of a run or model, .gguf file, hub id, or covrl:digits.")],
    problems: Annotated[str, typer.Option(help="File, hf:NAME:SPLIT, or digits:test.")],
    config: Annotated[
        Path | None, typer.Option(help="TOML file for prompts and fields. [the run's, if it is one]")
    ] = None,
    settings: Settings = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="12 problems, 2 traces, 3 templates: an eighth of the time.")
    ] = False,
    n: Annotated[int | None, typer.Option("--n", "-n", min=2, help="Traces per problem and prompt. [4]")] = None,
    limit: Annotated[int | None, typer.Option(min=2, help="Only the first problems. [30]")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of a trace. [96, or the settings' limit if it is lower]")
    ] = None,
    templates: Annotated[
        str | None, typer.Option(metavar="A,B,…", help="Of the posterior prompt. [all six; of --quick: three]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON line.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for preflight.json and preflight.html.")] = None,
) -> None:
    """Measure before training which method will work on these problems with this model, or that none will."""
    _cpu_defaults()
    from covrl.cli.evaluate import TraceRequest
    from covrl.cli.preflight import FULL, QUICK, PreflightRequest, named_templates, run_preflight

    size = QUICK if quick else FULL
    asked = TraceRequest(model, problems, config, settings or [], n or size.traces, limit or size.problems, as_json)
    chosen = size.templates if templates is None else named_templates(templates)
    run_preflight(PreflightRequest(asked, max_tokens, chosen, out))


@app.command()
def prompts(
    model: Annotated[str, typer.Option(help="Folder of a run, folder of a model, hub id, or covrl:digits.")],
    problems: Annotated[str, typer.Option(help="File, hf:NAME:SPLIT, or digits:test.")],
    config: Annotated[
        Path | None, typer.Option(help="TOML file for prompts and fields. [the run's, if it is one]")
    ] = None,
    settings: Settings = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Traces per problem and prompt.")] = 3,
    limit: Annotated[int, typer.Option(min=1, help="Only the first problems.")] = 8,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of a trace. [96, or the settings' limit if it is lower]")
    ] = None,
    templates: Annotated[
        bool, typer.Option("--templates", help="The six posterior templates of the settings' style, not the styles.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON line.")] = False,
) -> None:
    """Show each style of prompts with sampled traces and their rewards, and recommend one."""
    _cpu_defaults()
    from covrl.cli.evaluate import TraceRequest, run_prompts

    run_prompts(TraceRequest(model, problems, config, settings or [], n, limit, as_json), max_tokens, templates)


@app.command()
def ask(
    model: Annotated[str, typer.Argument(help="Folder of a run or model, .gguf file, hub id, or covrl:digits.")],
    question: Annotated[str, typer.Argument(help="The question.")],
    answer: Annotated[str | None, typer.Option(help="Its answer: adds posterior traces and log p(answer).")] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Traces per model and prompt.")] = 2,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    config: Annotated[Path | None, typer.Option(help="TOML file for prompts. [the run's, if it is one]")] = None,
) -> None:
    """Show traces for one question: prior and posterior prompt side by side, a run's base against its result."""
    _cpu_defaults()
    from rich.console import Console

    from covrl import api
    from covrl.cli.show import show_replies

    show_replies(Console(), api.ask(model, question, answer, n, seed, config))


@app.command()
def merge(
    model: Annotated[str, typer.Argument(help="Folder of a LoRA run or of an adapter, or a GGUF file.")],
    out: Annotated[Path, typer.Option(help="Folder for the plain model.")],
    settings: Settings = None,
) -> None:
    """Write base and LoRA adapter, or a GGUF file, as a plain model; --set model.dtype=bfloat16 for another dtype."""
    _cpu_defaults()
    from rich.console import Console

    from covrl.cli.merge import merge as merge_adapter
    from covrl.cli.show import show_model_path

    show_model_path(Console(), merge_adapter(model, out, settings or []))


@app.command()
def view(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folder of a run; with --live also of two.")],
    live: Annotated[
        bool, typer.Option("--live", help="Serve a page that keeps up with the run, with a search of its traces.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Of the page, on this machine only. [a free one]")
    ] = None,
) -> None:
    """Make a run's HTML report again from its files, and print its path; or look at one run or two as they go on."""
    from covrl.cli.view import run_live, run_view

    if live:
        run_live(runs, port or 0)
    elif port is not None or len(runs) > 1:
        raise UserError("--port and a second run go with --live, which serves the page; without it give one run")
    else:
        run_view(runs[0])


@app.command()
def grade(
    file: Annotated[str, typer.Argument(help="JSONL of answer and response; - for standard input.")] = "-",
    verifier: Annotated[
        str,
        typer.Option(
            help="exact, text, math, numeric, choice, code, reasoning-gym (parameters after a comma: "
            "numeric,relative=0.001), an entry point of the group covrl.verifiers, or module:function."
        ),
    ] = "math",
) -> None:
    """Grade responses against answers: one JSON line out per line in, a summary on standard error."""
    from covrl.evaluation.grade import grade_file, summary_text
    from covrl.rewards.code_tests import isolation_notes

    for note in isolation_notes(verifier):
        print(note, file=sys.stderr, flush=True)
    print(summary_text(grade_file(file, sys.stdout, verifier)), file=sys.stderr)


@app.command()
def algorithms(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the methods: paper, evidence, the prompts and models that score a trace, whether they need a verifier."""
    _cpu_defaults()
    from covrl.algorithms.listing import list_algorithms

    found = list_algorithms()
    if as_json:
        import json
        from dataclasses import asdict

        print(json.dumps([asdict(method) for method in found], ensure_ascii=False))
        return
    from rich.console import Console

    from covrl.cli.show import show_algorithms

    show_algorithms(Console(), found)


@app.command("config")
def config_command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]…", help="Sections, settings or methods. [every section]")
    ] = None,
    check: Annotated[Path | None, typer.Option(metavar="FILE", help="Check a settings file; load nothing.")] = None,
    settings: Settings = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print a JSON schema, for editors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, of all methods too.")] = False,
) -> None:
    """List settings with default, unit and evidence; check a file; print a JSON schema for editors."""
    if (check is not None) + schema + as_json > 1 or (names and (check is not None or schema)):
        raise UserError("give one of names, --check FILE, --schema and --json (names go with --json)")
    if settings and check is None:
        raise UserError("--set changes settings of a file: give it with --check")
    _cpu_defaults()
    from covrl.cli.settings import run_config

    run_config(names or [], check, schema, as_json, settings or [])


@app.command()
def data(
    source: Annotated[str, typer.Argument(help="File, hf:NAME:SPLIT, or digits:test.")],
    config: Annotated[Path | None, typer.Option(help="TOML file for fields, prompts and model.")] = None,
    settings: Settings = None,
    model: Annotated[
        str | None, typer.Option(help="Count its tokens. [the file's; without either, characters are counted]")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="Look for its problems in this source too; may be repeated.")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows that are shown as they will be read.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON line.")] = False,
) -> None:
    """Show a set of problems as it will be read: rows, lengths, forms of answers, duplicates, overlap with others."""
    _cpu_defaults()
    from covrl.cli.data import DataRequest, run_data

    run_data(DataRequest(source, config, settings or [], model, against or [], rows, as_json))


@app.command()
def recipe(
    name: Annotated[str | None, typer.Argument(help="Of a recipe. [all are listed]")] = None,
) -> None:
    """List the recipes, or print one: a settings file to start from."""
    from covrl.recipes import find_recipe, list_recipes

    if name is not None:
        print(find_recipe(name).file.read_text(encoding="utf-8"), end="")
        return
    from rich.console import Console

    from covrl.cli.settings import show_recipes

    show_recipes(Console(), list_recipes())


@app.command()
def doctor() -> None:
    """Show what is installed, which device is used, and what is missing."""
    _cpu_defaults()
    from rich.console import Console

    from covrl.cli.doctor import examine
    from covrl.cli.show import show_findings

    show_findings(Console(), examine())


@app.command()
def compare(
    config: Annotated[Path, typer.Option(help="TOML file of a run: methods are compared on its model and problems.")],
    algorithms: Annotated[str, typer.Option(metavar="A,B,…", help="Methods or their named variants.")],
    settings: Settings = None,
    seeds: Annotated[str, typer.Option(metavar="0,1,…", help="Seeds of the runs.")] = "0,1,2",
    rates: Annotated[str, typer.Option(metavar="R,…", help="Learning rates. [the file's]")] = "",
    budget: Annotated[str, typer.Option(help="steps or tokens (generated): what is the same for all.")] = "steps",
    steps: Annotated[int | None, typer.Option(min=1, help="With --budget steps. [the file's]")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="With --budget tokens.")] = 300_000,
    split: Annotated[
        str | None,
        typer.Option(
            help="What the trained models are measured on: held_out or test. [both, where the file has problems.test]"
        ),
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", "--samples", min=0, help="Samples per problem (avg@n, pass@k).")] = 8,
    limit: Annotated[
        int | None, typer.Option("--limit", "--problems", min=1, help="Measure on the first problems only.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of table, page and results. [runs/compare-NAME]"),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the table and the page.")] = "compare",
    commit: Annotated[
        str | None, typer.Option(help="Count results of this commit only; HEAD: the present one.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Trainings at a time. [one a core; on an accelerator 1]")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each training. [cores divided by jobs]")] = None,
    only_list: Annotated[bool, typer.Option("--list", help="List finished and missing results; run nothing.")] = False,
) -> None:
    """Train methods on the same model and problems, a few at a time, and compare them; what is missing is run."""
    _cpu_defaults()
    from covrl.comparison.compare import ask_for, compare_and_show

    folder = out or Path("runs") / f"compare-{config.stem}"
    typed = (algorithms, seeds, rates, budget, steps, tokens, split, n, limit, folder, commit)
    asked = ask_for(config, settings or [], *typed)
    if not compare_and_show(asked, name, only_list, jobs, threads):
        raise typer.Exit(1)


def _cpu_defaults() -> None:
    """Settings that must be in the environment before torch is imported; what the user set is kept.

    Idle OpenMP threads that spin take processor time from other work, and slow small models down.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Without a network it reports every retry before our one line of error.
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main() -> None:
    """Run the command line; a user's mistake is one line and exit code 2, a fault of ours a traceback and 1."""
    try:
        sys.exit(app(standalone_mode=False))
    except typer.TyperException as error:  # a wrong option or argument
        said = error.format_message()
        if not said:  # without arguments the help was printed and there is nothing to add
            sys.exit(2)
        end(f"{said} (covrl --help)".replace("\n", " "), 2)
    except (typer.Abort, KeyboardInterrupt):
        end("interrupted", 130)
    except UserError as error:
        end(str(error), 2)
    except TrainingStoppedError as error:
        end(str(error), 130 if isinstance(error, RunInterruptedError) else 1)
    except Exception as error:
        from covrl.distributed.deferred_oom import is_out_of_memory

        if not is_out_of_memory(error):  # unexpected: Python would print it unfiltered, with whatever it quotes
            crash(error)
        said = (str(error).splitlines() or [type(error).__name__])[0]
        end(f"{said}: lower generation.rows_per_pass, or take a smaller model or a larger device", 1)
