"""What README.md and docs/ tell people to type exists: commands, options, files and imports."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

from pvp_fast.cli.app import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXTRAS = set(importlib.metadata.metadata("pvp_fast").get_all("Provides-Extra") or ())
STOP = re.compile(r"^(\||&&|;|[<>].*|2>.*)$")
BLOCK = re.compile(r"^```(?P<kind>\w+).*?\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, kind: str) -> Iterator[str]:
    for found in BLOCK.finditer(page.read_text(encoding="utf-8")):
        if found["kind"] == kind:
            yield found["body"]


def command_lines(page: Path, program: str) -> Iterator[list[str]]:
    """The words after each call of a program in the page's shell blocks, up to what ends it."""
    for body in blocks(page, "sh"):
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while program in words:
                words = words[words.index(program) + 1 :]
                stops = (i for i, word in enumerate(words) if STOP.match(word))
                yield words[: next(stops, len(words))]


def by_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_commands_parse(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    for words in command_lines(page, "pvp-fast"):
        # A loop's variable stands for a number.
        name, *rest = (re.sub(r"\$\w+", "0", word.rstrip(";")) for word in words)
        assert name in group.commands, f"pvp-fast {name}"
        try:
            group.commands[name].make_context(name, rest)
        except Exception as error:
            pytest.fail(f"pvp-fast {shlex.join(words)}: {getattr(error, 'message', error)}")


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_scripts_exist(page: Path) -> None:
    for words in command_lines(page, "python"):
        if words[0] == "-m":
            path = words[1].replace(".", "/")
            assert (ROOT / f"{path}.py").exists(), words
        elif words[0].endswith(".py"):
            assert (ROOT / words[0]).exists(), words


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_files_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    folders = r"(?:benchmarks|docs|examples|kernels|csrc|tests|pvp_fast)"
    for name in re.findall(rf"`({folders}/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_extras_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for named in re.findall(r"""(?:pvp_fast|["'].)\[([a-z0-9,]+)\]["'`]""", text):
        assert set(named.split(",")) <= EXTRAS, named


def test_every_extra_is_explained() -> None:
    text = (ROOT / "docs" / "how-to" / "install.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", text.partition("## Extras")[2], re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == EXTRAS


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_python_compiles_and_imports_what_there_is(page: Path) -> None:
    for body in blocks(page, "python"):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pvp_fast"):
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{node.module}.{alias.name}"


def test_a_wrong_command_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```sh\npvp-fast tag a \\\n  photos/ --top-k 3 --unknown 2 | head  # why\n```\n"
    )
    (words,) = command_lines(page, "pvp-fast")
    assert words == ["tag", "a", "photos/", "--top-k", "3", "--unknown", "2"]
    group: Any = typer.main.get_command(app)
    with pytest.raises(Exception, match="unknown"):
        group.commands["tag"].make_context("tag", words[1:])


def test_pictures_of_the_pages_are_complete_and_small() -> None:
    """As tools/take_screens.py takes them, each of its width, and dark ones dark."""
    folder = ROOT / "docs" / "screens"
    for page in ("report", "service"):
        for width in (1200, 400):
            light, dark = (
                Image.open(folder / f"{page}-{width}-{scheme}.webp").convert("L")
                for scheme in ("light", "dark")
            )
            assert light.size == dark.size
            assert light.width == width
            assert dark.getpixel((2, 2)) < 64 < 192 < light.getpixel((2, 2))
    assert sum(path.stat().st_size for path in folder.iterdir()) < 600_000
