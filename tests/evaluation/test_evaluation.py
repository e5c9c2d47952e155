"""Data set readers on small made-up sets, and the ladder on the demo set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.artifacts import make

from pvp_fast.demo import demo_set
from pvp_fast.errors import InputError
from pvp_fast.evaluation import Features, ladder, read_dataset
from pvp_fast.files import json_text


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_folder_reads_the_demo_set() -> None:
    found = read_dataset("folder", demo_set())
    assert all(path.is_file() for path in found.paths)
    assert found.labels.shape == (len(found.paths), 70)
    assert ((found.labels == 1).sum(0) > 0).all()
    assert set(found.labels.unique().tolist()) == {-1, 1}


def test_voc_keeps_difficult_labels(tmp_path: Path) -> None:
    write(tmp_path / "ImageSets/Main/cat_test.txt", "000001  1\n000002 -1\n")
    write(tmp_path / "ImageSets/Main/dog_test.txt", "000001  0\n000002  1\n")
    found = read_dataset("voc", tmp_path)
    assert found.names == ("cat", "dog")
    assert found.labels.tolist() == [[1, 0], [-1, 1]]
    assert found.paths[0] == tmp_path / "JPEGImages" / "000001.jpg"


def test_coco_instances(tmp_path: Path) -> None:
    data = {
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
        "images": [{"id": 2, "file_name": "b.jpg"}, {"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 2, "category_id": 18}, {"image_id": 2, "category_id": 18}],
    }
    write(tmp_path / "annotations/instances_val2014.json", json.dumps(data))
    found = read_dataset("coco", tmp_path)
    assert found.names == ("car", "dog")
    assert [p.name for p in found.paths] == ["a.jpg", "b.jpg"]
    assert found.labels.tolist() == [[-1, -1], [-1, 1]]


def coco(folder: Path, annotations: list[dict[str, object]]) -> Path:
    data = {
        "categories": [{"id": 3, "name": "car"}],
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": annotations,
    }
    write(folder / "annotations/instances_val2014.json", json.dumps(data))
    return folder


@pytest.mark.parametrize(
    ("stray", "note"),
    [
        ({"image_id": 7, "category_id": 3}, "2 annotations of images that are not listed"),
        ({"image_id": "1", "category_id": 3}, "2 annotations of images that are not listed"),
        ({"image_id": 1, "category_id": 91}, "2 annotations of unknown categories"),
        ({"image_id": 1, "category_id": None}, "2 annotations of unknown categories"),
    ],
    ids=["unlisted image", "id as text", "unknown category", "no category"],
)
def test_coco_annotations_of_what_is_not_listed_are_counted(
    stray: dict[str, object], note: str, tmp_path: Path
) -> None:
    found = read_dataset("coco", coco(tmp_path, [stray, {"image_id": 1, "category_id": 3}, stray]))
    assert found.labels.tolist() == [[1]]
    (only,) = found.notes
    assert only.startswith(note)
    key = "image_id" if "images" in note else "category_id"
    assert only.endswith(f"{key} {stray[key]}")


def test_a_note_names_five_and_counts_the_rest(tmp_path: Path) -> None:
    strays = [{"image_id": i, "category_id": 3} for i in range(100, 120)]
    (note,) = read_dataset("coco", coco(tmp_path, strays)).notes
    assert note.startswith("20 annotations")
    assert note.endswith("image_id 104 and 15 more")


def test_labels_of_unknown_categories_are_counted(tmp_path: Path) -> None:
    photos = {"x.jpg": {"labels": ["a", "zebra"]}, "y.jpg": {"labels": ["zebra"]}}
    write(tmp_path / "labels.json", json.dumps({"categories": ["a"], "photos": photos}))
    found = read_dataset("folder", tmp_path)
    assert found.labels.tolist() == [[1], [-1]]
    assert found.notes == ("2 labels of unknown categories, left out: zebra",)


def test_voc_images_that_a_list_lacks_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "ImageSets/Main/cat_test.txt", "000001  1\n000002 -1\n")
    write(tmp_path / "ImageSets/Main/dog_test.txt", "000001 -1\n")
    found = read_dataset("voc", tmp_path)
    assert found.labels.tolist() == [[1, -1], [-1, 0]]
    assert found.notes == ("1 images without a line for 'dog', difficult there: 000002",)


def test_nuswide_lists(tmp_path: Path) -> None:
    write(tmp_path / "ImageList/TestImagelist.txt", "actor\\0001.jpg\nbird\\0002.jpg\n")
    write(tmp_path / "TrainTestLabels/Labels_sky_Test.txt", "1\n0\n")
    found = read_dataset("nuswide", tmp_path)
    assert found.names == ("sky",)
    assert found.labels.tolist() == [[1], [-1]]
    assert found.paths[0] == tmp_path / "Flickr" / "actor" / "0001.jpg"


def test_paths_in_data_files_stay_inside(tmp_path: Path) -> None:
    data = {"categories": ["a"], "photos": {"../secret.jpg": {"labels": ["a"]}}}
    write(tmp_path / "labels.json", json.dumps(data))
    with pytest.raises(InputError, match="outside"):
        read_dataset("folder", tmp_path)


@pytest.mark.parametrize("kind", ["voc", "coco", "nuswide", "folder", "imagenet"])
def test_missing_data_is_one_clear_error(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        read_dataset(kind, tmp_path)


def test_ladder_matches_categories_by_name_and_lists_the_rest() -> None:
    artifact = make()
    z = artifact.head.adapter.original  # every image is a category's own original vector
    labels = torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.int8)
    features = Features(z, labels, ("Hot-Dog", "zeppelin", "dog"), ((Path("x.jpg"), "damaged"),))
    found = ladder([artifact, make(1)], features)
    assert found.unmatched == ("zeppelin",)
    assert (found.images, found.failures) == (3, 1)
    names = [rung.name for rung in found.rungs]
    assert names[0] == "zero-shot CLIP"
    assert names[-1] == "+ dual adapter"
    assert all(len(rung.map) == 2 for rung in found.rungs)
    assert "±" in found.table()
    # Image 2 is labelled dog and looks like hot dog; image 0 the other way round.
    assert found.rungs[0].map[0] < 100
    with pytest.raises(InputError, match="no category"):
        ladder([artifact], Features(z, labels[:, :1], ("zeppelin",), ()))


def test_the_mean_says_over_how_many_categories() -> None:
    artifact = make()
    z = artifact.head.adapter.original
    labels = torch.tensor([[1, -1, -1], [1, -1, -1], [-1, -1, -1]], dtype=torch.int8)
    found = ladder([artifact], Features(z, labels, artifact.vocabulary.names, ()))
    assert (found.counted, found.categories) == (1, 3)
    assert "over 1 of 3 categories, the others have no positive" in found.table()
    text = json_text(found.to_dict())
    assert "NaN" not in text
    values = list(json.loads(text)["rungs"][0]["per_category"].values())
    assert values[1:] == [None, None]
    with pytest.raises(InputError, match="none of its 3 images shows one of the 3 categories"):
        ladder([artifact], Features(z, -labels.abs(), artifact.vocabulary.names, ()))


def test_a_nan_feature_is_an_error_that_names_image_and_category() -> None:
    artifact = make()
    z = artifact.head.adapter.original.clone()
    z[1] = torch.nan
    labels = torch.ones(3, 3, dtype=torch.int8)
    with pytest.raises(InputError, match=r"row 1, category .* is NaN"):
        ladder([artifact], Features(z, labels, artifact.vocabulary.names, ()))


def test_a_photo_that_names_what_is_absent_leaves_the_rest_unknown(tmp_path: Path) -> None:
    photos = {
        "a.jpg": {"labels": ["dog"]},
        "b.jpg": {"labels": ["cat"], "absent": ["dog", "whale"]},
        "c.jpg": {"labels": [], "absent": []},
    }
    table = {"categories": ["dog", "cat", "car"], "photos": photos}
    (tmp_path / "labels.json").write_text(json.dumps(table))
    found = read_dataset("folder", tmp_path)
    assert found.labels.tolist() == [[1, -1, -1], [-1, 1, 0], [0, 0, 0]]
    assert "whale" in found.notes[0]
