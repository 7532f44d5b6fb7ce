"""Training on small image datasets: the recipe, the run, what it is worth."""

from keras_lkca.training.cli import main
from keras_lkca.training.recipe import Recipe
from keras_lkca.training.report import evaluate
from keras_lkca.training.train import train

__all__ = ["Recipe", "evaluate", "main", "train"]
