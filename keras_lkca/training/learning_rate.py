"""Which learning rate to train with."""

import pathlib

import keras
import numpy as np

from keras_lkca import data
from keras_lkca.checks import check_number, check_positive_int
from keras_lkca.data.batches import check_numbers
from keras_lkca.data.decoding import as_stored
from keras_lkca.extras import require
from keras_lkca.files import atomic
from keras_lkca.models.classifiers import check_shapes, is_segmenter, warn_if_scaled
from keras_lkca.models.image_model import copy_of
from keras_lkca.training.evaluation import task_with
from keras_lkca.training.memory import able_to_rematerialize
from keras_lkca.training.recipe import Recipe
from keras_lkca.training.sources import augmentation_of

# How much of the average of the losses is kept at each step.
MOMENTUM = 0.9
# A loss that falls by less of itself tells no rate from another.
LEAST_FALL = 0.02


def find_learning_rate(
    model,
    train,
    recipe: Recipe | None = None,
    lowest: float = 1e-5,
    highest: float = 1.0,
    steps: int = 100,
    facts=None,
    seed: int = 0,
    output=None,
) -> dict:
    """Try learning rates in one short training, and propose one.

    A copy of the model is trained with the recipe's optimizer, loss and augmentation,
    while the learning rate rises exponentially from step to step. The sweep ends early
    where the loss is four times the lowest so far, or no number. Proposed is a tenth
    of the rate at which the smoothed loss is lowest: there the training has come to
    its limit. It is where to begin trying, and not yet the best rate: that also
    depends on how long is trained.

    Args:
        model: A classifier, as `keras_lkca.training.fit` takes it; it stays as it is,
            and how it was compiled is passed over.
        train: Pair of arrays, images in [0, 255] `(n, height, width, channels)` and
            labels, as for `fit`.
        recipe: The recipe whose rate is sought. Defaults to `Recipe.long()`, of a
            segmenter to `Recipe.segmentation()`.
        lowest: Positive number, the rate of the first step.
        highest: Number above it, the rate of the last.
        steps: Integer, 10 or above, of the sweep.
        facts: `keras_lkca.data.Dataset` of the images, as for `fit`.
        seed: Non-negative integer, seed of the order and the augmentation. Keras's
            generators are seeded by it too, and stay so.
        output: File to draw the curve into, such as `"rates.png"`, for which
            matplotlib is needed; `None` for no picture.

    Returns:
        Dictionary of `learning_rate`, the proposal; and of lists, one entry a step:
        `rates`, `losses` and `smoothed`, the losses' exponential moving average.

    Raises:
        ValueError: If an argument is not as above, or the loss is lowest at the first
            steps, or falls by less than 2 % in all, where the model has not learned
            enough in the sweep to tell a rate.
        ImportError: If `output` is given and matplotlib is missing.

    Example:

    >>> from keras_lkca import LKCAViT, data
    >>> from keras_lkca.training import Recipe, find_learning_rate
    >>> model = LKCAViT((8, 8, 1), patch_size=4, embed_dim=8, depth=1)
    >>> recipe = Recipe.quick(batch_size=50, flip=False, crop_padding=1)
    >>> found = find_learning_rate(model, data.digits(), recipe, steps=60)
    >>> 1e-4 < found["learning_rate"] < 1e-1
    True

    References:
        Smith, "Cyclical Learning Rates for Training Neural Networks",
        arXiv 1506.01186, section 3.3, the range test.
    """
    if recipe is None:
        recipe = Recipe.segmentation() if is_segmenter(model) else Recipe.long()
    lowest, highest = check_number("lowest", lowest), check_number("highest", highest)
    if not 0 < lowest < highest:
        raise ValueError(
            "`lowest` must be above 0 and below `highest`. "
            f"Received: lowest={lowest!r}, highest={highest!r}"
        )
    steps = check_number("steps", check_positive_int("steps", steps), 10, True)
    path = None if output is None else _picture(output)
    _, columns = check_shapes(model, pixels=True)
    dense = is_segmenter(model)
    if not isinstance(train, (tuple, list)) or len(train) != 2:
        raise ValueError(
            "`train` must be a pair of arrays (images, labels). "
            f"Received: a {type(train).__name__}"
        )
    images, labels = as_stored(train[0]), np.asarray(train[1])
    check_numbers(images)
    augmentation = augmentation_of(recipe, facts, images, images.shape[-1])
    batches = data.training_batches(
        *(images, labels, recipe.batch_size, columns, augmentation, seed)
    )
    warn_if_scaled(model, images, "train[0]")
    trial = copy_of(model)
    for layer in able_to_rematerialize(trial) if recipe.rematerialize else ():
        layer.rematerialize = True
    keras.utils.set_random_seed(seed)
    task = "segmentation" if dense else task_with(model, labels)
    recipe.compile(trial, steps, task=task)
    factor = (highest / lowest) ** (1 / (steps - 1))
    trial.optimizer.learning_rate = keras.optimizers.schedules.ExponentialDecay(
        lowest, decay_steps=1, decay_rate=factor
    )
    losses, smoothed, average = [], [], 0.0
    for step in range(steps):
        trial.reset_metrics()
        logs = trial.train_on_batch(*next(batches), return_dict=True)
        loss = float(logs["loss"])
        average = MOMENTUM * average + (1 - MOMENTUM) * loss
        value = average / (1 - MOMENTUM ** (step + 1))
        if not np.isfinite(loss) or (smoothed and value > 4 * min(smoothed)):
            break
        losses.append(loss)
        smoothed.append(value)
    rates = [lowest * factor**step for step in range(len(losses))]
    best = int(np.argmin(smoothed)) if smoothed else 0
    if best < 5:
        raise ValueError(
            "`lowest` and `highest` must be such that the loss falls between them: it "
            "is lowest in the first steps. Try a smaller `lowest`, and look whether "
            f"the model trains at all. Received: lowest={lowest!r}, highest={highest!r}"
        )
    fall = 1 - smoothed[best] / np.mean(smoothed[:5])
    if fall < LEAST_FALL:
        raise ValueError(
            "`steps` must be enough for the model to learn something: the loss fell by "
            f"{fall:.1%} of itself, which tells no rate from another. Try more of "
            "them, a larger batch, or look whether the model trains at all. "
            f"Received: steps={steps!r}"
        )
    found = {"learning_rate": rates[best] / 10, "rates": rates}
    found |= {"losses": losses, "smoothed": smoothed}
    if path is not None:
        with atomic(path) as temporary:
            _curve(found).savefig(temporary, dpi=120)
    return found


def _picture(output):
    """Return where to draw, after a look whether that can be done."""
    path = pathlib.Path(output).expanduser()
    if not path.parent.is_dir() or path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(
            "`output` must be a .png, .svg or .pdf file in a folder that exists. "
            f"Received: output={str(output)!r}"
        )
    require("matplotlib", "plot")
    return path


def _curve(found):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(found["rates"], found["losses"], color="0.75", lw=1, label="loss")
    axes.plot(found["rates"], found["smoothed"], label="smoothed")
    rate = found["learning_rate"]
    axes.axvline(rate, color="0.4", lw=1, ls="--", label=f"proposed, {rate:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
