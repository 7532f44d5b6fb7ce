"""From arrays of images and labels to the batches that `model.fit` takes."""

import collections.abc
import concurrent.futures
import itertools
import numbers

import keras
import numpy as np

from keras_lkca.backend import compiled, seeded
from keras_lkca.checks import (
    check_finite,
    check_number,
    check_positive_int,
    check_rate,
)
from keras_lkca.data.augmentation import Augmentation
from keras_lkca.data.datasets import check_labels
from keras_lkca.data.decoding import ImageFiles
from keras_lkca.data.masks import as_masks
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
    class_weight=None,
):
    """Shuffle, batch and augment a dataset, without end.

    Every pass goes through all images in a new order; what is left over at its end
    opens the next. Order and augmentation follow from `seed` and the step's number
    alone, so that a run can go on from any step as if it had never stopped.

    Args:
        images: Array `(n, height, width, channels)` of numbers in [0, 255], or
            `keras_lkca.data.ImageFiles`.
        labels: Integer array `(n,)`; or float array `(n, num_classes)`, what each
            image has of each class. For one column `(n,)` or `(n, 1)` in [0, 1]. Or
            masks, an integer array `(n, height, width)` of a class for each pixel, -1
            or 255 for those to ignore.
        batch_size: Positive integer, not above `n`, and a multiple of the
            augmentation's `repeats`.
        num_classes: Positive integer, the length of the one-hot labels; 1 for a column
            of yes or no.
        augmentation: What is done to each batch; `None` for nothing.
        seed: Non-negative integer, seed of the order and the augmentation.
        first_step: Non-negative integer, the number of the first batch.
        pipeline: Where the augmentation runs: `"tf.data"`, on the CPU in TensorFlow's
            threads beside the training; or `"arrays"`, on the device of the active
            backend, without TensorFlow.
        one_hot: Whether the batches' labels are one-hot or mixed; `False` for integers,
            which a sparse loss takes and mixed images cannot have.
        class_weight: What an image of each class counts in the loss: a dictionary of
            class to number, 1 for those it leaves out; a sequence of a number per
            class; `"balanced"` for `n / (classes * count)`, of the classes that have
            images; or `None`. Mixed images get the mixed weight. Keras's own argument
            of `model.fit` takes no generators.

    Returns:
        A `tf.data.Dataset` or a Python generator of (float32 images, float32 or int32
        labels; int32 masks), with `class_weight` also float32 weights
        `(batch_size,)`, for `model.fit(..., steps_per_epoch=steps, shuffle=False)`.

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
    batch_size = check_positive_int("batch_size", batch_size)
    num_classes = check_positive_int("num_classes", num_classes)
    seed = check_number("seed", seed, integral=True)
    first_step = check_number("first_step", first_step, integral=True)
    if pipeline not in PIPELINES:
        raise ValueError(
            f"`pipeline` must be one of {PIPELINES}. Received: pipeline={pipeline!r}"
        )
    check_numbers(images)
    if of_pixels(labels):
        labels = as_masks(labels, images.shape[:3], num_classes)
        _check_unweighted(class_weight)
        if augmentation is not None:
            augmentation.check_for_masks()
    else:
        labels = as_one_hot(labels, len(images), num_classes)
        weights = weights_of_all(class_weight, labels)
        if weights is not None:
            labels = weighted(labels, weights)
        check_mixing(augmentation, one_hot)
    check_batch_size(batch_size, len(images))
    drawn = check_repeats(batch_size, augmentation)

    def steps():
        return batch_rows(len(images), drawn, seed, first_step)

    if pipeline == "tf.data":
        options = augmentation, steps, num_classes, one_hot
        return _tf_dataset(images, labels, drawn, *options)
    return _generator(images, labels, augmentation, steps, num_classes, one_hot)


def of_pixels(labels):
    """Whether labels are masks, a class for each pixel."""
    return len(getattr(labels, "shape", ())) in (3, 4)


def _check_unweighted(class_weight):
    if class_weight is not None:
        raise ValueError(
            "`class_weight` of masks is the loss's part, see keras_lkca.training.fit. "
            f"Received: class_weight={class_weight!r}"
        )


def check_batch_size(batch_size, count):
    """Raise a `ValueError` where there are fewer training images than in a batch."""
    if batch_size > count:
        raise ValueError(
            "`batch_size` must not be above the number of training images. "
            f"Received: batch_size={batch_size} for {count} images"
        )


def check_repeats(batch_size, augmentation):
    """Return how many images a batch is made of, or raise a `ValueError`."""
    repeats = 1 if augmentation is None else augmentation.repeats
    if batch_size % repeats:
        raise ValueError(
            "`batch_size` must be a multiple of the augmentation's `repeats`. "
            f"Received: batch_size={batch_size}, repeats={repeats}"
        )
    return batch_size // repeats


def check_numbers(images):
    """Raise a `ValueError` unless images are finite numbers in an array of rank 4."""
    kind = getattr(getattr(images, "dtype", None), "kind", "")
    if kind not in ("u", "i", "f") or images.ndim != 4:
        raise ValueError(
            "`images` must be an array of numbers (n, height, width, channels). "
            f"Received: {getattr(images, 'dtype', type(images))} "
            f"{getattr(images, 'shape', '')}"
        )
    check_finite("images", images)


def as_one_hot(labels, count, num_classes):
    """Return labels as float32 `(count, num_classes)`.

    Args:
        labels: Integer array `(count,)` or `(count, 1)`, or float array
            `(count, num_classes)`; for one column numbers in [0, 1].
        count: How many there must be.
        num_classes: Number of classes, or 1 for a column of yes or no.

    Raises:
        ValueError: If they are not as above.

    Example:

    >>> from keras_lkca.data.batches import as_one_hot
    >>> as_one_hot([1, 0], 2, num_classes=3).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    labels = np.asarray(labels)
    if num_classes == 1:
        fits = labels.shape in ((count,), (count, 1)) and labels.dtype.kind in "buif"
        if not fits or (count and not 0 <= labels.min() <= labels.max() <= 1):
            raise ValueError(
                f"`labels` must be {count} numbers in [0, 1], one for each image, for "
                f"one column: 0 for no, 1 for yes. Received: {labels.dtype} "
                f"{labels.shape}"
            )
        return labels.reshape(-1, 1).astype("float32")
    if labels.shape == (count, num_classes):
        check_finite("labels", labels)
        return labels.astype("float32")
    if labels.shape == (count, 1):
        labels = labels[:, 0]
    check_labels(labels, count, num_classes)
    return keras.utils.to_categorical(labels, num_classes).astype("float32")


