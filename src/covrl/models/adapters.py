"""LoRA adapters in a Hugging Face model, by PEFT: put in, switched, read, written, merged.

PEFT's layers take the place of the linear layers inside the model, which stays of its own class: the trunk, the output
layer, decoding and sharding are used as without them. A model may hold several adapters by name, of which one is on,
or none; what is on outside of :func:`switched` is the policy's. PEFT is imported when it is first needed.
"""

from __future__ import annotations

import copy
import json
import math
import re
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from covrl.config import LoraConfig
from covrl.errors import UserError
from covrl.extras import install_command
from covrl.models.four_bit import packed
from covrl.models.text import has_more_than_text, trunk
from covrl.models.trust import tried

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

BASE = "covrl_base"
"""Our own key in an adapter's file: in what form its base was when it was trained. PEFT and vLLM skip it."""

NF4 = "nf4"
"""The value of :data:`BASE` for a base of 4 bits (:mod:`covrl.models.four_bit`); there is no other."""

POLICY = "policy"
"""Name of the adapter that is trained."""

ALL_LINEAR = "all-linear"

MERGED = ("LORA", "ADALORA", "FOURIERFT", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "MISS", "OFT", "RANDLORA", "VERA")
"""Kinds of adapters, by PEFT's names, that :func:`merged` takes. Others hold no change of a layer's weights, or have
settings by which PEFT reads files (a multitask prompt's initial state is a pickle at any path)."""

_PREFIX = "base_model.model."
"""What PEFT's files have before a weight's name in the model."""


def is_adapter(source: str | Path) -> bool:
    """Whether a folder holds an adapter, which is nothing without its base."""
    return (Path(source) / CONFIG).is_file()


def base_of(folder: Path) -> str:
    """The folder or hub id of the model that an adapter is for.

    Raises:
        UserError: the file cannot be read, or names none.
    """
    base = _table(folder).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{folder / CONFIG}: it names no base_model_name_or_path, so the adapter has no model")
    return base


def is_of_four_bits(folder: Path) -> bool:
    """Whether an adapter was trained on a base of 4 bits.

    Raises:
        UserError: the file cannot be read, or names another form.
    """
    form = _table(folder).get(BASE)
    if form not in (None, NF4):
        raise UserError(f"{folder / CONFIG}: {BASE} = {form!r} is not known here; there is {NF4}")
    return form == NF4


def add_adapter(model: Any, settings: LoraConfig, seed: int, base: str) -> None:
    """Put a new adapter in, on and trained, all other weights frozen. Its ``B`` is 0: the model computes what it did.

    ``A`` is drawn from ``seed`` on the CPU, whatever the device. ``base`` is what its file will name as its model.

    Raises:
        UserError: PEFT is not installed, or ``settings`` name layers that the model has not.
    """
    targets = _targets(model, settings.target_modules)
    config = _peft().LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=_in_text(model, targets),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )
    head = model.get_output_embeddings()
    _inject(model, config, POLICY)
    if model.get_output_embeddings() is not head:
        raise UserError(_head_error(", ".join(targets)))
    generator = torch.Generator().manual_seed(seed)
    for key, weight in adapter_weights(model).items():
        with torch.no_grad():
            if ".lora_A." in key:  # as PEFT and nn.Linear draw it
                drawn = torch.empty(weight.shape, dtype=torch.float32)
                nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
                weight.copy_(drawn)
            else:
                weight.zero_()
    use_adapter(model, POLICY, trained=True)


