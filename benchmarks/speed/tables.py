"""docs/results/speed.md from the figures that were saved: no number in it is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from speed.memory import SHOWN
from speed.refill import LENGTHS
from speed.step import named

Record = Mapping[str, Any]

HEAD = """# Speed: what was measured

Written by `python benchmarks/run.py --tables` from the figures in `docs/results/speed`, which `python
benchmarks/run.py --save` measures. Seconds are CPU seconds of the process unless wall is said; three numbers are the
median with least and most. What each part does and why it is fair stands at the top of its file in `benchmarks/speed`.
"""


def steepest(r: Record, name: str) -> float:
    """The larger of the exponents over all sizes and at the end."""
    return max(r["grown"][name]["exponent"], r["grown"][name]["last_exponent"])


GOALS: tuple[tuple[str, str, str, Callable[[Record], float], float, bool], ...] = (
    ("GRPO step, M, prompt 34: TRL / ours", "step-M-34-1-threads", "≥ 1.6", lambda r: r["ratio"], 1.6, True),
    ("GRPO step, M, prompt 256: TRL / ours", "step-M-256-1-threads", "≥ 3.5", lambda r: r["ratio"], 3.5, True),
    ("GRPO step, S: TRL / ours", "step-S-1-threads", "≥ 1.4", lambda r: r["ratio"], 1.4, True),
    ("generation: ours / `generate`", "generation-1-threads", "≥ 2.5", lambda r: r["ratio"], 2.5, True),
    (
        "512 requests in 64 rows, lengths differ: refilled / waves",
        "refill",
        "≥ 1.3",
        lambda r: r["workloads"]["M-early"]["ratio"][0],
        1.3,
        True,
    ),
    ("CoVRL's training part / GRPO's", "covrl", "≤ 2.2", lambda r: r["ratio"], 2.2, False),
    ("GRPO step, SmolLM2, wall: TRL / ours", "step-REAL-2-threads", "≥ 2.3", lambda r: r["wall_ratio"], 2.3, True),
    ("CoVRL's training part / GRPO's, SmolLM2, wall", "covrl-REAL", "≤ 2.4", lambda r: r["ratio"], 2.4, False),
    (
        "CoVRL's steps without stream norms, SmolLM2: most resident, GiB",
        "covrl-REAL",
        "< 6",
        lambda r: r["covrl"]["peak_mb"] / 1024,
        6.0,
        False,
    ),
    ("memory of a step, M-wide: TRL / ours, fastest", "memory", "> 1", lambda r: r["ratio_fastest"], 1.0, True),
    ("memory of a step, M-wide: TRL / ours, smallest", "memory", "> 1", lambda r: r["ratio_smallest"], 1.0, True),
    ("DASH's gain, measured / predicted", "dash", "≥ 0.9", lambda r: r["share"][0], 0.9, True),
    ("growth with problems, exponent", "growth", "≤ 1.1", lambda r: steepest(r, "problems"), 1.1, False),
    ("growth with rollouts, exponent", "growth", "≤ 1.1", lambda r: steepest(r, "rollouts"), 1.1, False),
    ("growth with the prompt, exponent", "growth", "< 1", lambda r: steepest(r, "prompt"), 1.0, False),
    ("`covrl quickstart` to its first step, wall s", "first-step", "≤ 10", lambda r: r["wall"][0], 10.0, False),
)
"""What, the file of its record, the goal in words, where the figure is, the bound, and whether more is better."""


def write(saved: Path) -> list[str]:
    """Make ``speed.md`` beside the folder of figures; the files that were written."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted(saved.glob("*.json"))}
    page = saved.parent / "speed.md"
    page.write_text(render(records))
    return [str(page)]


