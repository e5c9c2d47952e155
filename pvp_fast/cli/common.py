"""What several commands share: consoles, vocabularies, sentences from files or the grammar."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.console import Console

from pvp_fast.errors import CorpusError

if TYPE_CHECKING:
    from pvp_fast.artifact import Artifact
    from pvp_fast.clip.backbone import Backbone
    from pvp_fast.loaders.samples import Source
    from pvp_fast.tagging.tagger import Tagger
    from pvp_fast.vocabulary.categories import Vocabulary

GRAMMAR_DEFAULT = 6000
_DRAWING = 256  # pixels of the pocket model's drawings, the longer side
MOST_UNLABELLED = 2000  # images without labels that are looked at
Dataset = Annotated[
    str, typer.Option(help="What --images is: folder (labels.json), voc, coco or nuswide.")
]
Split = Annotated[str | None, typer.Option(help="Split of --images, as evaluate's.")]


def drawn(paths: Iterable[Path], most: int, seed: int) -> tuple[list[Path], int]:
    """At most ``most`` of the paths, in their order, and how many there were."""
    every = sorted(paths)
    if len(every) <= most:
        return every, len(every)
    return sorted(random.Random(seed).sample(every, most)), len(every)


def progress_console() -> Console:
    """Console on stderr, so that stdout stays clean for pipes."""
    return Console(stderr=True, highlight=False)


def tell(image: str, words: str) -> None:
    """One line about an image on stderr. What a name holds besides letters is escaped: a file from
    strangers may be called what moves a terminal's cursor."""
    shown = (c if c.isprintable() else ascii(c)[1:-1] for c in f"pvp-fast: {image}: {words}")
    print("".join(shown), file=sys.stderr)


@contextmanager
def image_progress(
    count: Callable[[], int | None], show: bool = True
) -> Iterator[Callable[[int], None]]:
    """A bar on stderr with images/s and time left; gives a function to call with images done.

    Nothing is shown, and ``count`` (which may have to walk folders) not called, where stderr is no
    terminal or ``show`` is false, as when results go to the same terminal.
    """
    console = progress_console()
    if not console.is_terminal or not show:
        yield lambda done: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed or 0:.0f} images/s")

    columns = (BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn())
    # Left alone, rich would send what is printed to stdout to stderr as well.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("images", total=count())
        yield lambda done: bar.update(task, completed=done)


def read_vocabulary(value: str) -> Vocabulary:
    """A vocabulary file when there is one of that name, else a built-in vocabulary.

    What was recognised in the file is said on stderr.
    """
    from pvp_fast.vocabulary.categories import Vocabulary

    if not Path(value).exists():
        return Vocabulary.builtin(value)
    console = progress_console()
    return Vocabulary.load(
        value, say=lambda line: console.print(line, markup=False, soft_wrap=True)
    )


class Gathered(NamedTuple):
    """Sentences, where they came from in words, and how many came from each."""

    texts: list[str]
    source: str
    parts: list[tuple[str, int]]


def gather_sentences(
    vocabulary: Vocabulary, captions: Sequence[Path], grammar: int, seed: int
) -> Gathered:
    """Sentences of all captions files plus ``grammar`` made-up ones.

    Raises:
        CorpusError: a file cannot be read, or none of its sentences mentions a category; others
            beside it would hide that.
    """
    from pvp_fast.sentences import grammar_sentences, read_captions

    texts: list[str] = []
    parts: list[tuple[str, int]] = []
    for path in captions:
        found = list(read_captions(path))
        if not any(map(vocabulary.label, found)):
            raise CorpusError(
                f"captions file {path}: none of the {len(found)} sentences of it mentions a "
                f"category of {vocabulary}; check that they are about these categories and in the "
                "language of their names, or leave the file out"
            )
        texts += found
        parts.append((path.name, len(found)))
    sources = [path.name for path in captions]
    if grammar:
        texts += grammar_sentences(vocabulary, grammar, seed=seed)
        sources.append(f"grammar {grammar}")
        parts.append(("grammar", len(texts) - sum(count for _, count in parts)))
    return Gathered(texts, ", ".join(sources), parts)


def load_backbone(
    name: str,
    pretrained: str | None,
    device: str,
    like: str | None = None,
) -> Backbone:
    """The model, on ``device`` ("auto" takes CUDA where there is one)."""
    from pvp_fast.clip.backbone import Backbone
    from pvp_fast.clip.light import import_open_clip_for

    if name == "auto" and pretrained is None and like is None:
        from pvp_fast.clip.auto import resolve

        chosen = resolve()
        progress_console().print(chosen.note, markup=False, soft_wrap=True)
        name, pretrained = chosen.name, chosen.pretrained
    import_open_clip_for(name)
    return Backbone.load(name, pretrained, device=pick_device(device), like=like)


def backbone_of(artifact: Artifact, device: str) -> Backbone:
    """The CLIP that an artifact names, on ``device``, with no library that it does not use."""
    from pvp_fast.clip.backbone import Backbone
    from pvp_fast.clip.light import import_open_clip_for

    spec = artifact.backbone
    name = str(spec["name"])
    import_open_clip_for(name)
    return Backbone.load(
        name, spec.get("pretrained"), device=pick_device(device), like=spec.get("settings")
    )


def load_tagger(path: Path, device: str) -> Tagger:
    """An artifact folder's tagger, with :func:`backbone_of` it."""
    from pvp_fast.artifact import Artifact
    from pvp_fast.tagging.tagger import Tagger

    artifact = Artifact.load(path)
    return Tagger(artifact, backbone_of(artifact, device))


def warn_of_photo(path: str | Path) -> None:
    """Say what the pocket model is for, where the first picture is larger than its drawings."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            longer = max(picture.size)
    except (OSError, ValueError, Image.DecompressionBombError):
        return  # told where it is read
    if longer > _DRAWING:
        print(
            f"pvp-fast: the pocket model knows drawings of 64 pixels; on photos such as {path} its "
            "tags mean nothing: take --model auto",
            file=sys.stderr,
        )


def warn_of_photos(backbone: Backbone, source: Source) -> None:
    """As :func:`warn_of_photo`, of a source's first picture, before the pocket model reads it."""
    if backbone.name != "pocket":
        return
    first = next(iter(source.samples(None)), None)
    if first is not None and isinstance(first.image, str | Path):
        warn_of_photo(first.image)


MODEL_HELP = "auto (a small CLIP for photos), pocket (drawings), or an open_clip name (ViT-B-32)."


def pick_device(device: str) -> str:
    """Resolve "auto"; anything else is taken at its word."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
