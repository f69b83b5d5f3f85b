"""8-bit moments: the codes, the update, memory against the plan, checkpoints, several processes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models import tiny
from safetensors.torch import load_file
from torch import Tensor, nn
from training.test_step import make_run

from covrl.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from covrl.checkpoints.resuming import check_config
from covrl.config import LoraConfig, RunConfig, TrainingConfig, check
from covrl.distributed.parts import load_parts, names_in
from covrl.errors import UserError
from covrl.models import eight_bit
from covrl.models.blockwise import blocks_of
from covrl.models.eight_bit import WORK, WORK_OF_SHORT, Codec, EightBitAdamW, dynamic_map, moment_bytes
from covrl.planning.live import LiveBytes
from covrl.planning.phases import Job, gradient_bytes
from covrl.planning.phases import moment_bytes as planned_moments
from covrl.planning.weightless import shape_of
from covrl.training.memory import model_bytes
from covrl.training.needs import moments
from covrl.training.optimizer import make_optimizer
from covrl.training.run import Run
from covrl.training.step import take_step
from covrl.training.undo import whole_or_undone

sys.path.insert(0, str(Path(__file__).parent))
import many
import many_eight
from test_parallel import apart, make_models
from worlds import Worlds

CPU = torch.device("cpu")
EIGHT = {"eight_bit_moments": True}


def optimizer_of(parameters: list[nn.Parameter], **settings: float) -> torch.optim.Optimizer:
    return make_optimizer(parameters, TrainingConfig.model_validate({**EIGHT, **settings}))


@pytest.mark.parametrize(("signed", "least", "most"), [(True, 5.5e-7, 0.9929688), (False, 3.25e-7, 0.9964844)])
def test_the_values_of_the_codes_are_those_of_the_paper(signed: bool, least: float, most: float) -> None:
    """A sign, so many zeros for the decade, an indicator bit, and a fraction of the bits that are left."""
    values = dynamic_map(signed)
    assert len(values) == 256
    assert bool((values.diff() > 0).all())
    above = values[values > 0].tolist()
    assert above[0] == pytest.approx(least)
    assert above[-2:] == pytest.approx([most, 1.0])
    if signed:
        assert torch.equal(values[values < 0], -values[(values > 0) & (values < 1)].flip(0))
    counts = [int(((values > 0.1 * 10.0**-d) & (values < 10.0**-d)).sum()) for d in range(7)]
    assert counts == [(64 if signed else 128) >> d for d in range(7)]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("width", [8, 256, 300, 576])
def test_a_number_becomes_the_nearest_value_of_its_blocks_scale(signed: bool, width: int) -> None:
    torch.manual_seed(0)
    values = torch.randn(5, width) * torch.logspace(-6, 2, width)
    values = values if signed else values.square()
    blocks = blocks_of(width, eight_bit.BLOCK)
    codes, scales = torch.zeros(5, width, dtype=torch.uint8), torch.zeros(5, blocks)
    codec = Codec.of(signed, CPU)
    codec.write(values, codes, scales)
    size = -(-width // blocks)
    assert blocks == {8: 1, 256: 1, 300: 2, 576: 3}[width]
    for i in range(width):
        mine = values[:, i // size * size : (i // size + 1) * size]
        scale = mine.abs().amax(-1)
        assert torch.equal(scales[:, i // size], scale)
        table = dynamic_map(signed) * scale[:, None]
        nearest = table.gather(1, (table - values[:, i : i + 1]).abs().argmin(-1, keepdim=True))[:, 0]
        read = codec.read(codes, scales)[:, i]
        floored = (nearest == 0) & (values[:, i] > 0) & (not signed)
        assert torch.equal(read, torch.where(floored, dynamic_map(signed)[1] * scale, nearest))
    codec.write(torch.zeros(5, width), codes, scales)
    assert not codec.read(codes, scales).any()


def moved_without_gradient(monkeypatch: pytest.MonkeyPatch, floor: bool) -> float:
    """How far a weight moves, in learning rates, on a step without gradient behind one with a small gradient beside a
    large one."""
    own = Codec.of
    monkeypatch.setattr(Codec, "of", lambda signed, device: replace(own(signed, device), floor=floor and not signed))
    weight = nn.Parameter(torch.zeros(1, 2))
    optimizer = optimizer_of([weight], learning_rate=1.0)
    weight.grad = torch.tensor([[1.0, 1e-4]])
    optimizer.step()
    before = weight.detach().clone()
    weight.grad = torch.zeros(1, 2)
    optimizer.step()
    return float((weight.detach() - before)[0, 1].abs())


def test_a_second_moment_never_becomes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the first one is divided by 1e-8 alone."""
    assert moved_without_gradient(monkeypatch, floor=True) < 1
    assert moved_without_gradient(monkeypatch, floor=False) > 100


