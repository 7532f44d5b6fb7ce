"""The same function with fewer numbers: what training needs and serving does not."""

import keras
import numpy as np

from keras_lkca import ops
from keras_lkca.layers import PositionEmbedding, TokenDense
from keras_lkca.layers.checks import check_divides, check_pair, check_positive_int
from keras_lkca.models import LKCAViT
from keras_lkca.models.blocks import check_class_names, patch_tokens, plain
from keras_lkca.models.image_model import ImageModel
from keras_lkca.ops import hybrid, plan, toeplitz
from keras_lkca.ops.backend import constant, device_kind
from keras_lkca.ops.conv import check_method

# Matrices that follow from a kernel are kept up to this size a layer.
MAX_KEPT_BYTES = 2**24


def fold(model: LKCAViT) -> "FoldedLKCAViT":
    """Fold a trained model's linear maps into fewer of them.

    With one kernel a layer nothing but linear maps stands between the value and the
    output projection, and the mixing of tokens commutes with both: they become one.
    The scale and offset of every LayerNorm go into the layer behind it. Dropout and
    stochastic depth vanish, and what follows from the kernels alone is computed once.

    `A(LayerNorm(x) V) O + b = A(n(x) W + c) + b` with `W = diag(gamma) V O` and
    `c = beta V O`, where `n` normalises and `A` mixes the tokens. With several kernels
    a layer `V` and `O` stay two.

    Args:
        model: A `LKCAViT`.

    Returns:
        A `FoldedLKCAViT` of the same outputs up to rounding, to predict with, save
        and export. It is not meant to be trained: its weights are not those of the
        model.

    Raises:
        ValueError: If `model` is no `LKCAViT`, or a quantized one.

    Example:

    >>> from keras_lkca import LKCAViT, deploy
    >>> model = LKCAViT.from_preset("lkca_vit_tiny", num_classes=100)
    >>> deploy.fold(model).count_params() / model.count_params() < 0.86
    True
    """
    if not isinstance(model, LKCAViT):
        raise ValueError(
            "`model` must be a LKCAViT; other models are exported as they are. "
            f"Received: model={model!r}"
        )
    if model.quantized_layers:
        raise ValueError(
            "`model` is quantized: fold it first, then quantize what `fold` returns. "
            f"Received: model={model!r}"
        )
    config = model.get_config()
    names = ("trainable", "drop_path_rate", "dropout_rate")
    folded = FoldedLKCAViT(**{k: v for k, v in config.items() if k not in names})
    for name in ("patches", "positions"):
        folded.get_layer(name).set_weights(model.get_layer(name).get_weights())
    for index in range(config["depth"]):
        _fold_block(model, folded, f"block_{index}")
    if config["include_top"]:
        kernel, bias = _after_norm(
            model.get_layer("norm"), *model.get_layer("classifier").get_weights()
        )
        folded.get_layer("classifier").set_weights([kernel, bias])
    elif config["pooling"]:
        folded.get_layer("norm").set_weights(model.get_layer("norm").get_weights())
    folded.trainable = False
    return folded


def _fold_block(model, folded, block):
    mixer = model.get_layer(f"{block}_lkca")
    (value,) = mixer.value.get_weights()
    projection, bias = mixer.projection.get_weights()
    if mixer.num_kernels == 1:
        value = _exact(value) @ _exact(projection)
    value = _after_norm(model.get_layer(f"{block}_mixer_norm"), value)
    folded.get_layer(f"{block}_value").set_weights(value)
    kernel = keras.ops.convert_to_numpy(mixer.kernel)
    mixing = folded.get_layer(f"{block}_mixing")
    if mixer.num_kernels == 1:
        mixing.set_weights([kernel, bias])
    else:
        mixing.set_weights([kernel])
        folded.get_layer(f"{block}_projection").set_weights([projection, bias])
    expand = model.get_layer(f"{block}_mlp_expand").get_weights()
    folded.get_layer(f"{block}_mlp_expand").set_weights(
        _after_norm(model.get_layer(f"{block}_mlp_norm"), *expand)
    )
    name = f"{block}_mlp_project"
    folded.get_layer(name).set_weights(model.get_layer(name).get_weights())


def _after_norm(norm, kernel, bias=0.0):
    """Return the kernel and the bias that take the place of a LayerNorm's too."""
    gamma, beta = map(_exact, norm.get_weights())
    kernel = _exact(kernel)
    return gamma[:, None] * kernel, beta @ kernel + _exact(bias)


def _exact(array):
    return np.asarray(array, "float64")


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
    >>> from keras_lkca.deploy import FixedConv
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
        self._kept = [constant(array) for array in kept] if kept and small else None

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
            kept = [keras.ops.convert_to_tensor(array) for array in self._kept]
            outputs = hybrid.apply_matrices(keras.ops.cast(inputs, "float32"), *kept)
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


