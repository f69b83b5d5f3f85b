"""The real pretrained model of tests/real and tests/slow: a folder that is given, or one that is made once and kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KEPT = Path.home() / ".cache" / "covrl" / "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def real_model() -> Path:
    """SmolLM2-135M-Instruct: the folder in COVRL_REAL_MODEL, else one that ``benchmarks/real_model.py`` makes.

    Where the package index cannot be reached and no model was made before, the tests are skipped and say so.
    """
    given = os.environ.get("COVRL_REAL_MODEL")
    if given:
        assert (Path(given) / "config.json").is_file(), f"COVRL_REAL_MODEL: {given} is no model's folder"
        return Path(given)
    command = [sys.executable, str(ROOT / "benchmarks" / "real_model.py"), str(KEPT)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode == NOT_TO_BE_HAD:
        pytest.skip(made.stderr.strip().splitlines()[-1])
    assert made.returncode == 0, made.stderr
    return KEPT


NOT_TO_BE_HAD = 3
"""The exit code of ``real_model.py`` where a download failed."""
