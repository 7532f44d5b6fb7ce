"""Names and probabilities for images."""

import collections.abc
import pathlib

import numpy as np

from keras_lkca.checks import check_image_shape, check_positive_int
from keras_lkca.data.folders import decode
from keras_lkca.models import classifiers
from keras_lkca.models.classifiers import (
    check_classifier,
    probabilities,
    task_of,
    warn_if_scaled,
)
from keras_lkca.models.image_model import check_class_names, read_model


def predict(
    model,
    images,
    top: int = 5,
    batch_size: int = 128,
    class_names=None,
    mirror: bool = False,
) -> list:
    """Classify images, the likeliest classes first.

    A model with one output column decides between two classes, which get `1 - p` and
    `p`. One with a sigmoid on each of several columns gives each class a probability
    of its own.

    Args:
        model: A classifier, the path of its `.keras` file, or the name of a trained
            preset, see `keras_lkca.list_presets`.
        images: uint8 or float images in [0, 255], `(n, height, width, channels)` or one
            `(height, width, channels)`, grey ones also without their last axis; or the
            path of an image file, an image of Pillow's, or several of these, which are
            cropped about their centre and resized to the model's input.
        top: Positive integer, how many classes to return, or fewer where there are
            fewer.
        batch_size: Positive integer, images per step.
        class_names: Sequence of strings, one per class, so two for one column.
            Defaults to those that the model carries, or a model within it whose
            classes are its own; or else to the classes' numbers.
        mirror: Whether to average the probabilities of an image and of its mirror
            image, which takes twice the time and often makes fewer errors. Not for
            images such as digits, which mirrored are of no class or another.

    Returns:
        A list per image of pairs (name, probability).

    Raises:
        ValueError: If `model` is no classifier of images or no file of one, or the
            images are not as above.
        FileNotFoundError: If there is no such file.

    Example:

    >>> import keras_lkca
    >>> digits, _ = keras_lkca.data.digits("test")
    >>> model = keras_lkca.LKCAViT((8, 8, 1), patch_size=1, embed_dim=8, depth=1)
    >>> best = keras_lkca.predict(model, digits[:2], top=3)
    >>> len(best), len(best[0])
    (2, 3)
    """
    check_positive_int("top", top)
    check_positive_int("batch_size", batch_size)
    model = read_model(model)
    check_classifier(model)
    names = names_of(model, class_names)
    images = _as_images(images, model)
    warn_if_scaled(model, images)
    outputs = probabilities(model, images, batch_size, mirror)
    if task_of(model) == "binary":
        outputs = np.concatenate([1 - outputs, outputs], 1)
    names = names or tuple(map(str, range(outputs.shape[1])))
    best = np.argsort(-outputs, axis=1, kind="stable")[:, :top]
    return [
        [(names[i], float(row[i])) for i in order]
        for row, order in zip(outputs, best, strict=True)
    ]


def names_of(model, class_names):
    """Return the names given, or else those that a classifier carries."""
    if class_names is None:
        return classifiers.class_names(model)
    return check_class_names(class_names, model.output_shape)


def read_images(paths, shape) -> np.ndarray:
    """Return image files as a model takes them.

    Args:
        paths: Sequence of paths, or of images of Pillow's; or one of them.
        shape: The images' (height, width, channels): they are cropped about their
            centre, resized, and grey where there is one channel.

    Returns:
        uint8 images `(n, height, width, channels)`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is no image, or channels are neither 1 nor 3.

    Example:

    ```python
    images = read_images(["cat.jpg", "dog.jpg"], model.input_shape[1:])
    ```
    """
    shape = check_image_shape(shape, "shape")
    if shape[2] not in (1, 3):
        raise ValueError(
            "Image files have 1 channel or 3; give arrays instead. Received: a model "
            f"of {shape[2]} channels"
        )
    files = [
        pathlib.Path(x).expanduser() if isinstance(x, (str, pathlib.Path)) else x
        for x in ([paths] if _is_file(paths) else paths)
    ]
    for path in files:
        if not _is_file(path):
            raise ValueError(
                f"`paths` must be paths of image files. Received: {path!r} among them"
            )
        if isinstance(path, pathlib.Path) and not path.exists():
            raise FileNotFoundError(f"There is no {path}.")
        if isinstance(path, pathlib.Path) and path.is_dir():
            raise ValueError(
                f"{path} is a folder; give the paths of its images, such as "
                f"sorted(pathlib.Path(...).glob('*.jpg'))."
            )
    images, _ = decode(files, shape[:2])
    return grey(images) if shape[2] == 1 else images


def grey(images):
    """Return the luma of RGB images, `(n, height, width, 1)`."""
    luma = images @ np.array([0.299, 0.587, 0.114])
    return luma.round().astype("uint8")[..., None]


def _as_images(images, model):
    if _is_file(images):
        images = [images]
    elif isinstance(images, collections.abc.Iterator):
        images = list(images)
    if isinstance(images, (list, tuple)) and all(map(_is_file, images)):
        if not images:
            raise FileNotFoundError("There are no images.")
        return read_images(images, classifiers.image_shape(model))
    return classifiers.as_images(model, images)


def _is_file(image):
    """Whether it is an image's path, or one that Pillow has opened."""
    opened = type(image).__module__.startswith("PIL.")  # which may not be installed
    return opened or isinstance(image, (str, pathlib.Path))
