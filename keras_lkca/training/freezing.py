"""A backbone that stays as it is while its new classifier learns."""

import contextlib
import numbers

from keras_lkca.internals import sublayers
from keras_lkca.models import LKCASegmenter
from keras_lkca.models.classifiers import head_of


def frozen_epochs(freeze, epochs):
    """Return for how many epochs the classifier is trained alone.

    Args:
        freeze: `"backbone"` for all, a number of epochs, or `None` for none.
        epochs: Those of the run.

    Raises:
        ValueError: If it is none of these.

    Example:

    >>> from keras_lkca.training.freezing import frozen_epochs
    >>> frozen_epochs("backbone", 10), frozen_epochs(3, 10), frozen_epochs(None, 10)
    (10, 3, 0)
    """
    if freeze is None:
        return 0
    if freeze == "backbone":
        return epochs
    fits = isinstance(freeze, numbers.Integral) and not isinstance(freeze, bool)
    if not fits or not 0 < freeze < epochs:
        raise ValueError(
            "`freeze` must be 'backbone' to train the classifier alone, a number of "
            f"epochs to do so at first, between 1 and {epochs - 1} in a run of "
            f"{epochs}, or None. Received: freeze={freeze!r}"
        )
    return int(freeze)


@contextlib.contextmanager
def head_alone(model):
    """Freeze all of a model but its classifier, and leave it as it was.

    Of an `LKCASegmenter` all that comes after its backbone is left to train.

    Args:
        model: A functional or sequential model that ends with a Dense layer, after
            which a softmax or the like may come.

    Raises:
        ValueError: If it does not, or that layer is frozen itself.

    Example:

    >>> from keras_lkca import LKCAViT
    >>> from keras_lkca.training.freezing import head_alone
    >>> model = LKCAViT((8, 8, 1), patch_size=4, embed_dim=8, depth=1)
    >>> with head_alone(model):
    ...     print([variable.path for variable in model.trainable_variables])
    ['classifier/kernel', 'classifier/bias']
    """
    heads = [check_head(model)]
    if isinstance(model, LKCASegmenter):
        heads = model.decoder_layers
    ids = {id(layer) for layer in heads}
    # Each before those within it, whose flags it sets.
    layers = [model, *sublayers(model)]
    flags = [(layer, layer.trainable) for layer in layers]
    variables = [(variable, variable.trainable) for variable in model.variables]
    try:
        for layer in layers:
            if not ids & {id(x) for x in (layer, *sublayers(layer))}:
                layer.trainable = False
        yield
    finally:
        for layer, trainable in flags:
            layer.trainable = trainable
        for variable, trainable in variables:  # some are frozen one by one
            if variable.trainable != trainable:
                variable.trainable = trainable


def check_head(model):
    """Return a model's classifier, or raise a `ValueError`."""
    head = head_of(model)
    if head is None:
        raise ValueError(
            "`freeze` needs a model that ends with a Dense layer, a column for each "
            "class, and with a softmax or the like after it at most; freeze others by "
            f"layer.trainable. Received: {type(model).__name__} {model.name!r}"
        )
    if not head.trainable_variables:
        raise ValueError(
            "`freeze` trains the classifier alone, and it is frozen itself: set its "
            f"layer.trainable to True. Received: the layer {head.name!r}"
        )
    return head
