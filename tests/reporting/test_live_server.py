"""The live page over HTTP: who may ask, what is answered, and what a page of it holds."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import pytest
from live_runs import group, new_run, record, step, trace

from covrl.errors import UserError
from covrl.reporting.live import answers
from covrl.reporting.live.page import run_names
from covrl.reporting.live.run import open_run
from covrl.reporting.live.server import ADDRESS, Server, Site, open_server


class Answer(NamedTuple):
    status: int
    text: str
    headers: http.client.HTTPMessage

    def json(self) -> Any:
        assert self.status == 200, self
        return json.loads(self.text)


class Visitor:
    """Asks one server."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def ask(self, path: str = "", method: str = "GET", key: str | None = None, **headers: str) -> Answer:
        line = http.client.HTTPConnection(ADDRESS, self.server.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        line.request(method, f"/{self.server.site.key if key is None else key}/{path}", headers=named)
        found = line.getresponse()
        answer = Answer(found.status, found.read().decode(), found.headers)
        line.close()
        return answer

    def traces(self, **wanted: object) -> Any:
        return self.ask(f"traces?{urlencode(wanted)}").json()


def served(folders: list[Path]) -> Iterator[Visitor]:
    runs = [open_run(number, folder) for number, folder in enumerate(folders)]
    with open_server(Site(runs), 0) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        visitor = Visitor(server)
        visitor.ask("state")  # reads the files
        yield visitor
        server.shutdown()


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Visitor]:
    """A run of 30 steps with a group of two traces each."""
    folder = new_run(tmp_path / "run")
    views = [(trace(f"thought {n}", -n / 10), trace(f"other {n}", None, "posterior")) for n in range(1, 31)]
    record(folder, [step(n, group(f"p{n % 3}", *some)) for n, some in enumerate(views, start=1)])
    yield from served([folder])


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Visitor]:
    a, b = new_run(tmp_path / "a", seed=1), new_run(tmp_path / "b", seed=2)
    record(a, [step(n, group(f"p{n}", trace(f"a{n}")), eval__accuracy=0.1 * n) for n in (1, 2, 3)])
    record(b, [step(n, group(f"p{n + 1}", trace(f"b{n}")), kl__nats_per_trace=0.1) for n in (1, 2)])
    yield from served([a, b])


def test_only_this_machine_is_listened_to(one: Visitor) -> None:
    assert one.server.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:{port}"}, 200),
        ({"Host": "evil.example:{port}"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1:1"}, 200),  # the other end of a tunnel
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "localhost:"}, 403),
        ({"Host": "127x0.0.1"}, 403),
        ({"Host": "localhost@evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:{port}"}, 403),
        ({"Host": ""}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site", "Sec_Fetch_Dest": "empty"}, 403),
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "iframe"}, 403),
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "document"}, 200),  # a link was followed
        ({"Sec_Fetch_Site": "same-origin"}, 200),
        ({"Sec_Fetch_Site": "none"}, 200),
    ],
)
@pytest.mark.parametrize("path", ["", "state", "traces"])
def test_a_name_that_is_not_ours_gets_nothing(one: Visitor, headers: dict[str, str], status: int, path: str) -> None:
    filled = {name: value.format(port=one.server.port) for name, value in headers.items()}
    found = one.ask(path, **filled)
    assert found.status == status
    assert ("thought" in found.text or "covrl" in found.text or '"page"' in found.text) == (status == 200)


def test_without_the_key_there_is_nothing(one: Visitor) -> None:
    for key in ("", "x", one.server.site.key[:-1], one.server.site.key + "x"):
        for path in ("", "state", "traces"):
            assert one.ask(path, key=key).status == 404
    assert len(one.server.site.key) >= 16


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "<b>"])
def test_only_get_is_answered(one: Visitor, method: str) -> None:
    found = one.ask(method=method)
    assert found.status == 501
    assert found.headers["Content-Type"].startswith("text/plain")


