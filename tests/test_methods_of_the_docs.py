"""The methods that docs/methods/README.md shows, in a package of their own, as somebody new would write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from models import save_tiny
from projects import PROMPTS

import covrl
from covrl.algorithms import find_algorithm
from covrl.algorithms.listing import list_algorithms
from covrl.records import Problem, Rollout
from covrl.training.run import Run

PAGE = Path(__file__).parents[1] / "docs" / "methods" / "README.md"
NAMES = {"best": "Best", "fork": "Fork", "actor": "Actor"}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with the page's methods as entry points, installed."""
    blocks = [
        b for b in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL) if "class " in b
    ]
    assert len(blocks) == len(NAMES)
    info = tmp_path / "newcomer-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: newcomer\nVersion: 0.1\n")
    lines = ["[covrl.algorithms]"]
    for (name, cls), block in zip(NAMES.items(), blocks, strict=True):
        (tmp_path / f"newcomers_{name}.py").write_text(block)
        lines.append(f"{name} = newcomers_{name}:{cls}")
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    save_tiny("gpt2", tmp_path / "model")
    return tmp_path


def by_text(problem: Problem, text: str) -> float:
    return float(sum(map(ord, text)) % 2)


def settings(folder: Path, name: str) -> Mapping[str, object]:
    import tomllib

    training = {"steps": 3, "problems_per_step": 3, "rollouts_per_problem": 4, "warmup_steps": 0, "learning_rate": 1e-3}
    return {
        "model": {"path": str(folder / "model"), "device": "cpu", "dtype": "float64"},
        **tomllib.loads(PROMPTS),
        "generation": {"max_trace_tokens": 10, "max_answer_tokens": 4},
        "training": training,
        "algorithm": {"name": name},
    }


def run_of(folder: Path, name: str) -> tuple[Run, list[dict[str, float]], list[Rollout]]:
    """Three steps by the method's name alone: the run, its metrics, and what one more step would sample."""
    from covrl.generation.base import Draw
    from covrl.training.rollouts import sample

    problems = [Problem(f"p{i}", f"{i}+{i}=?", str(2 * i)) for i in range(4)]
    trained = covrl.train(settings(folder, name), problems, out=folder / f"run-{name}", reward=by_text)
    groups = sample(trained.run, problems, Draw(0, 9))
    return trained.run, [dict(r.metrics) for r in trained.reports], [r for g in groups for r in g.rollouts]


def test_the_page_has_methods_that_train(package: Path) -> None:
    for name, cls in NAMES.items():
        assert find_algorithm(name).__name__ == cls
    assert {method.name for method in list_algorithms()} >= NAMES.keys()
    for name in NAMES:
        run, metrics, rollouts = run_of(package, name)
        assert len(metrics) == 3
        assert all(m["grad_norm/total"] > 0 for m in metrics)
        roots = {r.request.index: r for r in rollouts if r.request.problem_id == "p0" and r.request.parent is None}
        branches = [r for r in rollouts if r.request.problem_id == "p0" and r.request.parent is not None]
        assert (len(roots), len(branches)) == ((2, 2) if name == "fork" else (4, 0))
        for branch in branches:
            root = roots[branch.request.parent or 0]
            assert branch.request.prefix_ids == root.whole_ids[: len(branch.request.prefix_ids)]
            entropies = root.observed.entropy or ()
            assert entropies[len(branch.request.prefix_ids)] == max(entropies)
        if name == "actor":
            assert all(m["grad_norm/critic"] > 0 for m in metrics)
            assert run.optimizers.keys() == {"policy", "critic"}
            rates = {n: o.param_groups[0]["lr"] for n, o in run.optimizers.items()}
            assert rates["critic"] == pytest.approx(10 * rates["policy"])
