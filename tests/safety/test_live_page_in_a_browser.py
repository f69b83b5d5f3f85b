"""The live page in a real browser: it keeps up with a run, finds traces, and hostile text in them does nothing."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chromium import Chromium
from live_runs import group, new_run, record, step, trace
from mines import FOUND, NEEDS_BROWSER, SHAKE, Server

from covrl.records import Problem, TokenView, Turn
from covrl.reporting.live.run import open_run
from covrl.reporting.live.server import Server as LiveServer
from covrl.reporting.live.server import Site, open_server
from covrl.reporting.sinks import cut_behind

pytestmark = NEEDS_BROWSER

SHOWN = "[...document.querySelectorAll('#found pre')].map((pre) => pre.textContent.trim())"
COUNT = "document.getElementById('count').textContent"
SAID = "document.getElementById('said').textContent"


@contextmanager
def served(*folders: Path) -> Generator[LiveServer]:
    with open_server(Site([open_run(number, folder) for number, folder in enumerate(folders)]), 0) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def choose(browser: Chromium, **values: object) -> None:
    """Fill in the search as a user does, and wait for what is found."""
    script = "(() => { const form = document.getElementById('search');"
    for name, value in values.items():
        script += f"form.elements[{json.dumps(name)}].value = {json.dumps(value)};"
    browser.run("document.getElementById('count').textContent = ''")
    browser.run(script + "form.dispatchEvent(new Event('input', { bubbles: true })); })()")
    browser.wait_for(COUNT)


def click(browser: Chromium, selector: str) -> None:
    browser.run(f"document.querySelector({json.dumps(selector)}).click()")


def texts(browser: Chromium, expected: Sequence[str]) -> None:
    """Wait until exactly these traces are shown."""
    browser.wait_for(f"JSON.stringify({SHOWN}) === {json.dumps(json.dumps(expected, separators=(',', ':')))}")


def nothing_was_said(browser: Chromium, server: LiveServer) -> None:
    """Only this server was asked, and the page made no error and met no refusal of its policy."""
    assert all(url.startswith(server.url) for url in browser.requests), browser.requests
    told = [e for e in browser.seen if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")]
    assert told == []
    assert browser.dialogs == []


def test_a_page_keeps_up_with_a_run_that_grows_is_killed_resumed_and_deleted(browser: Chromium, tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run")
    with served(folder) as server:
        browser.open_url(server.url)
        browser.wait_for(f"{SAID} === 'No step is recorded yet.'")
        browser.wait_for(f"{COUNT} === 'No traces are recorded yet.'")
        assert browser.run("document.querySelectorAll('figure').length") == 0

        record(folder, [step(1, group("p", trace("first thought")))])
        texts(browser, ["first thought"])
        browser.wait_for("document.querySelectorAll('#curves figure').length === 1")
        browser.wait_for(f"{SAID}.startsWith('1 of 100 steps are done. The last was recorded ')")

        browser.run("window.same = document.querySelector('#found pre')")
        record(
            folder, [step(2, group("p", trace("second thought")), kl__nats_per_trace=0.5, warnings=["leak: 3 of 4"])]
        )
        browser.wait_for("!document.getElementById('fresh').hidden")
        assert browser.run("document.getElementById('fresh').textContent") == "Show 1 new"
        assert browser.run("window.same.isConnected"), "nothing moves under who reads"
        browser.wait_for("document.querySelectorAll('#curves figure').length === 2")
        browser.wait_for("document.querySelector('#warnings').textContent.includes('leak: 3 of 4')")
        order = browser.run("[...document.querySelectorAll('main > [id], main > section')].map((part) => part.id)")
        assert order == ["now", "result", "curves", "traces", "warnings", "numbers", "config"]
        assert browser.run("[...document.querySelectorAll('nav a')].map((link) => link.hash)") == [
            f"#{name}" for name in order[1:]
        ]
        click(browser, "#fresh")
        texts(browser, ["second thought", "first thought"])

        # Killed in the middle of a line: the half is waited for.
        whole = {name: (folder / name).read_bytes() for name in ("metrics.jsonl", "traces.jsonl")}
        for name, content in whole.items():
            (folder / name).write_bytes(content + content[: len(content) // 3])
        browser.run("new Promise((done) => setTimeout(done, 2500))")
        assert browser.run("document.querySelectorAll('#faults li').length") == 0

        # Resumed from step 1: step 2 is taken again, and what was read of it goes.
        for name in whole:
            cut_behind(folder / name, 1)
        click(browser, "#follow")
        record(folder, [step(2, group("p", trace("another second"))), step(3, group("p", trace("third")))])
        texts(browser, ["third", "another second", "first thought"])
        record(folder, [step(4, group("p", trace("fourth")))])
        texts(browser, ["fourth", "third", "another second", "first thought"])

        with (folder / "metrics.jsonl").open("ab") as file:
            file.write(b'{"step": "<img>"}\n')
        browser.wait_for("document.getElementById('faults').textContent.includes('metrics.jsonl, line 5: not a line')")

        shutil.rmtree(folder)
        browser.wait_for("document.getElementById('faults').textContent.includes('the folder is gone')")
        choose(browser, text="thought")
        texts(browser, ["first thought"])
        nothing_was_said(browser, server)
    browser.wait_for(f"{SAID}.startsWith('covrl view does not answer')")
    texts(browser, ["first thought"])


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A run with 120 traces of eight problems, of both sources and with verdicts."""
    folder = new_run(tmp_path / "run")
    for n in range(1, 31):
        views = [
            trace(
                f"t{n}-{each} {'WAIT here' if each == 0 else 'so'}",
                -n / 10 - each,
                "prior" if each % 2 else "posterior",
                correct=("right", "wrong", None, "unknown")[each],
                finish="closed" if n % 2 else "length",
                advantage=-each,
            )
            for each in range(4)
        ]
        record(folder, [step(n, group(f"p{n % 8}", *views))])
    return folder


