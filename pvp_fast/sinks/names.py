"""Names of files and tags in formats that cannot hold every one of them."""

from __future__ import annotations


def plain(key: object, encoding: str = "utf-8") -> str:
    """A name that ``encoding`` can hold; what it cannot hold is written as \\x or \\u escapes.

    File names that are not UTF-8 carry surrogates, which no stream can encode; an ASCII terminal
    cannot encode any accent.
    """
    return str(key).encode(encoding, "backslashreplace").decode(encoding)
