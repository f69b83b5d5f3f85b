"""What the API pages make of our docstrings and settings, which griffe reads from the source.

Docstrings name functions and classes in the way of Sphinx; here these names become plain code. A setting has its
description and bounds inside ``Field(…)``; here they become the setting's docstring, and its default is shown.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from griffe import Attribute, Docstring, Extension, Object

ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):`~?([^`]+)`")
BOUNDS = {
    "ge": "at least {}",
    "gt": "more than {}",
    "le": "at most {}",
    "lt": "less than {}",
    "min_length": "at least {} of them",
}


class OurDocstrings(Extension):
    """Plain names for the roles of Sphinx, and a docstring for each setting."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object that was read."""
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"`\1`", obj.docstring.value)

    def on_attribute(self, *, attr: Attribute, **kwargs: Any) -> None:
        """Give a setting the description and the default that its ``Field(…)`` holds."""
        del kwargs
        call = _field_call(attr)
        if call is None:
            return
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if "description" in given:
            bounds = [text.format(ast.unparse(given[key])) for key, text in BOUNDS.items() if key in given]
            description = str(ast.literal_eval(given["description"]))
            attr.docstring = Docstring("; ".join([description, *bounds]), parent=attr)
        default = call.args[0] if call.args else given.get("default", given.get("default_factory"))
        attr.value = None if default is None else ast.unparse(default)


def _field_call(attr: Attribute) -> ast.Call | None:
    if attr.value is None or not str(attr.value).startswith("Field("):
        return None
    call = ast.parse(str(attr.value), mode="eval").body
    return call if isinstance(call, ast.Call) else None