@pytest.mark.parametrize(
    "path",
    ["../config.toml", "config.toml", "metrics.jsonl", "..%2fconfig.toml", "/etc/passwd", "state/", "state/../traces",
     "//", "%00", "traces.jsonl", "report.html", "live.js"],
)  # fmt: skip
def test_no_file_can_be_had(one: Visitor, path: str) -> None:
    found = one.ask(path)
    assert found.status == 404
    assert found.text.count("\n") == 1


@pytest.mark.parametrize(
    "query",
    ["page=x", "page=-1", "page=1e3", f"page={10**30}", "upto=x", "upto=-1", "low=x", "high=--", "first=1.5", "last=-3",
     "order=reward;drop", "first=%D9%A3"],
)  # fmt: skip
def test_odd_questions_are_one_line(one: Visitor, query: str) -> None:
    found = one.ask(f"traces?{query}")
    assert found.status == 400
    assert found.text.count("\n") == 1
    assert query.partition("=")[0] in found.text


@pytest.mark.parametrize(
    "query",
    ["", "page=0", "page=99", "upto=0", "low=nan", "low=inf", "high=-1e400", "text=%ff%00", "text=%27)%20or%201=1",
     "nothing=1", "text=a&text=b", "&&&", "page=", f"text={'x' * 60_000}", "first=999999999999999"],
)  # fmt: skip
def test_questions_that_make_little_sense_have_an_answer(one: Visitor, query: str) -> None:
    assert isinstance(one.ask(f"traces?{query}").json()["parts"], list)
    assert one.ask(f"state?{query}").json()["fresh"] >= 0


