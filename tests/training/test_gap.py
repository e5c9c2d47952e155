"""Training through the gap: what a batch becomes, on one process or two, and what off means."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.artifacts import every_tensor
from support.training import settings, small

from pvp_fast.clip.backbone import Backbone
from pvp_fast.errors import InputError
from pvp_fast.sentences import Corpus
from pvp_fast.training import GapConfig, TrainConfig, train
from pvp_fast.training.distributed import Ranks
from pvp_fast.training.features import Sentences, TokenSentences

CPU = torch.device("cpu")


def some(gap: GapConfig, count: int = 200, width: int = 64) -> Sentences:
    """Sentences of one label each, their own."""
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(count, width, generator=generator), dim=-1)
    return Sentences(x.half().numpy(), torch.eye(count).bool(), CPU, gap)


def some_tokens(gap: GapConfig, lengths: list[int], longest: int = 7) -> TokenSentences:
    generator = torch.Generator().manual_seed(0)
    count = len(lengths)
    tokens = F.normalize(torch.randn(count, longest, 32, generator=generator), dim=-1)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return TokenSentences(tokens.half().numpy(), mask.numpy(), torch.eye(count).bool(), CPU, gap)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def test_the_noise_has_the_length_it_was_asked_for() -> None:
    """cosine(x, normalise(x + e)) of a perpendicular e of length σ is 1 / √(1 + σ²)."""
    rows = torch.arange(200)
    for sigma in (0.5, 1.5):
        sentences = some(GapConfig(sigma))
        x, y = sentences.draw(rows, generator(), 200)
        torch.testing.assert_close(x.norm(dim=-1), torch.ones(200))
        cosines = (x * sentences.batch(rows)[0]).sum(1)
        assert abs(float(cosines.mean()) - (1 + sigma**2) ** -0.5) < 0.02
        assert torch.equal(y, sentences.labels)


def test_mixed_sentences_unite_their_labels_and_lie_between() -> None:
    sentences = some(GapConfig(0.0, 0.5))
    rows = torch.arange(200)
    x, y = sentences.draw(rows, generator(), 200)
    mixed = y.sum(1) == 2
    assert 70 < int(mixed.sum()) < 130
    assert bool(y.diagonal().all())
    plain = sentences.batch(rows)[0]
    assert torch.equal(x[~mixed], plain[~mixed])
    torch.testing.assert_close(x[mixed], F.normalize(y[mixed].float() @ plain, dim=-1))


def test_mixed_tokens_lie_side_by_side() -> None:
    lengths = [2, 7, 3, 1, 5, 4] * 10
    sentences = some_tokens(GapConfig(0.0, 0.5), lengths)
    tokens, mask, y = sentences.draw(torch.arange(60), generator(), 60)
    counts = torch.tensor(lengths)
    assert torch.equal(mask.sum(1), (y * counts).sum(1))
    plain = sentences.batch(torch.arange(60))[0]
    for row in (y.sum(1) == 2).nonzero()[:, 0].tolist():
        own, other = row, int((y[row] & (torch.arange(60) != row)).nonzero()[0, 0])
        expected = torch.cat([plain[own, : counts[own]], plain[other, : counts[other]]])
        assert torch.equal(tokens[row][mask[row]], expected)


@pytest.mark.parametrize("gap", [GapConfig(1.0), GapConfig(1.0, 0.5), GapConfig(0.0, 1.0)])
@pytest.mark.parametrize("kind", ["sentences", "tokens"])
def test_parts_of_a_batch_are_drawn_as_in_the_whole(
    monkeypatch: pytest.MonkeyPatch, gap: GapConfig, kind: str
) -> None:
    # Unequal lengths: a part of the rows is cut shorter than the whole.
    data = some(gap) if kind == "sentences" else some_tokens(gap, [2, 1, 2, 7, 3] * 3)
    rows = torch.tensor([0, 1, 2, 5, 6, 3, 4])
    whole = data.draw(rows, generator(), 7)
    parts = []
    for rank in range(2):
        share = Ranks()
        share.rank, share.size = rank, 2
        monkeypatch.setattr("pvp_fast.training.gap.Ranks", lambda share=share: share)
        parts.append(data.draw(rows[share.share(7)], generator(), 7))
    if kind == "sentences":
        for value, pieces in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(value, torch.cat(pieces))
        return
    for start, part in zip((0, 3), parts, strict=True):
        for row in range(len(part[0])):
            assert torch.equal(
                part[0][row][part[1][row]], whole[0][start + row][whole[1][start + row]]
            )
        assert torch.equal(part[2], whole[2][start : start + len(part[2])])


def test_nothing_is_drawn_when_off() -> None:
    source, rows = generator(), torch.arange(5)
    before = source.get_state()
    for data in (some(GapConfig()), some_tokens(GapConfig(), [2, 3, 1, 4, 5])):
        for value, plain in zip(data.draw(rows, source, 5), data.batch(rows), strict=True):
            assert torch.equal(value, plain)
        assert data.perturbed(0) is data
    assert torch.equal(source.get_state(), before)


def test_the_sentences_are_left_as_they_were() -> None:
    sentences = some(GapConfig(1.0, 1.0))
    features, labels = np.array(sentences.features), sentences.labels.clone()
    sentences.draw(torch.arange(200), generator(), 200)
    judge = sentences.perturbed(0)
    assert np.array_equal(sentences.features, features)
    assert torch.equal(sentences.labels, labels)
    again = sentences.perturbed(0)
    assert np.array_equal(judge.features, again.features)
    assert not np.array_equal(judge.features, sentences.perturbed(1).features)
    assert judge.batch(torch.arange(3))[0].equal(judge.draw(torch.arange(3), generator(), 3)[0])


def test_a_run_with_the_gap_off_is_the_run_from_before_there_was_one(
    backbone: Backbone, corpus: Corpus, tmp_path: Path
) -> None:
    off = dataclasses.replace(small(), gap=GapConfig())
    first = train(backbone, corpus, tmp_path, off, progress=False)
    path = tmp_path / "config.json"
    run = json.loads(path.read_text())
    del run["config"]["gap"]
    path.write_text(json.dumps(run))
    assert train(backbone, corpus, tmp_path, off, progress=False).version == first.version
    on = dataclasses.replace(small(), gap=GapConfig(1.0))
    with pytest.raises(InputError, match="another config"):
        train(backbone, corpus, tmp_path, on, progress=False)


def test_every_stage_learns_from_the_perturbed_sentences(
    backbone: Backbone, corpus: Corpus, tmp_path: Path
) -> None:
    plain = train(backbone, corpus, tmp_path / "off", settings(), progress=False)
    on = dataclasses.replace(settings(), gap=GapConfig(0.5, 0.5))
    perturbed = train(backbone, corpus, tmp_path / "on", on, progress=False)
    clean, learned = every_tensor(plain), every_tensor(perturbed)
    parts = ("adapter.visual", "text_only", "adapter.text", "local.vectors")
    for name in (*parts, "adapter.query_adapter.up"):
        assert not torch.equal(learned[name], clean[name]), name


def test_settings_are_checked_and_survive_json() -> None:
    config = dataclasses.replace(TrainConfig.demo(), gap=GapConfig(1.5, 0.5))
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(InputError, match="sigma"):
        GapConfig(-0.1)
    with pytest.raises(InputError, match="sigma"):
        GapConfig(float("nan"))
    with pytest.raises(InputError, match="mix"):
        GapConfig(0.0, 1.5)
    with pytest.raises(InputError, match="gap: no field 'noise'"):
        TrainConfig.from_dict({"gap": {"noise": 1}})
