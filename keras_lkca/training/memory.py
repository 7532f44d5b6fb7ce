"""Training in less memory, for more time."""

import contextlib

import keras

from keras_lkca.internals import forget_compiled, sublayers


def able_to_rematerialize(model):
    """Return the layers that can keep their inputs alone for the gradient.

    Raises:
        ValueError: If the model holds none.

    Example:

    >>> from keras_lkca import LKCAViT
    >>> from keras_lkca.training.memory import able_to_rematerialize
    >>> model = LKCAViT((8, 8, 1), patch_size=4, embed_dim=8, depth=1)
    >>> [layer.name for layer in able_to_rematerialize(model)]
    ['block_0_lkca', 'block_0_mlp_expand']
    """
    able = [layer for layer in sublayers(model) if hasattr(layer, "rematerialize")]
    # A layer within one that is computed again is so already.
    within = {
        id(part)
        for layer in able
        if hasattr(layer, "dense_layers")
        for part in layer.dense_layers().values()
    }
    linear = keras.activations.linear  # which has nothing that lies between
    able = [
        layer
        for layer in able
        if id(layer) not in within and getattr(layer, "activation", None) is not linear
    ]
    if not able:
        raise ValueError(
            "`rematerialize` of the recipe needs a model with LKCA or SelfAttention "
            "layers, or TokenDense layers with an activation: leave it False. "
            f"Received: {model.name!r}, which holds none of them"
        )
    return able


@contextlib.contextmanager
def rematerialized(model, wanted=True):
    """Have the layers that can keep their inputs alone for the gradient do so.

    They compute what lies between their inputs and outputs again in the backward pass.
    What they draw at random is drawn once.

    Args:
        model: A Keras model.
        wanted: Whether it is to be so; `False` leaves the model alone.

    Raises:
        ValueError: If it has no such layers.

    Example:

    ```python
    with rematerialized(model):
        model.fit(images, labels)
    ```
    """
    able = able_to_rematerialize(model) if wanted else []
    try:
        for layer in able:
            layer.rematerialize = True
        if able:
            forget_compiled(model)
        yield
    finally:
        for layer in able:
            layer.rematerialize = False
        if able:
            forget_compiled(model)
