"""A run's model, tokenizer, card and report in a repository of the Hugging Face hub.

The token is read by huggingface_hub (``HF_TOKEN``, or ``hf auth login``), is sent to the hub alone, and is written
nowhere: texts that go up or are printed have its place marked instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from covrl.checkpoints.folder import model_of_run
from covrl.config import read_toml
from covrl.errors import UserError
from covrl.files import MANIFEST
from covrl.hub.card import Pushed, card, step_of_model
from covrl.models.adapters import base_of, is_adapter
from covrl.models.model import SHIPPED_BASES
from covrl.reporting.folder import summary_of
from covrl.reporting.html import render_report
from covrl.secrets import redacted

T = TypeVar("T")

REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def check_push(repo: str, where: str = "hub.push") -> None:
    """Check without the network that a push can be tried: the name has its form, and there is a token.

    Raises:
        UserError: one of them is missing.
    """
    if not REPO.fullmatch(repo) or "--" in repo or ".." in repo or len(repo) > 96:
        raise UserError(f"{where}: {repo!r} is no repository: expected OWNER/NAME of letters, digits, -, _ and .")
    if not _token():
        raise UserError(
            f"{where}: no token of the Hugging Face hub: set HF_TOKEN to one that may write, or run `hf auth login`"
        )


def push(run: Path, repo: str, private: bool = True, license: str = "", where: str = "hub.push") -> str:
    """Put the best model of a run's folder, else its newest, into ``repo`` in one commit; returns the address.

    The repository is made where there is none, ``private`` or not; one that is there stays as visible as it is.
    ``license`` is the base's, where the hub or the base's folder does not say it.

    Raises:
        UserError: no run or no model there, no token, or the hub cannot be reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    check_push(repo, where)
    content = contents(run, repo, license)
    api = HfApi(token=_token())
    operations = [CommitOperationAdd(name, part) for name, part in sorted(content.items())]

    def sent() -> str:
        made = api.create_repo(repo, private=private, exist_ok=True)
        api.create_commit(repo, operations, commit_message=f"covrl push {run.resolve().name}")
        return str(made)

    return _asked(sent, f"{where}: {repo}")


def contents(run: Path, repo: str, license: str = "") -> dict[str, Path | bytes]:
    """What goes into the repository, by name: files of the model, and the texts that are made here.

    Raises:
        UserError: no model there, or the run's files cannot be read.
    """
    model = model_of_run(run)
    base = _base(run, model)
    known = license or _license_of(base)
    on_hub = base if _is_hub_name(base) else ""
    pushed = Pushed(run, model, step_of_model(model), known, on_hub)
    found: dict[str, Path | bytes] = {
        path.relative_to(model).as_posix(): path
        for path in sorted(model.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name != MANIFEST
    }
    texts = {
        "README.md": card(pushed, repo),
        "report.html": render_report(summary_of(run)),
        "config.toml": (run / "config.toml").read_text(encoding="utf-8"),
    }
    return found | {name: _without_token(text).encode() for name, text in texts.items()}


def _base(run: Path, model: Path) -> str:
    """Where the base's weights are: what an adapter names, else what the run began with."""
    if is_adapter(model):
        return base_of(model)
    section = read_toml(run / "config.toml").get("model")
    return str(section.get("path", "")) if isinstance(section, dict) else ""


def _is_hub_name(base: str) -> bool:
    return bool(REPO.fullmatch(base)) and not Path(base).exists()


def _license_of(base: str) -> str:
    """The licence that a base's card names; "" where there is no card, no licence in it, or no network."""
    from huggingface_hub import HfApi, ModelCard

    if base in SHIPPED_BASES:
        return "apache-2.0"
    try:
        if Path(base).is_dir():
            data = ModelCard.load(Path(base) / "README.md").data if (Path(base) / "README.md").is_file() else None
        else:
            data = HfApi(token=_token()).model_info(base).card_data if _is_hub_name(base) else None
    except Exception:  # whatever it is: the card says that the licence is not known
        return ""
    found = getattr(data, "license", None)
    return found if isinstance(found, str) else ""


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _without_token(text: str) -> str:
    """The text without secrets of the environment, and without the token, which may be in a file instead."""
    token = _token()
    return redacted(text).replace(token, "[token]") if token else redacted(text)


def _asked(work: Callable[[], T], what: str) -> T:
    """What ``work`` returns; whatever stops it is one line without the token.

    Raises:
        UserError: the hub cannot be reached, or it refuses.
    """
    try:
        return work()
    except Exception as error:  # errors of the client, of its transport, and of the upload
        status = getattr(getattr(error, "response", None), "status_code", None)
        said = _without_token(str(error)).strip().splitlines() or [type(error).__name__]
        if status in (401, 403):
            raise UserError(f"{what}: the hub refuses (HTTP {status}): the token may not write there") from None
        raise UserError(f"{what}: not pushed, as the hub cannot be reached or refuses: {said[0]}") from None
