"""Datasets and the pipelines that feed them to `model.fit`."""

from keras_lkca.data.datasets import digits, load
from keras_lkca.data.folders import from_directory
from keras_lkca.data.pipeline import evaluation_pipeline, training_pipeline
from keras_lkca.data.table import DATASETS, Dataset, describe

__all__ = [
    "DATASETS",
    "Dataset",
    "describe",
    "digits",
    "evaluation_pipeline",
    "from_directory",
    "load",
    "training_pipeline",
]