def test_every_answer_says_how_it_may_be_used(one: Visitor) -> None:
    for path in ("", "state", "traces", "nothing"):
        headers = one.ask(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Access-Control-Allow-Origin"] is None
    assert "trusted-types 'none'" in one.ask().headers["Content-Security-Policy"]
    assert one.ask("state").headers["Content-Security-Policy"].startswith("default-src 'none'")


def test_the_page_is_the_report_and_grows_with_the_run(one: Visitor) -> None:
    first, version = one.ask().text, one.ask("state").json()["page"]
    assert "<h3>Reward by source</h3>" in first
    assert f"data-version='{version}'" in first
    assert "thought 1" not in first, "traces come by themselves"
    assert one.ask().text == first
    record(one.server.site.runs[0].folder, [step(31, warnings=["leak: 3 of 4"])])
    state = one.ask("state").json()
    assert state["page"] != version
    assert state["said"][0].startswith("31 of 100 steps are done. The last was recorded ")
    assert "leak: 3 of 4" in one.ask().text


def test_pages_of_traces_are_whole_and_do_not_move(one: Visitor) -> None:
    first = one.traces()
    assert (first["total"], first["pages"], first["page"]) == (60, 3, 1)
    record(one.server.site.runs[0].folder, [step(31, group("p", trace("late")))])
    assert one.ask(f"state?after={first['upto']}").json()["fresh"] == 1
    assert one.ask(f"state?after={first['upto']}&text=late").json()["fresh"] == 1
    assert one.ask(f"state?after={first['upto']}&text=thought").json()["fresh"] == 0
    seen = []
    for page in (1, 2, 3):
        for part in one.traces(page=page, upto=first["upto"])["parts"]:
            (side,) = part["sides"]
            seen += ["".join(text for text, _, _ in row["tokens"]).strip() for row in side["rows"]]
    assert seen == [f"{name} {n}" for n in range(30, 0, -1) for name in ("thought", "other")]
    assert one.traces()["total"] == 61


def test_a_trace_is_shown_with_its_figures(one: Visitor) -> None:
    (part,) = one.traces(text="thought 3 ".strip(), last=3)["parts"]
    assert part["problem"] == {"question": "What is p0?", "turns": []}
    (side,) = part["sides"]
    assert side["problem"] == {"id": "p0", "answer": "42", "hint": None}
    assert (side["at"], side["note"]) == ("Step 3", "1 of 2 traces")
    (row,) = side["rows"]
    assert row["tokens"] == [
        ["thought ", "q1", "prior -0.50, posterior -0.10 nats"],
        ["3 ", "q1", "prior -0.50, posterior -0.10 nats"],
    ]
    told = {name: row[name] for name in ("source", "reward", "advantage", "kl", "end", "verdict", "share", "broken")}
    assert told == {
        "source": "prior", "reward": "−0.30", "advantage": "+0.50", "kl": "0.10", "end": "closed", "verdict": "–",
        "share": 1.0, "broken": False,
    }  # fmt: skip


def test_a_group_with_many_and_long_traces(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run")
    long = trace("x " * 1_500)
    record(folder, [step(1, group("p", long, *(trace(f"t{n}", advantage=-n) for n in range(60))))])
    for visitor in served([folder]):
        first = visitor.traces()
        assert first["pages"] == 3
        (row, *others) = first["parts"][0]["sides"][0]["rows"]
        assert (len(row["tokens"]), row["more"]) == (1_000, "500 more tokens")
        assert len(others) == answers.TRACES_A_PAGE - 1
        (folder / "traces.jsonl").unlink()
        row = visitor.traces()["parts"][0]["sides"][0]["rows"][0]
        assert (row["tokens"], row["text"][:4], row["more"]) == ([], "x x ", ""), "the text is known without the file"


def test_two_runs_have_their_curves_in_one_chart_and_their_traces_side_by_side(two: Visitor) -> None:
    page = two.ask().text
    for text in ("prior, A", "prior, B", "accuracy, A", "nats per trace, B", "training.seed", "covrl: a and b"):
        assert text in page
    assert "accuracy, B" not in page
    assert "algorithm.name" not in page, "settings that are the same are not listed"
    state = two.ask("state").json()
    assert [said[:8] for said in state["said"]] == ["A: 3 of ", "B: 2 of "]
    found = two.traces()
    assert found["total"] == 3
    shown = [
        [
            part["problem"]["question"],
            *("".join(t for r in side["rows"] for t, _, _ in r["tokens"]) for side in part["sides"]),
        ]
        for part in found["parts"]
    ]
    assert shown == [
        ["What is p3?", "a3 ", "b2 "],
        ["What is p2?", "a2 ", "b1 "],
        ["What is p1?", "a1 ", ""],
    ]
    assert found["parts"][2]["sides"][1]["note"] == "No traces of this problem at this visit."
    assert [part["problem"]["question"] for part in two.traces(text="b1")["parts"]] == ["What is p2?"]


def test_runs_of_the_same_name_are_told_apart() -> None:
    assert run_names([Path("/a/x"), Path("/a/y")]) == ["x", "y"]
    assert run_names([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert run_names([Path("/run"), Path("/a/run")]) == ["/run", "a/run"]
    assert run_names([Path("/a/x")]) == ["x"]


def test_a_port_that_is_taken_is_one_line(one: Visitor) -> None:
    with pytest.raises(
        UserError, match=rf"port {one.server.port} of 127.0.0.1 cannot be had \(Address already in use\)"
    ):
        open_server(Site([]), one.server.port)


def test_a_visitor_that_goes_away_in_the_middle_is_no_matter(one: Visitor, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        line = http.client.HTTPConnection(ADDRESS, one.server.port)
        line.request("GET", f"/{one.server.site.key}/")
        assert line.sock is not None
        line.sock.close()
        line.close()
    assert one.ask("state").status == 200
    assert capfd.readouterr().err == ""


def test_a_fault_of_ours_is_shown_where_the_server_runs(
    one: Visitor, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "state", lambda *_: 1 / 0)
    with pytest.raises(http.client.RemoteDisconnected):
        one.ask("state")
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert one.ask().status == 200


def test_text_is_visible_in_json(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run")
    record(folder, [step(1, group("p\ud800", trace("a\x1b[2J\u202e", tokens=())))])
    for visitor in served([folder]):
        answer = visitor.ask("traces")
        assert not {"\x1b", "\u202e", "\\u"} & set(answer.text)
        assert answer.json()["parts"][0]["sides"][0]["rows"][0]["text"] == "a<U+001B>[2J<U+202E>"
        assert visitor.ask(f"traces?text={quote('<U+001B>')}").json()["total"] == 1
