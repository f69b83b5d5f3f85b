"""`covrl grade`: responses against answers."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def grade(
    file: Annotated[str, typer.Argument(help="JSONL of answer and response; - for standard input.")] = "-",
    verifier: Annotated[
        str,
        typer.Option(
            help="exact, text, math, numeric, choice, code, reasoning-gym (parameters after a comma: "
            "numeric,relative=0.001), an entry point of the group covrl.verifiers, or module:function."
        ),
    ] = "math",
) -> None:
    """Grade responses against answers: one JSON line out per line in, a summary on standard error."""
    from covrl.evaluation.grade import grade_file, summary_text
    from covrl.rewards.code_tests import isolation_notes

    for note in isolation_notes(verifier):
        print(note, file=sys.stderr, flush=True)
    print(summary_text(grade_file(file, sys.stdout, verifier)), file=sys.stderr)
