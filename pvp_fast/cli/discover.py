"""``pvp-fast discover``."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pvp_fast.cli.common import image_progress, pick_device, progress_console
from pvp_fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pvp_fast.discover import Proposal


def discover(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder: the vocabulary you have.")],
    embeddings: Annotated[Path, typer.Argument(help="What pvp-fast embed wrote of the images.")],
    names: Annotated[
        str, typer.Option(help="Candidates: a file (a name a line, or a vocabulary), or coco80 …")
    ],
    top: Annotated[int, typer.Option(min=1, help="Proposals at most.")] = 20,
    least_images: Annotated[
        int, typer.Option(min=1, help="Fewer images than these are no proposal.")
    ] = 3,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Also write the proposals here.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Also write a gallery of example images (needs --root).")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the images, for --report.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
) -> None:
    """Find categories that occur in your images and are missing from your vocabulary.

    A long list of names competes with the vocabulary for every image; names that win often are
    proposed, with the images that speak for them. Add one with add-category.

    Examples:

      pvp-fast embed photos/ --out embeddings/

      pvp-fast discover runs/coco/artifact embeddings/ --names things.txt

      pvp-fast discover ARTIFACT embeddings/ --names things.txt --report new.html --root photos/
    """
    from pvp_fast.discover import discover as find
    from pvp_fast.embeddings import EmbeddingStore
    from pvp_fast.files import atomic_write
    from pvp_fast.tagger import Tagger

    if (report is None) != (root is None):
        raise InputError("--report and --root: give both, or neither")
    wanted = _names(names)
    store = EmbeddingStore(embeddings)
    tagger = Tagger.load(artifact, device=pick_device(device))
    with image_progress(lambda: len(store)) as advance_to:
        found = find(tagger, store, wanted, top=top, least_images=least_images, progress=advance_to)
    if json_out is not None:
        with atomic_write(json_out, "w") as stream:
            json.dump([p.to_dict() for p in found], stream, indent=1, ensure_ascii=False)
    if report is not None and root is not None:
        _write_report(found, root, report)
    if not found:
        progress_console().print(f"no name is in {least_images} images or more")
        return
    width = max(len(p.name) for p in found)
    for p in found:
        sys.stdout.write(
            f"{p.name:{width}}  {p.images:6} images  nearest: {p.nearest} ({p.similarity:.2f})\n"
        )


def _names(value: str) -> list[str]:
    from pvp_fast.vocabulary import BUILTIN, Vocabulary

    path = Path(value)
    if value in BUILTIN and not path.exists():
        return list(Vocabulary.builtin(value).names)
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        return list(Vocabulary.load(path).names)
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--names: {value} cannot be read as UTF-8 text: {error}") from error
    return [line.split(",")[0] for line in lines if line.strip() and not line.startswith("#")]


def _write_report(found: Sequence[Proposal], root: Path, path: Path) -> None:
    """The gallery of pvp-fast report, each example image with the names it speaks for."""
    from pvp_fast.files import atomic_write
    from pvp_fast.report.gallery import Entry, build_gallery, with_thumbnails

    tags: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for proposal in found:
        for key, share in proposal.examples:
            tags[key].append((proposal.name, share))
    entries = [Entry(key, tuple(sorted(of, key=lambda t: -t[1]))) for key, of in tags.items()]
    page = build_gallery(
        with_thumbnails(entries, root),
        title="Categories that are missing",
        threshold=0.0,
        names=[p.name for p in found],
    )
    with atomic_write(path, "w") as stream:
        stream.write(page)
