"""Datasets that are folders of image files, decoded by Pillow."""

import collections
import pathlib

import numpy as np

from keras_lkca.checks import check_pair
from keras_lkca.data.decoding import MAX_BYTES, ImageFiles, decode
from keras_lkca.data.shards import read_shards, shards_of
from keras_lkca.data.table import Dataset
from keras_lkca.extras import require
from keras_lkca.files import shown

# Which Pillow opens and which are no pictures of pixels.
_NO_PICTURES = ("EPS", "MPEG")
# Folders of a dataset's parts, which may have the names of its classes in common.
_PARTS = ("train", "test", "val")


def from_directory(
    directory, image_size, on_error: str = "raise", stream: bool | None = False
):
    """Load your own images from a folder that holds one folder a class, or shards.

    Images are turned as their EXIF data says, converted to RGB, cropped about their
    centre to the aspect ratio of `image_size` and resized to it. Classes are the
    folders' names in alphabetical order. Hidden files and folders are passed over. So
    are files that are no images by their suffix, and images beside the class folders:
    how many and of which kinds is printed.

    A folder without class folders may hold tar files, not compressed, as WebDataset
    writes them. Beside each `KEY.jpg` in one stands a `KEY.cls`, which holds the number
    of its class as text; a file `classes.txt` beside the tar files, or beside folders
    `train`, `test` and `val` of such, names the classes, one a line from 0 on. Or the
    images stand in class folders there. Streamed, they are read from where they stand.

    Args:
        directory: The folder, with `directory/<class>/<image>.jpg`, or of any other
            kind that Pillow reads: png, webp, tiff, bmp, gif, avif, jp2, ppm, ...; or
            with `directory/<shard>.tar` of such images.
        image_size: The (height, width) in pixels to resize to, or one integer for
            both.
        on_error: What to do with files that cannot be decoded: `"raise"`, or
            `"skip"` them, and print which.
        stream: Whether to decode each image when it is asked for, in place of all at
            once, so that they need not fit in memory; `None` where they would take
            more than 16 GiB.

    Returns:
        uint8 images `(n, height, width, 3)`, int64 labels `(n,)`, and a `Dataset` of
        facts: the classes' number and names, the images' shape, and their mean and
        standard deviation. Streamed, the images are a `keras_lkca.data.ImageFiles`,
        and mean and standard deviation those of 2,000 of them.

    Raises:
        ValueError: If an argument is not as above, the images would take more than
            16 GiB of memory and are not streamed, files cannot be decoded and
            `on_error` is `"raise"`, or a shard is damaged, compressed or without
            images, or one of its images without a class.
        FileNotFoundError: If there is no such folder, or a class without images.
        ImportError: If Pillow is missing.

    Example:

    ```python
    images, labels, facts = from_directory("pets/", image_size=64)
    model = LKCAViT.from_preset(
        "lkca_vit_tiny", input_shape=facts.input_shape, num_classes=facts.num_classes
    )
    ```
    """
    image_size = check_pair("image_size", image_size)
    if on_error not in ("raise", "skip"):
        raise ValueError(
            f"`on_error` must be 'raise' or 'skip'. Received: on_error={on_error!r}"
        )
    directory = pathlib.Path(directory).expanduser()
    if not directory.is_dir():
        raise FileNotFoundError(
            f"`directory` is no folder. Received: directory={str(directory)!r}"
        )
    classes = sorted(path for path in directory.iterdir() if _is_folder(path))
    shards = [] if classes else shards_of(directory)
    if shards:
        places = [directory, *([directory.parent] if directory.name in _PARTS else [])]
        named_in = [place / "classes.txt" for place in places]
        names_file = next(filter(pathlib.Path.is_file, named_in), None)
        found = read_shards(shards, image_suffixes(), names_file)
        files, labels, names, others = found
        beside = _suffixes(filter(_image_test(), directory.iterdir()))
        _tell_passed_over(directory, others, beside)
    else:
        files, labels, names = _class_folders(directory, classes)
    if stream not in (None, True, False):
        raise ValueError(
            f"`stream` must be True, False or None. Received: stream={stream!r}"
        )
    streamed = stream
    if stream is None:
        streamed = len(files) * image_size[0] * image_size[1] * 3 > MAX_BYTES
    if streamed and on_error == "skip":
        raise ValueError(
            "`on_error`='skip' is for images that are decoded at once; streamed, a "
            "file that cannot be decoded is met in the middle of a training: give "
            "on_error='raise', or a smaller `image_size` where they do not fit in "
            f"memory. Received: on_error='skip', stream={stream!r}"
        )
    if streamed:
        images, kept = ImageFiles(files, image_size), slice(None)
    else:
        images, kept = decode(files, image_size, on_error)
    lost = [names[label] for label in np.setdiff1d(labels, labels[kept])]
    labels = labels[kept]
    if lost:
        raise FileNotFoundError(
            f"`directory` holds no image that can be decoded in {lost}. "
            f"Received: directory={str(directory)!r}"
        )
    mean, std = statistics(images)
    facts = Dataset(
        num_classes=len(names),
        input_shape=images.shape[1:],
        mean=mean,
        std=std,
        class_names=tuple(names),
    )
    return images, labels, facts


