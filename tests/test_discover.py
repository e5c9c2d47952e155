"""Categories that occur in images and are missing from a vocabulary."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from pvp_fast import Tagger
from pvp_fast.cli import run
from pvp_fast.discover import candidates, discover
from pvp_fast.embeddings import EmbeddingStore
from pvp_fast.errors import ArtifactError, InputError
from pvp_fast.pocket import demo_set


class World:
    """Images without the ``absent`` categories, an artifact without these and ``missing``."""

    def __init__(self, folder: Path) -> None:
        labels = json.loads((demo_set() / "labels.json").read_text(encoding="utf-8"))
        names = list(labels["categories"])
        random.Random(3).shuffle(names)
        self.absent, self.missing, self.known = names[:12], names[12:36], names[36:]
        self.photos = folder / "photos"
        self.photos.mkdir()
        self.labels = {}
        for name, photo in labels["photos"].items():
            if not set(photo["labels"]) & set(self.absent):
                shutil.copy(demo_set() / name, self.photos)
                self.labels[str(self.photos / name)] = set(photo["labels"])
        (folder / "words.txt").write_text("\n".join(self.known), encoding="utf-8")
        line = ["train", "--vocabulary", str(folder / "words.txt"), "--grammar", "400", "--quiet"]
        assert run([*line, "--steps", "2", "--out", str(folder / "run")]) == 0
        self.artifact, self.store = folder / "run" / "artifact", folder / "embeddings"
        assert run(["embed", str(self.photos), "--out", str(self.store)]) == 0
        self.tagger = Tagger.load(self.artifact)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("discover"))


def test_what_is_missing_is_proposed_before_what_does_not_occur(world: World) -> None:
    names = sorted(world.absent + world.missing) + [name.upper() for name in world.known]
    found = discover(world.tagger, EmbeddingStore(world.store), names, top=100, least_images=1)
    occurring = set.union(*world.labels.values()) & set(world.missing)
    order = [proposal.name for proposal in found]
    assert set(order) <= set(names[:36])  # the vocabulary is no news
    # By chance two in three of the first ten occur.
    assert sum(name in occurring for name in order[:10]) >= 9
    hits = [name in occurring for name in order]
    precision = [sum(hits[: n + 1]) / (n + 1) for n, hit in enumerate(hits) if hit]
    assert sum(precision) / len(occurring) > 0.8
    best = [p for p in found[:10] if p.name in occurring]
    right = [p.name in world.labels[key] for p in best for key, _ in p.examples[:2]]
    assert sum(right) / len(right) > 0.6  # by chance one in twenty-five
    for proposal in found:
        assert proposal.nearest in world.known
        assert len(proposal.examples) == min(6, proposal.images)
        shares = [share for _, share in proposal.examples]
        assert shares == sorted(shares, reverse=True)
    evidence = [proposal.evidence for proposal in found]
    assert evidence == sorted(evidence, reverse=True)
    assert discover(world.tagger, EmbeddingStore(world.store), names, top=3) == found[:3]


def test_candidates_are_new_and_once(world: World) -> None:
    known = world.known[0]
    names = [known.upper(), f"{known}s", "quokka", "Quokkas", " ", "banjo "]
    assert candidates(names, world.tagger) == ["quokka", "banjo"]


def test_wrong_arguments_are_named(world: World, tmp_path: Path) -> None:
    store = EmbeddingStore(world.store)
    for options in ({"least_share": 1.0}, {"top": 0}, {"least_images": 0}, {"examples": 0}):
        with pytest.raises(InputError, match=next(iter(options))):
            discover(world.tagger, store, ["quokka"], **options)
    with pytest.raises(InputError, match="names"):
        discover(world.tagger, store, world.known)
    other = shutil.copytree(world.store, tmp_path / "other")
    manifest = json.loads((other / "embeddings.json").read_text(encoding="utf-8"))
    manifest["backbone"]["fingerprint"] = "0" * 64
    (other / "embeddings.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(ArtifactError, match="CLIP"):
        discover(world.tagger, EmbeddingStore(other), ["quokka"])


def test_the_command_writes_a_table_json_and_a_gallery(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.txt").write_text(
        "# candidates\n" + "\n".join(world.missing + world.absent), encoding="utf-8"
    )
    line = ["discover", str(world.artifact), str(world.store), "--top", "5"]
    line += ["--names", str(tmp_path / "names.txt"), "--json", str(tmp_path / "new.json")]
    page = tmp_path / "new.html"
    assert run([*line, "--report", str(page), "--root", str(world.photos)]) == 0
    rows = capsys.readouterr().out.splitlines()
    found = json.loads((tmp_path / "new.json").read_text(encoding="utf-8"))
    assert [row.split("  ")[0] for row in rows] == [entry["name"] for entry in found]
    assert len(found) == 5
    text = page.read_text(encoding="utf-8")
    assert all(json.dumps(entry["name"]) in text for entry in found)
    assert text.count("data:image/jpeg") >= 5
    assert run([*line, "--report", str(page)]) == 1
    assert run([*line[:5], "--names", "coco80"]) == 0
    assert run([*line, "--least-images", "10000"]) == 0
    assert "no name" in capsys.readouterr().err
