"""What the commands print: a trace without an end says so where its answer has no likelihood."""

from __future__ import annotations

import io

from rich.console import Console

from covrl.cli.show import show_replies
from covrl.evaluation.ask import Reply
from covrl.records import Request, Rollout


def reply(finish: str, value: float | None) -> Reply:
    request = Request("p", 0, (1,), "prior")
    rollout = Rollout(request, (5,), (0.0,), finish, "none", "some text")  # ty: ignore[invalid-argument-type]
    return Reply("base", "prior", rollout, value)


def test_a_trace_without_an_end_says_so_instead_of_nothing() -> None:
    console = Console(file=io.StringIO(), width=120)
    show_replies(console, [reply("closed", -1.25), reply("length", None), reply("eos", None), reply("closed", None)])
    lines = [line for line in console.file.getvalue().splitlines() if "some text" in line]  # ty: ignore
    assert ["no closing tag" in line for line in lines] == [False, True, True, False]
    assert "-1.25" in lines[0]
