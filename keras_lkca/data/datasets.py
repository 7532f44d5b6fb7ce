"""Where the images come from."""

import importlib.util
import os
import pathlib
import socket
import urllib.request
import zipfile
import zlib

import keras
import numpy as np

from keras_lkca.data.folders import tiny_imagenet
from keras_lkca.data.masks import IGNORED, as_masks, fitted
from keras_lkca.data.table import DATASETS, describe
from keras_lkca.extras import require, require_tensorflow


def load(name: str, split: str = "train", data_dir=None):
    """Load a dataset into memory, images as they are.

    `digits` comes with scikit-learn. `tiny_imagenet` is read from the official
    folder, `tiny-imagenet-200`, that you have unpacked, its validation images as the
    split "test" (the official test images have no labels). The others are looked for
    in this order:

    1. `<data_dir>/<name>.npz` or `<data_dir>/npz/<name>.npz`, with arrays `x_train`,
       `y_train`, `x_test` and `y_test`
    2. `<data_dir>/<name>` or `<data_dir>/tfds/<name>`, prepared by TensorFlow Datasets
    3. a download: through TensorFlow Datasets where TensorFlow is installed, else
       through `keras.datasets` (`cifar10` and `cifar100`), which keeps it in the Keras
       home directory

    The first and the last need no TensorFlow.

    Args:
        name: See `keras_lkca.data.describe`.
        split: `"train"` or `"test"`.
        data_dir: Folder that holds the datasets. Defaults to the environment
            variable `TFDS_DATA_DIR`, or else `~/tensorflow_datasets`.

    Returns:
        uint8 images `(n, height, width, channels)` and int64 labels `(n,)`, or of a
        dataset with a class for every pixel int16 masks `(n, height, width)`, -1 for
        pixels to ignore; its images are cropped about their centre and resized.

    Raises:
        ValueError: If there is no such dataset or split, or a file's images or labels
            are not what the dataset's are.
        FileNotFoundError: If its files are not there and could not be downloaded.
        ImportError: If a package that it needs is missing.

    Example:

    >>> from keras_lkca import data
    >>> images, labels = data.load("digits", "train")
    >>> images.shape, labels.shape
    ((1400, 8, 8, 1), (1400,))
    """
    facts = describe(name)
    _check_split(split)
    if name == "digits":
        return digits(split)
    root = _data_root(data_dir)
    if name == "tiny_imagenet":
        return tiny_imagenet(root, split, facts)
    for file in (root / f"{name}.npz", root / "npz" / f"{name}.npz"):
        if file.exists():
            return _npz(file, split, facts)
    prepared = root / "tfds" if (root / "tfds" / name).is_dir() else root
    if importlib.util.find_spec("tensorflow") or (prepared / name).is_dir():
        return _tfds(name, prepared, split, facts)
    if name in ("cifar10", "cifar100"):
        return _keras_dataset(name, split)
    raise FileNotFoundError(
        f"The dataset {name!r} is not in {root}. Without TensorFlow, put its arrays "
        f"x_train, y_train, x_test and y_test into {root}/{name}.npz; or install "
        'TensorFlow Datasets to fetch it: pip install "keras-lkca[tfds]"'
    )


