"""The Fourier view: a product of spectra."""

from keras import ops

from keras_lkca.backend import inverse_spectrum, sizes, spectrum
from keras_lkca.ops.kernels import crop_kernel


def convolve(inputs, kernel):
    """Apply the operator by fast Fourier transforms; the grid must be static.

    Memory is linear in the tokens, whatever the size of the kernel. The transforms
    are as long as the linear convolution needs where it is kept: what wraps around
    lands outside the window. Operands in float32 or float64.
    """
    height, width, channels = sizes(inputs)[1:]
    kernel = crop_kernel(kernel, 2 * height - 1, 2 * width - 1)
    kernel_height, kernel_width, groups = sizes(kernel)
    top, left = kernel_height // 2, kernel_width // 2
    lengths = fft_length(height + top), fft_length(width + left)
    # Flipped, since a product of spectra convolves and the operator correlates.
    weights = ops.transpose(ops.flip(kernel, (0, 1)), (2, 0, 1))
    weights = spectrum(ops.expand_dims(weights, 1), lengths)
    values = ops.transpose(inputs, (0, 3, 1, 2))
    values = ops.reshape(values, (-1, groups, channels // groups, height, width))
    values = spectrum(values, lengths) * weights
    window = slice(top, top + height), slice(left, left + width)
    values = inverse_spectrum(values, lengths, window)
    values = ops.reshape(values, (-1, channels, height, width))
    return ops.transpose(values, (0, 2, 3, 1))


def fft_length(size):
    """Return the smallest even length of factors 2, 3 and 5 that holds `size`."""
    length = size + size % 2
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 2
