"""What the kernels are: their shape, their reach, their frequencies."""

import keras
import numpy as np

from keras_lkca.checks import check_positive_int
from keras_lkca.internals import layers_by_path
from keras_lkca.layers import LKCA, FixedConv


def mixing_layers(model) -> dict:
    """Return the layers of a model that mix tokens by a kernel.

    Args:
        model: A built Keras model with `keras_lkca.layers.LKCA` layers in it, or in
            models within it; or what `keras_lkca.deploy.fold` returned.

    Returns:
        Dict of the layers by name, in the model's order.

    Raises:
        ValueError: If there are none, or they are not built.

    Example:

    >>> from keras_lkca import LKCAViT
    >>> from keras_lkca.interpret import mixing_layers
    >>> list(mixing_layers(LKCAViT(depth=2)))
    ['block_0_lkca', 'block_1_lkca']
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a Keras model. Received: model={model!r}")
    found = {
        path: layer
        for path, layer in layers_by_path(model).items()
        if isinstance(layer, (LKCA, FixedConv))
    }
    if not found:
        raise ValueError(
            "`model` has no LKCA layers, and so no kernels. "
            f"Received: {type(model).__name__} {model.name!r}"
        )
    for name, layer in found.items():
        if not layer.built:
            raise ValueError(
                f"Layer {name!r} has no kernel yet: call the model on images first."
            )
    return found


def kernels(model) -> dict[str, np.ndarray]:
    """Return the learned kernels of a model.

    `kernel[m, n, g]` is the weight with which a token takes in the token `m - kh//2`
    rows below it and `n - kw//2` columns to its right, `g` the kernel of the layer;
    see `keras_lkca.ops.large_kernel_conv`.

    Args:
        model: See `keras_lkca.interpret.mixing_layers`.

    Returns:
        Dict of float32 arrays `(kh, kw, num_kernels)` by layer.

    Raises:
        ValueError: If the model has no LKCA layers.

    Example:

    >>> from keras_lkca import LKCAViT, interpret
    >>> found = interpret.kernels(LKCAViT((32, 48, 3), depth=2))
    >>> found["block_1_lkca"].shape
    (15, 23, 1)

    References:
        - Li et al., "Interpreting and Improving Attention From the Perspective of
          Large Kernel Convolution", [arXiv 2401.05738](
          https://arxiv.org/abs/2401.05738), method section.
    """
    return {
        name: np.asarray(keras.ops.convert_to_numpy(layer.kernel), "float32")
        for name, layer in mixing_layers(model).items()
    }


def offsets(shape) -> tuple[np.ndarray, np.ndarray]:
    """Return the offsets of a kernel's weights, rows down and columns right.

    Args:
        shape: Pair of odd integers, the kernel's extents.

    Returns:
        Two integer arrays `(kh, kw)`, in tokens.

    Example:

    >>> from keras_lkca.interpret import offsets
    >>> offsets((1, 3))[1].tolist()
    [[-1, 0, 1]]
    """
    rows, columns = (np.arange(size) - size // 2 for size in shape)
    return np.meshgrid(rows, columns, indexing="ij")


def kernel_statistics(model) -> dict[str, dict[str, np.ndarray]]:
    """Return what each kernel comes to in numbers.

    The mass is the weights' absolute value, the energy their square. For each kernel:

    - `mean_distance`: of the mass from the centre, in tokens (Euclidean)
    - `mean_distance_on_grid`: the same with each offset counted as often as two tokens
      of the grid lie so apart; that of an attention map, comparable with a ViT's. Equal
      weights have `keras_lkca.interpret.uniform_distance`, and no reach of their own
    - `within_1`, `within_2`: share of the mass in the 3 x 3 and the 5 x 5 window
    - `odd`: share of the energy in what changes its sign when the kernel is turned by
      180 degrees: 0 for a kernel that looks both ways alike, 1 for a derivative, about
      0.5 for independent random weights
    - `left_right`, `up_down`: likewise for the two mirrorings
    - `first_singular`: share of the energy in the first singular value: 1 for a
      kernel that is one column times one row
    - `low_frequency`: share of the frequency response's energy below a quarter of a
      cycle per token along both axes, where a delta has a quarter. Of the kernel alone:
      whether the block smooths or sharpens is also up to the signs of the projections
      and the residual connection
    - `singular_values`: all of them, the largest first

    Args:
        model: See `keras_lkca.interpret.mixing_layers`.

    Returns:
        Dict by layer of dicts of arrays `(num_kernels,)`, and `(num_kernels,
        min(kh, kw))` for `singular_values`. A kernel of zeros, as before any
        training, has NaN for what is a share or a mean.

    Raises:
        ValueError: If the model has no LKCA layers.

    Example:

    >>> from keras_lkca import LKCAViT, interpret
    >>> model = LKCAViT(depth=1)
    >>> weights = model.get_layer("block_0_lkca").kernel.numpy() * 0
    >>> weights[7, 9] = 1  # two columns to the right
    >>> _ = model.get_layer("block_0_lkca").kernel.assign(weights)
    >>> statistics = interpret.kernel_statistics(model)["block_0_lkca"]
    >>> statistics["mean_distance"].tolist(), statistics["within_1"].tolist()
    ([2.0], [0.0])
    """
    layers, results = mixing_layers(model), {}
    responses = frequency_response(model)
    for name, kernel in kernels(model).items():
        kernel = np.moveaxis(kernel.astype("float64"), -1, 0)
        mass, energy = np.abs(kernel), kernel**2
        down, right = offsets(kernel.shape[1:])
        distance = np.hypot(down, right)
        furthest = np.maximum(np.abs(down), np.abs(right))
        singular = np.linalg.svd(kernel, compute_uv=False)
        rows, columns = (
            (np.abs(axis) < 0.25) + (np.abs(axis) == 0.25) / 2
            for axis in responses["frequencies"]
        )
        low = rows[:, None] * columns
        power = np.abs(responses[name]) ** 2

        def odd(flipped, kernel=kernel, energy=energy):
            return _share(((kernel - flipped) / 2) ** 2, energy)

        results[name] = {
            "mean_distance": _share(mass * distance, mass),
            "mean_distance_on_grid": _on_grid(layers[name], mass, distance),
            "within_1": _share(mass * (furthest <= 1), mass),
            "within_2": _share(mass * (furthest <= 2), mass),
            "odd": odd(kernel[:, ::-1, ::-1]),
            "left_right": odd(kernel[:, :, ::-1]),
            "up_down": odd(kernel[:, ::-1]),
            "first_singular": _ratio(singular[:, 0] ** 2, (singular**2).sum(-1)),
            "low_frequency": _share(power * low, power),
            "singular_values": singular,
        }
    return results


def _share(part, whole):
    return _ratio(part.sum((-2, -1)), whole.sum((-2, -1)))


def _ratio(part, whole):
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def _on_grid(layer, mass, distance):
    if None in layer.grid:
        return np.full(len(mass), np.nan)
    pairs = token_pairs(mass.shape[1:], layer.grid)
    return _share(mass * pairs * distance, mass * pairs)


def token_pairs(shape, grid):
    """Return how many pairs of a grid's tokens have each offset of a kernel."""
    down, right = offsets(shape)
    return np.maximum(grid[0] - abs(down), 0) * np.maximum(grid[1] - abs(right), 0)


