"""What a classifier of any making gives: logits or probabilities, of its classes."""

import keras


def check_classifier(model):
    """Check that a model maps images of one size to logits or probabilities.

    Raises:
        ValueError: If it does not.
    """
    shapes = [getattr(model, f"{side}_shape", None) for side in ("input", "output")]
    sizes = (4, 2)
    for shape, rank in zip(shapes, sizes, strict=True):
        static = (
            isinstance(shape, tuple) and len(shape) == rank and None not in shape[1:]
        )
        if not static or not all(isinstance(size, int) for size in shape[1:]):
            raise ValueError(
                "`model` must map images to classes, both of one size, and be a "
                f"functional model. Received: a model from {shapes[0]} to {shapes[1]}"
            )
    gives_probabilities(model)
    if shapes[1][1] < 2:
        raise ValueError(
            "`model` must have two classes or more, a probability each. Received: a "
            f"model from {shapes[0]} to {shapes[1]}"
        )


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
    history = tensor._keras_history
    last = history.operation
    if isinstance(last, keras.Model) and getattr(last, "outputs", None):
        return _is_probability(last.outputs[history.tensor_index])
    name = getattr(getattr(last, "activation", None), "__name__", None)
    if isinstance(last, keras.layers.Softmax) or type(last).__name__ == "Softmax":
        name = "softmax"
    passes_on = isinstance(last, keras.layers.Activation) and name == "linear"
    if passes_on or isinstance(last, _NEUTRAL):
        before = last._inbound_nodes[history.node_index].input_tensors
        kinds = {_is_probability(one) for one in before}
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
