"""``--vocabulary`` in place of an artifact: one way for every command that tags."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pvp_fast.cli.common import (
    MODEL_HELP,
    gather_sentences,
    load_backbone,
    load_tagger,
    progress_console,
    read_vocabulary,
)
from pvp_fast.cli.language import NOBODY, LanguageModel
from pvp_fast.errors import InputError

if TYPE_CHECKING:
    from pvp_fast.clip.backbone import Backbone
    from pvp_fast.names import Prepared
    from pvp_fast.tagging.tagger import Tagger

PANEL = "Names in place of an artifact"


class Learn(str, Enum):
    """How much is learned about a list of names."""

    none = "none"
    text = "text"
    full = "full"
    auto = "auto"


Names = Annotated[
    str | None,
    typer.Option(
        "--vocabulary",
        help="Names to tag with, in place of an artifact: a file, or a built-in vocabulary.",
        rich_help_panel=PANEL,
    ),
]
LearnOption = Annotated[
    Learn | None,
    typer.Option(
        help="none: at once. text: text prompts. full: all stages. auto: the best that fits. "
        "(default: none; auto with --minutes)",
        rich_help_panel=PANEL,
    ),
]
Minutes = Annotated[
    float | None, typer.Option(help="Bound for the learning.", rich_help_panel=PANEL)
]
Captions = Annotated[
    list[Path] | None,
    typer.Option(
        help="Captions to learn from (default: the grammar writes). Repeatable.",
        rich_help_panel=PANEL,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(help=f"{MODEL_HELP} (default: auto)", rich_help_panel=PANEL),
]
Pretrained = Annotated[
    str | None,
    typer.Option(
        help="open_clip tag (laion2b_s34b_b79k) or checkpoint path.", rich_help_panel=PANEL
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Where what is made is kept (default: PVP_FAST_CACHE, or the user's cache folder).",
        rich_help_panel=PANEL,
    ),
]


class Chosen:
    """What a command was given to tag with: an artifact's folder, or names and how to learn them.

    Raises:
        InputError: both or neither, or options of the names beside an artifact.
    """

    def __init__(
        self,
        artifact: Path | None,
        vocabulary: str | None,
        learn: Learn | None = None,
        minutes: float | None = None,
        sentences: list[Path] | None = None,
        model: str | None = None,
        pretrained: str | None = None,
        cache: Path | None = None,
        writer: LanguageModel = NOBODY,
    ) -> None:
        if (artifact is None) == (vocabulary is None):
            raise InputError("give an artifact folder, or --vocabulary FILE and no artifact")
        self.artifact, self.vocabulary, self.minutes = artifact, vocabulary, minutes
        self.sentences, self.cache, self.writer = sentences or [], cache, writer
        self.model, self.pretrained = model or "auto", pretrained
        options = {
            "--learn": learn,
            "--minutes": minutes,
            "--captions": sentences,
            "--model": model,
            "--pretrained": pretrained,
            "--cache": cache,
            "--llm, --base-url, --local-llm": writer.given,
        }
        given = [name for name, value in options.items() if value]
        if vocabulary is None and given:
            raise InputError(f"{', '.join(given)}: only with --vocabulary, not with an artifact")
        how = learn.value if learn else None
        bounded = minutes is not None or sentences or writer.given
        self.learn = how or ("auto" if bounded else "none")

    def tagger(self, device: str) -> Tagger:
        """The tagger, made now where it has to be."""
        from pvp_fast.tagging.tagger import Tagger

        if self.artifact is not None:
            return load_tagger(self.artifact, device)
        found, backbone = self._prepared(device, False)
        return Tagger(found.loaded(), backbone)

    def only_planned(self, device: str) -> bool:
        """For dry runs: whether something has to be made; then its plan has been printed."""
        return self.artifact is None and self._prepared(device, True)[0].artifact is None

    def folder(self, device: str = "auto") -> Path:
        """An artifact folder, for what loads it elsewhere; made now where it has to be."""
        return self.artifact or self._prepared(device, False)[0].path

    def _prepared(self, device: str, dry_run: bool) -> tuple[Prepared, Backbone]:
        from pvp_fast.names import Request, prepare

        console = progress_console()

        def say(line: str) -> None:
            console.print(line, markup=False, soft_wrap=True)

        words = read_vocabulary(self.vocabulary or "")
        texts, _, parts = gather_sentences(words, self.sentences, 0, 0)
        # Without any the request is refused.
        request = Request(words, self.learn, self.minutes, tuple(texts) or None, parts=tuple(parts))
        backbone = load_backbone(self.model, self.pretrained, device)
        if self.writer.given:
            if dry_run:
                say("plan: a dry run asks no language model; counted as if the grammar wrote")
            else:
                written = self.writer.sentences(words, self.cache)
                texts += written
                parts.append(("the language model", len(written)))
                request = replace(request, sentences=tuple(texts), parts=tuple(parts))
        learns = self.learn != "none" and console.is_terminal
        with nullcontext() if learns else console.status("names") as status:

            def encoded(done: int, count: int) -> None:
                if status is not None:
                    status.update(f"{done} of {count} names")

            found = prepare(
                request,
                backbone,
                cache=self.cache,
                dry_run=dry_run,
                progress=learns,
                say=say,
                encoded=encoded,
            )
        if found.artifact is not None and not dry_run:
            say(f"{'artifact' if found.cached else 'made'}: {found.path}")
        return found, backbone


def listed_names(given: list[str] | None) -> list[str]:
    """Names on a command line, where a file stands for the names in it."""
    names: list[str] = []
    for value in given or []:
        names += read_vocabulary(value).names if Path(value).is_file() else [value]
    return names
