"""JSON lines: one object an image.

``{"image": path, "tags": [{"name", "score"}, …], "artifact": version}``, and ``"error"`` with the
reason where the image could not be read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pvp_fast.errors import SinkError

if TYPE_CHECKING:
    from pvp_fast.tagging.tagger import TagResult


class JsonLines:
    """The format; see :class:`pvp_fast.sinks.lines.Lines`."""

    header = ""

    def __init__(self, artifact: str) -> None:
        self.artifact = artifact

    def key(self, key: str) -> str:
        return key  # JSON escapes whatever a file name can hold

    def block(self, result: TagResult) -> str:
        line: dict[str, object] = {
            "image": result.image,
            "tags": [{"name": t.name, "score": round(t.score, 6)} for t in result.tags],
            "artifact": self.artifact,
        }
        if result.error is not None:
            line["error"] = result.error
        return json.dumps(line, ensure_ascii=True) + "\n"

    def scan(self, stream: IO[bytes], path: Path) -> tuple[set[str], int]:
        keys: set[str] = set()
        end = 0
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                break  # cut off by a crash
            end += len(line)
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                image, artifact = entry["image"], entry.get("artifact")
                if not isinstance(image, str):
                    raise TypeError("image is no string")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise SinkError(
                    f"{path}, line {number} is no line of tags ({error!r}); repair or remove it, "
                    "or give another file"
                ) from error
            if artifact == self.artifact:
                keys.add(image)
        return keys, end
