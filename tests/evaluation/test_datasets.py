"""Labelled image sets as other people's tools leave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pvp_fast.errors import InputError
from pvp_fast.evaluation import read_dataset

COCO: dict[str, Any] = {
    "categories": [{"id": 1, "name": "dog"}, {"id": 3, "name": "cat"}],
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "annotations": [{"image_id": 1, "category_id": 1}, {"image_id": 2, "category_id": 3}],
}
USUAL = [[1, -1], [-1, 1]]


def coco(folder: Path, *, encoding: str = "utf-8", **changes: Any) -> Any:
    file = folder / "annotations" / "instances_val2014.json"
    file.parent.mkdir()
    file.write_text(json.dumps({**COCO, **changes}), encoding=encoding)
    return read_dataset("coco", folder)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_that_an_editor_saved_is_read(tmp_path: Path, encoding: str) -> None:
    assert coco(tmp_path, encoding=encoding).labels.tolist() == USUAL
    data = {"categories": ["ä"], "photos": {"a.jpg": {"labels": ["ä"]}}}
    text = json.dumps(data, ensure_ascii=False)
    (tmp_path / "labels.json").write_text(text, encoding=encoding)
    assert read_dataset("folder", tmp_path).names == ("ä",)


def test_an_id_of_two_images_is_told_and_the_first_keeps_it(tmp_path: Path) -> None:
    found = coco(tmp_path, images=[*COCO["images"], {"id": 2, "file_name": "c.jpg"}])
    assert [path.name for path in found.paths] == ["a.jpg", "b.jpg"]
    assert found.labels.tolist() == USUAL
    assert found.notes == ("1 images of an id that was there before, left out: 2",)


def test_a_photo_of_two_ids_is_one_image_with_both_labels(tmp_path: Path) -> None:
    """As where annotations of two sets were put together."""
    found = coco(
        tmp_path,
        images=[*COCO["images"], {"id": 9, "file_name": "a.jpg"}],
        annotations=[*COCO["annotations"], {"image_id": 9, "category_id": 3}],
    )
    assert found.labels.tolist() == [[1, 1], [-1, 1]]
    assert found.notes == ("1 images that are listed again, counted once: a.jpg",)


def test_categories_of_one_name_are_one(tmp_path: Path) -> None:
    found = coco(
        tmp_path,
        categories=[*COCO["categories"], {"id": 4, "name": "dog"}],
        annotations=[*COCO["annotations"], {"image_id": 2, "category_id": 4}],
    )
    assert found.names == ("dog", "cat")
    assert found.labels.tolist() == [[1, -1], [1, 1]]
    assert found.notes == ("1 categories of a name that was there before, counted as one: dog",)


@pytest.mark.parametrize(
    ("categories", "told"),
    [
        ([{"id": 1, "name": "dog"}, {"id": 1, "name": "cat"}], "the category id 1 twice"),
        ([{"id": 1, "name": None}], "a category named None"),
        ([{"id": 1, "name": " "}], "a category named ' '"),
        ([{"id": 1, "name": 7}], "a category named 7"),
    ],
)
def test_categories_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, categories: list[Any], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        coco(tmp_path, categories=categories)


def test_what_was_not_looked_for_is_unknown(tmp_path: Path) -> None:
    """LVIS names the categories that an image certainly lacks; nobody looked for the others."""
    images = [
        {"id": 1, "coco_url": "http://images.cocodataset.org/val2017/a.jpg",
         "neg_category_ids": [3]},
        {"id": 2, "coco_url": "http://images.cocodataset.org/train2017/b.jpg",
         "neg_category_ids": []},
    ]  # fmt: skip
    found = coco(tmp_path, images=images)
    assert found.paths == (tmp_path / "val2014" / "a.jpg", tmp_path / "val2014" / "b.jpg")
    assert found.labels.tolist() == [[1, -1], [0, 1]]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("a.jpg", "val2014/a.jpg"),
        ("val2014/a.jpg", "val2014/a.jpg"),
        ("images/a.jpg", "images/a.jpg"),
        ("sub\\a.jpg", "val2014/sub/a.jpg"),
        ("odd\\name.jpg", "val2014/odd\\name.jpg"),
    ],
)
def test_images_are_found_where_they_lie(tmp_path: Path, name: str, place: str) -> None:
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).touch()
    found = coco(tmp_path, images=[{"id": 1, "file_name": name}], annotations=[])
    assert found.paths == (tmp_path / place,)


@pytest.mark.parametrize("name", ["/etc/a.jpg", "../a.jpg", "..\\..\\a.jpg", "x/../../a.jpg"])
def test_no_path_leads_outside(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="outside"):
        coco(tmp_path, images=[{"id": 1, "file_name": name}], annotations=[])


def voc(folder: Path, *, encoding: str = "utf-8", **lists: str) -> Any:
    main = folder / "ImageSets" / "Main"
    main.mkdir(parents=True)
    for name, text in lists.items():
        (main / f"{name}_test.txt").write_bytes(text.encode(encoding))
    return read_dataset("voc", folder)


@pytest.mark.parametrize(
    ("lists", "encoding"),
    [
        ({"dog": "1 1\r\n2 -1\r\n"}, "utf-8"),
        ({"dog": "1\t1\n2\t-1\n"}, "utf-8"),
        ({"dog": "1 +1\n2  -1"}, "utf-8"),
        ({"dog": "\n1 1 \n\n2 -1\n"}, "utf-8-sig"),
        ({"dog": "1 1\n2 -1\n", "._dog": "\0\5\26\7\0"}, "utf-8"),
    ],
    ids=["Windows", "tabs", "plus", "byte order mark", "AppleDouble"],
)
def test_voc_lists_in_every_spelling(tmp_path: Path, lists: dict[str, str], encoding: str) -> None:
    found = voc(tmp_path, encoding=encoding, **lists)
    assert found.names == ("dog",)
    assert [path.name for path in found.paths] == ["1.jpg", "2.jpg"]
    assert found.labels.tolist() == [[1], [-1]]
    assert found.notes == ()


def test_voc_images_of_other_endings_and_names_with_spaces(tmp_path: Path) -> None:
    names = ["a.JPG", "my photo.png", "2008.01.jpeg", "x.webp"]
    (tmp_path / "JPEGImages").mkdir()
    for name in names:
        (tmp_path / "JPEGImages" / name).touch()
    found = voc(tmp_path, dog="a 1\nmy photo 1\n2008.01 -1\nx.webp 1\ngone -1\n")
    assert {path.name for path in found.paths} == {*names, "gone.jpg"}


def test_contradictions_in_a_voc_list_are_told(tmp_path: Path) -> None:
    found = voc(tmp_path, dog="1 1\n1 -1\n2 1\n2 1\n")
    assert found.labels.tolist() == [[-1], [1]]
    assert found.notes == ("1 contradictions in a list, of which the last counts: 1",)


def test_a_split_is_a_name_and_no_pattern(tmp_path: Path) -> None:
    voc(tmp_path, dog="1 1\n")
    with pytest.raises(InputError, match=r"\*_t\*\.txt"):
        read_dataset("voc", tmp_path, "t*")


def test_nuswide_with_marks_of_other_systems(tmp_path: Path) -> None:
    for name, text in {
        "ImageList/TestImagelist.txt": "\ufeffa\\1.jpg\r\na\\2.jpg\r\n",
        "TrainTestLabels/Labels_sky_Test.txt": "\ufeff0\r\n1\r\n",
        "TrainTestLabels/._Labels_sky_Test.txt": "\0\5",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    found = read_dataset("nuswide", tmp_path)
    assert found.paths == (tmp_path / "Flickr/a/1.jpg", tmp_path / "Flickr/a/2.jpg")
    assert found.labels.tolist() == [[-1], [1]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"categories": ["dog"], "photos": {"a.jpg": {"labels": "dog"}}}', "must be lists"),
        ('{"categories": ["dog"], "photos": {"a.jpg": {"labels": [], "absent": "dog"}}}', "must"),
        ('{"categories": "dog", "photos": {}}', "categories must be a list"),
        ('{"categories": ["dog", "dog"], "photos": {}}', "the category 'dog' 2 times"),
        ('{"categories": [3], "photos": {}}', "a category named 3"),
        ('{"categories": [], "photos": {"a.jpg": {}, "a.jpg": {}}}', "'a.jpg' stands there twice"),
    ],
)
def test_labels_that_say_something_else_are_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(InputError, match=told):
        read_dataset("folder", tmp_path)


def test_present_and_absent_at_once_is_told(tmp_path: Path) -> None:
    entry = {"labels": ["dog"], "absent": ["dog", "cat"]}
    data = {"categories": ["dog", "cat"], "photos": {"x\\a.jpg": entry}}
    (tmp_path / "labels.json").write_text(json.dumps(data))
    found = read_dataset("folder", tmp_path)
    assert found.paths == (tmp_path / "x" / "a.jpg",)
    assert found.labels.tolist() == [[1, -1]]
    assert found.notes == ("1 labels that are both present and absent, counted as present: dog",)
