"""Lists of names in the shapes that data sets, taggers and photo managers write."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvp_fast.errors import InputError
from pvp_fast.vocabulary import Category, Vocabulary

IMAGENET = "n02012849 crane\nn04356056 sunglasses, dark glasses, shades\nn03126707 crane\n"
DEVKIT = "n02119789 1 kit_fox\nn02100735 2 English_setter\n"
CLASS_INDEX = '{"1": ["n01443537", "goldfish"], "0": ["n01484850", "great_white_shark"]}'
LVIS = """{"info": {}, "images": [], "annotations": [], "categories": [
 {"name": "crab_(animal)", "id": 1, "synset": "crab.n.01", "def": "x", "frequency": "c",
  "synonyms": ["crab_(animal)"], "image_count": 3, "instance_count": 4},
 {"name": "bow_(weapon)", "id": 2, "synonyms": ["bow_(weapon)"]},
 {"name": "bow_(decorative_ribbons)", "id": 3, "synonyms": ["bow_(decorative_ribbons)"]},
 {"name": "aerosol_can", "id": 4, "synonyms": ["aerosol_can", "spray_can"]}]}"""
COCO = '{"categories": [{"supercategory": "food", "id": 1, "name": "hot dog"}]}'
BOXABLE = "/m/011k07,Tortoise\n/m/01226z,Football\n"
OPEN_IMAGES = "LabelName,DisplayName\n/m/0100nhbf,Sprenger's tulip\n/m/0104x9kv,Vinegret\n"
ATTRIBUTES = "/m/02gy9n,Transparent\n/m/0dnr7,(made of)Textile\n"
AUDIOSET = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/m/05zppz,"Male speech, a man"\n'
WD14 = """tag_id,name,category,count
9999999,general,9,807858
470575,1girl,0,4225150
1,:d,0,10
2,^_^,0,9
3,hatsune_miku,4,3
4,saber_(fate),4,2
5,re:zero,3,2
6,girls'_frontline,3,1
"""
BOORU = '1girl,0,6008644,"1girls,sole_female"\nlong_hair,0,4350743,"/lh,longhair"\nmiku,4,1,\n'
PLACES = "/a/airfield 0\n/b/balcony/exterior 32\n/b/balcony/interior 33\n/s/stadium/baseball 312\n"
LIGHTROOM = """[ANIMALS]
\tbird
\t\t{avian}
\t\tcrane
\tdog
\t\t{hound}
\t\t{canine}
MACHINES
\tcrane
~family
sunset
"""
ULTRALYTICS = "path: ../coco\ntrain: a\nval: b\nnames:\n  0: person\n  1: hot dog\n"
PBTXT = """item {
  name: "/m/01g317"
  id: 1
  display_name: "person"
}
item { name: 'cat' id: 2 }
"""
CONFIG = '{"model_type": "vit", "id2label": {"0": "tench, Tinca tinca", "1": "goldfish"}}'
CVAT = '[{"name": "traffic_light", "color": "#ff0000", "type": "any", "attributes": []}]'
EXCEL = "Keyword;Synonyms;Count\nbeach;seaside|shore;12\nbirthday cake;;3\n"


@pytest.mark.parametrize(
    ("name", "text", "expected", "said"),
    [
        (
            "synset_words.txt",
            IMAGENET,
            ["crane", Category("sunglasses", ("dark glasses", "shades"))],
            "WordNet ids left out; standing twice and taken once: crane",
        ),
        ("map_clsloc.txt", DEVKIT, ["kit fox", "English setter"], "numbers left out"),
        ("index.json", CLASS_INDEX, ["great white shark", "goldfish"], "WordNet ids left out"),
        (
            "lvis_v1_train.json",
            LVIS,
            [
                Category("crab animal", ("crab",), label="crab (animal)"),
                Category("bow weapon", label="bow (weapon)"),
                Category("bow decorative ribbons", label="bow (decorative ribbons)"),
                Category("aerosol can", ("spray can",)),
            ],
            "fields left out: def, frequency, id, image_count, instance_count, synset",
        ),
        ("instances.json", COCO, ["hot dog"], "names from 'categories'"),
        ("boxable.csv", BOXABLE, ["Tortoise", "Football"], "Freebase ids left out"),
        ("oid.csv", OPEN_IMAGES, ["Sprenger's tulip", "Vinegret"], "names from 'DisplayName'"),
        (
            "attributes.csv",
            ATTRIBUTES,
            ["Transparent", Category("made of Textile", ("textile",), label="(made of)Textile")],
            "brackets",
        ),
        (
            "class_labels_indices.csv",
            AUDIOSET,
            ["Speech", Category("Male speech", ("a man",))],
            "columns left out: index, mid",
        ),
        (
            "selected_tags.csv",
            WD14,
            [
                "1girl",
                "hatsune miku",
                Category("saber fate", ("saber",), label="saber (fate)"),
                Category("re zero", label="re:zero"),
                "girls' frontline",
            ],
            "1 ratings left out; 2 signs without a word left out, such as ':d'",
        ),
        (
            "danbooru.csv",
            BOORU,
            [
                Category("1girl", ("1girls", "sole female")),
                Category("long hair", ("/lh", "longhair")),
                "miku",
            ],
            "a tagger's table",
        ),
        (
            "tags.txt",
            "hatsune_miku\nsaber_\\(fate\\)\n",
            ["hatsune miku", Category("saber fate", ("saber",), label="saber (fate)")],
            "underscores read as spaces",
        ),
        (
            "categories_places365.txt",
            PLACES,
            [
                "airfield",
                Category("exterior balcony", label="balcony (exterior)"),
                Category("interior balcony", label="balcony (interior)"),
                Category("baseball stadium", label="stadium (baseball)"),
            ],
            "a list of Places",
        ),
        (
            "Lightroom Keywords.txt",
            LIGHTROOM,
            [
                Category("bird", ("avian",)),
                Category("crane bird", label="crane (bird)"),
                Category("dog", ("hound", "canine")),
                "MACHINES",
                Category("crane MACHINES", label="crane (MACHINES)"),
                "sunset",
            ],
            "a tree of 6 keywords, 2 that only order the others left out",
        ),
        ("paths.txt", "Animals|Dog\nPlaces|France|Paris\n", ["Dog", "Paris"], "paths of keywords"),
        ("coco.yaml", ULTRALYTICS, ["person", "hot dog"], "names from 'names'; numbers left out"),
        ("label_map.pbtxt", PBTXT, ["person", "cat"], "a label map"),
        ("config.json", CONFIG, [Category("tench", ("Tinca tinca",)), "goldfish"], "'id2label'"),
        ("cvat.json", CVAT, ["traffic light"], "fields left out: attributes, color, type"),
        ("label2id.json", '{"dog": 1, "cat": 0}', ["cat", "dog"], "numbers left out"),
        ("caltech.txt", "003.backpack\n024.butterfly\n", ["backpack", "butterfly"], "numbers"),
        ("labels.txt", "0 rock\n1 paper\n", ["rock", "paper"], "numbers left out"),
        ("dataset.txt", "rock 0\npaper 1\n", ["rock", "paper"], "numbers left out"),
        (
            "keywords.csv",
            EXCEL,
            [Category("beach", ("seaside", "shore")), "birthday cake"],
            "names from 'Keyword'",
        ),
        ("tags.tsv", "dog\tpuppy\ncat\n", [Category("dog", ("puppy",)), "cat"], ""),
        ("objects365.csv", "1,Person,Person\n2,Car,Car\n", ["Person", "Car"], "numbers left out"),
        ("counts.csv", "dog,12\ncat,9\n", ["dog", "cat"], "of numbers, left out"),
        ("list.md", "- dog\n* cat\n", ["dog", "cat"], "bullets of 2 lines left out"),
        ("quoted.txt", '"dog"\n"cat"\n', ["dog", "cat"], ""),
        ("names.jsonl", '{"name": "dog", "id": 1}\n{"name": "cat"}\n', ["dog", "cat"], "id"),
        ("words.txt", '["cat", "dog"]\n', ["cat", "dog"], ""),
        ("plain.txt", "beach\ndog\n", ["beach", "dog"], ""),
        ("kinds.txt", "boeing 707\nboeing 747\n", ["boeing 707", "boeing 747"], ""),
        ("coins.txt", "1 euro coin\n2 euro coin\n", ["1 euro coin", "2 euro coin"], ""),
    ],
)
def test_a_list_is_read_as_it_is_found(
    tmp_path: Path, name: str, text: str, expected: list[Category | str], said: str
) -> None:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    lines: list[str] = []
    assert Vocabulary.load(path, say=lines.append) == Vocabulary(expected)
    assert len(lines) == bool(said)  # one line, and none where there is nothing to say
    assert said in "".join(lines)
    assert all(line.startswith(f"{name}: ") for line in lines)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("wnids.txt", "n01440764\nn01443537\n", "give the list that has the words beside them"),
        ("page.html", "<ul><li>dog</li></ul>", "it is XML or HTML; give the names alone"),
        ("typo.yaml", "- {name: dog, synonym: [puppy]}\n", "unknown field 'synonym'"),
        ("mixed.txt", "1 dog\n2 cat\n3 cow\n4 pig\nhen\n", "4 of 5 names begin with a number"),
    ],
)
def test_what_is_not_known_says_what_would_work(
    tmp_path: Path, name: str, text: str, says: str
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="vocabulary ") as caught:
        Vocabulary.load(tmp_path / name)
    assert says in str(caught.value)


def test_words_that_are_also_keys_of_settings_stay_names(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("cat: [kitten]\nclasses: [lessons]\n", encoding="utf-8")
    assert Vocabulary.load(tmp_path / "own.yaml").names == ("cat", "classes")


def test_a_category_is_found_by_what_its_tags_say() -> None:
    words = Vocabulary([Category("saber fate", label="saber (fate)"), "dog", "cat"])
    assert words.index("Saber (Fate)") == words.index("saber_fate") == 0
    both = Vocabulary([Category("crane bird", label="crane"), Category("jib", label="crane")])
    with pytest.raises(InputError, match="no category 'crane'"):
        both.index("crane")
