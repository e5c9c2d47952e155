"""Frozen layers that take a gradient to their input, and no more than that.

PyTorch's own are built for weights that learn. What it does with weights that do not (2.14, CPU):

- ``nn.MultiheadAttention`` with its batch first multiplies a transposed, not contiguous tensor by
  the weights. Where these want a gradient ``matmul`` folds it into one product; where they do not
  it takes ``bmm`` and a copy of them for every token, which in bfloat16 is half of a ViT's step.
- The gradient of its attention in half precision takes four times that of the same in float32.
- The gradient of a convolution that cuts an image into patches takes twenty times as long as that
  of the matrix product which it is.

Without a gradient both layers do what they did, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SHORT = 256  # tokens up to which the (L, L) weights of a CPU's half-precision attention are kept


def for_inputs(model: nn.Module) -> None:
    """Let a frozen model's attentions and patch convolutions do less for the gradient, in place."""
    for module in model.modules():
        if type(module) is nn.MultiheadAttention and _plain(module):
            module.__class__ = MultiheadAttention
        elif type(module) is nn.Conv2d and _cuts_patches(module):
            module.__class__ = Conv2d


class MultiheadAttention(nn.MultiheadAttention):
    """Self-attention with its batch first; the name is torch's, as a fingerprint reads it."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:  # type: ignore[override]
        """As torch's."""
        mask = options.get("attn_mask")
        if (
            not (torch.is_grad_enabled() and query.requires_grad)
            or not (query is key and key is value and query.ndim == 3)
            or options.get("need_weights", True)
            or options.get("key_padding_mask") is not None
            or (mask is not None and not mask.is_floating_point())
        ):
            return super().forward(query, key, value, **options)
        count, length, width = query.shape
        if mask is not None and mask.ndim == 3:
            mask = mask.view(count, self.num_heads, length, length)
        parts = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        parts = parts.view(count, length, 3, self.num_heads, width // self.num_heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # (N, heads, L, W / heads) each
        attended = _attend(q, k, v, mask).transpose(1, 2).reshape(query.shape)
        return self.out_proj(attended), None


class Conv2d(nn.Conv2d):
    """A convolution of patches that do not overlap, as the product of each with the weights."""

    def forward(self, input: Tensor) -> Tensor:
        """As torch's."""
        if not (torch.is_grad_enabled() and input.requires_grad and input.ndim == 4):
            return super().forward(input)
        count, channels, height, width = input.shape
        tall, wide = self.kernel_size
        rows, columns = height // tall, width // wide  # what is left over is not looked at
        patches = input[:, :, : rows * tall, : columns * wide]
        patches = patches.reshape(count, channels, rows, tall, columns, wide)
        patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(count, rows * columns, -1)
        out = F.linear(patches, self.weight.flatten(1), self.bias)
        return out.transpose(1, 2).unflatten(2, (rows, columns))


def _plain(attention: nn.MultiheadAttention) -> bool:
    """Whether it is what CLIP's towers have: one width, nothing added to keys and values."""
    return (
        attention.batch_first
        and attention.in_proj_weight is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    )


def _cuts_patches(convolution: nn.Conv2d) -> bool:
    return (
        convolution.kernel_size == convolution.stride
        and convolution.kernel_size != (1, 1)
        and convolution.padding in ((0, 0), "valid")
        and convolution.dilation == (1, 1)
        and convolution.groups == 1
    )


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of (N, heads, L, d); the mask is added to the scores."""
    if q.itemsize > 2 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, mask)
    if q.shape[2] > _SHORT:
        mask = None if mask is None else mask.float()
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask).to(v.dtype)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    return scores.float().softmax(-1).to(v.dtype) @ v
