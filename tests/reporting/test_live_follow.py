"""Following a file that grows, is cut, is replaced or vanishes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covrl.reporting.live.follow import Mark, News, follow, read_at

MOST = 1 << 20


def contents(news: News) -> list[bytes]:
    return [line.content for line in news.lines]


def test_whole_lines_are_read_once_with_number_and_place(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"one\n\nthree\nhal")
    first = follow(path, Mark(), MOST)
    assert first.lines == [(1, 0, b"one"), (2, 4, b""), (3, 5, b"three")]
    assert follow(path, first.mark, MOST).lines == []
    with path.open("ab") as file:
        file.write(b"f\nfive\n")
    second = follow(path, first.mark, MOST)
    assert second.lines == [(4, 11, b"half"), (5, 16, b"five")]
    assert not second.afresh
    assert read_at(path, 16, 4) == b"five"


def test_a_file_that_was_cut_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"one\ntwo\nthree\n")
    before = follow(path, Mark(), MOST)
    os.truncate(path, 4)
    after = follow(path, before.mark, MOST)
    assert (after.afresh, contents(after)) == (True, [b"one"])


def test_a_file_that_was_cut_and_grew_beyond_the_place_again_is_told(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"one\ntwo\n")
    before = follow(path, Mark(), MOST)
    path.write_bytes(b"one\n2\nthree\nfour\n")
    after = follow(path, before.mark, MOST)
    assert (after.afresh, contents(after)) == (True, [b"one", b"2", b"three", b"four"])


def test_a_file_that_is_missing_has_no_news_and_is_told_when_it_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "f"
    assert follow(path, Mark(), MOST) == News([], Mark())
    path.write_bytes(b"one\n")
    mark = follow(path, Mark(), MOST).mark
    path.unlink()
    assert follow(path, mark, MOST) == News([], mark)
    path.write_bytes(b"another\n")
    assert follow(path, mark, MOST).afresh


def test_a_long_file_is_read_in_parts_and_a_long_line_as_one(tmp_path: Path) -> None:
    path = tmp_path / "f"
    lines = [b"x" * 100, b"y" * 10_000, *[b"z"] * 50]
    path.write_bytes(b"\n".join(lines) + b"\n")
    mark, found, behind = Mark(), [], []
    while True:
        news = follow(path, mark, 64)
        if not news.lines:
            break
        found, mark, behind = found + contents(news), news.mark, [*behind, news.behind]
    assert found == lines
    assert len(behind) > 2
    assert behind == sorted(behind, reverse=True)
    assert behind[-1] == 0


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["a pipe", "a folder"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, make: object) -> None:
    make(tmp_path / "f")  # ty: ignore[not-callable]
    with pytest.raises(OSError, match=r"is not a file|Is a directory"):
        follow(tmp_path / "f", Mark(), MOST)


BYTES = st.lists(st.sampled_from([b"a", b"b", b"\n"]), max_size=30).map(b"".join)
APPENDED = BYTES.map(lambda more: lambda content: content + more)
CUT = st.integers(0, 40).map(lambda end: lambda content: content[:end])
ANEW = BYTES.map(lambda other: lambda content: other)


@settings(max_examples=150, deadline=None)
@given(changes=st.lists(st.one_of(APPENDED, APPENDED, CUT, ANEW), max_size=12), most=st.integers(1, 20))
def test_whatever_happens_what_was_read_since_it_began_afresh_is_what_is_there(
    tmp_path_factory: pytest.TempPathFactory, changes: list[Callable[[bytes], bytes]], most: int
) -> None:
    path = tmp_path_factory.mktemp("f") / "f"
    path.write_bytes(b"")
    mark, held = Mark(), []

    def look() -> bool:
        nonlocal mark, held
        news = follow(path, mark, most)
        held = ([] if news.afresh else held) + contents(news)
        mark = news.mark
        return bool(news.lines) or news.afresh

    for change in changes:
        path.write_bytes(change(path.read_bytes()))
        look()
    while look():
        pass
    assert held == path.read_bytes().split(b"\n")[:-1]
