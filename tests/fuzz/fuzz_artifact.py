"""Damage a saved artifact at random and load it: ArtifactError or the same content, nothing else.

Deterministic in the seed. ``python tests/fuzz/fuzz_artifact.py [seconds] [seed]`` runs it for long.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

import torch

from pvp_fast.artifact import Artifact, TrainingState
from pvp_fast.errors import ArtifactError
from pvp_fast.modules.adapters import DualAdapter
from pvp_fast.modules.scoring import Head
from pvp_fast.vocabulary.categories import Category, Vocabulary


def small_artifact(seed: int = 0) -> Artifact:
    generator = torch.Generator().manual_seed(seed)
    text = torch.nn.functional.normalize(torch.randn(2, 4, generator=generator), dim=-1)
    visual = torch.nn.functional.normalize(torch.randn(2, 1, 4, generator=generator), dim=-1)
    return Artifact(
        vocabulary=Vocabulary((Category("cat", ("kitten",)), Category("dog"))),
        backbone={"name": "pocket", "pretrained": None, "fingerprint": "f" * 8, "embed_dim": 4},
        head=Head.uncalibrated(DualAdapter(text, text, visual)),
        state=TrainingState(text, torch.zeros(2, 1, 3, 2, 2), torch.zeros(2, 4)),
        config={"seed": seed},
    )


def damage(data: bytes, rng: random.Random) -> bytes:
    """Flip, overwrite, cut, insert, duplicate or edit digits and words of the header."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at, size = rng.randrange(len(out) + 1), rng.choice((1, 1, 2, 8, 64))
        kind = rng.randrange(7)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + size] = rng.randbytes(len(out[at : at + size]))
        elif kind == 2:
            del out[at:]
        elif kind == 3:
            out[at:at] = rng.randbytes(size)
        elif kind == 4:
            out[at:at] = out[at : at + size]
        elif kind == 5:
            del out[at : at + size]
        else:
            words = (b"-1", b"null", b"1e999", b"NaN", b"[]", b"{}", b'""', b"9" * 30, b"\xff")
            digits = [i for i, byte in enumerate(out) if chr(byte) in '0123456789"[{']
            if digits:
                start = rng.choice(digits)
                out[start : start + 1] = rng.choice(words)
    return bytes(out)


def fuzz(folder: Path, seed: int, *, cases: int | None = None, seconds: float = 60.0) -> int:
    """Run the given number of cases, or for so many seconds; returns how many ran."""
    artifact = small_artifact()
    artifact.save(folder)
    version, pixels = artifact.version, artifact.training.pixels
    files = sorted(folder.iterdir())
    originals = {path: path.read_bytes() for path in files}
    rng, done, end = random.Random(seed), 0, time.monotonic() + seconds
    while done < cases if cases is not None else time.monotonic() < end:
        path = rng.choice(files)
        data = damage(originals[path], rng)
        path.write_bytes(data)
        try:
            loaded = Artifact.load(folder)
            training = loaded.training
        except ArtifactError:
            pass
        except Exception as error:
            raise AssertionError(f"case {done} of seed {seed}: {path.suffix} {data!r}") from error
        else:
            same = loaded.version == version and torch.equal(training.pixels, pixels)
            if path.suffix == ".safetensors" and not same:
                raise AssertionError(f"case {done} of seed {seed}: other content came back")
        path.write_bytes(originals[path])
        done += 1
    return done


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        limit = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
        start = int(sys.argv[2]) if len(sys.argv) > 2 else 0
        print(fuzz(Path(scratch), start, seconds=limit), "cases, no surprise")
