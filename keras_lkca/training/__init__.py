"""Training on small image datasets: the recipe, the run, what it is worth."""

from keras_lkca.training.evaluation import evaluate
from keras_lkca.training.fitting import fit
from keras_lkca.training.learning_rate import find_learning_rate
from keras_lkca.training.recipe import Recipe
from keras_lkca.training.run import train
from keras_lkca.training.temperature import fit_temperature, with_temperature

__all__ = [
    "Recipe",
    "evaluate",
    "find_learning_rate",
    "fit",
    "fit_temperature",
    "train",
    "with_temperature",
]
