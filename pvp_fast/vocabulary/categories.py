"""Categories, their synonyms, and the labels that a sentence earns by mentioning them.

METHOD section 2: a sentence stands in for an image, and the categories it mentions are its labels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pvp_fast.errors import InputError
from pvp_fast.files import atomic_write
from pvp_fast.vocabulary.category import Category
from pvp_fast.vocabulary.formats import recognised_data, recognised_text
from pvp_fast.vocabulary.matching import PhraseMatcher, tokenize
from pvp_fast.vocabulary.problems import (
    id_column,
    keyed_by_number,
    raise_problems,
    repeated_names,
    spelling,
)
from pvp_fast.vocabulary.written import as_sentences_write

__all__ = ["BUILTIN", "Category", "Vocabulary"]

BUILTIN = ("voc2007", "coco80", "nuswide81", "pocket70")


class Vocabulary:
    """An ordered set of categories; the position of a category is its label index.

    Args:
        categories: `Category` objects or plain names, at least one.

    Raises:
        InputError: no category, an empty name, or two names that read the same.
    """

    def __init__(self, categories: Iterable[Category | str]) -> None:
        if isinstance(categories, str):
            raise InputError(
                f"categories is the string {categories!r}; give a list of names, or "
                "Vocabulary.builtin(name) for one of the built-in vocabularies"
            )
        items: list[Category] = []
        for item in categories:
            if not isinstance(item, str | Category):
                raise InputError(
                    f"categories holds {item!r} ({type(item).__name__}); give names or Category"
                )
            items.append(Category(item) if isinstance(item, str) else item)
        if not items:
            raise InputError("categories is empty; give at least one category name")
        keys = {item.name: _key(item.name) for item in items}
        raise_problems(repeated_names([item.name for item in items], keys.__getitem__))
        self._categories = tuple(items)
        self._index = {keys[item.name]: position for position, item in enumerate(items)}

    @classmethod
    def builtin(cls, name: str) -> Vocabulary:
        """A vocabulary that ships with the package: one of `BUILTIN`."""
        if name not in BUILTIN:
            raise InputError(f"no built-in vocabulary {name!r}; there are {', '.join(BUILTIN)}")
        text = (Path(__file__).parent / "builtin" / f"{name}.yaml").read_text("utf-8")
        return cls.from_dict(_parse_yaml(text, name))

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, say: Callable[[str], None] | None = None
    ) -> Vocabulary:
        """Read a vocabulary from a file.

        ``.yaml``/``.yml``/``.json``: a list of names, a mapping from name to synonyms, or a list
        of ``{name, synonyms, ignore, label}``. Anything else is plain text: a category a line,
        synonyms after commas, ``#`` starts a comment. Lists of known data sets, taggers and photo
        managers are read as they are (see :mod:`pvp_fast.vocabulary.formats`).

        Args:
            say: called with one line about what was recognised, where something was.

        Raises:
            InputError: the file is missing, not UTF-8, or holds something else; all names that no
                sentence or no model could make use of, at once, each with what would work.
        """
        file = Path(path)
        try:
            text = file.read_text("utf-8-sig")
        except OSError as error:
            raise InputError(f"cannot read vocabulary {file}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"vocabulary {file} is not UTF-8 text (byte {error.start}); save it as UTF-8"
            ) from error
        ending = file.suffix.lower()
        if ending in (".yaml", ".yml"):
            data = _parse_yaml(text, str(file))
        elif ending == ".json":
            try:
                data = json.loads(text)
            except json.JSONDecodeError as error:
                raise InputError(f"vocabulary {file} is not valid JSON: {error}") from error
        try:
            if ending in (".yaml", ".yml", ".json"):
                found = recognised_data(data)
            else:
                found = recognised_text(text, ending)
            items, problems = _read_items(found.data, check_ids=True)
            items, notes = as_sentences_write(items, loose=found.loose)
            problems += spelling([word for c in items for word in (c.name, *c.synonyms)])
            # Not by positions: names may have gone, or become one.
            problems += repeated_names([item.name for item in items], _key, counted=False)
            raise_problems(problems)
            vocabulary = cls(items)
        except InputError as error:
            raise InputError(f"vocabulary {file}: {error}") from error
        if say is not None and (notes := [*found.notes, *notes]):
            say(f"{file.name}: {'; '.join(notes)}")
        return vocabulary

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary as YAML or JSON, by the file's ending; `load` reads it back."""
        file = Path(path)
        suffix = file.suffix.lower()
        if suffix not in (".yaml", ".yml", ".json"):
            raise InputError(f"path {file} ends in {suffix!r}; use .yaml or .json")
        if suffix == ".json":
            text = json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n"
        else:
            import yaml

            text = yaml.safe_dump(self.to_dict(), allow_unicode=True, sort_keys=False)
        with atomic_write(file, "w") as stream:
            stream.write(text)

    @classmethod
    def from_dict(cls, data: Any) -> Vocabulary:
        """The inverse of `to_dict`; also takes any structure that `load` accepts."""
        items, problems = _read_items(data)
        raise_problems(problems + repeated_names([item.name for item in items], _key))
        return cls(items)

    def to_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Plain lists and strings, for JSON."""
        return {
            "categories": [
                {"name": c.name, "synonyms": list(c.synonyms)}
                | ({"ignore": list(c.ignore)} if c.ignore else {})
                | ({"label": c.label} if c.label else {})
                for c in self
            ]
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Category names in label order."""
        return tuple(category.name for category in self._categories)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """What tags say, in label order: each category's label, or its name."""
        return tuple(category.label or category.name for category in self._categories)

    @cached_property
    def _by_label(self) -> dict[str, int]:
        """Positions of the labels that one category alone has."""
        places: dict[str, int] = {}
        for position, label in enumerate(self.labels):
            key = label.strip().casefold()
            places[key] = -1 if key in places else position
        return {label: position for label, position in places.items() if position >= 0}

    def index(self, name: str) -> int:
        """Label index of a category by its name, else by its label (case does not matter).

        Raises:
            InputError: there is no such category.
        """
        position = self._index.get(_key(name))
        if position is None:
            position = self._by_label.get(name.strip().casefold())
        if position is None:
            import difflib

            close = difflib.get_close_matches(name, {*self.names, *self.labels}, n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise InputError(f"no category {name!r} among {len(self)}{hint}")
        return position

    def extended(self, *categories: Category | str) -> Vocabulary:
        """A new vocabulary with ``categories`` appended; existing label indices stay."""
        return Vocabulary([*self._categories, *categories])

    def label(self, sentence: str, *, strict: bool = False) -> tuple[int, ...]:
        """Sorted label indices of the categories that ``sentence`` mentions (may be empty).

        Case, plurals, hyphens and punctuation do not matter; longer compounds win, so
        "teddy bear" does not also label "bear".

        Args:
            strict: for prose that no image is behind, such as a language model's descriptions:
                a word counts as the head of its phrase only, hyphenated parts and verbs do not,
                and neither does a synonym that is part of its category's longer name.
        """
        if not isinstance(sentence, str):
            raise InputError(f"sentence is {type(sentence).__name__}; give one string")
        return self._matcher.label(sentence, strict=strict)

    @cached_property
    def _matcher(self) -> PhraseMatcher:
        return PhraseMatcher(
            [(c.name, *c.synonyms) for c in self._categories],
            [c.ignore for c in self._categories],
        )

    def __len__(self) -> int:
        return len(self._categories)

    def __iter__(self) -> Iterator[Category]:
        return iter(self._categories)

    def __getitem__(self, position: int) -> Category:
        return self._categories[position]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self._categories == other._categories

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self._categories)

    def __repr__(self) -> str:
        shown = ", ".join(self.names[:3]) + (", ..." if len(self) > 3 else "")
        return f"Vocabulary({len(self)} categories: {shown})"


