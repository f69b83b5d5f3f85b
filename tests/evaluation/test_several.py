"""`covrl eval` for several models and benchmarks: files, going on, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from commands import Covrl
from models import character_tokenizer, save_tiny, tiny
from projects import PROMPTS

from covrl.cli.eval_results import markdown, tables, write_results
from covrl.cli.eval_run import Order, evaluate_several
from covrl.errors import UserError
from covrl.evaluation.benchmarks import PROTOCOLS, load_benchmark
from covrl.evaluation.exam import Exam, Sample, Solved, from_json
from covrl.evaluation.store import Fingerprints
from covrl.records import Verdict
from covrl.reporting.exams import between, render_exams, within

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
PAIR = ["covrl:digits", "covrl:digits-common"]
CONFIG = f"""
[model]
path = "model"
device = "cpu"
{PROMPTS}[generation]
max_trace_tokens = 24
max_answer_tokens = 4
"""


def order(**changed: Any) -> Order:
    return replace(Order(PAIR, ["digits:test"], n=4, limit=12), **changed)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    write_results(out, evaluate_several(order(), out))
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def stored(out: Path, model: str = "digits-common") -> Path:
    (found,) = [
        p
        for p in out.glob("samples/*/*.jsonl")
        if p.name.startswith(f"covrl-{model}-") and p.name.count("-") == model.count("-") + 2
    ]
    return found


def test_what_is_written(finished: Path) -> None:
    record = json.loads((finished / "results.json").read_text())
    figures = record["figures"]["digits:test"]
    assert list(figures) == PAIR
    for model in PAIR:
        assert {
            "greedy",
            "avg@n",
            "pass@4",
            "maj@4",
            "answer_entropy",
            "token_entropy",
            "unknown",
            "chance",
        } <= figures[model].keys()
        lines = [json.loads(line) for line in stored(finished, model.removeprefix("covrl:")).read_text().splitlines()]
        assert lines[0]["exam"]["samples"] == 4
        assert [len(line["samples"]) for line in lines[1:]] == [4] * 12
        right = [sample["verdict"] == "right" for line in lines[1:] for sample in line["samples"]]
        assert figures[model]["avg@n"] == pytest.approx(sum(right) / 48)
    assert {"at_n", "halves", "null"} <= record["support"][0].keys()
    assert "| greedy |" in (finished / "results.md").read_text()
    page = (finished / "report.html").read_text()
    assert "✓ right" in page
    assert "✗ wrong" in page
    assert "<script" not in page
    assert page.count("<figure class='chart'>") == 1, "pass@k for every k, one chart an exam"
    last = figures[PAIR[1]]["pass_curve"][-1]
    assert f"covrl:digits-common {figures[PAIR[1]]['pass_curve'][0]:.1%} to {last:.1%}" in page


def test_it_goes_on_and_ends_in_the_same_results(copied: Path) -> None:
    before = json.loads((copied / "results.json").read_text())
    path = stored(copied)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:6]) + lines[6][:40])  # killed in the middle of a line
    outcome = evaluate_several(order(), copied)
    now = path.read_bytes().splitlines(keepends=True)
    assert now[:6] == lines[:6]
    # Batches of another size round differently in the last digits of a log-prob; what is sampled is the same.
    assert [without_nats(from_json(n.decode())) for n in now[1:]] == [
        without_nats(from_json(n.decode())) for n in lines[1:]
    ]
    figures = outcome.record["figures"]["digits:test"][PAIR[1]]
    assert figures["token_entropy"] == pytest.approx(
        before["figures"]["digits:test"][PAIR[1]]["token_entropy"], rel=1e-4
    )
    assert outcome.record["support"] == before["support"]


def without_nats(row: Solved) -> Solved:
    return replace(row, greedy=replace(row.greedy, nats=0.0), samples=tuple(replace(s, nats=0.0) for s in row.samples))


def test_what_is_there_is_not_asked_again(copied: Path) -> None:
    path = stored(copied)
    path.write_text(path.read_text().replace('"trace": "', '"trace": "kept ', 1))
    said: list[str] = []
    outcome = evaluate_several(order(), copied, said.append)
    assert any(
        s.trace.startswith("kept ") for rows in outcome.solved.values() for r in rows for s in (r.greedy, *r.samples)
    )
    assert said[0].startswith("finished problems go to ")
    assert said[1:] == [f"{model}: all problems were answered before" for model in PAIR]


def test_more_problems_are_added_to_those_that_are_there(copied: Path) -> None:
    lines = stored(copied).read_text().splitlines()
    evaluate_several(order(limit=14), copied)
    assert stored(copied).read_text().splitlines()[:13] == lines
    assert len(stored(copied).read_text().splitlines()) == 15


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"n": 5}, "exam.samples = 4, and now it is 5"),
        ({"temperature": 0.5}, "exam.temperature = 1.0, and now it is 0.5"),
        ({"answer_temperature": 0.0}, "exam.answer_temperature = None, and now it is 0.0"),
        ({"settings": ["evaluation.answer_temperature=0.5"]}, "exam.answer_temperature = None, and now it is 0.5"),
        ({"settings": ["training.seed=1"]}, "seed = 0, and now it is 1"),
        ({"settings": ['prompts.user="{question}"']}, "prompts.user = '<user>{question}', and now it is '{question}'"),
    ],
)
def test_a_changed_setting_is_refused(finished: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match="was made with") as error:
        evaluate_several(order(**changed), finished)
    assert said in str(error.value)


def test_samples_of_before_there_were_styles_and_answer_temperatures_go_on(copied: Path) -> None:
    path = stored(copied)
    first, *rows = path.read_text().splitlines()
    header = json.loads(first)
    assert "style" not in header["prompts"]
    del header["exam"]["answer_temperature"]
    path.write_text("\n".join([json.dumps(header), *rows[:-1]]) + "\n")
    assert len(evaluate_several(order(), copied).solved["digits:test", PAIR[1]]) == 12


def test_greedy_answers_after_the_same_sampled_traces(finished: Path, tmp_path: Path) -> None:
    """The traces are the ones of the same draw; the table says what the answers were sampled at."""
    outcome = evaluate_several(order(answer_temperature=0.0), tmp_path)
    before = evaluate_several(order(), finished)
    key = ("digits:test", PAIR[1])
    traces = [[[s.trace for s in row.samples] for row in found.solved[key]] for found in (outcome, before)]
    assert traces[0] == traces[1]
    assert [row.greedy for row in outcome.solved[key]] == [row.greedy for row in before.solved[key]]
    (table, *_), (old, *_) = (list(tables(found.record)) for found in (outcome, before))
    assert "n = 4 at temperature 1, answers at temperature 0 and top-p 1" in table.about
    assert "answers at" not in old.about
    settings = ["evaluation.answer_temperature=0"]
    assert evaluate_several(order(settings=settings), tmp_path).record["figures"] == outcome.record["figures"]


def test_changed_weights_and_problems_are_refused(tmp_path: Path) -> None:
    from covrl.models.model import resolve_path

    shutil.copytree(resolve_path("covrl:digits"), tmp_path / "m")
    config = tmp_path / "c.toml"
    config.write_text(CONFIG.replace('path = "model"', 'path = "m"'))
    file = tmp_path / "p.jsonl"
    file.write_text('{"question": "12345", "answer": "234", "id": "one"}\n')
    tags = ['prompts.close="</think>"', 'prompts.prior_open="<think>"', 'prompts.posterior_open="{hint}<think>"']
    tags += ['prompts.user="{question}"', 'prompts.answer_prefix="<answer>"', 'prompts.answer_suffix="</answer>"']
    asked = Order([str(tmp_path / "m")], [str(file)], config=config, settings=tags)
    evaluate_several(asked, tmp_path / "out")
    file.write_text('{"question": "12354", "answer": "234", "id": "one"}\n')
    with pytest.raises(UserError, match="problem p/0 is not what it was"):
        evaluate_several(asked, tmp_path / "out")
    weights = tmp_path / "m" / "model.safetensors"
    whole = weights.read_bytes()
    at = len(whole) // 2  # in place, far from both ends
    weights.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(UserError, match="was made with weights = "):
        evaluate_several(asked, tmp_path / "out")
    weights.write_bytes(whole)
    settings = tmp_path / "m" / "config.json"
    settings.write_text(settings.read_text().replace("{", '{"rope_theta": 5.0, ', 1))
    with pytest.raises(UserError, match="was made with weights = "):
        evaluate_several(asked, tmp_path / "out")


def test_the_page_sets_a_right_trace_beside_a_wrong_one_of_the_same_problem() -> None:
    """Pairs are of one problem, the right trace first; between models, of greedy traces that part."""

    def sample(trace: str, verdict: Verdict) -> Sample:
        return Sample(trace, "1", "1", verdict, "closed", 3, 1, False, 1.0)

    def solved(name: str, greedy: Verdict, *verdicts: Verdict) -> Solved:
        samples = tuple(sample(f"{name} sample {i} {v}", v) for i, v in enumerate(verdicts))
        return Solved(name, f"question {name}", "1", "d", sample(f"{name} greedy {greedy}", greedy), samples)

    base = [
        solved("a", "wrong", "wrong", "right"),
        solved("b", "right", "right"),
        solved("c", "wrong", "unknown"),
        solved("d", "right"),
    ]
    other = [
        solved("a", "right", "right"),
        solved("b", "wrong", "wrong"),
        solved("c", "wrong", "wrong"),
        solved("d", "right"),
    ]
    pairs = list(within("m", base))
    assert [(p.solved.problem, p.good.trace, p.bad.trace) for p in pairs] == [
        ("a", "a sample 1 right", "a sample 0 wrong")
    ]
    models = {"base": base, "other": other}
    for good, bad, problem in (("other", "base", "a"), ("base", "other", "b")):
        (pair,) = between(models, good, bad)
        assert (pair.solved.problem, pair.left, pair.right) == (problem, good, bad)
        assert (pair.good.trace, pair.bad.trace) == (f"{problem} greedy right", f"{problem} greedy wrong")
    page = render_exams([], [], {("e", "base"): base, ("e", "other"): other}, {})
    blocks = page.split("<article class='example'>")[1:]
    assert len(blocks) == 3
    for block in blocks:
        name = block.partition("question ")[2][0]
        right, wrong = (block.index(f"{name} {kind}") for kind in _places(block, name))
        assert right < wrong
        assert "✓ right" in block[:wrong]
        assert "✗ wrong" in block[right:]


def _places(block: str, name: str) -> tuple[str, str]:
    said = re.findall(rf"{name} ((?:greedy|sample \d) (?:right|wrong))", block)
    return next(s for s in said if s.endswith("right")), next(s for s in said if s.endswith("wrong"))


def test_a_fingerprint_is_of_all_bytes_and_reads_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").mkdir()
    large = tmp_path / "m" / "model.safetensors"
    large.write_bytes(bytes(6 << 20))
    first = Fingerprints(tmp_path / "f.json")
    one = first.of(tmp_path / "m")
    first.save()
    with monkeypatch.context() as unread:
        unread.setattr("hashlib.file_digest", lambda *_: pytest.fail("read again"))
        assert Fingerprints(tmp_path / "f.json").of(tmp_path / "m") == one
    with large.open("r+b") as file:  # the third of six MiB
        file.seek(3 << 20)
        file.write(b"1")
    assert Fingerprints(tmp_path / "f.json").of(tmp_path / "m") != one
    (tmp_path / "f.json").write_text("[")
    assert Fingerprints(tmp_path / "f.json").of(tmp_path / "m") not in {one, ""}
    assert first.of(tmp_path / "none") == ""


def test_model_text_is_escaped(copied: Path) -> None:
    outcome = evaluate_several(order(), copied)
    rows = outcome.solved["digits:test", PAIR[1]]
    evil = "<script>alert(1)</script>|x"
    rows[:] = [
        replace(r, question=evil, reference=evil, samples=tuple(replace(s, trace=evil, said=evil) for s in r.samples))
        for r in rows
    ]
    outcome.record["notes"].append(evil)
    write_results(copied, outcome)
    assert "<script" not in (copied / "report.html").read_text()
    assert "&lt;script" in (copied / "report.html").read_text()
    assert "<script" not in markdown(outcome.record)


# Benchmarks and the command line


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_tiny("qwen2", tmp_path / "model", max_position_embeddings=1024)
    (tmp_path / "run.toml").write_text(CONFIG)
    (tmp_path / "p.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    return tmp_path


COMMON = ["eval", "--model", "model", "--config", "run.toml"]


def test_local_benchmarks_from_the_command_line(project: Path, covrl: Covrl) -> None:
    if not (DATA / "amc23" / "test.jsonl").is_file():
        pytest.skip(f"{DATA / 'amc23' / 'test.jsonl'} is not there")
    asked = ["--benchmark", "aime24", "--benchmark", "AMC23", "--data", str(DATA), "-n", "2", "--limit", "2"]
    found = covrl(*COMMON, *asked, "--max-tokens", "8", "--out", "out", "--json")
    assert found.code == 0, found.err
    record = json.loads(found.out)
    assert [e["name"] for e in record["exams"]] == ["AIME24", "AMC23"]
    assert "AIME24: n 2, where the protocol has 32" in record["notes"]
    assert "AMC23: token limit 8, where the protocol has 2048" in record["notes"]
    assert "AMC23: only the first 2 of 40 problems" in record["notes"]
    assert record["exams"][0]["protocol"]["metric"] == "avg@32"
    assert 0 < record["figures"]["AMC23"]["model"]["trace_tokens"] <= 8


@pytest.mark.parametrize("name", ["GSM8K", "MATH-500", "AIME24", "AMC23"])
def test_a_protocol_is_sampled_as_it_stands(project: Path, covrl: Covrl, name: str) -> None:
    """Prompts, samples, temperature and token limits are the protocol's; only the number of problems is not."""
    protocol = PROTOCOLS[name]
    if not (DATA / protocol.file).is_file():
        pytest.skip(f"{DATA / protocol.file} is not there")
    tokenizer = character_tokenizer()
    tiny("qwen2", len(tokenizer), max_position_embeddings=4096).save_pretrained(project / "model")
    found = covrl(*COMMON, "--benchmark", name, "--data", str(DATA), "--limit", "2", "--out", "out", "--json")
    assert found.code == 0, found.err
    record = json.loads(found.out)
    whole = load_benchmark(protocol, {"": str(DATA)}, 0).problems
    assert record["notes"][0] == f"{name}: only the first 2 of {len(whole)} problems"
    assert "where the protocol has" not in found.err
    (exam,) = record["exams"]
    assert exam["protocol"]["metric"] == f"avg@{protocol.samples}"
    assert exam["prompts"]["model"]["user"] == "{question}", "the model's own, as it was asked"
    assert exam["protocol"]["prompts"] == protocol.prompts
    assert exam["sampling"]["model"] == {
        "temperature": protocol.temperature,
        "trace_tokens": protocol.trace_tokens,
        "answer_tokens": protocol.answer_tokens,
    }
    lines = (project / f"out/samples/{name}/model.jsonl").read_text().splitlines()[1:]
    solved = [from_json(line) for line in lines]
    assert [s.problem for s in solved] == [p.id for p in whole[:2]]
    assert [len(s.samples) for s in solved] == [protocol.samples] * 2
    assert any(s.said for row in solved for s in row.samples), "some trace was closed and answered"
    assert f"avg@{protocol.samples}" in (project / "out/results.md").read_text()


