"""Pages in HTML as tests read them, and as a browser shows them."""

from __future__ import annotations

import html
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """What a test asks of a page: its text, its tables, and whether tags match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.headings: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "h2":
            self.headings.append("")

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        elif "h2" in self.open:
            self.headings[-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def row(self, name: str) -> list[str]:
        """Return the rest of the only row that begins with a name."""
        (found,) = [row[1:] for row in self.rows if row and row[0] == name]
        return found


def look(
    browser: str, page: Path, folder: Path, width: int, *options: str
) -> tuple[str, Any]:
    """Open a page; return its elements after it has loaded, and a picture of it."""
    from PIL import Image

    picture = folder / "page.png"
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--hide-scrollbars",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},5000",
        "--virtual-time-budget=5000",
        *options,
    ]
    url = page.as_uri()
    shot, dom = (
        subprocess.run(
            [*command, how, url],
            capture_output=True,
            timeout=120,
            check=True,
            text=True,
        )
        for how in (f"--screenshot={picture}", "--dump-dom")
    )
    assert picture.exists(), shot.stderr
    with Image.open(picture) as image:
        return dom.stdout, np.asarray(image.convert("RGB")).astype(int)


# What only a script can ask a browser for; the page itself has none, and forbids it.
ASK = """<script>
addEventListener("load", () => {
  const root = document.documentElement;
  const places = (which) => [...document.querySelectorAll(which)].map(
    (one) => [one, one.getBoundingClientRect()]);
  const told = {
    width: innerWidth,
    scrolled: root.scrollWidth,
    beyond: places("body *:not(svg *)").filter(
      ([one, at]) => at.right > innerWidth + 0.5 && !one.closest(".scroll")).length,
    loaded: performance.getEntriesByType("resource").filter(
      (one) => !one.name.startsWith("data:")).length,
    flat: places("svg").filter(([_, at]) => at.height < 60).length,
  };
  parent.document.documentElement.dataset.told = JSON.stringify(told);
});
</script>"""
POLICY = re.compile("<meta http-equiv=[^>]*>")


def measured(
    browser: str, text: str, folder: Path, width: int, *options: str
) -> dict[str, int]:
    """Return what a browser says of a page: widths, what is beyond them, what it loads.

    Windows have a least width, frames in them have none.
    """
    assert len(POLICY.findall(text)) == 1
    asking = html.escape(POLICY.sub("", text).replace("</head>", f"{ASK}</head>"))
    frame = folder / "frame.html"
    frame.write_text(f'<iframe width={width} style="border: 0" srcdoc="{asking}">')
    dom, _ = look(browser, frame, folder, 1300, *options)
    (told,) = re.findall(r'data-told="([^"]*)"', dom)
    found: dict[str, int] = json.loads(html.unescape(told))
    return found
