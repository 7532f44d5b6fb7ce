"""From (image, label) pairs to the batches that `model.fit` takes."""

from keras_lkca.extras import require_tensorflow
from keras_lkca.layers.checks import check_positive_int

# Decoded images that are kept in memory, and those that are shuffled at a time.
MAX_CACHE_BYTES = 2**30
MAX_SHUFFLE_BYTES = 2**29


def training_pipeline(
    dataset,
    batch_size: int,
    num_classes: int,
    seed: int = 0,
    flip: bool = True,
    crop_padding: int = 4,
):
    """Shuffle, batch and augment a dataset for training.

    Each image is shifted by up to `crop_padding` pixels each way, black moving in,
    and mirrored half of the time. Order and augmentation are drawn anew each epoch
    and repeat exactly with the same seed. A dataset of up to 1 GiB is kept in
    memory once it is decoded.

    Args:
        dataset: `tf.data.Dataset` of (uint8 image, integer label).
        batch_size: Positive integer. A last, smaller batch is dropped, so that all
            have one shape.
        num_classes: Positive integer, the length of the one-hot labels.
        seed: Integer, seed of the order and the augmentation.
        flip: Whether to mirror; not where a mirrored image is of another class.
        crop_padding: Non-negative integer, pixels; 0 for no shift.

    Returns:
        `tf.data.Dataset` of uint8 images `(batch, height, width, channels)` and
        float32 one-hot labels `(batch, num_classes)`.

    Raises:
        ValueError: If an argument is not as above, the images' shape is not static,
            or the dataset holds less than one batch.

    Example:

    >>> from keras_lkca import data
    >>> digits = data.load("digits", "train")
    >>> pipeline = data.training_pipeline(digits, 100, num_classes=10, flip=False)
    >>> images, labels = next(iter(pipeline))
    >>> tuple(images.shape), tuple(labels.shape)
    ((100, 8, 8, 1), (100, 10))
    """
    tf = require_tensorflow()
    check_positive_int("batch_size", batch_size)
    check_positive_int("num_classes", num_classes)
    if not isinstance(crop_padding, int) or crop_padding < 0:
        raise ValueError(
            "`crop_padding` must be a non-negative integer. "
            f"Received: crop_padding={crop_padding!r}"
        )
    shape = dataset.element_spec[0].shape
    if shape.rank != 3 or not shape.is_fully_defined():
        raise ValueError(
            "`dataset` must hold images of one known shape (height, width, channels); "
            f"resize them first. Received: images of shape {shape}"
        )
    count = int(dataset.cardinality())
    if 0 <= count < batch_size:
        raise ValueError(
            "`batch_size` must not be above the number of images. "
            f"Received: batch_size={batch_size} for {count} images"
        )
    dataset = _cached(dataset, count)
    buffer = MAX_SHUFFLE_BYTES // shape.num_elements()
    dataset = dataset.shuffle(min(buffer, count) if count > 0 else buffer, seed=seed)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    draws = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
    dataset = tf.data.Dataset.zip(dataset, draws.batch(2))

    def augment(batch, draw):
        images, labels = batch
        images = _flip_and_crop(tf, images, draw, flip, crop_padding)
        return images, tf.one_hot(labels, num_classes)

    dataset = dataset.map(augment, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.prefetch(tf.data.AUTOTUNE)


def evaluation_pipeline(dataset, batch_size: int, num_classes: int):
    """Batch a dataset for evaluation: every image once, in order, as it is.

    Args:
        dataset: `tf.data.Dataset` of (uint8 image, integer label).
        batch_size: Positive integer; the last batch may be smaller.
        num_classes: Positive integer, the length of the one-hot labels.

    Returns:
        `tf.data.Dataset` of uint8 images `(batch, height, width, channels)` and
        float32 one-hot labels `(batch, num_classes)`.

    Raises:
        ValueError: If an argument is not as above.

    Example:

    >>> from keras_lkca import data
    >>> digits = data.load("digits", "test")
    >>> len(data.evaluation_pipeline(digits, 100, num_classes=10))
    4
    """
    tf = require_tensorflow()
    check_positive_int("batch_size", batch_size)
    check_positive_int("num_classes", num_classes)
    dataset = _cached(dataset, int(dataset.cardinality())).batch(batch_size)
    dataset = dataset.map(
        lambda images, labels: (images, tf.one_hot(labels, num_classes)),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    return dataset.prefetch(tf.data.AUTOTUNE)


def _cached(dataset, count):
    size = dataset.element_spec[0].shape.num_elements()
    known = size is not None and count > 0
    return dataset.cache() if known and count * size <= MAX_CACHE_BYTES else dataset


def _flip_and_crop(tf, images, seed, flip, padding):
    """Shift and mirror each image of a batch by a gather of rows, then columns."""
    batch, height, width = images.shape[:3]
    offset_seed, flip_seed = (tf.stack([seed[0], seed[1] + i]) for i in range(2))
    offsets = tf.random.stateless_uniform(
        (2, batch, 1), offset_seed, 0, 2 * padding + 1, tf.int32
    )
    rows, columns = tf.range(height) + offsets[0], tf.range(width) + offsets[1]
    if flip:
        mirror = tf.random.stateless_uniform((batch, 1), flip_seed) < 0.5
        columns = tf.where(mirror, tf.reverse(columns, [1]), columns)
    pads = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    images = tf.gather(tf.pad(images, pads), rows, axis=1, batch_dims=1)
    return tf.gather(images, columns, axis=2, batch_dims=1)
