"""What every method does to a kernel first: check it, fit it to the grid."""

from keras import ops

from keras_lkca.backend import sizes


def check_operands(inputs, kernel):
    """Raise a `ValueError` unless the operands fit the operator's definition."""
    if len(inputs.shape) != 4:
        raise ValueError(
            "`inputs` must have rank 4, (batch, height, width, channels). "
            f"Received: inputs.shape={tuple(inputs.shape)}"
        )
    groups = check_kernel(kernel)[-1]
    channels = sizes(inputs)[-1]
    if channels is None or channels % groups:
        raise ValueError(
            "The last axis of `kernel`, its groups, must divide the channels of "
            f"`inputs`. Received: inputs.shape={tuple(inputs.shape)}, "
            f"kernel.shape={tuple(kernel.shape)}"
        )


def check_kernel(kernel):
    """Return a kernel's shape, or raise a `ValueError`: it is (odd, odd, groups)."""
    shape = tuple(sizes(kernel))
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
    return shape


def fit_kernel(kernel, height, width):
    """Crop or zero-pad a kernel about its centre to (height, width, groups).

    Sizes must be odd. Offsets that are cut off reach outside the grid from every
    position; offsets that are added weigh zero. Neither changes the operator.
    """
    kernel = crop_kernel(kernel, height, width)
    pads = [
        ((size - extent) // 2,) * 2
        for size, extent in zip((height, width), sizes(kernel)[:2], strict=True)
    ]
    return ops.pad(kernel, [*pads, (0, 0)]) if any(map(any, pads)) else kernel


def crop_kernel(kernel, height, width):
    """Crop a kernel about its centre to at most (height, width, groups)."""
    extents = sizes(kernel)[:2]
    window = [
        slice(max(extent - size, 0) // 2, (extent + min(extent, size)) // 2)
        for size, extent in zip((height, width), extents, strict=True)
    ]
    if all(w.stop - w.start == n for w, n in zip(window, extents, strict=True)):
        return kernel
    return kernel[tuple(window)]


def windows(x, size, axis, step=1):
    """Turn a last axis of offsets into a Toeplitz matrix, its rows at `axis`.

    Row i of the matrix is the window of `size` offsets, each `step` numbers, that
    begins at offset `size - 1 - i`. Slices beat a gather: their gradient adds
    windows up where a gather's scatters number by number.
    """
    rows = [
        x[..., (size - 1 - i) * step : (2 * size - 1 - i) * step] for i in range(size)
    ]
    return ops.stack(rows, axis=axis)
