#!/usr/bin/env bash
# Of a folder of photos with the classes bicycle, boat, bus and train, load_dataset("imagefolder") reads the
# trains alone, without an error: it looks for the words train, test and validation in the paths, takes what
# has one for a split, and leaves out all other files. One photo that is called "drug-test.jpg" does the same,
# and so the tags in a metadata.jsonl are lost. data_files={"train": "**"} reads all. Seen with datasets 5.2.0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check datasets==5.2.0 pillow==13.0.0
cd "$work"
HF_HUB_OFFLINE=1 HF_HOME="$work/cache" venv/bin/python - <<'PYTHON'
import json
from pathlib import Path

import datasets
from PIL import Image

datasets.disable_progress_bars()
print("datasets", datasets.__version__)


def folder(name: str, photos: list[str], tags: bool = False) -> str:
    root = Path(name)
    for photo in photos:
        (root / photo).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / photo)
    if tags:
        rows = [{"file_name": photo, "tags": ["sea"]} for photo in photos]
        (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def read(name: str, **options: object) -> dict[str, int]:
    """How many photos of each split; what is known of them."""
    found = datasets.load_dataset("imagefolder", data_dir=name, **options)
    sizes = {split: part.num_rows for split, part in found.items()}
    print(f"{name}: {sizes}, columns {next(iter(found.values())).column_names}, {options}")
    return sizes


photos = [f"{name}/{number}.jpg" for name in ("bicycle", "boat", "bus", "train") for number in range(3)]
assert read(folder("three classes", photos[:9])) == {"train": 9}
assert read(folder("four classes", photos)) == {"train": 3}
assert read("four classes", data_files={"train": "**"}) == {"train": 12}
holiday = ["beach.jpg", "drug-test.jpg", "harbour.jpg"]
assert read(folder("holiday", holiday)) == {"test": 1}
tagged = folder("tagged", holiday, tags=True)
assert read(tagged) == {"test": 1}
assert datasets.load_dataset("imagefolder", data_dir=tagged)["test"].column_names == ["image"]
assert read(tagged, data_files={"train": "**"}) == {"train": 3}
PYTHON
