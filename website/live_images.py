"""Makes docs/images/live.png and live-two.png: pictures of the live page of a run, and of two.

    .venv/bin/covrl quickstart --out runs/first
    .venv/bin/covrl quickstart --out runs/control --shuffle-answers
    .venv/bin/python website/live_images.py runs/first runs/control

It needs a Chromium (or COVRL_BROWSER). With --out the pictures go to another folder, with --dark and --width N they
look otherwise, and with --whole they show the page from top to bottom.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/safety"))

from chromium import Chromium, find_browser  # noqa: E402

from covrl.reporting.live.run import open_run  # noqa: E402
from covrl.reporting.live.server import Site, open_server  # noqa: E402

HEIGHT = 1000
READY = "document.getElementById('count').textContent !== '' && document.querySelectorAll('#found pre').length"
BOTH = "[...document.querySelectorAll('h2')].find((head) => head.textContent === 'Learning').scrollIntoView()"
SEARCH = """(() => {
  const form = document.getElementById("search");
  form.elements.text.value = "TEXT";
  form.elements.verdict.value = "right";
  document.getElementById("count").textContent = "";
  form.dispatchEvent(new Event("input", { bubbles: true }));
})()"""


def main() -> None:
    """Take the pictures."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("runs", nargs=2, type=Path)
    asked.add_argument("--text", default="sort", help="what is searched for in the traces")
    asked.add_argument("--out", type=Path, default=ROOT / "docs/images")
    asked.add_argument("--width", type=int, default=1240)
    asked.add_argument("--dark", action="store_true")
    asked.add_argument("--whole", action="store_true")
    given = asked.parse_args()
    program = find_browser()
    if program is None:
        sys.exit("no Chromium here: install one or name it in COVRL_BROWSER")
    with tempfile.TemporaryDirectory() as profile:
        browser = Chromium(program, Path(profile))
        try:
            browser.look_like(given.width, HEIGHT, "dark" if given.dark else "light")
            (given.out / "live.png").write_bytes(picture(browser, given.runs[:1], given))
            (given.out / "live-two.png").write_bytes(picture(browser, given.runs, given))
        finally:
            browser.close()


def picture(browser: Chromium, folders: list[Path], given: argparse.Namespace) -> bytes:
    """One run's search, or two runs' curves; or the whole page."""
    with open_server(Site([open_run(number, folder) for number, folder in enumerate(folders)]), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.open_url(server.url)
        browser.wait_for(READY)
        if not given.whole and len(folders) == 1:
            browser.run(SEARCH.replace("TEXT", given.text))
            browser.wait_for(READY)
            browser.run("document.getElementById('traces').scrollIntoView()")
        elif not given.whole:
            browser.run(BOTH)
        browser.run("new Promise((done) => setTimeout(done, 800))")  # scrolling is smooth
        made = browser.picture(given.whole)
        server.shutdown()
    return made


if __name__ == "__main__":
    main()
