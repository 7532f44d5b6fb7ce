"""The models' parts, as functions that apply layers to tensors."""

import math
import numbers

import keras
import numpy as np

from keras_lkca.checks import (
    check_choice,
    check_flag,
    check_image_shape,
    check_pair,
    check_positive_int,
    check_rate,
)
from keras_lkca.layers import (
    LKCA,
    BatchNormalization,
    PatchEmbedding,
    PositionEmbedding,
    SelfAttention,
    StochasticDepth,
    TokenDense,
)


def lkca_block(
    inputs,
    *,
    value_dim: int | None = None,
    num_kernels: int = 1,
    kernel_size: int | tuple[int, int] | None = None,
    mlp_ratio: float | None = 2,
    dropout_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    method: str = "auto",
    gate_activation=None,
    kernel_initializer="zeros",
    dtype=None,
    name: str | None = None,
):
    """Apply one pre-norm LKCA block to a feature map.

    `x = x + drop_path(LKCA(LayerNorm(x)))`, then
    `x = x + drop_path(Dense(GELU(Dense(LayerNorm(x)))))`

    Args:
        inputs: Tensor or Keras tensor of shape `(batch, height, width, channels)`.
        value_dim: See `keras_lkca.layers.LKCA`.
        num_kernels: See `keras_lkca.layers.LKCA`.
        kernel_size: See `keras_lkca.layers.LKCA`.
        mlp_ratio: Positive number, hidden channels of the MLP over `channels`; `None`
            for no MLP.
        dropout_rate: Float in [0, 1], dropout after the attention and after both
            layers of the MLP.
        drop_path_rate: Float in [0, 1], stochastic depth on both branches.
        method: See `keras_lkca.ops.large_kernel_conv`.
        gate_activation: See `keras_lkca.layers.LKCA`.
        kernel_initializer: See `keras_lkca.layers.LKCA`.
        dtype: Dtype or dtype policy of the layers; `None` is the global one.
        name: Prefix of the layers' names; `None` leaves them to Keras.

    Returns:
        Tensor of the shape of `inputs`.

    Raises:
        ValueError: If an argument is not as above.

    Example:

    >>> import keras
    >>> from keras_lkca.models import lkca_block
    >>> inputs = keras.Input((8, 8, 32))
    >>> keras.Model(inputs, lkca_block(inputs, kernel_size=5)).output_shape
    (None, 8, 8, 32)

    References:
        - Li et al., "Interpreting and Improving Attention From the Perspective of
          Large Kernel Convolution", [arXiv 2401.05738](
          https://arxiv.org/abs/2401.05738), method section.
    """
    mixer = LKCA(
        value_dim=value_dim,
        num_kernels=num_kernels,
        kernel_size=kernel_size,
        dropout_rate=dropout_rate,
        method=method,
        gate_activation=gate_activation,
        kernel_initializer=kernel_initializer,
        dtype=dtype,
        name=_join(name, "lkca"),
    )
    return _block(inputs, mixer, mlp_ratio, dropout_rate, drop_path_rate, dtype, name)


def lkca_trunk(inputs, depth: int, *, name: str = "block", **block_arguments):
    """Apply a stack of LKCA blocks to a feature map.

    Args:
        inputs: Tensor or Keras tensor of shape `(batch, height, width, channels)`.
        depth: Positive integer, the number of blocks.
        name: Prefix of the blocks' names; the first is `"{name}_0"`.
        **block_arguments: What `keras_lkca.models.lkca_block` takes, the same for
            every block.

    Returns:
        Tensor of the shape of `inputs`.

    Raises:
        ValueError: If an argument is not as above.

    Example:

    >>> import keras
    >>> from keras_lkca.models import lkca_trunk
    >>> inputs = keras.Input((8, 8, 32))
    >>> keras.Model(inputs, lkca_trunk(inputs, depth=3)).output_shape
    (None, 8, 8, 32)

    References:
        - Li et al., "Interpreting and Improving Attention From the Perspective of
          Large Kernel Convolution", [arXiv 2401.05738](
          https://arxiv.org/abs/2401.05738), method section.
    """
    x = inputs
    for index in range(check_positive_int("depth", depth)):
        x = lkca_block(x, name=f"{name}_{index}", **block_arguments)
    return x


