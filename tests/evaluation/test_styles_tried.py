"""`covrl prompts`: which wordings are tried, what is recommended and why, and what is printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from commands import Covrl
from models import character_tokenizer, save_tiny
from projects import PROMPTS, write_rows

from covrl.config import PromptConfig, read_toml
from covrl.config.styles import STYLES, TEMPLATES
from covrl.evaluation.posterior_gain import Drawn, posterior_gain
from covrl.evaluation.styles import OWN, Tried, recommend, recommend_template, role_figures, trace_rewards, wordings
from covrl.prompts import Prompts
from covrl.records import Problem, Request, Rollout

WRITTEN = Prompts(character_tokenizer(), PromptConfig())


def drawn(problem: int, source: str, log_prob: float | None, tokens: int = 30, finish: str = "length") -> Drawn:
    closed = log_prob is not None
    rollout = Rollout(
        Request(f"p{problem}", 0, (1,), source),
        (1,) * tokens,
        (0.0,) * tokens,
        "closed" if closed else finish,  # ty: ignore
        "sampled" if closed else "none",
        "text",
    )
    return Drawn(Problem(f"p{problem}", "q", "42"), rollout, log_prob)


def tried(name: str, prior: Sequence[Sequence[float | None]], empty: float = -20.0, tokens: int = 30) -> Tried:
    """A style with these prior traces problem by problem, and one posterior trace each that is worth as much."""
    traces = [drawn(i, "prior", value, tokens) for i, row in enumerate(prior) for value in row]
    traces += [drawn(i, "posterior", row[0] if row[0] is not None else -5.0) for i, row in enumerate(prior)]
    return Tried(
        name,
        {"prior": "", "posterior": ""},
        tuple(traces),
        {role: role_figures([d for d in traces if d.rollout.source == role]) for role in ("prior", "posterior")},
        (empty,) * len(prior),
        posterior_gain([d.worth for d in traces]),
        tuple(trace_rewards(WRITTEN, traces)),
    )


def test_each_style_is_tried_with_what_the_settings_say_besides() -> None:
    found = wordings(PromptConfig(system="Be brief.", chat="never"))
    assert list(found) == list(STYLES)
    assert {(c.system, c.chat) for c in found.values()} == {("Be brief.", "never")}
    for style, each in found.items():
        assert each == PromptConfig(style=style, system="Be brief.", chat="never")  # ty: ignore


def test_a_wording_of_ones_own_is_tried_first_and_one_that_is_a_styles_is_not_tried_twice() -> None:
    mine = PromptConfig(close="Hence", answer_prefix=" ")
    assert list(wordings(mine)) == [OWN, *STYLES]
    assert wordings(mine)[OWN] is mine
    spelled = PromptConfig(**PromptConfig(style="plain").model_dump(exclude={"style"}))  # as a run's file has it
    assert list(wordings(spelled)) == list(STYLES)


def test_figures_of_a_role() -> None:
    rows = [drawn(0, "prior", -2.0, 10), drawn(0, "prior", -4.0, 10), drawn(0, "prior", None, 40)]
    rows += [drawn(1, "prior", -9.0, 20), drawn(1, "prior", None, 40, "eos"), drawn(2, "prior", None, 0, "eos")]
    found = role_figures(rows)
    assert (found.traces, found.closed, found.cut, found.tokens) == (6, 0.5, 1 / 6, 20.0)
    assert found.log_prob == -6.0, "each problem counts once: −3 and −9"
    assert found.log_prob_interval == pytest.approx((-6 - 12.7062 * 3, -6 + 12.7062 * 3), abs=1e-3)
    assert found.record()["closed_interval"] == pytest.approx([0.187616, 0.812384], abs=1e-5)
    assert role_figures([drawn(0, "prior", None)]).log_prob is None


def test_a_trace_that_did_not_close_earns_the_floor_and_a_hopeless_one_no_less() -> None:
    rows = [drawn(0, "prior", -10.0), drawn(0, "prior", None), drawn(1, "prior", -400.0), drawn(1, "posterior", 0.0)]
    assert trace_rewards(WRITTEN, rows) == [-20.0, -30.0]


def test_the_style_whose_prior_traces_earn_most_is_recommended_with_its_lead() -> None:
    often = tried("plain", [[-8.0 - i % 3, -9.0, -8.0, None] for i in range(8)])
    rarely = tried("tags", [[-1.0, None, None, None]] * 8)
    never = tried("thinking", [[None] * 4] * 8)
    best, said = recommend([rarely, never, often], 128)
    assert best == "plain"
    assert said[0] == (
        'Recommended: prompts.style = "plain". 75% of its prior traces close (tags 25%, thinking 0%), and one earns '
        "-14.0 nats on average (tags -22.8, thinking -30.0)."
    )
    assert said[1].startswith("Its lead over tags is 8.8 nats, 95 % ")
    assert said[-1].startswith("Posterior traces are worth ")


def test_a_lead_that_is_not_decided_is_said_to_be_so() -> None:
    one = tried("plain", [[-8.0 + 6 * (-1) ** i] for i in range(8)])
    other = tried("tags", [[-8.5 - 6 * (-1) ** i] for i in range(8)])
    _, said = recommend([one, other], 128)
    assert "Its lead over tags is not decided by 8 problems (0.5 nats, 95 % -" in said[1]
    assert "One problem does not decide" in recommend([tried("plain", [[-1.0]]), tried("tags", [[-2.0]])], 128)[1][1]


def test_cautions_of_the_best_style() -> None:
    few = " ".join(recommend([tried("plain", [[-8.0, None, None, None, None]] * 8)], 64)[1])
    assert "Under 25% is too few to train on: teach the wording first with covrl warm-format" in few
    assert "80% were cut at 64 tokens and might have closed later (--max-tokens)" in few
    short = " ".join(recommend([tried("plain", [[-8.0]] * 8, empty=-7.0, tokens=3)], 64)[1])
    assert "Its traces have 3.0 tokens: the model answers at once and does not think." in short
    assert "after an empty thought (-1.0 nats, 95 % -1.0 to -1.0): as yet thoughts do not help" in short
    good = " ".join(recommend([tried(OWN, [[-8.0]] * 8, empty=-9.0)], 64)[1])
    assert good.startswith(
        "Recommended: the wording of the settings. 100% of its prior traces close, and one earns -8.0"
    )
    assert not any(word in good for word in ("too few to train", "were cut", "does not think", "do not help"))


def test_where_nothing_closes_nothing_is_recommended() -> None:
    best, said = recommend([tried("tags", [[None, None]] * 8), tried("plain", [[None, None]] * 8)], 64)
    assert best is None
    assert said == [
        "No style is recommended: no prior trace closed under any of them (100% were cut at 64 tokens); give them more "
        "room (--max-tokens), or teach a wording with covrl warm-format, where the problems carry worked solutions."
    ]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_tiny("qwen2", "model", max_position_embeddings=400)
    write_rows(Path("p.jsonl"), [{"question": f"{i}+1", "answer": str(i % 10)} for i in range(9)])
    Path("run.toml").write_text(
        f'[model]\npath = "model"\ndevice = "cpu"\n{PROMPTS}[generation]\nmax_trace_tokens = 24\n'
    )
    return tmp_path


def test_the_command_from_end_to_end(project: Path, covrl: Covrl) -> None:
    """Of random weights only the settings' own wording, which ends at a letter, ever closes."""
    asked = ["prompts", "--model", "model", "--config", "run.toml", "--problems", "p.jsonl", "--limit", "6", "-n", "5"]
    code, out, err = covrl(*asked, "--json")
    assert code == 0, err
    record = json.loads(out)
    assert [s["style"] for s in record["styles"]] == ["own", "tags", "thinking", "plain"]
    assert (record["problems"], record["n"], record["max_tokens"], record["recommended"]) == (6, 5, 24, "own")
    own, tags = record["styles"][:2]
    assert (own["prior"]["traces"], own["posterior"]["traces"]) == (30, 30)
    assert own["prompts"] == {"prior": "0+1=", "posterior": "0+1(0)="}
    assert tags["prompts"]["prior"].startswith("0+1\n\nReason inside <think></think>")
    assert own["prior"]["closed"] > 0.1
    assert (tags["prior"]["closed"], tags["prior"]["log_prob"], tags["reward"]["mean"]) == (0.0, None, -30.0)
    assert own["posterior_gain"]["asked"] == 6
    assert all(s["empty"]["log_prob"] < 0 for s in record["styles"])
    assert record == json.loads(covrl(*asked, "--json").out), "the same seed, the same traces"
    code, out, err = covrl(*asked)
    assert code == 0
    assert out.count("Reason inside <think></think>") == 1, "what both prompts have in common is shown once"
    assert "posterior prompt, from where they part\nThe reference answer is 0. The reasoning" in out
    assert "own: 60 traces of at most 24 tokens" in err
    for said in (
        "prior prompt\n0+1=\n",
        "posterior prompt\n0+1(0)=\n",
        "a posterior trace (",
        "  empty ",
        "log p(answer)",
        *record["sentences"][:1],
    ):
        assert said in out, said


