"""From a trained model to one that is served."""

from keras_lkca.deploy.export import FORMATS, export
from keras_lkca.deploy.fold import FixedConv, FoldedLKCAViT, fold
from keras_lkca.deploy.predict import predict, read_images, read_model

__all__ = [
    "FORMATS",
    "FixedConv",
    "FoldedLKCAViT",
    "export",
    "fold",
    "predict",
    "read_images",
    "read_model",
]
