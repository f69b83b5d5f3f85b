"""`covrl merge`: a plain folder of a base and its adapter, or of a GGUF file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from covrl import api, files
from covrl.errors import UserError
from covrl.models.adapters import is_adapter, merged
from covrl.models.gguf import is_gguf
from covrl.models.model import base_source, load_model, load_tokenizer, resolve_path
from covrl.models.trust import quoted


def merge(model: str, out: Path, settings: Sequence[str] = ()) -> Path:
    """Write the model of an adapter's folder, of a LoRA run's or of a GGUF file as a plain folder ``out``; returns it.

    The sum is made in float32, or in float64, and written in ``model.dtype``, by default the run's or
    float32.

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
