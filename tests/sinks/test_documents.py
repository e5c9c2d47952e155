"""Documents of other tools, each read by the tool itself where it is installed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from pvp_fast.errors import InputError, SinkError
from pvp_fast.sinks import DOCUMENTS, format_for, open_sink
from pvp_fast.sinks.label_studio import label_config
from pvp_fast.tagging.tagger import Tag, TagResult

V1, V2 = "0123456789ab", "ba9876543210"
NAMES = ("dog", "cat & <mouse>", "Äpfel")
OUTPUT = {"imagefolder": "metadata.jsonl"}
RIGHT = {
    "a.jpg": [("dog", 0.75), ("Äpfel", 0.25)],
    "train/é 1#?.jpg": [("cat & <mouse>", 0.5)],  # datasets takes such a folder for a split
    "none.jpg": [],
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for shade, name in enumerate(RIGHT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (shade, 0, 0)).save(folder / name)
    (folder / "bad.jpg").write_bytes(b"no image")
    return folder


def results(folder: Path) -> list[TagResult]:
    found = [
        TagResult(str(folder / name), tuple(Tag(t, s, NAMES.index(t)) for t, s in tags))
        for name, tags in RIGHT.items()
    ]
    bad = TagResult(str(folder / "bad.jpg"), (), "damaged: no image")
    return [found[0], bad, *found[1:]]


def put(format: str, output: Path, found: list[TagResult], version: str = V1, **options) -> int:
    """Writes what is not there; how many that were."""
    written = 0
    with open_sink(format, output, version, categories=NAMES, **options) as sink:
        for result in found:
            if not sink.has(result.image):
                assert sink.write(result) is None
                written += 1
    return written


def read(format: str, path: Path) -> dict[str, list[tuple[str, float]]]:
    """Images below the document's folder and their tags, by plain JSON."""
    text = path.read_text(encoding="utf-8")
    if format == "imagefolder":
        rows = [json.loads(line) for line in text.splitlines()]
        return {r["file_name"]: [(t["name"], t["score"]) for t in r["tags"]] for r in rows}
    document = json.loads(text)
    if format == "coco":
        names = {c["id"]: c["name"] for c in document["categories"]}
        found = {i["file_name"]: (i["id"], []) for i in document["images"]}
        by_id = dict(found.values())
        for label in document["annotations"]:
            by_id[label["image_id"]].append((names[label["category_id"]], label["score"]))
        return {name: by_id[number] for name, (number, _) in found.items()}
    if format == "fiftyone":
        return {
            os.path.relpath(name, path.parent): [(t["label"], t["confidence"]) for t in tags]
            for name, tags in document["labels"].items()
        }
    from urllib.parse import unquote

    return {
        unquote(task["data"]["image"].partition("?d=")[2]): [
            (t["name"], t["score"]) for t in task["data"]["scores"]
        ]
        for task in document
    }


@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("format", DOCUMENTS)
def test_every_image_is_in_the_document_once(photos: Path, format: str, append: bool) -> None:
    path = photos / OUTPUT.get(format, "out.json")
    assert put(format, path, results(photos), append=append) == 4
    assert read(format, path) == RIGHT
    before = path.read_bytes()
    # Going on: all is done, the damaged one too; another artifact has a document of its own.
    assert put(format, path, results(photos), append=True) == 0
    assert path.read_bytes() == before
    assert put(format, path, results(photos)[:1], V2, append=True) == 1
    assert list(read(format, path)) == ["a.jpg"]
    assert put(format, path, results(photos), append=True) == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("format", DOCUMENTS)
