import keras

from keras_lkca.checks import check_divides, check_positive_int
from keras_lkca.models.blocks import (
    check_ratio,
    conv_norm,
    conv_stem,
    head,
    lkca_block,
    normalized,
    positions,
)
from keras_lkca.models.image_model import ImageModel, found_in_h5


@keras.saving.register_keras_serializable(package="keras_lkca")
@found_in_h5
class LKCANet(ImageModel):
    """Gated LKCA blocks behind a stem of convolutions: the model to take.

    Where `LKCAViT` is the paper's model, this one spends the same computation better
    on small images: convolutions of 3 x 3 in place of patches, each followed by
    BatchNormalization and GELU; positions that start small; and blocks of a wide LKCA
    layer with a gate, so that what a token takes in depends on what it holds, in place
    of a narrow one and an MLP. With several stages each has half the grid of the one
    before it.

    Images go in as they are, uint8 or float in [0, 255]: the normalisation is a
    layer of the model and is saved with it. A saved model is rebuilt from its
    constructor's arguments and what was done to its layers since.

    Args:
        input_shape: The images' (height, width, channels); they need not be square.
        num_classes: Positive integer, the number of classes.
        patch_size: A token of the first stage in pixels, 1, 2, 4, 8 and so on, or a
            pair of them. `None` leaves the shorter side 8 tokens or more: 4 at
            32 x 32, 8 at 64 x 64.
        stem_filters: Tuple of positive integers, channels of the stem's steps before
            the convolution to `embed_dim`. The last steps halve the images, as often
            as `patch_size` asks for.
        stem_depth: Positive integer, convolutions in each of those steps.
        embed_dim: Positive integer, channels of a token, or a tuple of them, one per
            stage.
        depth: Positive integer, the number of blocks, or a tuple of them, one per
            stage.
        position_stddev: Positive number, standard deviation of the new position
            embedding.
        value_ratio: Positive number, channels of an LKCA layer's values and of its
            gate over `embed_dim`.
        mlp_ratio: Positive number, hidden channels of an MLP over `embed_dim`; `None`
            for no MLP.
        num_kernels: Kernels per layer, a divisor of the values' channels, see
            `keras_lkca.layers.LKCA`.
        kernel_size: Odd integer or pair of them, in tokens; `None` is the global
            kernel. See `keras_lkca.layers.LKCA`.
        gate_activation: See `keras_lkca.layers.LKCA`.
        method: How the operator is computed, see
            `keras_lkca.ops.large_kernel_conv`.
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
        `(batch, rows, columns, embed_dim)` with `pooling=None`.

    Raises:
        ValueError: If an argument is not as above, or if Keras is set to
            channels_first.

    Example:

    >>> import numpy as np
    >>> from keras_lkca import LKCANet
    >>> model = LKCANet(input_shape=(32, 48, 3), num_classes=7, depth=2)
    >>> images = np.zeros((1, 32, 48, 3), "uint8")
    >>> tuple(model(images).shape)
    (1, 7)

    References:
        - Li et al., "Interpreting and Improving Attention From the Perspective of
          Large Kernel Convolution", [arXiv 2401.05738](
          https://arxiv.org/abs/2401.05738), method section, for the LKCA layer.
        - Xiao et al., "Early Convolutions Help Transformers See Better",
          [arXiv 2106.14881](https://arxiv.org/abs/2106.14881), for the stem.
        - Guo et al., "Visual Attention Network", [arXiv 2202.09741](
          https://arxiv.org/abs/2202.09741), for large kernels that weigh what a token
          holds.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (32, 32, 3),
        num_classes: int = 10,
        patch_size: int | tuple[int, int] | None = None,
        stem_filters: tuple[int, ...] = (32, 64),
        stem_depth: int = 2,
        embed_dim: int | tuple[int, ...] = 128,
        depth: int | tuple[int, ...] = 6,
        position_stddev: float = 0.02,
        value_ratio: float = 2,
        mlp_ratio: float | None = None,
        num_kernels: int = 8,
        kernel_size: int | tuple[int, int] | None = None,
        gate_activation="gelu",
        method: str = "auto",
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
        dims, depths = _stages(embed_dim, depth)
        images, x = normalized(input_shape, image_mean, image_std, policy)
        value_ratio = check_ratio("value_ratio", value_ratio)
        num_kernels = check_positive_int("num_kernels", num_kernels)
        for channels in dims:
            values = round(channels * value_ratio)
            check_divides("num_kernels", num_kernels, "embed_dim * value_ratio", values)
        x = conv_stem(x, patch_size, stem_filters, stem_depth, dims[0], policy)
        index = 0
        for stage, (channels, blocks) in enumerate(zip(dims, depths, strict=True)):
            if stage:
                x = conv_norm(x, channels, 2, None, policy, f"downsample_{stage}")
            suffix = f"_{stage}" if stage else ""
            x = positions(x, position_stddev, policy, f"positions{suffix}")
            for _ in range(blocks):
                x = lkca_block(
                    x,
                    value_dim=round(channels * value_ratio),
                    num_kernels=num_kernels,
                    kernel_size=kernel_size,
                    mlp_ratio=mlp_ratio,
                    dropout_rate=dropout_rate,
                    drop_path_rate=drop_path_rate,
                    method=method,
                    gate_activation=gate_activation,
                    dtype=policy,
                    name=f"block_{index}",
                )
                index += 1
        x = head(
            x, None, pooling, include_top, num_classes, classifier_activation, policy
        )
        arguments = {
            "input_shape": input_shape,
            "num_classes": num_classes,
            "patch_size": patch_size,
            "stem_filters": stem_filters,
            "stem_depth": stem_depth,
            "embed_dim": embed_dim,
            "depth": depth,
            "position_stddev": position_stddev,
            "value_ratio": value_ratio,
            "mlp_ratio": mlp_ratio,
            "num_kernels": num_kernels,
            "kernel_size": kernel_size,
            "gate_activation": gate_activation
            and keras.activations.serialize(keras.activations.get(gate_activation)),
            "method": method,
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


def _stages(embed_dim, depth):
    """Return the channels and the blocks of each stage."""
    dims, depths = (
        tuple(x) if isinstance(x, (tuple, list)) else (x,) for x in (embed_dim, depth)
    )
    if len(dims) != len(depths) or not dims:
        raise ValueError(
            "`embed_dim` and `depth` must be integers, or tuples of as many as there "
            f"are stages. Received: embed_dim={embed_dim!r}, depth={depth!r}"
        )
    return (
        [check_positive_int("embed_dim", size) for size in dims],
        [check_positive_int("depth", blocks) for blocks in depths],
    )
