"""From arrays of images and labels to the batches that `model.fit` takes."""

import collections.abc
import itertools

import keras
import numpy as np

from keras_lkca.backend import compiled, seeded
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
    one_hot: bool = True,
):
    """Shuffle, batch and augment a dataset, without end.

    Every pass goes through all images in a new order; what is left over at its end
    opens the next. Order and augmentation follow from `seed` and the step's number
    alone, so that a run can go on from any step as if it had never stopped.

    Args:
        images: Array `(n, height, width, channels)` of numbers in [0, 255].
        labels: Integer array `(n,)`; or float array `(n, num_classes)`, what each
            image has of each class.
        batch_size: Positive integer, not above `n`.
        num_classes: Positive integer, the length of the one-hot labels.
        augmentation: What is done to each batch; `None` for nothing.
        seed: Non-negative integer, seed of the order and the augmentation.
        first_step: Non-negative integer, the number of the first batch.
        pipeline: Where the augmentation runs: `"tf.data"`, on the CPU in TensorFlow's
            threads beside the training; or `"arrays"`, on the device of the active
            backend, without TensorFlow.
        one_hot: Whether the batches' labels are one-hot or mixed; `False` for integers,
            which a sparse loss takes and mixed images cannot have.

    Returns:
        A `tf.data.Dataset` or a Python generator of (float32 images, float32 or int32
        labels) for `model.fit(..., steps_per_epoch=steps, shuffle=False)`.

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
    check_numbers(images)
    labels = as_one_hot(labels, len(images), num_classes)
    check_mixing(augmentation, one_hot)
    if batch_size > len(images):
        raise ValueError(
            "`batch_size` must not be above the number of training images. "
            f"Received: batch_size={batch_size} for {len(images)} images"
        )

    def steps():
        return batch_rows(len(images), batch_size, seed, first_step)

    if pipeline == "tf.data":
        return _tf_dataset(images, labels, batch_size, augmentation, steps, one_hot)
    return _generator(images, labels, augmentation, steps, one_hot)


def check_numbers(images):
    """Raise a `ValueError` unless images are an array of numbers of rank 4."""
    kind = getattr(getattr(images, "dtype", None), "kind", "")
    if kind not in ("u", "i", "f") or images.ndim != 4:
        raise ValueError(
            "`images` must be an array of numbers (n, height, width, channels). "
            f"Received: {getattr(images, 'dtype', type(images))} "
            f"{getattr(images, 'shape', '')}"
        )


def as_one_hot(labels, count, num_classes):
    """Return labels as float32 `(count, num_classes)`.

    Args:
        labels: Integer array `(count,)` or `(count, 1)`, or float array
            `(count, num_classes)`.
        count: How many there must be.
        num_classes: Number of classes.

    Raises:
        ValueError: If they are not as above.

    Example:

    >>> from keras_lkca.data.batches import as_one_hot
    >>> as_one_hot([1, 0], 2, num_classes=3).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    labels = np.asarray(labels)
    if labels.shape == (count, num_classes) and num_classes > 1:
        return labels.astype("float32")
    if labels.shape == (count, 1):
        labels = labels[:, 0]
    check_labels(labels, count, num_classes)
    return keras.utils.to_categorical(labels, num_classes).astype("float32")


