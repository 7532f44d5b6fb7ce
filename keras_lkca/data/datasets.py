"""What each dataset is, and where its images come from."""

import dataclasses
import os
import pathlib

import keras
import numpy as np

from keras_lkca.extras import require


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What a model and a pipeline need to know of a dataset.

    Attributes:
        num_classes: Number of classes.
        input_shape: The images' (height, width, channels).
        mean: Mean of each channel, images scaled to [0, 1].
        std: Standard deviation of each channel, likewise.
        flip: Whether a mirrored image is still of its class.
    """

    num_classes: int
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = True


DATASETS = {
    "cifar10": Dataset(
        10, (32, 32, 3), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    ),
    "cifar100": Dataset(
        100, (32, 32, 3), (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
    ),
    "svhn_cropped": Dataset(
        10, (32, 32, 3), (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), flip=False
    ),
    "tiny_imagenet": Dataset(
        200, (64, 64, 3), (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
    ),
    "digits": Dataset(10, (8, 8, 1), (0.3054,), (0.3759,), flip=False),
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
    describe(name)
    if split not in ("train", "test"):
        raise ValueError(f"`split` must be 'train' or 'test'. Received: split={split!r}")
    tf = require_tensorflow()
    if name == "digits":
        images, labels = digits(split)
        return tf.data.Dataset.from_tensor_slices((images, labels))
    root = _data_root(data_dir)
    if name == "tiny_imagenet":
        return _tiny_imagenet(tf, root, split)
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
        raise ValueError(f"`split` must be 'train' or 'test'. Received: split={split!r}")
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


# What Keras's loader reads.
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")


def _is_image(path):
    return path.suffix.lower() in _SUFFIXES


def _as_uint8(tf, dataset):
    return dataset.map(
        lambda image, label: (tf.cast(tf.round(image), tf.uint8), label),
        num_parallel_calls=tf.data.AUTOTUNE,
    )


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
            builder = tfds.builder(name, data_dir=str(root))
            builder.download_and_prepare()
        except Exception as error:
            raise FileNotFoundError(
                f"The dataset {name!r} is not in {root / name} and could not be "
                "downloaded. Where there is a network, fetch it with\n"
                f"    python -c \"import tensorflow_datasets as tfds; "
                f"tfds.load('{name}', data_dir='{root}')\"\n"
                "or point to a folder that holds it: --data-dir FOLDER, data_dir= or "
                "the environment variable TFDS_DATA_DIR, with FOLDER/"
                f"{name}/<version>/dataset_info.json below it."
            ) from error
    return builder.as_dataset(split=split, as_supervised=True)


def _tiny_imagenet(tf, root, split):
    folder = root if root.name == "tiny-imagenet-200" else root / "tiny-imagenet-200"
    annotations = folder / "val" / "val_annotations.txt"
    for path in (folder / "train", folder / "val" / "images", annotations):
        if not path.exists():
            raise FileNotFoundError(
                f"The dataset 'tiny_imagenet' is not in {folder}: there is no {path}. "
                "Fetch and unpack it with\n"
                "    wget http://cs231n.stanford.edu/tiny-imagenet-200.zip\n"
                f"    unzip tiny-imagenet-200.zip -d {folder.parent}\n"
                "or point to the folder that holds tiny-imagenet-200: --data-dir "
                "FOLDER, data_dir= or the environment variable TFDS_DATA_DIR."
            )
    height, width, _ = DATASETS["tiny_imagenet"].input_shape
    classes = sorted(path.name for path in (folder / "train").iterdir())
    expected = DATASETS["tiny_imagenet"].num_classes
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


def require_tensorflow():
    """Import TensorFlow, which must leave the GPU to another active backend."""
    tf = require("tensorflow", "data")
    if keras.config.backend() != "tensorflow":
        try:
            tf.config.set_visible_devices([], "GPU")
        except RuntimeError:  # TensorFlow has started: too late, and no harm done
            pass
    return tf