def check_class_weight(class_weight, num_classes, names=()):
    """Return class weights as `None`, `"balanced"` or a list of a number per class.

    Args:
        class_weight: As `training_batches` takes it; a dictionary's classes may also be
            given by name.
        num_classes: Number of the labels' columns; one stands for two classes.
        names: Names of the classes, where they are known.

    Raises:
        ValueError: If it is not as above.

    Example:

    >>> from keras_lkca.data.batches import check_class_weight
    >>> check_class_weight({"dog": 2, 0: 0.5}, 3, ("cat", "dog", "owl"))
    [0.5, 2.0, 1.0]
    """
    if class_weight is None or isinstance(class_weight, str):
        if class_weight in (None, "balanced"):
            return class_weight
    count = max(num_classes, 2)
    names = [str(name) for name in names or range(count)]
    weights = None
    if isinstance(class_weight, collections.abc.Mapping):
        weights = [1.0] * count
        seen = set()
        for key, weight in class_weight.items():
            index = names.index(key) if key in names else key
            if isinstance(index, str) and index.isdecimal():
                index = int(index)
            whole = isinstance(index, numbers.Integral) and not isinstance(index, bool)
            if not whole or not 0 <= index < count:
                raise ValueError(
                    f"`class_weight` must name classes, 0 to {count - 1} or of "
                    f"{', '.join(names[:10])}{', ...' if count > 10 else ''}. "
                    f"Received: class_weight={class_weight!r}"
                )
            if index in seen or names.count(key) > 1:
                raise ValueError(
                    f"`class_weight` must name each class once; {key!r} stands for two "
                    "or was named before: give its number. Received: "
                    f"class_weight={class_weight!r}"
                )
            seen.add(index)
            weights[index] = weight
    elif isinstance(class_weight, (list, tuple, np.ndarray)):
        weights = list(class_weight)
    if weights is None or len(weights) != count:
        raise ValueError(
            "`class_weight` must be 'balanced', a dictionary of class to weight, a "
            f"weight for each of {count} classes, or None. "
            f"Received: class_weight={class_weight!r}"
        )
    weights = [check_number("class_weight", weight) for weight in weights]
    if not any(weights):
        raise ValueError(
            "`class_weight` must be above zero for one class at least, or nothing "
            f"would be learned. Received: class_weight={class_weight!r}"
        )
    return weights


