"""What is learned: prompts in pixels and in words, adapters, and the head that scores with them."""

from pvp_fast.modules.adapters import DualAdapter, ResidualAdapter
from pvp_fast.modules.prompts import PseudoVisualPrompts, TextPrompts, prompt_ensemble

__all__ = [
    "DualAdapter",
    "PseudoVisualPrompts",
    "ResidualAdapter",
    "TextPrompts",
    "prompt_ensemble",
]
