"""Lists of names as they are found: everything wrong is told at once, with what would work."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvp_fast.errors import InputError
from pvp_fast.vocabulary.categories import Category, Vocabulary


def refused(tmp_path: Path, text: str, ending: str = "txt") -> str:
    path = tmp_path / f"words.{ending}"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        Vocabulary.load(path)
    assert path.name in str(caught.value)
    return str(caught.value)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, "^_^\nC\nhot_dog\nC#\ndog; hound\nblue\\-sky\n")
    assert "4 problems" in message
    assert all(f"({number}) " in message for number in range(1, 5))
    assert "'^_^' is empty" in message
    assert "two categories are called 'C' and 'C#'; merge them" in message
    assert "'dog; hound': no sentence has these marks inside a name; write 'dog'" in message
    assert "has a backslash; write 'blue-sky'" in message
    assert "hot_dog" not in message  # read with a space


@pytest.mark.parametrize(
    ("text", "ending", "parts"),
    [
        ("1 dog\n2 cat\n3 cow\n4 pig\nhen\n", "txt", ("4 of 5 names", "a number", "'dog'")),
        ("- 'couch; sofa'\n", "yaml", ("write 'couch' with the synonyms ['sofa']",)),
        ("C\nC#\nC++\n", "txt", ("3 categories are called 'C' and 'C#' and 'C++'",)),
        ("- ':('\n- '+++'\n- dog\n", "yaml", ("2 problems", "':('", "'+++'")),
        ("- no\n- 3\n- dog\n- dog's\n", "yaml", ("3 problems", "quotes", "two categories")),
        (":\\)\nblue\\-sky\n", "txt", ("has a backslash; write 'blue-sky'",)),
        ("\u201ccat\u201d\n", "txt", ("stands in quotes; write 'cat'",)),
        ("c\u200bat\ndog\n", "txt", ("cannot be seen (U+200B); write 'cat'",)),
        ("\u202ddog\n", "txt", ("(U+202D); write 'dog'",)),
        ("ice\u00adcream\n", "txt", ("(U+00AD); write 'icecream'",)),
        ("dog\0cat\n", "txt", ("(U+0000)",)),
    ],
)
def test_what_would_work_is_said(
    tmp_path: Path, text: str, ending: str, parts: tuple[str, ...]
) -> None:
    message = refused(tmp_path, text, ending)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "names",
    [
        "18 wheeler\ndog\ncat\n",
        "washer/dryer\n",
        "rock 'n' roll\n",
        "C#\nF#\n",
        "0\n1\n2\n",
        "name\ndog\n",
        "犬\n猫\n",
    ],
)
def test_unusual_names_that_can_be_found_are_taken(tmp_path: Path, names: str) -> None:
    (tmp_path / "words.txt").write_text(names, encoding="utf-8")
    vocabulary = Vocabulary.load(tmp_path / "words.txt")
    for index, name in enumerate(names.split("\n")[:-1]):
        assert vocabulary.label(f"see {name} here") == (index,)


def test_what_a_run_has_saved_is_read_as_it_is() -> None:
    old = Vocabulary(["crane (bird)", Category("hot_dog", ("frank_furter",))])
    assert Vocabulary.from_dict(old.to_dict()) == old


def test_many_problems_are_shortened(tmp_path: Path) -> None:
    message = refused(tmp_path, "".join(f"thing{i}; x\n" for i in range(30)))
    assert "30 problems" in message
    assert message.endswith("and 10 more")
