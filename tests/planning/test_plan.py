"""The plan: each line is its arithmetic, and a table agrees with the bytes of a run's live tensors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import save_tiny
from plan_tables import BEGIN, END, PAGE, SHAPES, tables
from projects import write_rows
from transformers import CONFIG_MAPPING, AutoConfig
from typer.testing import CliRunner

from covrl.api import build
from covrl.cli.app import app
from covrl.cli.plan import plan_for
from covrl.config import LoraConfig, RunConfig, check, read_toml
from covrl.errors import UserError
from covrl.generation.base import Draw, Sampling
from covrl.generation.engine import TorchGenerator
from covrl.planning.live import LiveBytes
from covrl.planning.phases import (
    Hardware,
    Job,
    Passes,
    Phase,
    block_backward,
    cast_bytes,
    distinct_prompts,
    drawing_bytes,
    gathered_blocks,
    gathered_ends,
    gathered_gradients,
    gradient_bytes,
    head_backward,
    key_value_bytes,
    loading,
    moment_bytes,
    optimizer_step,
    other_models,
    phases,
    sampling,
    scoring,
    slots,
    weight_bytes,
    whole_bytes,
)
from covrl.planning.planner import readings_of
from covrl.planning.weightless import HeadBytes, Shape, TrunkBytes, Way, head_bytes, shape_of, trunk_bytes
from covrl.records import ScoredGroup
from covrl.scoring.pack import make_unit
from covrl.training.gradient import add_gradient
from covrl.training.reading_plan import reading_plan
from covrl.training.rollouts import sample
from covrl.training.run import Run
from covrl.training.scores import score_groups

ROOT = Path(__file__).parents[2]
MODELS = ROOT.parent / "shared" / "configs" / "models.json"

SHAPE = Shape(
    base=1000,
    adapters=0,
    trained=1000,
    blocks=690,
    block=200,
    layers=4,
    head=150,
    tied=False,
    linear=600,
    keys=16,
    vocabulary=50,
    width=3,
)
ADAPTED = replace(SHAPE, adapters=40, trained=40)
JOB = Job("mixed", ranks=1, sharded=True, offload_moments=False, rows=8, prompt=10, trace=100, siblings=4)
SHARDED = replace(JOB, ranks=3)
TRUNK = TrunkBytes(read=2000, forward=5000, kept=4500, backward=6000)
PASSES = Passes(TRUNK, replace(TRUNK, read=1300), HeadBytes(700, 100, 900), HeadBytes(50, 10, 90))


@pytest.mark.parametrize(
    ("text", "devices", "memory"),
    [("8x80GB", 8, 80e9), ("1x24GB", 1, 24e9), (" 2 × 79.6 gb", 2, 79.6e9), ("16x141GB", 16, 141e9)],
)
def test_hardware_is_devices_and_the_memory_of_each(text: str, devices: int, memory: float) -> None:
    assert Hardware.named(text) == Hardware(devices, round(memory))


@pytest.mark.parametrize("text", ["", "80GB", "8x80", "0x80GB", "8x0GB", "8x80TB", "8*80GB", "-1x80GB", "8x80GB each"])
def test_hardware_that_is_written_otherwise_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match='such as "8x80GB" or "1x24GB"'):
        Hardware.named(text)


def test_weights_gradients_and_moments() -> None:
    assert weight_bytes(SHAPE, JOB) == 4000
    assert weight_bytes(SHAPE, SHARDED) == 1334  # a part, rounded up
    assert weight_bytes(SHAPE, replace(SHARDED, sharded=False)) == 4000
    assert weight_bytes(SHAPE, replace(JOB, dtype="bfloat16")) == 2000
    assert weight_bytes(SHAPE, replace(JOB, dtype="float64")) == 8000
    assert weight_bytes(ADAPTED, replace(SHARDED, dtype="bfloat16")) == 667 + 160  # adapters whole, in float32
    assert gradient_bytes(SHAPE, SHARDED) == 1334
    assert gradient_bytes(ADAPTED, replace(SHARDED, dtype="bfloat16")) == 160
    assert moment_bytes(SHAPE, SHARDED) == 2668


def test_casts_and_gathers_are_one_or_the_other() -> None:
    assert cast_bytes(SHAPE, JOB) == 1200
    assert cast_bytes(SHAPE, replace(JOB, dtype="bfloat16")) == cast_bytes(SHAPE, SHARDED) == 0
    assert whole_bytes(SHAPE, JOB) == gathered_blocks(SHAPE, JOB) == gathered_gradients(SHAPE, JOB) == 0
    assert whole_bytes(SHAPE, SHARDED) == 2 * 690 + 4 * 310  # all but the blocks as wide as it is
    assert gathered_blocks(SHAPE, SHARDED) == 2 * 2 * 200 + 4 * 310
    assert gathered_ends(SHAPE, SHARDED) == 4 * 310
    assert gathered_gradients(SHAPE, SHARDED) == 4 * 310 + 2 * 200 * (2 + 4)
    assert gathered_ends(ADAPTED, SHARDED) == gathered_gradients(ADAPTED, SHARDED) == gathered_ends(SHAPE, JOB) == 0


def test_loading_holds_a_whole_copy_unless_ranks_load_their_parts() -> None:
    assert loading(SHAPE, SHARDED).lines == {"weights": 4000, "casts": 2 * (600 + 150)}
    assert loading(SHAPE, replace(SHARDED, dtype="bfloat16")).total == 2000
    assert loading(SHAPE, replace(SHARDED, loads_parts=True)).total == weight_bytes(SHAPE, SHARDED)


def test_models_beside_the_policy() -> None:
    two = replace(SHARDED, copies=2)
    assert other_models(SHAPE, two, read=False) == 8000  # whole on every rank
    away = replace(two, away=True)
    assert (other_models(SHAPE, away, read=False), other_models(SHAPE, away, read=True)) == (0, 8000)


def test_keys_and_values_grow_by_doubling() -> None:
    assert [slots(n) for n in (1, 64, 65, 100, 128, 129, 300, 2048)] == [1, 64, 65, 100, 128, 129, 300, 2048]
    row = 16 * (10 + 100) * 2
    assert key_value_bytes(SHAPE, JOB) == 8 * row + 8 * row // 4  # one of four layers twice
    assert drawing_bytes(SHAPE, JOB) == 8 * 50 * 2 + 20 * 8 * 50
    assert drawing_bytes(replace(SHAPE, vocabulary=10**6), replace(JOB, rows=64)) == 64 * 10**6 * 2 + 20 * (4 << 20)
    assert [distinct_prompts(replace(JOB, rows=rows)) for rows in (1, 4, 5, 8)] == [1, 1, 2, 2]


def test_sampling_is_reading_the_prompts_or_the_last_token() -> None:
    held = {"weights": 4000, "other models": 0, "moments": 8000}
    casts = {"casts": 1200 + 300, "gathered weights": 0}
    decoding = {"keys and values": key_value_bytes(SHAPE, JOB), "head": drawing_bytes(SHAPE, JOB)}
    assert sampling(SHAPE, JOB, PASSES).lines == held | casts | decoding
    long = replace(PASSES, prefill=replace(TRUNK, read=10**6))
    prompts = 8 * 16 * (10 + 64) * 2
    reading = {"keys and values": prompts, "activations": 10**6 - 1200 + 2 * 8 * 50 * 4}
    assert sampling(SHAPE, JOB, long).lines == held | casts | reading
    assert sampling(SHAPE, replace(JOB, samples_here=False), PASSES).lines == held
    assert sampling(SHAPE, replace(JOB, engine_bytes=77), PASSES).lines == held | {"keys and values": 77}


def test_scoring_is_the_trunk_or_the_head() -> None:
    held = {"weights": 4000, "other models": 0, "moments": 8000, "gathered weights": 0}
    assert scoring(SHAPE, JOB, PASSES).lines == held | {"casts": 1200, "activations": 800}
    assert scoring(SHAPE, JOB, replace(PASSES, trace=HeadBytes(801, 1, 2))).lines == held | {"head": 801}


def test_a_training_pass_is_at_its_most_in_the_head_or_in_the_blocks() -> None:
    held = {"weights": 4000, "other models": 0, "moments": 8000, "gradients": 4000, "gathered weights": 0}
    head = {"casts": 1200, "activations": 3300, "head": 110 + 800, "gathered gradients": 0}
    assert head_backward(SHAPE, JOB, PASSES, 1200).lines == held | head
    blocks = {"casts": 1200, "activations": 4800, "head": 0, "gathered gradients": 0}
    assert block_backward(SHAPE, JOB, PASSES, 1200).lines == held | blocks
    tied = replace(SHAPE, tied=True)
    assert block_backward(tied, JOB, PASSES, 1200).total == block_backward(SHAPE, JOB, PASSES, 1200).total + 600
    assert block_backward(tied, SHARDED, PASSES, 0).lines["head"] == 0  # it is among the gathered ones
    forward = replace(PASSES, trunk=replace(TRUNK, forward=7000))
    assert block_backward(SHAPE, JOB, forward, 0).lines == held | {"casts": 1200, "activations": 5800}


def test_moments_may_be_there_in_the_optimizers_step_alone() -> None:
    away = replace(JOB, offload_moments=True)
    assert [p.lines["moments"] for p in phases(SHAPE, away, PASSES, False)[1:]] == [0, 0, 0, 0, 8000]
    assert optimizer_step(SHAPE, away).total == optimizer_step(SHAPE, JOB).total == 4000 + 4000 + 8000


def config_of(name: str) -> Any:
    """A model's config by its name in models.json."""
    if not MODELS.is_file():
        pytest.skip("the shapes of published models are not there")
    table = json.loads(MODELS.read_text())[name]
    del table["parameters"]
    return CONFIG_MAPPING[table.pop("model_type")](**table)


