"""Why a file of weights could not be loaded, in one sentence in place of its reader's pages."""

from __future__ import annotations

import re
from pathlib import Path

_SHOWN = 3  # names of weights in a message
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_AROUND = re.compile(r"(model|net|network|module|ema|weights|params)(_\w+)?")  # as trainers save
_LISTS = {"Missing": "lacks", "Unexpected": "holds besides"}


def what_ails(path: Path, told: str) -> str:
    """What is wrong with the weights in ``path``, whose reader said ``told``."""
    with path.open("rb") as stream:
        head = stream.read(64)
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS and not the weights: git lfs pull fetches them"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page and not the weights: download them again"
    is_safetensors = head[8:9] == b"{"
    if path.suffix == ".safetensors" and head.startswith((_ZIP, _PICKLE)):
        return "it is a torch file by its content: give it the ending .pt"
    if path.suffix != ".safetensors" and is_safetensors:
        return "it is a safetensors file by its content: give it the ending .safetensors"
    if "Weights only load failed" in told:
        return (
            "it holds Python objects besides tensors, as a whole module does: where you trust the "
            "file, torch.save(model.state_dict(), 'w.pt') and load that"
        )
    if "Error(s) in loading state_dict" in told:
        return _names_that_differ(told)
    return told.splitlines()[0].rstrip(".")


def _names_that_differ(told: str) -> str:
    """Shorten torch's list of names that are missing, not expected or of another shape."""
    names = {
        kind: re.findall(r'"([^"]+)"', found.group(1)) if found else []
        for kind in _LISTS
        for found in [re.search(rf"{kind} key\(s\) in state_dict: (.*)", told)]
    }
    prefix = _prefix(names["Missing"], names["Unexpected"])
    if prefix is not None:
        return (
            f"the names of its weights begin with {prefix!r}: save {{name.rpartition({prefix!r})[2]"
            ": weight} and load that"
        )
    around = [name for name in names["Unexpected"] if _AROUND.fullmatch(name)]
    if around and names["Missing"]:
        return f"its weights lie under {around[0]!r}: save file[{around[0]!r}] and load that"
    parts = [
        f"it {verb} {len(names[kind])} weights, {', '.join(names[kind][:_SHOWN])}"
        + (" among them" if len(names[kind]) > _SHOWN else "")
        for kind, verb in _LISTS.items()
        if names[kind]
    ]
    shapes = re.findall(
        r"size mismatch for (\S+): .*?torch\.Size\(\[(.*?)\]\).*?torch\.Size\(\[(.*?)\]\)", told
    )
    if shapes:
        name, theirs, ours = shapes[0]
        parts.append(
            f"{len(shapes)} of another shape, {name} ({theirs}) where it is ({ours}) among them"
        )
    return "; ".join(parts) or told.splitlines()[0]


def _prefix(missing: list[str], unexpected: list[str]) -> str | None:
    """What stands before every name, if without it they are those that are missing."""
    parts = unexpected[0].split(".")[:-1] if missing and unexpected else []
    for count in range(len(parts), 0, -1):
        prefix = ".".join(parts[:count]) + "."
        if set(missing) <= {name.removeprefix(prefix) for name in unexpected}:
            return prefix
    return None
