"""Policies of augmentation, against Pillow, which the papers' were made with."""

import keras
import numpy as np
import pytest
from test_augment import Seeds, keras_backend, run, still, ways

from keras_lkca.data.policies import (
    OPERATIONS,
    POLICIES,
    apply_policy,
    histograms,
    strengths,
)


def pillow(name, image, strength):
    """An operation as Pillow has it; enhancements go by a factor, 1 for none."""
    Image = pytest.importorskip("PIL.Image")
    from PIL import ImageEnhance, ImageOps

    image = Image.fromarray(image)

    def affine(*matrix):
        return image.transform(
            image.size, Image.Transform.AFFINE, matrix, fillcolor=(128, 128, 128)
        )

    enhance = getattr(ImageEnhance, name.capitalize(), None)
    if enhance:
        result = enhance(image).enhance(1 + strength)
    else:
        result = {
            "identity": lambda: image,
            "shear_x": lambda: affine(1, strength, 0, 0, 1, 0),
            "shear_y": lambda: affine(1, 0, 0, strength, 1, 0),
            "translate_x": lambda: affine(1, 0, strength, 0, 1, 0),
            "translate_y": lambda: affine(1, 0, 0, 0, 1, strength),
            "rotate": lambda: image.rotate(strength, fillcolor=(128, 128, 128)),
            "posterize": lambda: ImageOps.posterize(image, 8 - int(np.log2(strength))),
            "solarize": lambda: ImageOps.solarize(image, strength),
            "autocontrast": lambda: ImageOps.autocontrast(image),
            "equalize": lambda: ImageOps.equalize(image),
            "invert": lambda: ImageOps.invert(image),
        }[name]()
    return np.asarray(result).astype("float32")


STRENGTHS = {
    **dict.fromkeys(("shear_x", "shear_y"), (0.21, -0.3, 0.0, 0.9, -0.5)),
    **dict.fromkeys(("translate_x", "translate_y"), (3.3, -4.7, 0, 14, -40)),
    **dict.fromkeys(("color", "contrast"), (0.9, -0.9, 0.3, 0.0, 1.0)),
    **dict.fromkeys(("brightness", "sharpness"), (0.9, -0.9, 0.3, 0.0, 1.0)),
    "rotate": (0, 17, -30, 100, -131),
    "posterize": (1, 2, 4, 16, 64),
    "solarize": (0, 256, 100.5, 128, 30),
}


@pytest.fixture
def images(rng):
    """Of few greys, of one, of black and white, of many with a bright end."""
    images = rng.integers(20, 200, (5, 20, 24, 3))
    images[1] //= 3
    images[2, ..., 0] = 7
    images[3] = 255 * (images[3] > 100)
    images[4] = np.linspace(-50, 300, 24)[None, :, None] + images[4] / 4
    return np.clip(images, 0, 255).astype("uint8")


def applied(name, images, strength):
    strength = np.array(strength, "float32").reshape(-1, 1, 1, 1)
    images, strength = map(
        keras.ops.convert_to_tensor, (images.astype("float32"), strength)
    )
    result = OPERATIONS[name](keras_backend(), images, strength, 128.0)
    return keras.ops.convert_to_numpy(result)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_pillows(name, images):
    strength = STRENGTHS.get(name, (0,) * 5)
    ours = applied(name, images, strength)
    theirs = np.stack(
        [pillow(name, *pair) for pair in zip(images, strength, strict=True)]
    )
    # Pillow cuts off to whole greys, by its own rounding where they are whole.
    same = (np.floor(ours + 1e-3) == theirs) | (np.floor(ours - 1e-3) == theirs)
    # A point between two pixels may fall to either.
    assert same.mean() > 0.995 if name == "rotate" else same.all()


def test_operations_on_other_images(rng):
    """Grey ones, of four channels, and too small for what looks about."""
    for shape in ((3, 6, 5, 4), (3, 1, 2, 1)):
        images = rng.integers(0, 256, shape)
        for name in OPERATIONS:
            y = applied(name, images, STRENGTHS.get(name, (0,) * 3)[:3])
            assert y.shape == shape and 0 <= y.min() <= y.max() <= 255
    grey = rng.integers(0, 256, (5, 6, 5, 1))
    np.testing.assert_array_equal(applied("color", grey, STRENGTHS["color"]), grey)


def test_histograms(rng):
    images = rng.integers(0, 256, (2, 5, 4, 3))
    levels, counts = histograms(keras_backend(), images)
    counts = keras.ops.convert_to_numpy(counts)
    for i, c in np.ndindex(2, 3):
        expected = np.bincount(images[i, ..., c].ravel(), minlength=256)
        np.testing.assert_array_equal(counts[3 * i + c], expected)
    greys = keras.ops.convert_to_numpy(levels) % 256
    np.testing.assert_array_equal(greys, images)


@pytest.mark.once
def test_the_tables():
    """As the papers count: 25 pairs of 14 operations, by a share and a level of ten."""
    for name in ("auto_cifar10", "auto_svhn", "auto_imagenet"):
        rows = POLICIES[name]
        assert len(rows) == 25 and {len(row) for row in rows} == {2}
        for operation, share, level in sum(rows, ()):
            assert operation in OPERATIONS and operation != "identity"
            assert round(10 * share) == 10 * share and level in range(10)
    # Those that the papers name in their text and figures.
    assert POLICIES["auto_cifar10"][0] == (("invert", 0.1, 7), ("contrast", 0.2, 6))
    assert POLICIES["auto_svhn"][0] == (("shear_x", 0.9, 4), ("invert", 0.2, 3))
    assert POLICIES["auto_imagenet"][0] == (("posterize", 0.4, 8), ("rotate", 0.6, 9))
    shares = {name: sum(r[1] for row in POLICIES[name] for r in row) for name in SUMS}
    assert shares == pytest.approx(SUMS)
    operations = [row[0][0] for row in POLICIES["trivial"]]
    assert sorted({*operations, "invert"}) == sorted(OPERATIONS)