def test_the_weights_of_published_models_are_counted() -> None:
    names = json.loads(MODELS.read_text()) if MODELS.is_file() else {}
    for name, table in names.items():
        shape = shape_of(config_of(name), LoraConfig())
        assert shape.base == shape.trained == table["parameters"], name
        assert shape.tied == table["tie_word_embeddings"], name
        assert shape.layers == table["num_hidden_layers"], name
        assert shape.block * shape.layers == shape.blocks, name
        assert shape.ends == shape.head * (1 if shape.tied else 2) + shape.width, name


def test_live_bytes_count_each_storage_once_and_until_its_end() -> None:
    weight = torch.zeros(10)
    with LiveBytes([weight]) as live:
        made = torch.zeros(100)
        view, more = made[:5], made + 1
        del made
        assert (live.live, live.peak) == (840, 840)
        del view
        assert (live.live, live.peak) == (440, 840)
        live.restart()
        more.add_(1)
        assert (live.live, live.peak) == (440, 440)


TRACE = 96
"""Tokens of a trace, at most; more than a row's first slots."""

SIZES: dict[str, tuple[str, dict[str, int]]] = {
    "wide vocabulary, tied": ("llama", {"hidden_size": 64, "vocab_size": 400, "tie_word_embeddings": True}),
    "deep": ("qwen2", {"hidden_size": 48, "num_hidden_layers": 7}),
    "wide blocks": ("qwen3", {"hidden_size": 64, "intermediate_size": 512, "num_hidden_layers": 3}),
}


