"""Sentences about a list of names that a language model is asked for once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from pvp_fast.files import cache_folder
from pvp_fast.sentences.generate import generate_sentences
from pvp_fast.sentences.writers import LocalTransformers, Writer
from pvp_fast.vocabulary.categories import Vocabulary

EACH = 20  # sentences that are to mention a name
WORKERS = 4  # prompts in flight at an address


def asked_sentences(
    writer: Writer,
    vocabulary: Vocabulary,
    *,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Sentences until each name is in twenty, from a record in the cache that a run goes on with.

    Args:
        cache: see :func:`pvp_fast.names.cache_folder`.
        say: called with where the record lies.

    Raises:
        CorpusError: the model failed, or writes nothing about the names.
    """
    record = record_of(writer, vocabulary, cache)
    say(f"sentences: {record}")
    workers = 1 if isinstance(writer, LocalTransformers) else WORKERS
    return generate_sentences(
        writer, vocabulary, 0, record, workers=workers, progress=progress, each=EACH
    )


def record_of(
    writer: Writer, vocabulary: Vocabulary, cache: str | os.PathLike[str] | None = None
) -> Path:
    """The file of prompts and answers."""
    key = sha256(json.dumps([writer.name, vocabulary.to_dict()]).encode()).hexdigest()[:24]
    return cache_folder(cache) / "sentences" / f"{key}.jsonl"