def render(records: Mapping[str, Record]) -> str:
    """The page."""
    parts = [HEAD, table(("goal", "asked", "measured", ""), goals(records))]
    steps = [r for name, r in records.items() if name.startswith("step-")]
    if steps:
        head = ("workload", "threads", "ours", "TRL", "TRL / ours", "wall", "floor", "ours, MiB", "TRL, MiB")
        parts += ["## A GRPO step against TRL's", table(head, map(step_row, steps)), *settings(steps)]
    for title, name, make in (
        ("Sampling responses of different lengths", "generation", generation_rows),
        ("More prompts than rows: places refilled against waves", "refill", refill_rows),
        ("CoVRL's training part over GRPO's", "covrl", covrl_rows),
        ("Memory of a step at a vocabulary of 151,936", "memory", memory_rows),
        ("DASH against its micro-batched baseline", "dash", dash_rows),
        ("A step's time as work grows", "growth", growth_rows),
        ("`covrl quickstart` to its first step", "first-step", first_step_rows),
        ("On an accelerator", "device", device_rows),
    ):
        for key in (key for key in records if key.startswith(name)):
            parts += [f"## {title}{threads_of(key)}", *make(records[key])]
    parts += [
        "## Where it was measured",
        table(("figures", "commit", "repeats", "machine"), map(origin, records.values())),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def goals(records: Mapping[str, Record]) -> list[tuple[str, ...]]:
    """A row for each goal that has a record."""
    rows = []
    for what, name, asked, figure, bound, more in GOALS:
        if name in records:
            value = figure(records[name])
            met = value >= bound if more else value <= bound
            rows.append((what, asked, f"{value:.2f}", "met" if met else "missed"))
    return rows


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def range_of(values: Sequence[float], digits: int = 2) -> str:
    """Median with least and most."""
    middle, low, high = (f"{v:,.{digits}f}" for v in values)
    return f"{middle} ({low} to {high})"


def threads_of(key: str) -> str:
    """Which number of threads a record's name says."""
    *_, count, last = ("", "", *key.split("-"))
    return f", {count} thread{'s' if count != '1' else ''}" if last == "threads" else ""


def step_row(r: Record) -> tuple[str, ...]:
    """One workload's step."""
    ours, peer = r["ours"], r["peer"]
    return (
        r["workload"],
        str(r["threads"]),
        range_of(ours["cpu"]),
        range_of(peer["cpu"]),
        f"{r['ratio']:.2f}",
        f"{r['wall_ratio']:.2f}",
        f"{r['floor_s']:.2f} ({r['floor_share']:.0%})",
        f"{ours['step_mb'][0]:,.0f}",
        f"{peer['step_mb'][0]:,.0f}",
    )


def settings(steps: Sequence[Record]) -> list[str]:
    """What each side ran with, our phases, and whether both give the same log-probs."""
    head = ("workload", "threads", "ours", "TRL", "our generate, score, train", "log-probs apart, fp32 and bf16")
    rows = []
    for r in steps:
        phases = ", ".join(f"{r['ours']['phases'][name]:.2f}" for name in ("generate", "score", "train"))
        apart = ", ".join(f"{r['log_probs'][d]['largest']:.0e}" for d in ("float32", "mixed") if d in r["log_probs"])
        same = "" if r["log_probs"]["equal"] else ": DIFFER"
        used = [", ".join(map(str, r[side]["settings"].values())) for side in ("ours", "peer")]
        rows.append((r["workload"], str(r["threads"]), *used, phases, apart + same))
    said = (
        "Memory is the peak of a step over model, gradients and optimizer. The floor is the step's matrix products "
        "alone, at rates measured in the same run."
    )
    return [said, table(head, rows)]


def refill_rows(r: Record) -> list[str]:
    """Rates of both ways, by workload."""
    head = (
        "workload",
        "tokens of a response",
        "useful tokens a CPU second, refilled",
        "waves",
        "ratio",
        "same responses",
    )
    rows = [
        (
            name,
            LENGTHS[name],
            *(range_of(one[way], 0) for way in ("refilled", "waves")),
            range_of(one["ratio"]),
            f"{one['same']:.1%}",
        )
        for name, one in r["workloads"].items()
    ]
    return [f"{r['requests']} requests, {r['rows']} rows side by side, float32.", table(head, rows)]


def generation_rows(r: Record) -> list[str]:
    """Rates of both sides."""
    rows = [
        (side, ", ".join(map(str, r[side]["settings"].values())), *(range_of(r[side][n], 0) for n in names))
        for side in ("ours", "peer")
        for names in [("tokens_per_cpu_s", "tokens_per_wall_s", "tokens")]
    ]
    rows = [("ours" if side == "ours" else "generate", *rest) for side, *rest in rows]
    head = ("side", "settings", "useful tokens a CPU second", "a wall second", "useful tokens")
    return [table(head, rows), f"Ratio {r['ratio']:.2f}."]


def covrl_rows(r: Record) -> list[str]:
    """Seconds by phase; records of before there were two clocks are of CPU seconds."""
    names = ("step", "generate", "score", "train", "training_part")
    clock = r.get("clock", "cpu")
    rows = [
        (method, *(range_of(r[method][clock][n]) for n in names), f"{r[method]['tokens']['generated']:,.0f}")
        for method in ("grpo", "covrl")
    ]
    head = ("method", *(n.replace("_", " ") for n in names), "tokens sampled")
    said = (
        f"{r['workload']}: training part {r['ratio']:.2f}, whole step {r['step_ratio']:.2f} "
        f"({r['settings']['dtype']}, {clock} seconds)."
    )
    if "peak_mb" in r["covrl"]:
        both = (f"{method} {r[method]['peak_mb']:,.0f} MiB" for method in ("grpo", "covrl"))
        said += f" Most that was resident: {', '.join(both)}."
    return [table(head, rows), said]


def memory_rows(r: Record) -> list[str]:
    """Memory of the chosen settings, and our largest logits."""
    rows = [
        (
            name.replace("_", ", ").replace("peer", "TRL"),
            named(r[name]["settings"]),
            range_of(r[name]["step_mb"], 0),
            f"{r[name]['gradients_mb'] + r[name]['optimizer_mb']:,.0f}",
            range_of(r[name]["peak_mb"], 0),
            f"{r[name]['cpu']:.1f}",
        )
        for name in SHOWN
    ]
    head = ("side", "settings", "MiB of the step", "gradients and optimizer", "peak RSS", "CPU s a step")
    largest = [
        (f"{one['vocabulary']:,}", phase, f"{v['mb']:,.1f}", f"{v['shape']}, {v['dtype']}")
        for one in r["largest"].values()
        for phase, v in one["largest"].items()
    ]
    bound = next(iter(r["largest"].values()))["bound_mb"]
    left = [f"Left out: {', '.join(f'{k} {v}' for k, v in one.items())}." for one in r["left_out"]]
    said = f"Our largest tensors with a vocabulary axis; `training.logits_mb_per_chunk` = {bound}:"
    return [table(head, rows), *left, said, table(("vocabulary", "phase", "MiB", "shape, dtype"), largest)]


def dash_rows(r: Record) -> list[str]:
    """Gain of batching, and the filter's line."""
    rates = r["rates"]
    sampled = ", ".join(f"{n} rows {s:.2f} s" for n, s in rates["generate_s"].items())
    rows = [
        (name, range_of(r[key]))
        for name, key in (
            ("gain of a window over single batches, measured", "measured"),
            ("predicted from the rates", "predicted"),
            ("measured / predicted", "share"),
        )
    ]
    said = (
        f"Rates: sampling {sampled}; the rest of a step {rates['per_update_s']:.3f} s an update and "
        f"{rates['per_response_s']:.4f} s a response."
    )
    share = r["filter"]
    filtered = [
        (f"{rows:.0f}", f"{step:.2f}", f"{train:.2f}")
        for rows, step, train in zip(
            share["dropped_rows"], share["step"]["seconds"], share["train"]["seconds"], strict=True
        )
    ]
    fits = (
        f"The filter: rows dropped of {share['rows']} without signal. Lines through them: the step "
        f"{-1000 * share['step']['slope']:.1f} ms less for each dropped row (R² {share['step']['r2']:.3f}), its "
        f"training phase {-1000 * share['train']['slope']:.1f} ms (R² {share['train']['r2']:.3f})."
    )
    return [table(("gain", ""), rows), said, fits, table(("rows dropped", "step, s", "train, s"), filtered)]


def growth_rows(r: Record) -> list[str]:
    """Seconds at each size, and the plot."""
    rows = [
        (
            name,
            str(size),
            range_of(v, 3),
            f"{one['exponent']:.2f}, at the end {one['last_exponent']:.2f}" if i == 0 else "",
        )
        for name, one in r["grown"].items()
        for i, (size, v) in enumerate(zip(one["sizes"], one["cpu"], strict=True))
    ]
    plot = "![CPU seconds of a step against problems, rollouts and prompt tokens](speed/growth.svg)"
    return [plot, table(("grows", "size", "CPU seconds a step", "exponent"), rows)]


def first_step_rows(r: Record) -> list[str]:
    """The wall seconds and their parts."""
    rows = [(name, f"{seconds:.2f}") for name, seconds in r["parts"].items()]
    return [f"{range_of(r['wall'])} wall seconds. In parts:", table(("part", "wall seconds"), rows)]


def device_rows(r: Record) -> list[str]:
    """Rates and phases of each run."""
    head = (
        "run",
        "tokens sampled a second",
        "trained a second",
        "step, s",
        "generate, score, train, s",
        "MFU",
        "peak MiB",
    )
    rows = [
        (
            name,
            *(range_of(one[k], 0) for k in ("generated_per_s", "trained_per_s")),
            range_of(one["step"]),
            ", ".join(f"{one[phase][0]:.2f}" for phase in ("generate", "score", "train")),
            f"{one['mfu'][0]:.1%}, training {one['mfu_train'][0]:.1%}",
            f"{one['peak_mb'][0]:,.0f}",
        )
        for name, one in r["runs"].items()
    ]
    notes = dict.fromkeys(note for one in r["runs"].values() for note in one["notes"])
    devices = dict.fromkeys(one["device"] for one in r["runs"].values())
    return [table(head, rows), f"Device: {', '.join(devices)}. {' '.join(notes)}"]


def origin(r: Record) -> tuple[str, ...]:
    """Where a record comes from."""
    m, peer = r["machine"], r.get("peer_versions")
    versions = f"torch {m['torch']}, transformers {m['transformers']}"
    versions += f", TRL {peer['trl']}" if peer else ""
    name = f"{r['name']}, {r['threads']} thread{'s' if r['threads'] > 1 else ''}"
    return name, r["commit"], str(r["repeats"]), f"{m['processor']}, {m['cores']} cores, {versions}"
