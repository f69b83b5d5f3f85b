"""Requests to servers that somebody named: to that address and to no other."""

from __future__ import annotations

from typing import Any
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, build_opener

from covrl.plugins import is_loopback


class _NoRedirects(HTTPRedirectHandler):
    """What is sent, traces and a key among it, goes to the address that was given."""

    def redirect_request(self, *_given: Any, **_named: Any) -> None:
        return None


def opener_for(address: str) -> OpenerDirector:
    """Without redirects; without the environment's proxy, which is another machine, where the address is this one."""
    direct = [ProxyHandler({})] if is_loopback(address) else []
    return build_opener(_NoRedirects, *direct)