def test_an_interrupted_run_goes_on(photos: Path, format: str) -> None:
    path = photos / OUTPUT.get(format, "out.json")

    def interrupted(append: bool) -> None:
        with open_sink(format, path, V1, append=append) as sink:
            sink.write(results(photos)[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted(append=False)
    assert not path.exists()
    with pytest.raises(KeyboardInterrupt):
        interrupted(append=True)
    assert list(read(format, path)) == ["a.jpg"]
    with open_sink(format, path, V1, append=True, dry_run=True) as sink:
        assert sink.has(str(photos / "a.jpg"))
        assert not sink.has(str(photos / "none.jpg"))
    assert put(format, path, results(photos), append=True) == 3
    assert read(format, path) == RIGHT
    os.utime(photos / "a.jpg", (1, 1))  # replaced since
    assert put(format, path, results(photos), append=True) == 1
    assert read(format, path) == RIGHT
    with pytest.raises(InputError, match="--redo"):
        put(format, path, results(photos), append=True, settings="other")


@pytest.mark.parametrize("format", DOCUMENTS)
def test_what_is_there_and_not_ours_stays(photos: Path, format: str) -> None:
    path = photos / OUTPUT.get(format, "out.json")
    path.write_text('{"file_name": "a.jpg", "text": "my own caption"}\n')
    before = path.read_bytes()
    for options in ({}, {"append": True}, {"dry_run": True}):
        with pytest.raises(SinkError, match="something else"):
            put(format, path, results(photos), **options)
    path.unlink()
    put(format, path, results(photos))
    ours = path.read_bytes()
    (photos / f".{path.name}.pvp-fast").unlink()
    with pytest.raises(SinkError, match="are gone"):
        put(format, path, results(photos)[:1], append=True)
    assert path.read_bytes() == ours != before


def test_images_that_a_document_cannot_name_are_told_of(photos: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "b.jpg"
    shutil.copy(photos / "a.jpg", elsewhere)
    inside = TagResult(str(photos / "a.jpg"), (Tag("dog", 0.5, 0),))
    for format, image, reason in (
        ("imagefolder", str(elsewhere), "lies outside"),
        ("label-studio", str(elsewhere), "lies outside"),
        ("imagefolder", str(photos / "shard.tar" / "a.jpg"), "no file"),
        ("fiftyone", str(photos / "shard.tar" / "a.jpg"), "no file"),
        ("coco", str(photos / "bad\udcff.jpg"), "not UTF-8"),
    ):
        path = photos / OUTPUT.get(format, f"{format}.json")
        with open_sink(format, path, V1) as sink:
            assert reason in str(sink.write(TagResult(image, (Tag("dog", 0.5, 0),))))
            assert sink.write(inside) is None
        assert list(read(format, path)) == ["a.jpg"]
    put("coco", photos / "coco.json", [TagResult(str(elsewhere), ())])
    assert list(read("coco", photos / "coco.json")) == ["../b.jpg"]


def test_a_folder_that_was_moved_keeps_its_document(photos: Path, tmp_path: Path) -> None:
    put("imagefolder", photos, results(photos), append=True)
    moved = tmp_path / "elsewhere" / "photos"
    moved.parent.mkdir()
    shutil.move(photos, moved)
    assert put("imagefolder", moved, results(moved)[:1], append=True) == 1
    assert read("imagefolder", moved / "metadata.jsonl") == RIGHT


def test_names_of_outputs(photos: Path) -> None:
    for format in DOCUMENTS:
        ending = "jsonl" if format == "imagefolder" else "json"
        assert format_for(f"x.{ending}", format) == format
        with pytest.raises(InputError, match="named as csv"):
            format_for("x.csv", format)
        with pytest.raises(InputError, match="-o FILE"):
            open_sink(format, sys.stdout, V1)
    with pytest.raises(InputError, match=r"metadata\.jsonl"):
        open_sink("imagefolder", photos / "tags.jsonl", V1)


@pytest.mark.parametrize("format", DOCUMENTS)
def test_no_image_at_all_is_a_document_too(photos: Path, format: str) -> None:
    path = photos / OUTPUT.get(format, "out.json")
    put(format, path, [], append=True)
    assert read(format, path) == {}
    put(format, path, results(photos), append=False)
    assert read(format, path) == RIGHT


def test_datasets_reads_the_folder(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    put("imagefolder", photos, results(photos), append=True)
    loaded = datasets.load_dataset(
        "imagefolder",
        data_dir=str(photos),
        data_files={"train": "**"},
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert len(loaded) == len(RIGHT)  # the damaged one has no row and is not opened
    for row, (shade, tags) in zip(loaded, enumerate(RIGHT.values()), strict=True):
        assert row["image"].size == (8, 6)
        assert abs(row["image"].getpixel((0, 0))[0] - shade) <= 1  # JPEG
        assert [(tag["name"], tag["score"]) for tag in row["tags"]] == tags
        assert row["artifact"] == V1


def test_pycocotools_reads_the_labels(photos: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    put("coco", photos / "coco.json", results(photos))
    found = coco.COCO(str(photos / "coco.json"))
    assert [c["name"] for c in found.loadCats(found.getCatIds())] == list(NAMES)
    (dog,) = found.getCatIds(catNms=["dog"])
    (image,) = found.loadImgs(found.getImgIds(catIds=[dog]))
    assert image["file_name"] == "a.jpg"
    labels = found.loadAnns(found.getAnnIds(imgIds=[image["id"]]))
    assert [(label["category_id"], label["score"]) for label in labels] == [(1, 0.75), (3, 0.25)]


def test_label_studio_takes_the_predictions(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interface = pytest.importorskip("label_studio_sdk.label_interface")
    put("label-studio", photos / "tasks.json", results(photos))
    tasks = json.loads((photos / "tasks.json").read_text())
    config = interface.LabelInterface(label_config(NAMES))
    config.validate()
    for task in tasks:
        assert config.validate_task({"data": task["data"]})
        for prediction in task["predictions"]:
            assert config.validate_prediction(prediction, return_errors=True) == []
    strange = {**tasks[0]["predictions"][0]}
    strange["result"] = [{**strange["result"][0], "value": {"choices": ["unheard of"]}}]
    assert config.validate_prediction(strange, return_errors=True)
    paths = pytest.importorskip("label_studio_sdk._extensions.label_studio_tools.core.utils.io")
    monkeypatch.setattr(paths, "LOCAL_FILES_DOCUMENT_ROOT", str(photos))
    for task, name in zip(tasks, RIGHT, strict=True):
        found = paths.resolve_local_storage_file(task["data"]["image"])
        assert os.path.samefile(found, photos / name)


def test_fiftyone_reads_the_labels(photos: Path) -> None:
    importers = pytest.importorskip("fiftyone.utils.data.importers")
    put("fiftyone", photos / "labels.json", results(photos))
    reader = importers.FiftyOneImageClassificationDatasetImporter(
        labels_path=str(photos / "labels.json")
    )
    found = {}
    with reader:
        for path, _, labels in reader:
            tags = [(c.label, c.confidence) for c in labels.classifications]
            found[os.path.relpath(path, photos)] = tags
    assert found == RIGHT


def test_duckdb_asks_the_parquet(photos: Path) -> None:
    """The queries of docs/how-to/other-tools.md."""
    duckdb = pytest.importorskip("duckdb")
    pytest.importorskip("pyarrow")
    page = Path(__file__).parents[2] / "docs" / "how-to" / "other-tools.md"
    queries = page.read_text(encoding="utf-8").split("```sql\n")[1:]
    one, folder, counts = (query.partition("```")[0] for query in queries)
    put("parquet", photos / "tags.parquet", results(photos))
    put("parquet", photos / "tagged", results(photos), append=True)
    put("parquet", photos / "tagged", results(photos)[:1], V2, append=True)
    with duckdb.connect() as database:
        for query in (one, folder):
            asked = query.replace("'tag", f"'{photos}/tag")
            assert asked != query
            assert database.sql(asked).fetchall() == [(str(photos / "a.jpg"), 0.75)]
        asked = counts.replace("'tag", f"'{photos}/tag")
        assert sorted(database.sql(asked).fetchall()) == [
            ("cat & <mouse>", 1, 0.5),
            ("dog", 1, 0.75),
            ("Äpfel", 1, 0.25),
        ]