def run_of(folder: Path, family: str, sizes: dict[str, int], dtype: str, recompute: bool) -> Run:
    save_tiny(family, folder / "model", max_position_embeddings=256, **sizes)
    write_rows(folder / "train.jsonl", [{"question": f"{i}+{i}", "answer": str(2 * i)} for i in range(6)])
    prompts = {"user": "{question}", "prior_open": "=", "posterior_open": "({hint})=", "close": "e"}
    table = {
        "model": {"path": str(folder / "model"), "device": "cpu", "dtype": dtype},
        "problems": {"train": str(folder / "train.jsonl")},
        "prompts": {**prompts, "answer_prefix": ":", "answer_suffix": ";"},
        "generation": {"max_trace_tokens": TRACE, "max_answer_tokens": 4, "rows_per_pass": 64},
        "training": {
            "problems_per_step": 6, "rollouts_per_problem": 4, "tokens_per_pass": 100_000, "recompute": recompute,
            "stream_norms_every": 0,
        },
    }  # fmt: skip
    return build(check(RunConfig, table))


def measured(run: Run) -> tuple[dict[str, int], list[ScoredGroup]]:
    """Bytes of live tensors at most in each phase of a step, after a first one; and what it sampled."""
    for parameter in run.parameters:
        parameter.grad = torch.zeros_like(parameter)
    (optimizer,) = run.optimizers.values()
    optimizer.step()
    run.forget_gradient()
    state = [v for s in optimizer.state.values() for v in s.values()]
    model = run.models["policy"].model
    found: dict[str, int] = {}
    with LiveBytes([*model.parameters(), *model.buffers(), *state]) as live:
        groups = sample(run, run.source.problems, Draw(0, 0))
        live.restart()
        requests = [r.request for g in groups for r in g.rollouts]
        assert isinstance(run.generator, TorchGenerator)
        run.generator._eos = frozenset()  # so that every row goes to the limit
        run.generator.generate(requests, Sampling(TRACE, stop="no such text"), Draw(0, 1))
        found["sampling"] = live.peak
        kept = {g.problem.id for g in run.algorithm.admit(score_groups(run, groups)).kept}
        groups = [g for g in groups if g.problem.id in kept]
        live.restart()
        scored = score_groups(run, groups)
        found["scoring"] = live.peak
        credits = run.algorithm.credit(scored)
        for parameter in run.parameters:  # as earlier passes leave it
            parameter.grad = torch.zeros_like(parameter)
        live.restart()
        add_gradient(run.algorithm, run.models, scored, credits, run.limits, reading_plan(run.algorithm, False))
        found["training"] = live.peak
        live.restart()
        optimizer.step()
        found["AdamW"] = live.peak
    return found, scored


