"""Lists of names as other programs write them, brought into one form.

Data sets, taggers and photo managers each keep their names in a file of their own: ids beside them,
a table, a tree, a detector's settings. What is known is read, and said in a sentence each; what is
not stays as it is, for :mod:`pvp_fast.vocabulary.problems` to say why it cannot be used.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from pvp_fast.errors import InputError

_WORDNET = re.compile(r"n\d{8}\b[\s:;,]*")
_FREEBASE = re.compile(r"/[mgt]/\w+[\s:;,]*")
_NUMBERED = re.compile(r"(\d+)(?:[.):;]\s*|\s+)(?=\S)")
_INDEXED = re.compile(r"(.*\S)[\s:=]+(\d+)")
_PLACE = re.compile(r"/([a-z])/\1[\w'-]*(?:/[\w'-]+)*(?:\s+\d+)?")
_BULLET = re.compile(r"[-*+\u2022\u2023\u25aa\u00b7\u2013\u2014]\s+(?=\w)")
_PBTXT = re.compile(r"""\b(display_name|name)\s*:\s*(?:"([^"\n]*)"|'([^'\n]*)')""")
_INTEGER = re.compile(r"-?\d+")
# Columns of tables, the most telling first: Open Images calls its ids LabelName.
_NAME_COLUMNS = (
    *("displayname", "name", "classname", "categoryname", "tagname", "labelname"),
    *("class", "label", "tag", "category", "keyword", "names", "labels", "tags", "keywords"),
)
_SYNONYM_COLUMNS = frozenset(["synonyms", "synonym", "aliases", "alias", "othernames"])
_OTHER_COLUMNS = frozenset({
    "id", "ids", "index", "idx", "number", "mid", "wnid", "synset", "tagid", "classid", "labelid",
    "categoryid", "count", "postcount", "type", "ips", "frequency", "definition", "def",
    "description", "supercategory", "parent", "color", "imagecount", "instancecount", "ignore",
})  # fmt: skip
# What COCO, LVIS, CVAT and their like say of a class besides its name.
_FOREIGN = frozenset({
    "id", "supercategory", "synset", "def", "definition", "frequency", "image_count",
    "instance_count", "color", "isthing", "attributes", "type", "keypoints", "skeleton", "mid",
    "count", "parent", "sublabels", "svg", "elements",
})  # fmt: skip
_WRAPPERS = ("names", "categories", "classes", "labels", "class_names", "id2label", "tags")
_COMPANY = frozenset({
    "nc", "path", "train", "val", "valid", "test", "download", "roboflow", "info", "images",
    "annotations", "licenses", "version", "id2label", "label2id", "model_type", "architectures",
    "channels", "names", "kpt_shape", "flip_idx", "num_labels", "image_size", "task",
})  # fmt: skip
_RATING = "9"  # booru taggers' kind of tags that rate a picture


class Recognised(NamedTuple):
    """What a file holds as a list of names, synonyms and labels, and what is said of it.

    Attributes:
        data: what :func:`pvp_fast.vocabulary.categories` reads.
        notes: sentences. loose: names are written by no person for sentences, as booru tags are:
            marks inside them are spaces.
    """

    data: Any
    notes: tuple[str, ...] = ()
    loose: bool = False


def recognised_text(text: str, ending: str) -> Recognised:
    """A text file's names.

    Args:
        ending: of the file, in small letters with its dot.

    Raises:
        InputError: it is of a kind that holds no list of names.
    """
    start = text.lstrip()
    if start.startswith(("[", "{")):
        for read in (json.loads, _json_lines):
            try:
                return recognised_data(read(text))
            except ValueError:
                continue
    if start.startswith("<"):
        raise InputError("it is XML or HTML; give the names alone, one a line")
    if ending == ".pbtxt" or re.match(r"item\s*\{", start):
        return _pbtxt(text)
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    if any(line.startswith("\t") for line in lines[1:]):
        return _tree(lines)
    if lines and all(_PLACE.fullmatch(line.strip()) for line in lines):
        return _places(lines)
    if lines and all("|" in line for line in lines):
        return _paths(lines)
    return _table(_rows(text, ending), ending in (".csv", ".tsv", ".tab"))


