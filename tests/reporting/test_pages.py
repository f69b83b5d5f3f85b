"""Templates: whatever is put in is text, unless it was made as markup here."""

from __future__ import annotations

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from covrl.reporting.charts import element
from covrl.reporting.pages import fill, page

ATTACK = "<img src=x onerror='1'>\u202e\x00"
SHOWN = "&lt;img src=x onerror=&#39;1&#39;&gt;&lt;U+202E&gt;&lt;U+0000&gt;"


def test_every_value_is_made_visible_and_escaped_without_the_template_asking_for_it() -> None:
    text = page("page.html", ATTACK, ATTACK, ATTACK, menu=[(ATTACK, ATTACK), ("b", "c")])
    assert "<img" not in text
    assert not {"\u202e", "\x00"} & set(text)
    assert text.count(SHOWN) == 6
    assert "<script" not in text


def test_a_chart_takes_markup_for_its_drawing_alone() -> None:
    drawn = {"body": Markup("<path/>"), "keys": (), "width": 1, "height": 2, "kind": ATTACK}
    text = fill(
        "chart.html", **drawn, **dict.fromkeys(("title", "unit", "told", "healthy", "remark", "readings"), ATTACK)
    )
    assert "<path/>" in text
    assert "<img" not in text
    assert text.count(SHOWN) == 10
    assert "&lt;path/&gt;" in fill("chart.html", **drawn | {"body": "<path/>"}, title="", unit="", told="", healthy="",
                                   remark="", readings="")  # fmt: skip


def test_a_value_that_is_missing_is_an_error_and_not_an_empty_place() -> None:
    with pytest.raises(UndefinedError, match="'gain' is undefined"):
        page("calibration.html", "t", plot="", tables=())


def test_an_element_escapes_what_is_in_it_and_rounds() -> None:
    assert element("text", "a < b", x=1.25, n=3, class_="it's", text_anchor="end") == (
        "<text x='1.2' n='3' class='it&#39;s' text-anchor='end'>a &lt; b</text>"
    )
    inner = element("path", d=ATTACK)
    assert inner == f"<path d='{SHOWN}'/>"
    assert element("g", [inner, inner], ATTACK) == f"<g>{inner}{inner}{SHOWN}</g>"
