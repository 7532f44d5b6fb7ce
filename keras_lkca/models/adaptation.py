"""What a model learned, carried over to other images and other classes."""

import keras
import numpy as np

from keras_lkca.checks import check_image_shape, check_pair, check_positive_int
from keras_lkca.internals import is_quantized, sublayers
from keras_lkca.layers import LKCA, FixedConv, PatchEmbedding, PositionEmbedding
from keras_lkca.models.classifiers import class_names as names_within
from keras_lkca.models.classifiers import head_of
from keras_lkca.models.colors import default_colors
from keras_lkca.models.image_model import ImageModel, as_names, check_class_names


def adapt(
    model: keras.Model,
    input_shape: tuple[int, int, int] | None = None,
    num_classes: int | None = None,
    patch_size: int | tuple[int, int] | None = None,
    class_names=None,
) -> keras.Model:
    """Return a model for other images or classes that knows what this one learned.

    Position embeddings are interpolated on the new grid. A kernel keeps its weight for
    every relative offset: on a larger grid the offsets that it had not are zero, on a
    smaller one those that reach nowhere are cut off. Where `patch_size` changes, a
    token covers other pixels, and the kernels and the patch embedding are resampled,
    their sums kept. The classifier keeps what it learned of the classes that both
    models have, by their names; what it learned of no name it keeps where the number
    of classes stays. All else is copied; with nothing to change the model is a copy.

    Args:
        model: `keras_lkca.LKCANet`, `keras_lkca.LKCAViT`, `keras_lkca.ViT` or
            `keras_lkca.LKCASegmenter`, or a functional model of your own with LKCA
            layers in it and no models within.
        input_shape: The new images' (height, width, channels), as many channels as
            before. Defaults to the model's.
        num_classes: Positive integer, the number of classes. Defaults to that of
            `class_names`, or to the model's.
        patch_size: Positive integer or pair of them, the new pixels per token. Defaults
            to the model's, whatever the images.
        class_names: Sequence of strings, the new classes, all different. Defaults to
            the model's, if there are as many.

    Returns:
        A new model of the same class, not compiled; an `ImageModel` where a model that
        could not carry names is given some. `model` stays as it is.

    Raises:
        ValueError: If an argument is not as above, the model is quantized or folded,
            it has no place for what is asked, or two of its classes have the name of
            one that is asked for.

    Example:

    >>> from keras_lkca import LKCAViT
    >>> from keras_lkca.models import adapt
    >>> model = LKCAViT(embed_dim=8, depth=1, class_names=list("abcdefghij"))
    >>> larger = adapt(model, (64, 48, 3), class_names=["a", "c", "new"])
    >>> larger.output_shape, tuple(larger.get_layer("block_0_lkca").kernel.shape)
    ((None, 3), (31, 23, 1))

    References:
        - Dosovitskiy et al., "An Image is Worth 16x16 Words", [arXiv 2010.11929](
          https://arxiv.org/abs/2010.11929), section 3.2, for the positions.
        - Beyer et al., "FlexiViT", [arXiv 2212.08013](
          https://arxiv.org/abs/2212.08013), for patches of another size.
    """
    old_names = _check(model)
    shape = model.input_shape[1:]
    if input_shape is not None:
        input_shape = check_image_shape(input_shape)
        if input_shape[-1] != shape[-1]:
            raise ValueError(
                f"`input_shape` must have the {shape[-1]} channels of the model. "
                f"Received: input_shape={input_shape!r}"
            )
    head = head_of(model)
    class_names = as_names(class_names)
    if isinstance(class_names, tuple) and num_classes is None:
        # One column decides between two classes.
        binary = head is not None and head.units == 1 and len(class_names) == 2
        num_classes = 1 if binary else len(class_names)
    if num_classes is not None or class_names is not None:
        if head is None:
            raise ValueError(
                "`model` must end with a Dense layer to be given other classes. "
                f"Received: num_classes={num_classes!r}, class_names={class_names!r}"
            )
        if num_classes is not None:
            num_classes = check_positive_int("num_classes", num_classes)
    classes = num_classes or (head and head.units)
    if class_names is not None:
        class_names = check_class_names(class_names, (None, classes))
        if len(set(class_names)) < len(class_names):
            raise ValueError(
                "`class_names` must be different, for what was learned is carried "
                f"over by them. Received: class_names={class_names!r}"
            )
    if class_names is None and head is not None and classes == head.units:
        class_names = old_names
    ratio = (1, 1)
    old_patch = patch_size_of(model)
    if patch_size is not None:
        if old_patch is None:
            raise ValueError(
                "`patch_size` can be changed of a model with patches or a stem alone. "
                f"Received: patch_size={patch_size!r}"
            )
        patch_size = check_pair("patch_size", patch_size)
        ratio = tuple(a / b for a, b in zip(old_patch, patch_size, strict=True))
    changes = {
        "input_shape": input_shape or shape,
        "num_classes": classes,
        "patch_size": patch_size or old_patch,
        "class_names": class_names,
    }
    new = _rebuild(model, head, changes)
    for layer in [x for x in model.layers if x.weights]:
        again = new.get_layer(layer.name)
        if layer is head:
            _carry_head(layer, again, old_names, class_names)
        else:
            _carry(layer, again, ratio, (_grid(model), _grid(new)))
    return new