def recognised_data(data: Any) -> Recognised:
    """The names of what a JSON or YAML file holds."""
    notes: list[str] = []
    if isinstance(data, Mapping) and not (set(data) == {"categories"} and _is_own(data)):
        key = next((k for k in _WRAPPERS if isinstance(data.get(k), list | dict)), None)
        others = {str(k) for k in data if k != key}
        if key is not None and others <= _COMPANY | set(_WRAPPERS):
            notes.append(f"names from {key!r}")
            data = data[key]
    if isinstance(data, Mapping) and data:
        data = _of_mapping(data, notes)
    if isinstance(data, list):
        left: set[str] = set()
        entries = [_of_entry(entry, left) for entry in data]
        if left:
            notes.append(f"fields left out: {', '.join(sorted(left))}")
        data = entries
    return Recognised(data, tuple(notes))


def _is_own(data: Mapping[Any, Any]) -> bool:
    listed = data["categories"]
    return isinstance(listed, list) and not any(
        isinstance(entry, Mapping) and set(map(str, entry)) & _FOREIGN for entry in listed
    )


def _json_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _of_mapping(data: Mapping[Any, Any], notes: list[str]) -> Any:
    """A mapping between numbers or ids and names; any other as it is."""
    keys, values = list(map(str, data)), list(data.values())
    if all(map(_INTEGER.fullmatch, keys)):
        ordered = [data[key] for key in sorted(data, key=lambda key: int(str(key)))]
        if all(isinstance(v, list) and len(v) == 2 and _is_wordnet(v[0]) for v in ordered):
            notes.append("WordNet ids left out")
            return [v[1] for v in ordered]
        if all(isinstance(v, str) for v in ordered):
            notes.append("numbers left out")
            return [_words(v) for v in ordered]
    if all(map(_is_wordnet, keys)) and all(isinstance(v, str | list) for v in values):
        notes.append("WordNet ids left out")
        return [_words(v) if isinstance(v, str) else v[-1] for v in values if v]
    if all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        notes.append("numbers left out")
        return sorted(keys, key=dict(zip(keys, values, strict=True)).__getitem__)
    return data


def _is_wordnet(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"n\d{8}", value))


def _of_entry(entry: Any, left: set[str]) -> Any:
    if not isinstance(entry, Mapping) or "name" not in entry:
        return entry
    foreign = {key for key in entry if key in _FOREIGN}
    left.update(foreign)
    plain = {key: value for key, value in entry.items() if key not in foreign}
    if isinstance(plain.get("synonyms"), list):  # LVIS lists the name among them
        plain["synonyms"] = [word for word in plain["synonyms"] if word != plain["name"]]
    return plain


def _words(text: str) -> Any:
    """A name and, behind commas, other words for it."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return {"name": parts[0], "synonyms": parts[1:]} if len(parts) > 1 else text


def _pbtxt(text: str) -> Recognised:
    names = []
    for item in re.split(r"\bitem\s*\{", text)[1:]:
        found = {key: one or two for key, one, two in _PBTXT.findall(item)}
        if found:
            names.append(found.get("display_name", found.get("name")))
    return Recognised(names, ("a label map of TensorFlow's object detection",))


def _tree(lines: Sequence[str]) -> Recognised:
    """A keyword list as Lightroom and darktable export it: a tree by tabs, synonyms in braces.

    Keywords in square brackets, or behind a tilde, are not exported with pictures: they only
    order the others.
    """
    items: list[dict[str, Any]] = []
    above: list[str] = []  # keywords on the way to the present one
    last: dict[str, Any] | None = None
    hidden = 0
    for line in lines:
        depth, word = len(line) - len(line.lstrip("\t")), line.strip()
        if word.startswith("{") and word.endswith("}"):
            if last is not None:
                last["synonyms"].append(word[1:-1].strip())
            continue
        private = (word.startswith("[") and word.endswith("]")) or word.startswith("~")
        word = word.strip("[]~ ") if private else word
        above = [*above[:depth], word]
        if private:
            hidden, last = hidden + 1, None
            continue
        last = {"name": word, "synonyms": [], "under": above[:-1]}
        items.append(last)
    left = f", {hidden} that only order the others left out" if hidden else ""
    note = f"a tree of {len(items)} keywords{left}"
    return Recognised(_told_apart(items), (note,))


def _told_apart(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keywords that several branches have get the one above them in brackets."""
    places: dict[str, set[str]] = {}
    for item in items:
        places.setdefault(item["name"].casefold(), set()).add("|".join(item["under"]))
    plain = []
    for item in items:
        name, under = item["name"], item["under"]
        if len(places[name.casefold()]) > 1 and under:
            name = f"{name} ({under[-1]})"
        plain.append({"name": name, "synonyms": item["synonyms"]})
    return plain


