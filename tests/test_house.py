"""Who may import whom: the layout as rules, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from support.followed import files_of_asl_loss

ROOT = Path(__file__).resolve().parent.parent
HOUSE, TESTS = ROOT / "pvp_fast", ROOT / "tests"
NATIVE = pytest.mark.skipif(not (HOUSE / "native.py").exists(), reason="needs the one door to _C")


def modules(folder: Path, package: str) -> dict[str, Path]:
    """Dotted names of the modules in a folder; a package's own name is its ``__init__``."""
    found = {}
    for path in (*folder.rglob("*.py"), *folder.rglob("*.pyi")):
        name = ".".join((package, *path.relative_to(folder).with_suffix("").parts))
        found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules(HOUSE, "pvp_fast") | modules(ROOT / "kernels", "pvp_fast.kernels")


def imports(name: str, path: Path) -> Iterator[str]:
    """What a module imports, in functions and for type checkers too, from each its module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".")[: (path.stem == "__init__") - node.level or None]
            start = ".".join([*package * bool(node.level), *filter(None, [node.module])])
            for alias in node.names:
                whole = f"{start}.{alias.name}"
                yield whole if whole in MODULES else start


GRAPH = {name: set(imports(name, path)) for name, path in MODULES.items()}


def within(name: str, *rooms: str) -> bool:
    return any(f"{name}.".startswith(f"{room}.") for room in rooms)


def test_no_module_imports_itself_by_way_of_others() -> None:
    order = {name: (found & MODULES.keys()) - {name} for name, found in GRAPH.items()}
    assert len(list(TopologicalSorter(order).static_order())) == len(MODULES)


@pytest.mark.parametrize(
    ("room", "closed", "but"),
    [
        pytest.param("pvp_fast.losses", "pvp_fast.topk", "", marks=NATIVE),
        ("pvp_fast.topk", "pvp_fast.losses", ""),
        ("pvp_fast.clip", "pvp_fast.training", ""),
        ("pvp_fast", "pvp_fast.cli", "pvp_fast.cli pvp_fast.__main__"),
        pytest.param("pvp_fast", "pvp_fast._C", "pvp_fast.native", marks=NATIVE),
        ("pvp_fast", "triton", "pvp_fast.kernels"),
    ],
)
def test_no_door_leads_from_one_room_to_the_other(room: str, closed: str, but: str) -> None:
    inside = {name for name in MODULES if within(name, room) and not within(name, *but.split())}
    assert inside
    assert [n for n in inside if any(within(found, closed) for found in GRAPH[n])] == []


def test_the_root_holds_few_files() -> None:
    assert len([p for p in HOUSE.iterdir() if p.is_file() and p.suffix != ".so"]) <= 12


# What any engine of a loss is reached through, and what it is given.
LOSS = {"losses/asl", "losses/fused", "losses/problem", "dispatch"}


def test_asl_loss_is_followed_through_few_files() -> None:
    """By Triton: fused_interpreter.py. C++ has what all of it stands on in the folder above."""
    assert files_of_asl_loss("torch") == LOSS | {"losses/tiles"}
    native = files_of_asl_loss("native")
    assert native == LOSS | {"losses/native_steps", "native"}
    compiled = {p.name for p in (ROOT / "csrc/loss").iterdir() if not p.name.startswith("softmax")}
    assert compiled == {"bindings.cpp", "loss.h", "rows.cpp"}
    assert len(native) + len(compiled) <= 9


def test_no_test_imports_another() -> None:
    for name, path in modules(TESTS, "tests").items():
        for found in imports(name, path):
            last = found.rpartition(".")[2]
            assert last != "conftest", path
            assert not last.startswith("test_"), path


def test_the_kernels_folder_does_not_pass_for_the_library_of_that_name() -> None:
    """transformers imports whatever is called "kernels" and reads its version."""
    code = (ROOT / "kernels" / "__init__.py").read_text(encoding="utf-8")
    names: dict[str, object] = {"__name__": "kernels"}
    exec(compile(code, "kernels/__init__.py", "exec"), names)
    assert "__version__" not in names