def test_searching_filtering_and_turning_pages(browser: Chromium, many: Path) -> None:
    with served(many) as server:
        browser.open_url(server.url)
        browser.wait_for(f"{COUNT} === '120 traces.'")
        first = browser.run(SHOWN)
        assert len(first) == 24
        assert first[:2] == ["t30-0 WAIT here", "t30-1 so"]
        assert browser.run("document.querySelector('#turn span').textContent") == "page 1 of 5"
        click(browser, "#turn button[value='1']")
        browser.wait_for("document.querySelector('#turn span').textContent === 'page 2 of 5'")
        assert browser.run(SHOWN)[0] == "t24-0 WAIT here"
        click(browser, "#turn button[value='-1']")
        texts(browser, first)

        choose(browser, text="wait HERE", first="5", last="7")
        texts(browser, [f"t{n}-0 WAIT here" for n in (7, 6, 5)])
        assert browser.run(COUNT) == "3 traces match."
        marked = browser.run("[...CSS.highlights.get('sought')].map((range) => range.toString())")
        assert marked == ["WAIT here"] * 3
        assert "text=wait+HERE" in browser.run("location.hash")
        browser.open_url(server.url + browser.run("location.hash"))
        texts(browser, [f"t{n}-0 WAIT here" for n in (7, 6, 5)])

        click(browser, "#search button[type=reset]")
        texts(browser, first)
        choose(browser, source="prior", verdict="unknown", finish="length", order="lowest", high="-5.7")
        texts(browser, ["t30-3 so", "t28-3 so"])
        click(browser, "#search button[type=reset]")
        texts(browser, first)
        choose(browser, verdict="none", order="highest")
        browser.wait_for(f"{SHOWN}[0] === 't1-2 so'")

        click(browser, "#search button[type=reset]")
        choose(browser, problem="is p6?")
        browser.wait_for(f"{COUNT} === '16 traces match.'")
        click(browser, "#search button[type=reset]")
        texts(browser, first)
        click(browser, "#found .quiet")
        browser.wait_for(f"{COUNT} === '16 traces match.'")
        assert not browser.run("document.getElementById('only').hidden")
        click(browser, "#only button")
        texts(browser, first)
        choose(browser, text="nowhere")
        texts(browser, [])
        assert browser.run(COUNT) == "No trace matches."
        nothing_was_said(browser, server)


def test_reading_a_chart_goes_on_when_it_is_drawn_again(browser: Chromium, many: Path) -> None:
    with served(many) as server:
        browser.open_url(server.url)
        browser.wait_for("document.getElementById('said').textContent.startsWith('30 of 100')")
        browser.run("document.querySelector('#numbers details').open = true")
        browser.run(
            """(() => {
              const svg = document.querySelector("#curves figure > svg");
              svg.focus();
              svg.dispatchEvent(new KeyboardEvent("keydown", { key: "Home", bubbles: true, cancelable: true }));
            })()"""
        )
        browser.wait_for("document.querySelector('.legend .at').textContent === 'step 1'")
        browser.run("window.old = document.querySelector('#curves figure')")
        record(many, [step(31, reward__prior=5.0)])
        browser.wait_for("!window.old.isConnected")
        browser.wait_for("document.querySelector('.legend .at').textContent === 'step 1'")
        assert browser.run("document.activeElement === document.querySelector('#curves figure > svg')")
        assert browser.run("document.querySelector('#numbers details').open")
        nothing_was_said(browser, server)


