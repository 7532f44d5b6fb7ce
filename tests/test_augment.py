"""Augmentation, on the device of the active backend and in `tf.data`."""

import keras
import numpy as np
import pytest

from keras_lkca import data
from keras_lkca.backend import compiled
from keras_lkca.data.augmentation import (
    clipped_box,
    rand_augment_operations,
    rectangles,
)

# JAX would compile every operation by itself.
WAYS = (
    ("compiled", "tf.data")
    if keras.config.backend() == "jax"
    else (*("eager", "compiled", "tf.data"),)
)
ways = pytest.mark.parametrize("way", WAYS)


def run(augmentation, images, labels, seed, way="eager"):
    """Augment one batch and return arrays."""
    seed = np.array(seed, "int32")
    if way == "tf.data":
        tf = pytest.importorskip("tensorflow")
        dataset = tf.data.Dataset.from_tensors((images, labels, seed))
        x, y = next(iter(dataset.map(augmentation)))
        return x.numpy(), y.numpy()
    function = compiled(augmentation) if way == "compiled" else augmentation
    x, y = function(images, labels, seed)
    return keras.ops.convert_to_numpy(x), keras.ops.convert_to_numpy(y)


@pytest.fixture
def batch(rng):
    images = rng.integers(0, 256, (28, 10, 12, 3)).astype("uint8")
    return images, np.eye(28, dtype="float32")