def _paths(lines: Sequence[str]) -> Recognised:
    """Hierarchical keywords a line, ``Animals|Dog``: the last part is the name."""
    items = []
    for line in lines:
        *under, name = [part.strip() for part in line.split("|") if part.strip()]
        items.append({"name": name, "synonyms": [], "under": under})
    return Recognised(_told_apart(items), ("paths of keywords: the last part is the name",))


def _places(lines: Sequence[str]) -> Recognised:
    """Places365: ``/a/apartment_building/outdoor 8``."""
    items = []
    for line in lines:
        path = re.sub(r"\s+\d+$", "", line.strip())[3:]
        kind, *rest = path.replace("_", " ").split("/")
        whole = {"name": " ".join([*rest[::-1], kind]), "label": f"{kind} ({', '.join(rest)})"}
        items.append(whole if rest else {"name": kind})
    return Recognised(items, ("a list of Places: letters and numbers left out",))


def _rows(text: str, ending: str) -> list[list[str]]:
    """Cells of the lines, without comments; quoted cells are one."""
    # A comment stands alone or behind a space: "C#" is a name.
    lines = [re.split(r"(?:^|\s)#", line)[0] for line in text.splitlines()]
    lines = [line for line in lines if line.strip()]
    first = lines[0] if lines else ""
    tabbed = sum("\t" in line.strip() for line in lines)
    delimiter = ","
    if tabbed and (ending in (".tsv", ".tab") or tabbed == len(lines)):
        delimiter = "\t"
    elif ending == ".csv" and ";" in first and "," not in first:
        delimiter = ";"
    rows = [_cells(line, delimiter) for line in lines]
    if delimiter == "\t":  # further words behind commas, as elsewhere
        rows = [[*row[:-1], *_cells(row[-1], ",")] for row in rows if row]
    return [row for row in rows if any(row)]


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        row = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
    except csv.Error as error:
        raise InputError(f"a line is no table's ({error}): {line[:40]!r}") from error
    return [cell.strip() for cell in row]


def _table(rows: list[list[str]], is_table: bool) -> Recognised:
    notes: list[str] = []
    columns = [re.sub(r"[^a-z]", "", cell.casefold()) for cell in rows[0]] if rows else []
    known = {*_NAME_COLUMNS, *_SYNONYM_COLUMNS, *_OTHER_COLUMNS}
    named = [name for name in _NAME_COLUMNS if name in columns]
    if named and known.issuperset(columns) and (is_table or len(columns) > 1):
        return _headed(rows, columns, named[0])
    if bullets := sum(bool(_BULLET.match(row[0])) for row in rows):
        rows = [[_BULLET.sub("", row[0], count=1), *row[1:]] for row in rows]
        notes.append(f"bullets of {bullets} lines left out")
    loose = len(rows) > 1 and all(
        len(row) > 2 and _INTEGER.fullmatch(row[1]) and _INTEGER.fullmatch(row[2]) for row in rows
    )
    for pattern, what in ((_WORDNET, "WordNet ids"), (_FREEBASE, "Freebase ids")):
        with_id = rows and all(pattern.match(row[0]) for row in rows)
        if with_id and any(len(row) > 1 or not pattern.fullmatch(row[0]) for row in rows):
            rows = _without_first(rows, partial(pattern.sub, "", count=1))
            notes.append(f"{what} left out")
    if better := _without_numbers(rows):
        rows = better
        notes.append("numbers left out")
    if loose:
        notes.append("a tagger's table: names from the first column")
        items = [
            {"name": row[0], "synonyms": _plain_words(row[3:])}
            for row in _signs_left_out(rows, notes)
        ]
        return Recognised(items, tuple(notes), loose=True)
    if is_table and rows and all(len(row) > 1 and _INTEGER.fullmatch(row[-1]) for row in rows):
        rows = [row[:-1] for row in rows]
        notes.append("the last column, of numbers, left out")
    items = [_named(row[0], row[1:]) for row in rows]
    return Recognised(items, tuple(notes))