def attention_block(
    inputs,
    num_heads: int,
    *,
    mlp_ratio: float = 2,
    dropout_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    dtype=None,
    name: str | None = None,
):
    """Apply one pre-norm block of multi-head self-attention to tokens.

    The house of `keras_lkca.models.lkca_block` with softmax attention in it.

    Args:
        inputs: Tensor or Keras tensor of shape `(batch, tokens, channels)`.
        num_heads: Positive integer that divides `channels`.
        mlp_ratio: Positive number, hidden channels of the MLP over `channels`.
        dropout_rate: Float in [0, 1], dropout after the attention and after both
            layers of the MLP.
        drop_path_rate: Float in [0, 1], stochastic depth on both branches.
        dtype: Dtype or dtype policy of the layers; `None` is the global one.
        name: Prefix of the layers' names; `None` leaves them to Keras.

    Returns:
        Tensor of the shape of `inputs`.

    Raises:
        ValueError: If an argument is not as above.

    Example:

    >>> import keras
    >>> from keras_lkca.models import attention_block
    >>> inputs = keras.Input((65, 32))
    >>> keras.Model(inputs, attention_block(inputs, num_heads=4)).output_shape
    (None, 65, 32)

    References:
        - Dosovitskiy et al., "An Image is Worth 16x16 Words", [arXiv 2010.11929](
          https://arxiv.org/abs/2010.11929), section 3.1.
    """
    mixer = SelfAttention(
        num_heads,
        dropout_rate=dropout_rate,
        dtype=dtype,
        name=_join(name, "attention"),
    )
    return _block(inputs, mixer, mlp_ratio, dropout_rate, drop_path_rate, dtype, name)


def _block(inputs, mixer, mlp_ratio, dropout_rate, drop_path_rate, dtype, name):
    channels = inputs.shape[-1]
    check_rate("dropout_rate", dropout_rate)
    check_rate("drop_path_rate", drop_path_rate)
    if mlp_ratio is not None:
        hidden = max(round(channels * check_ratio("mlp_ratio", mlp_ratio)), 1)

    def norm(part):
        return keras.layers.LayerNormalization(
            epsilon=1e-5, dtype=dtype, name=_join(name, part)
        )

    def dense(units, activation, part):
        return TokenDense(
            units, activation=activation, dtype=dtype, name=_join(name, part)
        )

    def dropout(x, part):
        if dropout_rate == 0:
            return x
        return keras.layers.Dropout(dropout_rate, dtype=dtype, name=_join(name, part))(
            x
        )

    def add(x, branch, part):
        branch = StochasticDepth(
            drop_path_rate, dtype=dtype, name=_join(name, f"{part}_drop_path")
        )(branch)
        return keras.layers.Add(dtype=dtype, name=_join(name, f"{part}_add"))(
            [x, branch]
        )

    x = add(inputs, mixer(norm("mixer_norm")(inputs)), "mixer")
    if mlp_ratio is None:
        return x
    y = dense(hidden, "gelu", "mlp_expand")(norm("mlp_norm")(x))  # exact GELU
    y = dense(channels, None, "mlp_project")(dropout(y, "mlp_expand_dropout"))
    return add(x, dropout(y, "mlp_project_dropout"), "mlp")


def check_ratio(name, value):
    """Return a positive number, or raise a `ValueError`."""
    if not isinstance(value, numbers.Real) or not 0 < value < math.inf:
        raise ValueError(
            f"`{name}` must be a positive number. Received: {name}={value!r}"
        )
    return float(value)


def _join(prefix, part):
    return None if prefix is None else f"{prefix}_{part}"


def patch_tokens(input_shape, patch_size, embed_dim, image_mean, image_std, dtype):
    """Start a model: images in [0, 255], normalised, embedded as a token grid.

    Returns:
        The model's input and its tokens, `(batch, rows, columns, embed_dim)`.
    """
    images, x = normalized(input_shape, image_mean, image_std, dtype)
    x = PatchEmbedding(patch_size, embed_dim, dtype=dtype, name="patches")(x)
    return images, x


def positions(x, stddev, dtype, name="positions"):
    """Add a learned embedding of each position, which starts as normal noise."""
    initializer = keras.initializers.RandomNormal(
        stddev=check_ratio("position_stddev", stddev)
    )
    return PositionEmbedding(initializer, dtype=dtype, name=name)(x)


def normalized(input_shape, image_mean, image_std, dtype):
    """Return a model's input, images in [0, 255], and the images normalised."""
    input_shape = check_image_shape(input_shape)
    channels = input_shape[-1]
    mean = _per_channel("image_mean", image_mean, channels)
    std = _per_channel("image_std", image_std, channels)
    if min(std) == 0:
        raise ValueError(
            f"`image_std` must be above zero. Received: image_std={image_std!r}"
        )
    images = keras.Input(input_shape, name="images")
    # Normalised before any cast to half precision, which would round the pixels.
    x = keras.layers.Rescaling(
        scale=[1 / (255 * s) for s in std],
        offset=[-m / s for m, s in zip(mean, std, strict=True)],
        dtype=dtype.variable_dtype,
        name="normalize",
    )(images)
    return images, x


