"""FiftyOne's ``FiftyOneImageClassificationDataset``: labels and confidences under absolute paths.

Every image has a list, also of one tag or none, so that all of them become ``Classifications``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from pvp_fast.sinks.document import Rows


class FiftyOne:
    """The format; see :class:`pvp_fast.sinks.document.Document`."""

    mark = '{"classes": null, "labels": {'

    def name(self, path: str, folder: str) -> str:
        if not os.path.isfile(path):
            raise ValueError("no file of its own, which this format names")
        return path

    def text(self, rows: Rows, artifact: str) -> Iterator[str]:
        yield self.mark
        between = "\n"
        for row in rows():
            found = [{"label": t["name"], "confidence": t["score"]} for t in row["tags"]]
            yield f"{between}{json.dumps(row['name'])}: {json.dumps(found)}"
            between = ",\n"
        yield "\n}}\n"
