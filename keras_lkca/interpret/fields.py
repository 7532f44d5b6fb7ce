"""Which pixels count: receptive fields by gradients, and class activation maps."""

import numbers

import keras
import numpy as np

from keras_lkca.backend import gradient
from keras_lkca.checks import check_finite, check_positive_int
from keras_lkca.internals import calls, is_quantized
from keras_lkca.interpret.attention import (
    check_image,
    fits,
    query_index,
    self_attention,
    vit_grid,
)

HEAD = ("pool", "norm", "classifier")


def effective_receptive_field(
    model, images, query=None, draws: int = 1, batch_size: int = 32
) -> np.ndarray:
    """Return how much each pixel moves one token of the last feature map.

    With y the C channels of the token and x the pixels, the energy of a pixel is the
    sum over channels and colours of (dy / dx)^2, averaged over the images. The squared
    gradient of `sum over c of s_c y_c` with random signs s, drawn for each image, is an
    unbiased estimate of it.

    Args:
        model: A Keras model whose layers give a feature map
            `(batch, rows, columns, channels)`: `LKCAViT`, `ViT` or another.
        images: `(n, height, width, channels)` in [0, 255].
        query: Pair of integers (row, column) of the token. Defaults to the centre.
        draws: Positive integer, draws of the signs per image.
        batch_size: Positive integer, images per step.

    Returns:
        Array `(height, width)` that sums to 1: the share of the energy that each
        pixel holds.

    Raises:
        ValueError: If the images are not the model's, the query lies outside the
            grid, the model has no feature map, or no pixel counts.

    Example:

    >>> import numpy as np
    >>> from keras_lkca import LKCAViT, interpret
    >>> images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3))
    >>> field = interpret.effective_receptive_field(LKCAViT(depth=1), images)
    >>> int((field > 0).sum())  # kernels start at zero: the token's own patch
    16

    References:
        - Luo et al., "Understanding the Effective Receptive Field in Deep
          Convolutional Neural Networks", [arXiv 1701.04128](
          https://arxiv.org/abs/1701.04128), section 2.
    """
    check_positive_int("draws", draws)
    check_positive_int("batch_size", batch_size)
    trunk = feature_map_model(model)
    images = check_images(model, images)
    rows, columns, channels = trunk.output_shape[1:]
    query = (rows // 2, columns // 2) if query is None else query
    place = query_index(query, (rows, columns), class_token=False)
    row, column = divmod(place, columns)

    def projected(x, signs):
        token = keras.ops.cast(trunk(x, training=False)[:, row, column], "float32")
        return keras.ops.sum(token * signs)

    by_pixels = gradient(projected)
    rng = np.random.default_rng(0)
    energy = np.zeros(images.shape[1:3])
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        for _ in range(draws):
            signs = rng.choice([-1.0, 1.0], (len(batch), channels))
            energy += (by_pixels(batch, signs).astype("float64") ** 2).sum((0, 3))
    if not energy.sum() > 0 or not np.isfinite(energy).all():
        raise ValueError(
            "No pixel moves the token, or the gradients are not finite: are the "
            f"model's weights? Received: model={model.name!r}"
        )
    return energy / energy.sum()


def energy_areas(field, shares=(0.5, 0.9, 0.99)) -> np.ndarray:
    """Return the smallest part of the image that holds each share of the energy.

    Args:
        field: What `effective_receptive_field` returned.
        shares: Numbers between 0 and 1.

    Returns:
        Array `(len(shares),)`, parts of the image's area.

    Raises:
        ValueError: If a share does not lie between 0 and 1, or the field holds no
            energy.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.interpret import energy_areas
    >>> energy_areas(np.full((10, 10), 0.01), (0.5, 0.9)).tolist()
    [0.5, 0.9]
    """
    field = np.asarray(field, "float64")
    if not field.min() >= 0 or not 0 < field.sum() < np.inf:
        raise ValueError(
            "`field` must hold energies, not below zero and not all zero. "
            f"Received: field with the sum {field.sum()}"
        )
    shares = np.ravel(shares)
    if not all(0 < share < 1 for share in shares):
        raise ValueError(
            f"`shares` must lie between 0 and 1. Received: shares={shares.tolist()}"
        )
    held = np.cumsum(np.sort(field.ravel())[::-1])
    counts = np.searchsorted(held, shares * held[-1] * (1 - 1e-9)) + 1
    return counts / field.size


def saliency(model, image, class_index=None, relative: bool = True):
    """Return how much each token adds to the logit of a class.

    With the tokens x_t of the last feature map, their mean p, the deviation s of p
    over its channels, LayerNorm's scale g and offset h, and the classifier W, b:

        logit[k] = sum over t of map[t] + rest
        map[t] = sum over c of (x_t[c] - mean(x_t)) / (T s) * g[c] * W[c, k]
        rest = sum over c of h[c] * W[c, k] + b[k]

    Exact: the sum. Not exact: what a token is made responsible for, since s is one
    number for all tokens, held fixed here, and since the tokens have taken in each
    other, in each block, before they are summed.

    Args:
        model: A classifier with mean pooling: `LKCAViT`, what `deploy.fold` returns,
            or `ViT` with `pooling="avg"`.
        image: `(height, width, channels)` in [0, 255].
        class_index: The class, a number or one of the model's `class_names`.
            Defaults to the one with the largest logit.
        relative: Whether the mean over the classes is taken away from every logit,
            which leaves the probabilities as they are: the map then shows what speaks
            for this class rather than for all.

    Returns:
        The map `(rows, columns)`, and the rest, a number.

    Raises:
        ValueError: If the model is none of these or quantized, the image is not its,
            or there is no such class.

    Example:

    >>> import numpy as np
    >>> from keras_lkca import LKCAViT, interpret
    >>> model = LKCAViT(depth=1)
    >>> image = np.full((32, 32, 3), 128)
    >>> tokens, rest = interpret.saliency(model, image, 3, relative=False)
    >>> logits = model.predict(image[None], verbose=0)
    >>> bool(abs(tokens.sum() + rest - logits[0, 3]) < 1e-4)
    True

    References:
        - Zhou et al., "Learning Deep Features for Discriminative Localization",
          [arXiv 1512.04150](https://arxiv.org/abs/1512.04150), section 2.
    """
    check_explainable(model)
    image = check_image(model, image)
    pool, norm, classifier = map(model.get_layer, HEAD)
    tokens = keras.Model(model.inputs[0], pool.input)(image, training=False)
    tokens = np.asarray(
        keras.ops.convert_to_numpy(keras.ops.cast(tokens, "float32"))[0], "float64"
    )
    weights, *bias = (
        keras.ops.convert_to_numpy(keras.ops.cast(w, "float32")).astype("float64")
        for w in classifier.weights
    )
    bias = bias[0] if bias else np.zeros(weights.shape[1])
    mean = tokens.mean((0, 1))
    deviation = np.sqrt(mean.var() + norm.epsilon)
    scaled = (tokens - tokens.mean(-1, keepdims=True)) / deviation
    scaled /= tokens.shape[0] * tokens.shape[1]
    rest = bias
    if norm.scale:
        scaled = scaled * keras.ops.convert_to_numpy(norm.gamma)
    if norm.center:
        rest = rest + keras.ops.convert_to_numpy(norm.beta) @ weights
    maps = scaled @ weights
    if relative:
        maps, rest = maps - maps.mean(-1, keepdims=True), rest - rest.mean()
    if class_index is None:
        class_index = int((maps.sum((0, 1)) + rest).argmax())
    index = _class_index(model, class_index, len(bias))
    return maps[..., index], float(rest[index])


def check_explainable(model):
    """Raise a `ValueError` unless `saliency` can divide a model's logits."""
    layers = {layer.name: layer for layer in getattr(model, "layers", ())}
    found = [layers.get(name) for name in HEAD]
    kinds = (
        keras.layers.GlobalAveragePooling2D,
        keras.layers.LayerNormalization,
        keras.layers.Dense,
    )
    if not all(isinstance(x, kind) for x, kind in zip(found, kinds, strict=True)):
        raise ValueError(
            "`model` must classify the mean of its tokens: a LKCAViT, or a ViT with "
            f"pooling='avg'. Received: model={model!r}"
        )
    if is_quantized(found[2]):
        raise ValueError(
            "`model` is quantized, and its classifier's weights are codes; explain "
            f"the model as it was before. Received: model={model!r}"
        )


def _class_index(model, value, classes):
    names = getattr(model, "class_names", None) or ()
    if isinstance(value, str) and names.count(value) == 1:
        return names.index(value)
    fits = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not fits or not 0 <= value < classes:
        raise ValueError(
            f"`class_index` must be a class, 0 to {classes - 1}"
            f"{', or one of class_names' if names else ''}. "
            f"Received: class_index={value!r}"
        )
    return int(value)


def feature_map_model(model) -> keras.Model:
    """Return the part of a model from the images to its last feature map.

    Args:
        model: A functional Keras model; of a `keras_lkca.ViT`, the tokens without the
            class token.

    Returns:
        A Keras model of the same weights, to `(batch, rows, columns, channels)`.

    Raises:
        ValueError: If there is no feature map of static size.

    Example:

    >>> from keras_lkca import LKCAViT
    >>> from keras_lkca.interpret import feature_map_model
    >>> feature_map_model(LKCAViT(depth=2)).output_shape
    (None, 8, 8, 136)
    """
    is_vit = bool(self_attention(model))
    for node in calls(model):
        outputs = node.outputs[0]
        shape = outputs.shape
        if is_vit and len(shape) == 3:
            grid = vit_grid(model)
            # A mean is taken of the tokens that the class token is cut off from.
            if shape[1] == grid[0] * grid[1] + 1:
                outputs = outputs[:, 1:]
            outputs = keras.ops.reshape(outputs, (-1, *grid, shape[-1]))
            return keras.Model(model.inputs[0], outputs)
        if not is_vit and len(shape) == 4 and None not in shape[1:]:
            trunk = keras.Model(model.inputs[0], outputs)
            if trunk.weights:
                return trunk
        if isinstance(node.operation, keras.Model):
            try:
                within = feature_map_model(node.operation)
            except ValueError:  # none in this one
                continue
            return keras.Model(model.inputs[0], within(node.input_tensors[0]))
    raise ValueError(
        "`model` must be a functional model with a feature map of static size, "
        f"(batch, rows, columns, channels). Received: model={model!r}"
    )


def check_images(model, images):
    """Return images as float32, or raise a `ValueError`."""
    shape, array = tuple(model.input_shape[1:]), np.asarray(images)
    right = fits(shape, array.shape[1:]) and len(array)
    if not right or array.dtype.kind not in "uif":
        raise ValueError(
            f"`images` must be numbers of shape {('n', *shape)} in [0, 255]. "
            f"Received: {array.dtype} {array.shape}"
        )
    check_finite("images", array)
    return array.astype("float32")
