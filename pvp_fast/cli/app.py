"""The typer application and the one place where exceptions become exit codes."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

import typer

from pvp_fast.cli import (
    adapt,
    add,
    calibrate,
    demo,
    discover,
    embed,
    evaluate,
    export,
    info,
    remove,
    report,
    sentences,
    serve,
    tag,
    train,
    untag,
)
from pvp_fast.clip.usual import VARIABLE, set_precision
from pvp_fast.errors import PvpFastError
from pvp_fast.threads.budget import few_arenas, set_budget, tell_openmp

OK, ERROR, USAGE, SOME_UNREADABLE, INTERRUPTED = 0, 1, 2, 3, 130
COLLECT_EVERY = 20_000  # new objects
READER_GONE = 141  # as a shell reports a program that SIGPIPE ended

app = typer.Typer(
    name="pvp-fast",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root(
    debug: bool = typer.Option(
        False, "--debug", help="Show the traceback of an error (works after the command, too)."
    ),
    threads: int | None = typer.Option(
        None,
        min=1,
        help="Threads of loader, encoder and top-k (default: PVP_FAST_THREADS, else the CPUs "
        "that affinity and the container's quota leave).",
    ),
    precision: str | None = typer.Option(
        None,
        help="What CLIP computes in: float32, bfloat16, float16 (GPUs), int8 (tagging on CPUs), "
        "or auto, the fastest of the first three here (default: PVP_FAST_PRECISION, else auto).",
    ),
) -> None:
    """Teach CLIP new image categories from text alone, and tag images with them.

    Start with [bold]pvp-fast demo[/]: two cores, under three minutes, no downloads.

    Exit codes: 0 ok, 1 error, 2 wrong usage, 3 done but some images could not be read.
    """
    set_budget(threads)
    tell_openmp()
    few_arenas()
    set_precision(precision or os.environ.get(VARIABLE) or "auto")


app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("tag")(tag.tag)
app.command("untag")(untag.untag)
app.command("embed")(embed.embed)
app.command("evaluate")(evaluate.evaluate)
app.command("sentences")(sentences.sentences)
app.command("add-category")(add.add_category)
app.command("adapt")(adapt.adapt)
app.command("merge-category")(remove.merge_category)
app.command("remove-category")(remove.remove_category)
app.command("rename-category")(remove.rename_category)
app.command("discover")(discover.discover)
app.command("calibrate")(calibrate.calibrate)
app.command("report")(report.report)
app.command("serve")(serve.serve)
app.command("export")(export.export)
app.command("info")(info.info)


def run(argv: Sequence[str]) -> int:
    """Run one command line (without the program's name) and return its exit code."""
    words = list(argv)
    end = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:end]
    words = [w for w in words[:end] if w != "--debug"] + words[end:]
    try:
        return _run(words, debug)
    finally:  # what was said for this command
        set_budget(None)
        set_precision(None)


def _run(words: list[str], debug: bool) -> int:
    try:
        code = typer.main.get_command(app).main(words, "pvp-fast", standalone_mode=False)
        return code if isinstance(code, int) else OK
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except (BrokenPipeError, SystemExit) as error:
        # The reader of our output went away (pvp-fast tag … | head), which click turns into an
        # exit; there is nobody to tell.
        if not isinstance(error, BrokenPipeError) and not isinstance(
            error.__context__, BrokenPipeError
        ):
            raise
        _drop_stdout()
        return READER_GONE
    except Exception as error:
        # click's own exceptions know how to show themselves; typer hides where it keeps click.
        if hasattr(error, "exit_code") and hasattr(error, "show"):
            error.show()
            return int(error.exit_code)
        if debug:
            raise
        print(f"pvp-fast: {_sentence(error)}", file=sys.stderr)
        return ERROR


def _drop_stdout() -> None:
    """Send what stdout still buffers nowhere, so that the flush at exit does not fail as well."""
    if sys.__stdout__ is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.__stdout__.fileno())
        os.close(nowhere)


def _sentence(error: Exception) -> str:
    if isinstance(error, PvpFastError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    kind = type(error).__name__
    return f"{kind}: {' '.join(str(error).split())} (add --debug for the traceback)"


def main() -> None:
    """Entry point of ``pvp-fast``.

    What is imported stays: not looking for garbage in it while it comes, nor as the program ends,
    saves a fifth of a short command's time.
    """
    gc.set_threshold(COLLECT_EVERY)
    code = run(sys.argv[1:])
    gc.freeze()
    sys.exit(code)
