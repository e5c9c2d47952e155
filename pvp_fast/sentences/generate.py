"""Pseudo sentences: a language model asked for captions about category tuples (METHOD section 2).

Every prompt and answer is appended to a JSON-lines record and flushed before the next is asked;
a run that starts again with the same record never asks twice.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from typing import IO, Any

from pvp_fast.errors import CorpusError, InputError
from pvp_fast.files import sync_folder
from pvp_fast.sentences.writers import LocalTransformers, OpenAIChat, Writer
from pvp_fast.vocabulary.categories import Vocabulary

__all__ = [
    "LocalTransformers",
    "OpenAIChat",
    "Writer",
    "generate_sentences",
    "parse_captions",
    "prompt_for",
]

_BULLET = re.compile(r"^\s*(?:[-*\u2022\u2013]\s+|\(?\d{1,3}[.):]\s*|#+\s*)")
_QUOTES = "\"'\u201c\u201d\u2018\u2019*_` "
_GIVEN_UP = 3  # prompts in a row that one category leads
_WORDS = (3, 60)  # a caption shorter or longer than this is not one


def prompt_for(names: Sequence[str], n_sentences: int) -> str:
    """The request sent to the language model for one tuple of category names."""
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    every = "it" if len(names) == 1 else "all of them"
    return (
        f"Write {n_sentences} different short captions, as people write for photos, each of a "
        f"photo that shows: {listed}. Name {every} in every caption, vary the place, the number, "
        "the viewpoint and what happens, and mention as few other objects as you can. "
        "One caption a line, no numbers, no quotes, nothing else."
    )


def generate_sentences(
    writer: Writer,
    vocabulary: Vocabulary,
    n: int,
    record: str | os.PathLike[str],
    *,
    seed: int = 0,
    per_prompt: int = 8,
    workers: int = 1,
    patience: int = 50,
    progress: bool = True,
    each: int = 0,
) -> list[str]:
    """Ask ``writer`` for captions until ``n`` different ones mention what was asked.

    Category tuples of 1-3 names come in shuffled rounds, so each category leads equally often; the
    i-th prompt depends on ``seed`` and i only.

    Args:
        writer: an `OpenAIChat`, a `LocalTransformers`, or anything with ``name`` and ``write``.
        vocabulary: the categories.
        n: number of sentences wanted, counting those already in the record; with ``each`` the
            least number, and no sentence is left out.
        record: JSON-lines file of prompts and answers; created, or continued. A last line cut
            off by a crash is removed. `read_captions` reads it as a corpus.
        seed: of the choice of tuples.
        per_prompt: captions asked for at once.
        workers: prompts in flight at once (threads).
        patience: give up after this many prompts in a row without a usable new caption.
        progress: show a progress bar.
        each: go on until every category is mentioned in so many sentences. Prompts that a category
            leads are left out once it is; one that three prompts brought nothing for is given up.

    Raises:
        CorpusError: the writer failed, the record is damaged, or patience ran out.
    """
    for name, value in (("per_prompt", per_prompt), ("workers", workers), ("patience", patience)):
        if value < 1:
            raise InputError(f"{name} is {value}; give at least 1")
    for name, value in (("n", n), ("each", each)):
        if value < 0:
            raise InputError(f"{name} is {value}; the number of sentences cannot be negative")
    path = Path(record)
    answered = _read_record(path)
    found = _Found(vocabulary, each)
    for entry in answered.values():
        found.keep(entry["response"], entry["categories"])

    asked = (
        (index, names, prompt)
        for index, names, prompt in _prompts(vocabulary, seed, per_prompt)
        if (index, prompt) not in answered and not (each and found.has_enough(names[0]))
    )
    fruitless = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("ab") as stream,
        ThreadPoolExecutor(workers) as pool,
        _bar(max(n, each * len(vocabulary)), found.done(n), writer.name, progress) as advance,
    ):
        sync_folder(path.parent)
        while len(found.texts) < n or found.lacking:
            batch = list(islice(asked, workers))
            answers = [
                pool.submit(writer.write, prompt, seed=_stream_seed(seed, index))
                for index, _, prompt in batch
            ]
            failure: Exception | None = None
            for (index, names, prompt), answer in zip(batch, answers, strict=True):
                try:
                    response = answer.result()
                except CorpusError as error:  # keep what the other workers got before raising
                    failure = failure or error
                    continue
                before = len(found.texts)
                kept = found.keep(response, names)
                _append(
                    stream,
                    {
                        "index": index,
                        "model": writer.name,
                        "categories": names,
                        "prompt": prompt,
                        "response": response,
                        "sentences": kept,
                    },
                )
                advance(found.done(n))
                fruitless = 0 if len(found.texts) > before else fruitless + 1
                # Names that nothing is written of are given up one by one.
                if fruitless >= patience and (len(found.texts) < n or not found.texts):
                    raise CorpusError(
                        f"{patience} answers of {writer.name} in a row held no new caption that "
                        f"names what was asked (see {path}); the last began with "
                        f"{response[:80]!r}. Use a model that follows instructions, or ask for "
                        f"fewer sentences than {max(n, each)}"
                    )
            if failure:
                raise failure
    texts = list(found.texts.values())
    return texts if each else texts[:n]


def parse_captions(response: str) -> list[str]:
    """The captions in a model's answer: one a line, without bullets, numbers and quotes."""
    captions = []
    for line in response.splitlines():
        text = " ".join(_BULLET.sub("", line).strip(_QUOTES).split())
        if _WORDS[0] <= len(text.split()) <= _WORDS[1] and not text.endswith(":"):
            captions.append(text)
    return captions


