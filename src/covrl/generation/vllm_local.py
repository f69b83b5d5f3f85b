"""vLLM in the trainer's own process, asleep while the trainer works; needs the extra ``vllm``.

Written against vLLM 0.32: ``LLM`` with the engine core in this process, ``reload_weights`` on its worker to replace
weights in place, sleep level 2 (weights and cache are dropped, not copied) where there is an accelerator. Under
torchrun every rank has an engine of its own, which vLLM calls an external launcher: each samples other prompts, or
``ranks`` of them next to each other hold one copy between them (tensor parallel) and sample the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch

from covrl.distributed.world import World
from covrl.errors import EngineError, UserError
from covrl.extras import install_command
from covrl.generation.handover import Weights, handed_over, weights_of
from covrl.generation.outside import MOST_TOP_K, Ask, Drawn


def import_vllm() -> Any:
    """The vllm package, configured to stay in this process, to be quiet, and to send no statistics.

    Raises:
        UserError: it is not installed, or cannot be imported.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # weights are passed as tensors, not as files
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        return import_module("vllm")
    except ModuleNotFoundError as error:
        if error.name != "vllm":
            raise UserError(f"generation.engine = vllm: vllm is installed, but {error.name} is not: {error}") from error
        raise UserError(f"generation.engine = vllm: vllm is not installed; {install_command('vllm')}") from None
    except (ImportError, OSError, RuntimeError) as error:
        said = str(error).splitlines()[0]
        raise UserError(f"generation.engine = vllm: vllm is installed but cannot be imported: {said}") from error


class LocalVllm:
    """A :class:`covrl.generation.outside.Backend`.

    ``source`` is a folder or hub id with the config and tokenizer of ``model``, whose weights it takes; ``memory`` the
    share of the accelerator that weights and cache may take while it is awake; ``rows`` how many traces are decoded
    at a time. In a ``world`` of several ranks all make theirs, and it has the weights of its files until :meth:`load`.
    """

    name = "vllm"
    most_top_k = MOST_TOP_K
    apart = False

    def __init__(
        self,
        source: str,
        model: Any,
        dtype: str,
        memory: float,
        rows: int,
        world: World | None = None,
        ranks: int = 1,
        cuda: bool | None = None,
    ) -> None:
        world = world or World()
        self._vllm = import_vllm()
        self._model = model
        self._dtype = getattr(torch, dtype)
        self._sleeps = next(model.parameters()).device.type == "cuda" if cuda is None else cuda
        self._asleep = False
        several = {"distributed_executor_backend": "external_launcher", "tensor_parallel_size": ranks}
        try:
            self._llm = self._vllm.LLM(
                **(several if world.size > 1 else {}),
                model=source,
                load_format="safetensors",  # auto would load a pickle if there is nothing else
                dtype=dtype,
                gpu_memory_utilization=memory,
                max_num_seqs=rows,
                max_model_len=-1,  # the model's own, or what fits in the cache
                enable_sleep_mode=self._sleeps,
                enforce_eager=not self._sleeps,  # compiling for a CPU takes longer than small runs
                logprobs_mode="processed_logprobs",  # of the sampled distribution: with the temperature
                generation_config="vllm",  # not the top_p that a model's folder may ask for
                trust_remote_code=False,
                disable_log_stats=True,
                seed=0,
            )
        except Exception as error:  # any failure with this model or on this machine
            raise UserError(f"generation.engine = vllm: it cannot load {source}: {_short(error)}") from error
        try:
            if world.size == 1:  # else the ranks' weights are not there yet
                self.load(0)  # the trainer's weights, which may be newer than those of the folder
            self.rest()
        except EngineError as error:
            raise UserError(f"generation.engine = vllm: {error}") from error

    def draw(
        self, rows: Sequence[Ask], temperature: float, stop: str, ends: Sequence[int], top_p: float = 1.0
    ) -> list[Drawn]:
        prompts = [{"prompt_token_ids": list(row.ids)} for row in rows]
        params = [self._params(row, temperature, stop, ends, top_p) for row in rows]
        try:
            outputs = self._llm.generate(prompts, params, use_tqdm=False)
        except torch.OutOfMemoryError:  # the caller reports it with its calculation
            raise
        except Exception as error:
            raise EngineError(f"vllm cannot sample: {_short(error)}") from error
        return [_drawn(output.outputs[0], row.top_k) for output, row in zip(outputs, rows, strict=True)]

    def _params(self, row: Ask, temperature: float, stop: str, ends: Sequence[int], top_p: float) -> Any:
        return self._vllm.SamplingParams(
            temperature=temperature,
            top_p=top_p,
            top_k=0,
            min_p=0.0,
            seed=row.seed,
            max_tokens=row.max_tokens,
            logprobs=row.top_k,  # of the sampled token, and of so many likeliest ones
            stop=[stop],
            stop_token_ids=list(ends),
            include_stop_str_in_output=True,
            ignore_eos=True,  # only the given end tokens count
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
        )

    def load(self, version: int) -> None:
        """Replace the weights in place; of a sleeping engine when it wakes, because until then it has none."""
        del version
        if not self._asleep:
            with handed_over(weights_of(self._model, self._dtype)) as weights:
                self._take(weights)

    def _take(self, weights: Weights) -> None:
        given = {"weights_iterator": weights}
        self._call("take the new weights", lambda: self._llm.collective_rpc("reload_weights", kwargs=given))
        # What it holds was computed with the old ones.
        self._call("drop its prefix cache", lambda: self._llm.reset_prefix_cache())

    def wake(self) -> None:
        """Take memory and weights again. All ranks are asleep or none, as their weights come from all."""
        if not self._asleep:
            return
        torch.cuda.empty_cache()  # what the trainer's allocator keeps is not free for vLLM
        with handed_over(weights_of(self._model, self._dtype)) as weights:
            self._call("wake up", lambda: self._llm.wake_up(tags=["weights"]))
            self._take(weights)
        self._call("wake up", lambda: self._llm.wake_up(tags=["kv_cache"]))
        self._asleep = False

    def rest(self) -> None:
        """Drop weights and cache, where there is an accelerator."""
        if self._sleeps and not self._asleep:
            self._asleep = True  # half asleep is not awake
            self._call("sleep", lambda: self._llm.sleep(level=2))
            torch.cuda.empty_cache()

    @staticmethod
    def _call(what: str, call: Callable[[], Any]) -> Any:
        """vLLM's answer; an error names the call that failed.

        Raises:
            EngineError: it cannot.
        """
        try:
            return call()
        except Exception as error:  # whatever it raises
            raise EngineError(f"vllm cannot {what}: {_short(error)}") from error


def _drawn(output: Any, top_k: int) -> Drawn:
    ids = tuple(output.token_ids)
    told = [{i: float(one.logprob) for i, one in by_id.items()} for by_id in output.logprobs]
    log_probs = tuple(by_id[i] for i, by_id in zip(ids, told, strict=True))
    return Drawn(ids, log_probs, tuple(told) if top_k else ())


def _short(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
