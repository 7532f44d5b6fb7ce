import keras

from keras_lkca.checks import check_divides, check_positive_int
from keras_lkca.layers import ClassToken
from keras_lkca.models.blocks import (
    attention_block,
    head,
    patch_tokens,
    positions,
)
from keras_lkca.models.image_model import ImageModel


@keras.saving.register_keras_serializable(package="keras_lkca")
class ViT(ImageModel):
    """A compact vision transformer with softmax attention, LKCA's comparison.

    The house of `keras_lkca.LKCAViT` with multi-head self-attention in it: patch
    embedding, class token, learned position embedding, `depth` pre-norm blocks,
    LayerNorm on the class token, Dense.

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
        num_heads: Positive integer that divides `embed_dim`.
        mlp_ratio: Positive number, hidden channels of an MLP over `embed_dim`.
        position_stddev: Positive number, standard deviation of the new position
            embedding.
        drop_path_rate: Float in [0, 1], stochastic depth, the same in each block.
        dropout_rate: Float in [0, 1], dropout after attention and in the MLPs.
        include_top: Whether the classifier is part of the model.
        pooling: `"token"`, the class token, or `"avg"` or `"max"` over the other
            tokens, followed by LayerNorm; `None`, with `include_top=False` only,
            returns the patches' feature map.
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
    >>> from keras_lkca import ViT
    >>> model = ViT(input_shape=(32, 48, 3), num_classes=7, depth=2)
    >>> tuple(model(np.zeros((1, 32, 48, 3), "uint8")).shape)
    (1, 7)

    References:
        - Dosovitskiy et al., "An Image is Worth 16x16 Words", [arXiv 2010.11929](
          https://arxiv.org/abs/2010.11929), section 3.1.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int] = (32, 32, 3),
        num_classes: int = 10,
        patch_size: int | tuple[int, int] = 4,
        embed_dim: int = 136,
        depth: int = 7,
        num_heads: int = 8,
        mlp_ratio: float = 2,
        position_stddev: float = 1.0,
        drop_path_rate: float = 0.1,
        dropout_rate: float = 0.0,
        include_top: bool = True,
        pooling: str | None = "token",
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
        images, x = patch_tokens(
            input_shape, patch_size, embed_dim, image_mean, image_std, policy
        )
        grid = x.shape[1:3]
        num_heads = check_positive_int("num_heads", num_heads)
        check_divides("num_heads", num_heads, "embed_dim", embed_dim)
        x = keras.layers.Reshape((-1, embed_dim), dtype=policy, name="tokens")(x)
        x = ClassToken(dtype=policy, name="class_token")(x)
        x = positions(x, position_stddev, policy)
        for index in range(check_positive_int("depth", depth)):
            x = attention_block(
                x,
                num_heads,
                mlp_ratio=mlp_ratio,
                dropout_rate=dropout_rate,
                drop_path_rate=drop_path_rate,
                dtype=policy,
                name=f"block_{index}",
            )
        feature_map = keras.layers.Reshape(
            (*grid, embed_dim), dtype=policy, name="grid"
        )(x[:, 1:])
        x = head(
            feature_map,
            x[:, 0],
            pooling,
            include_top,
            num_classes,
            classifier_activation,
            policy,
        )
        arguments = {
            "input_shape": input_shape,
            "num_classes": num_classes,
            "patch_size": patch_size,
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "position_stddev": position_stddev,
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
