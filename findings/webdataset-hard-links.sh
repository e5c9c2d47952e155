#!/usr/bin/env bash
# webdataset passes over the hard links of a tar file without a word. `tar` itself makes them: the second
# name of a file that has two is stored as a link to the first. That sample is missing, and no error.
# Seen with webdataset 1.0.2. De-duplicated collections are full of such names.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 webdataset==1.0.2
cd "$work"
venv/bin/python - <<'PYTHON'
import os
import tarfile

import webdataset

print("webdataset", webdataset.__version__)
for name, data in (("a.jpg", b"one"), ("c.jpg", b"two")):
    with open(name, "wb") as stream:
        stream.write(data)
os.link("a.jpg", "b.jpg")
with tarfile.open("shard.tar", "w") as shard:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        shard.add(name)
with tarfile.open("shard.tar") as shard:
    stored = [(member.name, "hard link" if member.islnk() else "file") for member in shard]
keys = [sample["__key__"] for sample in webdataset.WebDataset("shard.tar", shardshuffle=False)]
print("stored:", stored)
print("read:  ", keys)
assert ("b.jpg", "hard link") in stored
assert keys == ["a", "c"]
PYTHON