def _class_folders(directory, classes):
    """Return the images of class folders, their labels and the classes' names."""
    is_image = _image_test()
    below = [_files_below(path) for path in classes]
    files = [list(filter(is_image, found)) for found in below]
    others = _suffixes(path for found in below for path in found if not is_image(path))
    beside = _suffixes(filter(is_image, directory.iterdir()))
    empty = [path.name for path, found in zip(classes, files, strict=True) if not found]
    if empty or not classes:
        raise FileNotFoundError(
            "`directory` must hold one folder a class, each with images of a kind that "
            "Pillow reads, or no folders but tar files of them; there are none in "
            f"{empty or 'it'}. It holds other files: {_kinds(others)}; and images "
            f"beside the class folders: {_kinds(beside)}. "
            f"Received: directory={str(directory)!r}"
        )
    tars = _suffixes(path for path in directory.iterdir() if path.suffix == ".tar")
    _tell_passed_over(directory, others, beside + tars)
    labels = np.repeat(np.arange(len(classes)), [len(found) for found in files])
    return sum(files, []), labels, [path.name for path in classes]


def _tell_passed_over(directory, others, beside):
    passed_over = [
        f"{what} ({_kinds(counts)})"
        for what, counts in (
            ("files that are no images", others),
            ("images beside the class folders or tar files", beside),
        )
        if counts
    ]
    if passed_over:
        print(
            f"passed over in {shown(directory)}: {' and '.join(passed_over)}",
            flush=True,
        )


def statistics(images):
    """Return the mean and standard deviation of each channel, scaled to [0, 1].

    Example:

    >>> import numpy as np
    >>> from keras_lkca.data.folders import statistics
    >>> statistics(np.full((2, 4, 4, 1), 255, "uint8"))
    ((1.0,), (0.0,))
    """
    if isinstance(images, ImageFiles):
        rows = np.linspace(0, len(images) - 1, min(len(images), 2000))
        images = images.part(rows.astype(int))
    # From the count of each value: exact, and some images at a time.
    counts_of = np.zeros((images.shape[-1], 256), "int64")
    for start in range(0, len(images), 64):
        some = images[start : start + 64]
        for channel, counts in enumerate(counts_of):
            counts += np.bincount(some[..., channel].reshape(-1), minlength=256)
    values = np.arange(256) / 255
    means = [counts @ values / counts.sum() for counts in counts_of]
    squares = [counts @ values**2 / counts.sum() for counts in counts_of]
    stds = np.sqrt(np.maximum(np.subtract(squares, np.square(means)), 0))
    return tuple(map(float, means)), tuple(map(float, stds))


def image_suffixes():
    """Return the suffixes of the images that Pillow reads, those of plug-ins too.

    Example:

    >>> from keras_lkca.data.folders import image_suffixes
    >>> {".jpg", ".jfif", ".png", ".tif", ".pgm"} <= image_suffixes()
    True
    """
    require("PIL", "data", "pillow")
    from PIL import Image, ImageFile

    suffixes = Image.registered_extensions()
    formats = {"MPO"}  # opened as JPEG
    for name, (opener, _) in Image.OPEN.items():
        stub = isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile)
        if not stub and name not in _NO_PICTURES:
            formats.add(name)
    return frozenset(suffix for suffix, name in suffixes.items() if name in formats)


def _image_test():
    """Return the test of a path that tells images from other files."""
    suffixes = image_suffixes()  # asked for once: there may be many files

    def is_image(path):
        hidden = path.name.startswith(".")
        return path.suffix.lower() in suffixes and not hidden and path.is_file()

    return is_image


def _files_below(folder):
    return sorted(
        path
        for path in folder.rglob("*")
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _suffixes(paths):
    """Count files by their suffixes."""
    return collections.Counter(path.suffix.lower() or "no suffix" for path in paths)


def _kinds(counts):
    """Return counts of suffixes in words."""
    kinds = ", ".join(f"{n:,} {shown(kind)}" for kind, n in counts.most_common())
    return kinds or "none"


def images_below(folder):
    """Return a folder's images, however deep, but not within hidden folders."""
    return list(filter(_image_test(), _files_below(folder)))


def _is_folder(path):
    return path.is_dir() and not path.name.startswith(".")


def tiny_imagenet(root, split, facts):
    """Load Tiny-ImageNet from its official folder, after a check of the layout."""
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
    classes = sorted(
        path.name for path in (folder / "train").iterdir() if _is_folder(path)
    )
    expected = facts.num_classes
    if len(classes) != expected:
        raise FileNotFoundError(
            f"The dataset 'tiny_imagenet' has {expected} classes, but {folder}/train "
            f"holds {len(classes)} folders: unpack the archive again."
        )
    if split == "train":
        files = [images_below(folder / "train" / name) for name in classes]
        empty = [name for name, found in zip(classes, files, strict=True) if not found]
        if empty:
            raise FileNotFoundError(
                f"{folder}/train holds no images of {empty[:3]}: unpack the archive "
                "again."
            )
        labels = np.repeat(np.arange(expected), [len(found) for found in files])
        files = sum(files, [])
    else:
        lines = annotations.read_text().splitlines()
        class_of = dict(line.split("\t")[:2] for line in lines if line.count("\t"))
        files = sorted(filter(_image_test(), (folder / "val" / "images").iterdir()))
        unknown = [f.name for f in files if class_of.get(f.name) not in classes]
        absent = sorted(set(class_of) - {file.name for file in files})
        if unknown or absent or not files:
            problem = (
                f"gives no known class for {unknown[:3] or 'any image'}"
                if unknown or not files
                else f"names {absent[:3]}, which {folder}/val/images does not hold"
            )
            raise FileNotFoundError(
                f"{annotations} {problem}: unpack the archive again."
            )
        index = {name: position for position, name in enumerate(classes)}
        labels = np.array([index[class_of[file.name]] for file in files])
    return decode(files, facts.input_shape[:2])[0], labels
