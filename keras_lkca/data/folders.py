"""Datasets that are folders of image files."""

import pathlib

import keras
import numpy as np

from keras_lkca.data.table import Dataset
from keras_lkca.extras import require_tensorflow
from keras_lkca.layers.checks import check_pair, check_rate

# What Keras's loader reads.
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")


def from_directory(
    directory,
    image_size: tuple[int, int],
    split: str = "train",
    validation_split: float = 0.0,
    seed: int = 0,
):
    """Load your own images from a folder that holds one folder a class.

    Images are resized to `image_size`, cropped to its aspect ratio about their
    centre, and converted to RGB. Classes are the folders' names in alphabetical
    order.

    Args:
        directory: The folder, with `directory/<class>/<image>.jpg` (png, bmp, gif).
        image_size: The (height, width) in pixels to resize to.
        split: `"train"` or `"test"`.
        validation_split: Float in [0, 1), the share of the images that is the split
            "test" instead of "train", drawn with `seed`.
        seed: Integer, seed of the draw and of the order.

    Returns:
        `tf.data.Dataset` of (uint8 image, int32 label), one at a time, and a
        `Dataset` of facts: the classes' number and names, the images' shape, and the
        mean and standard deviation of up to 1,000 images of this split.

    Raises:
        ValueError: If the split is unknown, or `validation_split` is not as above.
        FileNotFoundError: If there is no such folder, or a class without images.
        ImportError: If TensorFlow is missing.

    Example:

    ```python
    train, facts = from_directory("pets/", (64, 64), validation_split=0.2)
    test, _ = from_directory("pets/", (64, 64), "test", validation_split=0.2)
    ```
    """
    tf = require_tensorflow()
    image_size = check_pair("image_size", image_size)
    if check_rate("validation_split", validation_split) == 1:
        raise ValueError(
            "`validation_split` must be below 1, to leave images to train on. "
            f"Received: validation_split={validation_split!r}"
        )
    if split not in ("train", "test") or (split == "test" and not validation_split):
        raise ValueError(
            "`split` must be 'train', or 'test' with a `validation_split` above 0. "
            f"Received: split={split!r}, validation_split={validation_split!r}"
        )
    directory = pathlib.Path(directory).expanduser()
    if not directory.is_dir():
        raise FileNotFoundError(
            f"`directory` is no folder. Received: directory={str(directory)!r}"
        )
    # Keras passes over hidden folders too.
    classes = sorted(
        path
        for path in directory.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )
    counts = {path.name: sum(map(_is_image, path.rglob("*"))) for path in classes}
    empty = [name for name, count in counts.items() if not count]
    if empty or not classes:
        raise FileNotFoundError(
            "`directory` must hold one folder a class, each with images "
            f"({', '.join(_SUFFIXES)}); there are none in {empty or 'it'}. "
            f"Received: directory={str(directory)!r}"
        )
    total = sum(counts.values())
    if validation_split and int(validation_split * total) == 0:
        raise ValueError(
            f"`validation_split` leaves the split 'test' none of the {total} images. "
            f"Received: validation_split={validation_split!r}"
        )
    dataset = keras.utils.image_dataset_from_directory(
        directory,
        batch_size=None,
        image_size=image_size,
        seed=seed,
        validation_split=validation_split or None,
        subset={"train": "training", "test": "validation"}[split]
        if validation_split
        else None,
        crop_to_aspect_ratio=True,
        verbose=False,
    )
    dataset = _as_uint8(tf, dataset)
    sample = np.stack([image for image, _ in dataset.take(1000).as_numpy_iterator()])
    facts = Dataset(
        num_classes=len(classes),
        input_shape=(*image_size, 3),
        mean=tuple((sample.mean((0, 1, 2)) / 255).tolist()),
        std=tuple((sample.std((0, 1, 2)) / 255).tolist()),
        class_names=tuple(path.name for path in classes),
    )
    return dataset, facts


def _is_image(path):
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")


def _as_uint8(tf, dataset):
    return dataset.map(
        lambda image, label: (tf.cast(tf.round(image), tf.uint8), label),
        num_parallel_calls=tf.data.AUTOTUNE,
    )


def tiny_imagenet(root, split, facts):
    """Load Tiny-ImageNet from its official folder, after a check of the layout."""
    tf = require_tensorflow()
    folder = root if root.name == "tiny-imagenet-200" else root / "tiny-imagenet-200"
    annotations = folder / "val" / "val_annotations.txt"
    for path in (folder / "train", folder / "val" / "images", annotations):
        if not path.exists():
            raise FileNotFoundError(
                f"The dataset 'tiny_imagenet' is not in {folder}: there is no {path}. "
                "Fetch and unpack it with\n"
                f"    wget http://{facts.host}/"
                "tiny-imagenet-200.zip\n"
                f"    unzip tiny-imagenet-200.zip -d {folder.parent}\n"
                "or point to the folder that holds tiny-imagenet-200: --data-dir "
                "FOLDER, data_dir= or the environment variable TFDS_DATA_DIR."
            )
    height, width, _ = facts.input_shape
    classes = sorted(p.name for p in (folder / "train").iterdir() if p.is_dir())
    expected = facts.num_classes
    if len(classes) != expected:
        raise FileNotFoundError(
            f"The dataset 'tiny_imagenet' has {expected} classes, but {folder}/train "
            f"holds {len(classes)} folders: unpack the archive again."
        )
    options = {"batch_size": None, "image_size": (height, width), "verbose": False}
    if split == "train":
        dataset = keras.utils.image_dataset_from_directory(
            folder / "train", seed=0, **options
        )
    else:
        lines = annotations.read_text().splitlines()
        class_of = dict(line.split("\t")[:2] for line in lines if line)
        images = (folder / "val" / "images").iterdir()
        names = sorted(path.name for path in images if _is_image(path))
        unknown = [name for name in names if class_of.get(name) not in classes]
        if unknown or not names:
            raise FileNotFoundError(
                f"{annotations} gives no known class for {unknown[:3] or 'any image'}: "
                "unpack the archive again."
            )
        dataset = keras.utils.image_dataset_from_directory(
            folder / "val" / "images",
            labels=[classes.index(class_of[name]) for name in names],
            shuffle=False,
            **options,
        )
    return _as_uint8(tf, dataset)
