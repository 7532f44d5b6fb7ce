"""What a classifier of any making takes and gives."""

import warnings

import keras
import numpy as np

from keras_lkca.checks import check_finite
from keras_lkca.internals import calls, is_quantized, producer


def check_classifier(model, pixels=False):
    """Check that a model maps images of one size to logits or probabilities.

    Of any task, see `task_of`; with `pixels` a segmenter may come too.

    Raises:
        ValueError: If it does not.
    """
    check_shapes(model, pixels)
    if image_shape(model) is None:
        raise ValueError(
            "`model` must take images of one size, or resize them to one itself. "
            f"Received: a model from {model.input_shape} to {model.output_shape}"
        )
    task_of(model)


def is_segmenter(model):
    """Whether a model gives every pixel a class, `(batch, height, width, classes)`.

    Example:

    >>> from keras_lkca import LKCANet
    >>> from keras_lkca.models.classifiers import is_segmenter
    >>> is_segmenter(LKCANet((32, 32, 3), depth=1))
    False
    """
    before, after = (getattr(model, f"{x}_shape", None) for x in ("input", "output"))
    both = isinstance(before, tuple) and isinstance(after, tuple)
    return both and len(before) == len(after) == 4 and before[1:3] == after[1:3]


def check_shapes(model, pixels=False):
    """Return the shape of a classifier's images, and the number of its columns.

    Height and width are `None` where any fit. With `pixels` a segmenter may come too.

    Raises:
        ValueError: If it does not map images to classes, or its shapes are not known.
    """
    shapes = [getattr(model, f"{side}_shape", None) for side in ("input", "output")]
    if pixels and is_segmenter(model):
        if None in shapes[1][1:] or _ending(model.outputs[0]) == "sigmoid":
            raise ValueError(
                "`model` must take images of one size, and end with logits or a "
                "softmax over two or more classes of each pixel. Received: a model "
                f"from {shapes[0]} to {shapes[1]}, its end {_ending(model.outputs[0])}"
            )
        if shapes[1][-1] == 1:
            raise ValueError(
                "`model` must have a column for each class of a pixel, so two for yes "
                f"and no. Received: a model to {shapes[1]}"
            )
        return shapes[0][1:], shapes[1][-1]
    for shape, rank in zip(shapes, (4, 2), strict=True):
        fits = isinstance(shape, tuple) and len(shape) == rank
        if not fits or not isinstance(shape[-1], int):
            raise ValueError(
                "`model` must map images (batch, height, width, channels) to (batch, "
                "classes), and be a functional or a Sequential Keras model that is "
                "built: of others the shapes are not known. Received: "
                f"{type(model).__name__} from {shapes[0]} to {shapes[1]}"
            )
    return shapes[0][1:], shapes[1][1]


def task_of(model):
    """Return what a classifier decides, told by its width and its last activation.

    Logits on several columns are taken as those of one class out of many: with them
    a model for several labels an image cannot be told from its outputs.

    Args:
        model: A functional or sequential model with one output, `(batch, columns)`.

    Returns:
        `"categorical"`: one class out of many, a softmax or its logits;
        `"binary"`: yes or no, one column, a sigmoid or its logit;
        `"multilabel"`: any number of labels, a sigmoid on each of several columns.

    Raises:
        ValueError: If it ends with something else, or with a softmax on one column.

    Example:

    >>> import keras
    >>> from keras_lkca.models.classifiers import task_of
    >>> inputs = keras.Input((8,))
    >>> task_of(keras.Model(inputs, keras.layers.Dense(3, "sigmoid")(inputs)))
    'multilabel'
    """
    ending, columns = _ending(model.outputs[0]), model.outputs[0].shape[-1]
    if columns == 1 and ending == "softmax":
        raise ValueError(
            "`model` must not end with a softmax on one column, which is 1 whatever "
            "the image: end it with a sigmoid, or with two columns."
        )
    if columns == 1:
        return "binary"
    return "multilabel" if ending == "sigmoid" else "categorical"


def image_shape(model):
    """Return the (height, width, channels) of a model's images, or `None`.

    Where its input is of any size and the model resizes it, they are of that size.
    """
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4 or isinstance(shape[0], tuple):
        return None
    if None in shape[1:3]:
        pairs = zip(shape[1:3], _resized(model) or shape[1:3], strict=True)
        shape = (None, *(size or given for size, given in pairs), shape[3])
    return None if None in shape[1:] else shape[1:]