def _key(name: str) -> str:
    return " ".join(tokenize(name))


def _read_items(data: Any, *, check_ids: bool = False) -> tuple[list[Category], list[str]]:
    """The categories of what a file holds, and what is wrong with the others.

    Args:
        check_ids: refuse names that begin with ids; not asked of what was saved by a run.
    """
    if isinstance(data, Mapping) and set(data) == {"categories"}:
        data = data["categories"]
    if isinstance(data, Mapping):
        problem = keyed_by_number(data)
        if problem:
            raise InputError(problem)
        entries = [({"name": name}, value) for name, value in data.items()]
    elif isinstance(data, Sequence) and not isinstance(data, str | bytes):
        entries = [(item, None) for item in data]
    else:
        raise InputError(
            f"expected a list of names, a mapping from name to synonyms, or a list of "
            f"{{name, synonyms}}; found {type(data).__name__}"
        )
    if check_ids:
        named = [e if isinstance(e, Mapping) else {"name": e} for e, _ in entries]
        named = [entry for entry in named if isinstance(entry.get("name"), str)]
        problem = id_column(
            [entry["name"] for entry in named], [not entry.get("synonyms") for entry in named]
        )
        if problem:
            raise InputError(problem)
    items: list[Category] = []
    problems: list[str] = []
    for entry, value in entries:
        try:
            if isinstance(data, Mapping):
                entry = {**entry, **_fields(entry["name"], value)}
            items.append(_category(entry))
        except InputError as error:
            problems.append(str(error))
    return items, problems


def _fields(name: Any, value: Any) -> dict[str, Any]:
    """What stands after ``name:`` in a mapping: nothing, one synonym, a list, or fields."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"synonyms": [value]}
    if isinstance(value, Mapping):
        if "name" in value:
            raise InputError(f"category {name!r} has a second name {value['name']!r}; remove it")
        return dict(value)
    return {"synonyms": value}


def _category(item: Any) -> Category:
    if isinstance(item, Category | str):
        return item if isinstance(item, Category) else Category(item)
    if isinstance(item, Mapping) and "name" in item:
        unknown = set(item) - {"name", "synonyms", "ignore", "label"}
        if unknown:
            raise InputError(
                f"category {item['name']!r} has unknown field {min(map(str, unknown))!r}; "
                "use name, synonyms, ignore, label"
            )
        words = (item.get("synonyms") or (), item.get("ignore") or ())
        return Category(item["name"], *words, item.get("label"))
    raise InputError(
        f"{item!r} is not a category; give a name or {{name, synonyms}} "
        "(in YAML put quotes around words such as yes, no, on, off and numbers)"
    )


def _parse_yaml(text: str, where: str) -> Any:
    import yaml

    try:
        # Thousands of names take seconds in Python; not every wheel has libyaml's bindings.
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise InputError(f"vocabulary {where} is not valid YAML: {error}") from error
