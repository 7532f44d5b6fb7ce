"""The convolution view: a depthwise convolution with a very large kernel."""

from keras import ops

from keras_lkca.backend import sizes
from keras_lkca.ops.kernels import crop_kernel


def convolve(inputs, kernel):
    """Apply the operator as `keras.ops.depthwise_conv`; any dynamic shape."""
    height, width = inputs.shape[1:3]
    kernel_height, kernel_width, groups = sizes(kernel)
    # What a compiler or a trace holds for any number crops nothing.
    kernel = crop_kernel(
        kernel,
        2 * height - 1 if isinstance(height, int) else kernel_height,
        2 * width - 1 if isinstance(width, int) else kernel_width,
    )
    kernel = ops.repeat(kernel, sizes(inputs)[-1] // groups, axis=2)
    return ops.depthwise_conv(
        inputs,
        ops.expand_dims(kernel, -1),
        padding="same",
        data_format="channels_last",
    )
