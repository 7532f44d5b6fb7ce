"""From a trained model to one that is served."""

from keras_lkca.deploy.exporting import export
from keras_lkca.deploy.folding import FoldedModel, fold
from keras_lkca.deploy.formats import FORMATS, Format
from keras_lkca.deploy.prediction import (
    predict,
    predict_masks,
    read_images,
    read_model,
)

__all__ = [
    "FORMATS",
    "FoldedModel",
    "Format",
    "export",
    "fold",
    "predict",
    "predict_masks",
    "read_images",
    "read_model",
]
