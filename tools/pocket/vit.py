"""A pocket-size vision transformer of timm's, taught by the pocket model.

``python tools/train_pocket_vit.py --help``. It is for what region features and the local branch
do on a tower of timm's, which shows on one that was trained. This is timm's ``VisionTransformer``
over a convolution's map (its ``HybridEmbed``), pooled by attention as SigLIP's are. It begins where
the pocket model is, since a training from nothing takes hours of a CPU: the convolutions are the
pocket model's own, which stay as they are, without the last halving of the map (4 x 4 places and
not 2 x 2); keys, values and output projection of the pool are its too, and the query is what its
query is on average; the blocks before the pool begin as the identity. Blocks, pool and projection
then learn to give the pocket model's image features: squared distance of unit rows, each dimension
in units of its own spread. The mean of the four regions of a quarter learns the same of the pocket
model's one region there. The text tower is the pocket model's, so the tower is a CLIP at once. A
part of each batch is new; the rest was seen before, which saves drawing it and the convolutions.
Not part of the installed package.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from safetensors.torch import load_file, save
from timm.layers import HybridEmbed
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pocket.train import PocketConfig, PocketTrainer
from pvp_fast.clip.backbone import Backbone
from pvp_fast.clip.pocket import EMBED_DIM, IMAGE_SIZE, MEAN, STD, load_model, tokenizer
from pvp_fast.clip.preprocess import Preprocess
from pvp_fast.clip.regions import region_features
from pvp_fast.files import atomic_write
from pvp_fast.metrics import mean_average_precision
from pvp_fast.modules.prompts import prompt_ensemble

GRID = 4
WIDTH = 768
HEADS = 12


@dataclass(frozen=True)
class VitConfig:
    """What a run is made of; ``minutes`` are of the CPU, whatever else the machine does."""

    minutes: float = 10.0
    batch_size: int = 64
    new: int = 16
    kept: int = 10000
    lr: float = 3e-4
    weight_decay: float = 0.05
    warmup_steps: int = 20
    region_weight: float = 0.5
    ema: float = 0.99
    max_steps: int | None = None
    seed: int = 0


class Convolutions(nn.Module):
    """The pocket model's image tower up to its pool: (B, 3, 64, 64) -> (B, 768, 4, 4)."""

    def __init__(self) -> None:
        super().__init__()
        visual: Any = load_model()[0].visual
        stem = [f"{part}{number}" for number in (1, 2, 3) for part in ("conv", "bn", "act")]
        for name in (*stem, "avgpool", "layer1", "layer2", "layer3", "layer4"):
            setattr(self, name, getattr(visual, name))
        block: Any = self.layer4
        last = block[0]
        last.avgpool = last.downsample[0] = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            x = part(x)
        return x

    def train(self, mode: bool = True) -> Convolutions:
        return super().train(False)  # their statistics stay too


@register_model
def pocket_vit(pretrained: bool = False, **_: Any) -> Any:
    """Under this name timm, and so open_clip, makes the trunk; there is one shape of it."""
    trunk: Any = VisionTransformer(
        img_size=IMAGE_SIZE,
        patch_size=1,
        embed_dim=WIDTH,
        depth=2,
        num_heads=HEADS,
        mlp_ratio=1,
        class_token=False,
        global_pool="map",
        final_norm=False,
        embed_layer=functools.partial(HybridEmbed, backbone=Convolutions(), proj=False),
    )
    trunk.default_cfg = {}
    return trunk


