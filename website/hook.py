"""What MkDocs is told beyond ``mkdocs.yml``: links out of ``docs/``, and the pages that lie beside it.

The Markdown is written to be read on a forge too, so its links are relative to the repository: ``../src/covrl/api.py``
from a page of ``docs/``, ``docs/install.md`` from ``README.md``. In the site

- README, CONTRIBUTING and CHANGELOG are pages, made from the files themselves;
- every other file or folder that a page links to becomes a page that shows it, so that the site needs no address of a
  forge and shows the source of its own version;
- a link to something that is not in the repository is a warning, which ``--strict`` makes a failure;
- each method's page is in the navigation, in the order of the table of ``docs/methods/README.md``.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs"
ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Files beside ``docs/`` that are pages of the site, with the page's name."""

LANGUAGES = {".py": "python", ".toml": "toml", ".sh": "bash", ".yml": "yaml", ".html": "html", ".js": "js"}
SHOWN = frozenset({*LANGUAGES, ".md", ".txt", ".json"})
"""Endings of the files that the page of a folder lists."""

FENCE = re.compile(r"^\s*(`{3,}|~{3,})")
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=[)\s])")
log = logging.getLogger("mkdocs.plugins.covrl")


METHOD = re.compile(r"^\| \[`\w+`\]\((\w+\.md)\) \|[^|]*\| (yes|no) \|", re.MULTILINE)
"""A row of the table of methods: its page, and whether it needs a verifier."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put each method's page into the navigation, in the order of the table of methods."""
    table = (ROOT / DOCS / "methods" / "README.md").read_text(encoding="utf-8").replace(r"\|", "")
    assert config.nav is not None
    (methods,) = [section["Methods"] for section in config.nav if "Methods" in section]
    sections = {name: pages for entry in methods if isinstance(entry, dict) for name, pages in entry.items()}
    for page, verified in METHOD.findall(table):
        sections["With a verifier or a reward function" if verified == "yes" else "Without a verifier"].append(
            f"methods/{page}"
        )
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages beside ``docs/``, and one for each file or folder outside it that a page links to."""
    for name, uri in ROOT_PAGES.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text(encoding="utf-8")))
    wanted = {
        target
        for file in files.documentation_pages()
        for line in prose(file.content_string)
        for link in LINK.findall(line)
        if (target := repository_path(link, file.src_uri)) is not None and is_source(target)
    }
    for target in sorted(wanted | {child for folder in wanted for child in children(folder)}):
        if (ROOT / target).exists():
            content = source_page(target)
            files.append(File.generated(config, page_of(target), content=content, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page at the pages of the site."""
    del config
    uri = page.file.src_uri
    if uri.startswith("source/"):
        return markdown

    def replaced(found: re.Match[str]) -> str:
        link = found.group(1)
        target = repository_path(link, uri)
        if target is None or (not is_source(target) and uri not in ROOT_PAGES.values() and target not in ROOT_PAGES):
            return link
        goal = page_of(target) if is_source(target) else ROOT_PAGES.get(target) or target.removeprefix(f"{DOCS}/")
        if files.get_file_from_path(goal) is None:
            log.warning("%s links to %s, and there is no %s in the repository", uri, link, target)
            return link
        anchor = link.partition("#")[2]
        return posixpath.relpath(goal, posixpath.dirname(uri) or ".") + (f"#{anchor}" if anchor else "")

    lines = prose(markdown)
    return "\n".join(
        LINK.sub(replaced, told) if told else line for line, told in zip(markdown.split("\n"), lines, strict=True)
    )


def prose(markdown: str) -> Iterator[str]:
    """Each line of a page, with those of fenced code blocks empty."""
    fence = ""
    for line in markdown.split("\n"):
        found = FENCE.match(line)
        if found and (not fence or found.group(1).startswith(fence)):
            fence = "" if fence else found.group(1)
            yield ""
        else:
            yield "" if fence else line


def repository_path(link: str, uri: str) -> str | None:
    """What a page's link means in the repository, without its anchor; None for an address or an anchor of the page."""
    path = link.partition("#")[0]
    if not path or re.match(r"[a-z][a-z0-9+.-]*:|/", path):
        return None
    beside = {page: name for name, page in ROOT_PAGES.items()}
    origin = beside.get(uri, f"{DOCS}/{uri}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))


def is_source(target: str) -> bool:
    """Whether a path of the repository is shown as source: it is neither in ``docs/`` nor a page of the root."""
    return target != DOCS and not target.startswith(f"{DOCS}/") and target not in ROOT_PAGES


def page_of(target: str) -> str:
    """Where a file or folder of the repository is shown."""
    return f"source/{target}/index.md" if (ROOT / target).is_dir() else f"source/{target}.md"


def children(target: str) -> list[str]:
    """The readable files of a folder of the repository, without those of its folders; none for a file."""
    if not (ROOT / target).is_dir():
        return []
    inside = (ROOT / target).iterdir()
    return sorted(f"{target}/{path.name}" for path in inside if path.is_file() and path.suffix in SHOWN)


def source_page(target: str) -> str:
    """The page of a file, or of a folder with links to its files; the search leaves both out."""
    head = f"---\nsearch:\n  exclude: true\n---\n\n# {target}\n\n"
    if (ROOT / target).is_dir():
        return head + "".join(
            f"- [`{posixpath.basename(child)}`]({posixpath.basename(child)}.md)\n" for child in children(target)
        )
    text = (ROOT / target).read_text(encoding="utf-8")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=2))
    return f"{head}{fence}{LANGUAGES.get(Path(target).suffix, 'text')}\n{text.rstrip()}\n{fence}\n"
