"""``pvp-fast calibrate``."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pvp_fast.cli.common import (
    MOST_UNLABELLED,
    Dataset,
    Split,
    backbone_of,
    drawn,
    gather_sentences,
    progress_console,
    tell,
)
from pvp_fast.cli.pictures import Background, MaxMegapixels, Upright, picture_settings
from pvp_fast.cli.sources import summary_line
from pvp_fast.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pvp_fast.artifact import Artifact
    from pvp_fast.evaluation.calibrate import Calibration
    from pvp_fast.pictures import PictureSettings
    from pvp_fast.training.thresholds import Target

SENTENCES = 2000
SEED = 1_000_003  # of fresh grammar sentences: not one that training is likely to use

ON_IMAGES = (
    "these numbers are of sentences; on images expect far less: on the pocket model a precision of "
    "80 % came to 17 to 36 %. --unlabelled FOLDER or --images calibrate there"
)


def calibrate(
    artifact: Annotated[Path, typer.Argument(help="Artifact folder to start from.")],
    out: Annotated[Path, typer.Option(help="Folder for the new artifact.")],
    target: Annotated[str, typer.Option(help="precision=0.9, recall=0.8 or f1.")] = "precision=0.9",
    captions: Annotated[
        list[Path] | None,
        typer.Option(help="Captions, any format train reads. Repeatable."),
    ] = None,
    grammar: Annotated[
        int | None,
        typer.Option(min=0, help=f"N grammar sentences (default {SENTENCES} fresh ones)."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the grammar (train's, to find what it held out).")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="As train's, where it was used.")
    ] = False,
    images: Annotated[
        Path | None, typer.Option(help="Labelled images to calibrate on instead of sentences.")
    ] = None,
    dataset: Dataset = "folder",
    split: Split = None,
    unlabelled: Annotated[
        list[str] | None,
        typer.Option(help="Images without labels: a folder, as tag takes it. Repeatable."),
    ] = None,
    most: Annotated[
        int, typer.Option(min=1, help="Of more --unlabelled images, this many drawn at random.")
    ] = MOST_UNLABELLED,
    own: Annotated[
        bool,
        typer.Option(
            "--own", help="With --unlabelled: a SigLIP's own probabilities; any number of images."
        ),
    ] = False,
    common: Annotated[
        bool | None,
        typer.Option(
            "--common/--each",
            help="One threshold for all categories (default with --images) or one each.",
        ),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(help="Folder for diagrams (needs the extra plots).")
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", help="Also write all numbers here.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    upright: Upright = None,
    background: Background = None,
    max_megapixels: MaxMegapixels = None,
) -> None:
    """Set thresholds and probabilities for a target: from sentences, or from images.

    With train's own --captions, --grammar and --seed, what train held out is used; otherwise give
    sentences that it did not see. Sentences score higher than images, so a precision promised by
    sentences holds for sentences; labelled images make it hold for images, and so does a folder
    without labels, for a precision. The table comes from cross-fitting: no row was judged by a
    threshold it helped to set. Without labels it is what is expected, between what bounds; --own
    takes the probabilities of a SigLIP's own scale and bias, as a starting point.

    Examples:

      pvp-fast calibrate runs/coco/artifact --target precision=0.9 --out runs/strict

      pvp-fast calibrate runs/coco/artifact --target precision=0.8 --unlabelled photos/
      --out runs/photos

      pvp-fast calibrate runs/coco/artifact --images labelled/ --target f1 --out runs/tuned
    """
    from pvp_fast.artifact import Artifact
    from pvp_fast.evaluation import calibrate as recalibrate
    from pvp_fast.evaluation import encode_set, read_dataset
    from pvp_fast.files import is_stdout, json_text, open_output
    from pvp_fast.loaders.sources import find_images
    from pvp_fast.pictures.settings import pictures_of
    from pvp_fast.report.plots import require_matplotlib, write_plots
    from pvp_fast.sentences import build_corpus
    from pvp_fast.training.thresholds import Target

    aim = Target.parse(target)
    if images is not None and (captions or grammar is not None):
        raise InputError("--images calibrates on images; leave out --captions and --grammar")
    if unlabelled and (images is not None or captions or grammar is not None):
        raise InputError(
            "--unlabelled calibrates on images alone; leave out --images, --captions and --grammar"
        )
    if own and (not unlabelled or plots is not None):
        raise InputError("--own goes with --unlabelled FOLDER, and has no --plots")
    if plots is not None:
        require_matplotlib()
    old = Artifact.load(artifact)
    if unlabelled:
        pictures = picture_settings(upright, background, max_megapixels, pictures_of(old.config))
        _without_labels(
            old,
            aim,
            find_images(unlabelled),
            most,
            seed or 0,
            pictures,
            device,
            out,
            plots,
            json_out,
            own,
        )
        return
    console = progress_console()
    failures: tuple[tuple[Path, str], ...] = ()
    notes: tuple[str, ...] = ()
    if images is not None:
        evalset = read_dataset(dataset, images, split)
        notes = evalset.notes
        pictures = picture_settings(upright, background, max_megapixels, pictures_of(old.config))
        with console.status("encoding images"):
            backbone = backbone_of(old, device)
            old.check_backbone(backbone.fingerprint)
            features = encode_set(backbone, evalset, artifacts=[old], pictures=pictures)
        old = replace(old, config={**old.config, "pictures": pictures.to_dict()})
        data = recalibrate.score_images(old, features)
        failures, what = features.failures, f"images of {images}"
    else:
        files = captions or []
        count = grammar if grammar is not None else (0 if files else SENTENCES)
        number = seed if seed is not None else (0 if grammar is not None else SEED)
        texts, source, _ = gather_sentences(old.vocabulary, files, count, number)
        corpus = build_corpus(texts, old.vocabulary, source=source, strict=strict)
        part, known = recalibrate.unseen(old, corpus)
        if not known:  # training has seen the prompt templates
            part = build_corpus(
                texts, old.vocabulary, templates=False, source=source, strict=strict
            )
        what = f"sentences that training held out of {source}" if known else f"sentences ({source})"
        with console.status("encoding sentences"):
            data = recalibrate.score_sentences(backbone_of(old, device), old, part)
    result = recalibrate.calibrate(
        old, data, aim, common=images is not None if common is None else common
    )
    result.artifact.save(out)
    if plots is not None:
        write_plots(result, plots)
    if json_out is not None:
        with open_output(json_out, "w") as stream:
            stream.write(json_text(result.to_dict(), indent=2))
    aside = is_stdout(json_out)
    typer.echo(f"{result.rows} {what}; target {aim}", err=aside)
    typer.echo(_table(result), err=aside)
    if images is None:
        print(ON_IMAGES, file=sys.stderr)
    for note in notes:
        print(note, file=sys.stderr)
    for path, reason in failures:
        tell(str(path), reason)
    if images is not None:
        _sum_up(result.rows, failures)
    typer.echo(str(out), err=aside)
    if failures:
        raise typer.Exit(3)


def _without_labels(
    old: Artifact,
    aim: Target,
    found: Iterable[Path],
    most: int,
    seed: int,
    pictures: PictureSettings,
    device: str,
    out: Path,
    plots: Path | None,
    json_out: Path | None,
    own: bool,
) -> None:
    from pvp_fast.evaluation import (
        EvalSet,
        OwnCalibration,
        UnlabelledCalibration,
        calibrate_own,
        calibrate_unlabelled,
        encode_set,
        final_scores,
    )
    from pvp_fast.files import is_stdout, json_text, open_output
    from pvp_fast.report.plots import write_unlabelled

    paths, listed = drawn(found, most, seed)
    with progress_console().status("encoding images"):
        backbone = backbone_of(old, device)
        old.check_backbone(backbone.fingerprint)
        features = encode_set(
            backbone, EvalSet.unlabelled(paths), artifacts=[old], pictures=pictures
        )
    new = replace(old, config={**old.config, "pictures": pictures.to_dict()})
    result: OwnCalibration | UnlabelledCalibration
    if own:
        result = calibrate_own(backbone, new, features, aim)
    else:
        result = calibrate_unlabelled(new, final_scores(new, features), aim, seed=seed)
    result.artifact.save(out)
    if plots is not None and isinstance(result, UnlabelledCalibration):
        write_unlabelled(result, plots)
    if json_out is not None:
        with open_output(json_out, "w") as stream:
            stream.write(json_text(result.to_dict(), indent=2))
    aside = is_stdout(json_out)
    of = f" of {listed}" if listed > len(paths) else ""
    typer.echo(f"{result.images}{of} images without labels; target {aim}", err=aside)
    typer.echo(result.table(), err=aside)
    for path, reason in features.failures:
        tell(str(path), reason)
    _sum_up(result.images, features.failures)
    typer.echo(str(out), err=aside)
    if features.failures:
        raise typer.Exit(3)


def _sum_up(images: int, failures: Sequence[object]) -> None:
    line = summary_line(images, "looked at", failed=len(failures))
    progress_console().print(line, soft_wrap=True, markup=False)


def _table(result: Calibration) -> str:
    found = result.to_dict()
    lines = [f"{'':12}{'ECE':>8}{'precision':>11}{'macro':>8}{'recall':>8}"]
    for name, key in (("before", "before"), ("after", "after")):
        row = found[key]
        cells = [row["precision"], row["macro_precision"], row["recall"]]
        percent = [math.nan if v is None else 100 * v for v in cells]
        lines.append(
            f"{name:12}{100 * row['ece']:8.2f}{percent[0]:11.1f}{percent[1]:8.1f}{percent[2]:8.1f}"
        )
    wide = max(8, *(len(c["name"]) for c in found["categories"]))
    lines.append(f"\n{'category':{wide}}{'threshold':>11}{'kept':>7}{'right':>7}{'present':>9}")
    lines += [
        f"{c['name']:{wide}}{c['threshold']:11.3f}{c['kept']:7}{c['right']:7}{c['present']:9}"
        for c in found["categories"]
    ]
    return "\n".join(lines)
