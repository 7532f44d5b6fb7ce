"""Which method `method="auto"` takes."""

import keras

# All groups' attention matrices of one layer together. At 64 x 64 tokens one matrix
# in float32 takes 64 MiB, at 128 x 128 it takes 1 GiB.
MAX_MATRIX_BYTES = 256 * 2**20


def choose_method(height, width, groups, itemsize, xla_on_cpu):
    """Choose the method for a grid; a pure function of its arguments.

    - Dynamic height or width: `"depthwise"`, the only method that takes them.
    - XLA on a CPU: `"toeplitz"`. Depthwise convolutions that XLA compiles for a
      CPU are hundreds of times slower than the matrix product.
    - Otherwise `"toeplitz"` while the matrices of all groups together take at most
      `MAX_MATRIX_BYTES`, else `"depthwise"`.

    Args:
        height: Rows of the token grid, `None` if dynamic.
        width: Columns of the token grid, `None` if dynamic.
        groups: Number of kernels.
        itemsize: Bytes of one number.
        xla_on_cpu: Whether XLA may compile the operator for a CPU.

    Returns:
        `"depthwise"` or `"toeplitz"`.

    Example:

    >>> from keras_lkca.ops.plan import choose_method
    >>> choose_method(8, 8, groups=1, itemsize=4, xla_on_cpu=False)
    'toeplitz'
    >>> choose_method(None, None, groups=1, itemsize=4, xla_on_cpu=False)
    'depthwise'
    """
    if height is None or width is None:
        return "depthwise"
    if xla_on_cpu or groups * (height * width) ** 2 * itemsize <= MAX_MATRIX_BYTES:
        return "toeplitz"
    return "depthwise"


def xla_on_cpu():
    """Whether XLA may compile the operator for a CPU.

    JAX always compiles with XLA. TensorFlow on a CPU does so for models compiled
    with `jit_compile=True`, which cannot be seen from within the operator.
    """
    if keras.config.backend() not in ("tensorflow", "jax"):
        return False
    return keras.distribution.list_devices()[0].lower().startswith("cpu")
