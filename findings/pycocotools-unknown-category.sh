#!/usr/bin/env bash
# Asked for the images of a category that is not in the file, pycocotools gives every image: getCatIds of an
# unknown name is an empty list, and to getImgIds and getAnnIds an empty list means no filter. Of two names of
# which one is unknown, the other alone decides. And two categories mean images with both to getImgIds, but
# annotations of either to getAnnIds. Seen with pycocotools 2.0.11.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 pycocotools==2.0.11
cd "$work"
venv/bin/python - <<'PYTHON'
import json
from importlib.metadata import version
from pathlib import Path

from pycocotools.coco import COCO

print("pycocotools", version("pycocotools"))
labels = {1: [1], 2: [2], 3: [1, 2], 4: []}
document = {
    "images": [{"id": image, "file_name": f"{image}.jpg"} for image in labels],
    "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
        {"id": 10 * image + category, "image_id": image, "category_id": category}
        for image, categories in labels.items()
        for category in categories
    ],
}
Path("labels.json").write_text(json.dumps(document))
coco = COCO("labels.json")


def images(*names: str) -> list[int]:
    found = sorted(coco.getImgIds(catIds=coco.getCatIds(catNms=list(names))))
    print(f"images of {', '.join(names)}: {found}")
    return found


assert images("dog") == [1, 3]
assert images("zebra") == [1, 2, 3, 4]
assert images("dog", "zebra") == [1, 3]
assert images("dog", "cat") == [3]
either = [coco.anns[found]["image_id"] for found in coco.getAnnIds(catIds=[1, 2])]
print("annotations of dog, cat: of images", either)
assert sorted(set(either)) == [1, 2, 3]
PYTHON
