"""The convolution view: a depthwise convolution with a very large kernel."""

from keras import ops

from keras_lkca.ops.kernels import crop_kernel


def convolve(inputs, kernel):
    """Apply the operator as `keras.ops.depthwise_conv`; any dynamic shape."""
    height, width, channels = inputs.shape[1:]
    kernel_height, kernel_width, groups = kernel.shape
    kernel = crop_kernel(
        kernel,
        kernel_height if height is None else 2 * height - 1,
        kernel_width if width is None else 2 * width - 1,
    )
    kernel = ops.repeat(kernel, channels // groups, axis=2)
    return ops.depthwise_conv(
        inputs,
        ops.expand_dims(kernel, -1),
        padding="same",
        data_format="channels_last",
    )
