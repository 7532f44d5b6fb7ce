"""What a classifier of any making takes and gives."""

import keras

from keras_lkca.internals import producer


def check_classifier(model):
    """Check that a model maps images of one size to logits or probabilities.

    Raises:
        ValueError: If it does not.
    """
    shapes = [getattr(model, f"{side}_shape", None) for side in ("input", "output")]
    outputs = shapes[1] if isinstance(shapes[1], tuple) else ()
    received = f"Received: a model from {shapes[0]} to {shapes[1]}"
    if image_shape(model) is None or len(outputs) != 2 or outputs[1] is None:
        raise ValueError(
            "`model` must map images to classes, both of one size, and be a "
            f"functional model. {received}"
        )
    gives_probabilities(model)
    if outputs[1] < 2:
        raise ValueError(
            f"`model` must have two classes or more, a probability each. {received}"
        )


def image_shape(model):
    """Return the (height, width, channels) of a model's images, or `None`.

    Where its input is of any size and a Resizing comes first, they are of that size.
    """
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4 or isinstance(shape[0], tuple):
        return None
    first = [x for x in model.layers if not isinstance(x, keras.layers.InputLayer)]
    if None in shape[1:3] and first and isinstance(first[0], keras.layers.Resizing):
        shape = (None, first[0].height, first[0].width, shape[3])
    return None if None in shape[1:] else shape[1:]


def class_names(model):
    """Return the names of a classifier's classes, or `None` where they are not known.

    They are its own, or those of a model within it whose outputs come to the end as
    they are or through a softmax.
    """
    names, (tensor, *others) = getattr(model, "class_names", None), model.outputs
    while not names and not others:
        call, index = producer(tensor)
        last = call.operation
        if isinstance(last, keras.Model) and getattr(last, "outputs", None):
            names, tensor = getattr(last, "class_names", None), last.outputs[index]
            continue
        same = [x.shape == tensor.shape for x in call.input_tensors]
        if same != [True] or not (
            isinstance(last, (keras.layers.Activation, *_NEUTRAL))
            or type(last).__name__ == "Softmax"
        ):
            return None
        (tensor,) = call.input_tensors
    return tuple(names) if names else None


def gives_probabilities(model):
    """Whether a classifier ends with a softmax; otherwise its outputs are logits.

    Raises:
        ValueError: If it ends with anything else, such as a sigmoid.
    """
    return _is_probability(model.outputs[0])


# What neither makes probabilities of logits nor undoes them.
_NEUTRAL = (
    *(keras.layers.Dropout, keras.layers.Identity, keras.layers.Flatten),
    *(keras.layers.Reshape, keras.layers.GlobalAveragePooling1D),
    *(keras.layers.GlobalAveragePooling2D, keras.layers.Average),
)


def _is_probability(tensor):
    call, index = producer(tensor)
    last = call.operation
    if isinstance(last, keras.Model) and getattr(last, "outputs", None):
        return _is_probability(last.outputs[index])
    name = getattr(getattr(last, "activation", None), "__name__", None)
    if isinstance(last, keras.layers.Softmax) or type(last).__name__ == "Softmax":
        name = "softmax"
    passes_on = isinstance(last, keras.layers.Activation) and name == "linear"
    if passes_on or isinstance(last, _NEUTRAL):
        kinds = {_is_probability(one) for one in call.input_tensors}
        if len(kinds) == 1:
            return kinds.pop()
        raise ValueError("`model` averages logits and probabilities.")
    if name not in ("softmax", "linear"):
        raise ValueError(
            "`model` must end with a softmax, or with a layer that gives logits. "
            f"Received: {type(last).__name__}, "
            + (f"its activation {name!r}" if name else "which is neither")
        )
    return name == "softmax"
