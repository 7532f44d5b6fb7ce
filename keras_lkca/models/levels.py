"""The feature maps that a model goes through, one for each size of its grid."""

import math

import keras

from keras_lkca.internals import producer


def feature_levels(model) -> dict:
    """Return the last feature map of each level that a model goes through.

    A level is named as KerasHub does, by the binary logarithm of its stride: `"P2"`
    has a token for 4 x 4 pixels, `"P3"` for 8 x 8. Other strides, and grids that the
    image's size is no multiple of, count as the nearest. Tokens in a row, as those of a
    vision transformer, are laid out on the grid that they came from, without a class
    token before them.

    Args:
        model: A functional or Sequential Keras model of images of one size.

    Returns:
        Dictionary of name to Keras tensor `(batch, rows, columns, channels)`, the
        finest level first.

    Raises:
        ValueError: If it is no such model, or has no feature map that it learned.

    Example:

    >>> from keras_lkca import LKCANet
    >>> from keras_lkca.models import feature_levels
    >>> net = LKCANet((64, 64, 3), patch_size=4, embed_dim=(64, 96), depth=(1, 1))
    >>> {name: tuple(x.shape[1:]) for name, x in feature_levels(net).items()}
    {'P0': (64, 64, 32), 'P1': (32, 32, 64), 'P2': (16, 16, 64), 'P3': (8, 8, 96)}
    """
    shape = getattr(model, "input_shape", None)
    fits = isinstance(shape, tuple) and len(shape) == 4 and None not in shape[1:3]
    if not fits or not getattr(model, "outputs", None):
        raise ValueError(
            "`model` must be a functional or a Sequential Keras model of images of one "
            f"size. Received: {type(model).__name__} of {shape}"
        )
    levels, learned, name = {}, set(), None
    for call in _in_order(model):
        known = any(id(tensor) in learned for tensor in call.input_tensors)
        if not known and not getattr(call.operation, "weights", None):
            continue  # still the image, normalised or resized
        learned.update(id(tensor) for tensor in call.outputs)
        for tensor in call.outputs:
            if None in tensor.shape[1:]:
                continue
            if len(tensor.shape) == 3 and name is not None:
                (rows, columns), _ = levels[name]
                if tensor.shape[1] in (rows * columns, rows * columns + 1):
                    levels[name] = (rows, columns), tensor
            grid = tensor.shape[1:3]
            if len(tensor.shape) != 4 or grid == (1, 1):
                continue
            stride = max(size / own for size, own in zip(shape[1:3], grid, strict=True))
            name = f"P{round(math.log2(stride))}"
            levels[name] = grid, tensor
    if not levels:
        raise ValueError(
            "`model` must have a feature map (batch, rows, columns, channels) in it. "
            f"Received: {type(model).__name__} {model.name!r}, which has none"
        )
    finest_first = sorted(levels.items(), key=lambda item: -item[1][0][0])
    return {name: _on_grid(tensor, *grid) for name, (grid, tensor) in finest_first}


def _on_grid(tensor, rows, columns):
    """Return tokens as a feature map, without a class token."""
    if len(tensor.shape) == 4:
        return tensor
    tokens = tensor[:, tensor.shape[1] - rows * columns :]
    return keras.ops.reshape(tokens, (-1, rows, columns, tensor.shape[-1]))


def _in_order(model):
    """Return a model's calls, each after those that it needs."""
    inputs = {id(tensor) for tensor in model.inputs}
    found, order, stack = set(), [], [(tensor, False) for tensor in model.outputs]
    while stack:
        tensor, done = stack.pop()
        if id(tensor) in inputs:
            continue
        call, _ = producer(tensor)
        if isinstance(call.operation, keras.layers.InputLayer):
            continue
        if done:
            order.append(call)
        elif id(call) not in found:
            found.add(id(call))
            stack.append((tensor, True))
            stack += [(one, False) for one in call.input_tensors]
    return order
