#!/usr/bin/env bash
# The tokenizers of open_clip and of transformers, with one and the same vocabulary, read many captions
# differently: open_clip mends text first (ftfy and HTML entities), transformers does not. A typographic
# apostrophe or quotation mark, which phones and word processors write by themselves, a ligature, a
# full-width letter or "&amp;" becomes other tokens, and so another text feature of the same weights.
# Seen with open_clip_torch 3.3.0 and transformers 5.24.0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check open_clip_torch==3.3.0 transformers==5.24.0
cd "$work"
venv/bin/python - <<'PYTHON'
import gzip
import json
from importlib.metadata import version
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer, default_bpe
from transformers import CLIPTokenizer

print("open_clip_torch", version("open_clip_torch"), "transformers", version("transformers"))
first = SimpleTokenizer()
# The vocabulary that open_clip brings, in the two files that transformers reads.
merges = gzip.open(default_bpe()).read().decode().split("\n")[1 : 49152 - 256 - 2 + 1]
names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
vocabulary = {names.get(token, token): number for token, number in first.encoder.items()}
Path("vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
Path("merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
second = CLIPTokenizer(vocab="vocab.json", merges="merges.txt")


def read(text: str) -> tuple[list[int], list[int]]:
    ids = [i for i in first([text])[0].tolist() if i]
    return ids, second(text)["input_ids"]


for text in ("a photo of a dog", "a child's toy", "naïve café", "São Paulo", "rock & roll", "½ cup"):
    one, other = read(text)
    assert one == other, (text, one, other)
    print(f"{text!r:24} both {len(one) - 2} tokens")
for text in ("a child’s toy", "don’t", "“hello”", "ﬁre truck", "ＡＢＣ", "rock &amp; roll"):
    one, other = read(text)
    assert one != other, text
    words = first.decode(one[1:-1]).strip(), len(one) - 2, len(other) - 2
    print("{!r:24} open_clip reads {!r}, {} tokens; transformers {} tokens".format(text, *words))
assert read("a child’s toy")[0] == read("a child's toy")[0]
PYTHON