def uniform_distance(grid) -> float:
    """Return the mean distance of two tokens of a grid.

    It is what a kernel of equal weights has as `mean_distance_on_grid`, and what
    attention has that weighs all tokens alike.

    Args:
        grid: Pair of integers, rows and columns.

    Returns:
        The distance, in tokens.

    Example:

    >>> from keras_lkca.interpret import uniform_distance
    >>> round(uniform_distance((8, 8)), 2)
    4.14
    """
    shape = tuple(2 * size - 1 for size in grid)
    pairs = token_pairs(shape, grid)
    return float((pairs * np.hypot(*offsets(shape))).sum() / pairs.sum())


def frequency_response(model, size: int | None = None) -> dict[str, np.ndarray]:
    """Return the kernels' transfer functions.

    A wave of `f` cycles per token, far from the border, comes out of the operator
    multiplied by

        response[f] = sum over m, n of kernel[m, n] * exp(2 pi i (f_row (m - kh//2)
                                                                + f_column (n - kw//2)))

    What the layer's projections and the residual connection add is not in it.

    Args:
        model: See `keras_lkca.interpret.mixing_layers`.
        size: Positive integer, how many frequencies per axis. Defaults to 64, or the
            largest extent of a kernel where that is more.

    Returns:
        Dict of complex arrays `(num_kernels, size, size)` by layer, frequency zero in
        the middle as `numpy.fft.fftshift` has it; and `"frequencies"`, an array
        `(2, size)` of the rows' and the columns', in cycles per token.

    Raises:
        ValueError: If the model has no LKCA layers, or `size` is smaller than a
            kernel.

    Example:

    >>> from keras_lkca import LKCAViT, interpret
    >>> response = interpret.frequency_response(LKCAViT(depth=1))
    >>> response["block_0_lkca"].shape
    (1, 64, 64)
    """
    found = kernels(model)
    extent = max(max(kernel.shape[:2]) for kernel in found.values())
    size = max(64, extent) if size is None else check_positive_int("size", size)
    if size < extent:
        raise ValueError(
            f"`size` must be at least the kernels' extent, {extent}. "
            f"Received: size={size}"
        )
    frequencies = np.fft.fftshift(np.fft.fftfreq(size))
    results = {"frequencies": np.stack([frequencies, frequencies])}
    for name, kernel in found.items():
        kernel = np.moveaxis(kernel.astype("float64"), -1, 0)
        padded = np.zeros((len(kernel), size, size))
        padded[:, : kernel.shape[1], : kernel.shape[2]] = kernel
        centre = (-(kernel.shape[1] // 2), -(kernel.shape[2] // 2))
        padded = np.roll(padded, centre, (1, 2))
        # The operator correlates: the sign of the exponent is that of the inverse.
        response = np.fft.ifft2(padded) * size**2
        results[name] = np.fft.fftshift(response, (1, 2))
    return results