def _resized(model):
    """Return the first size that a model gives to feature maps of any size."""
    for call in reversed(calls(model)):
        before, after = call.input_tensors[0].shape, call.outputs[0].shape
        if len(before) != 4 or None not in before[1:3]:
            continue
        if isinstance(call.operation, keras.Model) and _is_graph(call.operation):
            size = _resized(call.operation)
        else:
            size = after[1:3] if len(after) == 4 and None not in after[1:3] else None
        if size:
            return size
    return None


def _is_graph(model):
    return bool(getattr(model, "outputs", None))


def as_images(model, images):
    """Return images as an array `(n, height, width, channels)` that a model takes.

    One image may come alone, and grey ones without an axis for their channel.

    Raises:
        ValueError: If they are not the model's, none, or not finite.

    Example:

    >>> import numpy as np
    >>> from keras_lkca import LKCAViT
    >>> from keras_lkca.models.classifiers import as_images
    >>> model = LKCAViT((8, 8, 1), patch_size=4, embed_dim=8, depth=1)
    >>> [as_images(model, np.zeros(shape)).shape for shape in ((8, 8), (5, 8, 8))]
    [(1, 8, 8, 1), (5, 8, 8, 1)]
    """
    wanted = model.input_shape
    given = images
    try:
        array = images = np.asarray(images)
    except ValueError as error:
        raise ValueError(
            f"`images` must be of one size, {wanted[1:]}; files may differ, give their "
            f"paths. Received: {error}"
        ) from error
    several = array.ndim == 3 and array.shape[-1] != 1
    if wanted[-1] == 1 and (array.ndim == 2 or several):
        array = array[..., None]
    array = array[None] if array.ndim == 3 else array
    right = array.ndim == 4 and all(
        size in (None, received)  # any that the model itself resizes
        for size, received in zip(wanted, array.shape, strict=True)
    )
    numbers = images.dtype.kind in "uif" or images.dtype.name == "bfloat16"
    if not right or not numbers or not len(array):
        grey = wanted[-1] == 3 and images.shape[-1:] != (3,) and images.ndim in (2, 3)
        raise ValueError(
            f"`images` must be numbers of shape "
            f"{('n', *(size or 'any' for size in wanted[1:]))}, or paths"
            + (
                "; grey ones become such by np.repeat(images[..., None], 3, axis=-1)"
                if grey and numbers
                else ""
            )
            + f". Received: {type(given).__name__} of {images.dtype} {images.shape}"
        )
    check_finite("images", array)
    return array


def warn_if_scaled(model, images, name="images"):
    """Warn of images that were scaled already where a model itself divides by 255.

    It does where the first thing that happens to its images is a Rescaling that makes
    them smaller, as in every model of this library. Black images are no sign of it,
    and neither is a little beyond [0, 255], as where images were resized.

    Args:
        model: Any Keras model.
        images: Array of images.
        name: What the caller calls them.

    Returns:
        Whether it warned.

    Example:

    >>> import numpy as np
    >>> from keras_lkca import LKCAViT
    >>> from keras_lkca.models.classifiers import warn_if_scaled
    >>> model = LKCAViT((8, 8, 1), patch_size=4, embed_dim=8, depth=1)
    >>> warn_if_scaled(model, np.full((1, 8, 8, 1), 255, "uint8"))
    False
    """
    # keras_lkca.data.ImageFiles are not to be decoded for it.
    if not isinstance(getattr(images, "dtype", None), np.dtype):
        images = np.asarray(images)
    # ml_dtypes' bfloat16 is of the kind "V".
    if not images.size or images.dtype in ("uint8", "bool") or not _divides(model):
        return False
    least, most = float(images.min()), float(images.max())
    if 0 <= least <= most <= 1 and most > 0 and images.dtype.kind not in "ui":
        how = "divided by 255. The model does that itself, and now sees almost black"
    elif least < 0 and (most <= 8 or least <= -64):
        how = "normalised. The model does that itself, and now sees wrong"
    elif most >= 1023:
        how = "of more than 8 bits. The model divides by 255, and now sees wrong"
    else:
        return False
    warnings.warn(
        f"The values of `{name}` lie between {least:.3g} and {most:.3g}, as if they "
        f"were {how} images: pass them as they are, in [0, 255]. "
        f"Received: {images.dtype} {images.shape}",
        stacklevel=3,
    )
    return True