def planned(run: Run, scored: list[ScoredGroup]) -> tuple[Phase, ...]:
    """The plan's table for what was sampled and kept, on this CPU; all of it was decoded side by side."""
    config, algorithm = AutoConfig.from_pretrained(run.config.model.path), run.algorithm
    way = Way(run.config.model.dtype, run.config.training.recompute, fused=False)
    shape, reads = shape_of(config, LoraConfig()), readings_of(algorithm, False)
    pairs = [(g.problem, r) for g in scored for r in g.rollouts]
    units = [make_unit(i, algorithm.contexts, algorithm.training, *pair) for i, pair in enumerate(pairs)]
    rows = [(row.ids, row.prompt) for unit in units for row in unit.rows.values()]
    tokens = sum(len(r.trace_ids) for _, r in pairs)
    assert reads.trace is not None
    trace = head_bytes(shape, way.dtype, reads.trace[0], tokens, 2, run.limits.logits_bytes, device="cpu")
    prompts = [(ids, 0) for ids in {r.request.prompt_ids for _, r in pairs}]
    longest = max(len(ids) for ids, _ in prompts)
    decoded = run.config.training.problems_per_step * run.config.training.rollouts_per_problem
    job = Job(way.dtype, 1, True, False, rows=decoded, prompt=longest, trace=TRACE, siblings=2)
    passes = Passes(trunk_bytes(config, way, rows), trunk_bytes(config, way, prompts), trace)
    return phases(shape, job, passes, way.recompute)


