"""What benchmarks/speed computes from its measurements, and its workers on a tiny model. Nothing here is timed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import save_tiny
from torch import nn

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import run  # noqa: E402
from speed import (  # noqa: E402
    agree,
    covrl_share,
    dash,
    device,
    floor,
    generation,
    growth,
    memory,
    ours,
    processes,
    refill,
    step,
    tables,
    workloads,
)
from speed.fit import Line, batching_gain, exponent, line  # noqa: E402
from speed.processes import WorkerError, spread  # noqa: E402

sys.path.remove(str(ROOT / "benchmarks"))  # its scripts have names that folders of tests have too

TINY = {"hidden": 32, "layers": 1, "problems": 2, "rollouts": 3, "prompt": 6, "new": 12}


def test_a_line_through_points_and_what_it_explains() -> None:
    assert line([0, 1, 2], [1, 3, 5]) == Line(1.0, 2.0, 1.0)
    found = line([0, 1, 2, 3], [0, 1, 1, 0])
    assert (found.start, found.slope, found.r2) == pytest.approx((0.5, 0.0, 0.0))
    with pytest.raises(ValueError, match="two different"):
        line([2, 2], [1, 3])


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_is_its_power(power: float) -> None:
    sizes = [2, 4, 8, 32]
    assert exponent(sizes, [0.3 * size**power for size in sizes]) == pytest.approx(power)


def test_batching_gains_what_calls_and_updates_cost() -> None:
    free = Line(0.0, 0.0, 1.0)
    assert batching_gain(8, 4, {4: 1.0, 32: 2.0}, free) == pytest.approx(4.0)
    assert batching_gain(8, 4, {4: 1.0, 32: 8.0}, free) == pytest.approx(1.0)
    # 8 x (1 + 0.5 + 4 x 0.25) over 2 + 0.5 + 32 x 0.25
    assert batching_gain(8, 4, {4: 1.0, 32: 2.0}, Line(0.5, 0.25, 1.0)) == pytest.approx(20 / 10.5)


def test_useful_tokens_end_with_the_first_end_token() -> None:
    assert generation.useful([[4, 9, 9, 3], [4, 4, 4, 4], [9, 0, 0, 0]], end=9) == 2 + 4 + 1


def test_the_search_keeps_what_is_faster_and_says_what_it_left_out() -> None:
    costs = {("a", 1): 5.0, ("b", 1): 3.0, ("b", 2): 4.0}

    def trial(settings: dict[str, Any]) -> float:
        if settings["size"] == 3:
            raise WorkerError("out of memory")
        return costs[settings["kind"], settings["size"]]

    choices = {"kind": ("a", "b"), "size": (1, 2, 3, 4)}
    found = step.search(choices, trial, lambda s: "too large" if s["size"] == 4 else None)
    assert found.best() == {"kind": "b", "size": 1}
    assert [cost for _, cost in found.tried] == [5.0, 3.0, 4.0]
    assert [(s["size"], why) for s, why in found.left_out] == [(3, "out of memory"), (4, "too large")]


def test_a_search_without_a_trial_that_works_says_why() -> None:
    def fails(_: dict[str, Any]) -> float:
        raise WorkerError("no TRL here")

    with pytest.raises(WorkerError, match="no TRL here"):
        step.search({"kind": ("a", "b")}, fails, lambda _: None).best()


def test_settings_that_cannot_fit_are_refused_before_they_crash() -> None:
    wide = workloads.WORKLOADS["M-wide"]
    assert "do not fit" in (step.unfit(wide, {"micro": 64}, free=12_000) or "")
    assert step.unfit(wide, {"micro": 8}, free=12_000) is None
    assert "no multiple" in (step.unfit(workloads.WORKLOADS["S-long"], {"micro": 16}, free=12_000) or "")


def test_the_tolerance_is_that_of_the_dtype() -> None:
    assert agree.within("float32", {"largest": 1e-5, "mean": 1e-6})
    assert not agree.within("float32", {"largest": 1e-3, "mean": 1e-6})
    assert agree.within("mixed", {"largest": 0.1, "mean": 0.01})
    assert not agree.within("mixed", {"largest": 0.1, "mean": 0.05})


@pytest.mark.parametrize(("end", "close", "new"), [(0.0, 0.0, 64), (1 / 16, 0.0, 64), (0.0, 1 / 64, 5)])
def test_the_mean_length_is_the_expectation(end: float, close: float, new: int) -> None:
    workload = replace(workloads.WORKLOADS["S"], end=end, close=close, new=new)
    go_on = 1 - end - close
    assert workload.mean_length == pytest.approx(sum(go_on**t for t in range(new)))


def test_prompts_are_different_and_have_their_length() -> None:
    workload = workloads.WORKLOADS["M-34"]
    found = workloads.questions(workload, 3)
    assert len(set(found)) == len(found) == 3 * workload.problems
    assert {len(text) for text in found} == {34}


def test_the_floor_counts_each_product_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "_seconds", lambda rows, inner, outer: float(rows * inner * outer))
    tiny = replace(workloads.WORKLOADS["S"], **TINY)  # 32 wide, 4/2 heads, 88 inside, 1 layer, vocabulary 512
    block, head = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 88, 32 * 512
    prompts, responses = 2 * 6, 6 * 12
    sampling = prompts * block + responses * (block + head)
    training = 3 * ((prompts + responses) * block + responses * head)
    assert floor.floor_seconds(tiny, torch.get_num_threads()) == pytest.approx(sampling + training)


def test_what_the_filter_saves_is_the_line_through_the_medians() -> None:
    runs = [
        {"dropped": [0.0, 4.0, 8.0], "rows": 8, "step": [10.0 + noise, 8.0, 6.0], "train": [4.0, 2.0, 0.0]}
        for noise in (-1.0, 0.0, 1.0)
    ]
    found = dash.filter_figures(runs)
    assert found["step"]["slope"] == pytest.approx(-0.5)
    assert found["step"]["r2"] == pytest.approx(1.0)
    assert found["train"]["saved_if_all_dropped"] == pytest.approx(1.0)


def test_the_training_part_is_scoring_and_training() -> None:
    def run(score: float, train: float, tokens: int) -> dict[str, Any]:
        phases = {"generate": [2.0], "score": [score], "train": [train], "other": [0.0]}
        metrics = {"trace/invalid_share": [0.25]}
        found = {"cpu": [2.0 + score + train], "phases": phases, "tokens": {"generated": [tokens]}, "metrics": metrics}
        return found | {"peak_mb": float(tokens)}

    found = covrl_share.summary({"grpo": [run(1.0, 3.0, 60)], "covrl": [run(2.0, 8.0, 61)]})
    assert found["ratio"] == pytest.approx(2.5)
    assert found["step_ratio"] == pytest.approx(2.0)
    assert found["covrl"]["tokens"] == {"generated": 61}
    assert found["covrl"]["peak_mb"] == 61.0


def test_a_run_of_several_steps_counts_with_their_mean() -> None:
    def run(train: list[float]) -> dict[str, Any]:
        none = [0.0] * len(train)
        phases = {"generate": none, "score": none, "train": train, "other": none}
        figures = {"tokens": {}, "metrics": {"trace/invalid_share": none}, "peak_mb": 1.0}
        return {"cpu": train, "phases": phases, **figures}

    looks_once = [run([8.0, 8.0, 8.0, 8.0, 13.0])]  # a median of steps would lose the look
    found = covrl_share.summary({"grpo": [run([3.0])], "covrl": looks_once})
    assert found["ratio"] == pytest.approx(3.0)


def test_seconds_are_those_of_the_workloads_clock() -> None:
    def run(wall: float) -> dict[str, Any]:
        phases = {"generate": [1.0], "score": [0.0], "train": [wall - 1.0], "other": [0.0]}
        return {
            "cpu": [99.0],
            "wall": [wall],
            "phases": phases,
            "tokens": {},
            "metrics": {"trace/invalid_share": [0.0]},
            "peak_mb": 1.0,
        }

    found = covrl_share.summary({"grpo": [run(3.0)], "covrl": [run(5.0)]}, workloads.WORKLOADS["REAL"].clock)
    assert (found["ratio"], found["step_ratio"]) == pytest.approx((2.0, 5 / 3))
    assert found["covrl"]["wall"]["step"] == [5.0] * 3


def test_settings_of_a_real_model_fit_the_processor_unless_they_are_to_be_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = workloads.WORKLOADS["REAL"]
    for units, dtype in ((["amx_bf16"], "mixed"), ([], "float32")):
        monkeypatch.setattr(step, "machine", lambda units=units: {"bfloat16": units})
        taken = step.find_settings(processes.Bench(tmp_path, real=tmp_path), real)
        assert [found.best()["dtype"] for found in taken.values()] == [dtype, dtype]
    with pytest.raises(processes.WorkerError, match="no model was given"):
        step.find_settings(processes.Bench(tmp_path, search=True), real)


def test_both_sides_ask_the_same_and_a_chats_last_turn_is_what_was_written() -> None:
    from speed import peer

    letters, real = (workloads.WORKLOADS[name] for name in ("S", "REAL"))
    assert peer.prompts(letters, 1) == workloads.questions(letters, 1)
    turns = peer.prompts(real, 5)
    assert [turn["content"] for (turn,) in turns] == workloads.questions(real, 5)
    assert len(turns) == 5 * real.problems
    assert peer.written("so") == peer.written([{"role": "assistant", "content": "so"}]) == "so"


def test_the_median_step_of_each_run_is_what_counts() -> None:
    runs = [
        {"cpu": [1.0, 2.0, 9.0], "wall": [1.0], "step_mb": mb, "peak_mb": 100.0, "phases": {"train": [0.5]}}
        for mb in (30.0, 10.0, 20.0)
    ]
    found = step.figures(runs)
    assert found["cpu"] == [2.0, 2.0, 2.0]
    assert found["step_mb"] == [20.0, 10.0, 30.0]
    assert found["phases"] == {"train": 0.5}
    assert spread([3.0, 1.0]) == [2.0, 1.0, 3.0]


def test_the_plot_has_a_panel_for_each_course() -> None:
    assert growth.round_numbers(0.3, 4) == [0.2, 0.5, 1.0, 2.0, 5.0]
    one = {"sizes": [2, 4, 8], "cpu": [[0.1] * 3, [0.2] * 3, [0.4] * 3], "exponent": 1.0, "last_exponent": 1.0}
    drawn = growth.plot({"grown": {"problems": one, "prompt": one}})
    assert drawn.count("<circle") == 6
    assert "tokens of a prompt" in drawn


def test_the_page_says_which_goals_are_met() -> None:
    about = {"threads": 1, "repeats": 5, "commit": "abc", "peer_versions": {"trl": "1.16"}}
    machine = {"processor": "P", "cores": 2, "torch": "2", "transformers": "5"}
    first = {"name": "first-step", "wall": [12.0, 11.0, 13.0], "parts": {"import torch": 1.5}, "machine": machine}
    page = tables.render({"first-step": about | first})
    assert "| `covrl quickstart` to its first step, wall s | ≤ 10 | 12.00 | missed |" in page
    assert "12.00 (11.00 to 13.00)" in page
    assert "TRL 1.16" in page
    first["wall"] = [9.0, 8.0, 10.0]
    assert "| 9.00 | met |" in tables.render({"first-step": about | first})


def test_the_page_has_refilled_places_against_waves() -> None:
    one = {"refilled": [150.0] * 3, "waves": [100.0] * 3, "ratio": [1.5, 1.4, 1.6], "tokens": 9, "same": 1.0}
    whole = {"requests": 512, "rows": 64, "workloads": {"M-early": one}, "goal": 1.3}
    assert "ratio 1.50 (1.40 to 1.60)" in refill.text(whole)[0]
    about = {"name": "refill", "threads": 1, "repeats": 5, "commit": "abc", "peer_versions": {}}
    machine = {"processor": "P", "cores": 2, "torch": "2", "transformers": "5"}
    page = tables.render({"refill": about | whole | {"machine": machine}})
    assert "| 512 requests in 64 rows, lengths differ: refilled / waves | ≥ 1.3 | 1.50 | met |" in page
    assert "| M-early | mean 16 of at most 64 | 150 (150 to 150) | 100 (100 to 100) | 1.50 (1.40 to 1.60) |" in page


def test_the_largest_logits_are_seen_in_forward_and_backward() -> None:
    head = nn.Linear(6, 50, bias=False)
    mode = memory.watch(vocabulary=50, hidden=6)
    with mode:
        mode.phase = "train"
        head(torch.ones(4, 6)).logsumexp(-1).sum().backward()
        mode.phase = "score"
        head(torch.ones(3, 6))
    assert mode.largest["train"] == (4 * 50 * 4, [4, 50], "float32")
    assert mode.largest["score"][1] == [3, 50]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("speed")


def task(models: Path, name: str, **more: Any) -> dict[str, Any]:
    """A worker's task on a tiny workload."""
    changes = TINY | more.pop("changes", {})
    asked = {"workload": name, "changes": changes, "threads": torch.get_num_threads(), "dtype": "float32"}
    model = workloads.make_model(workloads.workload_of(asked), models)
    return asked | {"model": str(model), **more}


