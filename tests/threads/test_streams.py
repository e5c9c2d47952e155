"""Streams: order, errors in their place, threads of one's own, and the bits of one call."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from support.waiting import PATIENCE

import pvp_fast
from pvp_fast.clip.backbone import Backbone
from pvp_fast.loaders import Batch, ImageStream, ItemSource
from pvp_fast.loaders.work import work_through
from pvp_fast.tagging.embeddings import EmbeddingStore, embed_images
from pvp_fast.threads.budget import Streams, set_budget
from pvp_fast.threads.streams import in_streams, limit_this_thread

TWO = Streams(2, 1)
SCENES = Path(pvp_fast.__file__).parent / "demo" / "scenes"


@pytest.fixture
def two_streams() -> Iterator[None]:
    set_budget(2)
    yield
    set_budget(None)


def test_results_come_in_order_and_two_are_worked_on_at_once() -> None:
    both = threading.Barrier(2, timeout=PATIENCE)  # breaks unless two threads meet in each pair

    def work(item: int) -> int:
        both.wait()
        return item * item

    assert list(in_streams(work, range(8), TWO)) == [i * i for i in range(8)]


def test_no_more_is_taken_than_a_stream_each_and_one() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(20):
            taken.append(item)
            yield item

    for done in in_streams(lambda item: item, items(), TWO):
        assert len(taken) <= done + TWO.number + 1


@pytest.mark.parametrize("streams", [TWO, Streams(1, 0)])
def test_an_error_is_raised_behind_the_results_before_it(streams: Streams) -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise OSError("the source ends badly")

    def work(item: int) -> int:
        if item == 3:
            raise ValueError("the work fails")
        return item

    found = in_streams(work, range(9), streams)
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="fails"):
        next(found)
    found = in_streams(lambda item: item, items(), streams)
    assert [next(found) for _ in range(5)] == list(range(5))
    with pytest.raises(OSError, match="badly"):
        next(found)
    assert list(found) == []


def test_who_stops_early_leaves_no_thread_behind() -> None:
    before = set(threading.enumerate())  # those of training stay
    found = in_streams(lambda item: item, range(100), TWO)
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert set(threading.enumerate()) <= before


def test_one_item_is_worked_on_by_the_caller_with_all_its_threads() -> None:
    here = (threading.get_ident(), torch.get_num_threads())
    work = lambda _: (threading.get_ident(), torch.get_num_threads())  # noqa: E731
    assert list(in_streams(work, [0], TWO)) == [here]
    assert list(in_streams(work, [], TWO)) == []
    assert here not in list(in_streams(work, [0, 1], TWO))


def test_a_stream_has_its_own_threads_and_changes_nobody_elses() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)

        def work(_: int) -> tuple[int, bool]:
            return torch.get_num_threads(), torch.is_grad_enabled()

        assert set(in_streams(work, range(6), TWO)) == {(1, False)}
        assert torch.get_num_threads() == 3
        assert torch.is_grad_enabled()
        with ThreadPoolExecutor(1) as pool:  # a thread that was not there before
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


def test_torch_by_itself_would_change_the_threads_of_later_threads() -> None:
    """Why ``limit_this_thread`` is needed; goes red when torch makes it needless."""

    def threads_of_a_later_one(limit: object) -> int:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(limit, 5).result()  # type: ignore[arg-type]
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    before = threads_of_a_later_one(limit_this_thread)
    assert before != 5
    try:
        assert threads_of_a_later_one(torch.set_num_threads) == 5
    finally:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(torch.set_num_threads, before).result()


def test_every_image_is_accounted_for_and_the_bits_are_those_of_one_call(
    pocket: Backbone, two_streams: None
) -> None:
    items = [(str(p), p.read_bytes()) for p in sorted(SCENES.glob("*.jpg"))[:40]]
    for bad in (3, 17, 39):
        items[bad] = (items[bad][0], b"no image")
    found = []

    @torch.no_grad()
    def encode(batch: Batch) -> torch.Tensor:
        return pocket.encode_image(batch.pixels)

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for ahead in (False, True):
            stream = ImageStream(ItemSource(items), pocket.preprocess, 8, prefetch=2)
            done = list(work_through(stream, encode, pocket.device, ahead=ahead))
            assert [f.index for d in done for f in d.failures] == [3, 17, 39]
            assert [i for d in done for i in d.indices] == sorted(set(range(40)) - {3, 17, 39})
            assert [d.listed for d in done] == [8, 16, 24, 32, 40, 40]
            assert done[-1].result is None
            found.append(torch.cat([d.result for d in done if d.result is not None]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])


def test_a_killed_embed_run_has_recorded_no_more_than_it_has_written(
    pocket: Backbone, tmp_path: Path, two_streams: None
) -> None:
    folder = tmp_path / "scenes"
    shutil.copytree(SCENES, folder, ignore=lambda _, names: sorted(names)[60:])
    (folder / "broken.jpg").write_bytes(b"no image")

    def stop(listed: int) -> None:
        if listed >= 40:
            raise KeyboardInterrupt

    options: dict[str, int] = {"batch_size": 8, "shard_rows": 16}
    with pytest.raises(KeyboardInterrupt):
        embed_images(pocket, folder, tmp_path / "out", progress=stop, **options)
    kept = EmbeddingStore(tmp_path / "out")
    assert (len(kept), kept.complete) == (23, False)  # windows of 7, 8 and 8: a shard
    store = embed_images(pocket, folder, tmp_path / "out", **options)
    whole = embed_images(pocket, folder, tmp_path / "whole", **options)
    assert [f.key for f in store.failures] == [str(folder / "broken.jpg")]
    assert next(store.batches()).keys == next(whole.batches()).keys
    names = [key for b in store.batches() for key in b.keys]
    assert sorted(names) == sorted(str(p) for p in folder.glob("scene*.jpg"))
