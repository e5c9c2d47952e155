"""``metadata.jsonl``, with which the ImageFolder of Hugging Face ``datasets`` reads a folder.

One line an image: ``{"artifact", "file_name", "settings", "tags": [{"name", "score"}, …]}``.
``file_name`` starts from the file's own folder, below which all images must lie: the reader refuses
names that lead out of it, and any with ``://``. It takes types from the first lines and opens what
is named, so every line has the same fields and an image that cannot be read has none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from pvp_fast.sinks.document import Rows, below

NAME = "metadata.jsonl"


class ImageFolder:
    """The format; see :class:`pvp_fast.sinks.document.Document`."""

    mark = '{"artifact": "'

    def name(self, path: str, folder: str) -> str:
        name = below(path, folder)
        if "://" in name:
            raise ValueError("its name has '://', which ImageFolder refuses; rename it")
        return name

    def text(self, rows: Rows, artifact: str) -> Iterator[str]:
        for row in rows():
            line = {"artifact": artifact, "file_name": row["name"], "settings": row["settings"]}
            yield json.dumps({**line, "tags": row["tags"]}) + "\n"
