import keras
from keras import ops

from keras_lkca.checks import (
    check_choice,
    check_divides,
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


@keras.saving.register_keras_serializable(package="keras_lkca")
class SelfAttention(HoldsDense, keras.layers.Layer):
    """Multi-head softmax self-attention, the attention LKCA is compared with.

    `out = concat over heads h of softmax(Q[h] @ K[h]^T / sqrt(d)) @ V[h], @ O + b`

    with `Q, K, V` one joint projection of the tokens without a bias and `d` the
    channels of a head. `keras.layers.MultiHeadAttention` has a bias either on all
    four projections or on none; the vision transformers of the comparison have it
    on the last alone.

    Args:
        num_heads: Positive integer that divides the channels.
        use_bias: Whether the output projection has a bias.
        dropout_rate: Float in [0, 1], dropout on the layer's output.
        projection_initializer: Initializer of the projections.
        bias_initializer: Initializer of the bias.
        seed: Integer or `None`, seed of the dropout.
        **kwargs: Keras's own layer arguments, such as `name` and `dtype`.

    Attributes:
        rematerialize: Whether training keeps the inputs alone, and computes the rest
            again for the gradient. `False`, unless `keras_lkca.training.fit` is told.

    Call arguments:
        inputs: The tokens.
        training: Whether dropout is active.

    Input shape:
        `(batch, tokens, channels)`, channels static.

    Output shape:
        The input shape.

    Raises:
        ValueError: If an argument is not as above, the input is not of rank 3 with
            static channels, or `num_heads` does not divide them.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.layers import SelfAttention
    >>> tuple(SelfAttention(num_heads=4)(np.ones((2, 64, 16), "float32")).shape)
    (2, 64, 16)

    References:
        - Vaswani et al., "Attention Is All You Need", [arXiv 1706.03762](
          https://arxiv.org/abs/1706.03762), section 3.2.
    """

    rematerialize = False

    def __init__(
        self,
        num_heads: int,
        use_bias: bool = True,
        dropout_rate: float = 0.0,
        projection_initializer="glorot_normal",
        bias_initializer="zeros",
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = check_positive_int("num_heads", num_heads)
        self.use_bias = use_bias
        self.projection_initializer = check_choice(
            "projection_initializer", projection_initializer, keras.initializers
        )
        self.bias_initializer = check_choice(
            "bias_initializer", bias_initializer, keras.initializers
        )
        self.seed = check_seed(seed)
        self.dropout = keras.layers.Dropout(
            check_rate("dropout_rate", dropout_rate),
            seed=self.seed,
            dtype=self.dtype_policy,
            name="dropout",
        )

    def build(self, input_shape):
        """Create the projections."""
        if len(input_shape) != 3 or input_shape[-1] is None:
            raise ValueError(
                "SelfAttention needs tokens of rank 3 with static channels, (batch, "
                f"tokens, channels). Received: input_shape={tuple(input_shape)}"
            )
        channels = input_shape[-1]
        check_divides("num_heads", self.num_heads, "channels", channels)
        self.query_key_value = TokenDense(
            3 * channels,
            use_bias=False,
            kernel_initializer=fresh(self.projection_initializer),
            dtype=self.dtype_policy,
            name="query_key_value",
        )
        self.query_key_value.build(input_shape)
        self.projection = TokenDense(
            channels,
            use_bias=self.use_bias,
            kernel_initializer=fresh(self.projection_initializer),
            bias_initializer=self.bias_initializer,
            dtype=self.dtype_policy,
            name="projection",
        )
        self.projection.build(input_shape)
        self.dropout.build(input_shape)
        self.dense_built()

    @property
    def dropout_rate(self):
        """The rate of the layer's dropout, which may be set, but not from zero."""
        return self.dropout.rate

    @dropout_rate.setter
    def dropout_rate(self, rate):
        set_dropout_rate(self, rate)

    def call(self, inputs, training=None):
        """Mix the tokens by their similarity."""
        mixed = recomputed(self, training, self._mix, inputs)
        return self.dropout(mixed, training=training)

    def _mix(self, inputs):
        tokens, channels = ops.shape(inputs)[1:]
        query, key, value = self._split(inputs)
        # JAX has no float16 attention on a CPU; bfloat16 is fine everywhere.
        if self.compute_dtype == "float16":
            query, key, value = (ops.cast(x, "float32") for x in (query, key, value))
        mixed = ops.dot_product_attention(query, key, value)
        mixed = ops.reshape(mixed, (-1, tokens, channels))
        mixed = ops.cast(mixed, self.compute_dtype)
        return self.projection(mixed)

    def _split(self, inputs):
        tokens, channels = ops.shape(inputs)[1:]
        joint = ops.reshape(
            self.query_key_value(inputs),
            (-1, tokens, 3, self.num_heads, channels // self.num_heads),
        )
        return ops.unstack(joint, 3, axis=2)

    def attention_weights(self, inputs):
        """Return the softmax with which each token takes in the others.

        Args:
            inputs: The tokens, `(batch, tokens, channels)`.

        Returns:
            float32 tensor `(batch, num_heads, tokens, tokens)`, query by key.
        """
        query, key, _ = self._split(inputs)
        query, key = (ops.cast(x, "float32") for x in (query, key))
        scores = ops.einsum("bqhc,bkhc->bhqk", query, key)
        return ops.softmax(scores / query.shape[-1] ** 0.5)

    def compute_output_shape(self, input_shape):
        """Return the input shape."""
        return input_shape

    def get_config(self):
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "use_bias": self.use_bias,
            "dropout_rate": self.dropout_rate,
            "projection_initializer": keras.initializers.serialize(
                self.projection_initializer
            ),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "seed": self.seed,
        }
