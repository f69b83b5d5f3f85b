"""What of a model's folder is read, and what is refused: nothing in it may make code run that nobody asked for.

A model that is loaded is data of somebody else's: its config, its tokenizer and its weights. Weights are read from
safetensors or from a GGUF file (:mod:`covrl.models.gguf`), which hold numbers and nothing else. Python files in the
folder are never run, kernels that a config names are never fetched, and no file outside the folder is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME, cached_file

from covrl.errors import UserError
from covrl.models import gguf

T = TypeVar("T")

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Suffixes of weights that are pickles: to read one without limits is to run it."""


def safe_config(source: str, allow_pickle: bool = False, weights: bool = True) -> Any:
    """The config of a model in a folder or on the hub, after everything that decides which files are read was checked.

    ``allow_pickle``: weights that are a pickle may be read too, by torch's restricted reader. Without ``weights`` none
    will be read, and a folder need not hold any.

    Raises:
        UserError: the config cannot be read, it names code, or weights that are no safetensors or not the folder's own.
    """
    folder = Path(source)
    if folder.is_dir() and weights:
        check_weights_there(folder, allow_pickle)
    from_gguf = gguf.is_gguf(source)
    config = quoted(
        source,
        lambda: gguf.read_config(source) if from_gguf else AutoConfig.from_pretrained(source, trust_remote_code=False),
    )
    for part in _parts(config):
        for kind in ("attn", "experts"):
            name = getattr(part, f"_{kind}_implementation", None)
            if isinstance(name, str) and ("/" in name or ":" in name):
                raise UserError(
                    f"model.path: the config of {source!r} asks for {kind}_implementation {name!r}, which is code from "
                    "the hub; remove the line from its config.json"
                )
    if from_gguf:
        return config
    named = getattr(config, "transformers_weights", None)
    for name in [*([named] if named else []), *_shards(source, allow_pickle)]:
        _check_name(source, name, allow_pickle)
    return config


def read_model(cls: Any, source: str, dtype: Any, config: Any, allow_pickle: bool = False) -> Any:
    """The model of a class from a folder or the hub, whose config is of :func:`safe_config`.

    Raises:
        UserError: the weights cannot be read, or do not hold all of the model: transformers would draw the rest.
    """
    if gguf.is_gguf(source):
        model, found = quoted(source, lambda: gguf.read_weights(cls, source, dtype, config))
    else:
        how = {"dtype": dtype, "config": config, "trust_remote_code": False, "weights_only": True}
        how["use_safetensors"] = None if allow_pickle else True
        model, found = quoted(source, lambda: cls.from_pretrained(source, output_loading_info=True, **how))
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"model.path: cannot load {source!r}: its weights lack {missing[0]}{more}")
    return model


def quoted(source: str, read: Any) -> Any:
    """What ``read()`` gives; what it raises on a bad file, in one line.

    Raises:
        UserError: it could not be read.
    """
    return tried(f"model.path: cannot load {source!r}", read)


def tried(what: str, read: Callable[[], T]) -> T:
    """What ``read()`` gives; of what it raises on a file of somebody else's, one line that begins with ``what``.

    Raises:
        UserError: it raised something.
    """
    try:
        return read()
    except UserError:
        raise
    except Exception as error:  # transformers, tokenizers, safetensors, PEFT, jinja and torch each raise their own
        raise UserError(f"{what}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = (lines or [""])[0][:300]
    if "trust_remote_code" in str(error):
        return (
            "its model or tokenizer is code in the folder or on the hub, and covrl runs no code that comes with a model"
        )
    kind = type(error).__name__
    return said if isinstance(error, (OSError, ValueError)) and said else f"{kind}: {said}".removesuffix(": ")


def check_weights_there(folder: Path, allow_pickle: bool) -> None:
    """A folder must hold weights, of a model or an adapter, that may be read.

    Raises:
        UserError: there are none, or pickles alone that are not allowed.
    """
    if list(folder.glob("*.safetensors")):
        if (folder / "adapter_model.bin").exists() and not (folder / "adapter_model.safetensors").exists():
            raise UserError(f"model.path: {_is_pickle(folder / 'adapter_model.bin')}; convert it to safetensors")
        return
    pickles = sorted(path for path in folder.iterdir() if path.suffix in PICKLES)
    if files := sorted(path for path in folder.iterdir() if gguf.is_gguf(path)):
        raise UserError(f"model.path: {folder} holds no *.safetensors weights; name its GGUF file itself: {files[0]}")
    if not pickles:
        raise UserError(f"model.path: {folder} holds no *.safetensors weights")
    if not allow_pickle:
        raise UserError(
            f"model.path: {folder} holds no *.safetensors weights, and {_is_pickle(pickles[0])}: convert it to "
            "safetensors, or, if you trust who made it, set model.allow_pickle = true"
        )


def _is_pickle(path: Path) -> str:
    return f"{path.name} is a pickle, a file that can run code when it is read"


def _parts(config: Any) -> Iterator[Any]:
    """The config and those inside it."""
    yield config
    for name in getattr(config, "sub_configs", {}):
        inner = getattr(config, name, None)
        if inner is not None and hasattr(inner, "sub_configs"):
            yield from _parts(inner)


def _shards(source: str, allow_pickle: bool) -> list[str]:
    """The files that an index of sharded weights names; empty where the weights are one file."""
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_gated_repo": False}
    found: list[str] = []
    for index in (SAFE_WEIGHTS_INDEX_NAME, *([WEIGHTS_INDEX_NAME] if allow_pickle else [])):
        path = quoted(source, lambda index=index: cached_file(source, index, **missing))
        if path is None:
            continue
        table = quoted(source, lambda path=path: json.loads(Path(path).read_text(encoding="utf-8")))
        weights = table.get("weight_map") if isinstance(table, dict) else None
        if not isinstance(weights, dict) or not isinstance(table.get("metadata", {}), dict):
            raise UserError(f"model.path: {index} of {source!r} is no index of weights")
        found += [str(name) for name in dict.fromkeys(map(str, weights.values()))]
    return found


def _check_name(source: str, name: Any, allow_pickle: bool) -> None:
    if not isinstance(name, str) or name != Path(name).name or "\\" in name:
        raise UserError(f"model.path: {source!r} names weights outside its folder: {name!r}")
    if not name.endswith((".safetensors", ".safetensors.index.json")) and not allow_pickle:
        raise UserError(
            f"model.path: {source!r} names weights that are no safetensors: {name!r}; convert them, or, if you trust "
            "who made them, set model.allow_pickle = true"
        )