# Of all probabilities in a table.
SUMS = {"auto_cifar10": 26.5, "auto_svhn": 32.9, "auto_imagenet": 31.0}


@pytest.mark.once
def test_the_strengths():
    """The ranges of the two papers: AutoAugment's table 6, TrivialAugment's table 1."""
    auto, both_ways = strengths("auto_imagenet", 100, 200)
    ends = {name: (float(x[0]), float(x[-1])) for name, x in auto.items()}
    assert ends["shear_x"] == pytest.approx((0, 0.3))
    assert ends["translate_x"] == pytest.approx((0, 200 * 150 / 331))
    assert ends["translate_y"] == pytest.approx((0, 100 * 150 / 331))
    assert ends["rotate"] == (0, 30) and ends["solarize"] == (256, 0)
    assert ends["color"] == pytest.approx((0, 0.9))  # factors of 0.1 to 1.9
    assert auto["posterize"].tolist() == [1, 1, 2, 2, 4, 4, 8, 8, 16, 16]
    assert "color" in both_ways and "solarize" not in both_ways
    wide, both_ways = strengths("trivial", 100, 200)
    ends = {name: (float(x[0]), float(x[-1])) for name, x in wide.items()}
    assert all(len(x) == 31 for x in wide.values())
    assert ends["shear_y"] == pytest.approx((0, 0.99))
    assert ends["translate_x"] == ends["translate_y"] == (0, 32)
    assert ends["rotate"] == (0, 135) and ends["solarize"] == (256, 0)
    assert ends["sharpness"] == pytest.approx((-0.99, 1))  # factors of 0.01 to 2
    assert ends["posterize"] == (1, 64)  # of eight bits, two
    assert "rotate" in both_ways and "sharpness" not in both_ways


def expected_mean(policy, image):
    """The mean grey of all that a policy may make of an image, by its chances."""
    height, width = image.shape[:2]
    levels, both_ways = strengths(policy, height, width)
    total = 0.0
    for row in POLICIES[policy]:
        ends = [(1 / len(POLICIES[policy]), image.astype("uint8"))]
        for name, share, level in row:
            chosen = levels[name] if level is None else levels[name][[level]]
            further = [(p * (1 - share), x) for p, x in ends]
            for p, x in ends:
                for strength in chosen:
                    for sign in (1, -1) if name in both_ways else (1,):
                        chance = p * share / len(chosen)
                        chance /= 2 if name in both_ways else 1
                        y = pillow(name, x, sign * float(strength))
                        further.append((chance, y.astype("uint8")))
            ends = further
        total += sum(p * x.astype(float) for p, x in ends)
    return total


@pytest.mark.skipif(
    keras.config.backend() == "jax", reason="it would compile every operation by itself"
)
@pytest.mark.parametrize(
    ("policy", "count", "batches"),
    [
        # Shares of a batch; and each image for itself.
        ("auto_cifar10", 1000, 2),
        ("auto_imagenet", 1000, 2),
        ("auto_svhn", 48, 20),
    ],
)
def test_a_policy_is_what_its_table_says(policy, count, batches):
    """On average over many draws each pixel is what Pillow makes of the table."""
    image = np.clip(np.add.outer(np.arange(16) * 9, np.arange(20) * 6), 0, 255)
    image = np.stack([image, 250 - image, image // 2], -1).astype("uint8")
    images = keras.ops.convert_to_tensor(np.stack([image] * count).astype("float32"))
    labels = keras.ops.zeros((count, 1))
    results = [
        apply_policy(keras_backend(), images, labels, Seeds(step), policy)[0]
        for step in range(batches)
    ]
    ours = np.concatenate([keras.ops.convert_to_numpy(x) for x in results])
    error = np.sqrt(ours.var(0) / len(ours))
    difference = np.abs(ours.mean(0) - expected_mean(policy, image))
    # Pillow cuts off the fractions of greys, up to twice.
    assert (difference < 5 * error + 1).all()


@ways
def test_images_of_a_batch_draw_for_themselves(way, rng):
    image = rng.integers(0, 256, (16, 16, 3)).astype("uint8")
    images, labels = np.stack([image] * 64), np.eye(64, dtype="float32")
    policy = "trivial" if way == "tf.data" else "auto"
    results = [run(still(policy=policy), images, labels, (0, 0), way) for _ in "12"]
    x, y = results[0]
    assert x.dtype == "float32" and 0 <= x.min() <= x.max() <= 255
    assert len(np.unique(x.reshape(64, -1).round(), axis=0)) > 20
    np.testing.assert_array_equal(np.sort(y.argmax(-1)), np.arange(64))
    np.testing.assert_array_equal(results[1][0], x)


def test_labels_stay_with_their_images(rng):
    """Whatever is done to it, most of an image's mean grey tells which it was."""
    images = np.broadcast_to(
        np.arange(0, 256, 4, dtype="float32")[:, None, None, None], (64, 16, 16, 3)
    )
    x, y = run(still(policy="auto_cifar10"), images, np.eye(64), (0, 1), "compiled")
    untouched = (x == x[:, :1, :1]).all((1, 2, 3)) & (x[:, 0, 0, 0] % 4 == 0)
    same = x[:, 0, 0, 0] == 4 * y.argmax(-1)
    assert same[untouched].sum() > 20