def load_adapter(model: Any, folder: Path) -> None:
    """Put the adapter of a folder in, on, and the only weights that would take a gradient.

    Raises:
        UserError: PEFT is not installed, the files are damaged or of another model, or it is no plain LoRA.
    """
    config, tensors = _plain_lora(folder), read_weights(folder)
    tried(f"{folder}: an adapter of another model", lambda: _inject(model, config, POLICY))
    tried(f"{folder}: cannot use {WEIGHTS}", lambda: put_weights(model, POLICY, tensors, folder))
    use_adapter(model, POLICY, trained=True)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter's file.

    Raises:
        UserError: it is missing or damaged.
    """
    return tried(f"{folder}: cannot read {WEIGHTS}", lambda: load_file(folder / WEIGHTS))


def copy_adapter(model: Any, source: str, name: str) -> None:
    """Put in an adapter ``name`` that is like ``source``, neither on nor trained; others learn or not as they did."""
    learned = _learning(model)
    _inject(model, copy.deepcopy(_config_of(model, source)), name)
    put_weights(model, name, adapter_weights(model, source), "a copy")
    use_adapter(model, source, trained=True)
    _learn(learned)


def put_weights(model: Any, name: str, tensors: Mapping[str, Tensor], where: Path | str) -> None:
    """Set an adapter's weights from tensors by PEFT's names.

    Raises:
        UserError: other names or shapes than the adapter has; ``where`` they are from.
    """
    mine = adapter_weights(model, name)
    wrong = sorted(mine.keys() ^ tensors.keys()) or [k for k in mine if mine[k].shape != tensors[k].shape]
    if wrong:
        raise UserError(f"{where}: its adapter does not fit the model, beginning with {wrong[0]}")
    with torch.no_grad():
        for key, weight in mine.items():
            if not tensors[key].is_meta:  # a rank whose model is empty as yet gets all weights together
                weight.copy_(tensors[key])


def adapter_weights(model: Any, name: str = POLICY) -> dict[str, nn.Parameter]:
    """An adapter's weights by the names that PEFT's files have for them."""
    pattern = re.compile(rf"(.*\.lora_[AB])\.{re.escape(name)}\.weight")
    found = ((pattern.fullmatch(key), weight) for key, weight in model.named_parameters())
    return {f"{_PREFIX}{match[1]}.weight": weight for match, weight in found if match}


def all_adapters(model: Any) -> list[nn.Parameter]:
    """The weights of all adapters in a model; none in a plain one."""
    names = getattr(model, "peft_config", {})
    return [weight for name in names for weight in adapter_weights(model, name).values()]


def adapter_scale(model: Any, name: str = POLICY) -> float:
    """What ``B A`` is multiplied with."""
    return float(next(layer.scaling[name] for layer in _layers(model) if name in layer.scaling))


def save_adapter(model: Any, name: str, folder: Path) -> None:
    """Write an adapter as PEFT reads it. The same weights give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: w.detach().contiguous() for key, w in adapter_weights(model, name).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    table = {**_config_of(model, name).to_dict(), "inference_mode": True} | ({BASE: NF4} if packed(model) else {})
    text = json.dumps(table, indent=1, sort_keys=True, default=lambda value: sorted(value))  # sets have no order
    (folder / CONFIG).write_text(text, encoding="utf-8")


def use_adapter(model: Any, name: str | None, trained: bool) -> None:
    """Turn one adapter on and all others off (``None``: all), and say whether it takes a gradient; no other does."""
    for layer in _layers(model):
        if name is None:
            layer.enable_adapters(False)
        else:
            if layer.disable_adapters:
                layer.enable_adapters(True)
            layer.set_adapter(name, inference_mode=not trained)  # last: it says which weights take a gradient


@contextmanager
def switched(model: Any, name: str | None) -> Generator[None]:
    """With another adapter on, or none; after it the policy's is on. What takes a gradient is the same throughout.

    PEFT lets the adapter that is on alone learn. A critic's learns beside the policy's, and the backward pass comes
    when the policy's is on again.
    """
    learned = _learning(model)
    use_adapter(model, name, trained=False)
    _learn(learned)
    try:
        yield
    finally:
        use_adapter(model, POLICY, trained=True)
        _learn(learned)


def as_now(part: Any) -> AbstractContextManager[None] | None:
    """What computes a part of a model later with the adapter that is on now; None where that is the usual one.

    A block whose activations are computed again is run in the backward pass, when the policy's adapter is on.
    """
    layer = next((module for module in part.modules() if hasattr(module, "lora_A")), None)
    if layer is None:
        return None
    name = None if layer.disable_adapters else layer.active_adapters[0]
    return None if name == POLICY else switched(part, name)


Learning = list[tuple[nn.Parameter, bool]]
"""The weights of adapters, and whether each takes a gradient."""


def _learning(model: Any) -> Learning:
    return [(weight, weight.requires_grad) for key, weight in model.named_parameters() if ".lora_" in key]


def _learn(learned: Learning) -> None:
    for weight, own in learned:
        weight.requires_grad_(own)


def merged(model: Any, folder: Path) -> Any:
    """A plain model with the adapter of ``folder`` added to the weights of ``model``, which is used up.

    Any adapter of a kind in :data:`MERGED`, which are numbers that change a layer's weights.

    Raises:
        UserError: PEFT is not installed, cannot load or merge it, or it is of another kind or names files or code.
    """
    peft, table = _peft(), _table(folder)
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} holds no {WEIGHTS}")
    kind = table.get("peft_type")
    if kind not in MERGED:
        raise UserError(f"{folder / CONFIG}: peft_type = {kind!r} cannot be merged here; known: {', '.join(MERGED)}")
    with warnings.catch_warnings(action="ignore"):
        return tried(
            f"{folder}: the adapter cannot be merged",
            lambda: peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload(safe_merge=True),
        )


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UserError(f"LoRA needs the package peft: {install_command('lora')}") from None
    return peft


