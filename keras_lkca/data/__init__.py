"""Datasets, their augmentation, and the batches that feed them to `model.fit`."""

from keras_lkca.data.augmentation import Augmentation
from keras_lkca.data.batches import (
    PIPELINES,
    dataset_batches,
    split,
    training_batches,
)
from keras_lkca.data.datasets import digits, load
from keras_lkca.data.decoding import ImageFiles
from keras_lkca.data.folders import from_directory
from keras_lkca.data.masks import from_mask_directory
from keras_lkca.data.table import DATASETS, Dataset, describe

__all__ = [
    "Augmentation",
    "DATASETS",
    "Dataset",
    "ImageFiles",
    "PIPELINES",
    "dataset_batches",
    "describe",
    "digits",
    "from_directory",
    "from_mask_directory",
    "load",
    "split",
    "training_batches",
]
