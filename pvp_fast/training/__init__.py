"""The three stages of the method, the loop they share, and the run that strings them together."""

from pvp_fast.training.adapter import AdapterConfig
from pvp_fast.training.gap import GapConfig
from pvp_fast.training.increment import add_category
from pvp_fast.training.local import LocalPromptConfig
from pvp_fast.training.loop import LoopConfig
from pvp_fast.training.pipeline import TrainConfig, train
from pvp_fast.training.text import TextPromptConfig
from pvp_fast.training.visual import VisualPromptConfig

__all__ = [
    "AdapterConfig",
    "GapConfig",
    "LocalPromptConfig",
    "LoopConfig",
    "TextPromptConfig",
    "TrainConfig",
    "VisualPromptConfig",
    "add_category",
    "train",
]
