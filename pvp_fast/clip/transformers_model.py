"""CLIP checkpoints in transformers' layout: a folder of safetensors, configuration and tokenizer.

The library's own classes read the folder and compute the features; this gives them the face of an
open_clip model (``encode_image``, ``encode_text``, ``visual``) and the places where learned words
enter and regions leave. Three kinds of text model:

- "clip", "metaclip_2": causal, pooled at the end marker.
- "siglip", "siglip2": no mask at all, pooled at the last place, which is padding in most texts.
- "altclip", "chinese_clip": a masked encoder (XLM-R, BERT) pooled at its first token.

SigLIP 2's variable sizes ("NaFlex") are read at one: the square of all its patches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pvp_fast.clip.text_tower import end_of_run, real_until

CAUSAL = ("clip", "metaclip_2")
UNMASKED = ("siglip", "siglip2")
ENCODERS = ("altclip", "chinese_clip")
KINDS = (*CAUSAL, *UNMASKED, *ENCODERS)


class TransformersCLIP(nn.Module):
    """A transformers CLIP with open_clip's face."""

    def __init__(self, inner: Any, pad_id: int, end_id: int, context_length: int) -> None:
        super().__init__()
        self.inner = inner
        self.context_length = context_length
        self._pad_id, self._end_id = pad_id, end_id

    @property
    def visual(self) -> TransformersVision:
        return TransformersVision(self.inner)

    @property
    def logit_scale(self) -> torch.Tensor:
        scale: torch.Tensor = self.inner.logit_scale
        return scale

    @property
    def logit_bias(self) -> torch.Tensor | None:
        return getattr(self.inner, "logit_bias", None)

    def text_view(self) -> TransformersText:
        """The text model as :class:`~pvp_fast.clip.text_tower.Tower`."""
        return TransformersText(self.inner, self._pad_id, self._end_id)

    def encode_text(self, ids: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        features = self.text_view().own(ids)
        return nn.functional.normalize(features, dim=-1) if normalize else features

    def encode_image(self, pixels: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        features = self.visual.features(pixels)
        return nn.functional.normalize(features, dim=-1) if normalize else features

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        if enable:
            self.inner.gradient_checkpointing_enable()
        else:
            self.inner.gradient_checkpointing_disable()


class TransformersText:
    """From ids or embeddings to text features. Not a module: the model owns the weights."""

    def __init__(self, inner: Any, pad_id: int, end_id: int) -> None:
        self._inner, self._text = inner, inner.text_model
        self._kind: str = inner.config.model_type
        self._pad_id, self._end_id = pad_id, end_id
        self.pool = self._kind

    @property
    def width(self) -> int:
        return int(self._table.weight.shape[1])

    @property
    def _table(self) -> Any:
        return self._text.get_input_embeddings()

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self._table(ids)
        return embedded

    def end(self, ids: torch.Tensor) -> torch.Tensor:
        if self._kind in CAUSAL:
            if self._kind == "clip" and self._text.config.eos_token_id == 2:
                return ids.argmax(dim=-1)  # first configurations name no true end marker
            return (ids == self._text.config.eos_token_id).int().argmax(dim=-1)
        if self._kind in UNMASKED:  # padding that is the end marker: the first ends the text
            return end_of_run(ids, -1 if self._pad_id == self._end_id else self._pad_id)
        real = (ids != self._pad_id).int()
        return real.any(dim=1) * (ids.shape[1] - 1 - real.flip(1).argmax(dim=1))

    def own(self, ids: torch.Tensor) -> torch.Tensor:
        """What the library computes of token numbers."""
        mask = {"attention_mask": (ids != self._pad_id).long()} if self._kind in ENCODERS else {}
        return _features(self._inner.get_text_features(input_ids=ids, **mask))

    def encode_ids(self, ids: torch.Tensor) -> torch.Tensor:
        return self.own(ids[:, : self._needed(ids.shape[1], self.end(ids))])

    def encode(
        self, embedded: torch.Tensor, end: torch.Tensor, ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        length = self._needed(embedded.shape[1], end)
        real = real_until(end, embedded.shape[1]) if ids is None else ids != self._pad_id
        hidden = self._hidden(embedded[:, :length], real[:, :length])
        if self._kind in CAUSAL:
            place = end
        else:
            place = torch.full_like(end, length - 1 if self._kind in UNMASKED else 0)
        return self._project(hidden[torch.arange(len(hidden), device=hidden.device), place])

    def encode_tokens(self, embedded: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self._project(self._hidden(embedded, ids != self._pad_id))

    def _needed(self, length: int, end: torch.Tensor) -> int:
        """Places that reach the feature: padding does in SigLIP alone."""
        if self._kind in UNMASKED or not end.numel():
            return length
        return min(int(end.max()) + 1, length)

    def _hidden(self, embedded: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        if self._kind in ENCODERS:
            out = self._text(inputs_embeds=embedded, attention_mask=real.long())
            hidden: torch.Tensor = out.last_hidden_state
            return hidden
        x = self._text.embeddings(inputs_embeds=embedded)
        mask = None
        if self._kind in CAUSAL:
            length = x.shape[1]
            above = torch.full((length, length), float("-inf"), device=x.device, dtype=x.dtype)
            mask = above.triu(1)[None, None]
        x = self._text.encoder(inputs_embeds=x, attention_mask=mask).last_hidden_state
        hidden = self._text.final_layer_norm(x)
        return hidden

    def _project(self, x: torch.Tensor) -> torch.Tensor:
        last = self._text.head if self._kind in UNMASKED else self._inner.text_projection
        features: torch.Tensor = last(x)
        return features


class TransformersVision:
    """From pixels to image and region features. Not a module: the model owns the weights."""

    def __init__(self, inner: Any) -> None:
        self._inner, self._vision = inner, inner.vision_model
        self._kind: str = inner.config.model_type

    def parameters(self) -> Any:
        return self._vision.parameters()

    @property
    def image_size(self) -> int:
        config = self._vision.config
        if self._kind == "siglip2":
            return int(config.patch_size) * int(config.num_patches**0.5)
        return int(config.image_size)

    @property
    def output_dim(self) -> int:
        if self._kind in UNMASKED:
            return int(self._vision.config.hidden_size)
        return int(self._inner.visual_projection.weight.shape[0])

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return _features(self._inner.get_image_features(**self._inputs(pixels)))

    def regions(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, L, D): each place alone through the last mixing, as in ``timm_regions``."""
        vision = self._vision
        if self._kind in UNMASKED:
            x = vision(**self._inputs(pixels)).last_hidden_state
            features = vision.head(x.flatten(0, 1)[:, None])
            return features.view(*x.shape[:2], -1)
        x = vision.pre_layrnorm(vision.embeddings(pixels))  # the library's spelling
        *before, last = vision.encoder.layers
        for layer in before:
            x = layer(x, None)
        x = x[:, 1:]
        alone = last(x.flatten(0, 1)[:, None], None)[:, 0]
        features = self._inner.visual_projection(vision.post_layernorm(alone))
        return features.view(*x.shape[:2], -1)

    def _inputs(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        if self._kind != "siglip2":
            return {"pixel_values": pixels}
        patch = int(self._vision.config.patch_size)
        batch, channels, height, width = pixels.shape
        grid = (height // patch, width // patch)
        x = pixels.view(batch, channels, grid[0], patch, grid[1], patch)
        x = x.permute(0, 2, 4, 3, 5, 1).reshape(batch, grid[0] * grid[1], -1)
        return {
            "pixel_values": x,
            "pixel_attention_mask": torch.ones(x.shape[:2], dtype=torch.int64, device=x.device),
            "spatial_shapes": torch.tensor([grid] * batch, device=x.device),
        }


def _features(out: Any) -> torch.Tensor:
    features: torch.Tensor = out.pooler_output
    return features