@pytest.fixture(autouse=True)
def _own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    from covrl.training import step

    monkeypatch.setattr(step, "Clock", step.Clock)  # workers put their own in its place


def test_our_worker_takes_steps_of_the_workload(models: Path) -> None:
    found = ours.main(task(models, "S", steps=2))
    assert len(found["cpu"]) == len(found["wall"]) == 2
    assert found["tokens"]["generated"] == [2 * 3 * 12] * 2  # no response ends early
    parts = [found["phases"][name][0] for name in ("generate", "score", "train", "other")]
    assert all(seconds >= 0 for seconds in parts)
    assert sum(parts) <= found["cpu"][0]  # they are parts of the step
    assert found["optimizer_mb"] == pytest.approx(2 * found["gradients_mb"], rel=0.01)
    held = found["loaded_mb"] + found["gradients_mb"] + found["optimizer_mb"]
    assert found["step_mb"] == pytest.approx(found["peak_mb"] - held)


def test_thoughts_close_and_their_answers_are_read(models: Path) -> None:
    close = {"vocabulary": 512, "heads": (4, 2), "new": 40, "close": 1 / 8, "hidden": 64}
    asked = task(models, "M-close", changes=close, steps=1)
    grpo, covrl = (ours.main(asked | {"algorithm": method}) for method in ("grpo", "covrl"))
    assert covrl["metrics"]["trace/invalid_share"][0] < 0.5
    assert grpo["tokens"]["generated"][0] < 6 * 40  # they end at the closing token
    assert covrl["tokens"]["trained"][0] > 2 * covrl["tokens"]["generated"][0]  # both contexts, and answers


