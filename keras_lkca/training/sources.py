"""What `fit` is given to learn from: arrays, files, or batches of one's own."""

import importlib.util
import math
from collections.abc import Iterable

import keras
import numpy as np

from keras_lkca import data
from keras_lkca.backend import device_kind
from keras_lkca.data.batches import (
    as_arrays,
    as_one_hot,
    check_batch_size,
    check_known,
    check_mixing,
    check_numbers,
    drawn_by,
    of_pixels,
    weights_of_all,
)
from keras_lkca.data.decoding import ImageFiles, as_stored, part_of
from keras_lkca.data.masks import as_masks
from keras_lkca.models.classifiers import check_shapes, is_segmenter, warn_if_scaled

# Images that validate and test are looked at after every epoch: in memory up to here.
HELD_BYTES = 2**28


def default_pipeline():
    """Augment in TensorFlow's threads on a CPU, where that is fastest."""
    tensorflow = importlib.util.find_spec("tensorflow") is not None
    return "tf.data" if tensorflow and device_kind() == "cpu" else "arrays"


def is_pair(images):
    """Whether it is images and labels; a list of two batches is a dataset."""
    pair = isinstance(images, (tuple, list)) and len(images) == 2
    return pair and not any(map(_is_batch, images))


def _is_batch(part):
    batch = isinstance(part, (tuple, list)) and len(part) in (2, 3)
    return batch and getattr(part[0], "ndim", None) == 4


def check_source(source, name):
    """Raise a `ValueError` unless it may be a pair of arrays or a dataset."""
    text = isinstance(source, (str, bytes, dict))
    first = source[0] if isinstance(source, (tuple, list)) and source else None
    if hasattr(source, "dtype"):
        received = f"one array of shape {tuple(source.shape)}"
    elif not is_pair(source) and hasattr(first, "dtype"):
        received = f"a {type(source).__name__} of {len(source)} arrays"
    elif text or not isinstance(source, (keras.utils.PyDataset, Iterable)):
        received = f"{name}={source!r}"
    else:
        return
    raise ValueError(
        f"`{name}` must be a pair of arrays (images, labels) or a dataset of batches; "
        f"a dataset's name is for keras_lkca.training.train. Received: {received}"
    )


def arrays_of(source, name, shape, classes, dense):
    """Return images and labels as arrays that fit the model, a dataset read whole."""
    if not is_pair(source):
        # Without weights, which are for the training.
        batches = [as_arrays(batch, f"`{name}`")[:2] for batch in source]
        if not batches:
            raise ValueError(f"`{name}` must not be empty. Received: no batches")
        source = [np.concatenate(part) for part in zip(*batches, strict=True)]
    images, labels = as_stored(source[0]), np.asarray(source[1])
    if name != "train" and isinstance(images, ImageFiles):
        if dense or images.size <= HELD_BYTES:
            images = images[:]
    check_numbers(images)
    if not len(images) or any(
        wanted not in (None, size)
        for wanted, size in zip(shape, images.shape[1:], strict=True)
    ):
        raise ValueError(
            f"The images of `{name}` must be {('n', *shape)}, as the model takes them. "
            f"Received: {images.shape}"
        )
    if dense:
        masks = as_masks(labels, images.shape[:3], classes, f"{name}[1]")
        if (masks < 0).all():
            raise ValueError(
                f"`{name}[1]` must have a pixel that counts. "
                "Received: masks of which all are to be ignored"
            )
        return images, masks
    one_hot = as_one_hot(labels, len(images), classes)
    if classes == 1:
        integers, exact = one_hot[:, 0].astype(int), np.isin(one_hot, (0, 1))
    else:
        integers = one_hot.argmax(-1)
        exact = (one_hot.max(-1) == 1) & (one_hot.sum(-1) == 1)
    return images, integers if exact.all() else one_hot


