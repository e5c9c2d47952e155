"""A run on two processes learns what one process learns: cut, resumed, through torchrun."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from support.artifacts import every_tensor
from support.training import TEXT, VIT, Toy, config, rows
from torch import Tensor

from pvp_fast.artifact import Artifact
from pvp_fast.clip.backbone import Backbone, Preprocess
from pvp_fast.errors import InputError, TrainingDiverged
from pvp_fast.sentences import Corpus, build_corpus, grammar_sentences
from pvp_fast.training import GapConfig, TrainConfig, train
from pvp_fast.training.distributed import Ranks, process_group
from pvp_fast.training.loop import run_stage
from pvp_fast.training.visual import VisualPromptStage
from pvp_fast.vocabulary.categories import Vocabulary

NAMES = ["dog", "cat", "car", "pizza", "boat"]  # neither they nor the batch halve evenly
STAGES = ("visual", "text_only", "text", "adapter", "local")


def settings(optimizer: str = "sgd", **visual: object) -> TrainConfig:
    """All stages, few steps, the images learned on in stage 2.

    SGD: its steps follow the size of the gradients, which AdamW hides, and do not blow up those
    that are all rounding.
    """
    demo = TrainConfig.demo()
    loop = {"steps": 5, "warmup_steps": 1, "batch_size": 17, "checkpoint_every": 2, "log_every": 1}
    rates = {"visual": 20.0, "text": 0.5, "adapter": 0.2, "local_prompts": 0.5}
    sections = {}
    for name, lr in rates.items():
        section = getattr(demo, name)
        if optimizer == "sgd":
            loop = {**loop, "optimizer": "sgd", "lr": lr}
        changed = dataclasses.replace(section.loop, **loop)
        sections[name] = dataclasses.replace(section, loop=changed)
    sections["visual"] = dataclasses.replace(sections["visual"], **visual)
    sections["text"] = dataclasses.replace(sections["text"], co_learn=True)
    return dataclasses.replace(demo, local=True, **sections)


CASES = {
    "ranking": settings(),
    "subset": settings(categories_per_step=3, prompts_per_category=2),
    "adamw": settings("adamw", loss="asl"),
    "gap": dataclasses.replace(settings(), gap=GapConfig(0.5, 0.5)),
}


def material() -> tuple[Backbone, Corpus]:
    torch.manual_seed(3)
    model = open_clip.CLIP(embed_dim=16, vision_cfg=VIT, text_cfg=TEXT)
    backbone = Backbone(model, open_clip.SimpleTokenizer(context_length=40), Preprocess(32))
    vocabulary = Vocabulary(NAMES)
    return backbone, build_corpus(grammar_sentences(vocabulary, 80, seed=0), vocabulary)


def worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    backbone, corpus = material()
    encoded = []
    encode = Backbone.encode_image

    def counted(self: Backbone, pixels: Tensor, *, patches: Tensor | None = None) -> Tensor:
        encoded.append(len(pixels))
        return encode(self, pixels, patches=patches)

    Backbone.encode_image = counted  # type: ignore[method-assign]
    versions = {}
    for name, case in CASES.items():
        versions[name] = train(backbone, corpus, folder / name, case, progress=True).version
    Backbone.encode_image = encode  # type: ignore[method-assign]

    calls, honest = [], VisualPromptStage.losses

    def cut(self: VisualPromptStage, batch: Tensor, generator: torch.Generator) -> object:
        calls.append(len(batch))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return honest(self, batch, generator)

    VisualPromptStage.losses = cut  # type: ignore[method-assign, assignment]
    stopped = False
    try:
        train(backbone, corpus, folder / "cut", CASES["ranking"], progress=False)
    except KeyboardInterrupt:
        stopped = True
    VisualPromptStage.losses = honest  # type: ignore[method-assign]
    resumed = train(backbone, corpus, folder / "cut", CASES["ranking"], progress=False).version

    # One process began; two go on.
    train(backbone, corpus, folder / "one", CASES["ranking"], progress=False)

    diverged = ""
    try:  # not finite on the second process only
        run_stage(Toy(broken=3 if rank else -1), config(), folder / "nan", progress=False)
    except TrainingDiverged as error:
        diverged = str(error)
    few = ""
    try:
        Ranks().encode(lambda index: index, torch.arange(1))
    except InputError as error:
        few = str(error)
    result = {
        "versions": versions,
        "stopped": stopped,
        "resumed": resumed,
        "batches": calls[:3],
        "encoded": max(encoded),
        "diverged": diverged,
        "few": few,
    }
    (folder / f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """The same runs in this process alone."""
    folder = tmp_path_factory.mktemp("single")
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(1)
    backbone, corpus = material()
    torch.set_rng_state(state)
    found = {
        name: train(backbone, corpus, folder / name, case, progress=False)
        for name, case in CASES.items()
    }
    torch.set_num_threads(threads)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ranks")
    state = torch.get_rng_state()
    backbone, corpus = material()
    torch.set_rng_state(state)
    honest, calls = VisualPromptStage.losses, []

    def cut(self: VisualPromptStage, batch: Tensor, generator: torch.Generator) -> object:
        calls.append(batch)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return honest(self, batch, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VisualPromptStage, "losses", cut)
        with pytest.raises(KeyboardInterrupt):
            train(backbone, corpus, place / "one", CASES["ranking"], progress=False)
    mp.spawn(worker, (place,), nprocs=2)
    return place


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, object]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("case", [*CASES, "one"])
def test_two_processes_learn_what_one_learns(
    single: dict[str, Artifact], folder: Path, case: str
) -> None:
    tolerance = 0.01 if case == "adamw" else 3e-4  # of moves of 0.1 and more
    alone, shared = single.get(case, single["ranking"]), Artifact.load(folder / case / "artifact")
    learned, expected = every_tensor(shared), every_tensor(alone)
    assert set(learned) == set(expected)
    for name, value in expected.items():
        if name not in ("platt", "thresholds"):  # fitted to the rest, which is compared
            torch.testing.assert_close(
                learned[name],
                value,
                rtol=0,
                atol=tolerance,
                msg=lambda m, n=name: f"{n}: {m}",
            )


def test_each_process_does_its_part_and_both_end_with_the_same_bits(
    ranks: list[dict[str, object]], folder: Path
) -> None:
    assert [rank["batches"] for rank in ranks] == [[8] * 3, [9] * 3]
    assert ranks[0]["versions"] == ranks[1]["versions"]
    # Ten images (five categories, two prompts) are never all encoded by one process.
    assert [rank["encoded"] for rank in ranks] == [4, 6]


def test_a_run_cut_and_resumed_gives_the_same_bits(ranks: list[dict[str, object]]) -> None:
    for rank in ranks:
        assert rank["stopped"]
        assert rank["resumed"] == rank["versions"]["ranking"]  # type: ignore[index]


def test_only_the_first_process_writes(folder: Path) -> None:
    for stage in STAGES:
        assert [row[0] for row in rows(folder / "ranking" / stage)] == ["step", *"12345"]
        assert len(list((folder / "ranking" / stage).glob("events.*"))) == 1


def test_a_loss_that_is_not_finite_anywhere_ends_all(ranks: list[dict[str, object]]) -> None:
    for rank in ranks:
        assert "'decay' is not finite at step 2" in str(rank["diverged"])
        assert "2 processes for 1 categories" in str(rank["few"])


def test_a_device_of_its_own_for_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with process_group("cuda:1") as device:  # without torchrun: as it is
        assert device == "cuda:1"
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"'cuda:1' with 2 processes"), process_group("cuda:1"):
        pass
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="--nproc-per-node 1"), process_group("cuda"):
        pass


def test_torchrun_trains_and_one_process_that_fails_ends_all(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("dog\ncat\ncar\n")

    def torchrun(seed: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *("--nproc-per-node", "2", "-m", "pvp_fast", "train"),
                *("--vocabulary", str(tmp_path / "words.txt"), "--grammar", "40"),
                *("--preset", "demo", "--steps", "2", "--seed", str(seed)),
                *("--device", "cpu", "--out", str(tmp_path / "run")),
            ],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            cwd=tmp_path,  # where no checkout hides the installed package
            capture_output=True,
            text=True,
        )

    done = torchrun(0)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == [str(tmp_path / "run" / "artifact")]
    assert Artifact.load(tmp_path / "run" / "artifact").vocabulary.names == ("dog", "cat", "car")
    # The folder's owner is asked by the first process; the second waits for it.
    failed = torchrun(1)
    assert failed.returncode != 0
    assert "holds a run with another config" in failed.stderr
