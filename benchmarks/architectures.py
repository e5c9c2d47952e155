"""Every architecture of the installed open_clip, untrained: what works on it here.

``python -m benchmarks.architectures`` builds one architecture after another, each in a process of
its own (so that memory is its own), with random weights and a batch of two images (one where the
tower is large), and keeps in ``results/architectures.json`` whether both encoders equal
open_clip's, whether prompts can be learned and regions exist (and why not), where the picture's
settings come from, parameters, and the seconds of a CPU thread. A large image tower is run in
bfloat16. No network: tokenizers that a hub would give are replaced by one with the same markers,
vocabulary and length, and Hugging Face configurations by the published numbers. Where the weights
pass ``--gigabytes``, like blocks of a tower share theirs in memory: every operation is there, at
its size. What is there already is kept: the script goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import resource
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pvp_fast.clip.undrawn import undrawn
from pvp_fast.files import atomic_write

RESULTS = Path(__file__).resolve().parent / "results" / "architectures.json"
LARGE = 500_000_000  # weights of an image tower that is given one image, and runs in bfloat16
WORDS = ["a dog", "two cats on a long bench", "", "teddy bear"]

# Of the published configurations, what decides shapes: class, markers (start, end, padding).
BERT_LIKE = {"max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
HUB: dict[str, tuple[str, dict[str, Any], tuple[int | None, int, int]]] = {
    "roberta-base": ("RobertaConfig", {**BERT_LIKE, "vocab_size": 50265}, (0, 2, 1)),
    "xlm-roberta-base": ("XLMRobertaConfig", {**BERT_LIKE, "vocab_size": 250002}, (0, 2, 1)),
    "xlm-roberta-large": (
        "XLMRobertaConfig",
        {
            **BERT_LIKE, "vocab_size": 250002, "hidden_size": 1024, "num_hidden_layers": 24,
            "num_attention_heads": 16, "intermediate_size": 4096,
        },
        (0, 2, 1),
    ),
    "google/mt5-base": (
        "MT5Config",
        {
            "vocab_size": 250112, "d_model": 768, "d_ff": 2048, "d_kv": 64, "num_layers": 12,
            "num_heads": 12, "feed_forward_proj": "gated-gelu",
        },
        (None, 1, 0),
    ),
    "google/mt5-xl": (
        "MT5Config",
        {
            "vocab_size": 250112, "d_model": 2048, "d_ff": 5120, "d_kv": 64, "num_layers": 24,
            "num_heads": 32, "feed_forward_proj": "gated-gelu",
        },
        (None, 1, 0),
    ),
    "facebook/nllb-200-distilled-600M": (
        "M2M100Config",
        {
            "vocab_size": 256206, "d_model": 1024, "encoder_layers": 12, "decoder_layers": 12,
            "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096, "encoder_attention_heads": 16,
            "decoder_attention_heads": 16, "max_position_embeddings": 1024,
        },
        (256047, 2, 1),
    ),
    "facebook/nllb-200-distilled-1.3B": (
        "M2M100Config",
        {
            "vocab_size": 256206, "d_model": 1024, "encoder_layers": 24, "decoder_layers": 24,
            "encoder_ffn_dim": 8192, "decoder_ffn_dim": 8192, "encoder_attention_heads": 16,
            "decoder_attention_heads": 16, "max_position_embeddings": 1024,
        },
        (256047, 2, 1),
    ),
}  # fmt: skip
MARKERS: dict[str, tuple[int | None, int, int]] = {
    "facebook/xlm-v-base": (0, 2, 1),
    "bert-base-uncased": (101, 0, 0),  # CLIPA's: the end marker is made padding
    **{name: markers for name, (_, _, markers) in HUB.items()},
}


class StandIn:
    """A tokenizer with a hub's markers: every word is one number, by its letters."""

    def __init__(self, text: dict[str, Any]) -> None:
        name = text.get("hf_tokenizer_name") or text["hf_model_name"]
        if name in MARKERS:
            self.start, self.end, self.pad = MARKERS[name]
        else:  # SigLIP: no start; the first fills its row with the end marker, the second with 0
            self.start, self.end, self.pad = None, 1, 1 if text["vocab_size"] == 32000 else 0
        vocabulary = text.get("vocab_size", 0)
        if name in HUB:
            vocabulary = HUB[name][1]["vocab_size"]
        self.words = min(vocabulary, 256000) - 200
        self.context_length = text.get("context_length", 77)
        self.strip_sep_token = bool(text.get("tokenizer_kwargs", {}).get("strip_sep_token"))

    def __call__(self, texts: list[str], context_length: int | None = None) -> torch.Tensor:
        length = context_length or self.context_length
        rows = torch.full((len(texts), length), self.pad)
        for row, text in zip(rows, texts, strict=True):
            words = [110 + sum(ord(c) * 31**i for i, c in enumerate(w)) % self.words
                     for w in text.replace(".", " .").split()]  # fmt: skip
            first = [] if self.start is None else [self.start]
            ids = [*[*first, *words][: length - 1], self.end]
            row[: len(ids)] = torch.tensor(ids)
        return rows


