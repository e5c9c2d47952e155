"""Pictures of the report and of the service's page: ``python tools/take_screens.py ARTIFACT``.

``ARTIFACT`` is what ``pvp-fast demo`` leaves in the folder ``seed0``. Both pages show the demo's
scenes, each light and dark, 1,200 and 400 pixels wide: eight WebP files in ``docs/screens``. Needs
playwright and a Chromium on PATH.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from pvp_fast.demo import demo_set

OUT = Path(__file__).resolve().parent.parent / "docs" / "screens"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZES = {1200: 800, 400: 860}  # width and height of the window
DROPPED = (2, 0, 1, 7, 4, 5, 6, 8)  # scenes on the service's page
NEW = "kite"  # a category of the artifact, which the service first lacks and then is taught
COMMAND = (sys.executable, "-c", "from pvp_fast.cli import main; main()")


def written_report(artifact: Path, folder: Path) -> str:
    """Address of the gallery of the demo's scenes, with what is in them."""
    page, scenes = folder / "report.html", str(demo_set())
    line = [*COMMAND, "report", str(artifact), scenes, "--labels", scenes, "-o", str(page)]
    subprocess.run([*line, "--title", "150 drawings"], check=True, cwd=folder)
    return page.as_uri()


@contextlib.contextmanager
def service(artifact: Path, folder: Path) -> Iterator[str]:
    """Address of a service that takes new categories, while it runs."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    without = folder / "without"
    line = [*COMMAND, "remove-category", str(artifact), NEW, "--out", str(without)]
    subprocess.run(line, check=True, cwd=folder)
    line = [*COMMAND, "serve", str(without), "--port", str(port), "--max-added", "9"]
    process = subprocess.Popen(line, cwd=folder)
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("GET", "/healthz")
                if connection.getresponse().status == 200:
                    yield f"http://127.0.0.1:{port}/"
                    return
            time.sleep(0.2)
        raise SystemExit("the service ended")
    finally:
        process.kill()
        process.wait()


def keep(tab: Any, name: str) -> None:
    """Both widths and both schemes of a page, as they stand there."""
    for width, height in SIZES.items():
        tab.set_viewport_size({"width": width, "height": height})
        for scheme in ("light", "dark"):
            tab.emulate_media(color_scheme=scheme)
            tab.evaluate("scrollTo(0, 0)")
            tab.wait_for_timeout(500)  # pictures that came into view
            picture = Image.open(io.BytesIO(tab.screenshot()))
            path = OUT / f"{name}-{width}-{scheme}.webp"
            picture.convert("RGB").save(path, quality=80, method=6)
            print(path.name, f"{path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path)
    artifact = parser.parse_args().artifact.resolve()
    binary = next(filter(None, map(shutil.which, BROWSERS)), None)
    if binary is None:
        raise SystemExit(f"put a browser on PATH: one of {', '.join(BROWSERS)}")
    OUT.mkdir(exist_ok=True)
    scenes = sorted(demo_set().glob("*.jpg"))
    with (
        tempfile.TemporaryDirectory() as name,
        sync_playwright() as play,
        service(artifact, Path(name)) as address,
    ):
        flags = ["--no-sandbox", "--disable-gpu"]
        browser = play.chromium.launch(executable_path=binary, args=flags)
        tab = browser.new_page()
        tab.set_default_timeout(120_000)
        tab.goto(written_report(artifact, Path(name)))
        keep(tab, "report")
        tab.goto(address)
        tab.set_input_files("#files", [scenes[number] for number in DROPPED])
        tab.get_by_text(f"{len(DROPPED)} tagged").wait_for()
        tab.locator("#name").fill(NEW)
        tab.keyboard.press("Enter")
        tab.locator(".card li.new").first.wait_for()
        tab.get_by_text(f"{len(DROPPED)} tagged").wait_for()
        tab.evaluate("document.activeElement.blur()")
        keep(tab, "service")
        browser.close()


if __name__ == "__main__":
    main()