def class_weights(class_weight, labels):
    """Return the weight of each image of one-hot labels, or `None` for none."""
    class_weight = check_class_weight(class_weight, labels.shape[1])
    if class_weight is None:
        return None
    shares = labels
    if labels.shape[1] == 1:
        shares = np.concatenate([1 - labels, labels], axis=1)
    if not np.allclose(shares.sum(1), 1, atol=1e-3):
        raise ValueError(
            "`class_weight` needs labels of one class an image, or shares of classes "
            "that sum to 1. Received: labels whose sums are "
            f"{shares.sum(1).min():.3g} to {shares.sum(1).max():.3g}"
        )
    if class_weight == "balanced":
        counts = shares.sum(0, dtype="float64")
        class_weight = np.where(
            counts > 0,
            len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1e-9)),
            1.0,
        )
    return (shares @ np.asarray(class_weight)).astype("float32")


def weights_of_all(class_weight, labels):
    """Return what `class_weights` does of all images, of which one must count."""
    weights = class_weights(class_weight, labels)
    if weights is not None and len(weights) and not weights.any():
        raise ValueError(
            "`class_weight` leaves no image that counts, so nothing would be learned: "
            "give a class that has images a weight above zero. "
            f"Received: class_weight={class_weight!r}"
        )
    return weights


def weighted(labels, weights):
    """Return labels with the images' weights as another column.

    As such they stay with their images, and mix as these do.
    """
    return np.concatenate([labels, weights.reshape(-1, 1)], 1).astype("float32")


