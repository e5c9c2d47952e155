"""``--vocabulary`` in place of an artifact: one way for every command that tags."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from enum import Enum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from pvp_fast.cli.common import (
    MODEL_HELP,
    gather_sentences,
    load_backbone,
    load_tagger,
    progress_console,
    read_vocabulary,
)
from pvp_fast.cli.language import LLM, ApiKey, BaseUrl, LanguageModel, LocalLLM
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


@dataclass(frozen=True)
class NameOptions:
    """What a command was given of names; each field is an option of the command line."""

    vocabulary: Annotated[
        str | None,
        typer.Option(
            help="Names to tag with, in place of an artifact: a file, or a built-in vocabulary.",
            rich_help_panel=PANEL,
        ),
    ] = None
    learn: Annotated[
        Learn | None,
        typer.Option(
            help="none: at once. text: class vectors from sentences. full: all stages. auto: the "
            "best that fits. (default: none; auto with --minutes, --captions or a language model)",
            rich_help_panel=PANEL,
        ),
    ] = None
    minutes: Annotated[
        float | None, typer.Option(help="Bound for the learning.", rich_help_panel=PANEL)
    ] = None
    captions: Annotated[
        list[Path] | None,
        typer.Option(
            help="Captions to learn from (default: the grammar writes). Repeatable.",
            rich_help_panel=PANEL,
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(help=f"{MODEL_HELP} (default: auto)", rich_help_panel=PANEL),
    ] = None
    pretrained: Annotated[
        str | None,
        typer.Option(
            help="open_clip tag (laion2b_s34b_b79k) or checkpoint path.", rich_help_panel=PANEL
        ),
    ] = None
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Where what is made is kept (default: PVP_FAST_CACHE, or the user's cache "
            "folder).",
            rich_help_panel=PANEL,
        ),
    ] = None
    llm: LLM = None
    base_url: BaseUrl = None
    api_key: ApiKey = None
    local_llm: LocalLLM = None

    @property
    def writer(self) -> LanguageModel:
        return LanguageModel(self.llm, self.base_url, self.api_key, self.local_llm)

    def refuse(self, why: str) -> None:
        """Raise InputError where an option says how to learn names that there are none of."""
        options = {
            "--learn": self.learn,
            "--minutes": self.minutes,
            "--captions": self.captions,
            "--model": self.model,
            "--pretrained": self.pretrained,
            "--cache": self.cache,
            "--llm, --base-url, --local-llm": self.writer.given,
        }
        if used := [name for name, value in options.items() if value]:
            raise InputError(f"{', '.join(used)}: only with --vocabulary, {why}")


NOTHING = NameOptions()


def takes_names(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of :class:`NameOptions` in place of its argument ``given``."""
    hints = get_type_hints(command, include_extras=True)
    options = get_type_hints(NameOptions, include_extras=True)
    names = [field.name for field in fields(NameOptions)]
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name != "given":
            parameters.append(parameter.replace(annotation=hints[parameter.name]))
            continue
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters += [
            inspect.Parameter(name, kind, default=None, annotation=options[name]) for name in names
        ]

    @wraps(command)
    def with_names(**values: Any) -> None:
        given = NameOptions(**{name: values.pop(name) for name in names})
        command(**values, given=given)

    # What typer reads.
    with_names.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_names.__annotations__ = {p.name: p.annotation for p in parameters}
    del with_names.__wrapped__
    return with_names


class Chosen:
    """What a command was given to tag with: an artifact's folder, or names and how to learn them.

    Args:
        models: the (name, pretrained) of the CLIP, where no option says which.

    Raises:
        InputError: both or neither, options of the names beside an artifact, or options that do
            not go together; before anything is loaded or asked.
    """

    def __init__(
        self,
        artifact: Path | None,
        given: NameOptions,
        models: tuple[str, str | None] = ("auto", None),
    ) -> None:
        vocabulary, writer = given.vocabulary, given.writer
        if (artifact is None) == (vocabulary is None):
            raise InputError("give an artifact folder, or --vocabulary FILE and no artifact")
        self.artifact, self.vocabulary, self.minutes = artifact, vocabulary, given.minutes
        self.sentences, self.cache, self.writer = given.captions or [], given.cache, writer
        self.model, self.pretrained = models
        if given.model or given.pretrained:
            self.model, self.pretrained = given.model or "auto", given.pretrained
        if vocabulary is None:
            given.refuse("not with an artifact")
        if writer.given:
            writer.check()
        how = given.learn.value if given.learn else None
        taught = bool(given.captions) or writer.given
        if how == "none" and taught:
            raise InputError(
                "--learn none reads no sentences; leave out --captions and the language model, or "
                "give --learn text, full or auto"
            )
        self.learn = how or ("auto" if taught or given.minutes is not None else "none")

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
                parts.append((f"the language model {self.writer.name}", len(written)))
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
