"""Rows in a file: moved as torch's optimisers move them, and safe from what comes after a save."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pvp_fast.errors import ArtifactError, InputError
from pvp_fast.training import LoopConfig
from pvp_fast.training.rows import RowOptimizer, RowTable

SHAPE = (3, 2)
CPU = torch.device("cpu")


def table(folder: Path, count: int = 5) -> tuple[RowTable, torch.Tensor]:
    first = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0))
    made = RowTable(folder / "some.rows", count, SHAPE)
    made.fill(first)
    return made, first


def move(optimizer: RowOptimizer, index: list[int]) -> None:
    rows = optimizer.take(torch.tensor(index))
    with torch.enable_grad():
        rows.square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_rows_that_are_always_taken_move_as_by_torch(tmp_path: Path, name: str) -> None:
    made, first = table(tmp_path)
    config = LoopConfig(lr=0.05, optimizer=name, weight_decay=0.1)
    optimizer = RowOptimizer(made, config, CPU)
    whole = torch.nn.Parameter(first.clone())
    if name == "adamw":
        expected: torch.optim.Optimizer = torch.optim.AdamW([whole], 0.05, weight_decay=0.1)
    else:
        expected = torch.optim.SGD([whole], 0.05, momentum=0.9, weight_decay=0.1)
    for step in range(6):
        move(optimizer, [0, 1, 2, 3, 4])
        expected.zero_grad()
        with torch.enable_grad():
            whole.square().sum().backward()
        expected.step()
        if step == 2:
            made.named()  # the records change their places
    torch.testing.assert_close(made.values(torch.arange(5)), whole.detach())
    assert made.steps.tolist() == [6] * 5


def test_what_is_not_taken_stays_and_a_row_counts_its_own_steps(tmp_path: Path) -> None:
    made, first = table(tmp_path)
    optimizer = RowOptimizer(made, LoopConfig(lr=0.05), CPU)
    for _ in range(3):
        move(optimizer, [1, 4])
    move(optimizer, [0])
    assert torch.equal(made.values(torch.tensor([2, 3])), first[2:4])
    # Adam's first step has the length of the rate, whenever it comes.
    torch.testing.assert_close(
        (made.values(torch.tensor([0])) - first[:1]).abs(), torch.full((1, *SHAPE), 0.05)
    )


def test_a_run_goes_back_to_what_the_last_checkpoint_names(tmp_path: Path) -> None:
    made, first = table(tmp_path)
    optimizer = RowOptimizer(made, LoopConfig(lr=0.05), CPU)
    move(optimizer, [0, 1])
    made.flush()
    saved = {k: v.clone() for k, v in optimizer.state_dict()["state"][0].items()}
    made.named()
    at_save = made.read(torch.arange(5))
    for index in ([0, 2], [0, 2], [3]):
        move(optimizer, index)  # lost: the run is cut off here
    again = RowTable(made.path, 5, SHAPE)
    again.fill(first * 0)  # the file is there
    resumed = RowOptimizer(again, LoopConfig(lr=0.05), CPU)
    resumed.load_state_dict({"state": {0: saved}, "param_groups": []})
    assert torch.equal(again.read(torch.arange(5)), at_save)
    for _ in range(2):
        move(resumed, [0, 2])
    whole = RowTable(tmp_path / "whole.rows", 5, SHAPE)
    whole.fill(first)
    uncut = RowOptimizer(whole, LoopConfig(lr=0.05), CPU)
    for index in ([0, 1], [0, 2], [0, 2]):
        move(uncut, index)
    assert torch.equal(again.read(torch.arange(5)), whole.read(torch.arange(5)))


def test_a_file_that_is_gone_or_cut_is_named(tmp_path: Path) -> None:
    made, _ = table(tmp_path)
    made.path.write_bytes(made.path.read_bytes()[:-8])
    made.places[4] = 1
    with pytest.raises(ArtifactError, match="damaged"):
        made.read(torch.tensor([4]))
    made.path.unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        made.read(torch.tensor([0]))
    with pytest.raises(InputError, match="keep_best"):
        RowOptimizer(made, LoopConfig(keep_best=True), CPU)
