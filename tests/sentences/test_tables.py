"""Caption tables: sentences come out of their column, and file names never become labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from pvp_fast.errors import CorpusError
from pvp_fast.sentences import read_captions

ROAD = ["An empty road"]
BOTH = ["An empty road", "A dog, asleep"]


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "text", "sentences"),
    [
        ("a.csv", "image,caption\ncat.0012.jpg,An empty road\n", ROAD),
        ("captions.txt", 'image,caption\ncat.1.jpg,An empty road\nb.jpg,"A dog, asleep"\n', BOTH),
        ("a.csv", "image,caption\ncat.1.jpg,An empty road\nb.jpg,A dog, asleep\n", BOTH),
        ("a.tsv", "filename\ttext\ncat.jpg\tAn empty road\nd.jpg\tA dog, asleep\n", BOTH),
        ("results.csv", "image_name| comment_number| comment\ncat.jpg| 0| An empty road\n", ROAD),
        ("a.csv", "file_name;caption\ncat.jpg;An empty road\n", ROAD),
        ("metadata.csv", "\ufefffile_name,text\r\ncat.jpg,An empty road\r\n", ROAD),
        ("a.csv", "caption,url\nAn empty road,http://x/cat.jpg\n", ROAD),
        ("a.csv", "image,caption_1,caption_2\ncat.jpg,An empty road,\"A dog, asleep\"\n", BOTH),
        ("a.csv", "id,label,Sentence\n1,cat,An empty road\n", ROAD),
        ("a.csv", 'image,caption\ncat.jpg,"An empty\nroad"\n', ["An empty\nroad"]),
        ("a.csv", "caption\nAn empty road\n", ROAD),
        # Without a header, where one of two columns is a file or an address.
        ("a.csv", "cat.0012.jpg,An empty road\n", ROAD),
        ("a.tsv", "An empty road\thttp://host/cat.jpg\nA dog, asleep\thttps://host/1\n", BOTH),
        ("lines.txt", "cat.1.jpg\tAn empty road\ncat.2.jpg\tA dog, asleep\n", BOTH),
        ("lines.txt", "cat.1.jpg An empty road\ncat 2.jpg#1 x\ncat.2.jpg A dog, asleep\n", None),
        ("lines.txt", "cat.1.jpg An empty road\ncat.2.png  A dog, asleep\n", BOTH),
    ],
)  # fmt: skip
def test_tables_are_recognised(
    tmp_path: Path, name: str, text: str, sentences: list[str] | None
) -> None:
    path = write(tmp_path / name, text)
    if sentences is None:  # two lines of three are no table, and prose is taken as it is
        assert len(list(read_captions(path))) == 3
        return
    assert list(read_captions(path)) == sentences
    assert list(read_captions(path, format="table")) == sentences


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "image,label\ncat.jpg,7\n", "no column is known to hold sentences"),
        ("a.csv", "cat.jpg,1,An empty road\ndog.jpg,2,A road\n", "'cat.jpg', '1', 'An empty road'"),
        ("a.csv", "A dog, a cat\nA cat, a dog\n", r"in a \.txt file"),
        ("a.tsv", "image\tcaption\ncat.jpg\n", "row 2 has 1 columns and no caption"),
        ("a.csv", "image,caption\n", "no sentence below its header"),
        ("a.csv", "image,caption\ncat.jpg,\n", "no sentence below its header"),
        ("lines.txt", "a.jpg A road\n" * 9 + "A road without\n", "line 10 has no file name"),
    ],
)
def test_other_tables_are_refused_with_what_works(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(CorpusError, match=message) as caught:
        list(read_captions(write(tmp_path / name, text)))
    assert name in str(caught.value)


def test_a_table_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("image,caption\ncat.jpg,café\n".encode("latin-1"))
    with pytest.raises(CorpusError, match="not UTF-8"):
        list(read_captions(path))


@pytest.mark.parametrize(
    "text",
    [
        "A dog, a cat\nTwo dogs; one cat\n",
        "Comment: a dog\nText, and a cat\n",
        "A sign says www.dogs.com\nA cat\n",
        "photo.jpg is what the label says\nA cat sits\nA dog sits\n",
    ],
)
def test_prose_stays_prose(tmp_path: Path, text: str) -> None:
    assert list(read_captions(write(tmp_path / "lines.txt", text))) == text.splitlines()