@pytest.mark.parametrize("name", ["GSM8K", "MATH-500", "AIME24", "AMC23"])
def test_every_reference_answer_is_right_in_a_box_and_anothers_is_not(name: str) -> None:
    protocol = PROTOCOLS[name]
    if not (DATA / protocol.file).is_file():
        pytest.skip(f"{DATA / protocol.file} is not there")
    problems = load_benchmark(protocol, {"": str(DATA)}, 0).problems
    grade = Exam(name, "", problems, 1, 1.0, 8, 8, protocol.verifier, protocol.extraction).grader()
    assert grade is not None
    assert set(grade([(p, rf"so it is \boxed{{{p.answer}}}.") for p in problems])) == {"right"}
    others = [(p, q.answer) for p, q in pairwise(problems) if p.answer != q.answer]
    taken = {(p.answer, said) for (p, said), verdict in zip(others, grade(others), strict=True) if verdict == "right"}
    assert taken <= {("5", "x=5")}  # the only neighbours that mean the same


def test_a_protocols_top_p_and_prompt_are_what_is_done(
    project: Path, covrl: Covrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hardly any probability left to choose from, samples are greedy; the prompt stands in the results."""
    plain = CONFIG.replace('user = "{question}"\n', "").replace("[prompts]", '[prompts]\nchat = "never"')
    (project / "run.toml").write_text(plain)
    monkeypatch.setitem(PROTOCOLS, "AMC23", replace(PROTOCOLS["AMC23"], top_p=1e-6, prompts={"user": "{question}!"}))
    (project / "AMC23.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    asked = ["--benchmark", "AMC23", "--data", ".", "-n", "3", "--max-tokens", "8", "--out", "o", "--json"]
    found = covrl(*COMMON, *asked)
    assert found.code == 0, found.err
    (exam,) = json.loads(found.out)["exams"]
    assert (exam["top_p"], exam["prompts"]["model"]["user"]) == (1e-6, "{question}!")
    row = from_json((project / "o/samples/AMC23/model.jsonl").read_text().splitlines()[1])
    assert {s.trace for s in row.samples} == {row.greedy.trace}
    assert "and top-p 1e-06, up to 8 trace tokens" in (project / "o/results.md").read_text()


def test_multiple_choice_from_a_file_has_chance_in_its_table(project: Path, covrl: Covrl) -> None:
    row = {"Question": "q", "Correct Answer": "y"} | {f"Incorrect Answer {i}": f"n{i}" for i in (1, 2, 3)}
    (project / "g.jsonl").write_text(json.dumps(row) + "\n")
    asked = ["--benchmark", "GPQA-Diamond", "--data", "GPQA-Diamond=g.jsonl", "-n", "2", "--max-tokens", "8"]
    found = covrl(*COMMON, *asked, "--out", "out")
    assert found.code == 0, found.err
    assert "GPQA-Diamond: no test of this package has read this set" in found.err
    assert "| chance | 25.0 % |" in (project / "out/results.md").read_text().replace("\u00a0", " ")


def test_one_model_on_one_set_has_all_figures_and_goes_on(project: Path, covrl: Covrl) -> None:
    asked = [*COMMON, "--problems", "p.jsonl", "-n", "4", "--json"]
    found = covrl(*asked, "--out", "o", "--traces", "t.jsonl")
    assert found.code == 0, found.err
    record = json.loads(found.out)
    assert {k: record[k] for k in ("model", "problem_source", "out", "n")} == {
        "model": "model", "problem_source": "p.jsonl", "out": "o", "n": 4,
    }  # fmt: skip
    assert {"maj@4", "pass@4", "answer_entropy", "token_entropy", "pass_curve", "intervals"} <= record.keys()
    assert "<h2>pass@k for every k</h2>" in (project / "o/report.html").read_text()
    kinds = [json.loads(line)["kind"] for line in (project / "t.jsonl").read_text().splitlines()]
    assert kinds == ["greedy", "0", "1", "2", "3"]
    again = covrl(*asked, "--out", "o")
    assert "model: all problems were answered before" in again.err
    assert json.loads(again.out) == record
    kept = Path(json.loads(covrl(*asked).out)["out"])  # without --out there is a folder all the same
    assert kept.parent == Path("runs")
    assert (kept / "results.json").is_file()
    shown = covrl(*asked[:-1], "--out", "o")
    assert "maj@4" in shown.out
    assert "o/report.html" in shown.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--benchmark", "MATH500"], "unknown benchmark 'MATH500': did you mean MATH-500?"),
        (["--benchmark", "MATH-500", "--data", "MATH-500=no.jsonl"], "MATH-500: no.jsonl: no such file"),
        (["--benchmark", "MATH-500", "--data", "MATH-500=p.jsonl"], "no field 'problem' (question)"),
        (["--benchmark", "MATH-500", "--data", "nowhere"], "--data nowhere: expected a folder or NAME=FILE"),
        (["--benchmark", "SAT-Math"], "give a file with --data SAT-Math=FILE"),
        (["--problems", "p.jsonl", "--problems", "empty.jsonl"], "empty.jsonl:1: problem 'empty/0': answer"),
        (["--problems", "digits:tests", "--out", "o"], "no split 'tests'"),
        (["--problems", "p.jsonl", "-n", "2", "--k", "1,4"], "pass@4 and maj@4 need at least 4 samples"),
        (["--problems", "p.jsonl", "--k", "1,x"], "expected whole numbers with commas"),
        (["--problems", "p.jsonl", "--max-tokens", "1100"], "exceed the context of model, 1024; use --max-tokens 10"),
        (["--problems", "p.jsonl", "--model", "model"], "the same model is named twice"),
        (["--problems", "p.jsonl", "--problems", "p.jsonl"], "the same source is named twice"),
        (["--problems", "p.jsonl", "--model", "./none"], "none"),
        (["--problems", "p.jsonl", "--out", "p.jsonl"], "p.jsonl: cannot write there"),
        (["--problems", "p.jsonl", "--problems", "digits:test", "--traces", "t"], "every trace is under --out"),
        ([], "give --problems or --benchmark"),
    ],
)
def test_unusable_input_is_one_line(project: Path, covrl: Covrl, arguments: list[str], said: str) -> None:
    (project / "empty.jsonl").write_text('{"question": "1", "answer": ""}\n')
    found = covrl(*COMMON, *arguments)
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith("covrl: ")
    assert found.err.count("\n") == 1
    assert said in found.err
    assert not (project / "o").exists()
    assert not (project / "runs").exists()


@pytest.mark.parametrize("command", ["leak", "calibrate"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--problems", "no.jsonl"], "no.jsonl: no such file"),
        (["--problems", "digits:tests"], "no split 'tests'"),
        (["--problems", "empty.jsonl"], "empty.jsonl:1: problem 'empty/0': answer"),
        (["--problems", "p.jsonl", "--set", "problems.answer_field=reply"], "no field 'reply' (answer)"),
        (["--problems", "p.jsonl", "--set", "generation.max_trace_tokens=2000"], "exceed the model's context of 1024"),
        (["--problems", "p.jsonl", "-n", "0"], "Invalid value for '--n'"),
    ],
)
def test_leak_and_calibrate_refuse_alike(
    project: Path, covrl: Covrl, command: str, arguments: list[str], said: str
) -> None:
    (project / "empty.jsonl").write_text('{"question": "1", "answer": ""}\n')
    found = covrl(command, *COMMON[1:], *arguments)
    assert (found.code, found.out, found.err.count("\n")) == (2, "", 1)
    assert found.err.startswith("covrl: ")
    assert said in found.err


def test_a_file_of_something_else_is_refused(copied: Path) -> None:
    stored(copied).write_text("[1]\n")
    with pytest.raises(UserError, match="not a file of `covrl eval`"):
        evaluate_several(order(), copied)
    stored(copied).write_bytes(b'{"covrl_eval": 1}\n{"problem": "\n')
    with pytest.raises(UserError, match="not a file of `covrl eval`"):
        evaluate_several(order(), copied)


def test_a_suite_is_the_mean_of_its_members(project: Path, covrl: Covrl, monkeypatch: pytest.MonkeyPatch) -> None:
    """CoVRL's overall from local files of one row each: every member has one vote, and the gap is said."""
    from covrl.evaluation.benchmarks import COVRL_OVERALL
    from covrl.evaluation.choices import Options

    for name in COVRL_OVERALL.members:
        fields = PROTOCOLS[name].fields
        row: dict[str, Any] = {}
        if isinstance(fields, Options):
            row = {fields.question: "q", fields.right: "A", "options": ["A", "B"]} | dict.fromkeys(fields.wrong, "no")
            row |= {fields.right: 0} if fields.right == "answer_index" else {}
        else:
            row = {fields.question: "1+1", fields.answer: "2"}
        file = project / "sets" / PROTOCOLS[name].file
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(row) + "\n")
    asked = ["--benchmark", "CoVRL-overall", "--data", "sets", "-n", "1", "--max-tokens", "4", "--out", "o", "--json"]
    found = covrl(*COMMON, *asked)
    assert found.code == 0, found.err
    record = json.loads(found.out)
    (overall,) = record["overall"]
    assert set(overall["members"]) == set(COVRL_OVERALL.members) == {e["name"] for e in record["exams"]}
    assert overall["value"] == pytest.approx(sum(overall["members"].values()) / 8)
    assert "the published overall has a ninth that is not known" in (project / "o/results.md").read_text()


