"""``pvp-fast add-category``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pvp_fast.cli.common import load_tagger
from pvp_fast.cli.sentences import pick_writer
from pvp_fast.errors import InputError


def add_category(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder to start from.")],
    name: Annotated[str, typer.Argument(help="Name of the new category.")],
    out: Annotated[Path, typer.Option(help="Folder for the new artifact.")],
    synonym: Annotated[
        list[str] | None, typer.Option(help="Another word for it. Repeatable.")
    ] = None,
    sentences: Annotated[
        Path | None, typer.Option(help="Captions file about it (any format train reads).")
    ] = None,
    generate: Annotated[
        int | None, typer.Option(min=1, help="Ask a language model for N sentences about it.")
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint, http://localhost:8000/v1.")
    ] = None,
    llm: Annotated[str | None, typer.Option(help="Model name at the endpoint.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="OPENAI_API_KEY", help="Key, if the endpoint wants one.")
    ] = None,
    local_llm: Annotated[
        str | None, typer.Option(help="Folder of a local transformers model instead.")
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="Record of prompts and answers (default: beside OUT, OUT.record.jsonl)."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Prompts in flight at once.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
) -> None:
    """Teach an artifact one more category; what it already knows keeps every bit.

    Template sentences are always used; a captions file and a language model add to them.

    Examples:

      pvp-fast add-category runs/coco/artifact drone --synonym quadcopter --out runs/coco81

      pvp-fast add-category runs/coco/artifact drone --out runs/coco81
      --generate 100 --base-url http://localhost:8000/v1 --llm my-model
    """
    from pvp_fast.sentences import read_captions
    from pvp_fast.vocabulary.categories import Category, Vocabulary

    if generate is None and (base_url or llm or local_llm):
        raise InputError("--base-url, --llm and --local-llm need --generate N, how many sentences")
    # Before the model writes: an answer paid for must not be lost to a wrong path or name.
    tagger = load_tagger(artifact, device)
    words = Category(name, tuple(synonym or ()))
    tagger.artifact.vocabulary.extended(words)
    texts = list(read_captions(sentences)) if sentences else []
    if generate is not None:
        from pvp_fast.sentences.generate import generate_sentences

        writer = pick_writer(base_url, llm, api_key, local_llm)
        texts += generate_sentences(
            writer,
            Vocabulary([words]),
            generate,
            record or out.with_name(f"{out.name}.record.jsonl"),
            seed=seed,
            workers=1 if local_llm is not None else workers,
        )
    wider = tagger.add_category(name, words.synonyms, texts, seed=seed)
    wider.save(out)
    typer.echo(str(out))
