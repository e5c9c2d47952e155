"""A labelled corpus: the sentences that stand in for training images (METHOD section 2)."""

from __future__ import annotations

import hashlib
import json
import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch

from pvp_fast.errors import CorpusError, InputError
from pvp_fast.vocabulary.categories import Vocabulary

SHOWN = 20  # names in a message


@dataclass(frozen=True)
class Corpus:
    """N sentences with their labels.

    Attributes:
        sentences: N texts.
        labels: for each sentence, the sorted indices of the categories it mentions.
        vocabulary: what the indices mean.
        source: where the sentences came from, for logs and reports.
        read: sentences that were given to :func:`build_corpus`, and ``mentioning``: those of them
            that mention a category. Both 0 for a corpus made otherwise.
        unmentioned: names of categories that none of the given sentences mentions; all they have
            to learn from is prompt templates.
        parts: (name, read, mentioning) of each file, say, that the sentences came from.

    Raises:
        CorpusError: lengths differ, or a label is out of range.
    """

    sentences: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]
    vocabulary: Vocabulary
    source: str = ""
    read: int = 0
    mentioning: int = 0
    unmentioned: tuple[str, ...] = ()
    parts: tuple[tuple[str, int, int], ...] = ()

    def __post_init__(self) -> None:
        if len(self.sentences) != len(self.labels):
            raise CorpusError(
                f"{len(self.sentences)} sentences but {len(self.labels)} labels; "
                "give one tuple of labels for each sentence"
            )
        highest = len(self.vocabulary) - 1
        for position, row in enumerate(self.labels):
            if any(not 0 <= label <= highest for label in row):
                raise CorpusError(f"labels[{position}] is {row}; indices go from 0 to {highest}")

    def summary(self, *, templates: bool = True) -> list[str]:
        """Sentences for a person: what of the given text counted, and what it lacks.

        Args:
            templates: whether prompt templates stand in for what no sentence mentions.
        """
        lines = [f"{len(self)} labelled sentences for {len(self.vocabulary)} categories"]
        if self.read:
            origin = f" of {self.source}" if self.source else ""
            lines.append(
                f"{self.mentioning} of the {self.read} sentences{origin} mention a category"
            )
        if len(self.parts) > 1:
            lines += [f"  {name}: {counted} of {read}" for name, read, counted in self.parts]
        if self.read and self.unmentioned:
            shown = ", ".join(self.unmentioned[:SHOWN])
            rest = "prompt templates are all there is to learn from"
            rest = rest if templates else "their names are all there is"
            more = f" and {len(self.unmentioned) - SHOWN} more" * (len(self.unmentioned) > SHOWN)
            lines.append(
                f"no sentence mentions {shown}{more}: {rest}; give synonyms, or sentences about "
                "what is missing"
            )
        return lines

    def __len__(self) -> int:
        return len(self.sentences)

    def multi_hot(self) -> torch.Tensor:
        """Labels as a (N, C) bool tensor."""
        y = torch.zeros(len(self), len(self.vocabulary), dtype=torch.bool)
        rows = [row for row, labels in enumerate(self.labels) for _ in labels]
        columns = [label for labels in self.labels for label in labels]
        y[rows, columns] = True
        return y

    def counts(self) -> torch.Tensor:
        """Sentences of each category, (C,) int64."""
        columns = [label for labels in self.labels for label in labels]
        return torch.bincount(
            torch.tensor(columns, dtype=torch.int64), minlength=len(self.vocabulary)
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of sentences, labels and category names; ``source`` does not count."""
        digest = hashlib.sha256(json.dumps(self.vocabulary.names).encode())
        for sentence, labels in zip(self.sentences, self.labels, strict=True):
            digest.update(json.dumps([sentence, labels]).encode())
        return digest.hexdigest()

    @cached_property
    def sentences_fingerprint(self) -> str:
        """SHA-256 of the sentences alone: text features do not depend on labels."""
        digest = hashlib.sha256()
        for sentence in self.sentences:
            digest.update(json.dumps(sentence).encode() + b"\n")
        return digest.hexdigest()

    def subset(self, rows: Sequence[int]) -> Corpus:
        """The corpus of the given rows, in the given order."""
        return Corpus(
            tuple(self.sentences[row] for row in rows),
            tuple(self.labels[row] for row in rows),
            self.vocabulary,
            self.source,
            self.read,
            self.mentioning,
            self.unmentioned,
            self.parts,
        )

    def split(self, held_out: float = 0.1, seed: int = 0) -> tuple[Corpus, Corpus]:
        """Training and held-out parts; both keep the sentences' order.

        Every category with two or more sentences is on both sides when ``held_out`` > 0, as far
        as its sentences are not shared with rarer categories; one with a single sentence stays in
        training. The same seed gives the same split; global random state is untouched.

        Args:
            held_out: fraction of the sentences to hold out, 0 <= held_out < 1.
            seed: of the shuffle.
        """
        if not 0 <= held_out < 1:
            raise InputError(f"held_out is {held_out}; give a fraction from 0 up to but not 1")
        wanted = round(held_out * len(self))
        order = list(range(len(self)))
        random.Random(f"pvp_fast.split/{seed}").shuffle(order)
        members: list[list[int]] = [[] for _ in self.vocabulary]
        for row in order:
            for label in self.labels[row]:
                members[label].append(row)
        left = [len(rows) for rows in members]  # sentences of each category still in training
        chosen: set[int] = set()

        def take(row: int) -> bool:
            if row in chosen or any(left[label] <= 1 for label in self.labels[row]):
                return False
            chosen.add(row)
            for label in self.labels[row]:
                left[label] -= 1
            return True

        # Rare categories first: common ones are in their sentences anyway.
        for category in sorted(range(len(members)), key=lambda c: len(members[c])):
            rows = members[category]
            quota = max(1, int(held_out * len(rows))) if held_out and len(rows) > 1 else 0
            missing = quota - sum(row in chosen for row in rows)
            for row in rows:
                if missing <= 0:
                    break
                missing -= take(row)
        for row in order:
            if len(chosen) >= wanted:
                break
            take(row)
        rest = [row for row in range(len(self)) if row not in chosen]
        return self.subset(rest), self.subset(sorted(chosen))


def build_corpus(
    sentences: Iterable[str],
    vocabulary: Vocabulary,
    *,
    templates: bool | Sequence[str] = True,
    source: str = "",
    strict: bool = False,
    parts: Sequence[tuple[str, int]] = (),
) -> Corpus:
    """Label sentences, drop those with no category, drop repeats, add prompt templates.

    Args:
        sentences: any iterable of texts, for instance `read_captions` or `grammar_sentences`.
        vocabulary: the categories.
        templates: add the CLIP prompt templates with each category's name as single-label
            sentences (METHOD section 2); a list of texts with one ``{}`` each replaces them. A
            name that implies a broader category ("dog" where "animal" lists it) labels both, and
            a template in which the name reads as something else ("a toy bear") is left out.
        source: a note on where the sentences came from.
        strict: label plain mentions alone, for prose (see :meth:`Vocabulary.label`).
        parts: (name, number of sentences) of what they came from, in order; the summary then says
            of each what counted.

    Raises:
        CorpusError: nothing is left, none of the given sentences mentions a category (templates
            alone are no corpus "from" a file), or an item is not a string.
    """
    if isinstance(sentences, str):
        raise InputError("sentences is one string; give a list, or read_captions(path)")
    seen: set[str] = set()
    texts: list[str] = []
    labels: list[tuple[int, ...]] = []
    read = mentioning = 0
    ends = list(accumulate(count for _, count in parts))
    counted = [0] * len(parts)
    mentioned: set[int] = set()

    def add(text: str, row: tuple[int, ...]) -> None:
        key = text.casefold()
        if row and key not in seen:
            seen.add(key)
            texts.append(text)
            labels.append(row)

    for sentence in sentences:
        if not isinstance(sentence, str):
            raise CorpusError(
                f"sentence {read} is {type(sentence).__name__}, not a string; give texts"
            )
        read += 1
        row = vocabulary.label(sentence, strict=strict)
        mentioning += bool(row)
        part = bisect_left(ends, read)
        if row and part < len(counted):
            counted[part] += 1
        mentioned.update(row)
        add(" ".join(sentence.split()), row)
    if read and not mentioning:
        origin = f" of {source}" if source else ""
        raise CorpusError(
            f"none of the {read} sentences{origin} mentions a category of {vocabulary}; check "
            "that they are about these categories and in the language of their names, or give the "
            "categories synonyms"
        )
    for template in _clip_templates() if templates is True else templates or ():
        if "{}" not in template:
            raise InputError(f"template {template!r} has no {{}} for the category's name")
        for category in vocabulary:
            meaning = vocabulary.label(category.name)
            text = template.replace("{}", category.name)
            if vocabulary.label(text) == meaning:
                add(text, meaning)
    if not texts:
        raise CorpusError("sentences is empty and there are no templates; give some sentences")
    unmentioned = tuple(name for i, name in enumerate(vocabulary.names) if i not in mentioned)
    said = tuple((name, of, n) for (name, of), n in zip(parts, counted, strict=True))
    return Corpus(
        tuple(texts), tuple(labels), vocabulary, source, read, mentioning, unmentioned, said
    )


def _clip_templates() -> Sequence[str]:
    from pvp_fast.modules.prompts import CLIP_TEMPLATES

    return CLIP_TEMPLATES
