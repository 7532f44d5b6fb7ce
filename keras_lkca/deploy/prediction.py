"""Names and probabilities for images."""

import collections.abc
import pathlib

import numpy as np

from keras_lkca.checks import check_image_shape, check_positive_int
from keras_lkca.data.decoding import as_rgb, decode, opened
from keras_lkca.files import atomic
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
    if classifiers.is_segmenter(model):
        raise ValueError(
            "`model` tells a class for every pixel: use keras_lkca.deploy."
            f"predict_masks. Received: a model of {model.output_shape}"
        )
    check_classifier(model)
    names = names_of(model, class_names)
    if isinstance(images, collections.abc.Iterator):
        images = list(images)
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


def predict_masks(model, images, batch_size: int = 16, mirror: bool = False):
    """Tell the class of every pixel.

    Args:
        model: A segmenter, as `keras_lkca.LKCASegmenter`, or the path of its `.keras`
            file.
        images: uint8 or float images in [0, 255], `(n, height, width, channels)` or
            one `(height, width, channels)`; or the path of an image file, an image of
            Pillow's, or several of these, which are resized to the model's input as a
            whole.
        batch_size: Positive integer, images per step.
        mirror: Whether to average the probabilities with those of the mirror image.

    Returns:
        uint8 array `(n, height, width)`, a class for each pixel, uint16 above 256
        classes; of files a list of arrays, each of its image's own size.

    Raises:
        ValueError: If `model` is no segmenter, or the images are not as above.
        FileNotFoundError: If there is no such file.

    Example:

    >>> import numpy as np
    >>> from keras_lkca import LKCANet, LKCASegmenter
    >>> from keras_lkca.deploy import predict_masks
    >>> net = LKCANet((32, 32, 3), embed_dim=16, depth=1)
    >>> model = LKCASegmenter(net, num_classes=3)
    >>> predict_masks(model, np.zeros((2, 32, 32, 3), "uint8")).shape
    (2, 32, 32)
    """
    check_positive_int("batch_size", batch_size)
    model = read_model(model)
    if not classifiers.is_segmenter(model):
        raise ValueError(
            "`model` must be a segmenter, of (batch, height, width, classes); for "
            f"classes of images there is predict. Received: {type(model).__name__} of "
            f"{getattr(model, 'output_shape', None)}"
        )
    check_classifier(model, pixels=True)
    if isinstance(images, collections.abc.Iterator):
        images = list(images)
    files = _files(images)
    if files is None:
        images = classifiers.as_images(model, images)
        warn_if_scaled(model, images)
        return _classes(model, images, batch_size, mirror)
    found, files = [], checked_files(files)
    for start in range(0, len(files), batch_size):
        batch = files[start : start + batch_size]
        images, sizes = _whole_images(batch, classifiers.image_shape(model))
        some = _classes(model, images, batch_size, mirror)
        found += [_nearest(mask, size) for mask, size in zip(some, sizes, strict=True)]
    return found


def _classes(model, images, batch_size, mirror):
    kind = "uint8" if model.output_shape[-1] <= 256 else "uint16"
    found = [
        classifiers.probabilities(model, images[i : i + batch_size], batch_size, mirror)
        .argmax(-1)
        .astype(kind)  # the probabilities of all images would not fit
        for i in range(0, len(images), batch_size)
    ]
    return np.concatenate(found)


def _whole_images(files, shape):
    """Return image files resized as a whole, and their own (height, width)."""
    from PIL import Image, ImageOps

    images, sizes = [], []
    for file in files:
        try:
            with opened(file) as image:
                image = as_rgb(ImageOps.exif_transpose(image))
        except (OSError, ValueError) as error:
            raise ValueError(f"{file} cannot be decoded ({error}).") from error
        sizes.append((image.height, image.width))
        image = image.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
        images.append(np.asarray(image))
    images = np.stack(images)
    return (grey(images) if shape[2] == 1 else images), sizes


def mask_files(folder, path):
    """Return where `write_mask` writes: the mask, and its colours over the image."""
    return folder / f"{path.stem}-mask.png", folder / f"{path.stem}-over.png"


def write_mask(folder, path, mask, colors):
    """Write a mask as a palette image, and its colours over the image.

    Args:
        folder: Where to write, a folder that exists.
        path: The image's file, whose name the masks get.
        mask: Integers `(height, width)`, of the image's size.
        colors: uint8 array `(classes, 3)`.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        image = as_rgb(ImageOps.exif_transpose(image))
    picture = Image.fromarray(mask)
    if mask.dtype == "uint8":
        rest = np.zeros((256 - len(colors), 3))  # of fewer PNG keeps fewer bits
        picture.putpalette(np.vstack([colors, rest]).astype("uint8").tobytes())
    over = Image.blend(image, Image.fromarray(colors[mask]), 0.5)
    for target, one in zip(mask_files(folder, path), (picture, over), strict=True):
        with atomic(target) as temporary:
            one.save(temporary, format="PNG")


def _nearest(mask, size):
    """Return a mask of another size, each pixel the nearest."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size, mask.shape, strict=True)
    )
    return mask[rows[:, None], columns]


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
    files = checked_files([paths] if _is_file(paths) else paths)
    images, _ = decode(files, shape[:2])
    return grey(images) if shape[2] == 1 else images


def checked_files(files):
    """Return files as paths that exist, and images of Pillow's as they are."""
    files = [
        pathlib.Path(x).expanduser() if isinstance(x, (str, pathlib.Path)) else x
        for x in files
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
    return files


def grey(images):
    """Return the luma of RGB images, `(n, height, width, 1)`."""
    luma = images @ np.array([0.299, 0.587, 0.114])
    return luma.round().astype("uint8")[..., None]


def _as_images(images, model):
    files = _files(images)
    if files is not None:
        return read_images(files, classifiers.image_shape(model))
    return classifiers.as_images(model, images)


def _files(images):
    """Return files as a list, and `None` of arrays."""
    if _is_file(images):
        return [images]
    if isinstance(images, (list, tuple)) and all(map(_is_file, images)):
        if not images:
            raise FileNotFoundError("There are no images.")
        return list(images)
    return None


def _is_file(image):
    """Whether it is an image's path, or one that Pillow has opened."""
    opened = type(image).__module__.startswith("PIL.")  # which may not be installed
    return opened or isinstance(image, (str, pathlib.Path))
