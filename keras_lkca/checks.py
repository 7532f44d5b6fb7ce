"""Checks of arguments that several layers and models share."""

import numbers

import keras


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


def check_image_shape(value):
    """Return (height, width, channels) as ints, or raise a `ValueError`."""
    if not isinstance(value, (tuple, list)) or len(value) != 3:
        raise ValueError(
            "`input_shape` must be (height, width, channels). "
            f"Received: input_shape={value!r}"
        )
    return tuple(check_positive_int("input_shape", size) for size in value)


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