def _divides(model):
    """Whether a model makes its images smaller before anything else."""
    inputs = {id(tensor) for tensor in getattr(model, "inputs", None) or ()}
    first = [
        call
        for call in calls(model)
        if any(id(tensor) in inputs for tensor in call.input_tensors)
    ]
    while len(first) == 1:
        (call,) = first
        layer = call.operation
        if isinstance(layer, keras.Model) and _is_graph(layer):
            return _divides(layer)
        if isinstance(layer, keras.layers.Rescaling):
            return bool(np.abs(layer.scale).max() < 1)
        converts = type(layer).__name__ == "ConvertToTensor"  # Keras's own
        if not converts and not isinstance(layer, _STILL_IMAGES):
            return False
        outputs = {id(tensor) for tensor in call.outputs}
        first = [
            call
            for call in calls(model)
            if any(id(tensor) in outputs for tensor in call.input_tensors)
        ]
    return False


def class_names(model):
    """Return the names of a classifier's classes, or `None` where they are not known.

    They are its own, or those of a model within it whose columns come to the end as
    the same classes: through a softmax or a sigmoid, a scale, an average with others
    of the same names. Of one column there are two, of 0 and of 1.
    """
    names = getattr(model, "class_names", None) or (
        _names_of(model.outputs[0]) if len(model.outputs) == 1 else None
    )
    return tuple(names) if names else None


def _names_of(tensor):
    """Return the names of the classes that a tensor's last axis is of, or `None`."""
    call, last, index = _last(tensor)
    if isinstance(last, keras.Model) and _is_graph(last):
        names = getattr(last, "class_names", None)
        return tuple(names) if names else _names_of(last.outputs[index])
    if not isinstance(last, _KEEPS_COLUMNS) and type(last).__name__ not in _OPERATIONS:
        return None
    if any(x.shape[-1] != tensor.shape[-1] for x in call.input_tensors):
        return None
    names = {_names_of(x) for x in call.input_tensors} - {None}
    return names.pop() if len(names) == 1 else None  # others contradict each other


def _last(tensor):
    """Return the call that a tensor comes from, what it calls, and which output."""
    call, index = producer(tensor)
    last = call.operation
    # What it does to each step it would do to one.
    many = isinstance(last, keras.layers.TimeDistributed)
    return call, last.layer if many else last, index


def head_of(model):
    """Return the Dense layer whose columns are a classifier's classes, or `None`.

    It may be in a model within the model, and a softmax or the like may follow it.

    Example:

    >>> import keras
    >>> from keras_lkca import LKCAViT
    >>> from keras_lkca.models.classifiers import head_of
    >>> model = LKCAViT((8, 8, 1), patch_size=4, embed_dim=8, depth=1)
    >>> head_of(keras.Model(model.input, keras.ops.softmax(model.output))).name
    'classifier'
    """
    columns, tensors = model.outputs[0].shape[-1], model.outputs
    while len(tensors) == 1:
        call, last, index = _last(tensors[0])
        if isinstance(last, keras.Model) and _is_graph(last):
            tensors = [last.outputs[index]]
        elif isinstance(last, keras.layers.Dense):
            return last if last.units == columns else None
        elif isinstance(last, _KEEPS_COLUMNS) or type(last).__name__ in _OPERATIONS:
            tensors = call.input_tensors
        else:
            break
    return None


def number_of_classes(model):
    """Return how many classes a classifier tells apart; one column tells two."""
    return max(model.output_shape[-1], 2)


def gives_probabilities(model):
    """Whether a classifier ends with a softmax or a sigmoid; otherwise with logits.

    Raises:
        ValueError: If it ends with anything else, such as a ReLU.
    """
    return _ending(model.outputs[0]) != "linear"


def probabilities(model, images, batch_size=128, mirror=False, task=None):
    """Return the probabilities that a classifier gives to images.

    Args:
        model: A classifier, of logits or of probabilities.
        images: Array `(n, height, width, channels)`.
        batch_size: Images per step.
        mirror: Whether to give the mean of the probabilities of an image and of its
            mirror image. It is that of probabilities, not of logits.
        task: See `task_of`, which knows it where it is left out.

    Returns:
        float64 array `(n, columns)`, of a segmenter `(n, height, width, columns)`.

    Example:

    >>> import numpy as np
    >>> from keras_lkca import LKCAViT
    >>> from keras_lkca.models.classifiers import probabilities
    >>> model = LKCAViT((8, 8, 1), patch_size=4, embed_dim=8, depth=1)
    >>> probabilities(model, np.ones((2, 8, 8, 1)), mirror=True).sum(1).round(6)
    array([1., 1.])
    """
    outputs = outputs_of(model, images, batch_size)
    if not gives_probabilities(model):
        outputs = from_logits(outputs, task or task_of(model))
    if mirror:
        # torch takes no array that is read backwards.
        mirrored = np.ascontiguousarray(np.asarray(images)[:, :, ::-1])
        others = probabilities(model, mirrored, batch_size, task=task)
        if others.ndim == 4:  # of pixels, which are mirrored back
            others = others[:, :, ::-1]
        outputs = (outputs + others) / 2
    return outputs