def dataset_batches(
    dataset,
    num_classes: int,
    steps_per_epoch: int,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    first_epoch: int = 0,
    one_hot: bool = True,
    class_weight=None,
    look=None,
):
    """Augment the batches of a dataset of one's own, epoch after epoch, without end.

    Each epoch begins the dataset anew, which has to give its batches every time that
    it is iterated. While it begins, and for each batch, the generators of Python, NumPy
    and torch are seeded from `seed` and the step: what shuffles or augments by those
    draws the same again after a restart. So does a `tf.data.Dataset` that shuffles with
    a seed of its own. Keras's and TensorFlow's own seeds are set at the beginning of
    each epoch, and stay so.

    Args:
        dataset: `tf.data.Dataset`, `keras.utils.PyDataset`, torch `DataLoader`, or any
            iterable of batches `(images, labels)`, as `training_batches` takes them,
            or `(images, labels, weights)`, a weight for each image in the loss. An
            iterator cannot begin anew: it is read on from epoch to epoch, and must
            hold the batches of all of them.
        num_classes: Positive integer, the length of the one-hot labels.
        steps_per_epoch: Positive integer, the batches of an epoch.
        augmentation: What is done to each batch; `None` for nothing.
        seed: Non-negative integer.
        first_epoch: Non-negative integer, the number of the first epoch.
        one_hot: See `training_batches`.
        class_weight: See `training_batches`, but not `"balanced"`, for which all labels
            would have to be known. It multiplies the dataset's own weights.
        look: A function that is called with the first batch's images and labels as
            they come; `None` for none.

    Returns:
        A generator of (float32 images, float32 or int32 labels), and float32 weights
        where there are any, on the device of the active backend.

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
    check_known(class_weight)
    augment = _on_device(augmentation, num_classes, one_hot)
    once = isinstance(dataset, collections.abc.Iterator)
    for epoch in range(first_epoch):
        batches = _begin(dataset, seed, epoch)  # what counts epochs counts them again
        for step in range(steps_per_epoch if once else 0):
            if next(batches, None) is None:
                _ended(dataset, epoch, step, steps_per_epoch)
    for epoch in itertools.count(first_epoch):
        batches = _begin(dataset, seed, epoch)
        for step in range(steps_per_epoch):
            pair = batch_seed(seed, epoch * steps_per_epoch + step)
            with seeded(int(pair[0])):
                batch = next(batches, None)
            if batch is None:
                _ended(dataset, epoch, step, steps_per_epoch)
            images, labels, *own = as_arrays(batch)
            check_numbers(images)
            if look is not None:
                look(images, labels)
                look = None
            if of_pixels(labels):
                labels = as_masks(labels, images.shape[:3], num_classes)
                _check_unweighted(class_weight)
                if own:
                    raise ValueError(
                        "A dataset of masks must give batches (images, masks): what "
                        "pixels count is the loss's part, by -1 in the masks and "
                        "`class_weight` of keras_lkca.training.fit. Received: weights"
                    )
                yield augment(images, labels, pair)
                continue
            labels = as_one_hot(labels, len(images), num_classes)
            weights = class_weights(class_weight, labels)
            for given in own:
                _check_weights(given, len(images))
                given = given.reshape(-1)
                weights = given if weights is None else given * weights
            if weights is not None:
                labels = weighted(labels, weights)
            yield augment(images, labels, pair)


def _ended(dataset, epoch, step, steps_per_epoch):
    """Raise the `ValueError` of a dataset that gives too few batches."""
    if isinstance(dataset, collections.abc.Iterator):
        remedy = (
            "an iterator is read on from epoch to epoch, and needs "
            "`steps_per_epoch` batches for each. Give what begins anew every time that "
            "it is iterated, such as a list of batches"
        )
    elif step:
        remedy = (
            "name fewer `steps_per_epoch`, or leave it out where the dataset has a "
            "length. It need not repeat: each epoch begins it anew"
        )
    else:
        remedy = (
            "each epoch begins it anew, so it must give its batches every time that it "
            "is iterated"
        )
    raise ValueError(
        f"The dataset ended after {step % steps_per_epoch} batches of epoch "
        f"{epoch + 1}: {remedy}. Received: steps_per_epoch={steps_per_epoch}"
    )


def as_arrays(batch, name="A dataset"):
    """Return a dataset's batch as arrays: images, labels, and weights if it has any.

    Args:
        batch: What the dataset gave.
        name: What the caller calls the dataset.

    Raises:
        ValueError: If it is no batch.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
        size = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
        raise ValueError(
            f"{name} must give batches (images, labels), or (images, labels, weights). "
            f"Received: {type(batch).__name__}{size}"
        )
    return tuple(map(keras.ops.convert_to_numpy, batch))


def _check_weights(weights, count):
    if weights.shape not in ((count,), (count, 1)) or weights.dtype.kind not in "buif":
        raise ValueError(
            f"A dataset's weights must be {count} numbers, one for each image. "
            f"Received: {weights.dtype} {weights.shape}"
        )


def check_known(class_weight):
    """Raise a `ValueError` where weights would need all labels of a dataset."""
    if isinstance(class_weight, str) and class_weight == "balanced":
        raise ValueError(
            "`class_weight`='balanced' needs arrays, whose labels can be counted; for "
            "a dataset of batches give a dictionary of class to weight."
        )


def _begin(dataset, seed, epoch):
    """Begin an epoch of a dataset, and return its batches; an iterator is read on."""
    first = int(batch_seed(seed, epoch)[0])
    with seeded(first):
        # Of Keras and TensorFlow too, whose seeds no function returns. Not for every
        # batch: TensorFlow would forget the functions that it has made ready.
        keras.utils.set_random_seed(first)
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


