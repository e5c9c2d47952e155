"""COCO's JSON with labels of whole images: annotations with a category and a score, and no box.

``images`` (``id``, ``file_name`` from the document's folder), ``annotations`` (``id``,
``image_id``, ``category_id``, ``score``) and ``categories`` (``id``, from 1, and ``name``). Tools
that want boxes or masks find none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

from pvp_fast.sinks.document import Rows, json_list, relative


class Coco:
    """The format; see :class:`pvp_fast.sinks.document.Document`.

    Args:
        categories: names in the order of their ids; others that occur follow by name.
    """

    mark = '"description": "tags by pvp_fast'

    def __init__(self, categories: Sequence[str] = ()) -> None:
        self.categories = list(dict.fromkeys(categories))

    def name(self, path: str, folder: str) -> str:
        return relative(path, folder)

    def text(self, rows: Rows, artifact: str) -> Iterator[str]:
        seen = {tag["name"] for row in rows() for tag in row["tags"]}
        names = [*self.categories, *sorted(seen - set(self.categories))]
        ids = {name: number for number, name in enumerate(names, 1)}
        info = {"description": "tags by pvp_fast", "version": artifact}
        categories = [{"id": number, "name": name} for name, number in ids.items()]
        yield f'{{"info": {json.dumps(info)},\n"categories": {json.dumps(categories)},\n"images": '
        yield from json_list(
            {"id": number, "file_name": row["name"]} for number, row in enumerate(rows(), 1)
        )
        yield ',\n"annotations": '
        yield from json_list(_annotations(rows, ids))
        yield "}\n"


def _annotations(rows: Rows, ids: dict[str, int]) -> Iterator[dict[str, Any]]:
    numbers = count(1)
    for image, row in enumerate(rows(), 1):
        for tag in row["tags"]:
            yield {
                "id": next(numbers),
                "image_id": image,
                "category_id": ids[tag["name"]],
                "score": tag["score"],
            }
