"""`covrl merge`: a plain folder of a base and its adapter, or of a GGUF file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from covrl import api, files
from covrl.errors import UserError
from covrl.models.adapters import is_adapter, is_of_four_bits, merged
from covrl.models.four_bit import dequantise, quantise
from covrl.models.gguf import is_gguf
from covrl.models.model import base_source, load_model, load_tokenizer, resolve_path
from covrl.models.trust import quoted


def merge(model: str, out: Path, settings: Sequence[str] = ()) -> Path:
    """Write the model of an adapter's folder, of a LoRA run's or of a GGUF file as a plain folder ``out``; returns it.

    The sum is made in float32, or in float64, and written in ``model.dtype``, by default the run's or
    float32. A base of 4 bits is the one that was trained on: its matrices as they were computed with, no longer codes.

    Raises:
        UserError: it is none of these, PEFT cannot merge it, its base is missing, or ``out`` is not empty.
    """
    config = api.config_for(model, settings=settings).model
    folder = Path(resolve_path(config.path))
    if not is_adapter(folder) and not is_gguf(folder):
        raise UserError(f"{model}: no adapter, so there is nothing to merge: it is a whole model as it is")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: there is something already; choose a new folder")
    wide = config.dtype if config.dtype == "float64" else "float32"
    place = {"path": base_source(str(folder)), "dtype": wide, "device": "cpu"}
    base, tokenizer = load_model(config.model_copy(update=place))
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = quoted(str(folder), lambda: load_tokenizer(str(folder)))
    if is_adapter(folder) and is_of_four_bits(folder):  # the sum is to be what was trained
        quantise(base.model)
        dequantise(base.model)
        said = "the adapter was trained on a base of 4 bits (NF4), so the merged model has that base's rounded weights"
        print(f"covrl: {said}", file=sys.stderr)
    plain = merged(base.model, folder) if is_adapter(folder) else base.model
    if config.dtype == "bfloat16":
        plain.to(torch.bfloat16)
    try:
        written = files.begin(out)
        plain.save_pretrained(written)
        tokenizer.save_pretrained(written)
        files.finish(written, out, {"merged": str(folder)})
    except OSError as error:
        raise UserError(f"{out}: cannot write there: {error.strerror or error}") from None
    return out
