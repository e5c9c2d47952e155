"""Image streams: every listed image once, bad ones named, resumed exactly, closed cleanly."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.image_files import encoded, photo_turned, scene, spoiled, unusual, write_shard

from pvp_fast.clip.preprocess import Preprocess
from pvp_fast.errors import InputError
from pvp_fast.loaders import (
    OPEN_CLIP,
    Augment,
    Failure,
    FileSource,
    ImageStream,
    ListSource,
    TarSource,
)
from pvp_fast.loaders.decode import Jpeg, decode, fetch
from pvp_fast.loaders.samples import Sample
from pvp_fast.loaders.shards import expand_braces
from pvp_fast.pictures import open_image

SMALL = Preprocess(32)
pytest.importorskip("simplejpeg", reason="finding damaged bodies needs simplejpeg")
NEEDS_DALI = pytest.mark.skipif(
    find_spec("nvidia") is None or find_spec("nvidia.dali") is None,
    reason="needs nvidia-dali (pip install 'pvp_fast[dali]')",
)
BACKENDS = ["torch", pytest.param("dali", marks=NEEDS_DALI)]


def write_files(folder: Path, files: list[tuple[str, bytes, str]]) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name, data, _ in files:
        (folder / name).write_bytes(data)
    return [folder / name for name, _, _ in files]


def drain(stream: ImageStream) -> list[str]:
    return [key for batch in stream for key in batch.keys]


def levels(pixels: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """Normalised pixels as 8-bit levels."""
    return preprocess.denormalize(pixels) * 255


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["files", "shards", "items"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_tenth_of_bad_files_loses_nothing_else(
    tmp_path: Path, backend: str, kind: str, shuffle: bool
) -> None:
    files = spoiled(160)
    source: object
    if kind == "files":
        source = [*write_files(tmp_path / "in", files), tmp_path / "missing.jpg"]
        files = [*files, ("missing.jpg", b"", "no such file")]
    elif kind == "shards":
        for shard in range(2):
            part = {name: data for name, data, _ in files[shard * 80 : shard * 80 + 80]}
            write_shard(tmp_path / f"s-{shard:03d}.tar", part)
        source = str(tmp_path / "s-{000..001}.tar")
        files = [(name.removesuffix(".jpg"), data, reason) for name, data, reason in files]
    else:
        if shuffle:
            pytest.skip("items of an iterator come in their own order")
        source = ((name, data) for name, data, _ in files)
    heard: list[Failure] = []
    with ImageStream(
        source, SMALL, 16, backend=backend, shuffle=shuffle, on_failure=heard.append
    ) as stream:
        batches = list(stream)
    keys = [Path(key).name for batch in batches for key in batch.keys]
    expected = [name for name, _, reason in files if not reason]
    assert sorted(keys) == sorted(expected)
    assert (keys == expected) == (not shuffle)
    reasons = {name: reason for name, _, reason in files if reason}
    assert {Path(f.key).name for f in stream.failures} == set(reasons)
    for failure in stream.failures:
        assert reasons[Path(failure.key).name] in failure.reason
    assert heard == stream.failures
    assert stream.read + stream.failed == stream.listed == len(files)
    data = {name: data for name, data, _ in files}
    for batch in batches:  # the pixels are those of the key, not of a neighbour
        for key, pixels in zip(batch.keys, batch.pixels, strict=True):
            reference = SMALL(open_image(data[Path(key).name]))
            assert (levels(pixels, SMALL) - levels(reference, SMALL)).abs().max() <= 13


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_sort_of_image_has_open_clips_pixels(backend: str) -> None:
    preprocess = Preprocess(224)
    files = unusual(scene(320, 240))
    with ImageStream(
        list(files.items()), preprocess, 9, backend=backend, pictures=OPEN_CLIP
    ) as stream:
        found = {k: p for b in stream for k, p in zip(b.keys, b.pixels, strict=True)}
    assert list(found) == list(files)
    differences = []
    for name, data in files.items():
        reference = preprocess(Image.open(io.BytesIO(data)).convert("RGB"), OPEN_CLIP)
        difference = (levels(found[name], preprocess) - levels(reference, preprocess)).abs()
        assert difference.max() <= 13, name
        differences.append(difference.mean())
    assert torch.stack(differences).mean() <= (0.02 if backend == "torch" else 0.1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("augmented", [False, True])
def test_turned_photos_have_the_pixels_of_the_photo_upright(
    backend: str, mode: str, augmented: bool
) -> None:
    """Wide, tall and a ribbon, in all eight orientations, EXIF of either byte order."""
    shapes = {"wide": (320, 200), "tall": (150, 330), "ribbon": (1280, 20)}
    turned, straight = [], []
    for name, size in shapes.items():
        photo = scene(*size)
        for number in range(1, 9):
            key = f"{name} {number}"
            turned.append((key, photo_turned(photo, number, ">" if number % 2 else "<")))
            straight.append((key, encoded(photo, quality=95)))
    options: dict = {"backend": backend, "mode": mode, "seed": 3}
    if augmented:
        options["augment"] = Augment(scale=(0.3, 1.0))
    pixels = []
    for items in (turned, straight):
        with ImageStream(items, SMALL, 7, **options) as stream:
            pixels.append(torch.cat([batch.pixels for batch in stream]))
        assert stream.failures == []
    gaps = (levels(pixels[0], SMALL) - levels(pixels[1], SMALL)).abs()
    for (key, _), gap in zip(turned, gaps, strict=True):
        # The JPEGs differ: their blocks lie elsewhere. A wrong turn is off by 40 levels and more.
        assert gap.mean() < (3 if mode == "exact" else 16), key
    if not augmented and mode == "exact":
        with ImageStream(turned, SMALL, 7, **options, pictures=OPEN_CLIP) as stream:
            as_stored = torch.cat([batch.pixels for batch in stream])
        gaps = (levels(pixels[1], SMALL) - levels(as_stored, SMALL)).abs().mean((1, 2, 3))
        assert [key[-1] for (key, _), gap in zip(turned, gaps, strict=True) if gap < 3] == ["1"] * 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_photos_have_open_clips_pixels(shared_data: Path, backend: str) -> None:
    transform_module = pytest.importorskip("open_clip.transform")
    preprocess = Preprocess(224)
    config = transform_module.PreprocessCfg(
        size=224, mean=preprocess.mean, std=preprocess.std, interpolation="bicubic"
    )
    transform = transform_module.image_transform_v2(config, is_train=False)
    paths = sorted((shared_data / "photos").glob("*.jpg"))[:200]
    largest, total = 0.0, 0.0
    with ImageStream(paths, preprocess, 20, backend=backend) as stream:
        for batch in stream:
            reference = torch.stack([transform(Image.open(key)) for key in batch.keys])
            gap = (levels(batch.pixels, preprocess) - levels(reference, preprocess)).abs()
            largest = max(largest, gap.max().item())
            total += gap.mean().item() * len(batch)
    assert stream.read == 200
    assert largest <= (3 if backend == "torch" else 13)
    assert total / 200 <= (0.01 if backend == "torch" else 0.05)


@pytest.mark.parametrize("options", [{"resize_mode": "squash"}, {"interpolation": "bilinear"}])
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_geometries(backend: str, options: dict[str, str]) -> None:
    preprocess = Preprocess(64, **options)
    data = encoded(scene(200, 150))
    with ImageStream([("a", data)], preprocess, backend=backend) as stream:
        (batch,) = stream
    difference = levels(batch.pixels[0], preprocess) - levels(
        preprocess(open_image(data)), preprocess
    )
    assert difference.abs().max() <= 4


def test_fast_mode_is_near_and_only_by_choice() -> None:
    data = encoded(scene(640, 480))
    exact, fast = (
        next(iter(ImageStream([("a", data)], SMALL, mode=mode))).pixels
        for mode in ("exact", "fast")
    )
    assert not torch.equal(exact, fast)
    assert (levels(exact, SMALL) - levels(fast, SMALL)).abs().mean() < 8


@pytest.mark.parametrize(
    ("least", "shape"),
    [
        ((0, 0), (480, 640)),
        ((400, 300), (480, 640)),  # not 5/8, which takes longer than all of it
        ((320, 240), (240, 320)),
        ((320, 241), (480, 640)),
        ((170, 130), (180, 240)),
        ((8, 8), (60, 80)),
    ],
)
def test_fast_decoding_is_at_a_half_or_less(least: tuple[int, int], shape: tuple[int, int]) -> None:
    found = fetch(Sample("a", encoded(scene(640, 480))))
    assert isinstance(found, Jpeg)
    assert decode(found, least).shape == (*shape, 3)


@NEEDS_DALI
def test_augmentation_is_a_function_of_seed_epoch_and_place() -> None:
    items = [(str(n), encoded(scene(120, 90, n))) for n in range(12)]
    augment = Augment(scale=(0.3, 1.0))

    def run(
        backend: str = "torch", workers: int = 2, seed: int = 0, **options: int
    ) -> torch.Tensor:
        with ImageStream(
            items, SMALL, 5, backend=backend, workers=workers, seed=seed, augment=augment, **options
        ) as stream:
            return torch.cat([batch.pixels for batch in stream])

    first = run()
    assert torch.equal(first, run(workers=1, prefetch=0))
    assert not torch.equal(first, run(seed=1))
    assert not torch.equal(first, run(epoch=1))
    assert (levels(first, SMALL) - levels(run("dali"), SMALL)).abs().mean() < 0.5
    plain = torch.stack([SMALL(open_image(data)) for _, data in items])
    assert (levels(first, SMALL) - levels(plain, SMALL)).abs().mean() > 2


@NEEDS_DALI
def test_a_pipeline_that_dies_is_rebuilt_and_only_the_culprit_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pvp_fast.loaders import dali as dali_backend

    good = {str(n): encoded(scene(100, 80, n)) for n in range(9)}
    items = [*good.items(), ("bad", encoded(scene(90, 90))[:300])]
    items[4], items[9] = items[9], items[4]
    # Without the check the damaged file reaches DALI itself.
    monkeypatch.setattr(dali_backend, "check_body", lambda jpeg: None)
    with ImageStream(items, SMALL, 10, backend="dali") as stream:
        assert drain(stream) == [key for key, _ in items if key != "bad"]
    assert [f.key for f in stream.failures] == ["bad"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_resuming_yields_exactly_the_rest(tmp_path: Path, backend: str, stop: int) -> None:
    files = spoiled(60)
    write_files(tmp_path / "in", files)
    options = {"backend": backend, "shuffle": True, "seed": 5, "epoch": 2}
    with ImageStream(tmp_path / "in", SMALL, 7, **options) as stream:
        whole = drain(stream)
        failures = list(stream.failures)
    first = ImageStream(tmp_path / "in", SMALL, 7, **options)
    seen: list[str] = []
    with first:
        for number, batch in enumerate(first):
            if number == stop:
                break
            seen += batch.keys
            state = json.loads(json.dumps(first.state_dict()))
        else:
            raise AssertionError
        if stop == 0:
            state = ImageStream(tmp_path / "in", SMALL, 7, **options).state_dict()
    with ImageStream(tmp_path / "in", SMALL, 9, **options) as second:
        second.load_state_dict(state)
        assert seen + drain(second) == whole
        assert second.failures == failures
        assert second.read + second.failed == second.listed == 60


def test_a_broken_off_loop_goes_on_and_then_comes_the_next_epoch() -> None:
    data = encoded(scene(40, 30))
    with ImageStream([(str(n), data) for n in range(10)], SMALL, 3, shuffle=True) as stream:
        for batch in stream:
            first = list(batch.keys)
            break
        first += drain(stream)
        assert (stream.epoch, sorted(first)) == (0, [str(n) for n in range(10)])
        second = drain(stream)
        assert (stream.epoch, sorted(second)) == (1, sorted(first))
        assert second != first


def test_a_killed_run_resumes_from_its_saved_state(tmp_path: Path) -> None:
    files = spoiled(80)
    write_files(tmp_path / "in", files)
    code = """