def crops(image, padding, flip):
    """All that shifts and flips may make of an image."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    for i, j in np.ndindex(2 * padding + 1, 2 * padding + 1):
        crop = padded[i : i + height, j : j + width]
        yield crop.tobytes()
        if flip:
            yield crop[:, ::-1].tobytes()


@ways
@pytest.mark.parametrize("flip", [False, True])
def test_a_shift_and_a_flip(flip, way, rng):
    image = rng.integers(0, 256, (6, 5, 3)).astype("uint8")
    images, labels = np.stack([image] * 400), np.ones((400, 1), "float32")
    allowed = set(crops(image, 1, flip))
    assert len(allowed) == (18 if flip else 9)
    augmentation = data.Augmentation(flip=flip, crop_padding=1)
    x, _ = run(augmentation, images, labels, (1, 2), way)
    counts = {}
    for one in x:
        key = one.astype("uint8").tobytes()
        counts[key] = counts.get(key, 0) + 1
    assert set(counts) == allowed
    assert max(counts.values()) < 3 * 400 / len(allowed)  # about equally often


def test_no_augmentation(batch):
    images, labels = batch
    x, y = run(data.Augmentation(flip=False, crop_padding=0), *batch, (0, 0))
    np.testing.assert_array_equal(x, images)
    np.testing.assert_array_equal(y, labels)


EVERYTHING = {
    "rand_augment": 2,
    "erase_probability": 0.25,
    "mix_probability": 0.5,
    "mean": (0.5, 0.4, 0.3),
}


@ways
def test_everything_follows_from_the_seed(batch, way):
    augmentation = data.Augmentation(**EVERYTHING)
    first = run(augmentation, *batch, (7, 3), way)
    again = run(data.Augmentation(**EVERYTHING), *batch, (7, 3), way)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == "float32" and np.isfinite(a).all()
    assert first[0].shape == batch[0].shape
    assert first[0].min() >= 0 and first[0].max() <= 255.001
    np.testing.assert_allclose(first[1].sum(-1), 1, atol=1e-6)
    for seed in ((7, 4), (8, 3)):
        assert np.abs(run(augmentation, *batch, seed, way)[0] - first[0]).mean() > 1


def test_eager_and_compiled_agree(batch):
    augmentation = data.Augmentation(**EVERYTHING)
    eager, fast = (
        run(augmentation, *batch, (7, 3), way) for way in ("eager", "compiled")
    )
    np.testing.assert_allclose(eager[0], fast[0], atol=1.01)  # rounding to whole greys
    np.testing.assert_allclose(eager[1], fast[1], atol=1e-6)


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="other backends draw otherwise"
)
def test_tf_data_and_the_device_agree(batch):
    augmentation = data.Augmentation(**EVERYTHING)
    here, there = (
        run(augmentation, *batch, (7, 3), way) for way in ("compiled", "tf.data")
    )
    np.testing.assert_allclose(here[0], there[0], atol=1.01)
    np.testing.assert_allclose(here[1], there[1], atol=1e-6)


# Mixing: images that show their label in every pixel


def plain(count=32, size=16):
    """Image i is of the grey i everywhere, its label the one-hot vector i."""
    greys = np.arange(count, dtype="uint8")
    images = np.broadcast_to(greys[:, None, None, None], (count, size, size, 3)).copy()
    return images, np.eye(count, dtype="float32")


def still(**options):
    return data.Augmentation(flip=False, crop_padding=0, **options)


@ways
@pytest.mark.parametrize("as_published", [False, True])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_labels_are_mixed_as_the_images_are(kind, as_published, way):
    other = "cutmix" if kind == "mixup" else "mixup"
    options = {"as_published": as_published, f"{other}_alpha": 0}
    augmentation = still(mix_probability=1.0, **options)
    images, labels = plain()
    weights = []
    for step in range(4):
        x, y = run(augmentation, images, labels, (0, step), way)
        np.testing.assert_allclose(y.sum(-1), 1, atol=1e-6)
        assert ((y >= 0).all()) and ((y > 0).sum(-1) <= 2).all()
        # The mean grey is the labels' own mean, weighted as they are.
        np.testing.assert_allclose(x.mean((1, 2, 3)), y @ np.arange(32), atol=1e-3)
        if kind == "cutmix":
            assert np.isin(x, np.arange(32)).all()  # no pixel is a mixture
        weights.extend(y.max(-1))
        # Every image that is mixed at all is mixed alike, or by a share of its own.
        shares = y[np.arange(32), np.arange(32)][(y > 0).sum(-1) == 2]
        assert (np.ptp(shares) < 1e-6) == as_published or not len(shares)
    if as_published:
        return
    # Beta(1, 1) is uniform: the larger share, of pairs that differ, lies about 0.75.
    weights = np.array([w for w in weights if w < 1])
    assert 0.65 < weights.mean() < 0.85


@ways
def test_the_share_of_batches_that_are_mixed(way):
    augmentation = still(mix_probability=0.5)
    images, labels = plain(8, 4)
    kinds = {"none": 0, "mixup": 0, "cutmix": 0}
    for step in range(60):
        x, y = run(augmentation, images, labels, (0, step), way)
        if (x == images).all() and (y == labels).all():
            kinds["none"] += 1
        else:
            kinds["cutmix" if np.isin(x, np.arange(8)).all() else "mixup"] += 1
    assert 20 <= kinds["none"] <= 40
    assert min(kinds["mixup"], kinds["cutmix"]) >= 7


@ways
def test_erasing(way, rng):
    images = np.full((200, 16, 16, 3), 255, "uint8")
    labels = np.ones((200, 1), "float32")
    augmentation = still(erase_probability=0.25, erase_area=0.4, mean=(0.0, 0.0, 0.0))
    x, _ = run(augmentation, images, labels, (0, 1), way)
    areas = (x == 0).all(-1).mean((1, 2))
    assert 0.15 < (areas > 0).mean() < 0.35
    # Keras draws the sides' squares, each up to the limit; a pixel's row of rounding.
    assert areas.max() <= (np.sqrt(0.4) + 1 / 16) ** 2 and areas.max() > 0.1


class Seeds(keras.random.SeedGenerator):
    """Other seeds with every draw, without a variable."""

    def __init__(self, seed):
        self.pair = [seed, 0]

    def next(self, ordered=True):
        self.pair[1] += 1
        return np.array(self.pair, "uint32")


def published_rectangle(rng, height, width, largest):
    """The loop of arXiv 1708.04896, algorithm 1, as the paper's code rounds."""
    while True:
        area = rng.uniform(0.02, largest) * height * width
        aspect = rng.uniform(0.3, 1 / 0.3)
        rows, columns = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if rows < height and columns < width:
            top = rng.integers(0, height - rows + 1)
            left = rng.integers(0, width - columns + 1)
            mask = np.zeros((height, width), bool)
            mask[top : top + rows, left : left + columns] = True
            return mask


def published_box(rng, height, width):
    """CutMix's box, arXiv 1905.04899, as the paper's code rounds and clips."""
    side = rng.uniform() ** 0.5
    row, column = rng.integers(height), rng.integers(width)
    rows, columns = int(height * side) // 2, int(width * side) // 2
    mask = np.zeros((height, width), bool)
    mask[
        max(row - rows, 0) : row + rows, max(column - columns, 0) : column + columns
    ] = 1
    return mask


