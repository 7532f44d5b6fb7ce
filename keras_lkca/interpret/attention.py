"""Where a token looks: rows of the attention matrices, and their rollout."""

import numbers

import keras
import numpy as np

from keras_lkca.checks import check_finite
from keras_lkca.internals import calls
from keras_lkca.interpret.statistics import mixing_layers
from keras_lkca.layers import SelfAttention
from keras_lkca.ops import attention_matrix

# Up to these matrices of tokens by tokens are multiplied and drawn.
MAX_TOKENS = 4096


def attention_map(model, query, image=None) -> dict[str, np.ndarray]:
    """Return where one token looks, layer by layer.

    In an LKCA layer that is a row of its attention matrix, the kernel moved to the
    query: the same for every image, and signed. A gate, where the layer has one, then
    weighs what comes of it, number by number, which the row does not show. In a
    `SelfAttention` layer it is a row of the softmax of each head on the given image.

    Args:
        model: A model with LKCA layers, see `keras_lkca.interpret.mixing_layers`, or
            a `keras_lkca.ViT`.
        query: Pair of integers (row, column) on the token grid, the first layer's
            where they differ, the others taking the token of the same place; or `None`
            for a ViT's class token.
        image: For a ViT: `(height, width, channels)` in [0, 255].

    Returns:
        Dict by layer of float32 arrays `(num_kernels, rows, columns)`, or of
        `(num_heads, rows, columns)` without the weight of the class token.

    Raises:
        ValueError: If the query lies outside the grid, the image is missing or of
            another size, or the model has none of these layers.

    Example:

    >>> from keras_lkca import LKCAViT, interpret
    >>> maps = interpret.attention_map(LKCAViT(depth=2), query=(0, 7))
    >>> maps["block_0_lkca"].shape
    (1, 8, 8)

    References:
        - Li et al., "Interpreting and Improving Attention From the Perspective of
          Large Kernel Convolution", [arXiv 2401.05738](
          https://arxiv.org/abs/2401.05738), method section.
    """
    attention = self_attention(model)
    if attention:
        grid = vit_grid(model)
        row = query_index(query, grid, class_token=True)
        return {
            name: weights[:, row, 1:].reshape(-1, *grid)
            for name, weights in softmax_maps(model, attention, image).items()
        }
    results, layers = {}, mixing_layers(model)
    grids = {name: static_grid(name, layer) for name, layer in layers.items()}
    first = next(iter(grids.values()))
    query_index(query, first, class_token=False)
    for name, layer in layers.items():
        grid = grids[name]
        kernel = np.asarray(keras.ops.convert_to_numpy(layer.kernel), "float32")
        # The window of the padded kernel that the grid sees from the query.
        padded = np.pad(kernel, [(size, size) for size in grid] + [(0, 0)])
        window = tuple(
            slice(extent // 2 + size - place, extent // 2 + 2 * size - place)
            for extent, size, place in zip(
                kernel.shape, grid, same_place(query, first, grid), strict=False
            )
        )
        results[name] = np.moveaxis(padded[window], -1, 0)
    return results


def attention_rollout(model, query, image=None) -> np.ndarray:
    """Return where one token looks through all layers up to each.

    With A the mean over the kernels or heads of the attention's absolute values, its
    rows scaled to sum 1, and the identity for the residual connection:

        rollout[0] = (A_0 + I) / 2,  rollout[l] = (A_l + I) / 2 @ rollout[l - 1]

    A heuristic: it leaves out the MLPs, the projections and the kernels' signs. What
    counts all of them is `keras_lkca.interpret.effective_receptive_field`.

    Args:
        model: See `keras_lkca.interpret.attention_map`.
        query: Likewise.
        image: Likewise.

    Returns:
        float32 array `(depth, rows, columns)` that sums to 1 per layer, but for the
        class token's share in a ViT.

    Raises:
        ValueError: As `attention_map`; or if the grid has more than 4,096 tokens.

    Example:

    >>> from keras_lkca import LKCAViT, interpret
    >>> interpret.attention_rollout(LKCAViT(depth=3), query=(4, 4)).shape
    (3, 8, 8)

    References:
        - Abnar and Zuidema, "Quantifying Attention Flow in Transformers",
          [arXiv 2005.00928](https://arxiv.org/abs/2005.00928), section 3.
    """
    attention = self_attention(model)
    if attention:
        grid, first = vit_grid(model), 1
        check_tokens(grid)
        row = query_index(query, grid, class_token=True)
        matrices = softmax_maps(model, attention, image).values()
    else:
        layers, first = mixing_layers(model), 0
        grids = {static_grid(name, layer) for name, layer in layers.items()}
        if len(grids) > 1:
            raise ValueError(
                "The rollout needs one token grid in all layers. "
                f"Received: layers on {sorted(grids)}"
            )
        (grid,) = grids
        check_tokens(grid)
        row = query_index(query, grid, class_token=False)
        matrices = (
            keras.ops.convert_to_numpy(attention_matrix(layer.kernel, *grid))
            for layer in layers.values()
        )
    total, results = None, []
    for matrix in matrices:
        matrix = np.abs(np.asarray(matrix, "float64")).mean(0)
        sums = matrix.sum(1, keepdims=True)
        identity = np.eye(len(matrix))
        # A kernel of zeros passes on what the residual connection does.
        step = np.where(sums > 0, matrix / np.where(sums > 0, sums, 1), identity)
        step = (step + identity) / 2
        total = step if total is None else step @ total
        results.append(total[row, first:].reshape(grid))
    return np.asarray(results, "float32")


def self_attention(model):
    """Return a model's SelfAttention layers by name."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a Keras model. Received: model={model!r}")
    return {x.name: x for x in model.layers if isinstance(x, SelfAttention)}


def vit_grid(model):
    """Return the token grid of a `keras_lkca.ViT`, or raise a `ValueError`."""
    names = [layer.name for layer in model.layers]
    if not {"patches", "class_token"} <= set(names):
        raise ValueError(
            "A model with SelfAttention layers must be a keras_lkca.ViT, whose token "
            f"grid is known. Received: {type(model).__name__} {model.name!r}"
        )
    return tuple(model.get_layer("patches").output.shape[1:3])


def static_grid(name, layer):
    """Return the token grid of an LKCA layer, or raise a `ValueError`."""
    if None in layer.grid:
        raise ValueError(
            f"Layer {name!r} was built on a dynamic grid; build the model for one "
            "size of images."
        )
    return tuple(layer.grid)


def same_place(query, grid, other):
    """Return the token of another grid in whose place one of a grid lies."""
    return tuple(
        place * size // whole
        for place, whole, size in zip(query, grid, other, strict=True)
    )


def check_tokens(grid):
    """Raise a `ValueError` where a matrix of tokens by tokens would be too large."""
    if grid[0] * grid[1] > MAX_TOKENS:
        raise ValueError(
            f"Matrices of tokens by tokens are made for up to {MAX_TOKENS:,} tokens. "
            f"Received: a grid of {grid[0]} x {grid[1]}"
        )


def query_index(query, grid, class_token):
    """Return the query's row in an attention matrix, or raise a `ValueError`."""
    if query is None and class_token:
        return 0
    fits = isinstance(query, (tuple, list)) and len(query) == 2
    fits = fits and all(isinstance(x, numbers.Integral) for x in query)
    if not fits or not all(0 <= x < size for x, size in zip(query, grid, strict=True)):
        raise ValueError(
            f"`query` must be (row, column) on the token grid of {grid[0]} x "
            f"{grid[1]}, counted from 0. Received: query={query!r}"
        )
    return int(query[0] * grid[1] + query[1] + class_token)


def check_image(model, image):
    """Return an image as a batch of one, or raise a `ValueError`."""
    shape = tuple(model.input_shape[1:])
    array = None if image is None else np.asarray(image)
    if array is None or not fits(shape, array.shape) or array.dtype.kind not in "uif":
        received = "None" if array is None else f"{array.dtype} {array.shape}"
        raise ValueError(
            f"`image` must be numbers of shape {shape} in [0, 255], as the model "
            f"takes them. Received: {received}"
        )
    check_finite("image", array)
    return array[None].astype("float32")


def fits(shape, received):
    """Whether a shape is one that a model takes, whose sizes may be any."""
    return len(shape) == len(received) and all(
        a in (None, b) for a, b in zip(shape, received, strict=True)
    )


def softmax_maps(model, layers, image):
    """Return each layer's softmax `(heads, tokens, tokens)` on one image."""
    image = check_image(model, image)
    # Not `layer.input`: a layer may be called in another graph as well.
    before = {call.operation.name: call.input_tensors[0] for call in calls(model)}
    inputs = keras.Model(model.inputs[0], [before[name] for name in layers])
    tokens = inputs(image, training=False)
    return {
        name: keras.ops.convert_to_numpy(layer.attention_weights(x))[0]
        for (name, layer), x in zip(
            layers.items(), keras.tree.flatten(tokens), strict=True
        )
    }
