"""Random changes of the training images: one definition, in `tf.data` or on a device.

Keras's preprocessing layers do the work. They are called by their two halves,
`internals.draw` and `transform_images`, with seeds that are passed in
instead of kept: the same batch and the same seed give the same result in any order,
in any thread and after a restart.
"""

import dataclasses
import warnings

import keras
import numpy as np

from keras_lkca.checks import check_number, check_rate
from keras_lkca.data.policies import POLICIES, apply_policy, histograms
from keras_lkca.internals import Solarization, draw, in_tensorflow

# `"auto"` is the dataset's, of which `Recipe.augmentation` is told.
CHOICES = ("rand", "auto", *POLICIES)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Change a batch of images at random, and their labels where images are mixed.

    In this order: shift and mirror; zoom and rotate; the policy's operations; erase a
    rectangle; mix pairs of images by MixUp or CutMix.

    Labels may be masks, a class for each pixel. They are shifted, mirrored, zoomed and
    rotated with their images, and what moves in is ignored. Operations, erasing and
    mixing are not for them.

    It is a pure function of its arguments. It can be mapped over a `tf.data.Dataset`
    of batches, whatever the backend, or called on tensors of the active backend, also
    within `jax.jit` or `tf.function`.

    Attributes:
        flip: Whether to mirror half of the images.
        crop_padding: Non-negative integer, pixels by which each image is shifted at
            most, each way, black moving in.
        zoom: Number from 0: each image is enlarged, or made smaller, by a factor of
            1 + `zoom` at most, about its centre, black moving in.
        rotation: Number from 0, degrees by which each is turned at most, either way.
        policy: Which operations an image gets. `"rand"` for RandAugment's, as many as
            `rand_augment` says; `"trivial"` for TrivialAugment's one, of any strength;
            `"auto_cifar10"`, `"auto_svhn"` or `"auto_imagenet"` for the pairs that
            AutoAugment found on that dataset; `"auto"` for those of the dataset that a
            recipe is used on, ImageNet's where it has none.
        rand_augment: Non-negative integer, number of RandAugment's operations on each
            image; other policies have their own number.
        rand_augment_magnitude: Float in [0, 1], their strength.
        erase_probability: Float in [0, 1], share of the images to erase a part of.
        erase_area: Float in [0, 1], the largest part, of the image's area.
        mix_probability: Float in [0, 1], share of the batches to mix.
        mixup_alpha: Parameter of MixUp's Beta distribution, from 0; 0 for CutMix
            alone.
        cutmix_alpha: Parameter of CutMix's Beta distribution, in [0, 1]; 0 for MixUp
            alone.
        as_published: Whether to erase and mix as the code of those papers does, not
            as Keras's layers do: `erase_area` bounds the area of the rectangle, whose
            sides are up to 3.3 times each other, where Keras draws a width and a
            height; and MixUp and CutMix draw one share, CutMix one box, for the whole
            batch, a box that the image's border may clip, where Keras draws a share
            for each image and a box within it.
        repeats: Positive integer, into how many images each image is made, every one
            augmented by itself. The batches of `training_batches` keep their size and
            hold fewer images, and an epoch goes through a part of them; a dataset's
            own batches grow.
        mean: Mean of each channel, images scaled to [0, 1], which fills what is
            erased.

    Call arguments:
        images: Tensor `(batch, height, width, channels)` in [0, 255] of any dtype, the
            batch's size static.
        labels: Float tensor `(batch, num_classes)`, one-hot; or masks, an integer
            tensor `(batch, height, width)` of classes, -1 for pixels to ignore.
        seed: Pair of integers, different for every batch.

    Returns:
        float32 images and labels of the same shapes, `repeats` times as many, in
        another order. Masks are int32.

    Raises:
        ValueError: If an argument is not as above, or the batch's size is unknown.

    Example:

    >>> import numpy as np
    >>> from keras_lkca import data
    >>> augment = data.Augmentation(crop_padding=1, mix_probability=1.0)
    >>> images, labels = np.zeros((4, 8, 8, 3), "uint8"), np.eye(4, dtype="float32")
    >>> images, labels = augment(images, labels, (0, 1))
    >>> tuple(images.shape), tuple(labels.shape)
    ((4, 8, 8, 3), (4, 4))

    References:
        RandAugment arXiv 1909.13719, TrivialAugment 2103.10158 (Wide), AutoAugment
        1805.09501, random erasing 1708.04896, MixUp 1710.09412,
        CutMix 1905.04899, repeated augmentation 1901.09335.
    """

    flip: bool = True
    crop_padding: int = 4
    zoom: float = 0.0
    rotation: float = 0.0
    policy: str = "rand"
    rand_augment: int = 0
    rand_augment_magnitude: float = 0.5
    erase_probability: float = 0.0
    erase_area: float = 0.4
    mix_probability: float = 0.0
    mixup_alpha: float = 1.0
    cutmix_alpha: float = 1.0
    as_published: bool = False
    repeats: int = 1
    mean: tuple[float, ...] = (0.0,)

    def __post_init__(self):
        """Check every field, and keep Python's own numbers, which JSON can hold."""
        for name in ("flip", "as_published"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"`{name}` must be True or False. "
                    f"Received: {name}={getattr(self, name)!r}"
                )
        if self.policy not in CHOICES:
            raise ValueError(
                f"`policy` must be one of {CHOICES}. Received: policy={self.policy!r}"
            )
        checked = {"mean": tuple(float(value) for value in np.ravel(self.mean))}
        for name in ("crop_padding", "rand_augment"):
            checked[name] = check_number(name, getattr(self, name), integral=True)
        checked["repeats"] = check_number("repeats", self.repeats, 1, integral=True)
        for name in (
            *("rand_augment_magnitude", "erase_probability", "erase_area"),
            "mix_probability",
        ):
            checked[name] = check_rate(name, getattr(self, name))
        for name in ("zoom", "rotation", "mixup_alpha", "cutmix_alpha"):
            checked[name] = check_number(name, getattr(self, name))
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.cutmix_alpha > 1:
            raise ValueError(
                "`cutmix_alpha` must be at most 1, which Keras's layer allows. "
                f"Received: cutmix_alpha={self.cutmix_alpha!r}"
            )
        if self.mix_probability and not self.mixup_alpha and not self.cutmix_alpha:
            raise ValueError(
                "`mixup_alpha` or `cutmix_alpha` must be above 0 where batches are to "
                "be mixed; for none set mix_probability=0. Received: mixup_alpha=0, "
                f"cutmix_alpha=0, mix_probability={self.mix_probability!r}"
            )
        self._make_layers()

    def check_for_masks(self):
        """Raise a `ValueError` for what would move pixels without their masks."""
        for name in ("rand_augment", "erase_probability", "mix_probability"):
            if getattr(self, name):
                raise ValueError(
                    f"`{name}` must be 0 for masks, whose pixels it would not move; "
                    "Recipe.segmentation() has what moves both. "
                    f"Received: {name}={getattr(self, name)!r}"
                )
        if self.policy != "rand":
            raise ValueError(
                "`policy` must be 'rand' for masks, with rand_augment=0: other "
                "policies move pixels without their masks. "
                f"Received: policy={self.policy!r}"
            )

    def _make_layers(self):
        """Make Keras's layers now: within a compiled function it would be too late."""
        make = {"operations": [], "erasing": None, "mixup": None, "cutmix": None}
        if self.policy == "rand" and self.rand_augment:
            make["operations"] = rand_augment_operations(self.rand_augment_magnitude)
        if self.erase_probability:
            make["erasing"] = keras.layers.RandomErasing(
                factor=(self.erase_probability, self.erase_probability),
                scale=(min(0.02, self.erase_area), self.erase_area),
                fill_value=0.0,
                dtype="float32",
            )
        if self.mix_probability and self.mixup_alpha:
            make["mixup"] = keras.layers.MixUp(self.mixup_alpha, dtype="float32")
        if self.mix_probability and self.cutmix_alpha:
            make["cutmix"] = keras.layers.CutMix(
                factor=(self.cutmix_alpha, self.cutmix_alpha), dtype="float32"
            )
        # Keras's layers carry a backend that follows where they run.
        make["_probe"] = keras.layers.RandomFlip("horizontal")
        for name, layer in make.items():
            object.__setattr__(self, name, layer)

    def __call__(self, images, labels, seed):
        """Return the changed images and labels."""
        layers = [self._probe, *self.operations, self.erasing, self.mixup, self.cutmix]
        layers = [layer for layer in layers if layer is not None]
        backend = self._probe.backend
        # A tensor of TensorFlow's, in a pipeline of another backend.
        foreign = keras.config.backend() != "tensorflow" and type(
            images
        ).__module__.startswith("tensorflow")
        with in_tensorflow(layers if foreign else ()):
            images = backend.cast(backend.convert_to_tensor(images), "float32")
            labels = backend.cast(backend.convert_to_tensor(labels), "float32")
            masks = len(labels.shape) == 3
            if masks:
                self.check_for_masks()
                # A last channel moves with the others, and 0 moves in: ignored.
                layers = [images, labels[..., None] + 1]
                images = backend.numpy.concatenate(layers, axis=-1)
                labels = labels[:, 0, :1]
            if self.repeats > 1:
                images = backend.numpy.repeat(images, self.repeats, axis=0)
                labels = backend.numpy.repeat(labels, self.repeats, axis=0)
            with warnings.catch_warnings():
                # Keras's own: MixUp asks JAX for 64-bit integers and gets 32.
                warnings.filterwarnings("ignore", "Explicitly requested dtype int64")
                images, labels = self._augment(
                    backend, images, labels, _Seeds(backend, seed), masks
                )
            if masks:
                labels = backend.cast(images[..., -1], "int32") - 1
                images = images[..., :-1]
            return images, labels

    def _augment(self, backend, images, labels, seeds, masks):
        if images.shape[0] is None:
            raise ValueError(
                "`images` must be a batch of static size: batch with "
                f"`drop_remainder=True`. Received: images.shape={images.shape}"
            )
        if self.flip or self.crop_padding:
            images = shift_and_flip(
                backend, images, seeds, self.crop_padding, self.flip
            )
        if self.zoom or self.rotation:
            images = zoom_and_rotate(
                backend, images, seeds, self.zoom, self.rotation, masks
            )
        if self.policy != "rand":
            policy = "auto_imagenet" if self.policy == "auto" else self.policy
            images, labels = apply_policy(backend, images, labels, seeds, policy)
        for _ in range(self.rand_augment if self.operations else 0):
            images, labels = self._one_operation_each(backend, images, labels, seeds)
        if self.erasing:
            changes = draw(self.erasing, images, seeds)
            # The layer takes a number, and a color under two of the backends only.
            changes["fill_value"] = backend.convert_to_tensor(
                255 * np.asarray(self.mean, "float32")
            )
            if self.as_published:
                boxes = rectangles(backend, images.shape, self.erase_area, seeds)
                changes["batch_masks"] = boxes
            images = self.erasing.transform_images(images, changes, True)
        if self.mixup or self.cutmix:
            images, labels = self._mix(backend, images, labels, seeds)
        return images, labels

    def _one_operation_each(self, backend, images, labels, seeds):
        """Shuffle the batch, and give each of its parts one of the operations.

        Keras's RandAugment computes every operation on every image, to keep two of
        them, the same for the whole batch.
        """
        count = images.shape[0]
        if count < 2 * len(self.operations):
            # Too few for parts of equal size: all operations, one kept per image.
            choice = backend.random.randint(
                (count, 1, 1, 1), 0, len(self.operations), dtype="int32", seed=seeds
            )
            results = images
            for index, layer in enumerate(self.operations):
                if layer:
                    changed = _apply(layer, images, seeds)
                    results = backend.numpy.where(choice == index, changed, results)
            return results, labels
        order = backend.random.shuffle(backend.numpy.arange(count), seed=seeds)
        images = backend.numpy.take(images, order, axis=0)
        labels = backend.numpy.take(labels, order, axis=0)
        bounds = np.linspace(0, count, len(self.operations) + 1).round().astype(int)
        parts = [
            _apply(layer, images[start:stop], seeds) if layer else images[start:stop]
            for layer, start, stop in zip(
                self.operations, bounds, bounds[1:], strict=False
            )
            if start < stop
        ]
        return backend.numpy.concatenate(parts), labels

    def _mix(self, backend, images, labels, seeds):
        """Mix all pairs of the batch, or none."""
        draws = backend.random.uniform((2,), seed=seeds)
        results = []
        for layer in (self.mixup, self.cutmix):
            if layer is None:
                continue
            changes = draw(layer, images, seeds)
            if self.as_published and layer is self.mixup:
                changes["mix_weight"] = changes["mix_weight"][:1]
            if self.as_published and layer is self.cutmix:
                changes["batch_masks"] = clipped_box(
                    backend, images.shape, self.cutmix_alpha, seeds
                )
            if layer is self.cutmix:
                # The part that was cut, counted in pixels: the layer's own figure is
                # that of a box with fractional edges.
                mask = backend.cast(changes["batch_masks"], "float32")
                changes["mix_weight"] = 1 - backend.numpy.mean(mask, axis=(1, 2, 3))
            results.append(
                (
                    layer.transform_images(images, changes, True),
                    layer.transform_labels(labels, changes, True),
                )
            )
        mixed = results[0]
        if len(results) == 2:
            mixed = _where(backend, draws[1] < 0.5, results[0], results[1])
        return _where(backend, draws[0] < self.mix_probability, mixed, (images, labels))


