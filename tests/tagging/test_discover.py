"""Discovery on drawn scenes: some of what they show is missing from the vocabulary."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import statistics
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from pocket.scenes import SceneRenderer
from pocket.sprites import load_sprites, read_styles
from pvp_fast.artifact import Artifact
from pvp_fast.cli import run
from pvp_fast.clip.backbone import Backbone
from pvp_fast.demo import demo_set
from pvp_fast.errors import ArtifactError, InputError
from pvp_fast.evaluation.calibrate import Scored, calibrate
from pvp_fast.modules.adapters import DualAdapter
from pvp_fast.modules.prompts import prompt_ensemble
from pvp_fast.modules.scoring import Head
from pvp_fast.tagging.discover import Discovery, discover
from pvp_fast.tagging.embeddings import EmbeddingStore, embed_images
from pvp_fast.tagging.tagger import Tagger
from pvp_fast.training.thresholds import Target
from pvp_fast.vocabulary.categories import Vocabulary

SCENES = 500
KNOWN, MISSING = 40, 12  # of 70 categories; the other 18 are drawn in no scene


class World(NamedTuple):
    backbone: Backbone
    artifact: Path
    store: EmbeddingStore
    scenes: Path
    truth: dict[str, set[str]]  # key -> names
    missing: list[str]
    absent: list[str]
    others: list[str]  # real names that the pocket model never learned


def untrained(backbone: Backbone, vocabulary: Vocabulary, labelled: Scored) -> Artifact:
    """Plain class vectors, calibrated on labelled images: what training would only sharpen."""
    bank = prompt_ensemble(backbone, vocabulary.names)
    head = Head.uncalibrated(DualAdapter(bank, bank, bank[:, None]))
    about = {
        "name": "pocket",
        "pretrained": None,
        "fingerprint": backbone.fingerprint,
        "embed_dim": backbone.embed_dim,
    }
    scores = Scored(head.cosines(labelled.scores), labelled.labels)
    artifact = Artifact(vocabulary, about, head)
    return calibrate(artifact, scores, Target("f1"), common=True).artifact


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> World:
    pytest.importorskip("resvg_py")
    folder = tmp_path_factory.mktemp("discovery")
    everything = Vocabulary.builtin("pocket70")
    rng = random.Random(1)
    order = rng.sample(range(70), 70)
    drawn, known = order[: KNOWN + MISSING], order[:KNOWN]
    style = read_styles(shared_data / "pictograms")["noto"]
    renderer = SceneRenderer(load_sprites([style], everything.names))
    generator = torch.Generator().manual_seed(0)
    sets = [rng.sample(drawn, rng.choice((1, 2, 2, 3))) for _ in range(SCENES)]
    truth = {}
    (folder / "scenes").mkdir()
    for start in range(0, SCENES, 100):
        scenes = renderer.render(sets[start : start + 100], generator)
        for number, pixels in enumerate(scenes, start):
            array = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
            path = folder / "scenes" / f"{number:03d}.png"
            Image.fromarray(array).save(path)
            truth[str(path)] = {everything.names[c] for c in sets[number]}
    backbone = Backbone.load("pocket")
    store = embed_images(backbone, str(folder / "scenes"), folder / "embeddings")
    # Every fifth scene is labelled, with what the artifact knows.
    (rows,) = store.batches()
    some = slice(None, None, 5)
    found = [[everything.names[c] in truth[key] for c in known] for key in rows.keys[some]]
    labels = torch.tensor(found).to(torch.int8) * 2 - 1
    vocabulary = Vocabulary([everything[i] for i in known])
    untrained(backbone, vocabulary, Scored(rows.z[some], labels)).save(folder / "artifact")
    lines = (shared_data / "embeddings" / "Objects365_names_fix.csv").read_text().splitlines()
    words = [line.split(",")[2].replace("/", " or ").strip() for line in lines]
    others = [word for word in words if not everything.label(word)]
    named = [everything.names[i] for i in order]
    return World(
        backbone,
        folder / "artifact",
        store,
        folder / "scenes",
        truth,
        named[KNOWN : KNOWN + MISSING],
        named[KNOWN + MISSING :],
        others,
    )


@pytest.fixture(scope="module")
def tagger(world: World) -> Tagger:
    return Tagger.load(world.artifact, backbone=world.backbone)


@pytest.fixture(scope="module")
def found(world: World, tagger: Tagger) -> Discovery:
    names = [*world.absent, *world.others, *world.missing]
    return discover(tagger, world.store, names)


def test_what_is_missing_comes_first(world: World, found: Discovery) -> None:
    top = [p.name for p in found.proposals[:MISSING]]
    precision = sum(name in world.missing for name in top) / MISSING
    blind = MISSING / found.names
    assert blind < 0.1  # 12 of some 250 names are right
    assert precision >= 0.8
    # Of the names that the model knows and that are in no scene, next to none is proposed.
    assert sum(p.name in world.absent for p in found.proposals) <= 1


def test_counts_and_examples_are_of_images_that_show_it(world: World, found: Discovery) -> None:
    right, ratios = [], []
    for proposal in found.proposals:
        if proposal.name in world.missing:
            right += [proposal.name in world.truth[key] for key, _ in proposal.examples]
            drawn = sum(proposal.name in shown for shown in world.truth.values())
            ratios.append(proposal.images / drawn)
            shown = [probability for _, probability in proposal.examples]
            assert shown == sorted(shown, reverse=True)
            assert min(shown) >= found.threshold - 1e-4
    assert statistics.mean(right) >= 0.9
    assert 0.6 <= statistics.median(ratios) <= 1.1
    assert all(found.least <= p.images for p in found.proposals)
    assert [p.images for p in found.proposals] == sorted(
        (p.images for p in found.proposals), reverse=True
    )


def test_categories_synonyms_and_plurals_are_left_out(world: World, tagger: Tagger) -> None:
    category = next(c for c in tagger.artifact.vocabulary if c.synonyms)
    old = [f"{tagger.artifact.vocabulary.names[0]}s", category.synonyms[0].upper(), category.name]
    found = discover(tagger, world.store, [*old, *world.missing])
    assert set(old) <= set(found.known)
    assert found.known[category.name] == category.name
    assert not {p.name for p in found.proposals} & set(old)
    with pytest.raises(InputError, match="already"):
        discover(tagger, world.store, old)


def test_names_that_say_the_same_are_one_proposal(world: World, tagger: Tagger) -> None:
    name = world.missing[0]
    names = [*world.missing, f"{name} {name}"]
    found = discover(tagger, world.store, names)
    group = [{p.name, *p.also} for p in found.proposals]
    assert {name, f"{name} {name}"} in group


def test_pure_noise_gives_no_proposal(world: World, tagger: Tagger) -> None:
    found = discover(tagger, world.store, world.absent)
    assert len(found.proposals) <= 1


def test_what_an_image_shows_is_what_the_tagger_says(world: World, tagger: Tagger) -> None:
    """The calibration goes by the artifact's own thresholds, not by a half."""
    results = list(tagger.tag_embeddings(world.store, top_k=None, threshold=0.0))
    ranked = sorted((tag.score for result in results for tag in result.tags), reverse=True)
    least = (ranked[9] + ranked[10]) / 2
    head = tagger.artifact.head
    strict = head.calibrated(head.platt, torch.full((len(head),), least))
    few = Tagger(dataclasses.replace(tagger.artifact, head=strict), world.backbone)
    assert sum(len(r.tags) for r in few.tag_embeddings(world.store, top_k=None)) == 10
    assert ranked[10] > 0.5
    with pytest.raises(InputError, match="tags 10 things"):
        discover(few, world.store, world.missing)


