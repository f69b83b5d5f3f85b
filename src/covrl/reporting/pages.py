"""HTML pages from the templates beside this file: one skeleton, one style, every value escaped.

Every value that a template prints passes :func:`covrl.reporting.text.visible` and is then escaped, unless it is markup
that was made here, so that no template has to do it. The style and the script are package files that are put into the
page; a content security policy names their hashes, so that the browser runs these two and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from covrl.reporting.format import end_word, number, typeset, verdict_class, verdict_word
from covrl.reporting.text import clip, one_line, visible


def page(
    name: str,
    title: str,
    subtitle: str = "",
    headline: str = "",
    menu: Sequence[tuple[str, str]] = (),
    scripts: Sequence[str] = (),
    styles: Sequence[str] = ("chart.css", "page.css"),
    live: bool = False,
    **values: Any,
) -> str:
    """A whole page from the template ``name``, which extends the skeleton; it always encodes as UTF-8.

    ``menu`` names parts by id; ``scripts`` and ``styles`` are files beside the template, joined into one script and one
    style; ``live`` lets the script ask the server that the page came from, and nobody else.
    """
    head = {"title": title, "subtitle": subtitle, "headline": headline, "menu": menu, "live": live}
    assets = {"css": Markup("").join(map(_asset, styles)), "js": Markup("").join(map(_asset, scripts))}
    return _templates().get_template(name).render(head | assets | values)


def fill(name: str, **values: Any) -> Markup:
    """The template ``name``, filled with values."""
    return Markup(_templates().get_template(name).render(values))


def fragment(name: str, **values: Any) -> Markup:
    """The template ``name`` as a part of somebody else's page, such as a cell of a notebook.

    Its style reaches what is inside ``class='covrl'`` alone, and nothing of it is a script.
    """
    inside = Markup(".covrl {{\n{}}}\n").format(_asset("chart.css"))
    return fill(name, css=inside + _asset("notebook.css"), **values)


@cache
def _asset(name: str) -> Markup:
    return Markup((files("covrl.reporting") / "templates" / name).read_text(encoding="utf-8"))


@cache
def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("covrl.reporting"),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt name is an error and not an empty place
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"one_line": one_line, "clip": clip, "number": _number, "typeset": typeset, "sha256": _sha256}
    made.filters |= {"end_word": end_word, "verdict_word": verdict_word, "verdict_class": verdict_class}
    return made


def _shown(value: object) -> object:
    """What a template prints: markup as it is, text without control characters and marks that hide what it holds."""
    if isinstance(value, Markup):
        return value
    text = value if type(value) is str else str(value)
    return text if text.isprintable() else visible(text)


def _number(value: float | None, unit: str = "", sign: bool = False) -> str:
    return typeset(number(value, unit, sign=sign))


def _sha256(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