def outputs_of(model, images, batch_size):
    """Return what a model makes of images, float64 `(n, columns)`.

    They may be a `keras.utils.PyDataset`, in batches of its own.
    """
    outputs = model.predict(images, batch_size=batch_size, verbose=0)
    return np.asarray(outputs, "float64")


def from_logits(logits, task):
    """Return the probabilities of logits `(..., columns)`, see `task_of`."""
    if task != "categorical":
        return (1 + np.tanh(logits / 2)) / 2  # the sigmoid, without overflow
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def linear_head(model):
    """Return the Dense layer whose outputs are a classifier's logits.

    A softmax or a sigmoid may follow it, and what changes no values.

    Raises:
        ValueError: If it does not end so, or the layer has other outputs too.
    """
    graph, tensor, ends = model, model.outputs[0], True
    while True:
        call, last, index = _last(tensor)
        if isinstance(last, keras.Model) and _is_graph(last):
            graph, tensor = last, last.outputs[index]
            continue
        activation = getattr(getattr(last, "activation", None), "__name__", "linear")
        probable = activation in ("softmax", "sigmoid") or (
            type(last).__name__ in ("Softmax", "Sigmoid")
        )
        if (probable and not ends) or (not probable and activation != "linear"):
            break
        if isinstance(last, keras.layers.Dense):
            uses = [one for one in calls(graph) if one.operation is call.operation]
            if is_quantized(last) or last.lora_enabled or len(uses) > 1:
                break
            return last
        passes = isinstance(last, (*_NEUTRAL, keras.layers.Activation))
        if not (passes or probable or type(last).__name__ in ("Cast", "Resize")):
            break
        if len(call.input_tensors) != 1:
            break
        # No softmax of a softmax, and none whose probabilities are averaged.
        ends = ends and not (probable or isinstance(last, _AVERAGES))
        (tensor,) = call.input_tensors
    raise ValueError(
        "`model` must end with one Dense layer, called once, neither quantized nor "
        "with adapters, and a softmax or a sigmoid at most behind it: then its weights "
        f"can be scaled. Received: a model that ends with {type(last).__name__}"
    )


# What may be done to images before they are scaled.
_STILL_IMAGES = (
    *(keras.layers.Resizing, keras.layers.Identity, keras.layers.ZeroPadding2D),
)
# What neither makes probabilities of logits nor undoes them.
_AVERAGES = (
    *(keras.layers.GlobalAveragePooling1D, keras.layers.GlobalAveragePooling2D),
    keras.layers.Average,
)
_NEUTRAL = (
    *(keras.layers.Dropout, keras.layers.Identity, keras.layers.Flatten),
    *(keras.layers.Reshape, keras.layers.Cropping2D, *_AVERAGES),
)
# What leaves each class in its column: layers, and Keras's operations by name.
_KEEPS_COLUMNS = (
    *(*_NEUTRAL, keras.layers.Activation, keras.layers.Softmax, keras.layers.Add),
    *(keras.layers.Rescaling, keras.layers.Multiply, keras.layers.Maximum),
)
_OPERATIONS = (
    *("Softmax", "Sigmoid", "Cast", "Add", "Multiply", "TrueDivide", "Divide"),
    *("Mean", "Average", "Maximum", "Resize"),
)


def _ending(tensor):
    """Return what made a classifier's outputs: "softmax", "sigmoid" or "linear"."""
    call, last, index = _last(tensor)
    if isinstance(last, keras.Model) and _is_graph(last):
        return _ending(last.outputs[index])
    name = getattr(getattr(last, "activation", None), "__name__", None)
    kind = type(last).__name__
    if isinstance(last, keras.layers.Softmax) or kind in ("Softmax", "Sigmoid"):
        name = "sigmoid" if kind == "Sigmoid" else "softmax"
    passes_on = isinstance(last, keras.layers.Activation) and name == "linear"
    if passes_on or isinstance(last, _NEUTRAL) or kind in ("Cast", "Resize"):
        kinds = {_ending(one) for one in call.input_tensors}
        if len(kinds) == 1:
            return kinds.pop()
        raise ValueError(
            "`model` averages outputs of different kinds. Received: "
            f"{' and '.join(sorted(kinds))}"
        )
    if name not in ("softmax", "sigmoid", "linear"):
        raise ValueError(
            "`model` must end with a softmax, a sigmoid or a layer that gives logits. "
            f"Received: {kind}, "
            + (f"its activation {name!r}" if name else "which is neither")
        )
    return name
