"""From arrays of images and labels to the batches that `model.fit` takes."""

import keras
import numpy as np

from keras_lkca.backend import compiled
from keras_lkca.checks import check_number, check_positive_int, check_rate
from keras_lkca.data.augmentation import Augmentation
from keras_lkca.data.datasets import check_labels
from keras_lkca.extras import require_tensorflow

PIPELINES = ("tf.data", "arrays")


def training_batches(
    images,
    labels,
    batch_size: int,
    num_classes: int,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    first_step: int = 0,
    pipeline: str = "arrays",
):
    """Shuffle, batch and augment a dataset, without end.

    Every pass goes through all images in a new order; what is left over at its end
    opens the next. Order and augmentation follow from `seed` and the step's number
    alone, so that a run can go on from any step as if it had never stopped.

    Args:
        images: uint8 array `(n, height, width, channels)`.
        labels: Integer array `(n,)`.
        batch_size: Positive integer, not above `n`.
        num_classes: Positive integer, the length of the one-hot labels.
        augmentation: What is done to each batch; `None` for nothing.
        seed: Non-negative integer, seed of the order and the augmentation.
        first_step: Non-negative integer, the number of the first batch.
        pipeline: Where the augmentation runs: `"tf.data"`, on the CPU in TensorFlow's
            threads beside the training; or `"arrays"`, on the device of the active
            backend, without TensorFlow.

    Returns:
        A `tf.data.Dataset` or a Python generator of (float32 images, float32 labels)
        for `model.fit(..., steps_per_epoch=steps, shuffle=False)`.

    Raises:
        ValueError: If an argument is not as above.
        ImportError: If TensorFlow is missing, for `"tf.data"`.

    Example:

    >>> from keras_lkca import data
    >>> digits = data.load("digits", "train")
    >>> augmentation = data.Augmentation(flip=False, crop_padding=1)
    >>> batches = data.training_batches(*digits, 100, 10, augmentation)
    >>> images, labels = next(batches)
    >>> tuple(images.shape), tuple(labels.shape)
    ((100, 8, 8, 1), (100, 10))
    """
    check_positive_int("batch_size", batch_size)
    check_positive_int("num_classes", num_classes)
    check_number("seed", seed, integral=True)
    check_number("first_step", first_step, integral=True)
    if pipeline not in PIPELINES:
        raise ValueError(
            f"`pipeline` must be one of {PIPELINES}. Received: pipeline={pipeline!r}"
        )
    if getattr(images, "dtype", None) != "uint8" or images.ndim != 4:
        raise ValueError(
            "`images` must be a uint8 array (n, height, width, channels). Received: "
            f"{getattr(images, 'dtype', type(images))} {getattr(images, 'shape', '')}"
        )
    check_labels(labels, len(images), num_classes)
    if batch_size > len(images):
        raise ValueError(
            "`batch_size` must not be above the number of training images. "
            f"Received: batch_size={batch_size} for {len(images)} images"
        )

    def steps():
        return batch_rows(len(images), batch_size, seed, first_step)

    labels = keras.utils.to_categorical(labels, num_classes).astype("float32")
    if pipeline == "tf.data":
        return _tf_dataset(images, labels, batch_size, augmentation, steps)
    return _generator(images, labels, augmentation, steps)


def batch_rows(count, batch_size, seed, first_step=0):
    """Yield the rows and the seed of each batch, from a step on, without end.

    Example:

    >>> from keras_lkca.data.batches import batch_rows
    >>> batches = batch_rows(6, 4, seed=0)
    >>> rows = [int(row) for _ in range(3) for row in next(batches)[0]]
    >>> sorted(rows[:6]), sorted(rows[6:])
    ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    """
    step, order_of = first_step, {}
    while True:
        start = step * batch_size
        passes = range(start // count, (start + batch_size - 1) // count + 1)
        order_of = {
            number: order_of[number]
            if number in order_of
            else np.random.default_rng([seed, number]).permutation(count)
            for number in passes
        }
        orders = np.concatenate([order_of[number] for number in passes])
        offset = start - passes[0] * count
        # 31 bits, which every backend's integers hold.
        pair = np.random.SeedSequence([seed, step]).generate_state(2) >> 2
        yield orders[offset : offset + batch_size], pair.astype("int32")
        step += 1


def _generator(images, labels, augmentation, steps):
    """Batches for `fit`, the next one in the making while one is used."""
    augment = compiled(augmentation or _as_float)

    order = steps()

    def batch():
        rows, seed = next(order)
        return augment(images[rows], labels[rows], seed)

    following = batch()
    while True:
        # Where the device works by itself, it has this to do at once.
        current, following = following, batch()
        yield current


def _as_float(images, labels, _):
    return keras.ops.cast(images, "float32"), keras.ops.convert_to_tensor(labels)


def _tf_dataset(images, labels, batch_size, augmentation, steps):
    tf = require_tensorflow()
    with tf.device("CPU"):
        images = tf.convert_to_tensor(images)
        labels = tf.convert_to_tensor(labels)

    def batch(rows, seed):
        x, y = tf.gather(images, rows), tf.gather(labels, rows)
        return augmentation(x, y, seed) if augmentation else (tf.cast(x, "float32"), y)

    dataset = tf.data.Dataset.from_generator(
        steps,  # anew for every iterator: Keras takes one for a look at the shapes
        output_signature=(
            tf.TensorSpec((batch_size,), "int64"),
            tf.TensorSpec((2,), "int32"),
        ),
    )
    return dataset.map(batch, num_parallel_calls=tf.data.AUTOTUNE).prefetch(
        tf.data.AUTOTUNE
    )


def split(labels, share: float, seed: int = 0):
    """Draw a share of every class.

    Args:
        labels: Integer array `(n,)`.
        share: Float in [0, 1].
        seed: Non-negative integer, seed of the draw.

    Returns:
        Two sorted integer arrays: the rows of the share, and all others. Of a class
        of `k` images, `share * k` are drawn, rounded so that the total is right too.

    Raises:
        ValueError: If an argument is not as above.

    Example:

    >>> import numpy as np
    >>> from keras_lkca import data
    >>> drawn, others = data.split(np.array([0, 0, 0, 0, 1, 1, 1, 1]), 0.25)
    >>> len(drawn), len(others)
    (2, 6)
    """
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(
            "`labels` must have one axis, an integer an image; of a column take "
            f"labels.reshape(-1). Received: labels.shape={labels.shape}"
        )
    share = check_rate("share", share)
    check_number("seed", seed, integral=True)
    rng = np.random.default_rng([seed, 1])
    # Within its class each image has a rank; the share with the lowest is taken.
    # Equal ranks of the classes, spread at random, round the total fairly.
    order = rng.permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    _, starts, counts = np.unique(
        labels[by_class], return_index=True, return_counts=True
    )
    ranks = np.arange(len(labels)) - np.repeat(starts, counts)
    offsets = (rng.permutation(len(counts)) + 0.5) / max(len(counts), 1)
    ranks = (ranks + np.repeat(offsets, counts)) / np.repeat(counts, counts)
    taken = by_class[np.argsort(ranks, kind="stable")[: round(share * len(labels))]]
    mask = np.zeros(len(labels), bool)
    mask[taken] = True
    return np.flatnonzero(mask), np.flatnonzero(~mask)
