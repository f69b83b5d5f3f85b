"""`covrl compare --config`: somebody's own model and problems. Cells run in this process, on a model of two layers."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Covrl
from models import save_tiny
from own_tasks import SETTINGS
from projects import PROMPTS, write_rows

from covrl.cli.app import main
from covrl.comparison import compare as module
from covrl.comparison import training
from covrl.comparison.cells import Budget, Cell, Exam, Result, read_results, write_result
from covrl.comparison.own import Own, load_own
from covrl.comparison.run import Failure, Share, divide, run_cells
from covrl.comparison.summary import lead_by_problem, lines
from covrl.comparison.worker import run_order
from covrl.config import RunConfig, check, override, read_toml
from covrl.errors import TrainingStoppedError, UserError
from covrl.planning.machine import SHARED, Memory, share_of

RUN = f"""
[model]
path = "model"
device = "cpu"
[algorithm]
beta = 0.5
[problems]
train = "train.jsonl"
held_out = "held.jsonl"
{PROMPTS}[generation]
max_trace_tokens = 12
max_answer_tokens = 3
[training]
steps = 3
problems_per_step = 3
rollouts_per_problem = 4
learning_rate = 1e-3
warmup_steps = 0
stream_norms_every = 0
[evaluation]
every = 2
problems = 3
[checkpoint]
every = 1
[guards]
publish_check_every = 0
"""
TYPED = ("compare", "--config", "run.toml", "-n", "2", "--jobs", "2", "--threads", "1")
TIMES = ("finished", "seconds")


@dataclass
class Project:
    """A user's folder with a comparison of two methods and two seeds in ``out``, and the cells that were run there."""

    folder: Path
    ran: list[list[Cell]]

    def figures(self, out: str, method: str, seed: int, split: str = "held_out") -> dict[str, Any]:
        (found,) = [
            r.figures
            for r in read_results(self.folder / out / "raw")
            if (r.cell.method, r.cell.seed, r.cell.exam.split) == (method, seed, split)
        ]
        return {k: v for k, v in found.items() if k not in TIMES}

    def run_of(self, out: str, method: str, seed: int) -> Path:
        return self.folder / out / "cells" / f"{method}__run__lr0.001__3steps__seed{seed}"


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Cells run in this process, which spares each the seconds in which torch is imported."""
    project = Project(tmp_path_factory.mktemp("own"), [])
    threads = torch.get_num_threads()

    def in_process(orders, out, say, share) -> list[Failure]:
        failures = []
        for order in orders:
            project.ran.append(list(order.cells))
            if order.folder:
                order.folder.mkdir(parents=True, exist_ok=True)
            try:
                for cell, figures in run_order(order):
                    write_result(out, cell, "abc", figures)
            except (UserError, TrainingStoppedError) as error:
                failures += [Failure(cell, str(error)) for cell in order.cells]
        return failures

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.folder)
        patch.setattr(module, "run_cells", in_process)
        save_tiny("qwen2", project.folder / "model", max_position_embeddings=128)
        write_rows(project.folder / "train.jsonl", [{"question": f"{i}+{i}", "answer": f"{2 * i}"} for i in range(5)])
        write_rows(project.folder / "held.jsonl", [{"question": f"{i}+1", "answer": f"{i + 1}"} for i in range(4)])
        write_rows(project.folder / "test.jsonl", [{"question": f"{i}+2", "answer": f"{i + 2}"} for i in range(3)])
        (project.folder / "run.toml").write_text(RUN)
        patch.setattr(sys, "argv", ["covrl", *TYPED, "--algorithms", "covrl,jepo", "--seeds", "0,1", "--out", "out"])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        yield project
    torch.set_num_threads(threads)


@pytest.fixture
def project(compared: Project) -> Project:
    compared.ran.clear()
    return compared


def test_every_cell_is_a_run_and_stands_in_the_table(project: Project) -> None:
    found = read_results(project.folder / "out/raw")
    assert sorted((r.cell.method, r.cell.seed) for r in found) == [
        *(("base", 0), ("covrl", 0), ("covrl", 1), ("jepo", 0), ("jepo", 1)),
    ]
    text = (project.folder / "out/compare.md").read_text()
    rows = [[part.strip() for part in line.strip("|").split(" | ")] for line in text.splitlines() if line[:2] == "| "]
    shown = ["greedy", "avg@2", "pass@2", "log p(y\\|x,z), nats", "trace, tokens"]
    assert rows[0][:8] == ["method", "rate", "seeds", *shown]
    assert rows[0][8].startswith("at ")
    assert [row[:3] for row in rows[2:5]] == [["base", "", "1/1"], ["covrl", "0.001", "2/2"], ["jepo", "0.001", "2/2"]]
    assert "4 held-out problems of held.jsonl, measured after the last step" in text
    assert "run: covrl against the others, problem by problem" in text.lower()
    assert "90 %" not in text, "nobody came there, and nobody knows whether it can be learnt"
    assert "- Every method has the learning rate of the file, 0.001: none was tuned." in text
    assert "- jepo is trained without algorithm.beta: the file's, which it does not know." in text
    page = (project.folder / "out/compare.html").read_text()
    assert "likelihood against tokens" in page
    assert "accuracy against tokens" in page
    for seed in (0, 1):
        folder = project.run_of("out", "jepo", seed)
        config = read_toml(folder / "config.toml")
        assert (config["algorithm"]["name"], config["training"]["seed"]) == ("jepo", seed)
        assert (folder / "checkpoints/step-000003/model/model.safetensors").is_file()
        steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        figures = project.figures("out", "jepo", seed)
        assert [point["step"] for point in figures["curve"]] == [0, 1, 2, 3]
        assert figures["curve"][-1]["log_prob"] == steps[-1]["metrics"]["eval/log_prob"]
        assert figures["tokens"]["generated"] == sum(step["metrics"]["tokens/generated"] for step in steps)
    assert read_toml(project.run_of("out", "covrl", 0) / "config.toml")["algorithm"]["beta"] == 0.5


def test_the_figures_are_those_of_covrl_eval(project: Project, covrl: Covrl) -> None:
    run, exam = project.run_of("out", "covrl", 1), project.figures("out", "covrl", 1)["exam"]
    model = ("--model", str(run / "checkpoints/step-000003/model"), "--config", str(run / "config.toml"))
    code, out, _ = covrl("eval", *model, "--problems", "held.jsonl", "-n", "2", "--json", "--out", "eval")
    assert code == 0
    said = json.loads(out)
    names = ("problems", "n", "greedy", "avg@n", "pass@2", "unknown", "truncated", "no_closing_tag", "trace_tokens")
    assert {name: exam[name] for name in names} == {name: said[name] for name in names}
    assert exam["log_prob"] < 0


def test_what_is_done_is_not_run_again(project: Project, covrl: Covrl) -> None:
    plain = (*TYPED, "--algorithms", "covrl,jepo", "--out", "out")
    assert covrl(*plain, "--seeds", "0,1").code == 0
    assert project.ran == []
    code, out, _ = covrl(*plain, "--seeds", "0,1,2", "--list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["done"] * 5 + ["missing"] * 2
    before = (project.run_of("out", "covrl", 0) / "metrics.jsonl").stat()
    more = ("--set", "problems.test=test.jsonl", "--algorithms", "covrl", "--seeds", "0")
    assert covrl(*plain, *more).code == 0
    assert [[(c.method, c.exam.split) for c in order] for order in project.ran] == [
        [("base", "test")],
        [("covrl", "test")],
    ], "measured on the new problems"
    assert (project.run_of("out", "covrl", 0) / "metrics.jsonl").stat() == before, "and not trained again"
    assert project.figures("out", "covrl", 0, "test")["exam"]["problems"] == 3
    assert "## Run, test: accuracy" in (project.folder / "out/compare.md").read_text()


@pytest.mark.parametrize("budget", [(), ("--budget", "tokens", "--tokens", "350")])
def test_a_cell_that_was_cut_goes_on_and_ends_as_an_uncut_one(
    project: Project, covrl: Covrl, monkeypatch: pytest.MonkeyPatch, budget: tuple[str, ...]
) -> None:
    typed = (*TYPED, *budget, "--algorithms", "covrl", "--seeds", "0", "--split", "held_out")
    whole = "out"
    if budget:
        whole = "whole"
        assert covrl(*typed, "--out", whole).code == 0
    cut = f"cut{len(budget)}"
    write = training.Said.write

    def interrupt(said: training.Said, report: Any) -> None:
        write(said, report)
        if report.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.Said, "write", interrupt)
        code = covrl(*typed, "--out", cut).code
    assert code == 1
    assert "interrupted inside step 3" in (project.folder / cut / "compare.md").read_text()
    code, out, _ = covrl(*typed, "--out", cut, "--list")
    assert ("partly (step 2)" if budget else "partly (step 2 of 3)") in out
    assert covrl(*typed, "--out", cut).code == 0
    assert project.figures(cut, "covrl", 0) == project.figures(whole, "covrl", 0)
    cells = [next((project.folder / out / "cells").glob("covrl*seed0")) for out in (cut, whole)]
    (mine, theirs) = ({p.relative_to(c): p for p in c.glob("checkpoints/*/**/*.safetensors")} for c in cells)
    assert len(mine) >= 2
    assert {k: p.read_bytes() for k, p in mine.items()} == {k: p.read_bytes() for k, p in theirs.items()}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("training.problems_per_step=2", "out: compared with training.problems_per_step = 3, and now it is 2"),
        ("prompts.prior_open=:", "out: compared with prompts.prior_open = '=', and now it is ':'"),
        ("algorithm.beta=2", "out: compared with algorithm.beta = 0.5, and now it is 2"),
        ("evaluation.every=1", "out: compared with evaluation.every = 2, and now it is 1"),
        ("problems.held_out=train.jsonl", "out: compared with problems.held_out = 'held.jsonl'"),
    ],
)
def test_another_setting_is_refused(project: Project, covrl: Covrl, setting: str, said: str) -> None:
    code, _, err = covrl(*TYPED, "--set", setting, "--algorithms", "covrl", "--seeds", "9", "--out", "out")
    assert (code, project.ran) == (2, [])
    assert err.strip().splitlines()[-1].startswith(f"covrl: {said}")
    assert "choose another --out" in err


def test_other_problems_or_weights_behind_the_same_name_are_refused(project: Project, covrl: Covrl) -> None:
    typed = (*TYPED, "--algorithms", "covrl", "--seeds", "9", "--out", "out")
    for name, said in (("train.jsonl", "problems.train: its problems"), ("model/model.safetensors", "model.path: its")):
        path = project.folder / name
        kept = path.read_bytes()
        try:
            path.write_bytes(kept.replace(b"1+1", b"1+3") if name == "train.jsonl" else kept + b"\0")
            code, _, err = covrl(*typed)
        finally:
            path.write_bytes(kept)
        assert code == 2
        assert err.strip().splitlines()[-1].startswith(f"covrl: {said}")
    assert covrl(*typed, "--set", "checkpoint.keep=1", "--list").code == 0, "what changes nothing that is learnt may"


def test_without_a_verifier_the_likelihood_stands_alone(project: Project, covrl: Covrl) -> None:
    typed = ("--set", "evaluation.verifier=none", "--algorithms", "jepo", "--seeds", "0", "--out", "ungraded")
    code, out, _ = covrl(*TYPED, *typed, "--steps", "1")
    assert code == 0
    text = (project.folder / "ungraded/compare.md").read_text()
    assert "| method | rate | seeds | log p(y\\|x,z), nats | trace, tokens |" in text
    assert "- No accuracy: evaluation.verifier is none" in text
    assert "greedy" not in out
    page = (project.folder / "ungraded/compare.html").read_text()
    assert "likelihood against tokens" in page
    assert "accuracy against tokens" not in page
    (found,) = [r for r in read_results(project.folder / "ungraded/raw") if r.cell.method == "jepo"]
    assert not {"greedy", "avg@n", "unknown"} & found.figures["exam"].keys()
    assert [point["accuracy"] for point in found.figures["curve"]] == [None, None]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("--config", "no.toml"), "no.toml: no such file"),
        (("--seeds", ""), "--seeds: expected a list such as a,b,c"),
        (("--seeds", "0,x"), "--seeds: 'x' is not a number"),
        (("--seeds", "0,-1"), "-1 is negative"),
        (("--rates", "1e-4,0"), "holds what is no learning rate"),
        (("--rates", "nan"), "holds what is no learning rate"),
        (("--budget", "hours"), "expected steps or tokens, found 'hours'"),
        (("--algorithms", "covrl,covrll"), "unknown method 'covrll': did you mean covrl?"),
        (("--algorithms", "covrl,rover"), "--algorithms rover: training.mini_batches x epochs = 1"),
        (("--algorithms", "covrl-shufled"), "unknown variant 'covrl-shufled'"),
        (("--set", "problems.held_out="), "run.toml: problems.held_out is not set"),
        (("--set", "problems.test=no.jsonl"), "no.jsonl"),
        (("--set", "training.problems_per_step=9"), "training.problems_per_step = 9, but there are only 5 problems"),
        (("--set", "algorithm.beta=-1"), "--algorithms covrl: "),
        (("--split", "test"), "--split: there is no 'test' in the settings of run: set problems.test"),
        (("--split", "dev"), "expected held_out or test"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    project: Project, covrl: Covrl, typed: tuple[str, ...], said: str
) -> None:
    code, _, err = covrl(*TYPED, "--algorithms", "covrl", "--out", "bad", *typed)
    assert (code, project.ran) == (2, [])
    (line,) = err.strip().splitlines()
    assert line.startswith("covrl: ")
    assert said in line
    assert not (project.folder / "bad").exists()


def loaded(project: Project, *settings: str, methods: tuple[str, ...] = ("covrl",)) -> Own:
    return load_own(project.folder / "run.toml", settings, methods, project.folder / "none")[0]


def cell(method: str = "covrl", **changes: Any) -> Cell:
    fields = {"setting": "run", "rate": 1e-3, "seed": 3, "budget": Budget("steps", 3), "exam": Exam("held_out", 2)}
    return Cell(method, **fields | changes)


def test_a_method_has_the_settings_that_it_knows_and_a_variant_its_own(project: Project) -> None:
    own = loaded(project, "algorithm.reward=prob", "algorithm.alpha=0.4", methods=("covrl", "covrl-beta-3", "rover"))
    algorithm = {name: own.cell_config(cell(name)).algorithm for name in ("covrl", "jepo", "covrl-beta-3", "ravr")}
    assert algorithm["covrl"].settings == {"beta": 0.5, "reward": "prob", "alpha": 0.4}
    assert algorithm["covrl-beta-3"].settings == {"beta": 3.0, "reward": "prob", "alpha": 0.4}
    assert "alpha" not in algorithm["jepo"].settings
    assert algorithm["ravr"].settings["beta"] == 0.5, "a setting of the same name is the same for all"
    whole = loaded(project, "algorithm.nll_weight=1.0", "algorithm.alpha=0.5")
    assert whole.cell_config(cell("ravr")).algorithm.settings == {"beta": 0.5}, "another method keeps its own defaults"
    config = own.cell_config(cell("rover", rate=2e-3, budget=Budget("steps", 7)))
    assert (config.training.mini_batches, config.algorithm.name) == (1, "rover"), "not what suits our own tasks"
    assert (config.training.seed, config.training.steps, config.training.learning_rate) == (3, 7, 2e-3)


def test_a_real_process_has_its_share_and_ends_where_one_in_this_process_does(project: Project) -> None:
    own, done = loaded(project), project.figures("out", "covrl", 1)
    out = project.folder / "real" / "raw"
    assert run_cells(own.orders([cell(seed=1)], out, 1), out, share=Share(2, 1)) == []
    figures = project.figures("real", "covrl", 1)
    assert figures["curve"] == done["curve"]
    assert figures["exam"] == done["exam"]
    log = (project.run_of("real", "covrl", 1) / "log.txt").read_text()
    assert " for each of 2 jobs: training.tokens_per_pass = " in log
    assert "step 3, held-out accuracy" in log


def test_the_share_of_a_machine() -> None:
    assert divide(None, None, cores=8, most=20) == Share(8, 1)
    assert divide(None, None, cores=8, most=3) == Share(3, 2)
    assert divide(None, 4, cores=8, most=20) == Share(2, 4)
    assert divide(4, None, cores=8, most=20) == Share(4, 2)
    assert divide(None, None, cores=8, most=20, accelerator=True) == Share(1, 8)
    assert divide(3, None, cores=2, most=20, accelerator=True) == Share(3, 1)
    cpu, gpu, memory = torch.device("cpu"), torch.device("cuda"), Memory(9000, 500)
    assert share_of(memory, cpu, "") == share_of(memory, cpu, "1:9000") == memory
    third = share_of(memory, cpu, "3:6000")
    assert (third.total, third.free) == (3000, 2000), "what was free before the first began, divided"
    assert (share_of(memory, gpu, "3:6000").total, share_of(memory, gpu, "3:6000").free) == (3000, 500)
    assert third.of == "main memory for each of 3 jobs"
    assert SHARED.startswith("COVRL_")


def test_a_lead_problem_by_problem_is_over_the_seeds_that_both_have() -> None:
    def made(method: str, seed: int, columns: list[float]) -> Result:
        return Result(cell(method, seed=seed), "abc", {"by_problem": {"log_prob": columns}})

    results = [made("covrl", 0, [-1.0, -2.0]), made("covrl", 1, [-3.0, -2.0]), made("covrl", 2, [0.0, 0.0])]
    results += [made("jepo", 0, [-2.0, -2.0]), made("jepo", 1, [-4.0, -5.0])]
    mine, theirs = lines([r.cell for r in results], {r.cell: r for r in results})
    figure = lead_by_problem(mine, theirs, "log_prob")
    assert figure is not None
    assert (figure.mean, figure.over) == (1.25, "problems"), "gaps of 1 and 1.5"
    assert figure.interval == pytest.approx((1.0, 1.5))
    assert lead_by_problem(mine, theirs, "greedy") is None


def test_our_own_tasks_are_files_that_are_compared_as_before() -> None:
    from covrl.quickstart.run import RECIPES

    before = ("training.stream_norms_every=0", "report.traces_every=1000000", "evaluation.every=5")
    for name, setting in SETTINGS.items():
        task, ours = name if name in RECIPES else "digits", read_toml(setting.file)
        table = override(read_toml(RECIPES[task].file), (*before, f'model.path="{ours["model"]["path"]}"'))
        table["problems"]["test"] = f"{task}:test"
        table["report"].pop("groups_shown")
        assert check(RunConfig, table) == check(RunConfig, ours), name


def test_a_damaged_folder_is_named(project: Project, covrl: Covrl) -> None:
    folder = project.folder / "odd"
    shutil.copytree(project.folder / "out/raw", folder / "raw")
    (folder / "compare.json").write_text("{}")
    code, _, err = covrl(*TYPED, "--algorithms", "covrl", "--out", "odd")
    assert code == 2
    assert "odd/compare.json: not a file of `covrl compare`; move it away or choose another --out" in err
