"""What the folders and runs of users have in common, in tests of the command line and of training."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from covrl.records import StepReport

PROMPTS = """
[prompts]
user = "{question}"
prior_open = "="
posterior_open = "({hint})="
close = "e"
answer_prefix = ":"
answer_suffix = ";"
"""
"""Of a settings file, for models of one token a character; the letter that closes a trace is one they often draw."""

LETTERS = {
    "user": "{question}",
    "prior_open": " ",
    "posterior_open": "({hint}) ",
    "close": "e",
    "answer_prefix": "",
    "answer_suffix": "t",
}
"""A table of such prompts with letters alone, so that an untrained model often closes its answers too."""

MARKS = LETTERS | {"answer_prefix": ":", "answer_suffix": ";"}
"""The same with answers between marks, which only a trained model writes."""


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Problems as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class InterruptAt:
    """A sink that sends the process Ctrl-C while a step is reported."""

    def __init__(self, step: int) -> None:
        self.step = step

    def write(self, report: StepReport) -> None:
        if report.step == self.step:
            os.kill(os.getpid(), signal.SIGINT)

    def close(self) -> None: ...
