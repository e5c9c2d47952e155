"""``pvp-fast train``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pvp_fast.cli.common import (
    GRAMMAR_DEFAULT,
    MODEL_HELP,
    MOST_UNLABELLED,
    Dataset,
    Split,
    drawn,
    gather_sentences,
    load_backbone,
    progress_console,
    read_vocabulary,
)
from pvp_fast.errors import InputError

if TYPE_CHECKING:
    from pvp_fast.training import TrainConfig

PRESETS = ("default", "demo")


def train(
    vocabulary: Annotated[
        str, typer.Option(help="voc2007, coco80, nuswide81, pocket70, or a YAML/JSON/text file.")
    ],
    out: Annotated[Path, typer.Option(help="Run folder; the artifact lands in OUT/artifact.")],
    captions: Annotated[
        list[Path] | None,
        typer.Option(help="Captions: COCO JSON, Flickr8k tokens, JSONL or text. Repeatable."),
    ] = None,
    grammar: Annotated[
        int | None,
        typer.Option(min=0, help="Add N grammar sentences (default 6000 without --captions)."),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Count plain mentions alone: for prose, not for captions."),
    ] = False,
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "pocket",
    pretrained: Annotated[
        str | None, typer.Option(help="open_clip tag (laion2b_s34b_b79k) or checkpoint path.")
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            help="For a checkpoint file: the tag whose pictures and activation it shares."
        ),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="default, or demo (quick, pocket model).")
    ] = "default",
    steps: Annotated[
        str | None,
        typer.Option(help="Override steps: N for all, or visual=400,text=200,adapter=300."),
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Also train the local branch (tokens and regions).")
    ] = False,
    gap: Annotated[
        str,
        typer.Option(
            help="Noise on the sentences: auto, its length (1.5), or none (as they are, with the "
            "adapter's settings that go with them)."
        ),
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with the run in OUT, if any.")
    ] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
    learn: Annotated[
        str, typer.Option(help="full: all stages. text: text prompts and the adapter alone.")
    ] = "full",
    images: Annotated[
        Path | None, typer.Option(help="Labelled images to go on with, as adapt takes them.")
    ] = None,
    dataset: Dataset = "folder",
    split: Split = None,
    unlabelled: Annotated[
        list[str] | None,
        typer.Option(help="With --images: more such, without labels, as adapt takes them."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan (time, memory, disk) and stop.")
    ] = False,
) -> None:
    """Learn a vocabulary from sentences alone and save an artifact.

    Examples:

      pvp-fast train --vocabulary pocket70 --grammar 6000 --preset demo --out runs/pocket

      pvp-fast train --vocabulary coco80 --captions captions_train2017.json
      --model ViT-B-32 --pretrained laion2b_s34b_b79k --out runs/coco

    On several GPUs: torchrun --nproc-per-node 8 -m pvp_fast train ...
    """
    from pvp_fast.evaluation import read_dataset
    from pvp_fast.files import cache_folder
    from pvp_fast.loaders.sources import find_images
    from pvp_fast.names.plan import Costs, plan_training
    from pvp_fast.sentences import build_corpus
    from pvp_fast.training import train as run_training
    from pvp_fast.training.distributed import Ranks, process_group

    console = progress_console()
    evalset = None if images is None else read_dataset(dataset, images, split)
    more, _ = drawn(find_images(unlabelled) if unlabelled else (), MOST_UNLABELLED, seed)
    words = read_vocabulary(vocabulary)
    config = dataclasses.replace(
        make_config(preset, seed, steps, local, gap, categories=len(words)), learn=learn
    )
    files = captions or []
    count = grammar if grammar is not None else (0 if files else GRAMMAR_DEFAULT)
    texts, source, parts = gather_sentences(words, files, count, seed)
    corpus = build_corpus(texts, words, source=source, strict=strict, parts=parts)
    with process_group(device) as place:
        ranks = Ranks()
        quiet = quiet or not ranks.first
        if not quiet:
            for line in corpus.summary():
                console.print(line, markup=False)
        with ranks.in_turn():  # the weights are downloaded once
            backbone = load_backbone(model, pretrained, place, like)
        if not quiet and model != "pocket":
            console.print(f"pictures and activation: {backbone.settings.source}", markup=False)
        if ranks.first and not (out / "config.json").exists():  # a run goes on as it was planned
            costs = Costs.of(backbone, cache_folder() / "models")
            plan = plan_training(backbone, config, len(words), len(corpus), costs)
            for line in plan.lines() if dry_run or not quiet else ():
                console.print(line, markup=False, soft_wrap=True)
            plan.check()
        if dry_run:
            return
        artifact = run_training(
            backbone,
            corpus,
            out,
            config,
            images=evalset,
            unlabelled=more,
            progress=not quiet,
            resume=resume,
        )
        if not quiet:
            for stage, value in artifact.metrics["held_out_map"].items():
                console.print(f"  {stage:>10}  mAP {value:5.1f} on held-out sentences")
            if found := artifact.metrics.get("images"):
                console.print(
                    f"  {'images':>10}  mAP {found['map_after']:5.1f} on left-out ones, "
                    f"{found['map_before']:.1f} without them"
                )
        if ranks.first:
            typer.echo(str(out / "artifact"))


def make_config(
    preset: str,
    seed: int,
    steps: str | None,
    local: bool = False,
    gap: str = "auto",
    *,
    categories: int = 1,
) -> TrainConfig:
    """Settings from a preset's name, a seed and an override such as ``visual=10,text=5``.

    Of many ``categories`` there are as many steps as those take, unless overridden.

    Raises:
        InputError: an unknown preset or stage, or a number of steps or a gap that is none.
    """
    from pvp_fast.training import TrainConfig

    if preset not in PRESETS:
        raise InputError(f"--preset {preset!r}: use one of {', '.join(PRESETS)}")
    config = TrainConfig.demo(seed) if preset == "demo" else TrainConfig().with_seed(seed)
    config = dataclasses.replace(config, local=local).sized(categories)
    if gap == "none":
        config = config.without_gap()
    elif gap != "auto":
        try:
            sigma = float(gap)
        except ValueError:
            raise InputError(f"--gap {gap!r}: use auto, none, or a length such as 1.5") from None
        config = dataclasses.replace(config, gap=dataclasses.replace(config.gap, sigma=sigma))
    # What --steps calls a stage, and its section of the configuration.
    stages = {"visual": "visual", "text": "text", "adapter": "adapter", "local": "local_prompts"}
    for part in (steps or "").split(","):
        if not part.strip():
            continue
        stage, equals, number = part.strip().rpartition("=")
        if (equals and stage not in stages) or not number.isdecimal():
            raise InputError(
                f"--steps {steps!r}: give a number, or stages such as visual=400,text=200,"
                "adapter=300"
            )
        for name in [stages[stage]] if equals else stages.values():
            section = getattr(config, name)
            loop = dataclasses.replace(section.loop, steps=int(number))
            config = dataclasses.replace(config, **{name: dataclasses.replace(section, loop=loop)})
    return config