def _check(model):
    """Return the names of a model's classes, or raise a `ValueError`."""
    graph = isinstance(model, keras.Model) and getattr(model, "outputs", None)
    within = graph and any(isinstance(x, keras.Model) for x in model.layers)
    if not graph or within or len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            "`model` must be a functional Keras model with one input and one output "
            "and without models within it, which are to be adapted one by one. "
            f"Received: model={model!r}"
        )
    for layer in sublayers(model):
        if isinstance(layer, FixedConv) or is_quantized(layer):
            raise ValueError(
                "`model` must be neither folded nor quantized: adapt it before. "
                f"Received: model={model!r}"
            )
    return names_within(model)


def patch_size_of(model):
    """Return a token's height and width in pixels, where the model says."""
    for layer in model.layers:
        if isinstance(layer, PatchEmbedding):
            return layer.patch_size
    strides = [
        layer.strides
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D) and layer.name.startswith("stem_")
    ]
    return tuple(int(size) for size in np.prod(strides, axis=0)) if strides else None


def adapt_padded(model, input_shape, patch_size=None):
    """Adapt a segmenter's backbone to images that its tokens need not divide.

    Args:
        model: See `adapt`.
        input_shape: The images' (height, width, channels), padded where need be.
        patch_size: See `adapt`.
    """
    shape = padded_shape(input_shape, patch_size or patch_size_of(model))
    return adapt(model, shape, patch_size=patch_size)