import json, os, sys
from pathlib import Path
from pvp_fast.files import atomic_write
from pvp_fast.loaders import ImageStream
from pvp_fast.clip.preprocess import Preprocess
stream = ImageStream(sys.argv[1], Preprocess(32), 4, shuffle=True, workers=2)
done = []
for batch in stream:
    done += batch.keys
    with atomic_write(sys.argv[2], "w") as out:
        json.dump({"done": done, "state": stream.state_dict()}, out)
    if len(done) > 30:
        print("far enough", flush=True)
        sys.stdin.read()
"""
    saved = tmp_path / "state.json"
    run = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "in"), str(saved)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "far enough\n"
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    record = json.loads(saved.read_text())
    with ImageStream(tmp_path / "in", SMALL, 4, shuffle=True) as stream:
        stream.load_state_dict(record["state"])
        rest = drain(stream)
    names = sorted(Path(key).name for key in record["done"] + rest)
    assert names == sorted(name for name, _, reason in files if not reason)
    assert stream.read + stream.failed == 80


@pytest.mark.parametrize("cut", ["member", "header", "boundary", "garbage"])
def test_a_broken_shard_costs_only_what_it_lost(tmp_path: Path, cut: str) -> None:
    data = encoded(scene(64, 48))
    names = [f"{n:03d}.jpg" for n in range(10)]
    whole, broken = tmp_path / "b.tar", tmp_path / "a.tar"
    for path in (whole, broken):
        write_shard(path, dict.fromkeys(names, data))
    step = 512 + -(-len(data) // 512) * 512
    raw = bytearray(broken.read_bytes())
    if cut == "garbage":
        raw[6 * step : 6 * step + 512] = b"\x55" * 512
    at = {"member": 6 * step + 700, "header": 6 * step + 100, "boundary": 6 * step}.get(cut)
    broken.write_bytes(raw[:at])
    with ImageStream([str(broken), str(whole)], SMALL, 4) as stream:
        keys = drain(stream)
    assert keys == [f"{broken}/{n[:-4]}" for n in names[:6]] + [f"{whole}/{n[:-4]}" for n in names]
    lost = [f for f in stream.failures if f.key == str(broken)]
    assert len(lost) == 1
    assert "shard" in lost[0].reason
    assert {f.key for f in stream.failures} <= {str(broken), f"{broken}/006"}
    assert stream.read + stream.failed == stream.listed


def test_shards_give_metadata_and_name_bad_members(tmp_path: Path) -> None:
    data = encoded(scene(64, 48))
    members = {
        "a/0.jpg": data,
        "a/0.json": b'{"width": 64}',
        "a/0.cls": b"7",
        "a/0.txt": "ein Hund, süß".encode(),
        "a/1.json": b"{}",
        "a/2.png": encoded(scene(30, 30), "PNG"),
        "a/2.cls": b"seven",
        "a/3.seg.png": b"no picture",
        "a/3.jpg": data,
        "__info__.json": b"{}",
    }
    write_shard(tmp_path / "x.tar", members)
    with ImageStream(tmp_path / "x.tar", SMALL) as stream:
        (batch,) = stream
    assert [Path(k).name for k in batch.keys] == ["0", "2", "3"]
    assert batch.metadata[0] == {
        "__key__": "a/0",
        "json": {"width": 64},
        "cls": 7,
        "txt": "ein Hund, süß",
    }
    assert batch.metadata[1]["__key__"] == "a/2"
    assert "seven" in batch.metadata[1]["__unreadable__"]["cls"]
    assert [Path(f.key).name for f in stream.failures] == ["3.seg", "1"]
    assert "not an image" in stream.failures[0].reason
    assert "no image" in stream.failures[1].reason
    assert expand_names("s-{008..011}.tar") == ["s-008.tar", "s-009.tar", "s-010.tar", "s-011.tar"]
    assert expand_names("{a,b}{1..2}.tar") == ["a1.tar", "b1.tar", "a2.tar", "b2.tar"]
    with pytest.raises(InputError, match="backwards"):
        expand_names("s-{5..2}.tar")
    with pytest.raises(InputError, match="not local"):
        TarSource(["https://example.org/a.tar"])


def expand_names(pattern: str) -> list[str]:
    return list(expand_braces(pattern))


def test_ranks_share_the_images(tmp_path: Path) -> None:
    files = spoiled(50)
    write_files(tmp_path / "in", files)
    seen: list[str] = []
    listed = 0
    for rank in range(3):
        with ImageStream(
            tmp_path / "in", SMALL, 4, rank=rank, world=3, shuffle=True, seed=3
        ) as stream:
            seen += drain(stream)
            listed += stream.listed
            assert stream.count() == stream.listed
    assert listed == 50
    names = sorted(Path(key).name for key in seen)
    assert names == sorted(name for name, _, reason in files if not reason)


def test_a_list_file_cannot_leave_its_folder(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    (tmp_path / "secret.jpg").write_bytes(encoded(scene(20, 20)))
    (inside / "a b.jpg").write_bytes(encoded(scene(20, 20)))
    lines = ["# names", "a b.jpg", "", "../secret.jpg", str(tmp_path / "secret.jpg")]
    (inside / "list.txt").write_text("\n".join(lines))
    with ImageStream(inside / "list.txt", SMALL) as stream:
        assert [Path(key).name for key in drain(stream)] == ["a b.jpg"]
    assert ["outside" in f.reason for f in stream.failures] == [True, True]
    assert ListSource(inside / "list.txt").count() == 3


def test_reading_ahead_is_bounded() -> None:
    taken = []
    data = encoded(scene(20, 20))

    def items():
        for number in range(100):
            taken.append(number)
            yield str(number), data

    with ImageStream(items(), SMALL, 4, prefetch=3) as stream:
        batches = iter(stream)
        for number in range(1, 5):
            next(batches)
            assert len(taken) <= 4 * (number + 3)


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts handles in /proc")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("end", ["exhausted", "broken off", "error"])
def test_nothing_is_left_after_the_end(tmp_path: Path, backend: str, end: str) -> None:
    for shard in range(2):
        part = {name: data for name, data, _ in spoiled(40, shard)}
        write_shard(tmp_path / f"{shard}.tar", part)

    def use() -> None:
        options = {"backend": backend, "workers": 8}
        with ImageStream(str(tmp_path / "*.tar"), SMALL, 8, **options) as stream:
            for _ in stream:
                if end == "broken off":
                    break
                if end == "error":
                    raise KeyError("from the loop")

    def used() -> None:
        if end == "error":
            with pytest.raises(KeyError):
                use()
        else:
            use()

    used()  # libraries open what they keep
    before = handles(), threading.active_count()
    used()
    assert (handles(), threading.active_count()) == before


def test_an_error_of_the_source_comes_after_what_it_listed() -> None:
    data = encoded(scene(20, 20))

    def items():
        for number in range(5):
            yield str(number), data
        raise OSError("disk gone")

    with ImageStream(items(), SMALL, 2) as stream:
        batches = iter(stream)
        seen = [key for _ in range(3) for key in next(batches).keys]
        assert seen == [str(n) for n in range(5)]
        with pytest.raises(OSError, match="disk gone"):
            next(batches)


def test_a_buffer_that_its_owner_reuses_is_copied() -> None:
    frame = np.zeros((40, 40, 3), np.uint8)

    def camera():
        for value in (10, 200):
            frame[:] = value
            yield str(value), frame

    with ImageStream(camera(), SMALL, 2) as stream:
        (batch,) = stream
    assert levels(batch.pixels, SMALL).mean((1, 2, 3)).round().tolist() == [10, 200]


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        ("/no/such/folder", {}, "no such file, folder or glob"),
        ([], {}, "empty list"),
        (7, {}, "int"),
        ("{0..3}.tar", {}, "no such file, folder or glob"),
        ([("a", b"")], {"batch_size": 0}, "batch_size"),
        ([("a", b"")], {"rank": 2, "world": 2}, "rank"),
        ([("a", b"")], {"mode": "quick"}, "mode"),
        ([("a", b"")], {"backend": "magic"}, "backend"),
        ([("a", b"")], {"prefetch": -1}, "prefetch"),
    ],
)
def test_wrong_arguments_are_named(source: object, options: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        ImageStream(source, SMALL, **options)


def test_wrong_items_and_states_are_named() -> None:
    with pytest.raises(InputError, match="item 0"):
        list(ImageStream(iter([b"bytes alone"]), SMALL))
    with pytest.raises(InputError, match="own order"):
        list(ImageStream(iter([("a", b"")]), SMALL, shuffle=True))
    stream = ImageStream(["/dev/null"], SMALL, seed=1)
    for state in ({}, {**stream.state_dict(), "seed": 2}, {**stream.state_dict(), "version": 9}):
        with pytest.raises(InputError, match="state"):
            stream.load_state_dict(state)


def test_the_source_counts_what_it_lists(tmp_path: Path) -> None:
    write_files(tmp_path / "in", spoiled(12))
    assert FileSource([tmp_path / "in", "missing.jpg"]).count() == 13