def dataset_batches(
    dataset,
    num_classes: int,
    steps_per_epoch: int,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    first_epoch: int = 0,
    one_hot: bool = True,
):
    """Augment the batches of a dataset of one's own, epoch after epoch, without end.

    Each epoch begins the dataset anew. While it begins, and for each batch, the
    generators of Python, NumPy and torch are seeded from `seed` and the step: what
    shuffles or augments by those draws the same again after a restart. So does a
    `tf.data.Dataset` that shuffles with a seed of its own.

    Args:
        dataset: `tf.data.Dataset`, `keras.utils.PyDataset`, torch `DataLoader`, or any
            iterable of batches `(images, labels)`, as `training_batches` takes them.
            An iterator is read on from epoch to epoch.
        num_classes: Positive integer, the length of the one-hot labels.
        steps_per_epoch: Positive integer, the batches of an epoch.
        augmentation: What is done to each batch; `None` for nothing.
        seed: Non-negative integer.
        first_epoch: Non-negative integer, the number of the first epoch.
        one_hot: See `training_batches`.

    Returns:
        A generator of (float32 images, float32 or int32 labels), on the device of the
        active backend.

    Raises:
        ValueError: If a batch is not as above, or the dataset ends before
            `steps_per_epoch`.

    Example:

    >>> from keras_lkca import data
    >>> images, labels = data.digits("train")
    >>> own = [(images[:50], labels[:50]), (images[50:90], labels[50:90])]
    >>> batches = data.dataset_batches(own, num_classes=10, steps_per_epoch=2)
    >>> [len(next(batches)[0]) for _ in range(3)]
    [50, 40, 50]
    """
    check_mixing(augmentation, one_hot)
    augment = _on_device(augmentation, one_hot)
    once = isinstance(dataset, collections.abc.Iterator)
    if once:
        for _ in range(first_epoch * steps_per_epoch):
            next(dataset)
    for epoch in range(first_epoch):
        _begin(dataset, seed, epoch)  # what counts its epochs counts them again
    for epoch in itertools.count(first_epoch):
        batches = dataset if once else _begin(dataset, seed, epoch)
        for step in range(steps_per_epoch):
            pair = batch_seed(seed, epoch * steps_per_epoch + step)
            with seeded(int(pair[0])):
                batch = next(batches, None)
            if batch is None:
                raise ValueError(
                    f"The dataset ended after {step} batches of an epoch of "
                    f"`steps_per_epoch`={steps_per_epoch}: name fewer, or let it "
                    "repeat."
                )
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise ValueError(
                    "A dataset must give pairs (images, labels). Received: "
                    f"{type(batch).__name__} of {len(batch)}"
                )
            images, labels = map(keras.ops.convert_to_numpy, batch)
            check_numbers(images)
            labels = as_one_hot(labels, len(images), num_classes)
            yield augment(images, labels, pair)


def _begin(dataset, seed, epoch):
    """Begin an epoch of a dataset, and return its batches."""
    with seeded(int(batch_seed(seed, epoch)[0])):
        if not isinstance(dataset, keras.utils.PyDataset):
            return iter(dataset)
        if epoch:
            dataset.on_epoch_end()
        dataset.on_epoch_begin()
    order = np.random.default_rng([seed, epoch]).permutation(len(dataset))
    return (dataset[int(index)] for index in order)


def check_mixing(augmentation, one_hot):
    """Raise a `ValueError` where mixed images would need integer labels."""
    if augmentation is not None and augmentation.mix_probability and not one_hot:
        raise ValueError(
            "Mixed images have no integer labels: compile the model with a loss of "
            "one-hot labels, such as CategoricalCrossentropy, or set "
            "mix_probability=0. Received: "
            f"mix_probability={augmentation.mix_probability}"
        )


def _on_device(augmentation, one_hot):
    """Return the augmentation as a function that the backend compiles."""

    def augment(images, labels, seed):
        if augmentation is None:
            images = keras.ops.cast(images, "float32")
            labels = keras.ops.convert_to_tensor(labels)
        else:
            images, labels = augmentation(images, labels, seed)
        return images, labels if one_hot else keras.ops.argmax(labels, axis=-1)

    return compiled(augment)


def batch_seed(seed, step):
    """Return the pair of seeds of a batch, which every backend's integers hold."""
    pair = np.random.SeedSequence([seed, step]).generate_state(2) >> 2
    return pair.astype("int32")


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
        yield orders[offset : offset + batch_size], batch_seed(seed, step)
        step += 1


def _generator(images, labels, augmentation, steps, one_hot):
    """Batches for `fit`, the next one in the making while one is used."""
    augment = _on_device(augmentation, one_hot)
    order = steps()

    def batch():
        rows, seed = next(order)
        return augment(images[rows], labels[rows], seed)

    following = batch()
    while True:
        # Where the device works by itself, it has this to do at once.
        current, following = following, batch()
        yield current


def _tf_dataset(images, labels, batch_size, augmentation, steps, one_hot):
    tf = require_tensorflow()
    with tf.device("CPU"):
        images = tf.convert_to_tensor(images)
        labels = tf.convert_to_tensor(labels)

    def batch(rows, seed):
        x, y = tf.gather(images, rows), tf.gather(labels, rows)
        x, y = augmentation(x, y, seed) if augmentation else (tf.cast(x, "float32"), y)
        return x, y if one_hot else tf.argmax(y, -1, "int32")

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
            "`labels` must have one axis, an integer per image; of a column take "
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
