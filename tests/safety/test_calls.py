"""Calls that run what they read, or ask a shell: each place in the package that has one is known by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import covrl
from covrl.errors import UserError
from covrl.problems.loading import load_problems

HERE = Path(covrl.__file__).parent
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler",
    "torch.load", "marshal.loads", "marshal.load", "shelve.open", "tempfile.mktemp", "joblib.load", "numpy.load",
    "runpy.run_path", "runpy.run_module", "importlib.import_module", "importlib.reload", "code.interact", "pty.spawn",
    "importlib.util.spec_from_file_location", "datasets.load_dataset",
}  # fmt: skip
KNOWN = {
    ("rewards/code_sandbox.py", "exec"),  # the sandbox itself
    ("rewards/code_sandbox.py", "compile"),
    ("distributed/processes.py", "pickle.loads"),  # whether its own error can be sent to another rank
    ("problems/loading.py", "datasets.load_dataset"),  # runs no scripts: see below
    ("problems/loading.py", "importlib.import_module"),  # the rest name modules of the package or of its extras
    ("reporting/trackers.py", "importlib.import_module"),
    ("algorithms/__init__.py", "importlib.import_module"),
    ("__init__.py", "importlib.import_module"),
    ("rewards/gym_worker.py", "importlib.import_module"),
    ("generation/vllm_local.py", "importlib.import_module"),
    ("generation/nccl.py", "importlib.import_module"),  # vLLM's, by a name that is written there
    ("files.py", "importlib.import_module"),  # msvcrt, on Windows
    ("plugins.py", "importlib.import_module"),  # what a person typed: tests/test_plugins.py
}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    for path in sorted(HERE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path.relative_to(HERE).as_posix(), ast.unparse(node.func), node


def named(source: str) -> set[str]:
    """Every dotted name that a source reads, by where it was imported from, called or not: an alias changes nothing."""
    tree = ast.parse(source)
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {a.asname: a.name for a in node.names if a.asname}  # without one the name is as it stands
        if isinstance(node, ast.ImportFrom) and not node.level:
            known |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    found = set(known.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Load):
            first, dot, rest = ast.unparse(node).partition(".")
            found.add((known.get(first, first) + dot + rest).removeprefix("builtins."))
    return found


def test_nothing_that_is_read_is_run() -> None:
    files = {path.relative_to(HERE).as_posix(): path.read_text(encoding="utf-8") for path in HERE.rglob("*.py")}
    found = {(file, name) for file, source in files.items() for name in named(source) & FORBIDDEN}
    assert found == KNOWN, sorted(found ^ KNOWN)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(b'')",
        "import pickle as p\np.loads(b'')",
        "from pickle import loads as read\nread(b'')",
        "def f():\n    from torch import load\n    return load",
        "import torch\nread = torch.load",
        "import importlib\nimportlib.import_module('x')",
        "from importlib import import_module as get\nget('x')",
        "import importlib.util as u\nu.spec_from_file_location('x', 'y')",
        "import builtins\nbuiltins.eval('1')",
        "list(map(eval, ['1']))",
        "import os\nos.system('x')",
    ],
)
def test_other_spellings_are_found_too(source: str) -> None:
    assert named(source) & FORBIDDEN


@pytest.mark.parametrize("source", ["import re\nre.compile('x')", "import torch\ntorch.compile(f)", "model.eval()"])
def test_what_only_looks_like_one_is_not_found(source: str) -> None:
    assert not named(source) & FORBIDDEN


def test_no_shell_is_asked() -> None:
    for file, name, call in calls():
        shell = [k.value for k in call.keywords if k.arg == "shell"]
        assert all(isinstance(v, ast.Constant) and v.value is False for v in shell), (file, name)


def test_no_model_is_loaded_with_its_code() -> None:
    for file, name, call in calls():
        named = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert named.get("trust_remote_code", "False") == "False", (file, name)
        assert named.get("weights_only", "True") == "True", (file, name)
        if name.startswith("peft.") or name == "GenerationConfig.from_pretrained":
            continue  # peft puts tensors into a model that is loaded, and the other reads one JSON file: no such code
        if name.endswith("from_pretrained") and not file.startswith("quickstart/"):  # whose folder is the package's
            assert "trust_remote_code" in named or None in named, (file, name)


def test_nothing_imports_yaml() -> None:
    for path in HERE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.partition(".")[0] for n in names} & {"yaml", "dill", "cloudpickle", "joblib", "marshal"}, path


def test_a_data_set_that_is_a_script_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra is not installed")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "owner/evil"
    folder.mkdir(parents=True)
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'it-ran')!r})\n")
    with pytest.raises(UserError, match="hf:owner/evil:train: "):
        load_problems("hf:owner/evil:train")
    assert not (tmp_path / "it-ran").exists()
