import keras

from keras_lkca import ops
from keras_lkca.backend import is_traced
from keras_lkca.checks import (
    check_channels_last,
    check_choice,
    check_divides,
    check_feature_map,
    check_kernel_size,
    check_positive_int,
    check_rate,
    check_seed,
)
from keras_lkca.layers.dense import (
    HoldsDense,
    TokenDense,
    fresh,
    recomputed,
    set_dropout_rate,
)
from keras_lkca.ops.conv import check_method


@keras.saving.register_keras_serializable(package="keras_lkca")
class LKCA(HoldsDense, keras.layers.Layer):
    """Large Kernel Convolutional Attention: attention as one large convolution.

    `out = (K * (x @ V)) @ O + b`

    where `V` and `O` are the value and output projections and `K *` mixes the
    tokens by a learned weight for every relative position, the same in every
    image:
    `(K * v)[i, j, c] = sum over m, n of
    K[m, n, g(c)] * v[i + m - kh // 2, j + n - kw // 2, c]`
    (`keras_lkca.ops.large_kernel_conv`). There is no query, no key, no softmax.

    With a gate, which the paper does not have, the weights depend on what a token
    holds as well, as those of attention do:
    `out = ((K * (x @ V)) . activation(x @ G + g)) @ O + b`, number by number.

    With the default `kernel_initializer="zeros"` a new layer returns its bias,
    zero: inside a residual block it starts as the identity.

    A built layer also runs at other grid sizes: offsets that its kernel lacks
    weigh zero.

    Args:
        value_dim: Positive integer, channels of the value projection. Defaults to
            the channels of the input.
        num_kernels: Positive integer that divides `value_dim`. 1 shares one kernel
            among all channels, as in the paper; `value_dim` gives every channel
            its own (a depthwise convolution); a number between gives one to each
            block of `value_dim // num_kernels` channels, as heads do.
        kernel_size: Odd integer or pair of them, the kernel's height and width in
            tokens. `None` is the global kernel, `(2 * height - 1, 2 * width - 1)`
            of the grid it is built on: every token reaches every other.
        use_bias: Whether the output projection has a bias. The value projection
            has none.
        dropout_rate: Float in [0, 1], dropout on the layer's output.
        method: How the operator is computed, see
            `keras_lkca.ops.large_kernel_conv`.
        kernel_initializer: Initializer of the kernel.
        projection_initializer: Initializer of the projections.
        bias_initializer: Initializer of the bias.
        kernel_regularizer: Regularizer of the kernel.
        projection_regularizer: Regularizer of the projections.
        gate_activation: Activation of the gate, such as `"gelu"` or `"sigmoid"`;
            `None` for no gate.
        seed: Integer or `None`, seed of the dropout.
        **kwargs: Keras's own layer arguments, such as `name` and `dtype`.

    Attributes:
        rematerialize: Whether training keeps the inputs alone, and computes the rest
            again for the gradient. `False`, unless `keras_lkca.training.fit` is told.

    Call arguments:
        inputs: The feature map.
        training: Whether dropout is active; `method="auto"` plans for it.

    Input shape:
        `(batch, height, width, channels)`. Channels must be static, and so must
        height and width where `kernel_size` is `None`.

    Output shape:
        The input shape.

    Raises:
        ValueError: If an argument is not as above, if `num_kernels` does not
            divide `value_dim`, if the input is not of rank 4 or a size it needs is
            not static, or if Keras is set to channels_first.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.layers import LKCA
    >>> layer = LKCA()
    >>> tuple(layer(np.ones((2, 4, 6, 16), "float32")).shape)
    (2, 4, 6, 16)
    >>> tuple(layer.kernel.shape), tuple(layer.attention_matrix().shape)
    ((7, 11, 1), (1, 24, 24))

    References:
        - Li et al., "Interpreting and Improving Attention From the Perspective of
          Large Kernel Convolution", [arXiv 2401.05738](
          https://arxiv.org/abs/2401.05738), method section.
        - Dauphin et al., "Language Modeling with Gated Convolutional Networks",
          [arXiv 1612.08083](https://arxiv.org/abs/1612.08083), for the gate.
    """

    rematerialize = False

    def __init__(
        self,
        value_dim: int | None = None,
        num_kernels: int = 1,
        kernel_size: int | tuple[int, int] | None = None,
        use_bias: bool = True,
        dropout_rate: float = 0.0,
        method: str = "auto",
        kernel_initializer="zeros",
        projection_initializer="glorot_normal",
        bias_initializer="zeros",
        kernel_regularizer=None,
        projection_regularizer=None,
        gate_activation=None,
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_channels_last(self)
        check_method(method)
        num_kernels = check_positive_int("num_kernels", num_kernels)
        if value_dim is not None:
            value_dim = check_positive_int("value_dim", value_dim)
            check_divides("num_kernels", num_kernels, "value_dim", value_dim)
        if kernel_size is not None:
            kernel_size = check_kernel_size(kernel_size)
        self.value_dim = value_dim
        self.num_kernels = num_kernels
        self.kernel_size = kernel_size
        self.use_bias = use_bias
        self.method = method
        self.kernel_initializer = check_choice(
            "kernel_initializer", kernel_initializer, keras.initializers
        )
        self.projection_initializer = check_choice(
            "projection_initializer", projection_initializer, keras.initializers
        )
        self.bias_initializer = check_choice(
            "bias_initializer", bias_initializer, keras.initializers
        )
        self.kernel_regularizer = check_choice(
            "kernel_regularizer", kernel_regularizer, keras.regularizers
        )
        self.projection_regularizer = check_choice(
            "projection_regularizer", projection_regularizer, keras.regularizers
        )
        self.gate_activation = gate_activation and check_choice(
            "gate_activation", gate_activation, keras.activations
        )
        self.seed = check_seed(seed)
        self.dropout = keras.layers.Dropout(
            check_rate("dropout_rate", dropout_rate),
            seed=self.seed,
            dtype=self.dtype_policy,
            name="dropout",
        )
        self.input_spec = keras.layers.InputSpec(ndim=4)

    def build(self, input_shape):
        """Create the kernel and the projections for a feature map's shape."""
        static = ("height", "width") if self.kernel_size is None else ()
        check_feature_map(self, input_shape, static)
        _, height, width, channels = input_shape
        value_dim = self.value_dim or channels
        name = "value_dim" if self.value_dim else "channels"
        check_divides("num_kernels", self.num_kernels, name, value_dim)
        self.value = TokenDense(
            value_dim,
            use_bias=False,
            kernel_initializer=fresh(self.projection_initializer),
            kernel_regularizer=self.projection_regularizer,
            dtype=self.dtype_policy,
            name="value",
        )
        self.value.build(input_shape)
        self.kernel = self.add_weight(
            name="kernel",
            shape=(
                *(self.kernel_size or (2 * height - 1, 2 * width - 1)),
                self.num_kernels,
            ),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
        )
        if self.gate_activation is not None:
            self.gate = TokenDense(
                value_dim,
                activation=self.gate_activation,
                kernel_initializer=fresh(self.projection_initializer),
                bias_initializer=self.bias_initializer,
                kernel_regularizer=self.projection_regularizer,
                dtype=self.dtype_policy,
                name="gate",
            )
            self.gate.build(input_shape)
        self.projection = TokenDense(
            channels,
            use_bias=self.use_bias,
            kernel_initializer=fresh(self.projection_initializer),
            bias_initializer=self.bias_initializer,
            kernel_regularizer=self.projection_regularizer,
            dtype=self.dtype_policy,
            name="projection",
        )
        self.projection.build((*input_shape[:-1], value_dim))
        self.dropout.build(input_shape)
        self.dense_built()
        self.grid = (height, width)
        self.input_spec = keras.layers.InputSpec(ndim=4, axes={-1: channels})

    @property
    def dropout_rate(self):
        """The rate of the layer's dropout, which may be set, but not from zero."""
        return self.dropout.rate

    @dropout_rate.setter
    def dropout_rate(self, rate):
        set_dropout_rate(self, rate)

    def call(self, inputs, training=None):
        """Mix the tokens of a feature map."""

        def mix(inputs, kernel):
            return self._mix(inputs, kernel, training)

        mixed = recomputed(self, training, mix, inputs, self.kernel)
        return self.dropout(mixed, training=training)

    def _mix(self, inputs, kernel, training):
        values = self.value(inputs)
        method = self.method
        if method == "auto" and None in self.grid and is_traced():
            method = "depthwise"  # the trace of one grid is to serve any
        values = ops.large_kernel_conv(values, kernel, method, training)
        if self.gate_activation is not None:
            values = values * self.gate(inputs)
        return self.projection(values)

    def attention_matrix(self, height: int | None = None, width: int | None = None):
        """Return the layer's kernels as the attention matrices that they stand for.

        Args:
            height: Rows of the token grid. Defaults to those it was built on.
            width: Columns of the token grid. Defaults to those it was built on.

        Returns:
            Tensor of shape `(num_kernels, height * width, height * width)`, query
            by key; see `keras_lkca.ops.attention_matrix`.

        Raises:
            ValueError: If the layer is not built, or was built on a dynamic grid
                and a size is not given.
        """
        if not self.built:
            raise ValueError(
                f"{type(self).__name__}.attention_matrix() needs a built layer: call "
                "the layer on a feature map, or its build(), first."
            )
        height = self.grid[0] if height is None else height
        width = self.grid[1] if width is None else width
        return ops.attention_matrix(self.kernel, height, width)

    def compute_output_shape(self, input_shape):
        """Return the input shape."""
        return input_shape

    def get_config(self):
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "value_dim": self.value_dim,
            "num_kernels": self.num_kernels,
            "kernel_size": self.kernel_size,
            "use_bias": self.use_bias,
            "dropout_rate": self.dropout_rate,
            "method": self.method,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "projection_initializer": keras.initializers.serialize(
                self.projection_initializer
            ),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "projection_regularizer": keras.regularizers.serialize(
                self.projection_regularizer
            ),
            "gate_activation": self.gate_activation
            and keras.activations.serialize(self.gate_activation),
            "seed": self.seed,
        }
