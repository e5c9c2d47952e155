"""Multi-label and contrastive losses on queries x (B, D) and class vectors w (C, D).

Each comes as a function, a ``*_from_scores`` function for who has scores already, and a module.
"""

from pvp_fast.losses.asl import AsymmetricLoss, asl_loss, asl_loss_from_scores, asl_loss_ref
from pvp_fast.losses.bce import BCELoss, bce_loss, bce_loss_from_scores, bce_loss_ref
from pvp_fast.losses.clip import CLIPLoss, clip_loss, clip_loss_from_scores
from pvp_fast.losses.custom import chunked_loss
from pvp_fast.losses.focal import (
    FocalLoss,
    focal_loss,
    focal_loss_from_scores,
    focal_loss_ref,
)
from pvp_fast.losses.hill import HillLoss, hill_loss, hill_loss_from_scores, hill_loss_ref
from pvp_fast.losses.problem import CSRLabels
from pvp_fast.losses.ranking import (
    RankingLoss,
    ranking_loss,
    ranking_loss_from_scores,
    ranking_loss_ref,
)
from pvp_fast.losses.siglip import (
    SigLIPLoss,
    siglip_loss,
    siglip_loss_from_scores,
    siglip_loss_ref,
)

__all__ = [
    "AsymmetricLoss",
    "BCELoss",
    "CLIPLoss",
    "CSRLabels",
    "FocalLoss",
    "HillLoss",
    "RankingLoss",
    "SigLIPLoss",
    "asl_loss",
    "asl_loss_from_scores",
    "asl_loss_ref",
    "bce_loss",
    "bce_loss_from_scores",
    "bce_loss_ref",
    "chunked_loss",
    "clip_loss",
    "clip_loss_from_scores",
    "focal_loss",
    "focal_loss_from_scores",
    "focal_loss_ref",
    "hill_loss",
    "hill_loss_from_scores",
    "hill_loss_ref",
    "ranking_loss",
    "ranking_loss_from_scores",
    "ranking_loss_ref",
    "siglip_loss",
    "siglip_loss_from_scores",
    "siglip_loss_ref",
]
