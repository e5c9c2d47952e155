"""``pvp-fast sentences``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pvp_fast.cli.common import progress_console, read_vocabulary
from pvp_fast.cli.language import LLM, ApiKey, BaseUrl, LocalLLM, pick_writer

if TYPE_CHECKING:
    from pvp_fast.vocabulary.categories import Vocabulary


def sentences(
    vocabulary: Annotated[
        str, typer.Option(help="voc2007, coco80, nuswide81, pocket70, or a YAML/JSON/text file.")
    ],
    grammar: Annotated[int | None, typer.Option(min=1, help="Make N template sentences.")] = None,
    label: Annotated[
        Path | None, typer.Option(help="Label a captions file; counts go to stderr.")
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Count plain mentions alone: for prose, not for captions."),
    ] = False,
    generate: Annotated[
        int | None, typer.Option(min=1, help="Ask a language model for N sentences.")
    ] = None,
    base_url: BaseUrl = None,
    llm: LLM = None,
    api_key: ApiKey = None,
    local_llm: LocalLLM = None,
    record: Annotated[
        Path, typer.Option(help="Record of prompts and answers; generation resumes from it.")
    ] = Path("sentences.record.jsonl"),
    workers: Annotated[int, typer.Option(min=1, help="Prompts in flight at once.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write here instead of stdout.")
    ] = None,
) -> None:
    """Make or label training sentences; JSON lines with "text" and "labels".

    Examples:

      pvp-fast sentences --vocabulary coco80 --grammar 1000 -o grammar.jsonl

      pvp-fast sentences --vocabulary coco80 --label captions_val2017.json -o labelled.jsonl

      pvp-fast sentences --vocabulary coco80 --generate 5000
      --base-url http://localhost:8000/v1 --llm my-model -o llm.jsonl
    """
    from pvp_fast.sentences import build_corpus, grammar_sentences, read_captions

    if sum(x is not None for x in (grammar, label, generate)) != 1:
        raise typer.BadParameter("give exactly one of --grammar N, --label FILE, --generate N")
    words = read_vocabulary(vocabulary)
    if grammar is not None:
        texts = grammar_sentences(words, grammar, seed=seed)
    elif label is not None:
        texts = list(read_captions(label))
    else:
        texts = _generate(
            words, generate or 0, base_url, llm, api_key, local_llm, record, workers, seed
        )
    corpus = build_corpus(texts, words, templates=False, source=str(label or ""), strict=strict)
    lines = (
        json.dumps({"text": text, "labels": [words.names[i] for i in row]})
        for text, row in zip(corpus.sentences, corpus.labels, strict=True)
    )
    if output is None:
        for line in lines:
            sys.stdout.write(line + "\n")
    else:
        from pvp_fast.files import open_output

        with open_output(output, "w") as stream:
            stream.writelines(line + "\n" for line in lines)
    console = progress_console()
    console.print(f"{len(texts)} sentences, {len(corpus)} different ones mention a category")
    if corpus.unmentioned:
        console.print(f"no sentence mentions {', '.join(corpus.unmentioned)}", markup=False)
    if label is not None:
        counts = corpus.counts().tolist()
        for name, count in sorted(zip(words.names, counts, strict=True), key=lambda x: -x[1]):
            console.print(f"{int(count):8d}  {name}", markup=False)


def _generate(
    words: Vocabulary,
    n: int,
    base_url: str | None,
    llm: str | None,
    api_key: str | None,
    local_llm: str | None,
    record: Path,
    workers: int,
    seed: int,
) -> list[str]:
    from pvp_fast.sentences.generate import generate_sentences

    writer = pick_writer(base_url, llm, api_key, local_llm)
    workers = 1 if local_llm is not None else workers
    return generate_sentences(writer, words, n, record, seed=seed, workers=workers)
