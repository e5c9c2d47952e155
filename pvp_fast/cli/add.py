"""``pvp-fast add-category``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from pvp_fast.cli.common import load_tagger, read_vocabulary
from pvp_fast.cli.language import LLM, ApiKey, BaseUrl, LocalLLM, pick_writer
from pvp_fast.errors import InputError


def add_category(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder to start from.")],
    name: Annotated[
        str, typer.Argument(help="Name of the new category, or a file of many (as --vocabulary).")
    ],
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
    base_url: BaseUrl = None,
    llm: LLM = None,
    api_key: ApiKey = None,
    local_llm: LocalLLM = None,
    record: Annotated[
        Path | None,
        typer.Option(help="Record of prompts and answers (default: beside OUT, OUT.record.jsonl)."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Prompts in flight at once.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
) -> None:
    """Teach an artifact one more category, or a file of them; what it knows keeps every bit.

    Template sentences are always used; a captions file and a language model add to them. An
    artifact made from names, or from many categories, has no training state to go on from: there
    the name's own vector is added, and nothing is learned.

    Examples:

      pvp-fast add-category runs/coco/artifact drone --synonym quadcopter --out runs/coco81

      pvp-fast add-category runs/coco/artifact more.txt --out runs/coco200

      pvp-fast add-category runs/coco/artifact drone --out runs/coco81
      --generate 100 --base-url http://localhost:8000/v1 --llm my-model
    """
    from pvp_fast.sentences import read_captions
    from pvp_fast.vocabulary.categories import Category, Vocabulary

    if generate is None and (base_url or llm or local_llm):
        raise InputError("--base-url, --llm and --local-llm need --generate N, how many sentences")
    # Before the model writes: an answer paid for must not be lost to a wrong path or name.
    tagger = load_tagger(artifact, device)
    added = [Category(name, tuple(synonym or ()))]
    if Path(name).is_file():
        if synonym:
            raise InputError(f"--synonym: {name} is a file; give the synonyms there")
        added = list(read_vocabulary(name))
    tagger.artifact.vocabulary.extended(*added)
    if tagger.artifact.state is None:
        if sentences or generate is not None:
            raise InputError(
                f"--sentences, --generate: {artifact} has no training state to learn from them "
                "with; leave them out, and the names alone are added"
            )
        from pvp_fast.names import add_names

        add_names(tagger.backbone, tagger.artifact, added).save(out)
        typer.echo(str(out))
        return
    texts = list(read_captions(sentences)) if sentences else []
    if generate is not None:
        from pvp_fast.sentences.generate import generate_sentences

        writer = pick_writer(base_url, llm, api_key, local_llm)
        texts += generate_sentences(
            writer,
            Vocabulary(added),
            generate,
            record or out.with_name(f"{out.name}.record.jsonl"),
            seed=seed,
            workers=1 if local_llm is not None else workers,
        )
    for words in added:
        tagger = tagger.add_category(words.name, words.synonyms, texts, seed=seed)
    # With what learning does not read: labels and ignored phrases.
    whole = Vocabulary([*list(tagger.artifact.vocabulary)[: -len(added)], *added])
    dataclasses.replace(tagger.artifact, vocabulary=whole).save(out)
    typer.echo(str(out))
