"""The dual adapter of stage 3 (METHOD section 5): CLIP's knowledge and the new, mixed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from pvp_fast.errors import InputError

# alpha and beta live as logits; exactly 0 or 1 would have no gradient and no finite logit.
_EDGE = 1e-3
# Everything of the dual adapter that has one row a category.
_BY_CATEGORY = ("original", "text", "visual", "alpha_logit", "beta_logit")


class ResidualAdapter(nn.Module):
    """A(x) = x + r · W2 relu(W1 x), the identity at the start (CLIP-Adapter, 2110.04544)."""

    residual: torch.Tensor

    def __init__(self, width: int, bottleneck: int, residual: float, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        down = torch.randn(bottleneck, width, generator=generator) * (2.0 / width) ** 0.5
        self.down = nn.Parameter(down)  # W1 (bottleneck, D)
        self.up = nn.Parameter(torch.zeros(width, bottleneck))  # W2 (D, bottleneck)
        self.register_buffer("residual", torch.tensor(float(residual)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, D) -> (N, D), not normalised."""
        return x + self.residual * F.linear(F.relu(F.linear(x, self.down)), self.up)

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        """(N, D) unit rows -> (N, 2D): x and its adapted, normalised self side by side."""
        return torch.cat([x, F.normalize(self(x), dim=-1)], dim=1)


