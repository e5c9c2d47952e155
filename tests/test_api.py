"""The public interface is the one written down in tests/api.txt: a change of it shows in review.

``python tests/test_api.py`` writes the file anew after a change that is meant.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

SNAPSHOT = Path(__file__).with_name("api.txt")
# Everything documented as public. Without an __all__, a module's own names without underscore are.
MODULES = (
    "pvp_fast",
    "pvp_fast.bulk",
    "pvp_fast.clip",
    "pvp_fast.clip.pocket",
    "pvp_fast.demo",
    "pvp_fast.errors",
    "pvp_fast.evaluation",
    "pvp_fast.loaders",
    "pvp_fast.losses",
    "pvp_fast.losses.parallel",
    "pvp_fast.metrics",
    "pvp_fast.modules",
    "pvp_fast.sentences",
    "pvp_fast.serve",
    "pvp_fast.sinks",
    "pvp_fast.tagging",
    "pvp_fast.tagging.discover",
    "pvp_fast.tagging.export",
    "pvp_fast.topk",
    "pvp_fast.training",
    "pvp_fast.vocabulary",
)


def public_names(module: ModuleType) -> list[str]:
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    )


def shown(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def signature(function: Any, *, bound: bool = False) -> str:
    """As in the source, whatever the version of Python; ``bound`` leaves self or cls out."""
    found = inspect.signature(function)
    parameters = list(found.parameters.values())[1 if bound else 0 :]
    words: list[str] = []
    keyword_only = False
    for parameter in parameters:
        stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        if parameter.kind == parameter.KEYWORD_ONLY and not keyword_only:
            words.append("*")
        keyword_only |= parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        word = stars + parameter.name
        if parameter.annotation is not parameter.empty:
            word += f": {shown(parameter.annotation)}"
        if parameter.default is not parameter.empty:
            default = parameter.default
            word += f" = {'<path>' if isinstance(default, Path) else repr(default)}"
        words.append(word)
    result = found.return_annotation
    arrow = "" if result in (found.empty, None, "None") else f" -> {shown(result)}"
    return f"({', '.join(words)}){arrow}"


def members(cls: type) -> Iterator[str]:
    """Constructor, fields, properties and methods that this package defines or inherits from it."""
    own = [base for base in cls.__mro__ if base.__module__.startswith("pvp_fast")]
    names = {name for base in own for name in vars(base) if not name.startswith("_")}
    made = dataclasses.is_dataclass(cls) or any("__init__" in vars(base) for base in own)
    if made and not getattr(cls, "_is_protocol", False):
        yield f"__init__{signature(cls.__init__, bound=True)}"
    for name in sorted(names):
        value = inspect.getattr_static(cls, name)
        if isinstance(value, staticmethod | classmethod):
            kind = type(value).__name__
            yield f"{kind} {name}{signature(value.__func__, bound=kind == 'classmethod')}"
        elif inspect.isfunction(value):
            yield f"{name}{signature(value, bound=True)}"
        elif name in getattr(cls, "__dataclass_fields__", {}):
            continue  # in the constructor
        else:
            yield name


def describe(name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value):
        bases = ", ".join(b.__name__ for b in value.__bases__ if b is not object)
        yield f"class {name}" + (f"({bases})" if bases else "")
        yield from (f"    {member}" for member in members(value))
    elif callable(value):
        yield f"{name}{signature(value)}"
    else:
        yield f"{name} = {value!r}"


def commands() -> Iterator[str]:
    """The command line: every command with its arguments and options."""
    import typer

    from pvp_fast.cli.app import app

    group: Any = typer.main.get_command(app)
    for name, command in sorted(group.commands.items()):
        yield f"pvp-fast {name}"
        for parameter in command.params:
            words = parameter.opts + parameter.secondary_opts
            yield f"    {', '.join(words) if words[0].startswith('-') else parameter.name.upper()}"


def snapshot() -> str:
    lines = ["# The public interface. `python tests/test_api.py` writes this file.", ""]
    for title in MODULES:
        module = importlib.import_module(title)
        lines.append(f"## {title}")
        for name in public_names(module):
            lines += describe(name, getattr(module, name))
        lines.append("")
    return "\n".join([*lines, "## command line", *commands(), ""])


def test_the_public_interface_is_the_one_written_down() -> None:
    kept, now = SNAPSHOT.read_text(encoding="utf-8"), snapshot()
    changes = difflib.unified_diff(kept.splitlines(), now.splitlines(), "api.txt", "now", "", "", 0)
    assert kept == now, "if meant, run python tests/test_api.py\n" + "\n".join(changes)


def test_it_holds_no_address_and_no_path_of_this_machine() -> None:
    assert not re.search(r"0x[0-9a-f]{6}|<object|<function|PosixPath", snapshot())


def test_a_changed_signature_shows() -> None:
    def before(x: int, *, y: float = 1.0) -> int: ...
    def after(x: int, *, y: float = 2.0) -> int: ...

    assert signature(before) == "(x: int, *, y: float = 1.0) -> int"
    assert signature(before) != signature(after)


if __name__ == "__main__":
    SNAPSHOT.write_text(snapshot(), encoding="utf-8")
