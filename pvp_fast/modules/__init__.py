"""What is learned: prompts in pixels and in words, adapters; and the head that scores with them."""

from pvp_fast.modules.adapters import DualAdapter
from pvp_fast.modules.prompts import PseudoVisualPrompts, TextPrompts, prompt_ensemble
from pvp_fast.modules.scoring import Head, LocalBranch

__all__ = [
    "DualAdapter",
    "Head",
    "LocalBranch",
    "PseudoVisualPrompts",
    "TextPrompts",
    "prompt_ensemble",
]