def alike(masks, expected, standard_errors=5):
    """Whether boxes are drawn alike: each pixel, and sizes by each side."""
    for measure in (
        lambda m: m.astype(float),
        lambda m: m.any(2).sum(1).astype(float),
        lambda m: m.any(1).sum(1).astype(float) ** 2,
        lambda m: m.mean((1, 2)) ** 2,
    ):
        ours, theirs = measure(masks), measure(expected)
        error = np.sqrt(ours.var(0) / len(ours) + theirs.var(0) / len(theirs))
        difference = np.abs(ours.mean(0) - theirs.mean(0))
        assert (difference <= standard_errors * error + 1e-6).all()


def test_the_published_rectangle(rng):
    masks = rectangles(keras_backend(), (4000, 16, 12), 0.4, Seeds(1))
    masks = keras.ops.convert_to_numpy(masks)
    assert masks.shape == (4000, 16, 12, 1)
    expected = [published_rectangle(rng, 16, 12, 0.4) for _ in range(4000)]
    alike(masks[..., 0], np.stack(expected))


def test_the_published_box(rng):
    masks = [
        keras.ops.convert_to_numpy(clipped_box(keras_backend(), (8, 9, 12), 1.0, seed))
        for seed in map(Seeds, range(300))
    ]
    expected = [published_box(rng, 9, 12) for _ in range(4000)]
    alike(np.concatenate(masks)[..., 0], np.stack(expected))


def test_erasing_as_published(rng):
    images = np.full((200, 16, 16, 3), 255, "uint8")
    options = {"erase_probability": 0.25, "mean": (0.2, 0.4, 0.6)}
    x, _ = run(
        still(**options, as_published=True),
        images,
        np.ones((200, 1), "float32"),
        (0, 1),
    )
    erased = (x != 255).any(-1)
    assert 0.15 < erased.any((1, 2)).mean() < 0.35
    np.testing.assert_allclose(x[erased].mean(0), (51, 102, 153), rtol=1e-5)
    assert 0.02 * 200 < erased.sum((1, 2)).max() <= 0.4 * 256 + 16


# RandAugment


def keras_backend():
    """What the augmentation calls, as Keras's layers carry it."""
    return keras.layers.RandomFlip().backend


def applied(layer, images):
    """Images after an operation, the same draws every time."""
    x = keras.ops.convert_to_tensor(images)
    seeds = keras.random.SeedGenerator(1)
    changes = layer.get_random_transformation(x, training=True, seed=seeds)
    return keras.ops.convert_to_numpy(layer.transform_images(x, changes, training=True))


@pytest.mark.parametrize("index", range(14))
def test_every_operation(index, batch):
    """Each keeps shape and range; each but the identity changes something."""
    images, _ = batch
    layer = rand_augment_operations(1.0)[index]
    if layer is None:
        return
    x = images.astype("float32")
    y = applied(layer, x)
    assert y.shape == x.shape and y.min() >= -1e-3 and y.max() <= 255.001
    assert np.abs(y - x).max() > 1
    # An image's result is its own, whatever the others are.
    x[1:] = 255 - x[1:] / 2
    np.testing.assert_allclose(applied(layer, x)[0], y[0], atol=1e-3)


@pytest.mark.parametrize("index", range(3, 14))
def test_strength_of_every_operation(index, batch):
    """None at magnitude 0, and more at 1 than at a quarter."""
    x = batch[0].astype("float32")
    changes = []
    for magnitude in (0.0, 0.25, 1.0):
        layer = rand_augment_operations(magnitude)[index]
        change = np.abs(applied(layer, x) - x) if layer else np.zeros_like(x)
        # Solarization turns more pixels, not all of them far.
        changes.append((change > 1e-3).mean() if index == 3 else change.mean())
    assert changes[0] < 1e-3 and 0.05 < changes[1] < 0.8 * changes[2]


def test_contrast_brightness_and_sharpness_go_both_ways(rng):
    x = rng.uniform(60, 190, (40, 8, 8, 3)).astype("float32")
    for index, measure in ((6, np.std), (7, np.mean), (8, np.std)):
        y = applied(rand_augment_operations(0.5)[index], x)
        more = [measure(a) > measure(b) for a, b in zip(y, x, strict=True)]
        assert 5 < sum(more) < 35


