"""Makes docs/images/live.png, live-two.png and live-pairs.png: the live page of a run, and of two.

    .venv/bin/covrl quickstart --out runs/first
    .venv/bin/covrl quickstart --out runs/control --shuffle-answers
    .venv/bin/python website/live_images.py runs/first runs/control

It needs a Chromium (or COVRL_BROWSER). With --out the pictures go to another folder, with --dark and --width N they
look otherwise, and with --whole they show the page from top to bottom.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/safety"))

from chromium import Chromium, find_browser  # noqa: E402

from covrl.reporting.live.run import open_run  # noqa: E402
from covrl.reporting.live.server import Site, open_server  # noqa: E402

READY = "document.getElementById('count').textContent !== '' && document.querySelectorAll('#found pre').length"
SEARCH = """((values) => {
  const form = document.getElementById("search");
  for (const [name, value] of Object.entries(values)) form.elements[name].value = value;
  document.getElementById("count").textContent = "";
  form.dispatchEvent(new Event("input", { bubbles: true }));
})"""


class Picture(NamedTuple):
    """A picture's name, how many of the runs it shows, what is searched for in it, what it begins with (a CSS
    selector), and its height."""

    name: str
    runs: int
    search: Mapping[str, str]
    begins: str
    height: int


PICTURES = (
    Picture("live.png", 1, {"text": "sort", "order": "oldest"}, "#traces", 640),
    Picture("live-two.png", 2, {}, "#curves section", 500),
    Picture("live-pairs.png", 2, {"last": "1"}, "#found", 560),
)


def main() -> None:
    """Take the pictures."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("runs", nargs=2, type=Path)
    asked.add_argument("--out", type=Path, default=ROOT / "docs/images")
    asked.add_argument("--width", type=int, default=1240)
    asked.add_argument("--dark", action="store_true")
    asked.add_argument("--whole", action="store_true")
    given = asked.parse_args()
    program = find_browser()
    if program is None:
        sys.exit("no Chromium here: install one or name it in COVRL_BROWSER")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Chromium(program, Path(profile))
        try:
            for picture in PICTURES:
                browser.look_like(given.width, picture.height, "dark" if given.dark else "light")
                (given.out / picture.name).write_bytes(taken(browser, picture, given))
        finally:
            browser.close()


def taken(browser: Chromium, picture: Picture, given: argparse.Namespace) -> bytes:
    """The picture as PNG."""
    runs = [open_run(number, folder) for number, folder in enumerate(given.runs[: picture.runs])]
    with open_server(Site(runs), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.open_url(server.url)
        browser.wait_for(READY)
        browser.run(f"{SEARCH}({json.dumps(picture.search)})")
        browser.wait_for(READY)
        browser.run("new Promise((done) => setTimeout(done, 3000))")  # all that is new has been drawn by then
        browser.run(f"document.querySelector('{picture.begins}').scrollIntoView({{ behavior: 'instant' }})")
        made = browser.picture(given.whole)
        server.shutdown()
    return made


if __name__ == "__main__":
    main()
