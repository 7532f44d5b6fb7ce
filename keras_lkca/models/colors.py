"""The colours of classes, in masks and pictures."""

import numpy as np


def colors_of(model) -> np.ndarray:
    """Return the colours of a model's classes, uint8 `(classes, 3)`.

    Those that it carries, or else `default_colors`.
    """
    colors = getattr(model, "class_colors", None)
    return default_colors(model.output_shape[-1]) if colors is None else colors


def default_colors(count: int) -> np.ndarray:
    """Return colours that are easy to tell apart, those of PASCAL VOC's masks.

    Args:
        count: Positive integer, how many.

    Returns:
        uint8 array `(count, 3)` of red, green, blue.

    Example:

    >>> from keras_lkca.models.colors import default_colors
    >>> default_colors(3).tolist()
    [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    """
    numbers = np.arange(count)[:, None] >> np.arange(3)  # a bit of each colour
    bits = np.stack([(numbers >> 3 * place) & 1 for place in range(8)])
    return (bits << np.arange(7, -1, -1)[:, None, None]).sum(0).astype("uint8")


def check_colors(colors, count):
    """Return colours as tuples of numbers, or raise a `ValueError`."""
    if colors is None:
        return None
    try:
        array = np.asarray(colors)
        fits = array.shape == (count, 3) and array.dtype.kind in "ui"
        fits = fits and 0 <= array.min() <= array.max() <= 255
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(
            f"`class_colors` must be {count} triples of red, green, blue in [0, 255], "
            f"one for each class. Received: class_colors={colors!r}"
        )
    return tuple(tuple(map(int, color)) for color in array)
