"""From a trained model to one that is served."""

from keras_lkca.deploy.fold import FixedConv, FoldedLKCAViT, fold
from keras_lkca.deploy.predict import predict

__all__ = ["FixedConv", "FoldedLKCAViT", "fold", "predict"]