def build() -> Any:
    """The pocket model with the vision transformer in place of its image tower."""
    model: Any = load_model()[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        visual: Any = TimmModel("pocket_vit", EMBED_DIM, IMAGE_SIZE, pool="map", proj="linear")
    visual.trunk.patch_embed.backbone.requires_grad_(False)
    begin(visual, model.visual.attnpool)
    model.visual = visual.to(memory_format=torch.channels_last)
    return model


@torch.no_grad()
def begin(visual: Any, pool: Any) -> None:
    """Start where ``pool`` (open_clip's ``AttentionPool2d``) is, with one query for all images."""
    trunk = visual.trunk
    trunk.pos_embed.zero_()
    own = trunk.attn_pool
    for last in (
        own.mlp.fc2,
        *(b.attn.proj for b in trunk.blocks),
        *(b.mlp.fc2 for b in trunk.blocks),
    ):
        last.weight.zero_()
        last.bias.zero_()
    places = pool.positional_embedding[1:].mean(0)  # each place's own part of keys and values
    own.kv.weight.copy_(torch.cat([pool.k_proj.weight, pool.v_proj.weight]))
    own.kv.bias.copy_(torch.cat([pool.k_proj(places), pool.v_proj(places)]))
    own.q.weight.copy_(pool.q_proj.weight)
    own.q.bias.copy_(pool.q_proj.bias)
    own.latent.copy_(pool.positional_embedding[0])  # a mean map is added, see VitTrainer
    own.proj.weight.copy_(torch.eye(WIDTH))
    own.proj.bias.copy_(torch.linalg.pinv(pool.c_proj.weight) @ pool.c_proj.bias)
    visual.head.proj.weight.copy_(pool.c_proj.weight)


def load(path: Path) -> Backbone:
    """The model whose image tower :meth:`VitTrainer.export` wrote."""
    model = build()
    model.visual.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return wrapped(model)


def wrapped(model: Any) -> Backbone:
    preprocess = Preprocess(IMAGE_SIZE, MEAN, STD)
    return Backbone(model, tokenizer(), preprocess, name="pocket-vit", pretrained="taught")


class VitTrainer:
    """One training run.

    Args:
        pictograms: folder of style JSON files; the styles that the pocket model never saw are
            left out here too.
        config: hyper-parameters.
    """

    def __init__(self, pictograms: Path, config: VitConfig) -> None:
        self.config = config
        with tempfile.TemporaryDirectory() as folder:  # of its scenes alone
            self.source = PocketTrainer(pictograms, [], Path(folder), PocketConfig())
        self.generator = torch.Generator().manual_seed(config.seed)
        self.teacher = Backbone.load("pocket")
        self.teacher.model.visual.to(memory_format=torch.channels_last)
        self.names = prompt_ensemble(self.teacher, self.source.vocabulary.names)
        self.model = build()
        self.visual = self.model.visual.train()
        # The convolutions are run once a batch, for both models.
        embed = self.visual.trunk.patch_embed
        self.convolutions = embed.backbone
        self.average = copy.deepcopy(self.visual).requires_grad_(False).eval()
        embed.backbone = nn.Identity()
        learned = [p for p in self.visual.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in learned if p.ndim > 1], "weight_decay": config.weight_decay},
                {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
            ],
            betas=(0.9, 0.98),
        )
        self.step, self.seconds = 0, 0.0
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self.draw(512)
        maps, whole, quarters = (torch.stack(part) for part in zip(*self.seen, strict=True))
        with torch.no_grad():  # the pocket model's query is the mean of its map
            for visual in (self.visual, self.average):
                visual.trunk.attn_pool.latent += maps.float().mean((0, 2, 3))
        self.spread = whole.std(0), quarters.flatten(0, 1).std(0)

    def scenes(self, count: int) -> Tensor:
        """New scenes (N, 3, 64, 64) of the styles seen."""
        sets = self.source.pairs.draw(count, 0.0)[1]
        renderer = self.source.renderer
        pixels = renderer.render(sets, self.generator)
        mean, std = torch.tensor(MEAN), torch.tensor(STD)
        scaled = (pixels - mean[:, None, None]) / std[:, None, None]
        return scaled.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def taught(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The pocket model's unit rows of images (B, D) and of their quarters (B, 4, D)."""
        quarters = region_features(self.teacher.model.visual, pixels)
        return self.teacher.encode_image(pixels), F.normalize(quarters.float(), dim=-1)

    @torch.no_grad()
    def maps(self, pixels: Tensor) -> Tensor:
        """(B, 768, 4, 4), which stays as it is."""
        maps: Tensor = self.convolutions(pixels)
        return maps

    def draw(self, count: int) -> None:
        """Put new scenes to the ones seen: map, image features and those of the quarters."""
        pixels = self.scenes(count)
        with torch.autocast("cpu", torch.bfloat16):
            maps, (whole, quarters) = self.maps(pixels), self.taught(pixels)
        self.seen.extend(zip(maps, whole.float(), quarters, strict=True))
        del self.seen[: -self.config.kept]

    def loss(self) -> Tensor:
        """Of one batch, its last scenes new."""
        old, new = self.config.batch_size - self.config.new, self.config.new
        rows = torch.randint(len(self.seen), (old,), generator=self.generator).tolist()
        chosen = [self.seen[row] for row in rows]
        self.draw(new)
        batch = zip(*chosen, *self.seen[-new:], strict=True)
        maps, whole, quarters = (torch.stack(part) for part in batch)
        trunk, head = self.visual.trunk, self.visual.head
        with torch.autocast("cpu", torch.bfloat16):
            x = trunk.forward_features(maps)  # (B, 16, W)
            z = head(trunk.forward_head(x))
            places = head(trunk.forward_head(x.flatten(0, 1)[:, None]))
        z, places = (F.normalize(v.float(), dim=-1) for v in (z, places))
        half = GRID // 2
        grid = places.view(len(z), 2, half, 2, half, -1).mean((2, 4)).flatten(1, 2)
        total = ((z - whole) / self.spread[0]).square().mean()
        near = ((F.normalize(grid, dim=-1) - quarters) / self.spread[1]).square().mean()
        return total + self.config.region_weight * near

    def advance(self) -> float:
        """One optimiser step; returns its loss."""
        config, start = self.config, time.process_time()
        rate = min(1.0, (self.step + 1) / config.warmup_steps)
        rate *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.progress()))
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * rate
        loss = self.loss()
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()} at step {self.step}")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        keep = min(config.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            mine = dict(self.average.named_parameters())
            for name, now in self.visual.named_parameters():
                mine[name].lerp_(now, 1 - keep)
        self.step += 1
        self.seconds += time.process_time() - start
        return loss.item()

    def progress(self) -> float:
        """How far through the run, 0 to 1: by steps when they are given, else by time."""
        if self.config.max_steps is not None:
            return min(1.0, self.step / self.config.max_steps)
        return min(1.0, self.seconds / 60 / self.config.minutes)

    @torch.no_grad()
    def evaluate(self) -> dict[str, dict[str, float]]:
        """Zero-shot mAP in percent of the averaged weights, of whole images and of best regions."""
        result = {}
        for style, (pixels, labels) in self.source.tests.items():
            whole, best = [], []
            for part in pixels.split(100):
                whole.append(F.normalize(self.average(part), dim=-1) @ self.names.T)
                places = F.normalize(region_features(self.average, part), dim=-1)
                best.append((places @ self.names.T).amax(1))
            result[style] = {
                name: 100 * mean_average_precision(torch.cat(scores), labels)
                for name, scores in (("whole", whole), ("best region", best))
            }
        return result

    def export(self, folder: Path) -> None:
        """Write the averaged weights of the image tower and what they were made of."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: v.contiguous() for name, v in self.average.state_dict().items()}
        with atomic_write(folder / "vit.safetensors") as stream:
            stream.write(save(tensors))
        record = {
            **asdict(self.config),
            "steps": self.step,
            "cpu_seconds": self.seconds,
            "zero_shot_map": self.evaluate(),
        }
        with atomic_write(folder / "config.json", "w") as stream:
            stream.write(json.dumps(record, indent=2) + "\n")

    def run(self, folder: Path, every: int = 50) -> None:
        """Train to the end of the budget; the weights so far lie in ``folder`` all along."""
        total = 0.0
        while self.progress() < 1:
            total += self.advance()
            if self.step % every == 0:
                self.export(folder)
                print(
                    f"step {self.step}, {self.seconds / 60:.1f} min: loss {total / every:.3f}",
                    json.loads((folder / "config.json").read_text())["zero_shot_map"],
                    flush=True,
                )
                total = 0.0
        self.export(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a pocket-size ViT on the pocket model.")
    parser.add_argument("--pictograms", type=Path, required=True, help="folder of style JSON files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--minutes", type=float, default=35.0, help="of the CPU")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    config = VitConfig(minutes=options.minutes, seed=options.seed)
    VitTrainer(options.pictograms, config).run(options.out)


if __name__ == "__main__":
    main()