@pytest.mark.parametrize(
    ("name", "dtype", "recompute"),
    [
        ("wide vocabulary, tied", "float32", False),
        ("deep", "float32", False),
        ("deep", "mixed", False),
        ("wide blocks", "float32", True),
    ],
)
def test_the_plan_is_within_a_tenth_of_the_live_bytes_of_a_run(
    name: str, dtype: str, recompute: bool, tmp_path: Path
) -> None:
    run = run_of(tmp_path, *SIZES[name], dtype, recompute)
    found, scored = measured(run)
    table = {phase.name: phase.total for phase in planned(run, scored)}
    said = {name: table[name] for name in ("sampling", "scoring", "AdamW")}
    said["training"] = max(table["head"], table["blocks"])
    assert said == {phase: pytest.approx(size, rel=0.1) for phase, size in found.items()}


def recipe_of(name: str, folder: Path, changed: dict[str, Any] | None = None) -> RunConfig:
    """A recipe, with its model's config in a folder that holds nothing else."""
    config = {"model_type": "qwen2", "vocab_size": 152064, "tie_word_embeddings": False, **SHAPES[name]}
    (folder / "config.json").write_text(json.dumps(config))
    table = read_toml(ROOT / "recipes" / f"covrl-paper-{name}.toml")
    table["model"]["path"] = str(folder)
    table["training"] |= changed or {}
    return check(RunConfig, table)


@pytest.mark.parametrize("name", SHAPES)
def test_the_published_setting_fits_eight_devices_of_80_gb(name: str, tmp_path: Path) -> None:
    config = recipe_of(name, tmp_path)
    training = config.training
    assert (training.problems_per_step, training.rollouts_per_problem) == (192, 8)
    assert config.generation.max_trace_tokens == 2048
    plan = plan_for(config, Hardware.named("8x80GB"))
    assert plan.fits, [(p.name, p.total) for p in plan.phases]
    assert plan.advice == ()
    assert plan.largest.total > 0.5 * plan.limit  # and is no toy
    assert (plan.tokens, plan.rows) == (16384, config.generation.rows_per_pass)
    assert not plan.lengths.counted


def test_the_page_has_the_tables_of_the_recipes() -> None:
    """Else: python benchmarks/plan_tables.py."""
    shown = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert shown.strip() == tables()
    assert shown.count("it fits.") == len(SHAPES)


def test_what_does_not_fit_is_told_what_to_change(tmp_path: Path) -> None:
    config = recipe_of("7b", tmp_path, {"recompute": False})
    plan = plan_for(config, Hardware.named("8x80GB"))
    assert not plan.fits
    assert plan.largest.name in ("head", "blocks")
    assert len(plan.advice) == 1
    assert plan.advice[0].startswith("set training.recompute = true: the largest phase (")
    assert plan.advice[0].endswith(", it fits")


def test_the_command_prints_the_table_and_needs_no_weights(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, max_position_embeddings=256)
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    write_rows(tmp_path / "train.jsonl", [{"question": "1+1", "answer": "2"}, {"question": "10+10", "answer": "20"}])
    (tmp_path / "run.toml").write_text(
        f'[model]\npath = "{tmp_path}"\n[problems]\ntrain = "{tmp_path / "train.jsonl"}"\n'
        "[generation]\nmax_trace_tokens = 32\n"
    )
    given = ["--config", str(tmp_path / "run.toml")]
    done = CliRunner().invoke(app, ["train", *given, "--dry-run", "--plan", "2x0.5GB"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    for text in ("loading", "sampling", "scoring", "head", "blocks", "AdamW", "keys and values", "it fits"):
        assert text in done.output
    assert "counted on the longest problem" in " ".join(done.output.split())
    for wrong, said in (
        (["--plan", "8x80GB"], "give --dry-run with it"),
        (["--dry-run", "--plan", "eight"], 'such as "8x80GB"'),
        (["--dry-run", "--plan", "8x80", "--set", "problems.train=nowhere.jsonl"], "--plan '8x80': write devices"),
    ):
        with pytest.raises(UserError, match=said):
            CliRunner().invoke(app, ["train", *given, *wrong], catch_exceptions=False)
