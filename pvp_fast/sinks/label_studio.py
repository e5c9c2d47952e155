"""Label Studio: a JSON list of tasks, each with the tags as a prediction to correct.

Images are named as Label Studio's local storage serves them, from the folder of the output, which
must be its ``LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT``. The labelling configuration that fits is
:func:`label_config`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from pvp_fast.sinks.document import Rows, below, json_list


class LabelStudio:
    """The format; see :class:`pvp_fast.sinks.document.Document`."""

    mark = "/data/local-files/?d="

    def name(self, path: str, folder: str) -> str:
        return below(path, folder)

    def text(self, rows: Rows, artifact: str) -> Iterator[str]:
        yield from json_list(_task(row, artifact) for row in rows())
        yield "\n"


def _task(row: dict[str, Any], artifact: str) -> dict[str, Any]:
    """Scores are in the task's data, where a choice has no room for its own."""
    tags = row["tags"]
    choices = {
        "from_name": "tags",
        "to_name": "image",
        "type": "choices",
        "value": {"choices": [tag["name"] for tag in tags]},
    }
    prediction = {
        "model_version": f"pvp_fast {artifact}",
        "score": max((tag["score"] for tag in tags), default=0.0),
        "result": [choices] if tags else [],
    }
    image = f"/data/local-files/?d={quote(row['name'])}"
    return {"data": {"image": image, "scores": tags}, "predictions": [prediction]}


def label_config(names: Iterable[str]) -> str:
    """Label Studio's labelling configuration for these categories."""
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in names)
    return (
        '<View>\n  <Image name="image" value="$image"/>\n'
        f'  <Choices name="tags" toName="image" choice="multiple">\n{choices}\n'
        "  </Choices>\n</View>\n"
    )