def hold_out(train, share, seed, argument):
    """Cut a share off the training images, drawn class by class where each has one.

    Args:
        train: Pair of arrays, images and labels: integers, or a row for each image.
        share: Float, the share.
        seed: Seed of the draw.
        argument: The share's name, for the messages.
    """
    if not is_pair(train) or not 0 < share < 1:
        raise ValueError(
            f"`{argument}` must be images and labels, a dataset of them, or a share in "
            f"(0, 1) of training arrays. Received: {argument}={share!r}"
        )
    images, labels = train
    rows, others = data.split(drawn_by(labels), float(share), seed)
    if not len(rows) or not len(others):
        raise ValueError(
            f"`{argument}` must leave images on both sides of {len(labels)}; use more "
            "of them, or choose the best epoch by the test images. "
            f"Received: {argument}={share!r}"
        )
    kept, held_out = ((part_of(images, part), labels[part]) for part in (others, rows))
    return kept, held_out


def _passes(train, recipe, steps):
    """Return how often an epoch begins a dataset anew, and the steps from each."""
    if steps is not None:
        return 1, steps
    try:
        return recipe.passes_per_epoch, len(train)
    except TypeError as error:
        raise ValueError(
            "`steps_per_epoch` is needed for a dataset whose length is not known. "
            f"Received: train={train!r}"
        ) from error


def steps_per_epoch_of(train, recipe, steps):
    """Return the steps of an epoch: those asked for, or of the recipe's passes."""
    if not is_pair(train):
        return math.prod(_passes(train, recipe, steps))
    count = len(train[0])
    check_batch_size(recipe.batch_size, count)
    return steps or max(recipe.passes_per_epoch * count // recipe.batch_size, 1)


def batches_of(train, model, recipe, facts, arguments, pipeline, steps, scaled):
    """Return the batches from an epoch on, and the labels that the loss takes."""
    _, classes = check_shapes(model, pixels=True)
    dense = is_segmenter(model)
    loss = model.loss
    loss = loss if isinstance(loss, str) else getattr(loss, "name", None) or str(loss)
    one_hot = "sparse" not in loss.lower()
    images = train[0] if is_pair(train) else None
    augmentation = augmentation_of(recipe, facts, images, model.input_shape[-1])
    class_weight = None  # of masks it is the loss that weighs the pixels
    if dense:
        augmentation.check_for_masks()
    else:
        check_mixing(augmentation, one_hot)
        class_weight = arguments["class_weight"]
        if is_pair(train):
            weights_of_all(class_weight, as_one_hot(train[1], len(train[1]), classes))
        else:
            check_known(class_weight)

    def look(images, labels):
        if of_pixels(labels) != dense:
            wanted = "masks, a class for every pixel" if dense else "classes of images"
            raise ValueError(
                f"`train` must give batches of images and {wanted}, as the model does. "
                f"Received: labels of shape {labels.shape}"
            )
        if not scaled:
            warn_if_scaled(model, images, "train")

    def batches(epoch):
        options = {"augmentation": augmentation, "seed": arguments["seed"]}
        options |= {"one_hot": one_hot, "class_weight": class_weight}
        if is_pair(train):
            return data.training_batches(
                *(*train, recipe.batch_size, classes),
                first_step=epoch * steps,
                pipeline=pipeline,
                **options,
            )
        passes, each = _passes(train, recipe, arguments["steps_per_epoch"])
        return data.dataset_batches(
            *(train, classes, each),
            first_epoch=epoch * passes,
            look=look,
            **options,
        )

    def labels_of(labels):
        if dense:
            return labels.astype("int32")
        one_hot_labels = as_one_hot(labels, len(labels), classes)
        return one_hot_labels if one_hot else one_hot_labels.argmax(-1)

    return batches, labels_of


def augmentation_of(recipe, facts, images, channels):
    """Return what is done to images, by what is known of them.

    Args:
        recipe: The recipe.
        facts: `keras_lkca.data.Dataset` of the images, or `None`.
        images: Array of them, of which the first tell the mean and the standard
            deviation where there are no facts; `None` where they come in batches.
        channels: Integer, how many each image has.
    """
    if facts:
        return recipe.augmentation(facts.flip, facts.mean, facts.std, facts.policy)
    mean, std = (0.5,) * channels, 0.0
    if images is not None:
        some = images[:1000]
        mean, std = (of(some, (0, 1, 2)) / 255 for of in (np.mean, np.std))
    return recipe.augmentation(mean=mean, std=std)