def test_the_settings_limit_and_the_command_lines(project: Path, covrl: Covrl) -> None:
    asked = ["prompts", "--model", "model", "--problems", "p.jsonl", "--limit", "1", "-n", "1", "--json"]
    assert json.loads(covrl(*asked).out)["max_tokens"] == 96
    assert json.loads(covrl(*asked, "--max-tokens", "7").out)["max_tokens"] == 7
    alone = json.loads(covrl(*asked, "--max-tokens", "7").out)
    assert [s["style"] for s in alone["styles"]] == ["tags", "thinking", "plain"]
    assert "is undecided" in alone["styles"][0]["posterior_gain"]["sentence"]


def test_a_style_that_the_tokenizer_cannot_write_is_left_out_and_said(covrl: Covrl) -> None:
    asked = ["prompts", "--model", "covrl:digits", "--problems", "digits:dev", "--limit", "4", "-n", "2"]
    code, out, _ = covrl(*asked)
    assert code == 0
    assert "plain cannot be used: prompts.close: the tokenizer" in out
    assert "Recommended: the wording of the settings." in out


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--problems", "none.jsonl"], "none.jsonl"),
        (
            ["--set", "prompts.style=plian"],
            "prompts.style: Input should be 'tags', 'thinking' or 'plain', found 'plian'",
        ),
        (["--set", "prompts.style=plain"], "--set prompts.style=plain: the whole wording is in run.toml"),
        (["--model", "nowhere"], "nowhere"),
        (["--max-tokens", "395"], "none of the styles can be used with this model and these problems: own: problem p/"),
    ],
)
def test_wrong_input_is_one_line(project: Path, covrl: Covrl, changed: list[str], said: str) -> None:
    asked = {"--model": "model", "--problems": "p.jsonl", "--config": "run.toml"} | dict([changed])
    code, out, err = covrl("prompts", *[part for pair in asked.items() for part in pair])
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1
    assert read_toml(project / "run.toml")["prompts"]["close"] == "e"


