"""A model in a GGUF file, the form in which llama.cpp and its kin keep quantised models.

transformers reads it. The weights are dequantised once, when the file is loaded; from then on the model is like any
other, and what is saved of it is a plain folder. Config and tokenizer are the file's own: nothing beside it is read.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from covrl.errors import UserError
from covrl.extras import install_command

NEEDED = ("gguf", "accelerate")
"""Packages that transformers' reader imports."""

FREQUENCIES, FACTORS = "rope_freqs.weight", "rope_factors"
"""Tensors of a stretched rope, which transformers' reader passes over without a word (CONFIRMED with 5.24): what each
frequency is divided by, as in Llama 3.1 and later, and the beginning of longrope's names."""

LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""What Llama 3.1 and later stretch their rope by, but for the factor."""


STRETCHED = (
    "a stretched rope that transformers does not read from GGUF, so that positions would be wrong: use the model's "
    "folder of safetensors"
)

WORDS = "tokenizer.ggml.tokens"

SPLIT_AS_GPT2 = ("default", "gpt-2", "smollm")
"""Ways of splitting text that transformers does not list and reads rightly: GPT-2's own, and one that differs from it
in digits alone, of which its vocabulary has single ones (INFERRED)."""


def is_gguf(source: str | Path) -> bool:
    """Whether a model's path means a GGUF file."""
    return Path(source).suffix.lower() == ".gguf"


def read_config(source: str) -> Any:
    """The config of a file, after everything was checked that can be without its weights.

    Raises:
        UserError: there is no such file, a package is missing, or the file is damaged or would be read wrongly. What
            transformers raises of an architecture that it does not know is raised as it is.
    """
    if not Path(source).is_file():
        raise UserError(f"model.path: there is no file {source}")
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UserError(f"model.path: {source} needs the package {missing[0]}: {install_command('gguf')}")
    with open(source, "rb") as file:
        if file.read(4) != b"GGUF":
            raise UserError(f"model.path: {source} is no GGUF file: it does not begin with the letters GGUF")
    with _damage_said(source):
        names = _checked_names(source)
        with _nowhere() as folder:
            config = AutoConfig.from_pretrained(folder, gguf_file=_absolute(source), trust_remote_code=False)
        if FREQUENCIES in names:
            _stretch(source, config)
        return config


def _stretch(source: str, config: Any) -> None:
    """Put the stretched rope of Llama 3.1 and later into ``config``, if that gives the frequencies that the file has.

    Raises:
        UserError: it does not.
    """
    from gguf import GGUFReader

    divisors = next(torch.tensor(t.data) for t in GGUFReader(source).tensors if t.name == FREQUENCIES)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    wanted = config.rope_parameters["rope_theta"] ** -(torch.arange(0, width, 2) / width) / divisors
    config.rope_parameters = config.rope_parameters | LLAMA3 | {"factor": float(divisors.max())}
    found, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-4, atol=0):
        raise UserError(f"model.path: {source} holds {FREQUENCIES}, {STRETCHED}")


@contextmanager
def _damage_said(source: str) -> Generator[None]:
    """What is raised inside is looked into: whether it is the file's fault, which takes seconds to find out.

    Raises:
        UserError: the file is damaged or cut off, or holds tensors in a form that is not known.
    """
    from gguf import GGUFReader
    from transformers.integrations.gguf import read_gguf_metadata

    try:
        yield
    except UserError:
        raise
    except Exception as error:
        try:
            read_gguf_metadata(source)  # first, as it cannot lose its way in a length that is not true
            GGUFReader(source)
        except Exception as cause:
            raise UserError(f"model.path: {source} {_damage(source, cause)}") from error
        raise


def _damage(source: str, cause: Exception) -> str:
    text = (str(cause).splitlines() or [""])[0][:200]
    if isinstance(cause, ValueError) and "GGMLQuantizationType" in text:
        return (
            f"holds a quantisation that the package gguf does not know ({text}): upgrade gguf, or take the model in "
            "another quantisation"
        )
    size = Path(source).stat().st_size
    return f"is damaged or cut off after {size:,} bytes ({text or type(cause).__name__}): download it again"


