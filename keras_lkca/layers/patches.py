import keras
from keras import ops

from keras_lkca.backend import sizes
from keras_lkca.checks import (
    check_channels_last,
    check_choice,
    check_feature_map,
    check_pair,
    check_positive_int,
)
from keras_lkca.layers.dense import HoldsDense, TokenDense


@keras.saving.register_keras_serializable(package="keras_lkca")
class PatchEmbedding(HoldsDense, keras.layers.Layer):
    """Cut images into patches and project each to a token.

    `out[b, i, j] = concat(inputs[b, i * p : (i + 1) * p, j * q : (j + 1) * q]) @ W + b`

    for patches of `p` rows and `q` columns: a convolution whose stride is its
    kernel's size, computed as one matrix product.

    Args:
        patch_size: Positive integer or pair of them, a patch's height and width in
            pixels.
        embed_dim: Positive integer, channels of a token.
        kernel_initializer: Initializer of the projection.
        bias_initializer: Initializer of the bias.
        **kwargs: Keras's own layer arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: The images.

    Input shape:
        `(batch, height, width, channels)`, height and width divisible by the patch
        size; all but the batch static.

    Output shape:
        `(batch, height / patch_height, width / patch_width, embed_dim)`.

    Raises:
        ValueError: If an argument is not as above, if the images are not of rank 4
            and static, if patches do not tile them, or if Keras is set to
            channels_first.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.layers import PatchEmbedding
    >>> images = np.ones((2, 32, 48, 3), "float32")
    >>> tuple(PatchEmbedding(patch_size=4, embed_dim=16)(images).shape)
    (2, 8, 12, 16)

    References:
        - Dosovitskiy et al., "An Image is Worth 16x16 Words", [arXiv 2010.11929](
          https://arxiv.org/abs/2010.11929), section 3.1.
    """

    def __init__(
        self,
        patch_size: int | tuple[int, int],
        embed_dim: int,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_channels_last(self)
        self.patch_size = check_pair("patch_size", patch_size)
        self.embed_dim = check_positive_int("embed_dim", embed_dim)
        self.kernel_initializer = check_choice(
            "kernel_initializer", kernel_initializer, keras.initializers
        )
        self.bias_initializer = check_choice(
            "bias_initializer", bias_initializer, keras.initializers
        )
        self.projection = TokenDense(
            self.embed_dim,
            kernel_initializer=self.kernel_initializer,
            bias_initializer=self.bias_initializer,
            dtype=self.dtype_policy,
            name="projection",
        )

    def build(self, input_shape):
        """Create the projection for the images' shape."""
        self._check_tiles(input_shape)
        patch_height, patch_width = self.patch_size
        self.projection.build((None, patch_height * patch_width * input_shape[-1]))
        self.dense_built()

    def call(self, inputs):
        """Cut and project."""
        shape = sizes(inputs)
        self._check_tiles(shape)
        height, width, channels = shape[1:]
        patch_height, patch_width = self.patch_size
        rows, columns = height // patch_height, width // patch_width
        patches = ops.reshape(
            inputs, (-1, rows, patch_height, columns, patch_width, channels)
        )
        patches = ops.transpose(patches, (0, 1, 3, 2, 4, 5))
        patches = ops.reshape(
            patches, (-1, rows, columns, patch_height * patch_width * channels)
        )
        return self.projection(patches)

    def compute_output_shape(self, input_shape):
        """Return (batch, rows, columns, embed_dim)."""
        self._check_tiles(input_shape)
        batch, height, width, _ = input_shape
        patch_height, patch_width = self.patch_size
        return (batch, height // patch_height, width // patch_width, self.embed_dim)

    def _check_tiles(self, input_shape):
        check_feature_map(self, input_shape, ("height", "width"))
        for axis, size, patch in zip(
            ("height", "width"), input_shape[1:3], self.patch_size, strict=True
        ):
            if size % patch:
                raise ValueError(
                    f"The images' {axis} must be divisible by `patch_size`; resize "
                    "or pad the images, or choose another patch. Received: "
                    f"input_shape={tuple(input_shape)}, patch_size={self.patch_size}"
                )

    def get_config(self):
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "patch_size": self.patch_size,
            "embed_dim": self.embed_dim,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }


@keras.saving.register_keras_serializable(package="keras_lkca")
class PositionEmbedding(keras.layers.Layer):
    """Add a learned vector to every position of the token grid.

    `out[b, i, j, c] = inputs[b, i, j, c] + embeddings[i, j, c]`

    Args:
        initializer: Initializer of the embeddings. Defaults to a normal
            distribution with standard deviation 1.
        **kwargs: Keras's own layer arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: The tokens.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, tokens, channels)`; all but
        the batch static.

    Output shape:
        The input shape.

    Raises:
        ValueError: If the input is not of rank 3 or 4, an axis other than the batch
            is dynamic, or Keras is set to channels_first.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.layers import PositionEmbedding
    >>> layer = PositionEmbedding()
    >>> tuple(layer(np.ones((2, 8, 12, 16), "float32")).shape)
    (2, 8, 12, 16)
    >>> tuple(layer.embeddings.shape)
    (8, 12, 16)

    References:
        - Dosovitskiy et al., "An Image is Worth 16x16 Words", [arXiv 2010.11929](
          https://arxiv.org/abs/2010.11929), section 3.1.
    """

    def __init__(self, initializer=None, **kwargs):
        super().__init__(**kwargs)
        check_channels_last(self)
        initializer = initializer or keras.initializers.RandomNormal(stddev=1.0)
        self.initializer = check_choice("initializer", initializer, keras.initializers)

    def build(self, input_shape):
        """Create an embedding for each position of the grid."""
        if len(input_shape) not in (3, 4) or None in input_shape[1:]:
            raise ValueError(
                "PositionEmbedding needs tokens of rank 3 or 4 with a static grid, "
                "(batch, height, width, channels) or (batch, tokens, channels). "
                f"Received: input_shape={tuple(input_shape)}"
            )
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=input_shape[1:],
            initializer=self.initializer,
        )
        self.input_spec = keras.layers.InputSpec(
            shape=(None, *input_shape[1:]), allow_last_axis_squeeze=False
        )

    def call(self, inputs):
        """Add the embeddings."""
        return ops.add(inputs, self.embeddings)

    def compute_output_shape(self, input_shape):
        """Return the input shape."""
        return input_shape

    def get_config(self):
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "initializer": keras.initializers.serialize(self.initializer),
        }


