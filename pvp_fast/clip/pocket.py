"""The pocket model: its architecture, and weights small enough to ship.

A CLIP in open_clip's own classes: a ModifiedResNet with attention pooling on 64 px images (3.3 M
parameters; on a CPU it learns several times more per second at this size than a ViT of the same
weight) and a two-layer text transformer. The tokenizer is open_clip's; of its 49 408 embedding
rows only those of tokens seen in training are stored, the others share one trained neutral row.
Large matrices are stored as int8 with one float16 scale a row, the rest as float16.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from pvp_fast.clip.undrawn import undrawn
from pvp_fast.errors import BackboneError
from pvp_fast.files import atomic_write

if TYPE_CHECKING:
    import open_clip

__all__ = ["load_model"]

FOLDER = Path(__file__).parent / "weights"
IMAGE_SIZE = 64
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)
CONTEXT_LENGTH = 32
FULL_VOCABULARY = 49408
# Below this many numbers, rounding to int8 saves nothing worth its error.
QUANTIZE_FROM = 4096

EMBED_DIM = 256
VISION: dict[str, Any] = {
    "image_size": IMAGE_SIZE,
    "layers": [1, 2, 2, 1],
    "width": 24,
    "head_width": 64,
}
TEXT: dict[str, Any] = {"context_length": CONTEXT_LENGTH, "width": 128, "heads": 4, "layers": 2}


def build_model(vocab_size: int = FULL_VOCABULARY) -> open_clip.CLIP:
    """The architecture with random weights; ``vocab_size`` rows of token embeddings."""
    import open_clip

    return open_clip.CLIP(
        embed_dim=EMBED_DIM, vision_cfg=dict(VISION), text_cfg={**TEXT, "vocab_size": vocab_size}
    )


def tokenizer() -> Any:
    """open_clip's tokenizer at the pocket model's context length."""
    import open_clip

    # A tenth of a second goes into its table; the one that open_clip has made at its import has it.
    made = getattr(open_clip.tokenizer, "_tokenizer", None)
    if not isinstance(made, open_clip.SimpleTokenizer):
        return open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)
    own = copy.copy(made)
    own.context_length = CONTEXT_LENGTH
    return own


class CompactVocabulary:
    """The map between open_clip's token ids and the rows the pocket model trains.

    Row 0 is the neutral row of every token not listed; rows 1.. follow ``token_ids`` in their
    order, so the end-of-text token stays the largest id, which is how open_clip finds it.

    Args:
        token_ids: (V,) int64, ascending, ending with the end-of-text token 49407.
    """

    def __init__(self, token_ids: Tensor) -> None:
        self.token_ids = token_ids
        self.size = len(token_ids) + 1
        self._row = torch.zeros(FULL_VOCABULARY, dtype=torch.long)
        self._row[token_ids] = torch.arange(1, self.size)

    def compact(self, ids: Tensor) -> Tensor:
        """open_clip's ids (…,) to rows (…,)."""
        return self._row[ids]

    def expand(self, rows: Tensor) -> Tensor:
        """Trained rows (V + 1, W) to open_clip's full table (49408, W)."""
        return rows[self._row]


def save_weights(
    state: dict[str, Tensor], vocabulary: CompactVocabulary, folder: Path, info: dict[str, Any]
) -> None:
    """Write ``pocket.safetensors`` (int8 and float16) and ``config.json`` into ``folder``.

    Args:
        state: the state dict of a model built with ``vocab_size=vocabulary.size``.
        info: what else the config records (seed, steps, metrics).
    """
    stored: dict[str, Tensor] = {"token_ids": vocabulary.token_ids.to(torch.int32)}
    for name, value in state.items():
        if value.ndim >= 2 and value.numel() >= QUANTIZE_FROM:
            rows = value.float().flatten(1)
            # The float16 scale itself is what divides, so that dequantising undoes it exactly.
            scale = (rows.abs().amax(1) / 127).clamp(min=6e-8).half()
            stored[f"{name}.int8"] = (
                (rows / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
            ).view(value.shape)
            stored[f"{name}.scale"] = scale
        elif value.is_floating_point():
            stored[name] = value.half()
        else:
            stored[name] = value
    with atomic_write(folder / "pocket.safetensors") as stream:
        stream.write(save({name: value.contiguous() for name, value in stored.items()}))
    config = {
        "embed_dim": EMBED_DIM,
        "vision": VISION,
        "text": TEXT,
        "mean": MEAN,
        "std": STD,
        "image_size": IMAGE_SIZE,
        "interpolation": "bicubic",
        **info,
    }
    with atomic_write(folder / "config.json", "w") as stream:
        json.dump(config, stream, indent=2)
        stream.write("\n")


def load_model(folder: Path = FOLDER) -> tuple[open_clip.CLIP, dict[str, Any]]:
    """The pocket model with open_clip's full token table, float32, and its config.

    Raises:
        BackboneError: the weights are missing or damaged.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        with safe_open(str(folder / "pocket.safetensors"), framework="pt") as stored:
            names = set(stored.keys())
            state = {}
            for name in names:
                if name.endswith(".int8"):
                    plain = name.removesuffix(".int8")
                    value = stored.get_tensor(name).float()
                    scale = stored.get_tensor(f"{plain}.scale").float()
                    state[plain] = value * scale.view(-1, *[1] * (value.ndim - 1))
                elif not name.endswith(".scale") and name != "token_ids":
                    value = stored.get_tensor(name)
                    state[name] = value.float() if value.is_floating_point() else value
            token_ids = stored.get_tensor("token_ids").long()
    except Exception as error:  # safetensors raises its own type for damaged files
        raise BackboneError(f"the pocket model in {folder} cannot be read: {error}") from error
    table = CompactVocabulary(token_ids).expand(state["token_embedding.weight"])
    state["token_embedding.weight"] = table
    with undrawn():
        model = build_model()
    model.load_state_dict(state)
    return model.eval(), config