def test_of_templates_the_one_with_the_greatest_gain_is_named_and_what_a_gain_does_not_tell() -> None:
    rows = [[-8.0, -8.0], [-6.0, -6.0], [-7.0, -7.0]]
    weak, strong = tried("neutral", rows), tried("check", rows)
    better = [replace(d, log_prob=-1.0) if d.rollout.source == "posterior" else d for d in strong.drawn]
    strong = replace(strong, gain=posterior_gain([d.worth for d in better]))
    best, sentences = recommend_template([weak, strong])
    assert best == "check"
    assert "check" in sentences[0]
    assert "6.0 nats (neutral 0.0)" in sentences[0]
    assert "covrl preflight" in sentences[-1]
    none = replace(weak, gain=posterior_gain([d.worth._replace(log_prob=None) for d in weak.drawn]))
    assert recommend_template([none])[0] is None


def test_the_six_templates_are_tried_on_the_settings_own_wording(covrl: Covrl, tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "model")
    write_rows(tmp_path / "p.jsonl", [{"question": f"{i}+1", "answer": str(i + 1)} for i in range(3)])
    (tmp_path / "c.toml").write_text(PROMPTS)
    asked = ("--model", str(tmp_path / "model"), "--problems", str(tmp_path / "p.jsonl"))
    asked += ("--config", str(tmp_path / "c.toml"))
    done = covrl("prompts", *asked, "--templates", "--max-tokens", "8", "-n", "2", "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert [s["style"] for s in record["styles"]] == ["style", *TEMPLATES]
    assert len({s["prompts"]["prior"] for s in record["styles"]}) == 1
    assert len({s["prompts"]["posterior"] for s in record["styles"]}) == 6