@pytest.mark.parametrize("method", ["grpo", "covrl"])
def test_a_real_models_traces_all_have_their_length_and_are_closed(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tiny model stands for the pretrained one; its end token is sampled, and ends nothing."""
    from covrl.generation import trace

    monkeypatch.setattr(trace, "Trace", trace.Trace)  # the worker puts its own in its place
    save_tiny("llama", tmp_path / "m")
    asked = {"workload": "REAL", "changes": {"problems": 2, "rollouts": 2, "new": 40}, "threads": 1, "dtype": "float32"}
    found = ours.main(asked | {"model": str(tmp_path / "m"), "algorithm": method, "steps": 2, "warm": 0})
    assert found["tokens"]["generated"] == [2 * 2 * 40] * 2
    assert found["metrics"]["trace/invalid_share"] == [0.0, 0.0]


def test_rows_without_signal_are_dropped_by_their_share(models: Path) -> None:
    found = dash.filtering(task(models, "S", shares=[0.0, 0.5, 1.0]))
    assert found["dropped"] == [0.0, 3.0, 6.0]
    assert found["rows"] == 6


def test_the_batching_measurement_gives_all_its_rates(models: Path) -> None:
    found = dash.batching(task(models, "S", window=2))
    assert set(found["generate_s"]) == {3, 6}
    assert found["share"] == pytest.approx(found["measured"] / found["predicted"])


def test_our_log_probs_are_written_with_their_tokens(models: Path, tmp_path: Path) -> None:
    import json

    asked = task(models, "S", file=str(tmp_path / "rows"))
    agree.ours(asked)
    rows = json.loads((tmp_path / "rows").read_text())
    assert all(len(prompt) == 6 and len(tokens) == len(values) == 12 for prompt, tokens, values in rows)
    (prompt, tokens, values), model = rows[0], agree_model(asked)
    ids = torch.tensor([prompt + tokens])
    logs = torch.log_softmax(model(ids).logits[0, 5:-1].float(), dim=-1)
    own = logs.gather(1, ids[0, 6:, None])[:, 0]
    assert torch.allclose(own, torch.tensor(values), atol=1e-5)


def agree_model(asked: dict[str, Any]) -> Any:
    """The model as the peer loads it."""
    from speed.peer import load

    return load(asked["model"], asked["dtype"], "sdpa").eval()


def test_memory_is_compared_between_fastest_and_smallest_settings() -> None:
    def one(cpu: float, mb: float) -> dict[str, Any]:
        return {"cpu": cpu, "step_mb": [mb, mb, mb]}

    found = memory.chosen({"ours": [one(5.0, 100.0), one(6.0, 50.0)], "peer": [one(8.0, 300.0), one(9.0, 75.0)]})
    assert found["ratio_fastest"] == pytest.approx(3.0)
    assert found["ratio_smallest"] == pytest.approx(1.5)
    settings = {"dtype": "mixed", "settings": {"training": {"tokens_per_pass": 2048}}}
    assert step.named(settings) == "[dtype mixed, training.tokens_per_pass 2048]"


def test_memory_tries_every_setting_once_and_repeats_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    class Fake:
        repeats = 3

        def model(self, workload: Any) -> str:
            return "folder"

        def worker(self, name: str, peer: bool = False, **task: Any) -> dict[str, Any]:
            if name == "memory":
                return {"largest": {}}
            kind = str(task.get("micro") or task.get("settings"))
            asked.append((name, kind))
            if kind == "16":
                raise step.WorkerError("killed")
            place = 0.0 if peer else float(list(map(str, (s.get("settings") for s in memory.OURS))).index(kind))
            mb = {"64": 900.0, "8": 300.0}.get(kind, 500.0 - place)
            cpu = {"64": 5.0, "8": 9.0}.get(kind, 1.0 + place)
            names = ("step_mb", "peak_mb", "loaded_mb", "gradients_mb", "optimizer_mb")
            return dict.fromkeys(names, mb) | {"cpu": [cpu]}

    monkeypatch.setattr(memory, "free_mb", lambda: 1e9)
    found = memory.measure(Fake())  # ty: ignore[invalid-argument-type]
    ours = [str(s.get("settings")) for s in memory.OURS]
    assert asked[:6] == [*(("ours", s) for s in ours), *(("peer", m) for m in ("8", "16", "64"))]
    assert asked[6:] == 2 * [("ours", ours[0]), ("ours", ours[2]), ("peer", "64"), ("peer", "8")]
    assert [found[name]["runs"] for name in memory.SHOWN] == [3] * 4
    assert [one["why"] for one in found["left_out"]] == ["killed"]
    assert found["ratio_fastest"] == pytest.approx(900 / found["ours_fastest"]["step_mb"][0])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--part", "dash", "--repeats", "0"], "--repeats and --threads: at least 1"),
        (["--workload", "S", "--threads", "1", "0"], "--repeats and --threads: at least 1"),
        (["--part", "memory", "--peer-python", "/nowhere/python"], "--peer-python /nowhere/python: cannot be run"),
        (["--part", "covrl", "--workload", "REAL"], "--workload REAL: no --model is no model's folder: download"),
        (["--part", "covrl", "--workload", "S"], "--workload S: none of them is of the part covrl"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line_before_anything_is(
    given: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COVRL_REAL_MODEL", raising=False)
    monkeypatch.setattr(sys, "argv", ["run.py", *given])
    monkeypatch.setattr(processes.Bench, "worker", lambda *_, **__: pytest.fail("something was measured"))
    assert run.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)


def test_a_command_that_is_not_there_is_a_measurement_that_failed(tmp_path: Path) -> None:
    bench = processes.Bench(tmp_path, peer_python="/nowhere/python")
    assert bench.peer_versions == {}
    with pytest.raises(processes.WorkerError, match="/nowhere/python: No such file"):
        bench.worker("floor", peer=True)


@pytest.mark.parametrize("method", device.METHODS)
def test_the_device_part_runs_where_there_is_none_on_a_tiny_model(method: str, tmp_path: Path) -> None:
    """Its worker, on the CPU: every figure of each step, the paths that were taken, and a row for it in the page."""
    folder = str(workloads.make_model(workloads.WORKLOADS["tiny"], tmp_path))
    task = {"workload": "tiny", "model": folder, "steps": 2, "threads": 1, "algorithm": method, "product": 64}
    found = device.main({**task, "paths": {"shared": False}})
    assert found["paths"]["shared"] is False
    assert all(len(found[name]) == 2 for name in ("step", "mfu", "generated_per_s", *device.PHASES))
    shown = device.summary([found, found])
    assert shown["mfu"][0] > 0
    record = {"runs": {f"tiny {method}, all": shown}}
    assert any("MFU" in line for line in device.text(record))
    assert "tiny" in tables.device_rows(record)[0]


def test_the_share_of_the_devices_speed_counts_each_token_once_for_each_prompt() -> None:
    workload = replace(workloads.WORKLOADS["tiny"], problems=2, rollouts=4, prompt=10)
    metrics = {"time/generate": 1.0, "time/train": 2.0, "time/step": 4.0, "tokens/generated": 80.0}
    metrics |= {"tokens/scored": 0.0, "train/dropped_traces": 4.0}
    found = device.figures(metrics, workload, contexts=2, weights=3, speed=6.0)
    trained = 2 * (20 + 80 / 2)  # half of the traces have no weight
    assert found["trained_per_s"] == trained / 2.0
    assert found["mfu_train"] == pytest.approx(6 * 3 * trained / 2.0 / 6.0)
    assert found["mfu"] == pytest.approx((2 * 3 * (80 + 20) + 6 * 3 * trained) / 4.0 / 6.0)
    scored = device.figures(metrics | {"tokens/scored": 5.0}, workload, contexts=2, weights=3, speed=6.0)
    assert scored["mfu"] - found["mfu"] == pytest.approx(2 * 3 * 2 * (20 + 80) / 4.0 / 6.0)


class Flaky:
    """A bench whose workers fail as told: the numbers of their calls, by side."""

    repeats, search = 3, False

    def __init__(self, **fails: tuple[int, ...]) -> None:
        self.fails, self.calls = fails, dict.fromkeys(("ours", "peer"), 0)

    def model(self, workload: Any) -> str:
        return "folder"

    def worker(self, name: str, peer: bool = False, **task: Any) -> dict[str, Any]:
        if name == "floor":
            return {"seconds": 1.0}
        self.calls[name] += 1
        if self.calls[name] in self.fails.get(name, ()):
            raise WorkerError(f"speed.{name} ended with -9: killed")
        seconds = float(self.calls[name]) * (2 if peer else 1)
        found = {"cpu": [seconds], "wall": [seconds], "step_mb": 1.0, "peak_mb": 1.0, "tokens": {"generated": [1]}}
        phases = {"generate": [0.0], "score": [0.0], "train": [seconds], "other": [0.0]}
        return found | {"phases": phases, "metrics": {"trace/invalid_share": [0.0]}}


def test_a_repeat_that_fails_costs_itself_alone_and_is_in_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "agreement", lambda *_: {"equal": True})
    searches = {side: step.Search([({"dtype": "float32"}, 0.0)]) for side in ("ours", "peer")}
    found = step.measure(Flaky(peer=(2,)), workloads.WORKLOADS["REAL"], searches)  # ty: ignore[invalid-argument-type]
    assert found["runs"] == {"ours": 3, "peer": 2}
    assert found["failed"] == ["peer, repeat 2: speed.peer ended with -9: killed"]
    assert (found["ours"]["wall"], found["peer"]["wall"]) == ([2.0, 1.0, 3.0], [4.0, 2.0, 6.0])
    assert "FAILED: peer, repeat 2: speed.peer ended with -9: killed" in step.text(found)
    shared = covrl_share.measure(Flaky(ours=(3,)), "REAL")  # ty: ignore[invalid-argument-type]
    assert shared["failed"] == ["grpo, repeat 2: speed.ours ended with -9: killed"]
    assert shared["covrl"]["wall"]["step"] == [4.0, 2.0, 6.0]
    assert any(line.startswith("FAILED: grpo, repeat 2") for line in covrl_share.text(shared))


def test_a_side_of_which_every_repeat_fails_has_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "agreement", lambda *_: {"equal": True})
    searches = {side: step.Search([({"dtype": "float32"}, 0.0)]) for side in ("ours", "peer")}
    with pytest.raises(WorkerError, match=r"peer, repeat 1: speed\.peer ended with -9"):
        step.measure(Flaky(peer=(1, 2, 3)), workloads.WORKLOADS["REAL"], searches)  # ty: ignore[invalid-argument-type]


def test_a_run_of_which_a_repeat_failed_ends_with_1_and_its_figures_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "SAVED", tmp_path)
    monkeypatch.setattr(run, "what_is_wrong", lambda asked: None)
    found: dict[str, Any] = {"failed": []}
    monkeypatch.setattr(run, "chosen", lambda asked: [("dash", 1, lambda bench: found, lambda found: ["shown"])])
    monkeypatch.setattr(sys, "argv", ["run.py", "--save", "--models", str(tmp_path), "--peer-python", "/nowhere"])
    assert run.main() == 0
    found["failed"] = ["peer, repeat 1: killed"]
    assert run.main() == 1
    assert "peer, repeat 1: killed" in (tmp_path / "dash.json").read_text()
