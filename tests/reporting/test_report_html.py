import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import pytest

from covrl.records import Problem, StepReport, TraceGroup, TraceView
from covrl.reporting.catalogue import unit_of
from covrl.reporting.html import render_report, write_report
from covrl.reporting.summary import Attempt, Example, Note, ResultRow, RunSummary, remarks

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!-- \ud800 \x00 \u202e ' \" &amp; </style>"
VOID = {"meta", "img", "br", "input", "link", "base"}


class Page(HTMLParser):
    """Collects the elements, and fails on a tag that is left open or closed out of order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag, **wanted):
        return [a for t, a in self.tags if t == tag and all(a.get(k) == v for k, v in wanted.items())]


def steps(count=120, **every):
    made = []
    for k in range(1, count + 1):
        metrics = {"reward/prior": -3 + k / count, "reward/posterior": -1 + k / count / 2, "grad_norm/kl": 0.1, **every}
        metrics |= {"eval/accuracy": k / count} if k % 10 == 0 else {}
        made.append(StepReport(k, metrics))
    return made


def trace(text, advantage, source="prior", **rest):
    return TraceView(source=source, text=text, finish="closed", reward=-1.0, advantage=advantage, kl=None, **rest)


def with_traces(*traces, hint=None, question="q?"):
    problem = Problem("set/0", question, "7", hint=hint)
    return RunSummary("t", steps=[StepReport(3, {}, groups=(TraceGroup(problem, traces),))])


def test_the_page_is_one_file_with_a_policy_that_fits_its_style_and_script():
    text = render_report(RunSummary("t", steps=steps()))
    page = Page(text)
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy.startswith("default-src 'none'; ")
    for tag in ("style", "script"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    for _, attributes in page.tags:
        assert not {"src", "style", "srcset", "action"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("href", "#").startswith("#")
    assert "url(" not in text
    assert "@import" not in text


def attacked():
    views = (trace(ATTACK, 1.0, source=ATTACK), trace(ATTACK, math.nan, correct="wrong"))
    group = TraceGroup(Problem(ATTACK, ATTACK, ATTACK, hint=ATTACK), views)
    return RunSummary(
        title=ATTACK,
        subtitle=ATTACK,
        headline=ATTACK,
        config={ATTACK: {ATTACK: [ATTACK]}, "plain": ATTACK},
        steps=[StepReport(1, {f"x/{ATTACK}": 1.0, ATTACK: 2.0}, (ATTACK,), (group,))],
        results=[ResultRow(ATTACK, 0.1, 0.2, 0.1, ATTACK, unit="share"), ResultRow("r", 0.1, 0.2, unit=ATTACK)],
        examples=[Example(ATTACK, ATTACK, Attempt(ATTACK, "wrong"), Attempt(ATTACK))],
        notes=[Note(ATTACK)],
    )


def test_no_text_of_a_model_or_data_set_becomes_markup():
    text = render_report(attacked())
    page = Page(text)
    text.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert page.all("img") == []
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert "<!--" not in text
    assert text.count("</script") == 1
    assert "<U+D800> <U+0000> <U+202E>" in page.text


@pytest.mark.parametrize(
    "summary",
    [
        RunSummary(""),
        RunSummary("t", steps=[StepReport(0, {})]),
        RunSummary("t", steps=steps(1)),
        RunSummary("t", steps=[StepReport(k, {"kl/nats_per_trace": math.nan, "grad_norm/kl": 0.0}) for k in (1, 2)]),
        RunSummary("t", steps=[StepReport(1, {"a/b": 1.0}), StepReport(9, {"c/d": math.inf}), StepReport(12, {})]),
        RunSummary("t", steps=[StepReport(1, {"time/step": 1.0})]),
        RunSummary("t", steps=[StepReport(1, {"nofamily": 1e300, "x/y": -1e300})]),
        RunSummary("t", results=[ResultRow("r", None, math.nan), ResultRow("s", 0.5, 7.0, math.nan, count=3)]),
    ],
)
def test_a_page_is_made_of_whatever_there_is(summary):
    text = render_report(summary)
    page = Page(text)
    drawings = " ".join(a.get("d", "") + a.get("points", "") + a.get("cy", "") for _, a in page.tags)
    assert "nan" not in drawings
    assert "inf" not in drawings
    for data in page.all("figure"):
        json.loads(data["data-chart"], parse_constant=lambda word: pytest.fail(word))


def test_each_metric_is_drawn_once_and_unknown_families_get_a_chart():
    metrics = dict.fromkeys(("reward/prior", "reward/odd", "vine/a", "vine/b", "trace/invalid_share", "loss/kl"), 1.0)
    text = render_report(RunSummary("t", steps=steps(3, **metrics)))
    page = Page(text)
    titles = re.findall(r"<figcaption><h3>(.*?)[<\s]*(?:<span|</h3>)", text)
    assert "vine" in titles
    assert "Reward by source" in titles
    drawn = sum(len(json.loads(figure["data-chart"])["series"]) for figure in page.all("figure"))
    assert drawn == len({*metrics, "reward/posterior", "grad_norm/kl"})


@pytest.mark.parametrize(
    ("metric", "unit"),
    [
        ("eval/thought_gain", "nats"),
        ("thought/gain", "nats"),
        ("eval/log_prob", "nats"),
        ("eval/hint_margin_upper", "nats"),
        ("watch/accuracy_gain", "share"),
        ("watch/accuracy_gain_at_most", "share"),
        ("watch/reward_rise", ""),
        ("eval/accuracy", "share"),
        ("eval/accuracy_sampled", "share"),
        ("label/prior_sound", "share"),
        ("posterior/ess", "traces"),
        ("tokens/trained", "tokens"),
        ("time/step", "seconds"),
        ("reward/prior", "nats"),
        ("reward/brevity", ""),
        ("mine/some_share", "share"),
        ("mine/gain", ""),
    ],
)
def test_a_metric_has_the_unit_of_its_chart(metric, unit):
    assert unit_of(metric) == unit


def test_the_sources_keep_their_colours():
    text = render_report(RunSummary("t", steps=steps(3, **{"length/posterior": 3.0, "length/prior": 4.0})))
    legends = re.findall(r"class='swatch (s-\w+)'[^>]*>.*?</svg>(prior|posterior) ", text)
    assert len(legends) == 4
    assert all(colour == f"s-{name}" for colour, name in legends)


def test_chance_is_drawn_where_it_is_known():
    rows = [ResultRow("accuracy", 0.25, 0.8, chance=0.238)]
    assert "chance 23.8" in render_report(RunSummary("t", steps=steps(), results=rows))
    assert "class='chance'" not in render_report(RunSummary("t", steps=steps()))


def test_values_that_are_not_finite_are_marked_not_hidden():
    broken = [*steps(3), StepReport(4, {"reward/prior": math.nan, "reward/posterior": -1.0})]
    text = render_report(RunSummary("t", steps=broken))
    assert text.count("class='cross'") == 1
    assert "× 1 value not finite" in text


def test_an_outlier_leaves_the_frame_with_a_mark():
    made = steps(60, **{"kl/nats_per_trace": 1.0})
    made = [StepReport(r.step, {"kl/nats_per_trace": 1 + r.step / 60}) for r in made]
    made[30] = StepReport(31, {"kl/nats_per_trace": 1e4})
    text = render_report(RunSummary("t", steps=made))
    assert "▲ 1 outside the frame" in text
    assert "10,000" not in re.sub(r"<figure[^>]*>", "", text.split("id='numbers'")[0])


def test_traces_are_sorted_by_advantage_and_those_without_come_last():
    text = render_report(
        with_traces(trace("low", -1.0), trace("none", None), trace("nan", math.nan), trace("high", 2.0))
    )
    assert re.findall(r"<pre>(\w+)</pre>", text) == ["high", "low", "none", "nan"]


def test_long_traces_and_many_groups_are_cut_and_it_is_said():
    assert "992,000 more characters" in render_report(with_traces(trace("x" * 1_000_000, 1.0)))
    group = TraceGroup(Problem("p", "q", "a"), (trace("t", 1.0),))
    many = [StepReport(step, {}, groups=(group,) * 8) for step in range(1000)]
    text = render_report(RunSummary("t", steps=many))
    shown = [int(step) for step in re.findall(r"<section class='group' data-step='(\d+)'", text)]
    assert len(shown) == 160
    assert (shown[0], shown[-1]) == (0, 999)
    assert "980 more steps" in text


def test_a_long_run_stays_small():
    made = [StepReport(k, {"reward/prior": math.sin(k), "time/train": 1.0}) for k in range(20_000)]
    text = render_report(RunSummary("t", steps=made))
    assert len(text) < 200_000
    assert "Each point is the mean of up to 50 steps" in text


def test_a_bar_for_many_steps_is_not_filled_by_the_few_that_evaluate():
    made = [StepReport(k, {"time/train": 1.0} | ({"time/eval": 10.0} if k % 10 == 0 else {})) for k in range(1200)]
    (figure,) = Page(render_report(RunSummary("t", steps=made))).all("figure")
    train, evaluation = json.loads(figure["data-chart"])["series"]
    assert set(train["v"]) == set(evaluation["v"]) == {"1.00"}


def test_steps_in_any_order_give_the_same_page():
    assert render_report(RunSummary("t", steps=steps()[::-1])) == render_report(RunSummary("t", steps=steps()))


def test_alike_warnings_are_one_line():
    made = [StepReport(k, {}, (f"KL is {k}.5",)) for k in (1, 2, 5)]
    (remark,) = remarks(RunSummary("t", steps=made))
    assert (remark.first, remark.last, remark.times, remark.text) == (1, 5, 3, "KL is 1.5")


def test_writing_replaces_the_file_and_leaves_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "run" / "report.html"
    write_report(path, RunSummary("one"))
    write_report(path, attacked())
    assert "alert" in path.read_text(encoding="utf-8")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_report(path, RunSummary("two"))
    assert "alert" in path.read_text(encoding="utf-8")
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]
