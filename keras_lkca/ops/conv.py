"""The operator of LKCA: a convolution with a kernel as large as the grid."""

import re

import keras
from keras import ops

from keras_lkca.ops.depthwise import depthwise
from keras_lkca.ops.kernels import check_operands
from keras_lkca.ops.plan import choose_method, xla_on_cpu
from keras_lkca.ops.toeplitz import toeplitz

METHODS = ("auto", "depthwise", "toeplitz")


def check_method(method):
    """Raise a `ValueError` unless `method` names a way to compute the operator."""
    if method not in METHODS:
        raise ValueError(
            f"`method` must be one of {', '.join(map(repr, METHODS))}. "
            f"Received: method={method!r}"
        )


def large_kernel_conv(inputs, kernel, method="auto"):
    """Mix the tokens of a grid by a learned weight for every relative position.

    `out[b, i, j, c] = sum over m, n of
    kernel[m, n, g(c)] * inputs[b, i + m - kh // 2, j + n - kw // 2, c]`

    where channel `c` belongs to group `g(c) = c // (channels // groups)` and the
    inputs are zero outside the grid: an unflipped "same" convolution
    (cross-correlation). One group is the paper's LKCA, `groups == channels` a
    depthwise convolution, and anything between has one kernel a head.

    All methods compute the same function up to rounding:

    - `"depthwise"`, the convolution view: `keras.ops.depthwise_conv`; takes a
      dynamic height and width
    - `"toeplitz"`, the attention view: the kernel becomes an attention matrix
      (see `keras_lkca.ops.attention_matrix`) that one GEMM applies
    - `"auto"` chooses by shape, backend and device; see
      `keras_lkca.ops.plan.choose_method`

    Args:
        inputs: Tensor of shape `(batch, height, width, channels)`, in a
            floating-point dtype.
        kernel: Tensor of shape `(kh, kw, groups)`, `kh` and `kw` odd, `groups` a
            divisor of `channels`; cast to the dtype of `inputs`. A kernel of
            `(2 * height - 1, 2 * width - 1)` joins every token to every other.
        method: `"auto"`, `"depthwise"` or `"toeplitz"`.

    Returns:
        Tensor of the shape and dtype of `inputs`: float32, bfloat16 or float16.

    Raises:
        ValueError: If a shape, the dtype or the method is not as above, or if
            `"toeplitz"` meets a dynamic height or width.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.ops import large_kernel_conv
    >>> images = np.ones((2, 4, 6, 8), "float32")
    >>> kernel = np.ones((7, 11, 1), "float32")
    >>> float(large_kernel_conv(images, kernel)[0, 0, 0, 0])  # the sum of a channel
    24.0

    References:
        - Li et al., "Interpreting and Improving Attention From the Perspective of
          Large Kernel Convolution", [arXiv 2401.05738](
          https://arxiv.org/abs/2401.05738), method section.
    """
    check_method(method)
    inputs = _as_tensor(inputs)
    kernel = _as_tensor(kernel)
    check_operands(inputs, kernel)
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise ValueError(
            "`inputs` must have a floating-point dtype; cast them first. "
            f"Received: inputs.dtype={dtype}"
        )
    kernel = ops.cast(kernel, dtype)
    height, width = inputs.shape[1:3]
    if method == "auto":
        method = choose_method(
            height, width, kernel.shape[-1], _itemsize(dtype), xla_on_cpu()
        )
    if method == "depthwise":
        return depthwise(inputs, kernel)
    if height is None or width is None:
        raise ValueError(
            "method 'toeplitz' needs a static height and width; use 'depthwise' or "
            f"'auto'. Received: inputs.shape={tuple(inputs.shape)}"
        )
    return toeplitz(inputs, kernel)


def _as_tensor(x):
    return x if keras.backend.is_keras_tensor(x) else ops.convert_to_tensor(x)


def _itemsize(dtype):
    return int(re.search(r"\d+", dtype)[0]) // 8