def test_two_runs_side_by_side(browser: Chromium, tmp_path: Path) -> None:
    a, b = new_run(tmp_path / "a", seed=1), new_run(tmp_path / "b", seed=2)
    record(a, [step(n, group(f"p{n}", trace(f"a{n}"))) for n in range(1, 8)])
    record(b, [step(n, group(f"p{n}", trace(f"b{n}"))) for n in (1, 2)])
    pairs = (
        "[...document.querySelectorAll('#found .sides')].map((sides) => [...sides.children]"
        ".map((side) => [...side.querySelectorAll('pre')].map((pre) => pre.textContent.trim()).join()))"
    )
    with served(a, b) as server:
        browser.open_url(server.url)
        browser.wait_for(f"{COUNT} === '7 pairs of groups.'")
        assert browser.run(pairs) == [["a2", "b2"], ["a1", "b1"], ["a7", ""], ["a6", ""]]
        dashes = "[...document.querySelectorAll('#curves .line')].map((line) => getComputedStyle(line).strokeDasharray)"
        assert sorted(set(browser.run(dashes))) == ["6px, 4px", "none"]
        record(b, [step(3, group("p3", trace("b3")))])
        browser.wait_for("!document.getElementById('fresh').hidden")
        click(browser, "#fresh")
        browser.wait_for(f'JSON.stringify({pairs}[0]) === \'["a3","b3"]\'')
        left, right = browser.run(
            "[...document.querySelector('#found .sides').children].map((side) => side.getBoundingClientRect().left)"
        )
        assert left < right
        nothing_was_said(browser, server)


def hostile(folder: Path, attacks: Sequence[str]) -> Path:
    """A run of whose every text is an attack; each of them has a step."""
    new_run(folder)
    (folder / "config.toml").write_text(f"[algorithm]\nname = {json.dumps(attacks[0])}\n[training]\nsteps = 100\n")
    for number, attack in enumerate(attacks, start=1):
        pieces = tuple(TokenView(piece, -0.1, -2.0) for piece in [attack, *attack.split(" ")])
        problem = Problem(attack, attack, attack, (attack,), attack, turns=(Turn("user", attack),))
        views = [
            trace(attack, source=attack, tokens=(), rewards={attack: 1.0, "other": 2.0}),
            trace(attack, tokens=pieces, index=1, parent=0),
        ]
        metrics: dict[str, Any] = {attack: 1.0, f"x/{attack}": 2.0}
        record(folder, [step(number, group(problem, *views), warnings=[attack], **metrics)])
    with (folder / "traces.jsonl").open("ab") as file:
        file.write(json.dumps({"step": attacks[0]}).encode() + b"\n")
    return folder


@pytest.mark.parametrize("policy", [True, False], ids=["with its policy", "by escaping alone"])
@pytest.mark.parametrize("count", [1, 2])
def test_hostile_runs_do_nothing(
    browser: Chromium, server: Server, attacks: tuple[str, ...], tmp_path: Path, policy: bool, count: int
) -> None:
    name = "<img src=x onerror=alert(1)>"
    folders = [hostile(tmp_path / str(place) / name, attacks) for place in range(count)]
    server.asked.clear()
    with served(*folders) as live:
        browser.open_url(live.url, policy)
        browser.wait_for("document.querySelectorAll('#found .group').length")
        seen = ""
        for page in range(browser.run("Number(document.querySelector('#turn span').textContent.split(' ').pop())")):
            if page:
                browser.run("document.getElementById('count').textContent = ''")
                click(browser, "#turn button[value='1']")
                browser.wait_for(COUNT)
            seen += browser.run("document.getElementById('found').textContent")
        for attack in attacks[:11]:
            assert attack in seen, "the text is there to be read"
        record(folders[0], [step(len(attacks) + 1, warnings=[attacks[3]])])
        browser.wait_for(f"{SAID}.includes('{len(attacks) + 1} of 100')")
        assert browser.run(SHAKE) == 0
        browser.wait_for("document.getElementById('faults').textContent.includes('not a line that covrl wrote')")
        found = browser.run(FOUND)
        assert browser.run("location.href").partition("#")[0] == live.url
        icon = f"http://127.0.0.1:{live.port}/favicon.ico"  # asked for by the browser, if no policy forbids it
        assert [url for url in browser.requests if not url.startswith(live.url) and (policy or url != icon)] == []
        assert browser.dialogs == []
        assert server.asked == []
        assert found["odd"] == found["handlers"] == found["links"] == []
        assert (found["scripts"], found["styles"], found["inline"]) == (1, 1, 0)
        assert found["inputs"] == 8
        assert found["hidden"] != "none"
        assert "<img src=" in found["text"]


def test_the_browser_refuses_to_make_markup_out_of_text_and_to_ask_others(
    browser: Chromium, server: Server, many: Path
) -> None:
    server.asked.clear()
    with served(many) as live:
        browser.open_url(live.url)
        script = (
            "(() => { try { document.body.innerHTML = '<b>x</b>'; return 'made'; } catch { return 'refused'; } })()"
        )
        assert browser.run(script) == "refused"
        assert browser.run(f"fetch('{server.url}/x').then(() => 'made', () => 'refused')") == "refused"
        assert server.asked == []


def test_another_page_cannot_read_a_run(browser: Chromium, many: Path, tmp_path: Path) -> None:
    page = tmp_path / "other.html"
    page.write_text("<!doctype html><title>other</title>")
    with served(many) as live:
        browser.open(page)
        for name in ("", "state", "traces"):
            script = f"fetch('{live.url}{name}').then((a) => a.text(), () => 'refused')"
            assert browser.run(script) == "refused"
