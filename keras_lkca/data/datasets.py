"""What each dataset is, and where its images come from."""

import dataclasses
import os
import pathlib
import socket
import urllib.request

import numpy as np

from keras_lkca.data.folders import tiny_imagenet
from keras_lkca.extras import require, require_tensorflow


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What a model and a pipeline need to know of a dataset.

    Attributes:
        num_classes: Number of classes.
        input_shape: The images' (height, width, channels).
        mean: Mean of each channel, images scaled to [0, 1].
        std: Standard deviation of each channel, likewise.
        flip: Whether a mirrored image is still of its class.
        host: Where its archive is downloaded from, if it has to be.
    """

    num_classes: int
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = True
    host: str = ""


DATASETS = {
    "cifar10": Dataset(
        num_classes=10,
        input_shape=(32, 32, 3),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        host="www.cs.toronto.edu",
    ),
    "cifar100": Dataset(
        num_classes=100,
        input_shape=(32, 32, 3),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        host="www.cs.toronto.edu",
    ),
    "svhn_cropped": Dataset(
        num_classes=10,
        input_shape=(32, 32, 3),
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        flip=False,
        host="ufldl.stanford.edu",
    ),
    "tiny_imagenet": Dataset(
        num_classes=200,
        input_shape=(64, 64, 3),
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
        host="cs231n.stanford.edu",
    ),
    "digits": Dataset(
        num_classes=10,
        input_shape=(8, 8, 1),
        mean=(0.3054,),
        std=(0.3759,),
        flip=False,
    ),
}


def describe(name: str) -> Dataset:
    """Return what the table knows of a dataset.

    Args:
        name: `"cifar10"`, `"cifar100"`, `"svhn_cropped"`, `"tiny_imagenet"` or
            `"digits"`.

    Returns:
        A `Dataset`.

    Raises:
        ValueError: If there is no such dataset.

    Example:

    >>> from keras_lkca import data
    >>> data.describe("cifar100").num_classes
    100
    """
    if name not in DATASETS:
        raise ValueError(
            f"`name` must be one of {sorted(DATASETS)}; for a folder of your own "
            f"images there is keras_lkca.data.from_directory. Received: name={name!r}"
        )
    return DATASETS[name]


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
    if split not in ("train", "test"):
        raise ValueError(
            f"`split` must be 'train' or 'test'. Received: split={split!r}"
        )
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
    if split not in ("train", "test"):
        raise ValueError(
            f"`split` must be 'train' or 'test'. Received: split={split!r}"
        )
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


def _data_root(data_dir):
    if data_dir is not None:
        root = pathlib.Path(data_dir).expanduser()
        if not root.is_dir():
            raise FileNotFoundError(
                "`data_dir` is no folder; create it to download into it. "
                f"Received: data_dir={str(data_dir)!r}"
            )
        return root
    return pathlib.Path(
        os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    ).expanduser()


def _tfds(name, root, split):
    tfds = require("tensorflow_datasets", "data")
    # A prepared folder is read as it is: asking TFDS for the dataset by its name
    # would go to the network even then.
    versions = sorted((root / name).glob("*/dataset_info.json"))
    if versions:
        builder = tfds.builder_from_directory(str(versions[-1].parent))
    else:
        try:
            _check_network(DATASETS[name].host)
            builder = tfds.builder(name, data_dir=str(root))
            builder.download_and_prepare()
        except Exception as error:
            raise FileNotFoundError(
                f"The dataset {name!r} is not in {root / name} and could not be "
                f"downloaded ({type(error).__name__}: {error}). Where there is a "
                "network, fetch it with\n"
                f'    python -c "import tensorflow_datasets as tfds; '
                f"tfds.load('{name}', data_dir='{root}')\"\n"
                "or point to a folder that holds it: --data-dir FOLDER, data_dir= or "
                "the environment variable TFDS_DATA_DIR, with FOLDER/"
                f"{name}/<version>/dataset_info.json below it."
            ) from error
    return builder.as_dataset(split=split, as_supervised=True)


def _check_network(host):
    """Fail within seconds where there is no network; TFDS tries for minutes."""
    if not urllib.request.getproxies():
        socket.create_connection((host, "http"), timeout=10).close()