def digits(split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """Load scikit-learn's handwritten digits; needs no download, no TensorFlow.

    Args:
        split: `"train"`, 1,400 images, or `"test"`, the other 397; drawn once, the
            classes in equal shares.

    Returns:
        uint8 images `(n, 8, 8, 1)` in [0, 255] and int64 labels `(n,)`.

    Raises:
        ValueError: If there is no such split.
        ImportError: If scikit-learn is missing.

    Example:

    >>> from keras_lkca import data
    >>> images, labels = data.digits("test")
    >>> images.shape, labels.shape
    ((397, 8, 8, 1), (397,))
    """
    _check_split(split)
    require("sklearn", "data", "scikit-learn")
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype("uint8")[..., None]
    labels = bunch.target.astype("int64")
    train, test = train_test_split(
        np.arange(len(labels)), test_size=397, stratify=labels, random_state=0
    )
    rows = train if split == "train" else test
    return images[rows], labels[rows]


def _check_split(split):
    if split not in ("train", "test"):
        raise ValueError(
            f"`split` must be 'train' or 'test'. Received: split={split!r}"
        )


def _data_root(data_dir):
    if data_dir is None:
        data_dir = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    elif not pathlib.Path(data_dir).expanduser().is_dir():
        raise FileNotFoundError(
            "`data_dir` is no folder; point to the one that holds the datasets "
            "(--data-dir, data_dir= or the environment variable TFDS_DATA_DIR), or "
            f"create it to download into it. Received: data_dir={str(data_dir)!r}"
        )
    return pathlib.Path(data_dir).expanduser()


def _npz(file, split, facts):
    """Read one split of a file of arrays, and check that it is the dataset."""
    keys = f"x_{split}", f"y_{split}"
    try:
        with np.load(file) as arrays:
            found = sorted(arrays)
            images, labels = (arrays[key] if key in found else None for key in keys)
    except (
        *(OSError, ValueError, TypeError, EOFError),
        *(zipfile.BadZipFile, zlib.error),
    ) as error:
        raise ValueError(f"{file} is no file of arrays ({error}).") from error
    for key, array in zip(keys, (images, labels), strict=True):
        if array is None:
            raise ValueError(f"{file} holds no {key!r}, but {found}.")
    if images.dtype != "uint8" or images.shape[1:] != facts.input_shape:
        raise ValueError(
            f"{file} must hold uint8 images {('n', *facts.input_shape)}. "
            f"Received: {images.dtype} {images.shape}"
        )
    return images, _checked(labels, images, facts)


def _checked(labels, images, facts):
    """Return labels or masks, or raise a `ValueError` if they are not the dataset's."""
    if facts.mask_values:
        return as_masks(labels, images.shape[:3], facts.num_classes)
    labels = labels.reshape(-1)  # keras.datasets has a column
    check_labels(labels, len(images), facts.num_classes)
    return labels.astype("int64")


def check_labels(labels, count, num_classes):
    """Check that there is a label in [0, num_classes) for each image.

    Raises:
        ValueError: If there is not.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.data.datasets import check_labels
    >>> check_labels(np.array([0, 9]), 2, num_classes=10)
    """
    labels = np.asarray(labels)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"`labels` must be {count} integers, one for each image. "
            f"Received: {labels.dtype} {labels.shape}"
        )
    if count and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"`labels` must lie between 0 and {num_classes - 1}, for {num_classes} "
            f"classes. Received: labels from {labels.min()} to {labels.max()}"
        )


def _keras_dataset(name, split):
    try:
        (*train,), (*test,) = getattr(keras.datasets, name).load_data()
    except Exception as error:
        raise FileNotFoundError(
            f"The dataset {name!r} could not be downloaded ({error})."
        ) from error
    images, labels = train if split == "train" else test
    return images, labels.reshape(-1).astype("int64")


def _tfds(name, root, split, facts):
    require_tensorflow()
    tfds = require("tensorflow_datasets", "tfds")
    if facts.mask_values:
        require("PIL", "data", "pillow")
    # A prepared folder is read as it is: asking TFDS for the dataset by its name
    # would go to the network even then.
    versions = sorted((root / name).glob("*/dataset_info.json"))
    try:
        if versions:
            builder = tfds.builder_from_directory(str(versions[-1].parent))
        else:
            _check_network(DATASETS[name].host)
            builder = tfds.builder(name, data_dir=str(root))
            builder.download_and_prepare()
        missing = [
            path
            for path in builder.info.splits[split].filepaths
            if not pathlib.Path(path).exists()
        ]
        if missing:
            raise FileNotFoundError(f"there is no {missing[0]}")
        if facts.mask_values:
            return _with_masks(tfds.as_numpy(builder.as_dataset(split=split)), facts)
        dataset = builder.as_dataset(split=split, as_supervised=True, batch_size=-1)
        images, labels = tfds.as_numpy(dataset)
    except Exception as error:
        problem = "is damaged" if versions else "is not there and was not downloaded"
        raise FileNotFoundError(
            f"The dataset {name!r} in {root / name} {problem} "
            f"({type(error).__name__}: {error}). Where there is a network, fetch it "
            "with\n"
            f'    python -c "import tensorflow_datasets as tfds; '
            f"tfds.load('{name}', data_dir='{root}')\"\n"
            "or point to a folder that holds it: --data-dir FOLDER, data_dir= or "
            "the environment variable TFDS_DATA_DIR, with FOLDER/"
            f"{name}/<version>/dataset_info.json or FOLDER/{name}.npz below it."
        ) from error
    return images, _checked(labels, images, facts)


def _with_masks(examples, facts):
    """Return images of any size and their masks, cropped and resized to one."""
    from PIL import Image

    images, masks = [], []
    for example in examples:
        image = Image.fromarray(example["image"])
        mask = Image.fromarray(example["segmentation_mask"][..., 0])
        image, mask = fitted(image, mask, *facts.input_shape[:2])
        images.append(np.asarray(image))
        masks.append(np.full(mask.size[::-1], IGNORED, "int16"))
        for label, value in enumerate(facts.mask_values):
            masks[-1][np.asarray(mask) == value] = label
    return np.stack(images), np.stack(masks)


def _check_network(host):
    """Fail within seconds where there is no network; TFDS tries for minutes."""
    if urllib.request.getproxies():
        return
    try:
        socket.create_connection((host, 443), timeout=10).close()
    except OSError:
        socket.create_connection((host, 80), timeout=10).close()