def test_what_cannot_be_judged_is_said(world: World, tagger: Tagger, tmp_path: Path) -> None:
    few = embed_images(world.backbone, sorted(demo_set().glob("*.jpg"))[:5], tmp_path / "few")
    with pytest.raises(InputError, match="at least 30"):
        discover(tagger, few, world.missing)
    with pytest.raises(InputError, match="precision"):
        discover(tagger, world.store, world.missing, precision=1.0)
    with pytest.raises(InputError, match="names"):
        discover(tagger, world.store, [])
    with pytest.raises(InputError, match="least_images"):
        discover(tagger, world.store, world.missing, least_images=0)
    artifact = tagger.artifact
    blind = artifact.head.platt.clone()
    blind[:, 1] -= 100
    head = artifact.head.calibrated(blind, artifact.head.thresholds)
    nothing = dataclasses.replace(artifact, head=head)
    with pytest.raises(InputError, match="tags 0 things"):
        discover(Tagger(nothing, world.backbone), world.store, world.missing)
    other = shutil.copytree(world.store.folder, tmp_path / "other")
    manifest = json.loads((other / "embeddings.json").read_text(encoding="utf-8"))
    manifest["backbone"]["fingerprint"] = "0" * 64
    (other / "embeddings.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ArtifactError, match="CLIP"):
        discover(tagger, EmbeddingStore(other), world.missing)


def test_fewer_images_can_be_asked_for(world: World, found: Discovery, tagger: Tagger) -> None:
    names = [*world.absent, *world.others, *world.missing]
    more = discover(tagger, world.store, names, least_images=3)
    assert len(more.proposals) > len(found.proposals)
    assert min(p.images for p in more.proposals) >= 3


def test_command(
    world: World, found: Discovery, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "names.txt"
    words.write_text("# candidates\n" + "\n".join([*world.missing, *world.absent]), "utf-8")
    page = tmp_path / "found.html"
    line = ["discover", str(world.artifact), str(world.store.folder), "--names", str(words)]
    out = tmp_path / "found.json"
    shown = ["--report", str(page), "--root", str(world.scenes), "--json", str(out)]
    assert run([*line, *shown]) == 0
    table = capsys.readouterr().out
    assert all(p["name"] in table for p in json.loads(out.read_text())["proposals"])
    data = json.loads(out.read_text())
    first = data["proposals"][0]
    assert first["name"] in world.missing
    assert first["images"] >= data["least"] > data["accidents"]
    text = page.read_text()
    assert text.count("<figure") >= len(data["proposals"])
    assert "data:image/" in text
    assert f"{first['images']} images" in text
    assert run([*line[:3], "--names", "nowhere"]) == 1
    assert run([*line, "--report", str(page)]) == 1
    assert "--root" in capsys.readouterr().err
