"""Checks of arguments that several layers and models share."""

import difflib
import numbers

import keras
import numpy as np


def check_rate(name, value):
    """Return a probability as a float, or raise a `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"`{name}` must be a number. Received: {name}={value!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` must lie in [0, 1]. Received: {name}={value!r}")
    return float(value)


def check_number(name, value, least=0, integral=False):
    """Return a finite number, `least` or above, or raise a `ValueError`."""
    kind = numbers.Integral if integral else numbers.Real
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if not fits or not least <= value < float("inf"):
        raise ValueError(
            f"`{name}` must be {'an integer' if integral else 'a number'}, "
            f"{least} or above. Received: {name}={value!r}"
        )
    return int(value) if integral else float(value)


def check_positive_int(name, value):
    """Return an integer above zero as an int, or raise a `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ValueError(
            f"`{name}` must be a positive integer. Received: {name}={value!r}"
        )
    return int(value)


def check_flag(name, value):
    """Return a truth value as a bool, or raise a `ValueError`: a text is no such."""
    if value not in (0, 1):
        raise ValueError(f"`{name}` must be True or False. Received: {name}={value!r}")
    return bool(value)


def check_choice(name, value, of):
    """Return an activation, an initializer or a regularizer, or raise a `ValueError`.

    Args:
        name: The argument's name.
        value: What it was given: a name, a function, a configuration or `None`.
        of: The module of Keras that knows it, such as `keras.activations`.
    """
    try:
        return of.get(value)
    except (TypeError, ValueError) as error:
        known = [x for x in dir(of) if not x.startswith("_")]
        near = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
        raise ValueError(
            f"`{name}` must be one of keras.{of.__name__.rpartition('.')[2]}, by its "
            f"name, or a function{f'; the nearest is {near[0]!r}' if near else ''}. "
            f"Received: {name}={value!r}"
        ) from error


def check_seed(value):
    """Return `None`, or an integer as an int, or raise a `ValueError`."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(f"`seed` must be an integer or None. Received: seed={value!r}")
    return int(value)


def check_pair(name, value):
    """Return a positive integer, or a pair of them, as a pair."""
    pair = (value, value) if isinstance(value, numbers.Integral) else value
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(
            f"`{name}` must be a positive integer or a pair of them. "
            f"Received: {name}={value!r}"
        )
    return tuple(check_positive_int(name, size) for size in pair)


def check_kernel_size(value):
    """Return an odd integer, or a pair of them, as a pair."""
    pair = check_pair("kernel_size", value)
    if any(size % 2 == 0 for size in pair):
        raise ValueError(
            "`kernel_size` must be odd, so that the kernel has a centre. "
            f"Received: kernel_size={pair}"
        )
    return pair


def check_image_shape(value, name="input_shape"):
    """Return (height, width, channels) as ints, or raise a `ValueError`."""
    if not isinstance(value, (tuple, list)) or len(value) != 3:
        raise ValueError(
            f"`{name}` must be (height, width, channels). Received: {name}={value!r}"
        )
    return tuple(check_positive_int(name, size) for size in value)


def check_finite(name, numbers):
    """Raise a `ValueError` where an array of numbers holds NaN or infinity."""
    # Of integers there are none; the least and the most need no copy.
    if numbers.size and numbers.dtype.kind not in "uib":
        if not (np.isfinite(numbers.min()) and np.isfinite(numbers.max())):
            finite = np.isfinite(numbers)
            raise ValueError(
                f"`{name}` must be finite numbers. Received: NaN or infinity in "
                f"{np.count_nonzero(~finite):,} of {numbers.size:,} places, first at "
                f"{tuple(np.argwhere(~finite)[0].tolist())}"
            )


def check_divides(name, value, total_name, total):
    """Raise a `ValueError` unless `value` divides `total`."""
    if total % value:
        raise ValueError(
            f"`{name}` must divide `{total_name}`. "
            f"Received: {name}={value}, {total_name}={total}"
        )


def check_feature_map(layer, input_shape, static=()):
    """Raise a `ValueError` unless a shape is (batch, height, width, channels).

    Args:
        layer: The layer that is built, for the message.
        input_shape: The shape it is built on.
        static: Names of further axes that must be known, of "height" and "width".
    """
    if len(input_shape) != 4:
        raise ValueError(
            f"{type(layer).__name__} works on feature maps of rank 4, (batch, height, "
            f"width, channels). Received: input_shape={tuple(input_shape)}"
        )
    axes = dict(zip(("height", "width", "channels"), input_shape[1:], strict=True))
    for axis in (*static, "channels"):
        if axes[axis] is None:
            raise ValueError(
                f"{type(layer).__name__} needs a static {axis}: give the input a "
                f"fixed size there. Received: input_shape={tuple(input_shape)}"
            )


def check_channels_last(layer):
    """Raise a `ValueError` where Keras is set to channels_first."""
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            f"{type(layer).__name__} works on channels_last feature maps, (batch, "
            "height, width, channels); call "
            'keras.config.set_image_data_format("channels_last"). Received: '
            f"image_data_format={keras.config.image_data_format()!r}"
        )
