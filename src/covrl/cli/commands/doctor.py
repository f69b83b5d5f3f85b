"""`covrl doctor`: what is installed."""

from __future__ import annotations

from covrl.cli.options import cpu_defaults


def doctor() -> None:
    """Show what is installed, which device is used, and what is missing."""
    cpu_defaults()
    from rich.console import Console

    from covrl.cli.doctor import examine
    from covrl.cli.show import show_findings

    show_findings(Console(), examine())
