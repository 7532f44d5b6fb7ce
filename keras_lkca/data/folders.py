"""Datasets that are folders of image files."""

import pathlib

import keras

from keras_lkca.extras import require_tensorflow

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
        `tf.data.Dataset` of (uint8 image, int32 label), one at a time, and the list
        of class names.

    Raises:
        ValueError: If the split is unknown, or `validation_split` is not as above.
        FileNotFoundError: If there is no such folder, or a class without images.
        ImportError: If TensorFlow is missing.

    Example:

    ```python
    train, names = from_directory("pets/", (64, 64), validation_split=0.2)
    test, _ = from_directory("pets/", (64, 64), "test", validation_split=0.2)
    ```
    """
    tf = require_tensorflow()
    if not 0 <= validation_split < 1:
        raise ValueError(
            "`validation_split` must lie in [0, 1). "
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
            f"There is no such folder. Received: directory={str(directory)!r}"
        )
    classes = sorted(path for path in directory.iterdir() if path.is_dir())
    empty = [path.name for path in classes if not any(map(_is_image, path.rglob("*")))]
    if empty or not classes:
        raise FileNotFoundError(
            "`directory` must hold one folder a class, each with images "
            f"({', '.join(_SUFFIXES)}); there are none in {empty or 'it'}. "
            f"Received: directory={str(directory)!r}"
        )
    dataset = keras.utils.image_dataset_from_directory(
        directory,
        batch_size=None,
        image_size=tuple(image_size),
        seed=seed,
        validation_split=validation_split or None,
        subset={"train": "training", "test": "validation"}[split]
        if validation_split
        else None,
        crop_to_aspect_ratio=True,
        verbose=False,
    )
    return _as_uint8(tf, dataset), [path.name for path in classes]


def _is_image(path):
    return path.suffix.lower() in _SUFFIXES


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
    classes = sorted(path.name for path in (folder / "train").iterdir())
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
        names = sorted(path.name for path in (folder / "val" / "images").iterdir())
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
