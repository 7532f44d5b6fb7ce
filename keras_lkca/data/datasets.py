"""Where the images come from."""

import os
import pathlib
import socket
import urllib.request

import numpy as np

from keras_lkca.data.folders import tiny_imagenet
from keras_lkca.data.table import DATASETS, describe
from keras_lkca.extras import require, require_tensorflow


def load(name: str, split: str = "train", data_dir=None):
    """Load a dataset as a `tf.data.Dataset` of (image, label).

    `cifar10`, `cifar100` and `svhn_cropped` come through TensorFlow Datasets, which
    downloads them once; `digits` comes with scikit-learn; `tiny_imagenet` is read
    from the official folder, `tiny-imagenet-200`, that you have unpacked, its
    validation images as the split "test" (the official test images have no labels).

    Args:
        name: See `keras_lkca.data.describe`.
        split: `"train"` or `"test"`.
        data_dir: Folder that holds the datasets. Defaults to the environment
            variable `TFDS_DATA_DIR`, or else `~/tensorflow_datasets`.

    Returns:
        `tf.data.Dataset` of uint8 images `(height, width, channels)` and int64
        labels, one at a time.

    Raises:
        ValueError: If there is no such dataset or split.
        FileNotFoundError: If its files are not there and could not be downloaded.
        ImportError: If a package that it needs is missing.

    Example:

    >>> from keras_lkca import data
    >>> len(data.load("digits", "train"))
    1400
    """
    facts = describe(name)
    _check_split(split)
    tf = require_tensorflow()
    if name == "digits":
        images, labels = digits(split)
        return tf.data.Dataset.from_tensor_slices((images, labels))
    root = _data_root(data_dir)
    if name == "tiny_imagenet":
        return tiny_imagenet(root, split, facts)
    return _tfds(name, root, split)


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


def _tfds(name, root, split):
    tfds = require("tensorflow_datasets", "data")
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
            f"{name}/<version>/dataset_info.json below it."
        ) from error
    return builder.as_dataset(split=split, as_supervised=True)


def _check_network(host):
    """Fail within seconds where there is no network; TFDS tries for minutes."""
    if urllib.request.getproxies():
        return
    try:
        socket.create_connection((host, 443), timeout=10).close()
    except OSError:
        socket.create_connection((host, 80), timeout=10).close()
