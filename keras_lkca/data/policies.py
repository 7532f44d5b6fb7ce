"""Policies of augmentation: which operations an image gets, and how strong.

The operations are Pillow's, which the papers' policies were made with, as functions of
tensors: each image of a batch has its own strength. Keras's layers draw one by
themselves, and to them contrast, brightness, sharpness and equalization are something
else. Greys stay what they are where Pillow cuts them off to whole ones.
"""

import numpy as np

# AutoAugment, arXiv 1805.09501, tables 7 to 9: each row holds two operations with the
# probability and the level, 0 to 9, of each.
_CIFAR10 = """
invert 0.1 7        contrast 0.2 6
rotate 0.7 2        translate_x 0.3 9
sharpness 0.8 1     sharpness 0.9 3
shear_y 0.5 8       translate_y 0.7 9
autocontrast 0.5 8  equalize 0.9 2
shear_y 0.2 7       posterize 0.3 7
color 0.4 3         brightness 0.6 7
sharpness 0.3 9     brightness 0.7 9
equalize 0.6 5      equalize 0.5 1
contrast 0.6 7      sharpness 0.6 5
color 0.7 7         translate_x 0.5 8
equalize 0.3 7      autocontrast 0.4 8
translate_y 0.4 3   sharpness 0.2 6
brightness 0.9 6    color 0.2 8
solarize 0.5 2      invert 0.0 3
equalize 0.2 0      autocontrast 0.6 0
equalize 0.2 8      equalize 0.6 4
color 0.9 9         equalize 0.6 6
autocontrast 0.8 4  solarize 0.2 8
brightness 0.1 3    color 0.7 0
solarize 0.4 5      autocontrast 0.9 3
translate_y 0.9 9   translate_y 0.7 9
autocontrast 0.9 2  solarize 0.8 3
equalize 0.8 8      invert 0.1 3
translate_y 0.7 9   autocontrast 0.9 1
"""
_SVHN = """
shear_x 0.9 4       invert 0.2 3
shear_y 0.9 8       invert 0.7 5
equalize 0.6 5      solarize 0.6 6
invert 0.9 3        equalize 0.6 3
equalize 0.6 1      rotate 0.9 3
shear_x 0.9 4       autocontrast 0.8 3
shear_y 0.9 8       invert 0.4 5
shear_y 0.9 5       solarize 0.2 6
invert 0.9 6        autocontrast 0.8 1
equalize 0.6 3      rotate 0.9 3
shear_x 0.9 4       solarize 0.3 3
shear_y 0.8 8       invert 0.7 4
equalize 0.9 5      translate_y 0.6 6
invert 0.9 4        equalize 0.6 7
contrast 0.3 3      rotate 0.8 4
invert 0.8 5        translate_y 0.0 2
shear_y 0.7 6       solarize 0.4 8
invert 0.6 4        rotate 0.8 4
shear_y 0.3 7       translate_x 0.9 3
shear_x 0.1 6       invert 0.6 5
solarize 0.7 2      translate_y 0.6 7
shear_y 0.8 4       invert 0.8 8
shear_x 0.7 9       translate_y 0.8 3
shear_y 0.8 5       autocontrast 0.7 3
shear_x 0.7 2       invert 0.1 5
"""
_IMAGENET = """
posterize 0.4 8     rotate 0.6 9
solarize 0.6 5      autocontrast 0.6 5
equalize 0.8 8      equalize 0.6 3
posterize 0.6 7     posterize 0.6 6
equalize 0.4 7      solarize 0.2 4
equalize 0.4 4      rotate 0.8 8
solarize 0.6 3      equalize 0.6 7
posterize 0.8 5     equalize 1.0 2
rotate 0.2 3        solarize 0.6 8
equalize 0.6 8      posterize 0.4 6
rotate 0.8 8        color 0.4 0
rotate 0.4 9        equalize 0.6 2
equalize 0.0 7      equalize 0.8 8
invert 0.6 4        equalize 1.0 8
color 0.6 4         contrast 1.0 8
rotate 0.8 8        color 1.0 2
color 0.8 8         solarize 0.8 7
sharpness 0.4 7     invert 0.6 8
shear_x 0.6 5       equalize 1.0 9
color 0.4 0         equalize 0.6 3
equalize 0.4 7      solarize 0.2 4
solarize 0.6 5      autocontrast 0.6 5
invert 0.6 4        equalize 1.0 8
color 0.6 4         contrast 1.0 8
equalize 0.8 8      equalize 0.6 3
"""
# TrivialAugment, arXiv 2103.10158, table 1.
_TRIVIAL = """
identity autocontrast equalize rotate solarize color posterize contrast brightness
sharpness shear_x shear_y translate_x translate_y
"""
GEOMETRY = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
ENHANCEMENTS = ("color", "contrast", "brightness", "sharpness")


