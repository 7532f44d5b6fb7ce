import keras

from keras_lkca.checks import check_choice, check_divides, check_positive_int
from keras_lkca.models.blocks import (
    conv_stem,
    head,
    lkca_trunk,
    normalized,
    patch_tokens,
    positions,
)
from keras_lkca.models.image_model import ImageModel, found_in_h5


@keras.saving.register_keras_serializable(package="keras_lkca")
@found_in_h5
class LKCAViT(ImageModel):
    """A compact vision transformer whose attention is one large convolution.

    Patch embedding, learned position embedding, `depth` pre-norm blocks of
    `keras_lkca.layers.LKCA` and an MLP on the token grid, mean over the tokens,
    LayerNorm, Dense.

    Images go in as they are, uint8 or float in [0, 255]: the normalisation is a
    layer of the model and is saved with it. A saved model is rebuilt from its
    constructor's arguments and what was done to its layers since.

    Args:
        input_shape: The images' (height, width, channels), divisible by
            `patch_size`; they need not be square.
        num_classes: Positive integer, the number of classes.
        patch_size: Positive integer or pair of them, a patch in pixels.
        embed_dim: Positive integer, channels of a token.
        depth: Positive integer, the number of blocks.
        mlp_ratio: Positive number, hidden channels of an MLP over `embed_dim`.
        num_kernels: Kernels per layer: 1 as in the paper, `embed_dim` for one per
            channel, or a divisor of it. See `keras_lkca.layers.LKCA`.
        kernel_size: Odd integer or pair of them, in tokens; `None` is the global
            kernel. See `keras_lkca.layers.LKCA`.
        method: How the operator is computed, see
            `keras_lkca.ops.large_kernel_conv`.
        stem_filters: Tuple of positive integers, to embed the images by convolutions
            of so many channels and one to `embed_dim`, each with BatchNormalization
            and GELU. `None` is the paper's patch embedding.
        position_stddev: Positive number, standard deviation of the new position
            embedding, 1 as in the paper. With 0.02 short trainings on few images came
            out four points higher.
        gate_activation: See `keras_lkca.layers.LKCA`; the paper has no gate.
        kernel_initializer: See `keras_lkca.layers.LKCA`.
        drop_path_rate: Float in [0, 1], stochastic depth, the same in each block.
        dropout_rate: Float in [0, 1], dropout after attention and in the MLPs.
        include_top: Whether the classifier is part of the model.
        pooling: `"avg"` or `"max"` over the tokens, followed by LayerNorm; `None`,
            with `include_top=False` only, returns the last block's feature map.
        classifier_activation: Activation of the classifier: `None` for logits,
            `"softmax"` for probabilities, `"sigmoid"` for several labels an image or
            for yes or no of one column.
        image_mean: Number or one per channel, the images' mean on the scale [0, 1].
            Defaults to 0.5.
        image_std: Likewise their standard deviation. Defaults to 0.5.
        class_names: Sequence of strings, one per class, which travel with the saved
            model; `None` where they are not known.
        dtype: Dtype or dtype policy, as `"mixed_bfloat16"`; `None` is the global
            one. The classifier's output keeps the precision of the weights.
        name: Name of the model, or `None`.
        trainable: Whether its weights are to be trained.
        **unknown: Nothing; refused with the nearest name.

    Input shape:
        `(batch, height, width, channels)`.

    Output shape:
        `(batch, num_classes)` with the classifier, `(batch, embed_dim)` without it,
        `(batch, height / patch_height, width / patch_width, embed_dim)` with
        `pooling=None`.

    Raises:
        ValueError: If an argument is not as above, or if Keras is set to
            channels_first.

    Example:

    >>> import numpy as np
    >>> from keras_lkca import LKCAViT
    >>> model = LKCAViT(input_shape=(32, 48, 3), num_classes=7, depth=2)
    >>> images = np.zeros((1, 32, 48, 3), "uint8")
    >>> tuple(model(images).shape)
    (1, 7)

    References:
        - Li et al., "Interpreting and Improving Attention From the Perspective of
          Large Kernel Convolution", [arXiv 2401.05738](
          https://arxiv.org/abs/2401.05738), method section.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (32, 32, 3),
        num_classes: int = 10,
        patch_size: int | tuple[int, int] = 4,
        embed_dim: int = 136,
        depth: int = 9,
        mlp_ratio: float = 2,
        num_kernels: int = 1,
        kernel_size: int | tuple[int, int] | None = None,
        method: str = "auto",
        stem_filters: tuple[int, ...] | None = None,
        position_stddev: float = 1.0,
        gate_activation=None,
        kernel_initializer="zeros",
        drop_path_rate: float = 0.1,
        dropout_rate: float = 0.0,
        include_top: bool = True,
        pooling: str | None = "avg",
        classifier_activation=None,
        image_mean=None,
        image_std=None,
        class_names=None,
        dtype=None,
        name: str | None = None,
        trainable: bool = True,
        **unknown,
    ):
        policy = keras.dtype_policies.get(dtype)
        if stem_filters is None:
            images, x = patch_tokens(
                input_shape, patch_size, embed_dim, image_mean, image_std, policy
            )
        else:
            images, x = normalized(input_shape, image_mean, image_std, policy)
            x = conv_stem(x, patch_size, stem_filters, 1, embed_dim, policy)
        x = positions(x, position_stddev, policy)
        num_kernels = check_positive_int("num_kernels", num_kernels)
        check_divides("num_kernels", num_kernels, "embed_dim", embed_dim)
        initializer = check_choice(
            "kernel_initializer", kernel_initializer, keras.initializers
        )
        x = lkca_trunk(
            x,
            depth,
            num_kernels=num_kernels,
            kernel_size=kernel_size,
            mlp_ratio=mlp_ratio,
            dropout_rate=dropout_rate,
            drop_path_rate=drop_path_rate,
            method=method,
            gate_activation=gate_activation,
            kernel_initializer=initializer,
            dtype=policy,
        )
        x = head(
            x, None, pooling, include_top, num_classes, classifier_activation, policy
        )
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
            "stem_filters": stem_filters,
            "position_stddev": position_stddev,
            "gate_activation": gate_activation
            and keras.activations.serialize(keras.activations.get(gate_activation)),
            "kernel_initializer": keras.initializers.serialize(initializer),
            "drop_path_rate": drop_path_rate,
            "dropout_rate": dropout_rate,
            "include_top": include_top,
            "pooling": pooling,
            "classifier_activation": classifier_activation
            and keras.activations.serialize(
                keras.activations.get(classifier_activation)
            ),
            "image_mean": image_mean,
            "image_std": image_std,
            "class_names": class_names,
            "dtype": keras.dtype_policies.serialize(policy),
        }
        super().__init__(
            images,
            x,
            class_names,
            name,
            trainable,
            arguments=arguments,
            unknown=unknown,
        )
        self.dtype_policy = policy
