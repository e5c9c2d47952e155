"""Accuracy on labelled images: data sets, and the ladder from zero-shot to the full method."""

from pvp_fast.evaluation.adapt import Adaptation, adapt
from pvp_fast.evaluation.datasets import (
    EvalSet,
    read_coco,
    read_dataset,
    read_folder,
    read_nuswide,
    read_voc,
)
from pvp_fast.evaluation.ladder import Features, Ladder, encode_set, final_scores, ladder
from pvp_fast.evaluation.own import OwnCalibration, calibrate_own
from pvp_fast.evaluation.unlabelled import UnlabelledCalibration, calibrate_unlabelled

__all__ = [
    "Adaptation",
    "EvalSet",
    "Features",
    "Ladder",
    "OwnCalibration",
    "UnlabelledCalibration",
    "adapt",
    "calibrate_own",
    "calibrate_unlabelled",
    "encode_set",
    "final_scores",
    "ladder",
    "read_coco",
    "read_dataset",
    "read_folder",
    "read_nuswide",
    "read_voc",
]
