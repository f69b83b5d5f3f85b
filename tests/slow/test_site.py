"""The documentation as a site: built strictly, whole, and without anything of another host.

``make check-slow`` runs this; it wants the extra ``docs``.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from mkdocs.structure.files import Files

from covrl import config
from covrl.config import Settings

ROOT = Path(__file__).parents[2]
LOADING = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
    "use": "href",
}
"""Elements whose attribute a browser fetches by itself."""


class Parsed(HTMLParser):
    """What a page loads, links to and names, and its text outside code."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.classes: set[str] = set()
        self.text: list[str] = []
        self._code = 0
        self._article = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids.add(given.get("id", ""))
        self.classes.update(given.get("class", "").split())
        if tag in LOADING and LOADING[tag] in given and given.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(given[LOADING[tag]])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        self._article |= tag == "article"
        self._code += tag in ("code", "pre", "script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._article &= tag != "article"
        self._code -= tag in ("code", "pre", "script", "style")

    def handle_data(self, data: str) -> None:
        if self._article and not self._code:
            self.text.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr  # a warning is a failure, too
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Parsed]:
    return {path: Parsed(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def is_elsewhere(address: str) -> bool:
    return bool(urlsplit(address).netloc)


def test_every_page_of_docs_is_in_the_site(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        inside = page.relative_to(ROOT / "docs").with_suffix("")
        assert (site / (inside.parent if inside.name == "README" else inside) / "index.html").is_file(), page
    for page in ("index.html", "contributing/index.html", "changelog/index.html"):
        assert (site / page).is_file()


def test_nothing_is_loaded_from_another_host(site: Path, pages: dict[Path, Parsed]) -> None:
    for path, page in pages.items():
        assert not [address for address in page.loads if is_elsewhere(address)], path
        # the theme fetches a renderer for these, and for nothing else
        assert "mermaid" not in page.classes, path
    for sheet in site.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import)\s*[\"']?([^\"')]+)", sheet.read_text(encoding="utf-8"))
        assert not [address for address in found if is_elsewhere(address)], sheet


def test_every_link_leads_to_a_page_and_an_anchor_that_are_there(site: Path, pages: dict[Path, Parsed]) -> None:
    missing = []
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # its links are written for the root of a host
        for link in page.links:
            goal, anchor = urldefrag(link)
            if is_elsewhere(link) or urlsplit(link).scheme:
                continue
            target = (path.parent / unquote(goal)).resolve() if goal else path
            target = target / "index.html" if target.is_dir() else target
            known = target in pages and (not anchor or unquote(anchor) in pages[target].ids)
            if not known and not (target.is_file() and not anchor):
                missing.append((str(path.relative_to(site)), link))
    assert missing == []


def test_no_markdown_is_left_in_the_text_of_a_page(site: Path, pages: dict[Path, Parsed]) -> None:
    marks = re.compile(r"\]\(|\*\*|```|\|\s*-{3}|^\s*- \w|:(?:func|class|meth|mod):|^:::", re.MULTILINE)
    for path, page in pages.items():
        if path.is_relative_to(site / "source"):
            continue
        assert not marks.search("".join(page.text)), path


def test_files_outside_docs_are_pages_with_their_source(pages: dict[Path, Parsed], site: Path) -> None:
    shown = (site / "source/src/covrl/config/schema.py/index.html").read_text(encoding="utf-8")
    assert "LoraConfig" in shown
    recipes = pages[site / "source/recipes/index.html"]
    assert "../source/recipes/covrl.toml/" not in recipes.links  # a link of its own folder
    assert {f"{path.name}/" for path in (ROOT / "recipes").glob("*.toml")} <= set(recipes.links)


def test_a_notebook_is_a_page_with_its_outputs(pages: dict[Path, Parsed], site: Path) -> None:
    page = site / "notebooks/first-run/index.html"
    notebook = json.loads((ROOT / "docs/notebooks/first-run.ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert page.read_text(encoding="utf-8").count("class='cell-output'") == len(outputs) > 5
    assert {"covrl", "dataframe", "chart"} <= pages[page].classes
    text = "".join(pages[page].text)
    assert "Held-out accuracy" in text
    assert all("".join(cell["source"]).splitlines()[0].strip("# ") in text for cell in notebook["cells"]
               if cell["cell_type"] == "markdown" and cell["source"][0].startswith("#"))  # fmt: skip
    assert "first-run/" in pages[site / "notebooks/index.html"].links, "a link to the notebook leads to its page"
    assert not list(site.rglob("*.ipynb"))


def sections() -> list[type[Settings]]:
    """Every section of a configuration file: all settings classes of the module but their base."""
    found = [each for each in vars(config).values() if isinstance(each, type) and issubclass(each, Settings)]
    return [each for each in found if each is not Settings]


def test_the_api_has_every_setting_with_its_description(pages: dict[Path, Parsed], site: Path) -> None:
    page = pages[site / "api/settings/index.html"]
    text = " ".join("".join(page.text).split())
    found = sections()
    assert len(found) >= 10
    for section in found:
        for name, field in section.model_fields.items():
            assert f"covrl.config.{section.__name__}.{name}" in page.ids
            start = re.split(r"[`*_<]", field.description or "")[0]  # up to what Markdown sets apart
            assert " ".join(start.split()) in text, (section, name)


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("api", ["covrl.api.train", "covrl.api.resume", "covrl.notebook.run.Run.plot", "covrl.errors.UserError"]),
        ("api/methods", ["covrl.algorithms.base.Algorithm.credit", "covrl.algorithms.find_algorithm"]),
        ("api/records", ["covrl.records.Problem", "covrl.records.Rollout"]),
        ("api/objectives", ["covrl.objectives.composite.composite_kl", "covrl.objectives.advantages.centred"]),
        ("api/plugins", ["covrl.plugins.load_named", "covrl.reporting.sinks.Sink"]),
    ],
)
def test_the_api_has_the_public_names(pages: dict[Path, Parsed], site: Path, page: str, names: list[str]) -> None:
    assert set(names) <= pages[site / page / "index.html"].ids


def test_the_search_finds_pages_and_settings_and_no_source(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))["docs"]
    where = {entry["location"].partition("#")[0] for entry in index}
    assert {"engines/", "methods/covrl/", "api/settings/"} <= where
    assert not [place for place in where if place.startswith("source/")]
    assert any("tokens_per_pass" in entry["title"] + entry["text"] for entry in index)


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hook", ROOT / "website/hook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_link_to_nothing_is_a_warning(hook: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="methods/mine.md"))
    markdown = (
        "[gone](../../src/covrl/gone.py#L3) [page](covrl.md) [web](https://example.org/a)\n```\n[a](../../b)\n```"
    )
    with caplog.at_level(logging.WARNING, "mkdocs"):
        assert hook.on_page_markdown(markdown, page, None, Files([])) == markdown
    (record,) = caplog.records
    assert record.name.startswith("mkdocs")
    assert "methods/mine.md links to ../../src/covrl/gone.py#L3" in record.getMessage()
    assert "no src/covrl/gone.py" in record.getMessage()
