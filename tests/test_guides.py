"""Every command and every line of Python of the three readers' pages, run in their order.

Two things are other than on the page: names go to the pocket model, which is there without a
network, and a training makes two steps with few sentences.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.waiting import PATIENCE

from pvp_fast.demo import demo_set

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PVP_FAST = """#!/usr/bin/env bash
words=()
while [ $# -gt 0 ]; do
    case $1 in
        --vocabulary) words+=(--vocabulary "$2"); shift; [ -e "$1" ] && words+=(--model pocket) ;;
        --grammar) words+=(--grammar 150 --steps 2 --quiet); shift ;;
        *) words+=("$1") ;;
    esac
    shift
done
exec PYTHON -c 'from pvp_fast.cli import main; main()' "${words[@]}"
"""

# The tests run in what is installed; a reader needs what is there, and there is no release yet.
PIP = """#!/usr/bin/env bash
[[ $1 = install && $2 = ".["*"]" ]] || { echo "pip $*: not the checkout" >&2; exit 1; }
"""


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with photos, labelled scenes and the programs that the pages call."""
    shutil.copytree(demo_set(), tmp_path / "scenes")
    (tmp_path / "photos").mkdir()
    for path in sorted(demo_set().glob("*.jpg"))[:6]:
        shutil.copy(path, tmp_path / "photos")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "pip").write_text(PIP)
    (programs / "pvp-fast").write_text(PVP_FAST.replace("PYTHON", sys.executable))
    (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    return tmp_path


@pytest.mark.skipif(sys.platform == "win32", reason="the pages are for a POSIX shell")
@pytest.mark.parametrize("name", ["for-engineers", "for-researchers", "for-archives"])
def test_a_page_runs_from_install_to_done(desk: Path, name: str) -> None:
    if name == "for-archives":
        pytest.importorskip("lxml")
    if name == "for-engineers":
        pytest.importorskip("uvicorn")
        if not shutil.which("curl") or not shutil.which("openssl"):
            pytest.skip("needs curl and openssl")
    text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    lines = ["trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for number, (kind, body) in enumerate(BLOCK.findall(text)):
        if kind == "python":
            (desk / f"{number}.py").write_text(body)
            body = f"python {number}.py\n"
        lines.append(body.replace("8000", str(port)))
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", "\n".join(lines)],
        cwd=desk,
        env={**os.environ, "PATH": f"{desk / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    made = {path.name for path in desk.iterdir()}
    if name == "for-engineers":
        assert {"tags.jsonl", "tagged"} <= made
        assert 'outcome="tagged"' in done.stdout
    elif name == "for-researchers":
        assert "mAP" in done.stdout
        assert "ladder.json" in made
    else:
        assert {"report.html", "tags.db", "tags.csv"} <= made
        assert not list((desk / "photos").glob("*.xmp"))  # all taken back
        assert "xmp (new)" in done.stdout
