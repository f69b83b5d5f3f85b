"""`covrl eval`: figures of models on problems and benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from covrl.cli.options import PromptsFile, Settings, cpu_defaults


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
    config: PromptsFile = None,
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
    cpu_defaults()
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
