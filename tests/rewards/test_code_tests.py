from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from covrl.records import Problem
from covrl.rewards.code_tests import HANGS_PER_CALL, CodeVerifier, last_python_block
from covrl.rewards.isolation import FOLDER_BYTES, Ran, clock_limit, run_program
from covrl.rewards.judgement import Judgement

pytestmark = pytest.mark.usefixtures("isolator")

TESTS = ("assert f(2) == 4", "assert f(3) == 9\nassert f(-1) == 1")
SQUARE = "def f(x):\n    return x * x"


@pytest.fixture(scope="module")
def verify() -> CodeVerifier:
    return CodeVerifier(seconds=2.0)


def row(program: str, *tests: str) -> tuple[Problem, str]:
    return Problem("p", "Square it.", "", tests or TESTS), f"Here:\n```python\n{program}\n```\nDone."


def judged(verify: CodeVerifier, program: str, *tests: str) -> Judgement:
    return verify(*row(program, *tests))


def test_the_last_closed_python_block() -> None:
    assert last_python_block("```python\na\n```\n```py\nb\n```\n```\nc\n```\n```python\nd") == "b\n"
    assert last_python_block("```python\na\n```python\nb\n```") == "b\n"
    assert last_python_block("```\na\n```") is None
    assert last_python_block("``` python \n\n```") is None
    assert last_python_block("```python\n" * 100_000) is None


def test_all_tests_have_to_run_through(verify: CodeVerifier) -> None:
    right = judged(verify, SQUARE)
    assert (right.verdict, right.extracted, right.how) == ("right", SQUARE + "\n", "python_block")
    wrong = judged(verify, "def f(x):\n    return 4")
    assert (wrong.verdict, wrong.why) == ("wrong", "tests failed: test 2 ended with AssertionError")
    assert verify(Problem("p", "", "assert f(2) == 4"), row(SQUARE)[1]).verdict == "right"  # tests in the answer
    assert verify(Problem("p", "", "", TESTS), "f squares").why.startswith("no answer found")


@pytest.mark.parametrize(
    ("tests", "why"), [(("",), "nothing to run"), (("# f",), "nothing"), (("assert f(",), "not Python")]
)
def test_tests_that_are_none_are_unknown_and_nothing_runs(tests: tuple[str, ...], why: str) -> None:
    verify = CodeVerifier()
    said = judged(verify, SQUARE, *tests)
    assert said.verdict == "unknown"
    assert why in said.why
    assert verify.work.ran == 0


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import sys; sys.exit(0)", "program ended with SystemExit"),
        ("import os; os._exit(0)", "the program ended before them"),
        ("print('passed')", "test 1 ended with NameError"),
        ("f = (", "program ended with SyntaxError"),
        ("(" * 50_000, "program ended with"),
        ("x = '" + "9" * 90_000, "program ended with SyntaxError"),
        ("def f(x): return f(x)", "test 1 ended with RecursionError"),
        ("x = bytearray(10**10)", "program ended with MemoryError"),
        ("open('big', 'wb').write(b'0' * 5_000_000)", "program ended with OSError"),
        ("import os; os.fork()", "program ended with BlockingIOError"),
        ("import os; f = os.system('true').real", "test 1 ended with TypeError"),
        ("import os; os.execv('/bin/true', ['true'])", "the program ended before them"),
        ("import subprocess; subprocess.run(['true'])", "program ended with BlockingIOError"),
        ("import socket; socket.create_connection(('192.0.2.1', 80), 1)", "program ended with OSError"),
        ("import os; os.kill(os.getppid(), 9)", " ended with "),
        ("import os; os.kill(-1, 9)", "program ended with ProcessLookupError"),
        ("import os; os.setuid(0)", "program ended with PermissionError"),
        ("import ctypes; ctypes.CDLL(None)", "program ended with ImportError"),
        ("import gc; gc.get_referents(int.__dict__)[0]['__eq__'] = 1", "program ended with ImportError"),
        ("import builtins\nbuiltins.abs = lambda _: 4\ndef f(x): return 5", "test 1 ended with AssertionError"),
    ],
)
def test_what_does_not_pass(program: str, why: str, verify: CodeVerifier) -> None:
    tests = ("assert abs(f(2) - 4) == 0",)
    said = judged(verify, program, *tests)
    assert said.verdict == "wrong"
    assert why in said.why


@pytest.mark.parametrize(
    "cheat",
    [
        "def all(x): return True",
        "def abs(x): return 0",
        "def sorted(x): return [1, 4]",
        "__builtins__ = {'all': lambda x: True, 'abs': lambda x: 0, 'sorted': lambda x: [1, 4]}",
        "def f(x):\n    import builtins as b\n    b.all = lambda x: True\n    b.abs = lambda x: 0\n    return 7",
        "import __main__\n__main__._executed = lambda *_: None",
        "import __main__\n__main__._run = lambda *_: None",
        "import gc\nfor d in gc.get_objects():\n    if type(d) is dict and '_executed' in d: d['_executed'] = print",
    ],
)
def test_redefining_what_the_tests_are_made_of_does_not_pass(cheat: str, verify: CodeVerifier) -> None:
    program = f"def f(x): return 7\n{cheat}"
    tests = (
        "f(1)",
        "assert all(f(i) == i * i for i in (1, 2))",
        "assert abs(f(2) - 4) == 0",
        "sorted([f(1)]) == [1] or 1/0",
    )
    for test in tests[1:]:
        assert judged(verify, program, tests[0], test).verdict != "right", test


