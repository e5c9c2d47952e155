"""Training through the gap: what a batch becomes, on one process or two, and what off means."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from support.artifacts import every_tensor
from support.training import Toy, config, settings, small

from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import InputError
from pvp_fast.modules.adapters import DualAdapter
from pvp_fast.sentences import Corpus
from pvp_fast.training import GapConfig, TrainConfig, train
from pvp_fast.training.distributed import Ranks
from pvp_fast.training.features import Sentences, label_lists
from pvp_fast.training.gap import OFF, Perturbation, auto_sigma
from pvp_fast.training.loop import run_stage

CPU = torch.device("cpu")


def some(gap: Perturbation, count: int = 200, width: int = 64) -> Sentences:
    """Sentences of one label each, their own."""
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(count, width, generator=generator), dim=-1)
    return Sentences(x.half().numpy(), label_lists([[i] for i in range(count)]), count, CPU, gap)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def test_the_noise_has_the_length_it_was_asked_for() -> None:
    """cosine(x, normalise(x + e)) of a perpendicular e of length σ is 1 / √(1 + σ²)."""
    rows = torch.arange(200)
    for sigma in (0.5, 1.5):
        sentences = some(Perturbation(sigma))
        drawn = sentences.draw(rows, generator(), 200)
        x, y = drawn.x, drawn.dense(200)
        torch.testing.assert_close(x.norm(dim=-1), torch.ones(200))
        cosines = (x * sentences.rows(rows).x).sum(1)
        assert abs(float(cosines.mean()) - (1 + sigma**2) ** -0.5) < 0.02
        assert torch.equal(y, torch.eye(200).bool())


def test_mixed_sentences_unite_their_labels_and_lie_between() -> None:
    sentences = some(Perturbation(0.0, 0.5))
    rows = torch.arange(200)
    drawn = sentences.draw(rows, generator(), 200)
    x, y = drawn.x, drawn.dense(200)
    mixed = y.sum(1) == 2
    assert 70 < int(mixed.sum()) < 130
    assert bool(y.diagonal().all())
    plain = sentences.rows(rows).x
    assert torch.equal(x[~mixed], plain[~mixed])
    torch.testing.assert_close(x[mixed], F.normalize(y[mixed].float() @ plain, dim=-1))


@pytest.mark.parametrize("gap", [Perturbation(1.0), Perturbation(1.0, 0.5), Perturbation(0.0, 1.0)])
def test_parts_of_a_batch_are_drawn_as_in_the_whole(
    monkeypatch: pytest.MonkeyPatch, gap: Perturbation
) -> None:
    data = some(gap)
    rows = torch.tensor([0, 1, 2, 5, 6, 3, 4])
    drawn = data.draw(rows, generator(), 7)
    whole = drawn.x, drawn.dense(200)
    parts = []
    for rank in range(2):
        share = Ranks()
        share.rank, share.size = rank, 2
        monkeypatch.setattr("pvp_fast.training.gap.Ranks", lambda share=share: share)
        part = data.draw(rows[share.share(7)], generator(), 7)
        parts.append((part.x, part.dense(200)))
    for value, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(value, torch.cat(pieces))


def test_nothing_is_drawn_when_off() -> None:
    source, rows = generator(), torch.arange(5)
    before = source.get_state()
    data = some(Perturbation())
    for value, plain in zip(data.draw(rows, source, 5), data.rows(rows), strict=True):
        assert torch.equal(value, plain)
    assert torch.equal(source.get_state(), before)


def test_the_sentences_are_left_as_they_were() -> None:
    sentences = some(Perturbation(1.0, 1.0))
    features, labels = np.array(sentences.features), sentences.labels.indices.clone()
    sentences.draw(torch.arange(200), generator(), 200)
    judge = sentences.perturbed()
    assert np.array_equal(sentences.features, features)
    assert torch.equal(sentences.labels.indices, labels)
    again = sentences.perturbed()
    assert np.array_equal(judge.features, again.features)
    off = some(Perturbation())
    assert off.perturbed() is off
    assert judge.rows(torch.arange(3)).x.equal(judge.draw(torch.arange(3), generator(), 3).x)


def test_a_run_from_before_there_was_a_gap_goes_on_without_one(
    backbone: Backbone, corpus: Corpus, tmp_path: Path
) -> None:
    off = small().without_gap()
    first = train(backbone, corpus, tmp_path, off, progress=False)
    path = tmp_path / "config.json"
    run = json.loads(path.read_text())
    del run["config"]["gap"], run["config"]["adapter"]["centre"]
    del run["config"]["visual"]["both_ways"], run["config"]["visual"]["loop"]["keep_best"]
    del run["config"]["visual"]["frequencies"]
    path.write_text(json.dumps(run))
    learned = tmp_path / "visual" / "checkpoint.safetensors"
    with safe_open(learned, "pt") as stream:
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        about = stream.metadata()
    tensors["module.prompts.pixels"] = tensors.pop("module.prompts.learned")
    save_file(tensors, learned, about)
    assert train(backbone, corpus, tmp_path, off, progress=False).version == first.version
    with pytest.raises(InputError, match="another config"):
        train(backbone, corpus, tmp_path, small(), progress=False)


def test_without_a_gap_every_stage_learns_from_the_sentences_alone(
    backbone: Backbone, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("something was drawn")

    monkeypatch.setattr("pvp_fast.training.gap.Draw.of", never)
    artifact = train(backbone, corpus, tmp_path, settings().without_gap(), progress=False)
    assert artifact.metrics["gap_sigma"] == 0
    with pytest.raises(AssertionError, match="drawn"):
        train(backbone, corpus, tmp_path / "on", settings(), progress=False)


def test_every_stage_learns_from_the_perturbed_sentences(
    backbone: Backbone, corpus: Corpus, tmp_path: Path
) -> None:
    loop = dataclasses.replace(settings().adapter.loop, keep_best=False)
    adapter = dataclasses.replace(settings().adapter, loop=loop)
    last = dataclasses.replace(settings(), adapter=adapter)
    off = dataclasses.replace(last, gap=OFF)
    plain = train(backbone, corpus, tmp_path / "off", off, progress=False)
    on = dataclasses.replace(last, gap=GapConfig(0.5, 0.5))
    perturbed = train(backbone, corpus, tmp_path / "on", on, progress=False)
    clean, learned = every_tensor(plain), every_tensor(perturbed)
    for name in ("adapter.visual", "text_only", "adapter.text", "adapter.query_adapter.up"):
        assert not torch.equal(learned[name], clean[name]), name


def test_settings_are_checked_and_survive_json() -> None:
    demo = dataclasses.replace(TrainConfig.demo(), gap=GapConfig("auto", 0.5))
    assert TrainConfig.from_dict(json.loads(json.dumps(demo.to_dict()))) == demo
    with pytest.raises(InputError, match="sigma"):
        GapConfig(-0.1)
    with pytest.raises(InputError, match="sigma"):
        GapConfig(float("nan"))
    with pytest.raises(InputError, match="sigma"):
        GapConfig("much")
    with pytest.raises(InputError, match="mix"):
        GapConfig(0.0, 1.5)
    with pytest.raises(InputError, match="gap: no field 'noise'"):
        TrainConfig.from_dict({"gap": {"noise": 1}})


def test_the_automatic_noise_is_three_deviations_from_confusing_categories() -> None:
    width, count = 400, 20
    names = torch.eye(width)[:count]
    y = torch.eye(count).bool().repeat(5, 1)
    x = F.normalize(y.float() @ names + 0.1, dim=-1)
    sigma = auto_sigma(x, y, names)
    noise = torch.randn(4000, len(x), width, generator=generator())[:, :1] * sigma / width**0.5
    moved = (x[0] + noise[:, 0]) @ (names[0] - names[1])
    margin = float(x[0] @ (names[0] - names[1]))
    assert abs(margin / float(moved.std()) - 3) < 0.15
    assert auto_sigma(x, torch.ones_like(y), names) == 0  # nothing is left out anywhere


def test_the_best_step_is_kept_and_never_less_than_the_start(tmp_path: Path) -> None:
    class Falling(Toy):
        """Judged worse with every step."""

        def evaluate(self) -> float:
            return -float(self.calls)

    start = {k: v.clone() for k, v in Falling().module.state_dict().items()}
    toy = Falling()
    assert run_stage(toy, config(keep_best=True), tmp_path / "a", progress=False) == 0
    assert toy.calls == 12
    for name, value in toy.module.state_dict().items():
        assert torch.equal(value, start[name])
    with pytest.raises(KeyboardInterrupt):
        run_stage(Falling(stop=7), config(keep_best=True), tmp_path / "b", progress=False)
    resumed = Falling()
    assert run_stage(resumed, config(keep_best=True), tmp_path / "b", progress=False) == 0
    for name, value in resumed.module.state_dict().items():
        assert torch.equal(value, start[name])
    run_stage(plain := Falling(), config(), tmp_path / "c", progress=False)
    assert not torch.equal(plain.module.weight, start["weight"])


def test_the_adapter_takes_off_what_names_have_in_common() -> None:
    shared = torch.tensor([3.0, 0, 0, 0])
    names = F.normalize(torch.eye(4)[1:] + shared, dim=-1)
    args = (names, names, names[:, None])
    adapter = DualAdapter(*args, centre=names.mean(0), alpha=0.0)
    vectors = adapter.stable_class_vectors()[:, :4]
    assert float(vectors.sum(0).norm()) < 1e-5
    old = {k: v for k, v in DualAdapter(*args).state_dict().items() if k != "centre"}
    assert not bool(DualAdapter.from_state(*args, old).centre.any())
    assert torch.equal(DualAdapter.from_state(*args, adapter.state_dict()).centre, names.mean(0))
    with pytest.raises(InputError, match="centre"):
        DualAdapter(*args, centre=torch.zeros(3))