def padded_shape(input_shape, patch_size):
    """Return the shape of images that a backbone's tokens divide, padded if need be."""
    if patch_size is None:
        return tuple(input_shape)
    sizes = zip(input_shape, check_pair("patch_size", patch_size), strict=False)
    return (*(-(-size // patch) * patch for size, patch in sizes), input_shape[-1])


def _rebuild(model, head, changes):
    """Return a new model of other images or classes."""
    config = model.get_config()
    if "backbone" in config:  # a segmenter's, whose backbone sees the images
        backbone = keras.saving.deserialize_keras_object(config["backbone"])
        own = getattr(backbone, "class_names", None)
        theirs = {**changes, "class_names": own}
        kept = changes["input_shape"] == model.input_shape[1:]
        if kept and changes["patch_size"] == patch_size_of(model):
            theirs["input_shape"] = backbone.input_shape[1:]
        else:
            shape = padded_shape(changes["input_shape"], changes["patch_size"])
            theirs["input_shape"] = shape
        backbone = _rebuild(backbone, None, theirs)
        rows = _rows(
            *(config["num_classes"], changes["num_classes"]),
            *(config["class_names"], changes["class_names"]),
        )
        colors = config["class_colors"]
        if colors is not None:  # new classes have what is left of the usual ones
            usual = default_colors(changes["num_classes"] + len(colors)).tolist()
            spare = iter([x for x in map(tuple, usual) if x not in map(tuple, colors)])
            rows = rows or [None] * changes["num_classes"]
            colors = [next(spare) if row is None else colors[row] for row in rows]
        return type(model).from_config(
            {
                **config,
                "backbone": backbone,
                "input_shape": changes["input_shape"],
                "num_classes": changes["num_classes"],
                "class_names": changes["class_names"],
                "class_colors": colors,
            }
        )
    if "layers" not in config:  # a family's: its constructor's arguments
        if head is None:
            changes = {**changes, "num_classes": config["num_classes"]}
        return type(model).from_config({**config, **changes})

    def clone(layer):
        settings = layer.get_config()
        if layer is head:
            settings["units"] = changes["num_classes"]
        elif isinstance(layer, PatchEmbedding):
            settings["patch_size"] = changes["patch_size"]
        return type(layer).from_config(settings)

    inputs = keras.Input(changes["input_shape"], name=model.inputs[0].name)
    new = keras.models.clone_model(model, input_tensors=inputs, clone_function=clone)
    names = changes["class_names"]
    if not isinstance(model, ImageModel) and names is None:
        return new
    return ImageModel(new.input, new.output, names, name=model.name)


def _carry(layer, again, ratio, grids):
    """Set a new layer's weights to those of an old one, on another grid."""
    changed = {}
    if isinstance(layer, LKCA):
        kernel = _resampled(_array(layer.kernel), again.kernel.shape[:2], ratio)
        changed[again.kernel.path] = kernel
    elif isinstance(layer, PositionEmbedding):
        values = _array(layer.embeddings)
        shape = again.embeddings.shape
        changed[again.embeddings.path] = _interpolated(values, shape, grids)
    elif isinstance(layer, PatchEmbedding):
        changed[again.projection.kernel.path] = _repatched(layer, again)
    for old, new in zip(layer.weights, again.weights, strict=True):
        value = changed.get(new.path, old)
        _check_size(old, value.shape, new.shape)
        new.assign(value)


def _carry_head(layer, again, old_names, new_names):
    """Set a classifier's weights, those of the classes that both models have."""
    rows = _rows(layer.units, again.units, old_names, new_names)
    for old, new in zip(layer.weights, again.weights, strict=True):
        _check_size(old, old.shape[:-1], new.shape[:-1])
        old, values = _array(old), _array(new).copy()
        for place, row in enumerate(rows):
            if row is not None:
                values[..., place] = old[..., row]
        new.assign(values)


def _rows(units, new_units, old_names, new_names):
    """Return which of a classifier's old columns each new one is, or `None`."""
    if not (old_names and new_names) or old_names == new_names:
        return list(range(units)) if units == new_units else []
    if units != len(old_names) or new_units != len(new_names):
        return []  # one column of two classes, of which one is another now
    twice = [x for x in new_names if old_names.count(x) > 1]
    if twice:
        raise ValueError(
            f"`model` has two classes of the name {twice[0]!r}, and which of them is "
            f"asked for cannot be told. Received: class_names={new_names!r}"
        )
    return [old_names.index(x) if x in old_names else None for x in new_names]


def _check_size(weight, there, needed):
    if tuple(there) != tuple(needed):
        raise ValueError(
            f"`model` has weights {weight.path!r} whose shape depends on the grid in a "
            "way that is not known here: pool before that layer. Received: a shape of "
            f"{tuple(there)}, needed {tuple(needed)}"
        )


def _array(weight):
    return keras.ops.convert_to_numpy(weight)


def _offsets(new, old, ratio):
    """Return the matrix that carries the weights of offsets along an axis.

    `ratio` is an old token's size over a new one's. An old offset's weight goes to the
    new offsets about it, by their distance; where tokens become smaller, each new one
    takes its share of the old weight about it. Both keep the sum.
    """
    new_offsets = np.arange(new)[:, None] - new // 2
    old_offsets = np.arange(old)[None] - old // 2
    if ratio <= 1:
        return np.maximum(1 - abs(new_offsets - old_offsets * ratio), 0)
    return np.maximum(1 - abs(new_offsets / ratio - old_offsets), 0) / ratio


def _resampled(kernel, size, ratio):
    """Return a kernel of another size for tokens of another size."""
    rows, columns = (
        _offsets(new, old, part)
        for new, old, part in zip(size, kernel.shape, ratio, strict=False)
    )
    return np.einsum("ih,jw,hwg->ijg", rows, columns, kernel)


def _interpolated(values, shape, grids):
    """Return position embeddings for another grid, those of class tokens as they are.

    `grids` are the old and the new one, of embeddings of tokens in a row.
    """
    shape = tuple(shape)
    if values.shape == shape:
        return values
    if len(shape) == 2:
        (rows, columns), new = grids
        first = len(values) - rows * columns
        grid = values[first:].reshape(rows, columns, -1)
        grid = _interpolated(grid, (*new, shape[1]), grids)
        return np.concatenate([values[:first], grid.reshape(-1, shape[1])])
    resized = keras.ops.image.resize(
        keras.ops.convert_to_tensor(values[None]),
        shape[:2],
        "bicubic",
        antialias=True,
        data_format="channels_last",
    )
    return _array(resized)[0]


def _repatched(layer, again):
    """Return a patch embedding's matrix for patches of another size.

    Resized as pictures are, and scaled so that an even patch gives the same token.
    """
    kernel = _array(layer.projection.kernel)
    if layer.patch_size == again.patch_size:
        return kernel
    kernel = kernel.reshape(*layer.patch_size, -1, kernel.shape[-1])
    sizes = zip(layer.patch_size, again.patch_size, strict=True)
    rows, columns = (_averages(old, new) for old, new in sizes)
    resized = np.einsum("ih,jw,hwcd->ijcd", rows, columns, kernel)
    return resized.reshape(-1, kernel.shape[-1])


def _averages(old, new):
    """Return the matrix that spreads the pixels of a line over another number."""
    edges = np.linspace(0, old, new + 1)
    starts, ends = edges[:-1, None], edges[1:, None]
    pixels = np.arange(old)[None]
    return np.clip(np.minimum(ends, pixels + 1) - np.maximum(starts, pixels), 0, None)


def _grid(model):
    """Return the rows and columns of a model's patches, where it has them."""
    for layer in model.layers:
        if isinstance(layer, PatchEmbedding):
            return tuple(layer.output.shape[1:3])
    return None
