"""What the commands print besides live progress. Model text goes through :func:`visible`, never through markup."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from covrl.reporting.format import duration, number
from covrl.reporting.tables import TitledTable, show_table
from covrl.reporting.text import one_line, visible

if TYPE_CHECKING:
    from covrl.algorithms.listing import Listed
    from covrl.cli.doctor import Finding
    from covrl.evaluation.ask import Reply
    from covrl.prompts import Prompts
    from covrl.records import Row
    from covrl.training.dry_run import Cost, DryRun

SOURCE_STYLES = {"prior": "blue", "posterior": "dark_orange"}
SPAN_STYLES = {"trace": "bold green", "answer": "bold magenta"}


def show_model_path(console: Console, path: Path) -> None:
    """The last lines of a training: where the model is, and the code that loads it or merges its adapter."""
    place = str(path.resolve())
    lines = [
        f"adapter  {place}",
        f"covrl merge {shlex.quote(place)} --out FOLDER   # a plain model of it and its base",
    ]
    if not (path / "adapter_config.json").is_file():
        reader = _reader(path)
        lines = [
            f"model  {place}",
            f"from transformers import {reader}, AutoTokenizer",
            f"model, tokenizer = (c.from_pretrained({place!r}) for c in ({reader}, AutoTokenizer))",
        ]
    for line in lines:
        console.print(Text(line), soft_wrap=True, highlight=False)


def _reader(path: Path) -> str:
    """The class of transformers that loads a model that we saved, with its vision part if it has one."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    return "AutoModelForImageTextToText" if "vision_config" in config else "AutoModelForCausalLM"


def show_dry_run(console: Console, found: DryRun, prompts: Prompts) -> None:
    """Rows with coloured spans and token counts, every sampled trace, and the cost."""
    console.print(Text(f"problem {visible(found.problem.id)}", "bold"))
    for name, row in found.rows.items():
        counts = ", ".join(f"{span} {stop - start}" for span, (start, stop) in row.spans.items())
        console.print(Text(f"\n{name}: {len(row.ids)} tokens ({counts})", "bold"))
        console.print(_coloured(row, prompts))
    console.print(Text(f"\n{len(found.rollouts)} traces", "bold"))
    for rollout in found.rollouts:
        head = f"{visible(rollout.source):9} {rollout.finish:6} {len(rollout.trace_ids):4} tokens  "
        console.print(Text.assemble((head, "dim"), visible(rollout.text)))
    console.print(Text(f"valid {found.valid:.0%}, truncated {found.truncated:.0%}", "bold"))
    if found.gain_said:
        console.print(Text(visible(found.gain_said)))
    for note in found.notes:
        console.print(Text(f"note: {visible(note)}", "dark_orange"))
    console.print(_cost_table(found.cost))


def _coloured(row: Row, prompts: Prompts) -> Text:
    edges = sorted({0, len(row.ids), *(edge for span in row.spans.values() for edge in span)})
    text = Text()
    for start, stop in pairwise(edges):
        style = next((SPAN_STYLES.get(n, "cyan") for n, s in row.spans.items() if s.start <= start < s.stop), "")
        piece = prompts.tokenizer.decode(list(row.ids[start:stop]), skip_special_tokens=False)
        text.append(visible(str(piece)), style)
    return text


def _cost_table(cost: Cost) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("estimate", ""):
        table.add_column(name, justify="left" if name else "right")
    sizes = {
        "weights": cost.needs.weights,
        "gradients": cost.needs.gradients,
        "gradients of streams, when measured": cost.needs.apart,
        "optimizer": cost.needs.optimizer,
        "activations, one pass": cost.activations,
        "logits at once, at most": cost.needs.logits,
    }
    for name, size in sizes.items():
        table.add_row(name, mebibytes(size))

    def size(bytes_: int) -> Text:
        return Text(mebibytes(bytes_), "bold red" if bytes_ > cost.machine.total else "")

    table.add_row("memory in a training pass", size(cost.memory))
    table.add_row("rows while sampling, at most", mebibytes(cost.rows * cost.needs.row))
    table.add_row("memory while sampling", size(cost.sampling))
    table.add_row(f"there is, of {cost.machine.of}", mebibytes(cost.machine.total))
    table.add_row("disk", mebibytes(cost.disk))
    table.add_row("time, all steps", duration(cost.seconds))
    return table


def mebibytes(size: float) -> str:
    """Bytes as MiB or GiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def show_replies(console: Console, replies: Sequence[Reply]) -> None:
    """One row per trace: model, prompt, log p of the answer after it, the trace."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("model")
    table.add_column("prompt")
    table.add_column("log p(answer)", justify="right")
    table.add_column("trace", overflow="fold", ratio=1)
    for reply in replies:
        missing = "" if reply.rollout.valid else "no closing tag"
        value = missing if reply.answer_log_prob is None else number(reply.answer_log_prob, "nats")
        style = SOURCE_STYLES[reply.source]
        table.add_row(Text(visible(reply.model)), Text(reply.source, style), value, Text(visible(reply.rollout.text)))
    console.print(table)