def conv_norm(x, filters, strides, activation, dtype, name):
    """Apply a convolution of 3 x 3, BatchNormalization and an activation."""
    x = keras.layers.Conv2D(
        *(filters, 3, strides, "same"),
        use_bias=False,
        kernel_initializer="he_normal",
        dtype=dtype,
        name=f"{name}_conv",
    )(x)
    # Short trainings end before an average over hundreds of steps means anything.
    x = BatchNormalization(
        momentum=0.9, epsilon=1e-5, dtype=dtype, name=f"{name}_norm"
    )(x)
    if activation is None:
        return x
    return keras.layers.Activation(activation, dtype=dtype, name=f"{name}_act")(x)


def conv_stem(x, patch_size, stem_filters, stem_depth, embed_dim, dtype):
    """Embed images as a token grid by convolutions, see `keras_lkca.LKCANet`."""
    if not isinstance(stem_filters, (tuple, list, np.ndarray)):
        raise ValueError(
            "`stem_filters` must be a tuple of positive integers, one for each step "
            f"before the convolution to `embed_dim`. Received: {stem_filters=}"
        )
    strides = _strides(patch_size, x.shape[1:3], len(stem_filters) + 1)
    stem_depth = check_positive_int("stem_depth", stem_depth)
    for step, filters in enumerate([*stem_filters, embed_dim]):
        name = "embed_dim" if step == len(stem_filters) else "stem_filters"
        filters = check_positive_int(name, filters)
        for index in range(stem_depth if step < len(stem_filters) else 1):
            stride = 1 if index else strides[step]
            name = f"stem_{step}_{index}"
            x = conv_norm(x, filters, stride, "gelu", dtype, name)
    return x


def _strides(patch_size, image_size, steps):
    """Return the strides of the stem's steps, whose product is `patch_size`."""
    if patch_size is None:
        halvings = max(min(image_size) // 8, 1).bit_length() - 1
        patch_size = 2 ** min(halvings, steps)
    by_axis = []
    for size in check_pair("patch_size", patch_size):
        halvings = size.bit_length() - 1
        if size != 2**halvings or halvings > steps:
            raise ValueError(
                f"`patch_size` must be a power of 2, at most {2**steps} with a stem "
                f"of {steps} steps; more `stem_filters` allow more. "
                f"Received: patch_size={patch_size!r}"
            )
        by_axis.append([1] * (steps - halvings) + [2] * halvings)
    return list(zip(*by_axis, strict=True))


def _per_channel(name, value, channels):
    try:
        values = np.ravel(np.asarray(0.5 if value is None else value, "float64"))
    except (TypeError, ValueError):
        values = np.empty(0)
    if len(values) == 1:
        values = np.repeat(values, channels)
    if len(values) != channels or not ((0 <= values) & (values <= 1)).all():
        raise ValueError(
            f"`{name}` must be a number or {channels} numbers, one per channel, for "
            f"images scaled to [0, 1]. Received: {name}={value!r}"
        )
    return values.tolist()


def head(
    feature_map, token, pooling, include_top, num_classes, classifier_activation, dtype
):
    """End a model: pool the tokens, normalise, classify.

    Args:
        feature_map: The tokens as a grid.
        token: The class token, or `None` where there is none.
        pooling: How to make one vector of them, or `None`.
        include_top: Whether to classify.
        num_classes: Number of classes.
        classifier_activation: Activation of the classifier, which keeps the
            precision of the weights.
        dtype: Dtype policy.
    """
    include_top = check_flag("include_top", include_top)
    if pooling is None and not include_top:
        return feature_map
    names = ("avg", "max") if token is None else ("token", "avg", "max")
    if pooling not in names:
        raise ValueError(
            f"`pooling` must be one of {', '.join(map(repr, names))}, or None "
            f"together with include_top=False. Received: pooling={pooling!r}"
        )
    if pooling == "token":
        x = token
    elif pooling == "avg":
        x = keras.layers.GlobalAveragePooling2D(dtype=dtype, name="pool")(feature_map)
    else:
        x = keras.layers.GlobalMaxPooling2D(dtype=dtype, name="pool")(feature_map)
    x = keras.layers.LayerNormalization(epsilon=1e-5, dtype=dtype, name="norm")(x)
    if not include_top:
        return x
    num_classes = check_positive_int("num_classes", num_classes)
    activation = check_choice(
        "classifier_activation", classifier_activation, keras.activations
    )
    if num_classes == 1 and activation is keras.activations.softmax:
        raise ValueError(
            "`classifier_activation` of one column must not be a softmax, which is 1 "
            "whatever the image: take 'sigmoid', or two classes. Received: "
            f"num_classes=1, classifier_activation={classifier_activation!r}"
        )
    return keras.layers.Dense(
        num_classes,
        activation=activation,
        dtype=dtype.variable_dtype,
        name="classifier",
    )(x)
