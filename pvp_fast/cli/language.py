"""The language model that writes sentences: its options, for every command that may ask one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pvp_fast.cli.common import progress_console
from pvp_fast.errors import InputError

if TYPE_CHECKING:
    from pvp_fast.sentences.writers import Writer
    from pvp_fast.vocabulary.categories import Vocabulary

_PANEL = "A language model that writes sentences"

LLM = Annotated[str | None, typer.Option(help="Its name at --base-url.", rich_help_panel=_PANEL)]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        help="OpenAI-compatible endpoint, http://localhost:8000/v1.", rich_help_panel=_PANEL
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="OPENAI_API_KEY", help="Key, if the endpoint wants one.", rich_help_panel=_PANEL
    ),
]
LocalLLM = Annotated[
    str | None,
    typer.Option(help="Folder of a local transformers model instead.", rich_help_panel=_PANEL),
]


def pick_writer(
    base_url: str | None, llm: str | None, api_key: str | None, local_llm: str | None
) -> Writer:
    """The language model that the options of a command name.

    Raises:
        InputError: they name none.
    """
    from pvp_fast.sentences.writers import LocalTransformers, OpenAIChat

    if local_llm is not None:
        return LocalTransformers(local_llm)
    if base_url is not None and llm is not None:
        return OpenAIChat(base_url, llm, api_key)
    raise InputError("a language model needs --llm NAME and --base-url URL, or --local-llm FOLDER")


@dataclass(frozen=True)
class LanguageModel:
    """Who writes the sentences; nobody when all are None."""

    llm: str | None = None
    base_url: str | None = None
    api_key: str | None = None
    local_llm: str | None = None

    @property
    def given(self) -> bool:
        return any((self.llm, self.base_url, self.local_llm))

    @property
    def name(self) -> str:
        """What is said of it."""
        return self.llm or Path(self.local_llm or "").name

    def check(self) -> None:
        """Raise InputError where the options name no model, or two."""
        if self.local_llm is None and None in (self.llm, self.base_url):
            pick_writer(self.base_url, self.llm, self.api_key, None)
        if self.local_llm is not None and (self.llm or self.base_url):
            raise InputError("give --local-llm FOLDER, or --llm NAME and --base-url URL, not both")

    def sentences(self, words: Vocabulary, cache: Path | None) -> list[str]:
        """Sentences about the names, from a record in the cache that a run goes on with.

        Raises:
            InputError: the model cannot be loaded. CorpusError: it failed.
        """
        from pvp_fast.names.asked import asked_sentences

        console = progress_console()
        writer = pick_writer(self.base_url, self.llm, self.api_key, self.local_llm)
        return asked_sentences(
            writer,
            words,
            cache=cache,
            say=lambda line: console.print(line, markup=False, soft_wrap=True),
        )