# Several models with settings of their own


@pytest.fixture
def runs(project: Path) -> Path:
    """Two folders of runs, trained with other limits, seeds and fields, and a plain model."""
    changes = {
        "a": ("max_trace_tokens = 24", "max_trace_tokens = 12\ntemperature = 0.5", ""),
        "b": ("max_trace_tokens = 24", "max_trace_tokens = 20", "[training]\nseed = 3\n"),
        "c": ("[prompts]", "[prompts]", '[problems]\nanswer_field = "solution"\n'),
    }
    for name, (old, new, more) in changes.items():
        shutil.copytree(project / "model", project / name / "best")
        (project / name / "config.toml").write_text(CONFIG.replace(old, new) + more)
    return project


def test_each_model_is_sampled_as_its_own_settings_say(runs: Path, covrl: Covrl) -> None:
    asked = ["--problems", "p.jsonl", "-n", "2", "--out", "o", "--json"]
    found = covrl("eval", "--model", "a", "--model", "b", "--model", "model", *asked)
    assert found.code == 0, found.err
    record = json.loads(found.out)
    (exam,) = record["exams"]
    assert {m: (s["temperature"], s["trace_tokens"]) for m, s in exam["sampling"].items()} == {
        "a": (0.5, 12),
        "b": (1.0, 20),
        "model": (0.5, 12),
    }
    lines = {m: json.loads((runs / f"o/samples/p.jsonl/{m}.jsonl").read_text().splitlines()[0]) for m in ("a", "b")}
    assert [lines[m]["exam"]["trace_tokens"] for m in ("a", "b")] == [12, 20]
    assert [lines[m]["seed"] for m in ("a", "b")] == [0, 0]
    for note in (
        "model has no settings of its own and is evaluated with the settings of a",
        "samples of all models are drawn with seed 0; training.seed is a 0, b 3, model 0",
        "p.jsonl: trace tokens as in each model's settings: a 12, b 20, model 12; what was kept, gained and lost does "
        "not compare at an equal budget, --max-tokens makes it the same",
    ):
        assert note in record["notes"]
        assert note in found.err
    assert "at temperature 0.5 (a), 1 (b), 0.5 (model) and top-p 1" in (runs / "o/results.md").read_text()


