"""A class for every pixel."""

import json

import keras

from keras_lkca.checks import check_choice, check_image_shape, check_positive_int
from keras_lkca.layers import TokenDense
from keras_lkca.models.adaptation import adapt_padded, padded_shape
from keras_lkca.models.blocks import conv_norm
from keras_lkca.models.classifiers import is_segmenter
from keras_lkca.models.colors import check_colors
from keras_lkca.models.image_model import ImageModel, found_in_h5
from keras_lkca.models.levels import feature_levels
from keras_lkca.models.presets import check_preset

_PAD = "padded"
# Of `from_preset`, what is not the backbone's.
_OWN = (
    *("decoder_dim", "levels", "classifier_activation", "class_names"),
    *("class_colors", "name", "trainable"),
)


@keras.saving.register_keras_serializable(package="keras_lkca")
@found_in_h5
class LKCASegmenter(ImageModel):
    """Tell the class of every pixel, from a backbone's feature maps of several grids.

    A light feature pyramid: each level is normalised and projected to `decoder_dim`
    channels; from the coarsest on it is resized to the next finer grid, added and
    smoothed by a convolution of 3 x 3. At the finest a Dense layer classifies, and its
    logits are resized to the image.

    A large kernel reaches over all of an image's tokens at a cost that grows little
    faster than their number, where softmax attention compares each with every other.
    With few images short kernels may do better: `LKCANet(kernel_size=3)`.

    Args:
        backbone: A functional or Sequential Keras model of images of one size, such as
            `LKCANet`, `LKCAViT` or one of your own. Its layers become this model's,
            with their weights; what comes after its feature maps is left out.
        num_classes: Integer, 2 or above, the number of classes.
        decoder_dim: Positive integer, channels of the pyramid.
        levels: Sequence of names of `backbone.pyramid_outputs`, such as
            `("P2", "P3")`; of any model they are those of
            `keras_lkca.models.feature_levels`. Defaults to all with a stride of 2
            pixels or more, or else to all.
        input_shape: The images' (height, width, channels) where they are smaller than
            the backbone's: they are padded with black at the bottom and on the right,
            and the logits cropped back. Defaults to the backbone's.
        classifier_activation: `None` for logits, `"softmax"` for probabilities.
        class_names: Sequence of strings, one per class, which travel with the saved
            model; `None` where they are not known.
        class_colors: Sequence of (red, green, blue) in [0, 255], one per class, which
            travel with it too; `None` for those of PASCAL VOC.
        dtype: Dtype or dtype policy of the pyramid; `None` is the backbone's.
        name: Name of the model, or `None`.
        trainable: Whether its weights are to be trained.
        **unknown: Nothing; refused with the nearest name.

    Input shape:
        `(batch, height, width, channels)`. It need not be square, nor a multiple of a
        token's size: `from_preset` and `keras_lkca.models.adapt` take a backbone that
        is, and pad.

    Output shape:
        `(batch, height, width, num_classes)`.

    Raises:
        ValueError: If an argument is not as above.

    Example:

    >>> import numpy as np
    >>> from keras_lkca import LKCANet, LKCASegmenter
    >>> net = LKCANet((45, 60, 3), patch_size=4, embed_dim=(16, 32), depth=(1, 1))
    >>> model = LKCASegmenter(net, num_classes=3, decoder_dim=16)
    >>> tuple(model(np.zeros((1, 45, 60, 3), "uint8")).shape)
    (1, 45, 60, 3)

    References:
        - Lin et al., "Feature Pyramid Networks for Object Detection", [arXiv
          1612.03144](https://arxiv.org/abs/1612.03144), section 3.
        - Li et al., [arXiv 2401.05738](https://arxiv.org/abs/2401.05738), for
          segmentation by LKCA.
    """

    def __init__(
        self,
        backbone,
        num_classes: int = 2,
        decoder_dim: int = 64,
        levels=None,
        input_shape: tuple[int, int, int] | None = None,
        classifier_activation=None,
        class_names=None,
        class_colors=None,
        dtype=None,
        name: str | None = None,
        trainable: bool = True,
        **unknown,
    ):
        if not isinstance(backbone, keras.Model) or is_segmenter(backbone):
            raise ValueError(
                "`backbone` must be a functional Keras model, such as LKCANet(...), "
                "and no segmenter; by a preset's name there is "
                "LKCASegmenter.from_preset. "
                f"Received: backbone={backbone!r}"
            )
        num_classes = check_positive_int("num_classes", num_classes)
        if num_classes < 2:
            raise ValueError(
                "`num_classes` must be 2 or above: what is not of the one class is of "
                f"another. Received: num_classes={num_classes!r}"
            )
        decoder_dim = check_positive_int("decoder_dim", decoder_dim)
        activation = check_choice(
            "classifier_activation", classifier_activation, keras.activations
        )
        if activation not in (keras.activations.linear, keras.activations.softmax):
            raise ValueError(
                "`classifier_activation` must be None or 'softmax'. "
                f"Received: classifier_activation={classifier_activation!r}"
            )
        found = feature_levels(backbone)
        chosen = _check_levels(levels, found)
        policy = backbone.dtype_policy if dtype is None else dtype
        policy = keras.dtype_policies.get(policy)
        images, padded_size = backbone.inputs[0], backbone.input_shape[1:3]
        input_shape = _check_shape(input_shape, backbone.input_shape[1:])
        if input_shape[:2] != padded_size:
            images = keras.Input(input_shape, name="images")
            more = [(0, b - a) for a, b in zip(input_shape, padded_size, strict=False)]
            padded = keras.layers.ZeroPadding2D(
                more, dtype=policy.variable_dtype, name=_PAD
            )(images)
            maps = keras.Model(backbone.inputs[0], found).call(padded)
            found = {level: maps[level] for level in found}
        x = None
        for level in reversed(chosen):
            part, tensor = level.lower(), found[level]
            y = keras.layers.LayerNormalization(
                epsilon=1e-5, dtype=policy, name=f"{part}_norm"
            )(tensor)
            y = TokenDense(decoder_dim, dtype=policy, name=f"{part}_lateral")(y)
            if x is not None:
                x = _resized(x, tensor.shape[1:3])
                y = keras.layers.Add(dtype=policy, name=f"{part}_add")([x, y])
            x = conv_norm(y, decoder_dim, 1, "gelu", policy, f"{part}_smooth")
        precise = policy.variable_dtype
        x = keras.layers.Dense(num_classes, dtype=precise, name="classifier")(x)
        x = _resized(x, padded_size)
        if input_shape[:2] != padded_size:
            x = keras.layers.Cropping2D(more, dtype=precise, name="cropped")(x)
        if activation is keras.activations.softmax:
            x = keras.layers.Softmax(dtype=precise, name="probabilities")(x)
        colors = check_colors(class_colors, num_classes)
        arguments = {
            "num_classes": num_classes,
            "input_shape": input_shape,
            "decoder_dim": decoder_dim,
            "levels": levels if levels is None else tuple(levels),
            "classifier_activation": classifier_activation
            and keras.activations.serialize(activation),
            "class_names": class_names,
            "class_colors": colors,
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
            class_colors=colors,
        )
        self.dtype_policy = policy
        # As text: Keras empties and changes what it is given as a configuration.
        self._backbone = json.dumps(keras.saving.serialize_keras_object(backbone))
        theirs = {id(layer) for layer in backbone.layers}
        own = [layer.name for layer in self.layers if id(layer) not in theirs]
        self._decoder = [name for name in own if name not in (images.name, _PAD)]

    @property
    def decoder_layers(self) -> list:
        """The layers behind the backbone's feature maps."""
        return [self.get_layer(name) for name in self._decoder]

    def get_config(self):
        """Return the constructor's arguments, and what was changed."""
        return {**super().get_config(), "backbone": json.loads(self._backbone)}

    @classmethod
    def from_preset(
        cls,
        preset: str,
        input_shape: tuple[int, int, int] | None = None,
        num_classes: int = 2,
        load_weights: bool = True,
        **overrides,
    ):
        """Build a segmenter on the backbone that a preset names.

        Args:
            preset: A name of `keras_lkca.list_presets()`. What a trained one learned
                is carried over to `input_shape` by `keras_lkca.models.adapt`.
            input_shape: The images' (height, width, channels). Defaults to the
                preset's, or else to (64, 64, 3).
            num_classes: Integer, 2 or above, the number of classes.
            load_weights: Whether a trained preset comes with its weights.
            **overrides: Arguments of this class, or of the backbone's. `patch_size` is
                4 unless given; a trained preset keeps its own.

        Returns:
            An `LKCASegmenter`.

        Raises:
            ValueError: If there is no such preset, or an argument is not as above.

        Example:

        >>> from keras_lkca import LKCASegmenter
        >>> model = LKCASegmenter.from_preset("lkca_net_03m", (48, 64, 3), 5)
        >>> model.output_shape
        (None, 48, 64, 5)
        """
        own = {key: overrides.pop(key) for key in _OWN if key in overrides}
        row = check_preset(preset)
        shape = input_shape or row.arguments.get("input_shape") or (64, 64, 3)
        shape = check_image_shape(shape)
        if row.weights is not None and load_weights:
            backbone = ImageModel.from_preset(preset, **overrides)
            backbone = adapt_padded(backbone, shape)
        else:
            overrides = {"patch_size": 4, "load_weights": False, **overrides}
            padded = padded_shape(shape, overrides["patch_size"])
            backbone = ImageModel.from_preset(preset, padded, **overrides)
        own["input_shape"] = shape
        return cls(backbone, num_classes, **own)

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Build a model from what `get_config` returned."""
        backbone = config["backbone"]
        if not isinstance(backbone, keras.Model):
            copy = json.loads(json.dumps(backbone))
            backbone = keras.saving.deserialize_keras_object(copy, custom_objects)
        return super().from_config({**config, "backbone": backbone}, custom_objects)


def _resized(x, size):
    """Return a feature map on another grid, between its values."""
    if tuple(x.shape[1:3]) == tuple(size):
        return x
    # Keras's layer, Resizing, would set BatchNormalization behind it to training in
    # every call that does not say otherwise.
    return keras.ops.image.resize(x, size, "bilinear", data_format="channels_last")


def _check_shape(input_shape, largest):
    """Return the images' shape, which must fit in the backbone's."""
    if input_shape is None:
        return tuple(largest)
    shape = check_image_shape(input_shape)
    fits = all(a <= b for a, b in zip(shape[:2], largest, strict=False))
    if not fits or shape[-1] != largest[-1]:
        raise ValueError(
            f"`input_shape` must be that of the backbone, {tuple(largest)}, or smaller "
            "in height or width, of as many channels; keras_lkca.models.adapt carries "
            f"a model to larger images. Received: input_shape={input_shape!r}"
        )
    return shape


def _check_levels(levels, found):
    """Return the names of levels, the finest first."""
    if levels is None:
        levels = [name for name in found if int(name[1:]) > 0] or list(found)
    unknown = (
        [name for name in levels if name not in found]
        if isinstance(levels, (list, tuple))
        else [levels]
    )
    if unknown or not levels:
        raise ValueError(
            f"`levels` must be some of the backbone's, {', '.join(found)}. "
            f"Received: levels={levels!r}"
        )
    return tuple(name for name in found if name in levels)
