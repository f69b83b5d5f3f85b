"""The executed notebooks of ``docs/`` as pages of the site: their cells and outputs as they are, made into Markdown.

Nothing is executed here, and no package beyond MkDocs is wanted. A link to a notebook leads to its page.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ENDING = ".ipynb"
STYLE = """<style>
.cell-output { overflow-x: auto; }
.cell-output .dataframe { border: 0; border-collapse: collapse; font-size: 0.64rem; }
.cell-output .dataframe :is(th, td) {
  padding: 0.2em 0.9em; border: 0; border-bottom: 1px solid var(--md-typeset-table-color); text-align: right;
  white-space: nowrap;
}
</style>"""
"""Frames in the manner of the site's tables."""
LINK = re.compile(r"(?<=\]\()([^)\s:]+)\.ipynb(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put a page in the place of each notebook."""
    for file in [file for file in files if file.src_uri.endswith(ENDING)]:
        notebook = json.loads((Path(config.docs_dir) / file.src_uri).read_text(encoding="utf-8"))
        files.remove(file)
        files.append(File.generated(config, file.src_uri.removesuffix(ENDING) + ".md", content=markdown_of(notebook)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to notebooks at their pages."""
    del page, config, files
    return LINK.sub(r"\1.md", markdown)


def markdown_of(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown: code as blocks, outputs as the HTML that a notebook shows, else as text."""
    parts = [part for cell in notebook["cells"] for part in _parts(cell)]
    return "\n\n".join([*parts, STYLE]) + "\n"  # the style last: a page begins with its title


def _parts(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
    elif cell["cell_type"] == "code":
        yield _fenced(source, "python")
        yield from map(_shown, cell["outputs"])


def _shown(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "text/html" in data:
        lines = "".join(data["text/html"]).split("\n")  # an empty line would end the block of HTML
        return "\n".join(["<div class='cell-output'>", *filter(str.strip, lines), "</div>"])
    text = data.get("text/plain") or output.get("text") or output.get("traceback") or ""
    return f"<pre class='cell-output'>{escape(''.join(text))}</pre>"


def _fenced(text: str, language: str) -> str:
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=2))
    return f"{fence}{language}\n{text}\n{fence}"