def shift_and_flip(backend, images, seeds, padding, flip):
    """Shift each image by up to `padding` pixels each way, and mirror half of them.

    Keras's RandomCrop crops a whole batch alike. Here rows, then columns are picked
    by a product with a matrix of zeros and ones for each image.
    """
    count, height, width = images.shape[:3]

    def picks(size, mirrored):
        offsets = backend.random.randint(
            (count, 1, 1), -padding, padding + 1, dtype="int32", seed=seeds
        )
        sources = backend.numpy.arange(size, dtype="int32")
        targets = backend.numpy.reshape(sources, (1, size, 1))
        if mirrored is not None:
            targets = backend.numpy.where(mirrored, size - 1 - targets, targets)
        return backend.cast(targets + offsets == sources, images.dtype)

    rows = picks(height, None)
    mirrored = backend.random.uniform((count, 1, 1), seed=seeds) < 0.5 if flip else None
    columns = picks(width, mirrored)
    images = backend.numpy.einsum("bij,bjkc->bikc", rows, images)
    return backend.numpy.einsum("blk,bikc->bilc", columns, images)


def zoom_and_rotate(backend, images, seeds, zoom, rotation, masks):
    """Zoom and turn each image about its centre.

    Of masks the last channel takes the nearest pixel's class.
    """
    numpy, (count, height, width) = backend.numpy, images.shape[:3]
    draws = backend.random.uniform((2, count), -1.0, 1.0, seed=seeds)
    scale = numpy.exp(-draws[0] * np.log1p(zoom))
    angle = draws[1] * np.deg2rad(rotation)
    cos, sin = scale * numpy.cos(angle), scale * numpy.sin(angle)
    x, y = (width - 1) / 2, (height - 1) / 2
    zeros = numpy.zeros_like(cos)
    # Where each pixel comes from; the offsets keep the centre in its place.
    places = [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y]
    places = numpy.stack([*places, zeros, zeros], axis=1)

    def moved(images, interpolation):
        return backend.image.affine_transform(
            images,
            numpy.copy(places),  # under torch, Keras changes it in place
            interpolation=interpolation,
            fill_mode="constant",
            fill_value=0.0,
            data_format="channels_last",
        )

    if not masks:
        return moved(images, "bilinear")
    parts = moved(images[..., :-1], "bilinear"), moved(images[..., -1:], "nearest")
    return numpy.concatenate(parts, axis=-1)


