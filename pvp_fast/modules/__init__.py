"""What is learned: prompts in pixels and in words, and adapters."""

from pvp_fast.modules.adapters import DualAdapter
from pvp_fast.modules.prompts import PseudoVisualPrompts, TextPrompts, prompt_ensemble

__all__ = ["DualAdapter", "PseudoVisualPrompts", "TextPrompts", "prompt_ensemble"]
