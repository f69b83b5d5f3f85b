"""torch.compile of the trunk: the same numbers, few graphs, hooks outside, and one line where there is no compiler.

What the compiler makes of a graph is its own affair: most tests here stop at the graph, which needs no C++.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from models import character_tokenizer, prove, save_tiny, tiny
from torch import Tensor, nn
from transformers import PreTrainedConfig

from covrl.cli.train import _continuing
from covrl.config import LoraConfig, RunConfig
from covrl.errors import TrainingStoppedError, UserError
from covrl.generation.base import Draw, Sampling
from covrl.generation.engine import TorchGenerator
from covrl.models import compute
from covrl.models.compute import compile_trunk, compute_in_bfloat16, recompute_activations
from covrl.models.copies import frozen_copy
from covrl.models.model import LanguageModel
from covrl.models.policy import load_policy
from covrl.records import Request


class Graphs:
    """A backend that counts the graphs that it is given, and runs them as they are."""

    def __init__(self) -> None:
        self.count = 0
        self.fails_at: int | None = None
        self.raises: Exception | None = None

    def __call__(self, module: Any, inputs: Any) -> Any:
        self.count += 1
        if self.count == self.fails_at:
            raise RuntimeError("no registers are left\nsecond line\nthird line")
        return self._raise if self.raises else module.forward

    def _raise(self, *_: Any) -> Any:
        assert self.raises is not None
        raise self.raises


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    backend, real = Graphs(), torch.compile
    torch._dynamo.reset()
    monkeypatch.setattr(compute.torch, "compile", lambda what, dynamic: real(what, dynamic=dynamic, backend=backend))
    return backend


def rows(count: int, length: int) -> list[tuple[int, ...]]:
    return [tuple((3 * i + j) % 90 for j in range(length)) for i in range(count)]


SHAPES = [(1, 7), (2, 9), (3, 20), (8, 31), (5, 64), (1, 64), (7, 33), (4, 12)]


def gradient(model: LanguageModel, count: int, length: int) -> Tensor:
    model.model.zero_grad()
    logits = model.projection()(model.hidden(rows(count, length)))
    torch.log_softmax(logits, -1)[..., 5].sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(("change", "shapes"), [("plain", SHAPES), ("recompute and mixed", SHAPES[1:4])])
def test_the_numbers_are_the_same_and_graphs_do_not_grow_with_shapes(
    graphs: Graphs, change: str, shapes: list[tuple[int, int]]
) -> None:
    models = [LanguageModel(tiny("llama", num_hidden_layers=1)) for _ in range(2)]
    for model in models:
        if change != "plain":
            recompute_activations(model.model)
            compute_in_bfloat16(model.model)
    compile_trunk(models[0].model)
    limit = 1e-4 if change == "plain" else 0.05
    for shape in shapes:
        with torch.no_grad():
            hidden = [model.hidden(rows(*shape)) for model in models]
        assert torch.allclose(hidden[0], hidden[1], atol=limit)
        found, expected = (gradient(model, *shape) for model in models)
        assert (found - expected).norm() <= limit * expected.norm()
    assert 1 <= graphs.count <= 6  # one row or several, with gradients or without, and what recomputing breaks off
    before = graphs.count
    for shape in ((6, 17), (2, 3), (9, 50)):
        gradient(models[0], *shape)
    assert graphs.count == before


def test_sampling_is_not_compiled_and_hooks_stay_outside(graphs: Graphs) -> None:
    model, seen = tiny("llama", 97, num_hidden_layers=1), []
    compile_trunk(model)
    engine = TorchGenerator(model, character_tokenizer(), 4)
    request = Request("p", 0, (3, 4, 5), "prior")
    engine.generate([request], Sampling(5, "x", 1.0), Draw(0, 0))
    assert graphs.count == 0
    handle = model.base_model.register_forward_pre_hook(lambda *_: seen.append(1))
    scored = LanguageModel(model)
    for _ in range(3):
        scored.hidden(rows(2, 6))
    handle.remove()
    assert len(seen) == 3
    count = graphs.count
    scored.hidden(rows(2, 6))
    assert graphs.count == count > 0


def test_a_copy_is_compiled_too_and_has_its_own_weights(graphs: Graphs) -> None:
    model = LanguageModel(tiny("llama", num_hidden_layers=1))
    compile_trunk(model.model)
    copied = frozen_copy(model)
    with torch.no_grad():
        before = copied.hidden(rows(2, 6))
        for p in model.model.parameters():
            p.add_(0.1)
        assert torch.equal(copied.hidden(rows(2, 6)), before)
        assert not torch.allclose(model.hidden(rows(2, 6)), before, atol=1e-2)


def saved(folder: Path) -> RunConfig:
    save_tiny("llama", folder, num_hidden_layers=1)
    return RunConfig.model_validate({"model": {"path": str(folder), "device": "cpu", "compile": True}})


def test_the_setting_compiles_the_policy(graphs: Graphs, tmp_path: Path) -> None:
    policy, _ = load_policy(saved(tmp_path))
    assert prove(policy) == []
    assert graphs.count > 0


def test_with_adapters_the_base_and_the_policy_are_told_apart(graphs: Graphs, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from covrl.models.adapted import Adapted

    config = saved(tmp_path)
    plain, _ = load_policy(config.model_copy(update={"model": config.model.model_copy(update={"compile": False})}))
    lora = RunConfig.model_validate({"model": config.model.model_dump(), "lora": {"rank": 2}})
    policy, _ = load_policy(lora)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.1)
        expected = plain.hidden(rows(2, 6))
        base = Adapted(policy, None)
        for _ in range(2):
            assert not torch.allclose(policy.hidden(rows(2, 6)), expected, atol=1e-2)
            assert torch.allclose(base.hidden(rows(2, 6)), expected, atol=1e-5)
    policy.hidden(rows(2, 6)).sum().backward()
    assert all(p.grad is not None for p in policy.parameters())


def test_without_a_compiler_one_line_says_so(tmp_path: Path) -> None:
    torch._dynamo.reset()
    missing = {"cpp.cxx": ("no-such-compiler",), "force_disable_caches": True}
    with (
        torch._inductor.config.patch(missing),
        pytest.raises(UserError, match=r"^model\.compile: torch\.compile cannot do LlamaForCausalLM here: ") as error,
    ):
        prove(load_policy(saved(tmp_path))[0])
    assert "compiler" in str(error.value).partition(" here: ")[2].partition(";")[0]
    assert "\n" not in str(error.value)


def test_a_later_graph_that_cannot_be_compiled_is_one_line_too(graphs: Graphs) -> None:
    model = LanguageModel(tiny("llama", num_hidden_layers=1))
    compile_trunk(model.model)
    with torch.no_grad():
        model.hidden(rows(2, 6))
    graphs.fails_at = graphs.count + 1
    with pytest.raises(UserError, match=r"cannot do LlamaForCausalLM here: .*no registers are left") as error:
        model.hidden(rows(2, 6))
    assert "\n" not in str(error.value)


def test_what_the_pass_itself_raises_is_left_as_it_is(graphs: Graphs) -> None:
    """Memory that runs out is answered with smaller passes, the first time too."""
    model = LanguageModel(tiny("llama", num_hidden_layers=1))
    compile_trunk(model.model)
    graphs.raises = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(torch.OutOfMemoryError):
        model.hidden(rows(2, 6))


def test_a_backward_pass_that_cannot_be_compiled_ends_a_run_in_one_line() -> None:
    failed = torch._dynamo.exc.BackendCompilerFailed(lambda: None, RuntimeError("no registers are left"), None)
    said = r"cannot do the backward pass here: .*no registers are left.*continue with: covrl train --resume run$"
    with pytest.raises(TrainingStoppedError, match=said) as error, _continuing(Path("run")):
        raise failed
    assert "\n" not in str(error.value)
    with pytest.raises(ZeroDivisionError), _continuing(Path("run")):
        raise ZeroDivisionError


NEED_COMPILER = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler here: torch.compile needs one"
)


@NEED_COMPILER
@pytest.mark.skipif(not os.environ.get("COVRL_COMPILE"), reason="takes half a minute of compiling: make test-compile")
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_real_compiler_agrees_on_a_whole_model_with_an_adapter(family: str) -> None:
    """Forward and backward, for shapes that it has not seen too."""
    pytest.importorskip("peft")
    from covrl.models import adapters

    torch._dynamo.reset()
    models = [LanguageModel(tiny(family, num_hidden_layers=1)) for _ in range(2)]
    for model in models:
        adapters.add_adapter(model.model, LoraConfig(rank=2, target_modules=("q_proj", "down_proj")), 0, "base")
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    compile_trunk(models[0].model)
    for shape in ((2, 9), (3, 20), (7, 33), (1, 5)):
        with torch.no_grad():
            hidden = [model.hidden(rows(*shape)) for model in models]
        assert torch.allclose(hidden[0], hidden[1], atol=1e-4)
        found, expected = (gradient(model, *shape) for model in models)
        assert (found - expected).norm() <= 1e-4 * expected.norm()


@NEED_COMPILER
def test_the_real_compiler_agrees() -> None:
    """A trunk of one linear layer: what a whole model takes is half a minute (the test above)."""

    class Trunk(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
            return torch.tanh(self.layer(nn.functional.one_hot(input_ids, 8).float())).cumsum(1)

    torch._dynamo.reset()
    trunk, model = Trunk(), nn.Module()
    model.base_model, model.config = trunk, PreTrainedConfig()
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    expected = trunk(ids, use_cache=False)
    (wanted,) = torch.autograd.grad(expected.square().sum(), [trunk.layer.weight])
    compile_trunk(model)
    found = trunk(input_ids=ids, use_cache=False)
    assert torch.allclose(found, expected, atol=1e-6)
    (got,) = torch.autograd.grad(found.square().sum(), [trunk.layer.weight])
    assert torch.allclose(got, wanted, atol=1e-5)
