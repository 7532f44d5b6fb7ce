"""Half Fourier, half Toeplitz: all of it matrix products, of far fewer numbers."""

import math

from keras import ops

from keras_lkca.backend import multiplies_bfloat16, sizes
from keras_lkca.ops.kernels import crop_kernel, fit_kernel, windows


def convolve(inputs, kernel):
    """Apply the operator by a transform down the columns; the grid must be static.

    A Fourier transform along the height turns the convolution into one along the
    width alone for each frequency, a small Toeplitz matrix. The transform is a
    matrix product too, real and imaginary parts as rows of one real matrix.
    Multiplications a channel: about `4 * H * W * (H + W)` for a global kernel, where
    `toeplitz` takes `(H * W) ** 2`. The kernel in float32 or float64, the inputs too or
    in what `product_dtype` says.
    """
    found = matrices(kernel, *sizes(inputs)[1:3], kernel.dtype)
    return apply_matrices(inputs, *(ops.cast(x, inputs.dtype) for x in found))


def product_dtype(dtype, inputs=None):
    """Return in which dtype to multiply, for inputs of a dtype.

    In bfloat16 where it is faster. A product sums in float32, and what comes out is
    rounded three times. As a spectrum is rounded, the error of a token is relative to
    the largest of its column: where that is no more than ten times as large as the
    others, as behind a normalisation, to twice the rounding of the token itself. In
    float16 the sums over a column could overflow.

    Example:

    >>> from keras_lkca.ops.hybrid import product_dtype
    >>> product_dtype("float64"), product_dtype("float16")
    ('float64', 'float32')
    """
    if dtype == "float64" or (dtype == "bfloat16" and multiplies_bfloat16(inputs)):
        return dtype
    return "float32"


def matrices(kernel, height, width, dtype):
    """Return all that follows from the kernel and the grid alone.

    Returns:
        The transform of the inputs, a matrix a group and frequency, and the transform
        back: what `apply_matrices` takes.
    """
    kernel = crop_kernel(kernel, 2 * height - 1, 2 * width - 1)
    kernel_height, _, groups = sizes(kernel)
    forward, of_kernel, inverse = transforms(height, kernel_height, dtype)
    frequencies = sizes(forward)[0] // 2
    # One (2W, 2W) matrix a group and frequency: [[re, -im], [im, re]] of the kernel.
    kernel = fit_kernel(kernel, kernel_height, 2 * width - 1)
    kernel = ops.matmul(of_kernel, ops.transpose(kernel, (2, 0, 1)))
    kernel = ops.reshape(kernel, (groups, frequencies, 2, 2, 2 * width - 1))
    matrix = ops.reshape(
        windows(kernel, width, axis=3), (groups, frequencies, 2 * width, 2 * width)
    )
    return forward, matrix, inverse


def apply_matrices(inputs, forward, matrix, inverse):
    """Transform the columns, mix the rows of each frequency, transform back."""
    height, width, channels = sizes(inputs)[1:]
    groups, frequencies = sizes(matrix)[:2]
    # Groups and height first: every product then runs over whole rows of numbers.
    values = ops.reshape(inputs, (-1, height, width, groups, channels // groups))
    values = ops.reshape(ops.transpose(values, (3, 1, 2, 0, 4)), (groups, height, -1))
    values = _product(forward, values)
    values = ops.reshape(values, (groups, frequencies, 2 * width, -1))
    values = ops.matmul(matrix, values)
    values = _product(inverse, ops.reshape(values, (groups, 2 * frequencies, -1)))
    values = ops.reshape(values, (groups, height, width, -1, channels // groups))
    return ops.reshape(
        ops.transpose(values, (3, 1, 2, 0, 4)), (-1, height, width, channels)
    )


def _product(matrix, values):
    """Apply one matrix to every group; a broadcast product copies its operands."""
    groups = sizes(values)[0]
    if groups == 1:
        return ops.expand_dims(ops.matmul(matrix, values[0]), 0)
    matrix = ops.broadcast_to(matrix, (groups, *sizes(matrix)))
    return ops.matmul(matrix, values)


def transforms(height, kernel_height, dtype):
    """Return the transforms of the inputs, of the kernel, and back.

    The length is odd, so that only frequency 0 lacks an imaginary part, and long
    enough that what wraps around lands outside the grid.

    Returns:
        Tensors `(2 * F, height)`, `(4 * F, kernel_height)` and `(height, 2 * F)`,
        for `F` frequencies. Rows, or columns of the last, count frequency by
        frequency; the kernel's four are re, -im, im, re.
    """
    reach = kernel_height // 2
    frequencies = (height + reach) // 2 + 1
    length = 2 * frequencies - 1

    def waves(first, last):
        # Whole turns are taken off while they are integers, and exact.
        steps = ops.expand_dims(ops.arange(frequencies), 1) * ops.arange(first, last)
        angle = ops.cast(ops.mod(steps, length), dtype) * (2 * math.pi / length)
        return ops.cos(angle), ops.sin(angle)

    cos, sin = waves(0, height)
    forward = ops.stack([cos, -sin], axis=1)
    # Each frequency but 0 stands for its negative too.
    share = ops.cast(ops.minimum(ops.arange(frequencies), 1) + 1, dtype) / length
    inverse = forward * ops.reshape(share, (-1, 1, 1))
    # A correlation: the kernel's spectrum is conjugated.
    re, im = waves(-reach, reach + 1)
    of_kernel = ops.stack([re, -im, im, re], axis=1)
    return (
        ops.reshape(forward, (-1, height)),
        ops.reshape(of_kernel, (-1, kernel_height)),
        ops.transpose(ops.reshape(inverse, (-1, height))),
    )