class _Found:
    """Captions so far, and of which categories there are too few."""

    def __init__(self, vocabulary: Vocabulary, each: int) -> None:
        self.texts: dict[str, str] = {}  # case-folded -> sentence, in order
        self._vocabulary, self._each = vocabulary, each
        self._counts = [0] * len(vocabulary)
        self._tries = [0] * len(vocabulary)  # prompts led in a row that brought nothing
        self.lacking = len(vocabulary) if each else 0

    def keep(self, response: str, names: Sequence[str]) -> list[str]:
        """Captions that mention all of ``names``; new ones are added."""
        try:
            wanted = [self._vocabulary.index(name) for name in names]
        except InputError:  # recorded for a category that has since been removed
            return []
        kept, before = [], len(self.texts)
        for caption in parse_captions(response):
            labels = self._vocabulary.label(caption)
            if not set(wanted) <= set(labels):
                continue
            kept.append(caption)
            if caption.casefold() not in self.texts:
                self.texts[caption.casefold()] = caption
                self._count(labels)
        lead, others = wanted[0], wanted[1:]
        if len(self.texts) > before:
            self._try(lead, 0)
        elif all(self._counts[other] for other in others):  # else it may be another's fault
            self._try(lead, self._tries[lead] + 1)
        return kept

    def has_enough(self, name: str) -> bool:
        """Whether no more is asked for of a category."""
        return self._is_done(self._vocabulary.index(name))

    def done(self, n: int) -> int:
        """For a bar: sentences there are of those wanted."""
        if not self._each:
            return min(len(self.texts), n)
        return sum(min(count, self._each) for count in self._counts)

    def _is_done(self, category: int) -> bool:
        return self._counts[category] >= self._each or self._tries[category] >= _GIVEN_UP

    def _count(self, labels: Sequence[int]) -> None:
        for label in labels:
            was = self._is_done(label)
            self._counts[label] += 1
            self.lacking -= bool(self._each) and not was and self._is_done(label)

    def _try(self, category: int, tries: int) -> None:
        was = self._is_done(category)
        self._tries[category] = tries
        self.lacking += bool(self._each) and was - self._is_done(category)


def _prompts(
    vocabulary: Vocabulary, seed: int, per_prompt: int
) -> Iterator[tuple[int, list[str], str]]:
    size = len(vocabulary)
    for index in count():
        rounds, place = divmod(index, size)
        leads = random.Random(f"{seed}/round/{rounds}").sample(range(size), size)
        rng = random.Random(f"{seed}/prompt/{index}")
        others = [c for c in rng.sample(range(size), min(3, size)) if c != leads[place]]
        chosen = [leads[place], *others[: rng.randrange(3)]]
        names = [vocabulary[c].name for c in chosen]
        yield index, names, prompt_for(names, per_prompt)


def _stream_seed(seed: int, index: int) -> int:
    return random.Random(f"{seed}/answer/{index}").getrandbits(31)


def _append(stream: IO[bytes], entry: dict[str, Any]) -> None:
    stream.write(json.dumps(entry, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    stream.flush()
    os.fsync(stream.fileno())


def _read_record(path: Path) -> dict[tuple[int, str], dict[str, Any]]:
    """Recorded answers by (index, prompt); a last line without its end is cut off the file."""
    if not path.exists():
        return {}
    try:
        with path.open("r+b") as stream:
            data = stream.read()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                stream.truncate(whole)
    except OSError as error:
        raise CorpusError(
            f"cannot continue record {path}: {error.strerror or error}; give another file"
        ) from error
    answered = {}
    for number, line in enumerate(data[:whole].splitlines(), start=1):
        try:
            entry = json.loads(line)
            key = (int(entry["index"]), str(entry["prompt"]))
            if not isinstance(entry["response"], str) or not isinstance(entry["categories"], list):
                raise TypeError("response or categories have the wrong type")
        except (ValueError, KeyError, TypeError) as error:
            raise CorpusError(
                f"record {path}, line {number} is no recorded answer ({error!r}); repair or "
                "remove the line, or give another file"
            ) from error
        answered[key] = entry
    return answered


class _bar:  # noqa: N801
    """A rich progress bar as a context manager that yields ``advance(done)``."""

    def __init__(self, total: int, done: int, name: str, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

        self._progress = Progress(
            "{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),  # stdout is for the sentences
            disable=not shown,
        )
        self._task = self._progress.add_task(f"sentences by {name}", total=total, completed=done)

    def __enter__(self) -> Any:
        self._progress.start()
        return lambda done: self._progress.update(self._task, completed=done)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
