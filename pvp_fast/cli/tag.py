"""``pvp-fast tag``."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pvp_fast.cli.common import image_progress, progress_console, tell, warn_of_photo
from pvp_fast.cli.pictures import Background, MaxMegapixels, Upright, picture_settings
from pvp_fast.cli.sources import (
    IMAGES,
    Exclude,
    Follow,
    Hidden,
    Shard,
    named_source,
    part_of,
    summary_line,
)
from pvp_fast.cli.vocabulary import NOTHING, Chosen, NameOptions, listed_names, takes_names
from pvp_fast.errors import ImageError, InputError
from pvp_fast.files import is_stdout

if TYPE_CHECKING:
    from pvp_fast.loaders.passed import PassedOver
    from pvp_fast.loaders.samples import Sample, Source
    from pvp_fast.sinks import Sink
    from pvp_fast.sinks.captions import CaptionStyle
    from pvp_fast.tagging.embeddings import EmbeddingStore

SOME_UNREADABLE = 3


class Format(str, Enum):
    """How tags are written."""

    jsonl = "jsonl"
    csv = "csv"
    table = "table"
    parquet = "parquet"
    sqlite = "sqlite"
    xmp = "xmp"
    txt = "txt"
    imagefolder = "imagefolder"
    label_studio = "label-studio"
    coco = "coco"
    fiftyone = "fiftyone"


class Sidecar(str, Enum):
    """Names of new sidecars."""

    full = "full"
    stem = "stem"


class Engine(str, Enum):
    """What does the work."""

    local = "local"
    ray = "ray"


@takes_names
def tag(
    artifact: Annotated[
        Path | None,
        typer.Argument(help="Artifact folder, as train writes it; none with --vocabulary."),
    ] = None,
    images: Annotated[list[str] | None, typer.Argument(help=IMAGES)] = None,
    given: NameOptions = NOTHING,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this category. Repeatable, or a file of names.")
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Not this category. Repeatable, or a file of names.")
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="Tag what pvp-fast embed wrote here instead of images.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="At most this many tags an image.")] = 5,
    threshold: Annotated[
        float | None,
        typer.Option(help="Probability a tag needs (default: each category's calibrated one)."),
    ] = None,
    format: Annotated[
        Format | None,
        typer.Option(
            help="Output format; xmp and txt are written beside the images, the last four are "
            "what Hugging Face datasets, Label Studio, COCO's tools and FiftyOne read. "
            "(default: what OUTPUT's ending says, else jsonl)"
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write here instead of stdout (-).")
    ] = None,
    append: Annotated[
        bool,
        typer.Option("--append", help="Go on behind what OUTPUT holds; skip images done there."),
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Going on: try damaged images again, too."),
    ] = False,
    redo: Annotated[
        bool,
        typer.Option("--redo", help="Going on: tag again what other settings have tagged."),
    ] = False,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="xmp, txt: take out what earlier runs have added."),
    ] = False,
    sidecar: Annotated[
        Sidecar | None,
        typer.Option(help="xmp: photo.jpg.xmp or photo.xmp, for new ones and where both are."),
    ] = None,
    inside: Annotated[
        bool, typer.Option("--inside", help="xmp: into the images themselves, by exiftool.")
    ] = False,
    caption_ending: Annotated[str, typer.Option(help="txt: ending of the files.")] = ".txt",
    caption_separator: Annotated[str, typer.Option(help="txt: between tags.")] = ", ",
    caption_prefix: Annotated[
        str, typer.Option(help="txt: what new captions start with, a trigger word.")
    ] = "",
    underscores: Annotated[
        bool, typer.Option("--underscores", help="txt: teddy_bear for teddy bear.")
    ] = False,
    escape_brackets: Annotated[
        bool, typer.Option("--escape-brackets", help="txt: a backslash before round brackets.")
    ] = False,
    into_text: Annotated[
        bool, typer.Option("--into-text", help="txt: add tags behind a sentence, too.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Write nothing; xmp and txt: print what would be written where; with "
            "--vocabulary: stop behind the plan where there is something to make.",
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 64,
    engine: Annotated[
        Engine, typer.Option(help="ray: many at once, OUTPUT is a folder; run again to resume.")
    ] = Engine.local,
    actors: Annotated[
        int | None, typer.Option(min=1, help="ray: taggers (default: one a GPU, or a CPU).")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="ray: a cluster's address (default: this machine).")
    ] = None,
    partition_size: Annotated[int, typer.Option(min=1, help="ray: images written at once.")] = 1024,
    hidden: Hidden = False,
    exclude: Exclude = None,
    follow: Follow = False,
    shard: Shard = None,
    upright: Upright = None,
    background: Background = None,
    max_megapixels: MaxMegapixels = None,
) -> None:
    """Tag images: one JSON line an image, in the order given.

    A file that is no readable image does not stop the run: it is listed on stderr and in the
    output with its reason, and the exit code is 3. Going on (--append, sqlite, ray) tries such
    files again, and does again those whose size or time has changed.

    With --vocabulary the names are enough: the artifact is made, kept and found again.

    Examples:

      pvp-fast tag --vocabulary tags.txt photos/

      pvp-fast tag --vocabulary tags.txt photos/ --minutes 5 --dry-run

      pvp-fast tag runs/coco/artifact photos/ --top-k 3

      pvp-fast tag runs/coco/artifact 'photos/**/*.jpg' --format csv -o tags.csv

      pvp-fast tag runs/coco/artifact 'shards/train-{000..099}.tar' -o tags.jsonl

      pvp-fast tag runs/coco/artifact --embeddings embeddings/

      pvp-fast tag runs/coco/artifact photos/ --format sqlite -o tags.db  (again to resume)

      pvp-fast tag runs/coco/artifact photos/ --format xmp --dry-run

      pvp-fast tag runs/coco/artifact photos/ --engine ray --format parquet -o tagged/
    """
    names = images or []
    if given.vocabulary is not None and artifact is not None:  # all that was named are images
        names, artifact = [str(artifact), *names], None
    if bool(names) == (embeddings is not None):
        raise typer.BadParameter("give images, or --embeddings DIR")
    chosen = Chosen(artifact, given, model_of(embeddings))
    from pvp_fast.clip.light import import_torch

    import_torch()
    from pvp_fast.sinks import BESIDE, format_for, open_sink
    from pvp_fast.sinks.captions import CaptionStyle
    from pvp_fast.sinks.ledger import describe

    if is_stdout(output):
        output = None
    kind = format_for(output, format and format.value)
    if engine is Engine.ray:
        from pvp_fast.artifact import Artifact
        from pvp_fast.loaders import Search
        from pvp_fast.pictures.settings import pictures_of

        if output is None or append or dry_run or redo or embeddings is not None or only or without:
            raise InputError(
                "--engine ray: give images and -o FOLDER, and no --append, --dry-run, --redo, "
                "--embeddings, --only, --without"
            )
        folder = chosen.folder(device)
        _bulk(
            names,
            folder,
            output,
            format=kind,
            top_k=top_k,
            threshold=threshold,
            batch_size=batch_size,
            partition_size=partition_size,
            retry_failed=retry_failed,
            actors=actors,
            address=address,
            search=Search(hidden, tuple(exclude or ()), follow),
            part=part_of(shard),
            pictures=picture_settings(
                upright, background, max_megapixels, pictures_of(Artifact.load(folder).config)
            ),
        )
        return
    from pvp_fast.loaders.shards import is_shard

    if kind in BESIDE and any(map(is_shard, names)):
        raise InputError(f"--format {kind}: images in .tar shards have no files beside them")
    if output is not None and kind in BESIDE:
        raise InputError(f"--output: {kind} files lie beside their images; leave it out")
    style = CaptionStyle(
        caption_ending, caption_separator, caption_prefix, underscores, escape_brackets
    )
    if dry_run and chosen.only_planned(device):
        return
    tagger = chosen.tagger(device)
    if only or without:
        tagger = tagger.restricted(listed_names(only), listed_names(without))
    tagger.pictures = picture_settings(upright, background, max_megapixels, tagger.pictures)
    source = named_source(names, hidden, exclude, follow, shard) if names else None
    bad = done = skipped = 0
    with open_sink(
        kind,
        output or sys.stdout,
        tagger.artifact.version,
        append=append,
        dry_run=dry_run,
        settings=describe(
            top_k=top_k,
            threshold="own" if threshold is None else threshold,
            **tagger.pictures.to_dict(),
        ),
        redo=redo,
        retry_failed=retry_failed,
        say=print,
        categories=tagger.artifact.vocabulary.labels,
        **_beside(kind, replace, sidecar, inside, into_text, style),
    ) as sink:
        resumes = append or kind == "sqlite"

        count: Callable[[], int | None]
        wanted = _Wanted(source, sink.has if resumes else lambda key: False, kind in BESIDE)
        wanted.pocket = tagger.backbone.name == "pocket"
        if embeddings is None:
            results = tagger.tag(
                wanted, top_k=top_k, threshold=threshold, batch_size=batch_size, prefetch=2
            )
            count = wanted.count
        else:
            store = _noting(embeddings, sink)
            if not store.complete:
                print(
                    f"pvp-fast: {embeddings} is unfinished: {len(store)} images are in it, not all "
                    "of its source; run pvp-fast embed again to complete it",
                    file=sys.stderr,
                )
            results = tagger.tag_embeddings(store, top_k=top_k, threshold=threshold)
            count = lambda: len(store) + len(store.failures)  # noqa: E731
        show = output is not None or not sys.stdout.isatty()
        with image_progress(count, show) as advance_to:
            for result in results:
                if embeddings is not None and resumes and sink.has(result.image):
                    skipped += 1
                else:
                    done += 1
                    reason = sink.write(result) or result.error
                    for note in sink.take_notes():
                        tell(result.image, note)
                    if reason is not None:
                        bad += 1
                        tell(result.image, reason)
                advance_to(done + skipped + wanted.skipped)
        skipped += wanted.skipped
        if not done + skipped and shard is None:  # one of many parts may be empty
            raise InputError(f"images: no image file in {', '.join(names) or embeddings}")
        before = 0 if sink.ledger is None else sink.ledger.failed_before
    line = summary_line(
        done - bad,
        "would be tagged" if dry_run else "tagged",
        before=skipped - before,
        failed=bad,
        failed_before=before,
        passed=wanted.passed,
    )
    console = progress_console()
    console.print(f"dry run: {line}" if dry_run else line, soft_wrap=True, markup=False)
    if bad or before:
        raise typer.Exit(SOME_UNREADABLE)


def model_of(embeddings: Path | None) -> tuple[str, str | None]:
    """The CLIP that made embeddings, which names are to be read with too; else "auto"."""
    if embeddings is None:
        return "auto", None
    from pvp_fast.tagging.embeddings import EmbeddingStore

    made_by = EmbeddingStore(embeddings).backbone
    return str(made_by["name"]), made_by.get("pretrained")


def _beside(
    kind: str,
    replace: bool,
    sidecar: Sidecar | None,
    inside: bool,
    into_text: bool,
    style: CaptionStyle,
) -> dict[str, Any]:
    """Options of the files beside images."""
    if inside and (kind != "xmp" or sidecar):
        raise InputError("--inside: with --format xmp, and without --sidecar")
    if inside:
        return {"replace": replace, "inside": True}
    if kind == "xmp":
        return {"replace": replace, "sidecar": sidecar and sidecar.value}
    if kind == "txt":
        return {"replace": replace, "into_text": into_text, "style": style}
    if replace or sidecar:
        raise InputError("--replace, --sidecar: only files beside images (xmp, txt) have that")
    return {}


def _bulk(images: list[str], artifact: Path, output: Path, **options: Any) -> None:
    from pvp_fast.bulk import BulkReport, tag_dataset

    console = progress_console()
    with console.status("starting Ray") as status:

        def shown(report: BulkReport) -> None:
            status.update(
                f"{report.images + report.failures} images, {report.failures} failed, "
                f"{report.images_per_second:.0f} images/s"
            )

        report = tag_dataset(images, artifact, output, progress=shown, **options)
    line = summary_line(
        report.images,
        "tagged",
        before=report.skipped - report.failed_before,
        failed=report.failures,
        failed_before=report.failed_before,
        passed=report.passed_over,
        where=f"in {output / 'failures'}",
    )
    console.print(
        f"{line}; {report.partitions} partitions, {report.seconds:.1f} s, "
        f"{report.images_per_second:.1f} images/s",
        soft_wrap=True,
        markup=False,
    )
    typer.echo(str(output))
    if report.failures or report.failed_before:
        raise typer.Exit(SOME_UNREADABLE)


class _Wanted:
    """The images to tag, without those done before."""

    def __init__(
        self, source: Source | None, done: Callable[[str], bool], beside: bool = False
    ) -> None:
        self._source, self._done, self._beside = source, done, beside
        self.skipped = 0
        self.pocket = False  # its drawings are small: a large picture is most likely a photo

    @property
    def passed(self) -> PassedOver:
        """What the source left out."""
        from pvp_fast.loaders.sources import passed_over

        return passed_over(self._source)

    def samples(self, shuffle: random.Random | None) -> Iterator[Sample]:
        from pvp_fast.loaders.samples import Sample

        if self._source is None:
            return
        for sample in self._source.samples(shuffle):
            if self.pocket and isinstance(sample.image, str | Path):
                self.pocket = False
                warn_of_photo(sample.image)
            if self._done(sample.key):
                self.skipped += 1
            elif self._beside and (callable(sample.image) or isinstance(sample.image, bytes)):
                yield Sample(sample.key, ImageError("in a shard: there is nothing beside it"))
            else:
                yield sample

    def count(self) -> int | None:
        return None if self._source is None else self._source.count()


def _noting(folder: Path, sink: Sink) -> EmbeddingStore:
    """A store that tells the sink what its rows were made from, before they are tagged."""
    from pvp_fast.tagging.embeddings import EmbeddedImages, EmbeddingStore

    class Noting(EmbeddingStore):
        def batches(self, batch_size: int = 1024) -> Iterator[EmbeddedImages]:
            for batch in super().batches(batch_size):
                for key, content in zip(batch.keys, batch.contents, strict=True):
                    sink.note(key, content)
                yield batch

    return Noting(folder)