def show_findings(console: Console, findings: Sequence[Finding]) -> None:
    """The doctor's findings, with advice if something is missing, and a summary in the last line."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for what, found, well, advice in findings:
        table.add_row(Text(what), Text(visible(found), "" if well else "bold red"), Text(visible(advice), "dim"))
    console.print(table)
    wrong = [finding.what for finding in findings if not finding.well]
    console.print(Text(f"to be looked at: {', '.join(wrong)}" if wrong else "all that covrl needs is there", "bold"))


def show_leaks(console: Console, record: Mapping[str, Any]) -> None:
    """The rates of `covrl leak` by prompt, its sentence, and examples of each kind."""
    names = ("own_early", "shown_early", "other_early", "admits")
    heads = ["prompt", "states own answer early", "the shown one", "another problem's", "admits"]
    rows = []
    for source, found in record["rates"].items():
        cells = []
        for name in names:
            low, high = found["intervals"].get(name, (0.0, 0.0))
            spread = f" ({100 * low:.1f} to {100 * high:.1f})" if low < high else ""
            cells.append(number(found.get(name), "share") + spread)
        rows.append([source, *cells])
    about = f"{record['problems']:,} problems, {record['n']} traces each and prompt; 95 % intervals over problems"
    show_table(console, TitledTable(f"{record['model']} on {record['problem_source']}", about, heads, rows))
    for example in record["examples"]:
        kind = f"admits: {example['admits']}" if example["admits"] else "early" if example["early"] else "clean"
        head = f"{one_line(example['question'], 60)}  (answer {one_line(example['shown'], 30)}; {one_line(kind, 50)})"
        console.print(Text(head, "dim"))
        console.print(Text(f"  {one_line(example['trace'], 300)}"))
    console.print(Text(visible(record["sentence"]), "bold"))
    anchored = record["anchoring"]
    if anchored is not None:
        console.print(Text(visible(anchored["sentence"]), "bold"))


def show_style(console: Console, record: Mapping[str, Any]) -> None:
    """One style of `covrl prompts`: both prompts of the first problem, and a trace of each."""
    console.print(Text(f"\n{record['style']}", "bold"))
    for note in record["notes"]:
        console.print(Text(f"note: {visible(note)}", "dark_orange"))
    prior, posterior = record["prompts"]["prior"], record["prompts"]["posterior"]
    parted = next((i for i, (a, b) in enumerate(zip(prior, posterior, strict=False)) if a != b), len(prior))
    same = prior[:parted].rfind("\n") + 1  # up to the line in which they differ
    for role, text in {"prior": prior, "posterior": posterior[same:]}.items():
        example = record["examples"][role]
        parts = ", from where they part" if role == "posterior" and same else ""
        console.print(Text(f"{role} prompt{parts}", "dim"))
        console.print(Text(visible(text)))
        console.print(Text(f"a {role} trace ({example['finish']})", "dim"))
        console.print(Text(one_line(example["trace"], 300), SOURCE_STYLES[role]))


def show_styles(console: Console, record: Mapping[str, Any]) -> None:
    """The figures of all styles, those that cannot be used, and the recommendation."""
    rows = []
    for style in record["styles"]:
        rows.append([style["style"], "", "", "", "", ""])
        for role in ("prior", "posterior"):
            found = style[role]
            low, high = found["closed_interval"]
            closed = f"{found['closed']:.0%} ({100 * low:.0f} to {100 * high:.0f})"
            count = round(found["closed"] * found["traces"])
            rows.append([f"  {role}", closed, f"{found['cut']:.0%}", number(found["tokens"]), _nats(found), f"{count}"])
        gain = style["posterior_gain"]
        gained = {"log_prob": gain["nats"], "log_prob_interval": gain["interval"]}
        rows.append(["  gain", "", "", "", _nats(gained), f"{gain['problems']}"])
        rows.append(["  empty", "", "", "0", _nats(style["empty"]), f"{record['problems']}"])
    heads = ["thoughts", "closed", "cut", "tokens", "log p(answer)", "n"]
    about = (
        f"{record['problems']:,} problems, {record['n']} {'trace' if record['n'] == 1 else 'traces'} of each prompt "
        f"for each, up to {record['max_tokens']:,} tokens; log p(answer): nats with the text that ends the answer, "
        "after the n traces that closed, and after an empty thought; gain: posterior less prior, on n problems; in "
        "brackets the 95\u00a0% interval, of closed over traces, else over problems"
    )
    show_table(console, TitledTable(f"{record['model']} on {record['problem_source']}", about, heads, rows))
    for name, why in record["unusable"].items():
        console.print(Text(f"{name} cannot be used: {one_line(why, 160)}"))
    for sentence in record["sentences"]:
        console.print(Text(visible(sentence), "bold"))


def _nats(found: Mapping[str, Any]) -> str:
    """A mean log-prob with its interval."""
    ends = found["log_prob_interval"]
    return number(found["log_prob"]) + (f" ({number(ends[0])} to {number(ends[1])})" if ends else "")


def show_algorithms(console: Console, methods: Sequence[Listed]) -> None:
    """Each method with its paper, its evidence, the prompts and models that score a trace, and a recipe."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for method in methods:
        needs = "needs a verifier" if method.needs_verifier else "no verifier"
        reads = f"reads {', '.join(method.contexts)}"
        about = "; ".join([method.paper, method.evidence, reads, needs, method.recipe or "no recipe"])
        known = Text.assemble(visible(method.summary), (f"\n{visible(about)}", "dim"))
        table.add_row(Text(method.name, "bold"), known)
    console.print(table)
    console.print(Text("their equations and our choices: docs/methods/NAME.md", "dim"))