def both(steps: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """How far weights move in so many steps with 8-bit moments, and with whole ones, on the same gradients."""
    torch.manual_seed(1)
    start = torch.randn(shape, dtype=dtype)
    gradients = [torch.randn(shape, dtype=dtype) + 0.5 * start for _ in range(steps)]
    moves = []
    for settings in (EIGHT, {}):
        weight = nn.Parameter(start.clone())
        config = TrainingConfig.model_validate({**settings, "learning_rate": 1e-2, "weight_decay": 0.1})
        optimizer = make_optimizer([weight], config)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        moves.append(weight.detach() - start)
    return moves[0], moves[1]


def test_the_update_is_adamws() -> None:
    """The first step to rounding, as moments are rounded behind it; vectors to rounding always."""
    assert apart(*both(1, (20, 300))) < 1e-5
    assert apart(*both(30, (300,))) < 1e-5
    assert apart(*both(30, (300,), torch.float64)) < 1e-14
    assert 1e-4 < apart(*both(30, (20, 300))) < 0.02
    assert apart(*both(1, (20, 300), torch.float64)) < 1e-5  # moments are of float32


def test_another_librarys_optimizer_does_the_same() -> None:
    """torchao's AdamW8bit, where it is installed, on rows of whole blocks, as its blocks run across rows. Codes differ
    in the last one where sums were rounded otherwise."""
    torchao = pytest.importorskip("torchao.optim")
    torch.manual_seed(0)
    start = torch.randn(64, 2 * eight_bit.BLOCK)
    mine, peer = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = optimizer_of([mine], learning_rate=1e-2, weight_decay=0.1)
    other = torchao.AdamW8bit([peer], lr=1e-2, betas=TrainingConfig().adam_betas, weight_decay=0.1)
    with torch.compiler.set_stance("force_eager"):  # else it compiles a kernel for each shape
        for _ in range(30):
            mine.grad = torch.randn_like(start) + 0.3 * start
            peer.grad = mine.grad.clone()
            optimizer.step()
            other.step()
    assert apart(mine.detach() - start, peer.detach() - start) < 1e-4
    for name in eight_bit.MOMENTS:
        ours, theirs = optimizer.state[mine], other.state[peer][name]
        assert float((ours[name] == theirs.codes).float().mean()) > 0.999
        assert torch.allclose(ours[name + eight_bit.SCALE].flatten(), theirs.scale, rtol=1e-3)


def test_portions_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = both(5, (20, 300))
    monkeypatch.setattr(eight_bit, "CHUNK", 700)
    parts, _ = both(5, (20, 300))
    assert torch.equal(whole, parts)


@pytest.mark.parametrize(("dtype", "work"), [(torch.float32, WORK), (torch.bfloat16, WORK_OF_SHORT)])
@pytest.mark.parametrize("width", [1024, 576, 300])
def test_a_step_takes_what_the_plan_says(
    width: int, dtype: torch.dtype, work: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside weights, gradients and state; with rows that must be filled up, and with rows that need not."""
    weight = nn.Parameter(torch.randn(64, width, dtype=dtype))
    optimizer = optimizer_of([weight])
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    state = list(optimizer.state[weight].values())
    assert sum(t.nbytes for t in state[1:]) == moment_bytes([weight])
    held = [weight, weight.grad, *state]
    with LiveBytes(held) as live:
        live.restart()
        before = live.live
        optimizer.step()
        took = live.peak - before
    assert took == pytest.approx(work * weight.numel(), rel=0.05)
    monkeypatch.setattr(eight_bit, "CHUNK", 8 * width)
    with LiveBytes(held) as live:
        live.restart()
        before = live.live
        optimizer.step()
        assert live.peak - before < took / 4


def test_the_plan_counts_codes_scales_and_vectors() -> None:
    model = tiny("gpt2", 97)
    job = Job("mixed", 1, True, False, rows=1, prompt=1, trace=1, siblings=1, eight_bit=True)
    shape = shape_of(model.config, LoraConfig())
    trained = list(model.parameters())
    assert planned_moments(shape, job) == moment_bytes(trained)
    assert planned_moments(shape, job) < 0.35 * planned_moments(shape, replace(job, eight_bit=False))
    half = planned_moments(shape, replace(job, ranks=2))
    assert half == pytest.approx(moment_bytes(trained) / 2, abs=2)
    adapted = shape_of(model.config, LoraConfig(rank=4))
    assert planned_moments(adapted, job) == planned_moments(adapted, replace(job, ranks=2))  # whole on every rank
    assert planned_moments(adapted, job) < 0.55 * 2 * gradient_bytes(adapted, job)


def test_a_run_measures_them() -> None:
    runs = [make_run(training=settings) for settings in (EIGHT, {})]
    eight, plain = map(moments, runs)
    assert plain == 2 * model_bytes(runs[1])["gradients"]
    assert eight == moment_bytes(runs[0].parameters) < 0.2 * plain  # of float64
    take_step(runs[0])
    steps = 4 * len(runs[0].parameters)
    assert eight == model_bytes(runs[0])["optimizer"] - steps


def states(run: Run) -> list[Tensor]:
    (optimizer,) = run.optimizers.values()
    assert isinstance(optimizer, EightBitAdamW)
    return [value for parameter in run.parameters for value in optimizer.state[parameter].values()]


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    run = make_run(training=EIGHT)
    take_step(run)
    take_step(run)
    folder = save_checkpoint(run, tmp_path, 1)
    names = load_file(folder / "optimizer.safetensors")
    assert {t.dtype for name, t in names.items() if name.endswith("c_fc.weight.exp_avg")} == {torch.uint8}
    assert {name.rpartition(".")[2] for name in names} == {
        "step",
        "exp_avg",
        "exp_avg_sq",
        "exp_avg_scale",
        "exp_avg_sq_scale",
    }
    later = make_run(training=EIGHT)
    later.models["policy"].model.load_state_dict(run.models["policy"].model.state_dict())
    load_checkpoint(later, folder)
    for a, b in zip(states(run), states(later), strict=True):
        assert torch.equal(a, b)
    for each in (run, later):
        take_step(each)
    for a, b in zip([*run.parameters, *states(run)], [*later.parameters, *states(later)], strict=True):
        assert torch.equal(a, b)


def test_a_step_that_is_undone_leaves_them_as_they_were() -> None:
    run = make_run(training={**EIGHT, "mini_batches": 2})
    take_step(run)
    before = [t.clone() for t in states(run)]

    def fails() -> None:
        with whole_or_undone(run):
            for parameter in run.parameters:
                parameter.grad = torch.ones_like(parameter)
            run.optimizers["policy"].step()
            assert not all(map(torch.equal, before, states(run)))
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fails()
    assert all(map(torch.equal, before, states(run)))


def test_what_does_not_go_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="eight_bit_moments and offload_moments do not go together: set one of them"):
        check(TrainingConfig, {**EIGHT, "offload_moments": True})
    model = {"model": {"path": "-"}}
    was, now = (check(RunConfig, {**model, "training": settings}) for settings in ({}, EIGHT))
    method = type(make_run().algorithm)
    with pytest.raises(UserError, match=r"training\.eight_bit_moments is True, but up to step 3 the run was trained"):
        check_config({"config": was.model_dump(mode="json"), "done": 3}, now, method, tmp_path / "config.toml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, worlds: Worlds) -> Path:
    """A run of one process, what two made of its second step, and a run of two."""
    folder = tmp_path_factory.mktemp("eight")
    make_models(folder)
    many_eight.train(folder, folder / "by-one")
    many.cut(folder / "by-one", folder / "one-cut")
    done = worlds("many_eight", str(folder), path=Path(__file__).parent, limit=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def last_state(run: Path) -> Tensor:
    """Weights and moments of a run's last checkpoint, codes with their scales, in the order of their names."""
    step = run / "checkpoints" / "step-000003"
    model = load_file(step / "model" / "model.safetensors")
    parts = step / "optimizer" if (step / "optimizer").is_dir() else step
    numbers: dict[str, Tensor] = dict(model)
    there = names_in(parts)
    for name, weight in model.items():
        for kind, signed in (("exp_avg", True), ("exp_avg_sq", False)):
            empty = EightBitAdamW.empty_state(weight)
            found = {
                f"{name}.{key}": t for key, t in empty.items() if key.startswith(kind) and f"{name}.{key}" in there
            }
            load_parts(found, parts)
            codes, scales = (found.get(f"{name}.{kind}{end}") for end in ("", eight_bit.SCALE))
            assert codes is not None
            numbers[f"{name}.{kind}"] = codes if scales is None else Codec.of(signed, CPU).read(codes, scales)
    return torch.cat([numbers[name].double().flatten() for name in sorted(numbers)])


def test_two_processes_have_the_run_of_one_and_exchange_checkpoints_with_it(folder: Path) -> None:
    """Blocks end with their row, so each rank's are those of one process."""
    expected = last_state(folder / "by-one")
    assert apart(last_state(folder / "by-two"), expected) <= 1e-7  # scales are of float32
    assert apart(last_state(folder / "one-cut"), expected) <= 1e-7
    many_eight.resume(folder / "two-cut")
    assert apart(last_state(folder / "two-cut"), expected) <= 1e-7


def test_two_processes_resume_bit_for_bit(folder: Path) -> None:
    assert torch.equal(last_state(folder / "two-again"), last_state(folder / "by-two"))