def _named(name: str, more: Sequence[str]) -> dict[str, Any]:
    """A cell of a table, in which commas were quoted, and other words."""
    first, *rest = [part.strip() for part in name.split(",")]
    words = [word for word in (*rest, *more) if word and word.casefold() != first.casefold()]
    return {"name": first, "synonyms": words}


def _without_first(rows: list[list[str]], stripped: Callable[[str], str]) -> list[list[str]]:
    """Rows whose first cell has lost its id, or is gone where nothing else was in it."""
    plain = []
    for row in rows:
        rest = stripped(row[0])
        plain.append([rest, *row[1:]] if rest else row[1:])
    return plain


def _without_numbers(rows: list[list[str]]) -> list[list[str]] | None:
    """Rows without the numbers of a list; None where numbers are no such: "18 wheeler"."""
    if len(rows) < 2:
        return None
    if all(len(row) > 1 and row[0].isdecimal() for row in rows):
        numbers, plain = [row[0] for row in rows], [row[1:] for row in rows]
    elif all(found := [_NUMBERED.match(row[0]) for row in rows]):
        numbers = [match[1] for match in found if match]
        plain = _without_first(rows, partial(_NUMBERED.sub, "", count=1))
    elif all(found := [_INDEXED.fullmatch(row[-1]) for row in rows]):
        numbers = [match[2] for match in found if match]
        plain = [[*row[:-1], match[1]] for row, match in zip(rows, found, strict=True) if match]
        if list(map(int, numbers)) != list(range(int(numbers[0]), int(numbers[0]) + len(rows))):
            return None  # "boeing 707", "boeing 747"
    else:
        return None
    order = list(map(int, numbers))
    names = {row[0].casefold() for row in plain}
    ascending = all(a < b for a, b in pairwise(order))
    return plain if ascending and len(names) == len(plain) else None


def _headed(rows: list[list[str]], columns: Sequence[str], name: str) -> Recognised:
    """A table whose first line names its columns."""
    place = columns.index(name)
    body = [row for row in rows[1:] if len(row) > place and row[place]]
    more = [i for i, column in enumerate(columns) if column in _SYNONYM_COLUMNS]
    shown = [cell for i, cell in enumerate(rows[0]) if i != place and i not in more]
    notes = [f"a table: names from {rows[0][place]!r}"]
    if shown:
        notes.append(f"columns left out: {', '.join(shown)}")
    kinds = columns.index("category") if "category" in columns and name != "category" else None
    loose = kinds is not None and any(c in columns for c in ("count", "postcount", "tagid"))
    if loose and kinds is not None:
        things = [row for row in body if len(row) <= kinds or row[kinds] != _RATING]
        if len(things) < len(body):
            notes.append(f"{len(body) - len(things)} ratings left out")
        body = _signs_left_out([[row[place], *row] for row in things], notes)
        place, more = place + 1, [i + 1 for i in more]
    items = []
    for row in body:
        words = _plain_words([row[i] for i in more if i < len(row)])
        whole = {"name": row[place], "synonyms": words}
        items.append(whole if loose else _named(row[place], words))
    return Recognised(items, tuple(notes), loose)


def _plain_words(cells: Sequence[str]) -> list[str]:
    """The synonyms of a table's cells, without signs."""
    words = (word.strip() for cell in cells for word in re.split(r"[;|,]", cell))
    return [word for word in words if word and not _is_sign(word)]


def _signs_left_out(rows: list[list[str]], notes: list[str]) -> list[list[str]]:
    """Rows whose first cell is no face such as ``^_^`` or ``:d``, which no text tower reads."""
    signs = [row[0] for row in rows if _is_sign(row[0])]
    if signs:
        notes.append(f"{len(signs)} signs without a word left out, such as {signs[0]!r}")
    return [row for row in rows if not _is_sign(row[0])]


def _is_sign(name: str) -> bool:
    return not name.isalnum() and not re.search(r"[^\W_]{2}", name)
