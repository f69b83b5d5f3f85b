"""How to install what is missing: the command names the packages, so it works whatever covrl was installed from.

``pip install 'covrl[data]'`` would work only where covrl is on a package index, ``pip install -e '.[data]'`` only in a
clone.
"""

from __future__ import annotations

import re
from importlib import metadata

_REQUIREMENT = re.compile(r"([A-Za-z0-9][\w.-]*)\s*((?:\[[^\]]*\])?[^;]*)(?:;(.*))?")


def install_command(extra: str) -> str:
    """The command that installs the packages of an extra of covrl.

    Example:
        >>> install_command("data")
        "pip install 'datasets>=4' 'pyarrow>=17'"

    An extra that the installed covrl does not know, or a covrl that is run without being installed, gets the command of
    a package index.
    """
    wanted = [name + version for name, version, marker in _requirements() if _is_of(marker, extra)]
    return "pip install " + " ".join(f"'{each}'" for each in wanted or [f"covrl[{extra}]"])


def core_command(package: str) -> str:
    """The command that installs a package that covrl needs in any case, in a version that it works with."""
    wanted = [name + version for name, version, marker in _requirements() if name == package and not marker]
    return f"pip install '{(wanted or [package])[0]}'"


def _is_of(marker: str, extra: str) -> bool:
    return bool(re.search(rf"\bextra\s*==\s*['\"]{re.escape(extra)}['\"]", marker))


def _requirements() -> list[tuple[str, str, str]]:
    """Name, versions and marker of each requirement that is recorded with the installed covrl."""
    try:
        listed = metadata.requires("covrl") or []
    except metadata.PackageNotFoundError:
        return []
    found = (_REQUIREMENT.fullmatch(each) for each in listed)
    return [(m[1], (m[2] or "").strip(), m[3] or "") for m in found if m]