def test_many_unknown_verdicts_are_a_warning(project: Path, covrl: Covrl) -> None:
    (project / "u.jsonl").write_text('{"question": "1+1", "answer": "\\\\frac{1}{"}\n')
    asked = [*COMMON, "--problems", "u.jsonl", "--set", "evaluation.verifier=math", "-n", "4"]
    for found in (covrl(*asked), covrl(*asked, "--out", "o")):
        assert found.code == 0, found.err
        assert "of the verdicts are unknown and count as not right" in found.err
    assert "verdicts are unknown" in (project / "o/report.html").read_text()
    assert "verdicts are unknown" not in covrl(*COMMON, "--problems", "p.jsonl").err


def test_options_hold_for_all_models(runs: Path, covrl: Covrl) -> None:
    same = ["--max-tokens", "8", "--temperature", "1", "--set", "training.seed=5"]
    found = covrl("eval", "--model", "a", "--model", "b", "--problems", "p.jsonl", *same, "--out", "o", "--json")
    record = json.loads(found.out)
    assert record["notes"] == []
    assert record["seed"] == 5
    assert {tuple(s.values()) for s in record["exams"][0]["sampling"].values()} == {(1.0, 8, 4)}


def test_models_that_read_the_problems_differently_are_refused(runs: Path, covrl: Covrl) -> None:
    asked = ["eval", "--model", "a", "--model", "c", "--problems", "p.jsonl", "--out", "o"]
    found = covrl(*asked)
    assert (found.code, found.out, found.err.count("\n")) == (2, "", 1)
    assert "a has problems.answer_field = 'answer' and c has 'solution'" in found.err
    assert "choose with --set problems.answer_field=…" in found.err
    assert not (runs / "o").exists()
    assert covrl(*asked, "--set", "problems.answer_field=answer").code == 0