def without_a_hub() -> None:
    """open_clip finds tokenizers and configurations here, and none are asked of a network."""
    # The repository is on a script's path, where our kernels hide a package that transformers asks.
    sys.path[:] = [p for p in sys.path if not (Path(p) / "kernels" / "entrywise.py").exists()]
    import open_clip
    import transformers
    from open_clip import hf_model

    real = open_clip.get_tokenizer

    def tokenizer(name: str, **options: Any) -> Any:
        text = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
        needed = text.get("hf_tokenizer_name") or text.get("hf_model_name")
        return StandIn(text) if needed else real(name, **options)

    def configuration(name: str, **_: Any) -> Any:
        kind, values, _ = HUB[name]
        return getattr(transformers, kind)(**values)

    open_clip.get_tokenizer = tokenizer
    hf_model.AutoConfig.from_pretrained = configuration


@contextlib.contextmanager
def untrained() -> Iterator[None]:
    """Layers are made without drawing their weights, which for a large model takes minutes."""
    import timm.layers.weight_init

    skipped = [name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")]
    before = {name: getattr(nn.init, name) for name in skipped}
    truncated = timm.layers.weight_init._trunc_normal_
    try:
        for name in skipped:
            setattr(nn.init, name, lambda tensor, *_, **__: tensor)
        timm.layers.weight_init._trunc_normal_ = lambda tensor, *_, **__: tensor
        yield
    finally:
        for name, function in before.items():
            setattr(nn.init, name, function)
        timm.layers.weight_init._trunc_normal_ = truncated


def share(model: nn.Module) -> None:
    """The blocks of each tower that are alike get the memory of the first of them.

    Memory that was never written costs nothing, so this comes before weights are drawn.
    """
    for module in model.modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue  # an attention's projections are alike as well
        first: dict[Any, nn.Module] = {}
        for child in module.children():
            shapes = tuple((name, value.shape) for name, value in child.named_parameters())
            if not shapes:
                continue
            owner = first.setdefault((type(child), shapes), child)
            for mine, theirs in zip(child.parameters(), owner.parameters(), strict=True):
                mine.data = theirs.data


@torch.no_grad()
def draw(model: nn.Module) -> None:
    """Every weight anew: matrices by their inputs, scales near 1, biases and tokens small.

    They are cut from one row of draws whose length is prime, so that no two rows are equal.
    """
    drawn = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    done: set[int] = set()
    for name, value in model.named_parameters():
        if value.data_ptr() in done:  # of another block
            continue
        done.add(value.data_ptr())
        if name.endswith(("logit_scale", "logit_bias")):
            value.fill_(2.0)
            continue
        mean, spread = 0.0, 0.1
        if value.ndim > 1:
            spread = min(value[0].numel() ** -0.5, 0.2)
        elif name.endswith(("weight", "gamma")):
            mean = 1.0
        for part in value.view(-1).split(len(drawn)):
            torch.mul(drawn[: len(part)], spread, out=part).add_(mean)


def timed(run: Any) -> tuple[Any, float]:
    """The result and its seconds of this process, which neighbours do not lengthen."""
    start = time.process_time()
    return run(), time.process_time() - start


def error(got: torch.Tensor, own: torch.Tensor) -> float:
    """The largest difference of two unit rows; NaN where a feature is no number."""
    return float((got - own).detach().abs().max())


def halve(tower: nn.Module) -> None:
    """A tower to bfloat16; what shares its memory goes on sharing it."""
    made: dict[int, torch.Tensor] = {}

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        return made.setdefault(tensor.data_ptr(), tensor.bfloat16())

    tower._apply(cast)


def examine(name: str, most: float = 5.0) -> dict[str, Any]:
    """One architecture, in this process.

    Args:
        most: gigabytes of weights above which like blocks have one memory.
    """
    from pvp_fast.clip.backbone import Backbone
    from pvp_fast.clip.regions import region_support
    from pvp_fast.errors import PvpFastError
    from pvp_fast.modules.prompts import TextPrompts

    with untrained(), undrawn():  # transformers draws by a way of its own
        backbone = Backbone.load(name, "random")
    model: Any = backbone.model
    shared = sum(p.numel() for p in model.parameters()) * 4e-9 > most
    if shared:
        share(model)
    draw(model)
    towers = [p.numel() for p in model.visual.parameters()]
    generator = torch.Generator().manual_seed(0)
    large = sum(towers) > LARGE
    if large:
        halve(model.visual)
    pixels = torch.randn(1 if large else 2, 3, *backbone.image_size, generator=generator)
    pixels = pixels.to(backbone.dtype)
    ids = backbone.tokenize(WORDS)
    row: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "image_parameters": sum(towers),
        "image_size": list(backbone.image_size),
        "context_length": backbone.context_length,
        "picture": backbone.settings.source,
    }
    if shared:
        row["shared_blocks"] = True
    if large:
        row["image_dtype"] = "bfloat16"
    with torch.no_grad():
        own = F.normalize(model.encode_image(pixels).float(), dim=-1)
        images, spent = timed(lambda: backbone.encode_image(pixels))
        row["image_error"], row["image_seconds"] = error(images, own), spent / len(pixels)
        own = model.encode_text(ids, normalize=True)
        texts, spent = timed(lambda: backbone.encode_text(WORDS))
        row["text_error"], row["text_seconds"] = error(texts, own), spent / len(WORDS)
    try:
        prompts = TextPrompts(backbone, ["dog", "teddy bear"], init="a photo of")
        own = model.encode_text(prompts.ids, normalize=True)
        features = prompts(backbone)
        row["prompt_error"] = error(features, own)
        features[:, 0].sum().backward()
        grad: Any = prompts.ctx.grad
        if not bool((grad.abs().sum(dim=-1) > 0).all()):
            row["no_prompts"] = "no gradient reaches the context"
    except PvpFastError as caught:
        row["no_prompts"] = str(caught)
    reason = region_support(model.visual)
    if reason is None:
        try:
            with torch.no_grad():
                regions = backbone.encode_regions(pixels)
            row["regions"] = regions.shape[1]
            if not bool(regions.isfinite().all()):
                reason = "regions are not finite"
        except PvpFastError as caught:
            reason = str(caught)
    if reason is not None:
        row["no_regions"] = reason
    row["peak_gigabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return row


def in_a_process(name: str, most: float) -> dict[str, Any]:
    """``examine`` in a fork, whose memory ends with it and which a lack of it kills alone."""
    forks = multiprocessing.get_context("fork")
    receiver, sender = forks.Pipe(duplex=False)
    child = forks.Process(target=_answer, args=(name, most, sender))
    child.start()
    sender.close()
    try:
        row: dict[str, Any] = receiver.recv()
    except EOFError:
        row = {}
    child.join()
    return row or {"failed": f"the process ended with {child.exitcode}"}


def _answer(name: str, most: float, sender: Any) -> None:
    try:
        sender.send(examine(name, most))
    except Exception as caught:  # the row of one architecture, not the end of the run
        traceback.print_exc()
        sender.send({"failed": f"{type(caught).__name__}: {caught}"})


def main() -> int:
    import open_clip

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument(
        "--gigabytes", type=float, default=5.0, help="of weights; a larger model's are shared"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="*", help="architectures; all by default")
    given = parser.parse_args()
    import timm
    import transformers

    versions = {
        "open_clip": open_clip.__version__, "timm": timm.__version__,
        "transformers": transformers.__version__, "torch": torch.__version__,
    }  # fmt: skip
    rows = json.loads(given.out.read_text())["architectures"] if given.out.is_file() else {}
    without_a_hub()
    logging.getLogger().setLevel(logging.ERROR)
    wanted = given.only or [
        name for name in open_clip.list_models() if "parameters" not in rows.get(name, {})
    ]
    torch.set_num_threads(1)
    for name in wanted:
        rows[name] = in_a_process(name, given.gigabytes)
        print(name, rows[name], flush=True)
        data = {
            "versions": versions,
            "known": len(open_clip.list_models()),
            "architectures": dict(sorted(rows.items())),
        }
        with atomic_write(given.out, "w") as stream:
            stream.write(json.dumps(data, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
