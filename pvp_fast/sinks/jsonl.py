"""JSON lines: one object an image.

``{"image": path, "tags": [{"name", "score"}, …], "artifact": version}``, ``"error"`` with the
reason where the image could not be read, and what going on needs: ``"settings"``, and of a file
its ``"size"``, ``"mtime_ns"`` and, where ``"image"`` is not that, its absolute ``"path"``.

Earlier versions wrote none of the last, and the first of them ``"key"`` for ``"image"``: such lines
are read as made with settings that nobody knows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pvp_fast.errors import SinkError
from pvp_fast.sinks.ledger import Record
from pvp_fast.sinks.lines import Row

if TYPE_CHECKING:
    from pvp_fast.tagging.tagger import TagResult


class JsonLines:
    """The format; see :class:`pvp_fast.sinks.lines.Lines`."""

    header = ""

    def __init__(self, artifact: str) -> None:
        self.artifact = artifact

    def block(self, result: TagResult, record: Record) -> str:
        # JSON escapes whatever a file name can hold.
        return json.dumps(self.entry(result, record), ensure_ascii=True) + "\n"

    def entry(self, result: TagResult, record: Record) -> dict[str, object]:
        """One image's object."""
        line: dict[str, object] = {
            "image": result.image,
            "tags": [{"name": t.name, "score": round(t.score, 6)} for t in result.tags],
            "artifact": self.artifact,
        }
        if result.error is not None:
            line["error"] = result.error
        return line | {k: v for k, v in record.to_dict(result.image).items() if v is not None}

    def scan(self, stream: IO[bytes], path: Path) -> Iterator[Row]:
        end = 0
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                break  # cut off by a crash
            end += len(line)
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                image = entry["image"] if "image" in entry else entry["key"]
                artifact, error = entry["artifact"], entry.get("error")
                if not isinstance(image, str) or not isinstance(error, str | None):
                    raise TypeError("image or error is no string")
                record = Record.from_dict(image, {"settings": "", **entry}, error)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as wrong:
                raise SinkError(
                    f"{path}, line {number} is no line of tags ({wrong!r}); repair or remove it, "
                    "or give another file"
                ) from wrong
            yield Row(image, str(artifact), record, end)
