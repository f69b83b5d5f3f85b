"""`covrl doctor`: advice where something is wrong, and nowhere else."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from covrl.cli import doctor
from covrl.cli.doctor import Finding
from covrl.cli.show import show_findings
from covrl.extras import install_command


def shown(findings: list[Finding]) -> str:
    console = Console(file=io.StringIO(), width=200)
    show_findings(console, findings)
    return console.file.getvalue()  # ty: ignore[unresolved-attribute]


@pytest.mark.parametrize(
    ("threads", "policy", "wrong"),
    [
        (2, "PASSIVE", []),
        (9, "passive", ["cores and threads"]),
        (1, None, ["OMP_WAIT_POLICY"]),
        (3, "active", ["cores and threads", "OMP_WAIT_POLICY"]),
    ],
)
def test_threads_have_advice_only_where_it_is_needed(threads: int, policy: str | None, wrong: list[str]) -> None:
    findings = doctor._threads(threads, 2, policy)
    assert [f.what for f in findings if not f.well] == wrong
    assert [f.what for f in findings if f.advice] == wrong


def test_a_missing_core_package_is_the_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "safetensors" else version(name))
    text = shown(doctor._packages())
    assert text.strip().splitlines()[-1] == "to be looked at: safetensors"


def test_a_missing_extra_is_no_fault_and_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    text = shown(doctor._extras())
    assert install_command("wandb") in text
    assert text.strip().splitlines()[-1] == "all that covrl needs is there"