def _rows(table):
    """Return a table's rows, each a pair of (operation, probability, level)."""
    rows = [line.split() for line in table.strip().splitlines()]
    return [
        tuple((row[i], float(row[i + 1]), int(row[i + 2])) for i in (0, 3))
        for row in rows
    ]


# Every image draws one row, all alike. Without a level it draws that too.
POLICIES = {
    "trivial": [((name, 1.0, None),) for name in _TRIVIAL.split()],
    "auto_cifar10": _rows(_CIFAR10),
    "auto_svhn": _rows(_SVHN),
    "auto_imagenet": _rows(_IMAGENET),
}


def strengths(policy, height, width):
    """Return the strength of each operation of a policy at each level.

    Args:
        policy: A name of `POLICIES`.
        height: The images' height.
        width: Their width.

    Returns:
        Dictionary of operation to array, over 31 levels for TrivialAugment and 10 for
        AutoAugment: shears as tangents, translations in pixels, rotations in degrees,
        the width of a step of posterization, the first grey that solarization turns,
        and what the enhancements add to their factor 1. And the operations whose
        strength is as often negative.

    Example:

    >>> from keras_lkca.data.policies import strengths
    >>> levels, both_ways = strengths("auto_cifar10", 32, 32)
    >>> float(levels["rotate"][9]), float(levels["posterize"][9])
    (30.0, 16.0)
    >>> "rotate" in both_ways, "posterize" in both_ways
    (True, False)
    """
    if policy == "trivial":
        level = np.arange(31)
        found = {
            **dict.fromkeys(("shear_x", "shear_y"), 0.99 * level / 30),
            **dict.fromkeys(("translate_x", "translate_y"), level * 32 // 30),
            **dict.fromkeys(ENHANCEMENTS, 1.99 * level / 30 - 0.99),
            "rotate": level * 135 // 30,
            "posterize": 2 ** (level * 6 // 30),
            "solarize": 256 - level * 256 // 30,
        }
        both_ways = GEOMETRY
    else:
        level = np.arange(10) / 9
        found = {
            **dict.fromkeys(("shear_x", "shear_y"), 0.3 * level),
            "translate_x": 150 / 331 * width * level,
            "translate_y": 150 / 331 * height * level,
            **dict.fromkeys(ENHANCEMENTS, 0.9 * level),
            "rotate": 30 * level,
            "posterize": 2 ** (8 - np.round(8 - 4 * level)),
            "solarize": 256 - 256 * level,
        }
        both_ways = GEOMETRY + ENHANCEMENTS
    return {**dict.fromkeys(OPERATIONS, 0.0 * level), **found}, both_ways


def apply_policy(backend, images, labels, seeds, policy):
    """Give every image the operations of the row of a policy that it draws.

    The rows get shares of a batch as equal as its size allows, of images drawn at
    random: an operation is computed on the images that get it. In a batch of fewer than
    two images a row each image draws for itself, and all operations are computed on all
    of them.

    Args:
        backend: Keras's backend, as its preprocessing layers carry it.
        images: float32 tensor `(batch, height, width, channels)` in [0, 255].
        labels: Tensor `(batch, classes)`.
        seeds: Generator of seeds.
        policy: A name of `POLICIES`.

    Returns:
        Images and labels, in another order.
    """
    numpy, rows = backend.numpy, POLICIES[policy]
    count = images.shape[0]

    def ordered(order):
        return (numpy.take(x, order, axis=0) for x in (images, labels))

    shared = count >= 2 * len(rows)
    if shared:
        order = backend.random.shuffle(numpy.arange(count), seed=seeds)
        images, labels = ordered(order)
        drawn = np.arange(count) * len(rows) // count
    else:
        drawn = backend.random.randint((count,), 0, len(rows), "int32", seed=seeds)
    for column in zip(*rows, strict=True):
        names = sorted({name for name, _, _ in column})
        numbers = np.array([names.index(name) for name, _, _ in column], "int32")
        if shared:
            order = np.argsort(numbers[drawn], kind="stable")
            images, labels = ordered(order)
            drawn = drawn[order]
        strength, chosen = _draw(backend, column, drawn, images.shape, policy, seeds)
        fill = 0.0 if policy == "trivial" else 128.0  # as each paper's code has it

        def changed(name, part, of=images, by=strength, where=chosen, fill=fill):
            x = of[part]
            return numpy.where(
                where[part], OPERATIONS[name](backend, x, by[part], fill), x
            )

        if shared:
            stops = np.searchsorted(numbers[drawn], np.arange(len(names)), side="right")
            starts = [0, *stops[:-1]]
            images = numpy.concatenate(
                [
                    changed(name, slice(int(start), int(stop)))
                    for name, start, stop in zip(names, starts, stops, strict=True)
                ]
            )
        else:
            number = numpy.take(numbers, drawn)[:, None, None, None]
            for index, name in enumerate(names):
                y = changed(name, slice(0, count))
                images = numpy.where(number == index, y, images)
    return images, labels


def _draw(backend, column, drawn, shape, policy, seeds):
    """Draw each image's strength, and whether it is changed, `(batch, 1, 1, 1)`."""
    numpy, count = backend.numpy, shape[0]
    levels, both_ways = strengths(policy, *shape[1:3])
    table = np.stack(
        [levels[name][slice(None) if i is None else [i]] for name, _, i in column]
    ).astype("float32")
    drawn = backend.cast(backend.convert_to_tensor(drawn), "int32")
    index = drawn * table.shape[1]
    if table.shape[1] > 1:
        index = index + backend.random.randint(
            (count,), 0, table.shape[1], "int32", seed=seeds
        )
    strength = numpy.take(table.reshape(-1), index)
    draws = backend.random.uniform((2, count), seed=seeds)
    turned = np.array([0.5 * (name in both_ways) for name, _, _ in column], "float32")
    strength = numpy.where(draws[0] < numpy.take(turned, drawn), -strength, strength)
    shares = np.array([share for _, share, _ in column], "float32")
    chosen = draws[1] < numpy.take(shares, drawn)
    return strength[:, None, None, None], chosen[:, None, None, None]


# Operations: of the backend, images, a strength for each and what moves in.


def _sampled(backend, images, x, y, fill):
    """Return the pixels that points lie in, and `fill` beyond the border.

    Keras's `affine_transform` goes image by image under torch.
    """
    numpy, (count, height, width, channels) = backend.numpy, images.shape
    x, y = (backend.cast(numpy.floor(v), "int32") for v in (x, y))
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    first = numpy.arange(count, dtype="int32")[:, None, None] * (height * width)
    index = numpy.where(inside, first + y * width + x, 0)
    pixels = numpy.take(numpy.reshape(images, (-1, channels)), index, axis=0)
    return numpy.where(inside[..., None], pixels, fill)


def _centres(backend, images):
    """Return the pixels' centres, x `(1, 1, width)` and y `(1, height, 1)`."""
    height, width = images.shape[1:3]
    x = backend.numpy.arange(width, dtype="float32") + 0.5
    y = backend.numpy.arange(height, dtype="float32") + 0.5
    return x[None, None, :], y[None, :, None]


def _shear_x(backend, images, strength, fill):
    x, y = _centres(backend, images)
    return _sampled(backend, images, x + strength[..., 0] * y, y, fill)


def _shear_y(backend, images, strength, fill):
    x, y = _centres(backend, images)
    return _sampled(backend, images, x, y + strength[..., 0] * x, fill)


def _translate_x(backend, images, strength, fill):
    x, y = _centres(backend, images)
    return _sampled(backend, images, x + strength[..., 0], y, fill)


def _translate_y(backend, images, strength, fill):
    x, y = _centres(backend, images)
    return _sampled(backend, images, x, y + strength[..., 0], fill)


def _rotate(backend, images, strength, fill):
    """Turn about the centre, counter-clockwise."""
    x, y = _centres(backend, images)
    row, column = images.shape[1] / 2, images.shape[2] / 2
    x, y = x - column, y - row
    angle = strength[..., 0] * (np.pi / 180)
    cosine, sine = backend.numpy.cos(angle), backend.numpy.sin(angle)
    x, y = cosine * x - sine * y + column, sine * x + cosine * y + row
    return _sampled(backend, images, x, y, fill)


def _enhanced(backend, images, dull, strength):
    """Go `1 + strength` times the way from dull images to these."""
    return backend.numpy.clip(dull + (1 + strength) * (images - dull), 0, 255)


def _grey(backend, images):
    channels = images.shape[-1]
    weights = (0.299, 0.587, 0.114) if channels == 3 else (1 / channels,) * channels
    weights = backend.convert_to_tensor(np.array(weights, "float32")[:, None])
    return backend.numpy.floor(backend.numpy.matmul(images, weights) + 0.5)


def _color(backend, images, strength, fill):
    return _enhanced(backend, images, _grey(backend, images), strength)


def _contrast(backend, images, strength, fill):
    mean = backend.numpy.mean(_grey(backend, images), axis=(1, 2, 3), keepdims=True)
    return _enhanced(backend, images, backend.numpy.floor(mean + 0.5), strength)


def _brightness(backend, images, strength, fill):
    return _enhanced(backend, images, 0.0, strength)


def _sharpness(backend, images, strength, fill):
    """Against an image that Pillow's 3 x 3 kernel blurs, but for its border."""
    if min(images.shape[1:3]) < 3:
        return images
    # By sums of slices: XLA's convolution takes several times as long on a CPU.
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    sums = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    inner = images[:, 1:-1, 1:-1]
    blurred = backend.numpy.floor((sums + 4 * inner) / 13 + 0.5)
    border = ((0, 0), (1, 1), (1, 1), (0, 0))
    blurred = images + backend.numpy.pad(blurred - inner, border)
    return _enhanced(backend, images, blurred, strength)


def _posterize(backend, images, strength, fill):
    return backend.numpy.floor(images / strength) * strength


def _solarize(backend, images, strength, fill):
    return backend.numpy.where(images < strength, images, 255 - images)


def _autocontrast(backend, images, strength, fill):
    """Stretch every channel over all greys; one grey stays."""
    low, high = (
        extreme(extreme(images, axis=1, keepdims=True), axis=2, keepdims=True)
        for extreme in (backend.numpy.min, backend.numpy.max)
    )
    spread = backend.numpy.where(high > low, high - low, 1.0)
    stretched = backend.numpy.clip((images - low) * (255 / spread), 0, 255)
    return backend.numpy.where(high > low, stretched, images)


def _equalize(backend, images, strength, fill):
    """Spread the greys over all, by whole steps of pixels as Pillow does.

    An image of fewer than 256 pixels stays as it is.
    """
    numpy = backend.numpy
    levels, counts = histograms(backend, images)
    below = numpy.cumsum(counts, axis=1) - counts
    grey = numpy.arange(256, dtype="int32")
    # Of all pixels but those of the last grey.
    most = numpy.max(numpy.where(counts > 0, below, 0), axis=1, keepdims=True)
    step = most // 255
    table = numpy.minimum((step // 2 + below) // numpy.maximum(step, 1), 255)
    table = backend.cast(numpy.where(step > 0, table, grey), "float32")
    return numpy.take(numpy.reshape(table, (-1,)), levels)


def histograms(backend, images):
    """Return the greys of each image and channel, counted.

    Args:
        backend: Keras's backend, as its preprocessing layers carry it.
        images: Tensor `(batch, height, width, channels)` in [0, 255].

    Returns:
        Each pixel's place among all counts, `(batch, height, width, channels)`, and the
        counts, `(batch * channels, 256)`, int32.
    """
    numpy = backend.numpy
    count, channels = images.shape[0], images.shape[-1]
    levels = backend.cast(numpy.clip(numpy.round(images), 0, 255), "int32")
    first = numpy.arange(count * channels, dtype="int32")
    levels += 256 * numpy.reshape(first, (count, 1, 1, channels))
    flat = numpy.reshape(levels, (-1,))
    counts = backend.math.segment_sum(
        numpy.ones_like(flat), flat, num_segments=256 * count * channels
    )
    return levels, numpy.reshape(counts, (-1, 256))


OPERATIONS = {
    "identity": lambda backend, images, strength, fill: images,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": lambda backend, images, strength, fill: 255 - images,
}