def _inject(model: Any, config: Any, name: str) -> None:
    """PEFT's own layers in the model; in float32 where the base is narrower, as small updates are lost there."""
    with warnings.catch_warnings(action="ignore"):  # a second adapter, and GPT-2's transposed layers, are meant
        _peft().inject_adapter_in_model(config, model, adapter_name=name)
    model.eval()
    dtype = next(model.parameters()).dtype
    for weight in adapter_weights(model, name).values():
        weight.data = weight.data.to(torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype)


def _config_of(model: Any, name: str) -> Any:
    return model.peft_config[name]


def _layers(model: Any) -> Iterator[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return (module for module in model.modules() if isinstance(module, BaseTunerLayer))


def _targets(model: Any, wanted: tuple[str, ...]) -> list[str]:
    """The last parts of the names of the layers of the text model that are meant, sorted.

    Raises:
        UserError: a name that no linear layer has, or the output layer's.
    """
    head = model.get_output_embeddings()
    text = {id(module) for module in (head, *trunk(model).modules())}
    linear = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and id(m) in text}
    there = sorted({name.rpartition(".")[2] for name, module in linear.items() if module is not head})
    if wanted == (ALL_LINEAR,):
        return there
    for name in wanted:
        if any(module is head for full, module in linear.items() if f".{full}".endswith(f".{name}")):
            raise UserError(_head_error(name))
        if not any(f".{full}".endswith(f".{name}") for full in linear):
            raise UserError(f"lora.target_modules: no linear layer is named {name!r}; there is {', '.join(there)}")
    return sorted(wanted)


def _in_text(model: Any, targets: list[str]) -> list[str] | str:
    """What PEFT is to look for: the names, and in a model with other parts a pattern of those in the text model."""
    if not has_more_than_text(model):
        return targets
    where = next(name for name, module in model.named_modules() if module is trunk(model))
    return rf"{re.escape(where)}\.(?:.*\.)?(?:{'|'.join(map(re.escape, targets))})"


def _head_error(name: str) -> str:
    return (
        f"lora.target_modules: {name} is the output layer, which is read in chunks apart from the model, past its "
        "adapter; leave it out"
    )


def _table(folder: Path) -> dict[str, Any]:
    try:
        table = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / CONFIG}: cannot be read: {error}") from None
    if not isinstance(table, dict):
        raise UserError(f"{folder / CONFIG}: not a table of settings")
    for key, value in table.items():
        if value and key not in _OURS and (key.endswith(_LEADS_ELSEWHERE) or key == "megatron_core"):
            if (key, value) == ("megatron_core", "megatron.core"):  # PEFT writes it into every file
                continue
            raise UserError(
                f"{folder / CONFIG}: {key} names files or code outside of the adapter, which are not read: remove it"
            )
    return table


_LEADS_ELSEWHERE = ("_config", "_path", "_file", "_dir")
_OURS = ("base_model_name_or_path",)
"""Read by :func:`base_of` alone, which holds it to what a model's folder is held to."""


def _plain_lora(folder: Path) -> Any:
    """The configuration of a folder's adapter, if :func:`load_adapter` can compute with it.

    Raises:
        UserError: PEFT is not installed, or it has parts that are no ``B A`` beside a linear layer.
    """
    table, peft = _table(folder), _peft()
    parts = {"modules_to_save", "use_dora", "target_parameters", "trainable_token_indices", "layer_replication"}
    other = sorted(key for key in parts if table.get(key))
    other += ["bias"] * (table.get("bias", "none") != "none")
    other += ["init_lora_weights"] * (table.get("init_lora_weights", True) not in (True, False, "gaussian"))
    other = [f"{key} = {table[key]}" for key in other]
    if table.get("peft_type") != "LORA":
        other = [f"peft_type = {table.get('peft_type')}"]
    if other:
        raise UserError(
            f"{folder}: not a plain LoRA adapter ({other[0]}): make a model of it with "
            f"`covrl merge {folder} --out FOLDER`"
        )
    with warnings.catch_warnings(action="ignore"):
        return tried(f"{folder / CONFIG}", lambda: peft.LoraConfig.from_pretrained(str(folder)))
