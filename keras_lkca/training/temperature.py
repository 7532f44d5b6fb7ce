"""How sure a classifier is, and how sure it should be."""

import numpy as np

from keras_lkca.checks import check_number
from keras_lkca.data.batches import batchwise
from keras_lkca.models import classifiers
from keras_lkca.models.image_model import copy_of
from keras_lkca.training import evaluation

# Beyond these a temperature says that the images are too few to find one.
BOUNDS = (0.1, 10.0)


def fit_temperature(model, images, labels, batch_size: int = 128) -> float:
    """Find by what to divide a classifier's logits, so that it is as sure as right.

    It minimises the cross-entropy on images that the model did not learn from. Above 1
    the model was too sure of itself, below 1 not sure enough. `with_temperature` keeps
    what was found.

    Args:
        model: A classifier that returns logits, or ends with a softmax or a sigmoid.
        images: Array of images in [0, 255], such as those that validated the training.
        labels: As for `keras_lkca.training.evaluate`.
        batch_size: Images per step.

    Returns:
        The temperature.

    Raises:
        ValueError: If an argument is not as above, or no temperature between 0.1 and
            10 is the best, as where all of the images are classified rightly.

    Example:

    >>> import numpy as np
    >>> from keras_lkca import LKCAViT
    >>> from keras_lkca.training import fit_temperature
    >>> model = LKCAViT((8, 8, 1), num_classes=2, patch_size=4, embed_dim=8, depth=1)
    >>> model.get_layer("classifier").set_weights(
    ...     [np.zeros((8, 2)), np.array([4 * np.log(3), 0])]
    ... )
    >>> images = np.zeros((4, 8, 8, 1))  # of which three quarters are of class 0
    >>> round(fit_temperature(model, images, [0, 0, 0, 1]), 3)
    4.0

    References:
        Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599.
    """
    classifiers.check_shapes(model)
    images = classifiers.as_images(model, images)
    classifiers.warn_if_scaled(model, images)
    task = evaluation.task_with(model, labels)
    outputs = classifiers.outputs_of(model, images, batch_size)
    logits = logits_of(model, outputs, task)
    temperature = best_temperature(logits, labels, task)
    if temperature is None:
        raise ValueError(
            f"`images` must be such that a temperature between {BOUNDS[0]} and "
            f"{BOUNDS[1]} is the best: more of them, of which some are classified "
            "wrongly, and most rightly. "
            f"Received: {len(logits)} images"
        )
    return temperature


def logits_of(model, outputs, task):
    """Return the logits of a classifier's outputs, also where it hides them.

    Those of a softmax are its logarithms, which have the same softmax.
    """
    if not classifiers.gives_probabilities(model):
        return outputs
    return to_logits(outputs, task)


def to_logits(probabilities, task):
    """Return logits of probabilities `(n, columns)`."""
    yes = np.log(np.maximum(probabilities, 1e-30))
    if task == "categorical":
        return yes
    # In float32, 1 is what is nearer to it than this.
    return yes - np.log(np.maximum(1 - probabilities, 2.0**-25))


def best_temperature(logits, labels, task):
    """Return the temperature of the lowest cross-entropy; `None` beyond `BOUNDS`."""
    shares = evaluation.true_shares(labels, *logits.shape, task)
    logits = np.maximum(logits, -1e6)  # what is ruled out stays so

    def slope(scale):
        """Return the slope of the cross-entropy, convex in the logits' scale."""
        chances = classifiers.from_logits(logits * scale, task)
        return ((chances - shares) * logits).sum()

    low, high = 1 / BOUNDS[1], 1 / BOUNDS[0]
    if not slope(low) < 0 < slope(high):
        return None
    for _ in range(40):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(1 / middle)


def with_temperature(model, temperature: float):
    """Return a classifier whose logits are divided by a temperature.

    The kernel and the bias of the last Dense layer are: nothing is new in the model,
    which is saved, exported and named as before, and classifies as before.

    Args:
        model: A functional or Sequential classifier whose last layer with weights is
            a Dense layer, which a softmax or a sigmoid may follow. It stays as it is.
        temperature: Positive number, such as `fit_temperature` returns.

    Returns:
        A new model, not compiled.

    Raises:
        ValueError: If an argument is not as above, as where outputs are averaged, or
            if the Dense layer is quantized.

    Example:

    >>> import numpy as np
    >>> from keras_lkca import LKCAViT
    >>> from keras_lkca.training import with_temperature
    >>> model = LKCAViT((8, 8, 1), patch_size=4, embed_dim=8, depth=1)
    >>> images = np.ones((2, 8, 8, 1))
    >>> cooled = with_temperature(model, 2.0)
    >>> halved, logits = (x.predict(images, verbose=0) for x in (cooled, model))
    >>> np.allclose(2 * halved, logits, atol=1e-6)
    True
    """
    temperature = check_number("temperature", temperature)
    if not temperature:
        raise ValueError(f"`temperature` must be above 0. Received: {temperature!r}")
    classifiers.linear_head(model)
    again = copy_of(model)
    for weight in classifiers.linear_head(again).weights:
        weight.assign(weight / temperature)
    return again


def report(model, validation, tested, batch_size, task):
    """Return what the temperature found on validation images makes of a model.

    Args:
        model: The classifier.
        validation: Images and labels.
        tested: What it made of the test images, `(n, columns)`, and their labels; or
            `None`.
        batch_size: Images per step.
        task: See `task_of`.

    Returns:
        Dictionary of `temperature`, `None` where there is none between 0.1 and 10;
        and, with it, the loss and the calibration error of the test images.
    """
    images = batchwise(validation[0], batch_size)
    outputs = classifiers.outputs_of(model, images, batch_size)
    logits = logits_of(model, outputs, task)
    try:
        evaluation.true_shares(validation[1], *logits.shape, task)
    except ValueError:  # labels by which a run may validate, and nothing be compared
        return {}
    found = {"temperature": best_temperature(logits, validation[1], task)}
    if tested is None or found["temperature"] is None:
        return found
    outputs, labels = tested
    logits = logits_of(model, outputs, task) / found["temperature"]
    scores, _ = evaluation.compare(logits, labels, task, logits=True)
    for name in ("test_loss", "test_ece"):
        if name in scores:
            found[f"{name}_at_temperature"] = scores[name]
    return found
