"""Image files become arrays: all at once, or when they are asked for."""

import concurrent.futures
import contextlib
import io
import os
import pathlib

import numpy as np

from keras_lkca.checks import check_pair
from keras_lkca.data.shards import MEMBER, content_of, place_of
from keras_lkca.extras import require
from keras_lkca.files import shown

# No more is kept in memory: a slip of a digit fills it.
MAX_BYTES = 2**34


class ImageFiles:
    """Images in files, decoded whenever they are asked for.

    It stands where an array of images would, and takes the memory of their paths:
    `keras_lkca.training.fit` and `keras_lkca.data.training_batches` train on it, with
    the same batches as on the array.

    Args:
        files: Sequence of paths; or the `files` of another, which may be images within
            tar files, as `keras_lkca.data.from_directory` finds them.
        image_size: The (height, width) in pixels to crop and resize to, or one integer
            for both, as `keras_lkca.data.from_directory` does.

    Call arguments:
        rows: In brackets, `images[rows]`: an integer, a slice or an array of integers.

    Returns:
        The images of these rows, a uint8 array. `shape` is `(n, height, width, 3)`.

    Raises:
        ValueError: If `image_size` is not as above; and when images are asked for, if a
            file cannot be decoded.
        ImportError: If Pillow is missing.

    Example:

    ```python
    images = ImageFiles(["a.jpg", "b.jpg", "c.jpg"], 64)
    images[[2, 0]].shape  # (2, 64, 64, 3), of c.jpg and a.jpg
    ```
    """

    dtype = np.dtype("uint8")
    ndim = 4

    def __init__(self, files, image_size):
        require("PIL", "data", "pillow")
        if isinstance(files, (str, bytes, pathlib.Path)):
            raise ValueError(
                "`files` must be a sequence of paths; of a folder of class folders "
                "take data.from_directory(folder, stream=True). "
                f"Received: files={files!r}"
            )
        if getattr(files, "dtype", None) != MEMBER:
            paths = [str(pathlib.Path(file).expanduser()) for file in files]
            files = np.array(paths, object)
        self.files = files
        self.image_size = check_pair("image_size", image_size)
        # The last error: where TensorFlow asks for images, it makes another of it.
        self.problem = None

    def __len__(self):
        """Return how many there are."""
        return len(self.files)

    @property
    def shape(self):
        """What the shape of the array would be."""
        return (len(self), *self.image_size, 3)

    @property
    def size(self):
        """How many numbers the array would have."""
        return int(np.prod(self.shape))

    def __getitem__(self, rows):
        """Decode one image, or those of a slice or an array of integers."""
        if np.ndim(rows) == 0 and not isinstance(rows, slice):
            return self[[rows]][0]
        try:
            return decode(self.files[rows], self.image_size, "stream")[0]
        except ValueError as error:
            self.problem = error
            raise

    def __array__(self, dtype=None, copy=None):
        """Decode all."""
        return np.asarray(self[:], dtype)

    def part(self, rows):
        """Return the images of an array of integers, not decoded yet."""
        return ImageFiles(self.files[rows], self.image_size)


def as_stored(images):
    """Return images as an array, those of files as they are.

    Example:

    >>> from keras_lkca.data.decoding import as_stored
    >>> as_stored([[[[0]]]]).shape
    (1, 1, 1, 1)
    """
    return images if isinstance(images, ImageFiles) else np.asarray(images)


def part_of(images, rows):
    """Return some of the images, those of files not decoded yet.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.data.decoding import ImageFiles, part_of
    >>> len(part_of(ImageFiles(["a.jpg", "b.jpg"], 8), np.array([1])))
    1
    """
    return images.part(rows) if isinstance(images, ImageFiles) else images[rows]


def decode(files, image_size, on_error=None):
    """Decode files to one array.

    Args:
        files: Sequence of paths, of images that Pillow has opened, or of members of
            tar files.
        image_size: The (height, width) to crop and resize to.
        on_error: `"raise"` or `"skip"`, see `from_directory`; to raise for a caller
            who cannot skip `None`, or `"stream"` for one who cannot do with fewer.

    Returns:
        uint8 images `(n, height, width, 3)` and a boolean array that tells which of
        the files they are.

    Raises:
        ValueError: See `from_directory`.

    Example:

    ```python
    images, kept = decode(["a.jpg", "b.jpg"], (64, 64))
    ```
    """
    require("PIL", "data", "pillow")
    height, width = image_size
    size = len(files) * height * width * 3
    if size > MAX_BYTES:
        raise ValueError(
            f"{len(files):,} images of {height} x {width} take {size / 2**30:.0f} GiB "
            f"of memory, more than {MAX_BYTES / 2**30:.0f}. Choose a smaller "
            f"`image_size`. Received: image_size={tuple(image_size)}"
        )
    images = np.empty((len(files), height, width, 3), "uint8")

    def read(index):
        try:
            images[index] = _read(files[index], image_size)
        except Exception as error:  # every format has errors of its own
            file = files[index]
            return f"{place_of(file) if _is_member(file) else file}: {error}"

    # Pillow decodes outside of Python's lock.
    with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        errors = list(pool.map(read, range(len(files))))
    kept = np.array([error is None for error in errors], bool)
    damaged = [error for error in errors if error]
    if damaged:
        named = "\n    ".join(damaged[:10])
        more = f"\n    and {len(damaged) - 10} more" if len(damaged) > 10 else ""
        text = f"{len(damaged)} of {len(files)} files cannot be decoded:\n    "
        if on_error != "skip":
            remedy = {
                "raise": "Replace or remove them, or skip them with on_error='skip' "
                "(--on-error skip)",
                "stream": "Replace them: a run goes on with as many images as it began",
                None: "Replace or remove them",
            }[on_error]
            raise ValueError(f"{text}{named}{more}\n{remedy}.")
        print(shown(f"skipped: {text}{named}{more}"), flush=True)
        images = images[kept]
    return images, kept


def _read(path, image_size):
    from PIL import Image, ImageOps

    height, width = image_size
    with opened(path) as image:
        if image is not path:
            # At a reduced size where the format can: much faster for photographs.
            image.draft("RGB", (2 * width, 2 * height))
        image = as_rgb(ImageOps.exif_transpose(image))
        if image.size != (width, height):
            # Along the rows first: Pillow's versions differ in the order, and with it
            # in the pixels, which an exported model is to read as they are read here.
            scale = min(image.width / width, image.height / height)
            left = max(image.width - scale * width, 0) / 2
            top = max(image.height - scale * height, 0) / 2
            for size, box in (
                ((width, image.height), (left, 0, image.width - left, image.height)),
                ((width, height), (0, top, width, image.height - top)),
            ):
                image = image.resize(size, Image.Resampling.BICUBIC, box)
        return np.asarray(image)


def opened(file):
    """Return a context of an image, of a path, of a tar's member or opened before."""
    from PIL import Image

    if isinstance(file, Image.Image):
        return contextlib.nullcontext(file)
    return Image.open(io.BytesIO(content_of(file)) if _is_member(file) else file)


def _is_member(file):
    return getattr(file, "dtype", None) == MEMBER


def as_rgb(image):
    """Return an image of Pillow's in RGB, of 8 bits."""
    from PIL import Image

    if image.mode.startswith("I;16"):  # which Pillow would clip, not scale
        image = Image.fromarray((np.asarray(image) >> 8).astype("uint8"))
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode!r})")
    return image.convert("RGB")