class DualAdapter(nn.Module):
    """Scores from two class banks and two residual adapters.

        s_c = (1-α) ⟨x, ê_c⟩ + α ((1-β) ⟨a, g_c⟩ + β ⟨a, v_c⟩)
        ê_c = normalise(A_o(normalise(e_c - m))),  a = normalise(A_q(x))

    The sum is linear in [x, a], so ``forward(x) == queries(x) @ class_vectors().T``: tagging is
    one inner product of width 2D, and any top-k index works on it.

    Buffers (in the state dict): ``original`` e (C, D), ``text`` g (C, D), ``visual`` (C, P, D);
    v_c is the normalised mean of the P prompts of c. ``centre`` m (D,) is what the names have in
    common and no category owns (C³, arXiv 2401.08567), or zero.
    """

    original: torch.Tensor
    text: torch.Tensor
    visual: torch.Tensor
    centre: torch.Tensor

    def __init__(
        self,
        original: torch.Tensor,
        text: torch.Tensor,
        visual: torch.Tensor,
        *,
        centre: torch.Tensor | None = None,
        bottleneck: int | None = None,
        residual: float = 0.2,
        alpha: float | torch.Tensor = 0.5,
        beta: float | torch.Tensor = 0.5,
        seed: int = 0,
    ) -> None:
        """Start at a plain mixture of the banks.

        Args:
            original, text: (C, D) unit rows. visual: (C, P, D) unit rows.
            centre: (D,), taken off ``original``; zero by default.
            bottleneck: inner width of both adapters; a quarter of D by default.
            residual: r.
            alpha, beta: starting mixture in [0, 1], a number or (C,); kept 0.001 off the edges.

        Raises:
            InputError: shapes that do not fit, rows that are not unit, mixtures outside [0, 1].
        """
        super().__init__()
        _check_banks(original, text, visual)
        count, width = original.shape
        inner = max(1, width // 4) if bottleneck is None else bottleneck
        if inner < 1:
            raise InputError(f"bottleneck={bottleneck}: at least 1")
        # Copies: the caller's tensors stay the caller's.
        self.register_buffer("original", original.detach().clone())
        self.register_buffer("text", text.detach().clone())
        self.register_buffer("visual", visual.detach().clone())
        middle = original.new_zeros(width) if centre is None else centre.detach().to(original)
        if tuple(middle.shape) != (width,):
            raise InputError(f"centre has shape {tuple(middle.shape)}; give ({width},)")
        self.register_buffer("centre", middle.clone())
        place = original  # device and dtype follow this bank
        self.query_adapter = ResidualAdapter(width, inner, residual, seed).to(place)
        self.class_adapter = ResidualAdapter(width, inner, residual, seed + 1).to(place)
        self.alpha_logit = nn.Parameter(_logits("alpha", alpha, count).to(place))
        self.beta_logit = nn.Parameter(_logits("beta", beta, count).to(place))

    @classmethod
    def from_state(
        cls,
        original: torch.Tensor,
        text: torch.Tensor,
        visual: torch.Tensor,
        state: Mapping[str, torch.Tensor],
    ) -> DualAdapter:
        """Rebuild from the banks and a state dict, with or without the banks in it."""
        if "query_adapter.down" not in state:
            raise InputError(f"state has no 'query_adapter.down', only {sorted(state)}")
        adapter = cls(original, text, visual, bottleneck=state["query_adapter.down"].shape[0])
        banks = {"original": original, "text": text, "visual": visual}
        try:  # a state from before there was a centre has none
            adapter.load_state_dict({**banks, "centre": adapter.centre, **state})
        except RuntimeError as error:
            raise InputError(f"state does not fit these banks: {error}") from error
        return adapter

    @property
    def alpha(self) -> torch.Tensor:
        """(C,) weight of the new banks in the mixture with the original one."""
        return self.alpha_logit.sigmoid()

    @property
    def beta(self) -> torch.Tensor:
        """(C,) weight of the visual bank in the mixture of the new ones."""
        return self.beta_logit.sigmoid()

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        """(B, D) unit rows -> (B, 2D): x and its adapted, normalised self side by side."""
        width = self.original.shape[1]
        if x.ndim != 2 or x.shape[1] != width:
            raise InputError(f"x has shape {tuple(x.shape)}; give (B, {width})")
        return self.query_adapter.queries(x)

    def class_vectors(self, index: torch.Tensor | None = None) -> torch.Tensor:
        """(C, 2D), or some rows: the banks under the mixture, in the layout of ``queries``."""
        rows = (getattr(self, name) for name in _BY_CATEGORY)
        return self._mixed(*(rows if index is None else (row[index] for row in rows)))

    @torch.no_grad()
    def stable_class_vectors(self, tile: int = 128) -> torch.Tensor:
        """``class_vectors`` in whose rows no bit depends on how many categories there are.

        Products of another shape, and the ends of a tensor, may round differently; so all is
        computed in padded tiles of one shape. No gradient.
        """
        count = len(self.original)
        parts = []
        for start in range(0, count, tile):
            rows = [getattr(self, name).detach()[start : start + tile] for name in _BY_CATEGORY]
            fill = tile - len(rows[0])
            padded = [torch.cat([r, r.new_zeros(fill, *r.shape[1:])]) for r in rows]
            parts.append(self._mixed(*padded))
        return torch.cat(parts)[:count]

    def _mixed(
        self,
        original: torch.Tensor,
        text: torch.Tensor,
        visual: torch.Tensor,
        alpha_logit: torch.Tensor,
        beta_logit: torch.Tensor,
    ) -> torch.Tensor:
        alpha, beta = alpha_logit.sigmoid()[:, None], beta_logit.sigmoid()[:, None]
        if bool(self.centre.any()):
            original = F.normalize(original - self.centre, dim=-1)
        old = F.normalize(self.class_adapter(original), dim=-1)
        new = (1 - beta) * text + beta * F.normalize(visual.mean(dim=1), dim=-1)
        return torch.cat([(1 - alpha) * old, alpha * new], dim=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, D) unit rows -> (B, C) mixed cosines, without the logit scale."""
        return self.queries(x) @ self.class_vectors().T

    def extended(
        self,
        original: torch.Tensor,
        text: torch.Tensor,
        visual: torch.Tensor,
        *,
        alpha: float | torch.Tensor = 0.5,
        beta: float | torch.Tensor = 0.5,
    ) -> DualAdapter:
        """A new adapter with more categories behind the present ones, which keep every bit.

        Args:
            original, text (n, D) and visual (n, P, D): the banks of the new categories only.
        """
        fresh = type(self)(
            original, text, visual, bottleneck=len(self.query_adapter.down), alpha=alpha, beta=beta
        )
        if visual.shape[1] != self.visual.shape[1]:
            raise InputError(
                f"visual has {visual.shape[1]} prompts a category; "
                f"the present categories have {self.visual.shape[1]}"
            )
        state = {name: value.detach().clone() for name, value in self.state_dict().items()}
        for name in _BY_CATEGORY:
            addition = getattr(fresh, name).detach().to(state[name])
            state[name] = torch.cat([state[name], addition])
        return self.from_state(state["original"], state["text"], state["visual"], state)

    def take(self, rows: torch.Tensor) -> DualAdapter:
        """A new adapter over some of the categories, in that order."""
        state = {name: value.detach().clone() for name, value in self.state_dict().items()}
        for name in _BY_CATEGORY:
            state[name] = state[name][rows]
        return self.from_state(state["original"], state["text"], state["visual"], state)


def _logits(name: str, value: float | torch.Tensor, count: int) -> torch.Tensor:
    weight = torch.as_tensor(value, dtype=torch.float64).detach()
    if weight.ndim and tuple(weight.shape) != (count,):
        raise InputError(f"{name} has shape {tuple(weight.shape)}; give a number or ({count},)")
    if not bool(((weight >= 0) & (weight <= 1)).all()):
        raise InputError(f"{name}={value}: the weight of a mixture lies between 0 and 1")
    return torch.logit(weight.clamp(_EDGE, 1 - _EDGE)).expand(count).clone()


def _check_banks(original: torch.Tensor, text: torch.Tensor, visual: torch.Tensor) -> None:
    if original.ndim != 2 or not original.numel():
        raise InputError(f"original has shape {tuple(original.shape)}; give (C, D)")
    count, width = original.shape
    if tuple(text.shape) != (count, width):
        raise InputError(f"text has shape {tuple(text.shape)}; give ({count}, {width})")
    if visual.ndim != 3 or not visual.numel() or visual.shape[::2] != original.shape:
        raise InputError(f"visual has shape {tuple(visual.shape)}; give ({count}, P, {width})")
    for name, bank in (("original", original), ("text", text), ("visual", visual)):
        off = (bank.detach().float().norm(dim=-1) - 1).abs().max()
        if not bool(off < 0.01):
            raise InputError(f"{name} has rows whose length is not 1; normalise them first")