def _parts(images, labels, columns, one_hot, argmax):
    """Take the weights off the labels, where there are any, and make them integers."""
    if len(labels.shape) == 3:
        return images, labels
    weights, labels = labels[:, columns:], labels[:, :columns]
    labels = labels if one_hot else argmax(labels)
    return (images, labels, weights[:, 0]) if weights.shape[1] else (images, labels)


def _on_device(augmentation, columns, one_hot):
    """Return the augmentation as a function that the backend compiles."""

    def augment(images, labels, seed):
        if augmentation is None:
            images = keras.ops.cast(images, "float32")
            labels = keras.ops.convert_to_tensor(labels)
            if len(labels.shape) == 3:
                labels = keras.ops.cast(labels, "int32")
        else:
            images, labels = augmentation(images, labels, seed)
        return _parts(images, labels, columns, one_hot, _argmax)

    return compiled(augment)


def _argmax(labels):
    return keras.ops.argmax(labels, axis=-1)


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


def _generator(images, labels, augmentation, steps, columns, one_hot):
    """Batches for `fit`, the next one in the making while one is used."""
    augment = _on_device(augmentation, columns, one_hot)
    taken = _taken(images, labels, steps())
    following = augment(*next(taken))
    while True:
        # Where the device works by itself, it has this to do at once.
        current, following = following, augment(*next(taken))
        yield current


def _taken(images, labels, order):
    """Yield each batch's images, labels and seed, files decoded one batch ahead."""
    if not isinstance(images, ImageFiles):
        for rows, seed in order:
            yield images[rows], labels[rows], seed
        return
    with concurrent.futures.ThreadPoolExecutor(1) as reader:
        ahead = None
        for rows, seed in order:
            following = reader.submit(images.__getitem__, rows), labels[rows], seed
            if ahead is not None:
                decoding, *others = ahead
                yield decoding.result(), *others
            ahead = following


def _tf_dataset(images, labels, batch_size, augmentation, steps, columns, one_hot):
    tf = require_tensorflow()
    with tf.device("CPU"):
        labels = tf.convert_to_tensor(labels)
        if not isinstance(images, ImageFiles):
            images = tf.convert_to_tensor(images)

    def taken(rows):
        if not isinstance(images, ImageFiles):
            return tf.gather(images, rows)
        x = tf.numpy_function(images.__getitem__, [rows], tf.uint8, stateful=False)
        return tf.ensure_shape(x, (batch_size, *images.shape[1:]))

    def batch(rows, seed):
        x, y = taken(rows), tf.gather(labels, rows)
        if augmentation:
            x, y = augmentation(x, y, seed)
        else:
            x, y = tf.cast(x, "float32"), tf.cast(y, "int32") if y.ndim == 3 else y
        return _parts(x, y, columns, one_hot, lambda y: tf.argmax(y, -1, "int32"))

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


class _InOrder(keras.utils.PyDataset):
    """Batches of images in files, in their order, as Keras evaluates and predicts."""

    def __init__(self, images, batch_size, labels):
        super().__init__()
        self.images, self.batch_size, self.labels = images, batch_size, labels

    def __len__(self):
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, index):
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
        images = self.images[rows]
        return (images,) if self.labels is None else (images, self.labels[rows])


def batchwise(images, batch_size, labels=None):
    """Return images in files as batches for Keras to evaluate or predict, others as is.

    Args:
        images: Array of images, or `keras_lkca.data.ImageFiles`.
        batch_size: Images per step.
        labels: Array of what goes with them; `None` for nothing.

    Example:

    >>> from keras_lkca import data
    >>> from keras_lkca.data.batches import batchwise
    >>> len(batchwise(data.ImageFiles(["a.jpg", "b.jpg", "c.jpg"], 8), 2))
    2
    """
    if isinstance(images, ImageFiles):
        return _InOrder(images, batch_size, labels)
    return images if labels is None else (images, labels)


def drawn_by(labels):
    """Return what `split` draws by: classes, or one kind where an image has none.

    Args:
        labels: Array of labels, integers or a row or a mask for each image.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.data.batches import drawn_by
    >>> drawn_by(np.ones((3, 2))).tolist()
    [0, 0, 0]
    """
    return labels if labels.ndim == 1 else np.zeros(len(labels), int)


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