def rectangles(backend, shape, largest, seeds, tries=8):
    """Return the pixels to erase, `(batch, height, width, 1)`, as the paper draws them.

    Of a share of the image's area from 0.02 to `largest`, and a height of 0.3 to
    1 / 0.3 times the width. One that is no smaller than the image is drawn anew, and
    after `tries` of them nothing is erased.
    """
    numpy, (count, height, width) = backend.numpy, shape[:3]
    draws = backend.random.uniform((2, count, tries), seed=seeds)
    smallest = min(0.02, largest)
    area = (smallest + (largest - smallest) * draws[0]) * height * width
    aspect = 0.3 + (1 / 0.3 - 0.3) * draws[1]
    sides = numpy.round(numpy.sqrt(numpy.stack([area * aspect, area / aspect])))
    fits = (sides[0] < height) & (sides[1] < width)
    first = numpy.argmax(backend.cast(fits, "int32"), axis=-1)
    chosen = backend.nn.one_hot(first, tries, dtype="float32")
    # Of none that fits both sides are 0.
    sides = numpy.sum(sides * chosen * backend.cast(fits, "float32"), axis=-1)
    starts = backend.random.uniform((2, count), seed=seeds)

    def within(size, side, start):
        start = numpy.floor(start * (size + 1 - side))[:, None]
        places = numpy.arange(size, dtype="float32")
        return (places >= start) & (places < start + side[:, None])

    rows = within(height, sides[0], starts[0])
    columns = within(width, sides[1], starts[1])
    return rows[:, :, None, None] & columns[:, None, :, None]


