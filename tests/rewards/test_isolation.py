"""The isolator proves itself before it is used; where it does not work, no program runs unless a setting allows it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from commands import Covrl

from covrl import api
from covrl.cli import doctor
from covrl.config import config_from
from covrl.errors import UserError
from covrl.models.model import SHIPPED
from covrl.records import Problem
from covrl.rewards import isolation
from covrl.rewards.code_tests import CodeVerifier, isolation_notes
from covrl.rewards.isolation import fault

ALLOWED = "code,allow_unisolated=1"
RIGHT = {"answer": "assert f(2) == 4", "response": "```python\ndef f(x): return x * x\n```"}
MISSING = "bubblewrap is not installed (apt-get install bubblewrap)"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of temporary files and programs before all others; what was proved before does not count."""
    tmp_path.chmod(0o755)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    fault.cache_clear()
    yield tmp_path
    fault.cache_clear()


@pytest.fixture
def without(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without bubblewrap."""
    monkeypatch.setenv("PATH", str(folder))
    return folder


def stand_in(folder: Path, add: Sequence[str] = (), leave_out: Sequence[str] = ()) -> None:
    """A bubblewrap with other options than those that it is given."""
    program = f"""#!{sys.executable} -I
import os, sys
given = [each for each in sys.argv[1:] if each not in {leave_out!r}]
at = given.index("--remount-ro")
os.execv({shutil.which("bwrap")!r}, ["bwrap", *given[:at], *{list(add)!r}, *given[at:]])
"""
    (folder / "bwrap").write_text(program)
    (folder / "bwrap").chmod(0o755)


@pytest.mark.usefixtures("isolator")
def test_bubblewrap_proves_itself_here(folder: Path) -> None:
    assert fault() == ""
    assert os.listdir(folder) == []
    assert isolation_notes(ALLOWED) == []
    assert doctor._isolator().found == "bubblewrap isolates programs"


@pytest.mark.usefixtures("isolator")
@pytest.mark.parametrize(
    ("hole", "found"),
    [
        ("--bind", "writes a file outside its folder"),
        ("--ro-bind", "reads a file outside its folder"),
        ("--unshare-net", "reaches the network"),
        ("--unshare-pid", "sees other processes"),
    ],
)
def test_a_hole_is_found_and_named(hole: str, found: str, folder: Path) -> None:
    if hole.endswith("bind"):
        above = [part for parent in reversed(folder.parents) for part in ("--dir", str(parent))]
        stand_in(folder, add=[*above, hole, str(folder), str(folder)])
    else:
        stand_in(folder, leave_out=[hole])
    assert fault() == f"a program in bubblewrap {found}"


@pytest.mark.usefixtures("isolator")
def test_a_missing_limit_is_found_and_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = isolation._WORKER.read_text(encoding="utf-8")
    (folder / "worker.py").write_text(worker.replace("(resource.RLIMIT_NPROC, 0, 0),", ""))
    monkeypatch.setattr(isolation, "_WORKER", folder / "worker.py")
    assert fault() == "a program in bubblewrap starts a process"


def test_what_bubblewrap_complains_of_is_told(without: Path) -> None:
    (without / "bwrap").write_text("#!/bin/sh\necho bwrap: No permissions to create new namespace >&2\nexit 1\n")
    (without / "bwrap").chmod(0o755)
    assert fault() == "bubblewrap does not run Python: bwrap: No permissions to create new namespace"


def test_other_systems_have_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert fault() == "bubblewrap is for Linux"


@pytest.mark.usefixtures("without")
def test_without_an_isolator_a_verifier_is_refused_or_allowed() -> None:
    with pytest.raises(UserError) as caught:
        CodeVerifier()
    assert MISSING in str(caught.value)
    assert ALLOWED in str(caught.value)
    assert isolation_notes("text", "code") == []
    assert isolation_notes("none", ALLOWED) == [f"programs of the verifier code run under limits only: {MISSING}"]
    assert doctor._isolator().well
    assert "docs/verifiers.md" in doctor._isolator().advice
    verify = CodeVerifier(seconds=0.1, allow_unisolated=True)
    said = [verify(Problem("p", "", RIGHT["answer"]), f"```python\n{text}\n```") for text in PROGRAMS]
    assert [judged.verdict for judged in said] == ["right", "wrong", "wrong"]
    assert "OSError" in said[1].why


PROGRAMS = (
    "f = lambda x: x * x\nopen('notes', 'w').write('x')",
    "open('big', 'wb').write(b'0' * 5_000_000)",
    "import os; os._exit(0)",
)


def test_grade_refuses_or_tells_it_first(without: Path, covrl: Covrl) -> None:
    (without / "rows.jsonl").write_text(json.dumps(RIGHT))
    refused = covrl("grade", str(without / "rows.jsonl"), "--verifier", "code")
    assert (refused.code, refused.out) == (2, "")
    assert len(refused.err.splitlines()) == 1
    assert MISSING in refused.err
    allowed = covrl("grade", str(without / "rows.jsonl"), "--verifier", ALLOWED)
    assert (allowed.code, json.loads(allowed.out)["verdict"]) == (0, "right")
    assert allowed.err.splitlines()[0].endswith(MISSING)
    assert allowed.err.count(MISSING) == 1


def test_eval_refuses_or_tells_it_first(without: Path, covrl: Covrl) -> None:
    asked = ["eval", "--model", "covrl:digits", "--problems", "digits:test", "--limit", "1", "-n", "1"]
    asked += ["--out", str(without / "eval"), "--set"]
    refused = covrl(*asked, "evaluation.verifier=code")
    assert (refused.code, len(refused.err.splitlines())) == (2, 1), refused.err
    assert MISSING in refused.err
    assert not (without / "eval").exists()
    allowed = covrl(*asked, f"evaluation.verifier={ALLOWED}")
    assert allowed.code == 0, allowed.err
    assert MISSING in allowed.err.splitlines()[1]
    assert (allowed.out + allowed.err).count(MISSING) == 1


@pytest.mark.usefixtures("without")
def test_a_run_is_refused_or_tells_it_first() -> None:
    recipe, named = SHIPPED / "quickstart.toml", ["algorithm.name=grpo"]
    with pytest.raises(UserError, match="bubblewrap is not installed"):
        api.build(config_from(recipe, [*named, "rewards.verifier=code"]))
    run = api.build(config_from(recipe, [*named, f"rewards.verifier={ALLOWED}"]))
    assert [note for note in run.notes if MISSING in note] == isolation_notes(ALLOWED)
