"""The attention view: the kernel written out as an attention matrix, one GEMM."""

from keras import ops

from keras_lkca.backend import batches_products, sizes
from keras_lkca.checks import check_positive_int
from keras_lkca.ops.kernels import check_kernel, fit_kernel, windows


def convolve(inputs, kernel):
    """Apply the operator as a matrix product; height and width must be static."""
    return apply_matrix(inputs, attention_matrix(kernel, *sizes(inputs)[1:3]))


def apply_matrix(inputs, matrix):
    """Mix the tokens by attention matrices `(groups, tokens, tokens)`."""
    height, width, channels = sizes(inputs)[1:]
    groups, tokens = sizes(matrix)[:2]
    group_channels = channels // groups
    if groups == 1 and batches_products():
        values = ops.matmul(matrix, ops.reshape(inputs, (-1, tokens, channels)))
        return ops.reshape(values, (-1, height, width, channels))
    batch = inputs.shape[0]
    # Tokens go first, so that the batch joins the channels in one large GEMM. A
    # product batched over the images would be as fast forward, but its gradient
    # would hold one (HW, HW) matrix an image.
    # A batch that is not known LiteRT's converter loses in a product of two matrices.
    if groups == 1 and batch is not None:
        values = ops.transpose(inputs, (1, 2, 0, 3))
        values = ops.matmul(matrix[0], ops.reshape(values, (tokens, -1)))
        values = ops.reshape(values, (height, width, batch, channels))
        return ops.transpose(values, (2, 0, 1, 3))
    values = ops.reshape(inputs, (-1, tokens, groups, group_channels))
    values = ops.reshape(ops.transpose(values, (2, 1, 0, 3)), (groups, tokens, -1))
    values = ops.reshape(
        ops.matmul(matrix, values), (groups, tokens, -1, group_channels)
    )
    values = ops.transpose(values, (2, 1, 0, 3))
    return ops.reshape(values, (-1, height, width, channels))


def attention_matrix(kernel, height, width):
    """Write a kernel out as the attention matrix that it stands for.

    `A[g, (i, j), (k, l)] = kernel[k - i + kh // 2, l - j + kw // 2, g]`, and zero
    where that index falls outside the kernel: how much the token at row `i`,
    column `j` of the grid takes from the token at row `k`, column `l`. Both pairs
    count row by row.

    Args:
        kernel: Tensor of shape `(kh, kw, groups)`, `kh` and `kw` odd.
        height: Positive integer, the rows of the token grid.
        width: Positive integer, the columns of the token grid.

    Returns:
        Tensor of shape `(groups, height * width, height * width)` in the
        kernel's dtype; axis 1 is the query, axis 2 the key. It takes
        `groups * (height * width) ** 2` numbers of memory.

    Raises:
        ValueError: If the kernel is not (odd, odd, groups), or a size of the grid
            is not a positive integer.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.ops import attention_matrix
    >>> kernel = np.arange(9, dtype="float32").reshape(3, 3, 1)
    >>> matrix = attention_matrix(kernel, 1, 3)
    >>> np.array(matrix[0]).tolist()
    [[4.0, 5.0, 0.0], [3.0, 4.0, 5.0], [0.0, 3.0, 4.0]]

    References:
        - Li et al., "Interpreting and Improving Attention From the Perspective of
          Large Kernel Convolution", [arXiv 2401.05738](
          https://arxiv.org/abs/2401.05738), method section.
    """
    kernel = ops.convert_to_tensor(kernel)
    groups = check_kernel(kernel)[-1]
    height = check_positive_int("height", height)
    width = check_positive_int("width", width)
    tokens = height * width
    kernel = ops.transpose(fit_kernel(kernel, 2 * height - 1, 2 * width - 1), (2, 0, 1))
    matrix = windows(kernel, width, axis=1)  # g, j, row offset, l
    matrix = ops.reshape(matrix, (groups, width, -1))
    matrix = windows(matrix, height, axis=1, step=width)  # g, i, j, (k, l)
    return ops.reshape(matrix, (groups, tokens, tokens))