@keras.saving.register_keras_serializable(package="keras_lkca")
class ClassToken(keras.layers.Layer):
    """Put one learned token before the others, to collect what the class needs.

    `out[b] = concat(token, inputs[b])`

    Args:
        initializer: Initializer of the token. Defaults to a normal distribution
            with standard deviation 1.
        **kwargs: Keras's own layer arguments, such as `name` and `dtype`.

    Call arguments:
        inputs: The tokens.

    Input shape:
        `(batch, tokens, channels)`, channels static.

    Output shape:
        `(batch, tokens + 1, channels)`.

    Raises:
        ValueError: If the input is not of rank 3 with static channels.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.layers import ClassToken
    >>> tuple(ClassToken()(np.ones((2, 64, 16), "float32")).shape)
    (2, 65, 16)

    References:
        - Dosovitskiy et al., "An Image is Worth 16x16 Words", [arXiv 2010.11929](
          https://arxiv.org/abs/2010.11929), section 3.1.
    """

    def __init__(self, initializer=None, **kwargs):
        super().__init__(**kwargs)
        initializer = initializer or keras.initializers.RandomNormal(stddev=1.0)
        self.initializer = check_choice("initializer", initializer, keras.initializers)

    def build(self, input_shape):
        """Create the token."""
        if len(input_shape) != 3 or input_shape[-1] is None:
            raise ValueError(
                "ClassToken needs tokens of rank 3 with static channels, (batch, "
                f"tokens, channels). Received: input_shape={tuple(input_shape)}"
            )
        self.token = self.add_weight(
            name="token", shape=(1, 1, input_shape[-1]), initializer=self.initializer
        )

    def call(self, inputs):
        """Prepend the token to each sample."""
        batch = ops.shape(inputs)[0]
        token = ops.broadcast_to(self.token, (batch, 1, inputs.shape[-1]))
        return ops.concatenate([token, inputs], axis=1)

    def compute_output_shape(self, input_shape):
        """Return (batch, tokens + 1, channels)."""
        batch, tokens, channels = input_shape
        return (batch, None if tokens is None else tokens + 1, channels)

    def get_config(self):
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "initializer": keras.initializers.serialize(self.initializer),
        }
