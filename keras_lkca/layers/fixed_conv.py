import keras

from keras_lkca import ops
from keras_lkca.backend import constant, device_kind
from keras_lkca.checks import check_divides, check_pair, check_positive_int
from keras_lkca.ops import hybrid, plan, toeplitz
from keras_lkca.ops.conv import check_method

# Matrices that follow from a kernel are kept up to this size per layer.
MAX_KEPT_BYTES = 2**24


@keras.saving.register_keras_serializable(package="keras_lkca")
class FixedConv(keras.layers.Layer):
    """The operator with a kernel that no longer changes.

    `outputs = large_kernel_conv(inputs, kernel) + bias`, where what follows from the
    kernel alone, its attention matrix or its transform, is computed when the weights
    are set or loaded, and not at every call. Where the variables are assigned in
    another way, as by a model around this one, call `prepare()` afterwards.

    Args:
        kernel_size: Pair of odd integers.
        num_kernels: Positive integer that divides the channels.
        use_bias: Whether a bias for each channel is added.
        method: See `keras_lkca.ops.large_kernel_conv`.
        **kwargs: Keras's own layer arguments.

    Input shape:
        `(batch, height, width, channels)`, all but the batch static.

    Output shape:
        The input shape.

    Raises:
        ValueError: If the input's shape is not as above.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.layers import FixedConv
    >>> tuple(FixedConv((3, 3))(np.ones((2, 4, 6, 8), "float32")).shape)
    (2, 4, 6, 8)

    References:
        - Li et al., "Interpreting and Improving Attention From the Perspective of
          Large Kernel Convolution", [arXiv 2401.05738](
          https://arxiv.org/abs/2401.05738), method section.
    """

    def __init__(
        self, kernel_size, num_kernels=1, use_bias=False, method="auto", **kwargs
    ):
        super().__init__(**kwargs)
        check_method(method)
        self.kernel_size = check_pair("kernel_size", kernel_size)
        self.num_kernels = check_positive_int("num_kernels", num_kernels)
        self.use_bias = use_bias
        self.method = method
        self._kept = None

    def build(self, input_shape):
        """Create the kernel, and choose how it is applied."""
        if None in input_shape[1:]:
            raise ValueError(
                "FixedConv needs a static height, width and channels. "
                f"Received: input_shape={tuple(input_shape)}"
            )
        _, height, width, channels = input_shape
        check_divides("num_kernels", self.num_kernels, "channels", channels)
        self.kernel = self.add_weight(
            name="kernel",
            shape=(*self.kernel_size, self.num_kernels),
            initializer="zeros",
            trainable=False,
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(channels,), initializer="zeros", trainable=False
            )
        self.grid = height, width
        self.input_spec = keras.layers.InputSpec(shape=(None, *input_shape[1:]))
        self._resolved = self.method
        if self.method == "auto":
            self._resolved = plan.choose_method(
                *(height, width, channels),
                kernel_size=self.kernel_size,
                groups=self.num_kernels,
                dtype=self.compute_dtype,
                training=False,
                backend=keras.config.backend(),
                device=device_kind(),
            )

    @property
    def planned_method(self):
        """The method that the layer, which is built, takes."""
        return self._resolved

    def prepare(self):
        """Compute what follows from the kernel, where it is worth keeping."""
        height, width = self.grid
        kernel = keras.ops.convert_to_tensor(self.kernel)
        kept = ()
        if self._resolved == "toeplitz":
            kept = (ops.attention_matrix(kernel, height, width),)
        elif self._resolved == "hybrid" and self.compute_dtype != "float64":
            kept = hybrid.matrices(kernel, height, width, "float32")
        kept = [keras.ops.convert_to_numpy(array) for array in kept]
        small = sum(array.nbytes for array in kept) <= MAX_KEPT_BYTES
        dtype = None
        if self._resolved == "hybrid":
            dtype = hybrid.product_dtype(self.compute_dtype)
        kept = [constant(array, dtype) for array in kept]
        self._kept = kept if kept and small else None

    def compute_by(self, method):
        """Compute the same by another method, one but `"auto"`, from now on."""
        self.method = self._resolved = method
        self.prepare()

    def set_weights(self, weights):
        """Set the kernel and the bias, and compute what follows."""
        super().set_weights(weights)
        self.prepare()

    def load_own_variables(self, store):
        """Load the kernel, and compute what follows from it."""
        super().load_own_variables(store)
        self.prepare()

    def call(self, inputs):
        """Mix the tokens of a feature map."""
        dtype = inputs.dtype
        if self._kept is None:
            outputs = ops.large_kernel_conv(
                inputs, self.kernel, self._resolved, training=False
            )
        elif self._resolved == "toeplitz":
            outputs = toeplitz.apply_matrix(
                inputs, keras.ops.convert_to_tensor(self._kept[0], dtype)
            )
        else:
            inside = hybrid.product_dtype(
                keras.backend.standardize_dtype(dtype), inputs
            )
            kept = [keras.ops.convert_to_tensor(array, inside) for array in self._kept]
            outputs = hybrid.apply_matrices(keras.ops.cast(inputs, inside), *kept)
            outputs = keras.ops.cast(outputs, dtype)
        if self.use_bias:
            outputs = outputs + keras.ops.cast(self.bias, dtype)
        return outputs

    def compute_output_shape(self, input_shape):
        """Return the input shape."""
        return input_shape

    def get_config(self):
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "num_kernels": self.num_kernels,
            "use_bias": self.use_bias,
            "method": self.method,
        }