def clipped_box(backend, shape, alpha, seeds):
    """Return CutMix's box as its paper draws it, `(1, height, width, 1)`.

    Its share of the area is drawn from Beta(`alpha`, `alpha`), its centre anywhere in
    the image, and what reaches over the border is lost.
    """
    numpy = backend.numpy
    share = backend.random.beta((1,), alpha, alpha, seed=seeds)
    centres = backend.random.uniform((2,), seed=seeds)

    def within(size, centre):
        half = numpy.floor(numpy.floor(size * numpy.sqrt(share)) / 2)
        places = numpy.arange(size, dtype="float32") - numpy.floor(size * centre)
        return (places >= -half) & (places < half)

    rows, columns = within(shape[1], centres[0]), within(shape[2], centres[1])
    return rows[None, :, None, None] & columns[None, None, :, None]


def rand_augment_operations(magnitude):
    """Return RandAugment's operations as Keras's layers, `None` for the identity.

    At magnitude 0 those that have a strength change nothing. Contrast, brightness,
    sharpness and what moves pixels go both ways.

    Args:
        magnitude: Float in [0, 1].

    Example:

    >>> from keras_lkca.data.augmentation import rand_augment_operations
    >>> len(rand_augment_operations(0.5))
    14
    """
    layers = keras.layers
    values = {"value_range": (0, 255), "dtype": "float32"}
    moved = {"fill_mode": "constant", "fill_value": 127.5, "dtype": "float32"}
    none, bits = (0.0, 0.0), 8 - round(4 * magnitude)
    shear = (0.0, 0.3 * magnitude)
    return [
        None,
        layers.AutoContrast(**values),
        _Equalization(**values),
        # Without strength the brightest pixels would still turn.
        Solarization(0.0, magnitude, **values) if magnitude else None,
        layers.RandomPosterization((bits, bits), **values),
        layers.RandomColorDegeneration(magnitude, **values),
        layers.RandomContrast((0.9 * magnitude, 0.9 * magnitude), **values),
        layers.RandomBrightness(magnitude / 2, **values),
        layers.RandomSharpness((0.5 - magnitude / 2, 0.5 + magnitude / 2), **values),
        layers.RandomRotation(magnitude / 12, **moved),
        layers.RandomShear(x_factor=shear, y_factor=none, **moved),
        layers.RandomShear(x_factor=none, y_factor=shear, **moved),
        layers.RandomTranslation(0.0, 0.3 * magnitude, **moved),
        layers.RandomTranslation(0.3 * magnitude, 0.0, **moved),
    ]


