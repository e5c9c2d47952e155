#!/usr/bin/env bash
# webdataset's writer takes a key with dots, and its reader cuts the same name at the first dot: the key
# comes back shortened and the picture under the field "2024.01.jpg", so that "jpg" is missing.
# Seen with webdataset 1.0.2. Cameras and phones write such names.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 webdataset==1.0.2
cd "$work"
venv/bin/python - <<'PYTHON'
import webdataset

print("webdataset", webdataset.__version__)
with webdataset.TarWriter("shard.tar") as shard:
    shard.write({"__key__": "IMG.2024.01", "jpg": b"pixels", "txt": b"a dog"})
(sample,) = webdataset.WebDataset("shard.tar", shardshuffle=False)
fields = {name: value for name, value in sample.items() if not name.startswith("__")}
print("written: key 'IMG.2024.01', fields jpg and txt")
print("read:    key", repr(sample["__key__"]), "fields", ", ".join(fields))
assert sample["__key__"] == "IMG"
assert set(fields) == {"2024.01.jpg", "2024.01.txt"}
PYTHON
