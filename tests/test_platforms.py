"""What is not Linux: stand-ins for the modules, names and devices that Windows and macOS have or lack.

Neither system was at hand. These tests hold what can be held without one.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from covrl import files
from covrl.errors import RunBusyError, UserError
from covrl.models.model import resolve_device
from covrl.planning import machine
from covrl.precision import wide, widest
from covrl.rewards.registry import make_verifier
from covrl.rewards.workers import Workers

IMPORTS = """
import builtins, importlib, os, pkgutil, signal, sys

ABSENT = {"fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"}
OS = "fork getuid geteuid killpg setsid sysconf uname getpgid O_DIRECTORY O_NOFOLLOW"
SIGNAL = "SIGKILL SIGALRM SIGXCPU SIGHUP SIGUSR1 setitimer ITIMER_REAL"
ONLY_ASKED_FOR = {
    "covrl.__main__",  # the command itself
    "covrl.rewards.code_sandbox",  # the program inside the sandbox, which is for Linux
}

def load_every_module():
    import covrl, covrl.cli.app
    found = [each.name for each in pkgutil.walk_packages(covrl.__path__, "covrl.")]
    for name in sorted(set(found) - ONLY_ASKED_FOR):
        importlib.import_module(name)
    assert "covrl.files" in found and len(found) > 200, len(found)

load_every_module()  # other packages may use what they like, and are loaded now
for name in [name for name in sys.modules if name.partition(".")[0] == "covrl"]:
    del sys.modules[name]

real = builtins.__import__

def windows(name, globals=None, *rest, **more):
    importer = (globals or {}).get("__name__", "")
    if importer.startswith("covrl") and name in ABSENT:
        raise ModuleNotFoundError(f"{importer} imports {name}")
    return real(name, globals, *rest, **more)

builtins.__import__ = windows
for module, names in (os, OS), (signal, SIGNAL):
    for name in names.split():
        delattr(module, name)
PLANTED
load_every_module()
print("all imported")
"""


def test_nothing_of_posix_alone_is_needed_to_import_any_module() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS.replace("PLANTED", "")], capture_output=True, text=True, check=False
    )
    assert done.stdout == "all imported\n", done.stderr


def test_the_blockade_of_that_test_stops_an_import() -> None:
    planted = IMPORTS.replace("PLANTED", "exec('import fcntl', {'__name__': 'covrl.planted'})")
    done = subprocess.run([sys.executable, "-c", planted], capture_output=True, text=True, check=False)
    assert "covrl.planted imports fcntl" in done.stderr


@pytest.fixture
def windows_locks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """A system without fcntl, whose ``msvcrt`` gives one lock: (kind, bytes) of each call."""
    calls: list[tuple[int, int]] = []

    def locking(handle: int, kind: int, count: int) -> None:
        os.fstat(handle)
        calls.append((kind, count))
        if len(calls) > 1:
            raise PermissionError(13, "Permission denied")

    stand_in = ModuleType("msvcrt")
    vars(stand_in).update(LK_NBLCK=2, locking=locking)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", stand_in)
    monkeypatch.setattr(files, "FOLDERS_OPEN", False)
    return calls


@pytest.mark.parametrize("lock", [".lock", "."])
def test_without_fcntl_a_file_in_the_folder_is_locked(
    tmp_path: Path, windows_locks: list[tuple[int, int]], lock: str
) -> None:
    with files.alone_in(tmp_path, lock=lock):
        assert (tmp_path / ".lock").is_file()
        with pytest.raises(RunBusyError, match="a run is going on in this folder"):
            files.alone_in(tmp_path, lock=lock).__enter__()
    assert windows_locks == [(2, 1), (2, 1)]


def test_where_folders_cannot_be_opened_their_files_alone_are_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def opened(path: Path, flags: int, *mode: int) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        assert flags & os.O_RDWR, "Windows forces only what was opened for writing"
        return real(path, flags, *mode)

    monkeypatch.setattr(files, "FOLDERS_OPEN", False)
    monkeypatch.setattr(os, "open", opened)
    written = files.begin(tmp_path / "model")
    (written / "inner").mkdir()
    (written / "inner" / "a").write_text("text")
    files.finish(written, tmp_path / "model", {})
    assert files.damage(tmp_path / "model") is None
    assert list(files.manifest(tmp_path / "model")["files"]) == ["inner/a"]


def test_memory_is_asked_of_windows_where_posix_has_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def status(record: ctypes.Array[ctypes.c_char]) -> int:
        assert struct.unpack_from("=I", record.raw)[0] == len(record) == 64
        struct.pack_into("=2I2Q", record, 0, 64, 75, 16 << 30, 4 << 30)
        return 1

    monkeypatch.delattr(os, "sysconf")
    kernel = SimpleNamespace(GlobalMemoryStatusEx=status)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    assert machine.main_memory(tmp_path) == machine.Memory(16 << 30, 4 << 30)


def test_verifiers_that_need_posix_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as here:
        here.setattr(os, "name", "nt")
        with pytest.raises(UserError, match=r"verifier math needs a POSIX system .*there are exact, text"):
            Workers(1, 1.0, "covrl.rewards.math_worker", what="math")
        with pytest.raises(UserError, match="verifier code needs a POSIX system"):
            make_verifier("code")


@pytest.mark.parametrize("name", ["exact", "text", "numeric", "choice", "countdown"])
def test_a_verifier_that_does_not_is_made(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with monkeypatch.context() as here:
        here.setattr(os, "name", "nt")
        assert make_verifier(name) is not None


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_output_in_a_file_is_utf8_whatever_the_code_page(encoding: str) -> None:
    command = [sys.executable, "-m", "covrl", "recipe", "grpo_lambda"]
    done = subprocess.run(command, env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True, check=False)
    recipe = Path(__file__).parents[1] / "recipes" / "grpo_lambda.toml"
    assert "λ" in recipe.read_text(encoding="utf-8")
    assert done.stdout.decode("utf-8") == recipe.read_text(encoding="utf-8"), done.stderr


def test_auto_is_apples_gpu_where_torch_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[torch.device | None] = [torch.device("mps"), None]
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found.pop(0))
    assert resolve_device("auto") == torch.device("mps")
    assert resolve_device("auto") == torch.device("cpu")


def test_nothing_wider_than_float32_is_made_on_apples_gpu() -> None:
    assert widest(torch.device("mps")) == torch.float32
    assert widest(torch.device("cpu")) == widest(torch.device("cuda")) == torch.float64
    assert wide(torch.tensor([0.1])).dtype == torch.float64


def test_tensors_of_a_device_are_widened_only_as_far_as_it_goes() -> None:
    """``.double()`` fails on Apple's GPU. The files that are named have it for tensors of the CPU, or not there."""
    apart = {"objectives/prefix_values.py", "models/flex.py"}
    source = Path(files.__file__).parent
    found = [
        f"{path.relative_to(source)}: {line.strip()}"
        for path in source.rglob("*.py")
        if str(path.relative_to(source)) not in apart
        for line in path.read_text(encoding="utf-8").splitlines()
        if ".double()" in line and ".cpu()" not in line
    ]
    assert found == []