class _Equalization(keras.layers.Equalization):
    """Equalize the histogram of each image; Keras's layer pools those of a batch."""

    def transform_images(self, images, transformation, training=True):
        numpy = self.backend.numpy
        levels, counts = histograms(self.backend, images)
        below = numpy.cumsum(counts, axis=1)
        total = below[:, -1:]
        first = numpy.min(numpy.where(below > 0, below, total), axis=1, keepdims=True)
        spread = self.backend.cast(255 * (below - first), "float32")
        table = numpy.round(
            spread / self.backend.cast(numpy.maximum(total - first, 1), "float32")
        )
        grey = numpy.broadcast_to(numpy.arange(256, dtype="float32"), table.shape)
        table = numpy.where(total == first, grey, table)  # one grey has no histogram
        return numpy.take(numpy.reshape(table, (-1,)), levels)


def _apply(layer, images, seeds):
    changes = draw(layer, images, seeds)
    return layer.transform_images(images, changes, training=True)


def _where(backend, condition, ours, others):
    return tuple(
        backend.numpy.where(condition, a, b) for a, b in zip(ours, others, strict=True)
    )


class _Seeds(keras.random.SeedGenerator):
    """Seeds that follow from one pair by counting, without a variable."""

    def __init__(self, backend, pair):
        if backend.name == "torch":
            # Its generators take Python's integers: off the device, one by one.
            self.dtype, self.pair = "int64", np.asarray(pair, "int64")
        else:
            self.dtype = backend.random_seed_dtype()
            self.pair = backend.cast(backend.convert_to_tensor(pair), self.dtype)
        self.drawn = 0

    def next(self, ordered=True):
        self.drawn += 1
        return self.pair + np.array([0, self.drawn], self.dtype)
