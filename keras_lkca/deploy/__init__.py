"""From a trained model to one that is served."""

from keras_lkca.deploy.exporting import FORMATS, export
from keras_lkca.deploy.folding import FoldedLKCAViT, fold
from keras_lkca.deploy.prediction import predict, read_images, read_model

__all__ = [
    "FORMATS",
    "FoldedLKCAViT",
    "export",
    "fold",
    "predict",
    "read_images",
    "read_model",
]