def test_a_program_may_have_pythons_names_for_itself(verify: CodeVerifier) -> None:
    own = "def sum(a, b): return a + b\ndef f(x): return sum(x, x * x - x)"
    assert judged(verify, own).verdict == "right"
    asked = judged(verify, own, "assert sum(1, 2) == 3")  # it was asked for a function of that name, or it cheats
    assert (asked.verdict, asked.why.split(":")[0]) == (
        "unknown",
        "tests use a name of Python's own that the program defines",
    )
    helped = "import dataclasses\n@dataclasses.dataclass\nclass P:\n    x: int\ndef f(x): return P(x * x).x"
    assert judged(verify, helped, "def check(n): return f(n) == n * n", "assert check(3)").verdict == "right"


def test_a_program_that_is_killed_from_outside_is_unknown(verify: CodeVerifier) -> None:
    """As the kernel does where memory runs out, and where a program ignores its limit on processor time."""
    killed = judged(verify, "import signal; signal.raise_signal(signal.SIGKILL)")
    assert killed.verdict == "unknown"
    assert killed.why.startswith("killed: ")
    stubborn = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    ran = run_program(stubborn, TESTS, 0.5, 1 << 30)
    assert ran.code in {None, -signal.SIGKILL}  # None: the machine gave it no time
    assert not ran.passed


def test_what_honest_programs_use_works(verify: CodeVerifier) -> None:
    program = (
        "import asyncio, collections, functools, heapq, itertools, math, random, re, tempfile, threading\n"
        "with open('/dev/null', 'w') as file:\n    file.write('4')\n"
        "with open('notes', 'w') as file:\n    file.write('4')\n"
        "with tempfile.TemporaryDirectory() as folder:\n    pass\n"
        "async def g(x):\n    return x * x\n"
        "def f(x):\n    return asyncio.run(g(x))\n"
    )
    assert judged(verify, program).why == "all tests passed"


def test_files_of_the_user_are_not_changed_and_the_environment_is_empty(
    verify: CodeVerifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    kept.write_text("mine")
    monkeypatch.setenv("COVRL_SECRET", "1")
    for attack in (
        f"import os; os.remove({str(kept)!r})",
        f"open({str(kept)!r}, 'w')",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
    ):
        assert judged(verify, attack).verdict == "wrong"
    assert kept.read_text() == "mine"
    assert judged(verify, SQUARE, "import os\nassert 'COVRL_SECRET' not in os.environ").verdict == "right"
    assert judged(verify, SQUARE, "import os\nassert os.listdir() == []").verdict == "right"


def test_a_program_that_cannot_be_started_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is the cause: bubblewrap has proved itself, and then finds no more namespaces."""
    verify = CodeVerifier()
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho no space left for namespaces >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    said = judged(verify, SQUARE)
    assert (said.verdict, said.why) == ("unknown", "not run: no space left for namespaces")


def test_the_folder_is_bounded(verify: CodeVerifier) -> None:
    many = f"for n in range({2 * FOLDER_BYTES >> 20}):\n    open(str(n), 'wb').write(b'0' * (1 << 20))"
    assert judged(verify, many).why == "tests failed: program ended with OSError"
    for place in ("/", "/dev", "/usr", "/etc"):
        assert judged(verify, f"open('{place}/x', 'w')").why.startswith("tests failed: program ended with "), place


def test_a_program_that_does_not_end_is_ended(verify: CodeVerifier) -> None:
    busy = CodeVerifier(seconds=0.1)
    assert judged(busy, "while True: pass").verdict in {
        "wrong",
        "unknown",
    }  # unknown where the machine gives it no time
    assert (
        judged(busy, "import time; time.sleep(1000)").why
        == f"time limit: not finished after {clock_limit(0.1):g} s on the clock"
    )
    assert busy.work.hung == 2


def test_a_burst_of_endless_programs_gets_less_and_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def endless(program: str, tests: object, seconds: float, memory: int, isolated: bool) -> Ran:
        given.append(seconds)
        return Ran(-signal.SIGXCPU, {}, "token", "")

    monkeypatch.setattr("covrl.rewards.code_tests.run_program", endless)
    verify = CodeVerifier(seconds=4.0, workers=1)
    said = verify.judge_all([row(f"{n}\nwhile True: pass") for n in range(50)] + [row("while 1: pass")] * 50)
    assert given == [4.0] * HANGS_PER_CALL + [1.0] * (51 - HANGS_PER_CALL)  # equal programs run once
    assert [j.verdict for j in said] == ["wrong"] * HANGS_PER_CALL + ["unknown"] * (100 - HANGS_PER_CALL)
    assert verify.work.hurried == 51 - HANGS_PER_CALL
    given.clear()
    verify(*row("while 2: pass"))
    assert given == [4.0]  # the next call begins anew


def test_a_forged_reply_lacks_the_token() -> None:
    forged = (
        'import os\nfor n in range(3, 20):\n    try: os.write(n, b\'{"passed": ""}\')\n    except OSError: pass\n'
        "os._exit(0)"
    )
    ran = run_program(forged, TESTS, 2.0, 1 << 30)
    assert (ran.code, ran.reply, ran.passed) == (0, {"passed": ""}, False)
    assert len(ran.token) == 32


def test_nothing_is_left_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert judged(CodeVerifier(), "open('notes', 'w').write('x')\n" + SQUARE).verdict == "right"
    assert os.listdir(tmp_path) == []