def test_equalization_of_each_image_and_channel(rng):
    x = rng.integers(30, 90, (3, 8, 9, 2)).astype("float32")
    x[2] = 7  # one grey stays as it is
    y = applied(rand_augment_operations(0.5)[2], x)
    np.testing.assert_array_equal(y[2], x[2])
    for image, result in zip(x[:2], y[:2], strict=True):
        for channel in range(2):
            values = image[..., channel]
            ranks = (values[..., None, None] >= values).mean((-1, -2))
            lowest = (values == values.min()).mean()
            expected = 255 * (ranks - lowest) / (1 - lowest)
            np.testing.assert_allclose(result[..., channel], expected, atol=0.51)


@ways
def test_operations_are_drawn_for_each_image(way, rng):
    """In a batch of one image many times, many operations show."""
    image = rng.integers(0, 256, (8, 8, 3)).astype("uint8")
    images, labels = np.stack([image] * 56), np.eye(56, dtype="float32")
    x, y = run(still(rand_augment=1), images, labels, (0, 0), way)
    assert len(np.unique(x.reshape(56, -1).round(), axis=0)) > 25
    untouched = (np.abs(x - image).max((1, 2, 3)) < 0.5).sum()
    assert 4 <= untouched <= 30  # the identity's part, and operations of no strength
    np.testing.assert_array_equal(np.sort(y.argmax(-1)), np.arange(56))


@ways
def test_small_batches_get_every_operation(way, rng):
    image = rng.integers(0, 256, (8, 8, 3)).astype("uint8")
    images, labels = np.stack([image] * 4), np.eye(4, dtype="float32")
    augmentation = still(rand_augment=1, rand_augment_magnitude=1.0)
    seen = set()
    for step in range(12):
        x, y = run(augmentation, images, labels, (0, step), way)
        np.testing.assert_array_equal(y, labels)
        seen |= {one.round().astype(int).tobytes() for one in x}
    assert image.astype(int).tobytes() in seen and len(seen) > 8


def test_the_policy_does_not_matter(batch):
    keras.config.set_dtype_policy("mixed_bfloat16")
    x, y = run(data.Augmentation(**EVERYTHING), *batch, (7, 3), "compiled")
    assert x.dtype == y.dtype == "float32"
    keras.config.set_dtype_policy("float32")
    expected, _ = run(data.Augmentation(**EVERYTHING), *batch, (7, 3), "compiled")
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop_padding": -1}, "`crop_padding` must be an integer, 0 or"),
        ({"rand_augment": 1.5}, "`rand_augment` must be an integer, 0 or"),
        (
            {"rand_augment_magnitude": 2},
            r"`rand_augment_magnitude` must lie in \[0, 1\]",
        ),
        ({"erase_probability": -0.1}, "`erase_probability` must lie in"),
        ({"erase_area": "0.4"}, "`erase_area` must be a number"),
        ({"mix_probability": 1.5}, "`mix_probability` must lie in"),
        ({"mixup_alpha": -1}, "`mixup_alpha` must be a number, 0 or above"),
        ({"cutmix_alpha": -1}, "`cutmix_alpha` must be a number, 0 or above"),
        ({"cutmix_alpha": 2}, "`cutmix_alpha` must be at most 1"),
        (
            {"mix_probability": 1.0, "mixup_alpha": 0, "cutmix_alpha": 0},
            "`mixup_alpha` or `cutmix_alpha` must be above 0",
        ),
        ({"repeats": 0}, "`repeats` must be an integer, 1 or above"),
        ({"flip": "no"}, "`flip` must be True or False"),
        ({"as_published": 1}, "`as_published` must be True or False"),
        ({"policy": "random"}, "`policy` must be one of .'rand', 'auto', 'trivial'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.Augmentation(**arguments)


def test_a_batch_of_unknown_size_is_refused():
    tf = pytest.importorskip("tensorflow")
    dataset = tf.data.Dataset.from_tensor_slices(
        (np.zeros((8, 4, 4, 3), "uint8"), np.eye(8, dtype="float32"))
    ).batch(4)
    with pytest.raises(ValueError, match="static size.*drop_remainder=True"):
        dataset.map(lambda x, y: data.Augmentation()(x, y, (0, 0)))


def test_grey_images(rng):
    images = rng.integers(0, 256, (8, 8, 8, 1)).astype("uint8")
    augmentation = data.Augmentation(
        flip=False, crop_padding=1, erase_probability=1.0, mix_probability=1.0
    )
    x, _ = run(augmentation, images, np.eye(8, dtype="float32"), (0, 0))
    assert x.shape == images.shape
