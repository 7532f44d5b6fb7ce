"""The same function with fewer numbers: what training needs and serving does not."""

import keras
import numpy as np

from keras_lkca.layers import FixedConv, PositionEmbedding, TokenDense
from keras_lkca.models import LKCAViT
from keras_lkca.models.blocks import patch_tokens
from keras_lkca.models.image_model import ImageModel


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
        arguments = {
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
        super().__init__(images, x, class_names, arguments=arguments, **kwargs)
        self.dtype_policy = policy

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
