"""Training on the small image datasets."""

from keras_lkca.training.train import main, train

__all__ = ["main", "train"]