@keras.saving.register_keras_serializable(package="keras_lkca")
class FoldedLKCAViT(ImageModel):
    """A `LKCAViT` to serve: what `fold` returns, see there.

    What follows from the kernels is kept. Where weights are changed in another way
    than by this model's `set_weights` and `load_weights`, call `prepare()`.

    Args:
        **arguments: Those of `keras_lkca.LKCAViT` but its dropout rates.

    Input shape:
        `(batch, height, width, channels)`.

    Output shape:
        That of the `LKCAViT`.

    Raises:
        ValueError: If an argument is not as above.

    Example:

    >>> from keras_lkca import LKCAViT, deploy
    >>> folded = deploy.fold(LKCAViT(depth=2, embed_dim=16))
    >>> folded.output_shape
    (None, 10)

    References:
        - Li et al., "Interpreting and Improving Attention From the Perspective of
          Large Kernel Convolution", [arXiv 2401.05738](
          https://arxiv.org/abs/2401.05738), method section.
    """

    def __init__(
        self,
        input_shape,
        num_classes,
        patch_size,
        embed_dim,
        depth,
        mlp_ratio,
        num_kernels,
        kernel_size,
        method,
        include_top,
        pooling,
        classifier_activation,
        image_mean,
        image_std,
        class_names=None,
        dtype=None,
        **kwargs,
    ):
        policy = keras.dtype_policies.get(dtype)
        class_names = check_class_names(class_names, num_classes, include_top)

        def normalize(x, name):
            return keras.layers.LayerNormalization(
                epsilon=1e-5, center=False, scale=False, dtype=policy, name=name
            )(x)

        def dense(x, units, name, activation=None):
            return TokenDense(units, activation=activation, dtype=policy, name=name)(x)

        images, x = patch_tokens(
            input_shape, patch_size, embed_dim, image_mean, image_std, policy
        )
        x = PositionEmbedding(dtype=policy, name="positions")(x)
        rows, columns = x.shape[1:3]
        extent = kernel_size or (2 * rows - 1, 2 * columns - 1)
        extent = (extent, extent) if isinstance(extent, int) else extent
        for index in range(depth):
            block = f"block_{index}"
            y = dense(normalize(x, f"{block}_mixer_norm"), embed_dim, f"{block}_value")
            y = FixedConv(
                *(extent, num_kernels, num_kernels == 1, method),
                dtype=policy,
                name=f"{block}_mixing",
            )(y)
            if num_kernels > 1:
                y = dense(y, embed_dim, f"{block}_projection")
            x = keras.layers.Add(dtype=policy, name=f"{block}_mixer_add")([x, y])
            hidden = max(round(embed_dim * mlp_ratio), 1)
            y = normalize(x, f"{block}_mlp_norm")
            y = dense(y, hidden, f"{block}_mlp_expand", "gelu")
            y = dense(y, embed_dim, f"{block}_mlp_project")
            x = keras.layers.Add(dtype=policy, name=f"{block}_mlp_add")([x, y])
        if pooling:
            pools = {
                "avg": keras.layers.GlobalAveragePooling2D,
                "max": keras.layers.GlobalMaxPooling2D,
            }
            x = pools[pooling](dtype=policy, name="pool")(x)
        if include_top:
            x = keras.layers.Dense(
                num_classes,
                activation=classifier_activation,
                dtype=policy.variable_dtype,
                name="classifier",
            )(normalize(x, "norm"))
        elif pooling:
            x = keras.layers.LayerNormalization(
                epsilon=1e-5, dtype=policy, name="norm"
            )(x)
        super().__init__(inputs=images, outputs=x, **kwargs)
        self.dtype_policy = policy
        self._arguments = plain(
            {
                "input_shape": input_shape,
                "num_classes": num_classes,
                "patch_size": patch_size,
                "embed_dim": embed_dim,
                "depth": depth,
                "mlp_ratio": mlp_ratio,
                "num_kernels": num_kernels,
                "kernel_size": kernel_size,
                "method": method,
                "include_top": include_top,
                "pooling": pooling,
                "classifier_activation": classifier_activation,
                "image_mean": image_mean,
                "image_std": image_std,
                "class_names": class_names,
                "dtype": keras.dtype_policies.serialize(policy),
            }
        )

    def prepare(self):
        """Compute anew what follows from the kernels."""
        for layer in self.layers:
            if isinstance(layer, FixedConv):
                layer.prepare()
        self._forget_compiled()

    def set_weights(self, weights):
        """Set the weights, and what follows from them."""
        super().set_weights(weights)
        self.prepare()

    def load_weights(self, filepath, **arguments):
        """Load the weights; each layer computes what follows from its own."""
        super().load_weights(filepath, **arguments)
        self._forget_compiled()

    def _forget_compiled(self):
        # Keras's compiled functions hold what was computed before.
        self.predict_function = self.test_function = None
