"""Files and folders that are there whole or not at all: kills and full disks at every point, and locks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from covrl import files
from covrl.errors import RunBusyError, UserError

WRITER = """
import os, signal, sys
from pathlib import Path
from covrl import files

def strike(*_):
    os.kill(os.getpid(), signal.SIGKILL)

where, path = sys.argv[1], Path(sys.argv[2])
if where == "half written":
    os.fsync = lambda handle: (os.ftruncate(handle, 5), strike())
elif where == "before the move":
    Path.replace = strike
else:
    files.sync = strike
files.write_file(path, "new text, longer than the old one")
"""


@pytest.mark.parametrize(
    ("where", "there"), [("half written", "old"), ("before the move", "old"), ("after the move", "new")]
)
def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path: Path, where: str, there: str) -> None:
    path = tmp_path / "page.html"
    files.write_file(path, "old")
    done = subprocess.run([sys.executable, "-c", WRITER, where, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text().split()[0] == there
    files.write_file(path, b"\x00 next")
    assert path.read_bytes() == b"\x00 next"


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_draft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(*_: object) -> None:
        raise OSError("full")

    files.write_file(tmp_path / "a", "old")
    monkeypatch.setattr(*((os, "fsync", full) if name == "fsync" else (Path, "replace", full)))
    with pytest.raises(OSError, match="full"):
        files.write_file(tmp_path / "a", "new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "old"}


def test_content_and_list_of_names_are_forced_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forced: list[Path] = []
    real = os.fsync

    def spy(handle: int) -> None:
        forced.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        real(handle)

    monkeypatch.setattr(os, "fsync", spy)
    files.write_file(tmp_path / "a", "text")
    draft, folder = forced
    assert draft.parent == folder == tmp_path
    assert draft.name != "a", "the content is on the disk before the file has its name"


def test_a_writer_that_overlaps_another_tears_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "a", os.fsync
    other = [sys.executable, "-c", f"from covrl.files import *; write_file(Path({str(path)!r}), 'other')"]

    def meanwhile(handle: int) -> None:
        monkeypatch.setattr(os, "fsync", real)
        subprocess.run(other, check=True)
        assert path.read_text() == "other"
        real(handle)

    monkeypatch.setattr(os, "fsync", meanwhile)
    files.write_file(path, "mine")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "mine")]


@pytest.mark.parametrize("lock", [".lock", "."])
def test_a_lock_is_held_by_one_and_let_go_of_by_a_kill(tmp_path: Path, lock: str) -> None:
    hold = f"import time; from covrl.files import *\nwith alone_in(Path({str(tmp_path)!r}), lock={lock!r}):\n"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold + "    print('held', flush=True); time.sleep(99)"], stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(RunBusyError, match="an evaluation is going on in this folder; wait for it or stop it"):
        files.alone_in(tmp_path, "an evaluation", lock).__enter__()
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with pytest.raises(BlockingIOError, match="mine"), files.alone_in(tmp_path, lock=lock):
        raise BlockingIOError("mine")  # what fails inside is not taken for a lock that somebody holds
    with files.alone_in(tmp_path, lock=lock):
        assert [p.name for p in tmp_path.iterdir()] == [lock][: lock != "."]


def test_a_folder_that_cannot_be_made_or_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for wrong in (lambda: files.made(tmp_path / "file"), lambda: files.made(tmp_path / "file" / "x")):
        with pytest.raises(UserError, match=r"file.*: cannot write there"):
            wrong()
    with pytest.raises(UserError, match="missing: cannot write there"), files.alone_in(tmp_path / "missing"):
        pass
    assert files.made(tmp_path / "a" / "b").is_dir()
