"""The operator of LKCA: a convolution with a kernel as large as the grid."""

import keras
from keras import ops

from keras_lkca.backend import device_kind, sizes
from keras_lkca.ops import depthwise, hybrid, plan, spectral, toeplitz
from keras_lkca.ops.kernels import check_operands

METHODS = ("auto", *plan.METHODS)


def check_method(method):
    """Raise a `ValueError` unless `method` names a way to compute the operator."""
    if method not in METHODS:
        raise ValueError(
            f"`method` must be one of {', '.join(map(repr, METHODS))}. "
            f"Received: method={method!r}"
        )


def large_kernel_conv(inputs, kernel, method="auto", training=None):
    """Mix the tokens of a grid by a learned weight for every relative position.

    `out[b, i, j, c] = sum over m, n of
    kernel[m, n, g(c)] * inputs[b, i + m - kh // 2, j + n - kw // 2, c]`

    where channel `c` belongs to group `g(c) = c // (channels // groups)` and the
    inputs are zero outside the grid: an unflipped "same" convolution
    (cross-correlation). One group is the paper's LKCA, `groups == channels` a
    depthwise convolution, and anything between has one kernel per head.

    All methods compute the same function up to rounding:

    - `"depthwise"`, the convolution view: `keras.ops.depthwise_conv`; takes a
      dynamic height and width
    - `"toeplitz"`, the attention view: the kernel becomes an attention matrix
      (see `keras_lkca.ops.attention_matrix`) that one GEMM applies
    - `"spectral"`, the Fourier view: a product of spectra, by fast Fourier
      transforms; memory linear in the tokens
    - `"hybrid"`, Fourier down the columns and Toeplitz along the rows, all as
      matrix products
    - `"auto"` takes the one that should be fastest for the shape, backend and
      device; `keras_lkca.ops.explain_plan` says which and why

    `"spectral"` computes half precision in float32. So does `"hybrid"`, but for
    bfloat16 where that is faster: under torch and TensorFlow on a processor that
    multiplies it, and on accelerators. The error of a token is then relative to the
    largest of its column. Rounding is that of the backend's own products, which
    accelerators may do in less than float32.

    Args:
        inputs: Tensor of shape `(batch, height, width, channels)`, in a
            floating-point dtype.
        kernel: Tensor of shape `(kh, kw, groups)`, `kh` and `kw` odd, `groups` a
            divisor of `channels`; cast to the dtype of `inputs`. A kernel of
            `(2 * height - 1, 2 * width - 1)` joins every token to every other.
        method: One of the names above.
        training: Whether gradients are going to be taken; `"auto"` then chooses for
            both passes. `None` is not known.

    Returns:
        Tensor of the shape and dtype of `inputs`, any floating-point one.

    Raises:
        ValueError: If a shape, the dtype or the method is not as above, or if
            any but `"depthwise"` and `"auto"` meets a dynamic height or width.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.ops import large_kernel_conv
    >>> images = np.ones((2, 4, 6, 8), "float32")
    >>> kernel = np.ones((7, 11, 1), "float32")
    >>> sums = large_kernel_conv(images, kernel)  # of a channel, at every token
    >>> round(float(sums[0, 0, 0, 0]), 4)
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
    if method not in ("auto", "depthwise") and None in inputs.shape[1:3]:
        raise ValueError(
            f"method {method!r} needs a static height and width; use 'depthwise' or "
            f"'auto'. Received: inputs.shape={tuple(inputs.shape)}"
        )
    if isinstance(inputs, keras.KerasTensor) or isinstance(kernel, keras.KerasTensor):
        return LargeKernelConv(method, training).symbolic_call(inputs, kernel)
    return _apply(inputs, kernel, dtype, method, training)


@keras.saving.register_keras_serializable(package="keras_lkca")
class LargeKernelConv(keras.Operation):
    """The operator as a node of a functional model."""

    def __init__(self, method, training, name=None):
        super().__init__(name=name)
        self.method = method
        self.training = training

    def call(self, inputs, kernel):
        """Mix the tokens."""
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        return _apply(inputs, kernel, dtype, self.method, self.training)

    def compute_output_spec(self, inputs, kernel):
        """Return the inputs' shape and dtype."""
        return keras.KerasTensor(inputs.shape, inputs.dtype)


def _apply(inputs, kernel, dtype, method, training):
    kernel = ops.cast(kernel, dtype)
    if method == "auto":
        # What a compiler holds for any number, such as a batch, is not known.
        batch, height, width, channels = (
            size if isinstance(size, int) else None
            for size in (inputs.shape[0], *sizes(inputs)[1:])
        )
        *kernel_size, groups = sizes(kernel)
        method = plan.choose_method(
            height,
            width,
            channels,
            batch=batch,
            kernel_size=kernel_size,
            groups=groups,
            dtype=dtype,
            training=training,
            backend=keras.config.backend(),
            device=device_kind(inputs),
        )
    batch = inputs.shape[0]  # no number where it is traced
    if method == "spectral" and isinstance(batch, int) and batch == 0:
        method = "hybrid"  # not every library transforms an empty batch
    if method in ("hybrid", "spectral") and dtype != "float64":
        # The kernel's transform takes little, so it is computed in float32.
        inside = "float32"
        if method == "hybrid":
            inside = hybrid.product_dtype(dtype, inputs)
        inputs, kernel = ops.cast(inputs, inside), ops.cast(kernel, "float32")
    convolve = {
        "depthwise": depthwise.convolve,
        "toeplitz": toeplitz.convolve,
        "hybrid": hybrid.convolve,
        "spectral": spectral.convolve,
    }[method]
    # Keras's products of float64 come in float32.
    return ops.cast(convolve(inputs, kernel), dtype)


def _as_tensor(x):
    return x if isinstance(x, keras.KerasTensor) else ops.convert_to_tensor(x)
