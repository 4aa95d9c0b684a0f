"""Look at a page as a reader's browser shows it: Chromium, headless, with a profile of its own, run as a subprocess."""

import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "headless_shell")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--enable-logging=stderr", "--v=0"),
)


def find_chromium() -> str | None:
    """Return the path of a Chromium: that in CHROMIUM, or the first one installed; None where there is none."""
    return os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)


needs_browser = [
    pytest.mark.needs_browser,
    pytest.mark.skipif(
        find_chromium() is None, reason="needs_browser: no Chromium is installed, nor named in CHROMIUM"
    ),
]
"""Marks of a test that looks at a page."""


@dataclass(frozen=True)
class Seen:
    """What a page came to: what the probe returned, and every line that the page wrote to the console."""

    value: Any
    console: tuple[str, ...]


def look(page: str, probe: str, width_px: int, height_px: int = 900, timeout_s: float = 60) -> Seen:
    """Show HTML in a frame `width_px` wide; when it and all its images are loaded, return what `probe` gives.

    `probe` is the body of a JavaScript function of `document`, the frame's; its result is JSON. The page's own
    Content-Security-Policy holds inside of the frame only, so the probe stays outside. A script that does run in the
    page can set `parent.harmed`, which is then in the console.
    """
    function = json.dumps(probe).replace("</", r"<\/")
    wrapper = f"""<!doctype html><meta charset="utf-8"><body style="margin:0">
        <script>
        function seen(frame) {{
          const probe = new Function("document", {function});
          const out = document.createElement("pre");
          out.id = "out";
          out.textContent = JSON.stringify(probe(frame.contentDocument));
          if (window.harmed) console.error("harmed: " + window.harmed);
          document.body.append(out);
        }}
        </script>
        <iframe onload="seen(this)" style="border:0;width:{width_px}px;height:{height_px}px"
          srcdoc="{html.escape(page)}"></iframe>"""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(wrapper, encoding="utf-8")
        done = _run("--dump-dom", path.as_uri(), timeout_s=timeout_s)
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the page never finished loading: {done.stderr[-2000:]}"
    console = tuple(line for line in done.stderr.splitlines() if ":CONSOLE" in line)
    return Seen(json.loads(html.unescape(found[1])), console)


def screenshot(
    page: str, width_px: int = 1280, height_px: int = 900, dark: bool = False, timeout_s: float = 60
) -> bytes:
    """Return a PNG of the top of a page."""
    with tempfile.TemporaryDirectory() as folder:
        path, picture = Path(folder) / "page.html", Path(folder) / "page.png"
        path.write_text(page, encoding="utf-8")
        scheme = ("--blink-settings=preferredColorScheme=0",) if dark else ()
        _run(
            *scheme,
            f"--window-size={width_px},{height_px}",
            f"--screenshot={picture}",
            path.as_uri(),
            timeout_s=timeout_s,
        )
        return picture.read_bytes()


def print_to_pdf(page: str, timeout_s: float = 60) -> bytes:
    """Return a page as the browser prints it."""
    with tempfile.TemporaryDirectory() as folder:
        path, paper = Path(folder) / "page.html", Path(folder) / "page.pdf"
        path.write_text(page, encoding="utf-8")
        _run("--no-pdf-header-footer", f"--print-to-pdf={paper}", path.as_uri(), timeout_s=timeout_s)
        return paper.read_bytes()


def _run(*arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    chromium = find_chromium()
    assert chromium is not None, "mark the test with `needs_browser`"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [chromium, *FLAGS, f"--user-data-dir={profile}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=True)
