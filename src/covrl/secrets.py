"""Tokens and passwords in the environment: kept from messages and from processes that do not need them.

covrl itself reads ``VLLM_API_KEY`` alone, for the server that it is sent to, and writes the environment nowhere. What
other packages say may hold one (a proxy's address, a request), so messages, tracebacks and warnings go through
:func:`redacted` before they are printed or written.
"""

from __future__ import annotations

import json
import os
import re
from urllib.parse import quote

_SECRET = re.compile(
    r"TOKEN|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|SECRET|PASSW(?:OR)?D|PASSPHRASE|CREDENTIAL|CONN(?:ECTION)?_?STR"
    r"|(?:^|_)(?:KEY|PAT|PASS|PSWD|DSN|COOKIE|JWT)$|_(?:PWD|AUTH)$",  # PWD itself is a folder
    re.IGNORECASE,
)
_IN_ADDRESS = re.compile(r"(?<=://)[^\s/@:]*:[^\s/@]+(?=@)")

SHORTEST = 8
"""Characters from which on a value is taken for a secret; ``TOKENIZERS_PARALLELISM=false`` is none."""


def is_secret(name: str) -> bool:
    """Whether an environment variable of this name holds a secret."""
    return bool(_SECRET.search(name)) and not name.upper().startswith("TOKENIZERS_")


def redacted(text: str) -> str:
    """The text with the name of the variable in the place of each secret of the environment.

    Example:
        >>> redacted("401 for hf_abcdefgh")  # with HF_TOKEN=hf_abcdefgh
        '401 for [HF_TOKEN]'
    """
    known = {
        form: name
        for name, value in os.environ.items()
        if is_secret(name) and len(value.strip()) >= SHORTEST
        for form in _forms(value.strip())
    }
    for value in sorted(known, key=len, reverse=True):  # one may be part of another
        text = text.replace(value, f"[{known[value]}]")
    return _IN_ADDRESS.sub("[password]", text)


def _forms(value: str) -> set[str]:
    """A value as it is, and as it stands in a quoted text, in JSON and in an address."""
    return {value, repr(value)[1:-1], json.dumps(value)[1:-1], quote(value, safe="", errors="surrogateescape")}


def environment_without_secrets() -> dict[str, str]:
    """The environment for a process that handles what strangers wrote."""
    return {name: value for name, value in os.environ.items() if not is_secret(name)}
