"""What every method does to a kernel first: check it, fit it to the grid."""

from keras import ops


def check_operands(inputs, kernel):
    """Raise a `ValueError` unless the operands fit the operator's definition."""
    if len(inputs.shape) != 4:
        raise ValueError(
            "`inputs` must have rank 4, (batch, height, width, channels). "
            f"Received: inputs.shape={tuple(inputs.shape)}"
        )
    check_kernel(kernel)
    channels, groups = inputs.shape[-1], kernel.shape[-1]
    if channels is None or channels % groups:
        raise ValueError(
            "The last axis of `kernel`, its groups, must divide the channels of "
            f"`inputs`. Received: inputs.shape={tuple(inputs.shape)}, "
            f"kernel.shape={tuple(kernel.shape)}"
        )


def check_kernel(kernel):
    """Raise a `ValueError` unless the kernel is (odd, odd, groups)."""
    shape = tuple(kernel.shape)
    if len(shape) != 3 or not all(isinstance(size, int) and size for size in shape):
        raise ValueError(
            "`kernel` must have rank 3, (kernel_height, kernel_width, groups), and "
            f"a static shape. Received: kernel.shape={shape}"
        )
    if shape[0] % 2 == 0 or shape[1] % 2 == 0:
        raise ValueError(
            "`kernel` must have odd extents, so that it has a centre; pad an even "
            f"one with a row or column of zeros. Received: kernel.shape={shape}"
        )


def fit_kernel(kernel, height, width):
    """Crop or zero-pad a kernel about its centre to (height, width, groups).

    Sizes must be odd. Offsets that are cut off reach outside the grid from every
    position; offsets that are added weigh zero. Neither changes the operator.
    """
    for axis, size in ((0, height), (1, width)):
        margin = (size - kernel.shape[axis]) // 2
        if margin < 0:
            window = [slice(None)] * 3
            window[axis] = slice(-margin, margin)
            kernel = kernel[tuple(window)]
        elif margin > 0:
            pads = [(0, 0)] * 3
            pads[axis] = (margin, margin)
            kernel = ops.pad(kernel, pads)
    return kernel
