"""Hostile text, the server that it calls if it runs, and the browser in which it is tried."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator

import pytest
from chromium import Chromium, find_browser

NEEDS_BROWSER = pytest.mark.skipif(
    find_browser() is None and not os.environ.get("COVRL_NEED_BROWSER"),  # set where one was installed for this
    reason="no Chromium here: install one or name it in COVRL_BROWSER, and the pages are tried",
)

HIT = "window.ran=(window.ran||0)+1;fetch('{url}/ran')"
PAYLOADS = (
    "<script>{hit}</script>",
    "</script><script>{hit}</script>",
    "</ScRiPt ><svg/onload=\"{hit}\">",
    "<img src={url}/img onerror=\"{hit}\">",
    "'><img src=x onerror=\"{hit}\">",
    "\"><img src=x onerror=\"{hit}\">",
    "' onmouseover='{hit}' onclick='{hit}' onfocus='{hit}' tabindex='0' x='",
    "\" onmouseover=\"{hit}\" onclick=\"{hit}\" onfocus=\"{hit}\" tabindex=\"0\" x=\"",
    "x onmouseover={hit} onclick={hit} ",
    "` onclick=`{hit}`",
    "<a id=bait href=\"javascript:{hit}\">here</a>",
    "<a href='java\tscript:{hit}'>here</a>",
    "javascript:{hit}//",
    "</style><style>body{{background:url({url}/css)}}*{{display:none}}</style>",
    "<style>@import '{url}/import';</style>",
    "x;background:url({url}/inline)",
    "<link rel=stylesheet href={url}/link><link rel=prefetch href={url}/prefetch>",
    "<iframe srcdoc=\"<script>parent.{hit}</script>\"></iframe><iframe src={url}/frame></iframe>",
    "<object data={url}/object></object><embed src={url}/embed><video src={url}/video autoplay></video>",
    "<base href={url}/><meta http-equiv=refresh content='0;url={url}/refresh'>",
    "<form action={url}/form><input autofocus onfocus=\"{hit}\"><button>go</button></form>",
    "--><script>{hit}</script><!--",
    "</title></textarea></noscript></template></select></svg></math><script>{hit}</script>",
    "<math><mtext><table><mglyph><style><!--</style><img title=\"--&gt;&lt;img src=1 onerror={hit}&gt;\">",
    "&lt;script&gt;{hit}&lt;/script&gt;",
    "&#60;img src=x onerror={hit}&#62;",
    "\\u003cscript\\u003e{hit}\\u003c/script\\u003e",
    "\"}}];{hit}//",
    "'}}];{hit}//\u2028{hit}\u2029</script>",
    "${{{hit}}}{{{{constructor.constructor('{hit}')()}}}}",
    "<svg><use href=\"data:image/svg+xml,<svg id='x'><image href='1' onerror='{hit}'/></svg>#x\">",
    "<details open ontoggle=\"{hit}\"><summary>x</summary></details>",
    "<x onanimationstart=\"{hit}\" style=\"animation-name:x\">\x00\ud800\x1b[2J",
)  # fmt: skip

FOUND = """(() => {
  const every = [...document.querySelectorAll("*")];
  const odd = "img,iframe,object,embed,video,audio,base,link,form:not(.pick),textarea,math,x,use,image";
  return {
    odd: [...document.querySelectorAll(odd)].map((e) => e.outerHTML.slice(0, 200)),
    inputs: document.querySelectorAll("input").length,
    scripts: document.scripts.length,
    styles: document.querySelectorAll("style").length,
    handlers: every.flatMap((e) => e.getAttributeNames().filter((n) => n.startsWith("on"))),
    inline: every.filter((e) => e.hasAttribute("style")).length,
    links: every.flatMap((e) => ["href", "src", "action", "formaction"].map((n) => e.getAttribute(n)))
      .filter((v) => v !== null && !v.startsWith("#")),
    hidden: getComputedStyle(document.body).display,
    text: document.body.textContent,
  };
})()"""
"""What of a page could run, load or take something; ``inputs`` are the fields of a form."""

SHAKE = """(async () => {
  const kinds = ["pointerenter", "mouseover", "mouseenter", "pointermove", "pointerdown", "mousedown", "focus", "blur",
                 "focusin", "click", "keydown", "toggle", "load", "error", "animationstart"];
  for (const round of [0, 1]) {
    for (const select of document.querySelectorAll("select")) {
      for (const option of [...select.options]) {
        select.value = option.value;
        select.dispatchEvent(new Event("change", { bubbles: true }));
      }
    }
    for (const each of document.querySelectorAll("*")) {
      if (each.tagName === "DETAILS") each.open = true;
      for (const kind of kinds) each.dispatchEvent(new MouseEvent(kind, { bubbles: true, cancelable: true }));
      if (each.tagName === "A") each.click();
    }
    await new Promise((done) => setTimeout(done, 150));
  }
  return window.ran || 0;
})()"""


class Server:
    """Writes down whatever anybody asks it for."""

    def __init__(self) -> None:
        asked = self.asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(200)
                self.send_header("Access-Control-Allow-Origin", "*")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    program = find_browser()
    assert program is not None
    made = Chromium(program, tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def attacks(server: Server) -> tuple[str, ...]:
    hit = HIT.format(url=server.url)
    return tuple(payload.format(hit=hit, url=server.url) for payload in PAYLOADS)