def read_weights(cls: Any, source: str, dtype: Any, config: Any) -> tuple[Any, dict[str, Any]]:
    """The model of a class, dequantised, and what transformers says of the loading.

    Nothing is left that would make it count as quantised. What transformers raises is raised as it is.

    Raises:
        UserError: the file is damaged.
    """
    from transformers.utils.quantization_config import GgufConfig

    # dequantize: else transformers fetches kernels, which are code, where it can
    how = {"config": config, "dtype": dtype, "quantization_config": GgufConfig(dequantize=True)}
    with _damage_said(source), _nowhere() as folder, redirect_stderr(StringIO()):  # a bar that no setting turns off
        model, found = cls.from_pretrained(
            folder, gguf_file=_absolute(source), output_loading_info=True, trust_remote_code=False, **how
        )
    vars(model.config).pop("quantization_config", None)  # newer versions have done it
    model.hf_quantizer, model.is_quantized = None, False
    model.name_or_path = model.config.name_or_path = source
    return model, found


def read_tokenizer(source: str) -> Any:
    """The tokenizer in a file. Raises what transformers raises."""
    from transformers.integrations.gguf import read_gguf_metadata

    with _nowhere() as folder:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=_absolute(source), trust_remote_code=False)
    tokenizer.name_or_path = source
    # a class that transformers builds it with may add a token of its own, for which the model has no embedding
    table, count = json.loads(tokenizer.backend_tokenizer.to_str()), read_gguf_metadata(source)[0][WORDS]
    own = [token for token in table["added_tokens"] if token["id"] < count]
    if len(own) < len(table["added_tokens"]):
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(table | {"added_tokens": own}))
    return tokenizer


def notes(model: Any, source: str) -> list[str]:
    """What is to be said of a model that was read from a file."""
    from transformers.integrations.gguf import read_gguf_metadata
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    name, dtype = Path(source).name, str(model.dtype).removeprefix("torch.")
    count = sum(p.numel() for p in model.parameters())
    found = [f"{name}: dequantised to {dtype}, {count:,} parameters; results are written as a plain folder"]
    metadata, _ = read_gguf_metadata(source)
    pre = metadata.get("tokenizer.ggml.pre", "default")
    known = pre in GGUF_PRE_TOKENIZER_SPLITS or pre in SPLIT_AS_GPT2
    if metadata.get("tokenizer.ggml.model") == "gpt2" and not known:
        found.append(
            f"{name}: transformers does not know how its tokenizer splits text ({pre!r}) and splits as GPT-2 does: the "
            "tokens may not be those that the model was trained on"
        )
    return found


def _checked_names(source: str) -> tuple[str, ...]:
    """The names of the tensors, where transformers will not read the file wrongly, or only with code of others.

    Raises:
        UserError: it would.
    """
    from transformers.integrations.gguf import is_gguf_arch_supported, read_gguf_metadata
    from transformers.utils.import_utils import is_kernels_available

    metadata, names = read_gguf_metadata(source)
    architecture, parts = metadata["general.architecture"], metadata.get("split.count", 1)
    if parts > 1:
        raise UserError(
            f"model.path: {source} is one of {parts} parts: join them (llama-gguf-split --merge), and give that"
        )
    if WORDS not in metadata:
        raise UserError(f"model.path: {source} holds no tokenizer: take a file that has one, or the model's folder")
    if wrong := next((name for name in names if name.startswith(FACTORS)), None):
        raise UserError(f"model.path: {source} holds {wrong}, {STRETCHED}")
    if is_gguf_arch_supported(architecture) and is_kernels_available():
        raise UserError(
            f"model.path: {source}: for {architecture} transformers fetches code from the hub where the package "
            "kernels is installed, and covrl runs no code that comes with a model: uninstall kernels, or use the "
            "model's folder of safetensors"
        )
    return names


@contextmanager
def _nowhere() -> Generator[str]:
    """An empty folder: transformers looks for more files beside the one that it is given, adapters among them."""
    with TemporaryDirectory() as folder:
        yield folder


def _absolute(source: str) -> str:
    return str(Path(source).resolve())
