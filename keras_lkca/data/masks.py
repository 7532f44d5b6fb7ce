"""Masks, a class for each pixel: what they must be, and folders of them."""

import contextlib
import pathlib

import numpy as np

from keras_lkca.checks import check_pair
from keras_lkca.data.decoding import as_rgb
from keras_lkca.data.folders import image_suffixes, statistics
from keras_lkca.data.table import Dataset
from keras_lkca.extras import require
from keras_lkca.files import shown

# What a pixel is in a mask whose class is not known, or not to be counted.
IGNORED = -1


def as_masks(masks, shape, num_classes, name="masks"):
    """Return masks as int16 `(n, height, width)`.

    Args:
        masks: Integer array `(n, height, width)`, or with a last axis of 1; -1 or 255
            for pixels to ignore.
        shape: The images' (n, height, width).
        num_classes: Number of classes.
        name: What the caller calls them.

    Raises:
        ValueError: If they are not as above.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.data.masks import as_masks
    >>> as_masks(np.array([[[0, 255]]]), (1, 1, 2), num_classes=2).tolist()
    [[[0, -1]]]
    """
    masks, shape = np.asarray(masks), tuple(shape)
    if masks.shape == (*shape, 1):
        masks = masks[..., 0]
    if masks.shape != shape or masks.dtype.kind not in "uib":
        raise ValueError(
            f"`{name}` must be integers {shape}, a class for each pixel of the images; "
            "of floats take masks.astype(int), of one-hot ones masks.argmax(-1). "
            f"Received: {masks.dtype} {masks.shape}"
        )
    ignored = masks == -1
    if num_classes <= 255:
        ignored |= masks == 255
    wrong = ~ignored & ((masks < 0) | (masks >= num_classes))
    if wrong.any():
        index = int(np.argwhere(wrong)[0][0])
        raise ValueError(
            f"`{name}` must hold classes from 0 to {num_classes - 1}, and 255 or -1 "
            "for pixels to ignore. Received: "
            f"{sorted(set(masks[wrong].tolist()))[:5]}, first in mask {index}"
        )
    masks = masks.astype("int16")
    masks[ignored] = IGNORED
    return masks


def from_mask_directory(directory, image_size=None, ignore=255):
    """Load images and their masks, from a folder of each.

    A mask belongs to the image of its name, whatever the suffixes. It is a grey or a
    palette image of the classes' numbers, as PNG keeps them.

    Args:
        directory: The folder, with `directory/images/NAME.jpg` and
            `directory/masks/NAME.png`. A file `directory/classes.txt`, or one beside
            `directory`, may name the classes, one a line; a palette in the masks gives
            their colours.
        image_size: The (height, width) in pixels to resize to, or one integer for
            both: images as `keras_lkca.data.from_directory` does, cropped about their
            centre, masks alike, each pixel the nearest. `None` where all are of one
            size, which they keep.
        ignore: Integer or several, the values of pixels to ignore, beside 255.

    Returns:
        uint8 images `(n, height, width, 3)`, int16 masks `(n, height, width)`, -1 for
        pixels to ignore, and a `Dataset` of facts: the classes' number, names and
        colours, the images' shape, mean and standard deviation.

    Raises:
        ValueError: If an argument is not as above, an image lacks its mask or a mask
            its image, sizes or values do not fit, or there is one class only.
        FileNotFoundError: If there is no such folder, or no image.
        ImportError: If Pillow is missing.

    Example:

    ```python
    images, masks, facts = from_mask_directory("camvid/train", ignore=11)
    model = LKCASegmenter.from_preset(
        "lkca_net_08m", facts.input_shape, facts.num_classes
    )
    ```
    """
    images, masks, names, palette = read_mask_directory(directory, image_size, ignore)
    count = len(names) or int(masks.max()) + 1
    return images, masks, facts_of(directory, images, count, names, palette)


def facts_of(directory, images, count, names, palette):
    """Return the facts of images whose masks hold `count` classes."""
    if count < 2:
        raise ValueError(
            f"The masks of {directory} must hold two classes or more, 0, 1 and so on. "
            f"Received: {count} beside what is ignored, which 255 always is: black and "
            "white masks need 1 in its place"
        )
    mean, std = statistics(images)
    return Dataset(
        num_classes=count,
        input_shape=images.shape[1:],
        mean=mean,
        std=std,
        class_names=names,
        class_colors=tuple(map(tuple, palette[:count])) if palette else (),
    )


def read_mask_directory(directory, image_size=None, ignore=255):
    """Do what `from_mask_directory` does, for a part that may lack classes.

    Returns:
        Images, masks, the classes' names, and the masks' palette or `None`.
    """
    require("PIL", "data", "pillow")
    directory = pathlib.Path(directory).expanduser()
    pairs = _pairs(directory)
    size = None if image_size is None else check_pair("image_size", image_size)
    names, ignored = _class_names(directory), {255, *as_ignored(ignore)}
    images, masks, palette = [], [], None
    for image_path, mask_path in pairs:
        image, mask, colors = _read_pair(image_path, mask_path, size)
        if images and image.shape != images[0].shape:
            raise ValueError(
                f"`image_size` is needed where images differ in size: {image_path} is "
                f"{image.shape[:2]}, the first {images[0].shape[:2]}. "
                "Received: image_size=None"
            )
        mask[np.isin(mask, list(ignored))] = IGNORED
        most = int(mask.max())
        if most >= (len(names) or 2**15):
            raise ValueError(
                f"{mask_path} holds the class {most}, and classes.txt names "
                f"{len(names)}: name it, or give its value as `ignore`."
                if names
                else f"{mask_path} holds the number {most}, which is no class: give "
                "it as `ignore`, or number the classes from 0."
            )
        images.append(image)
        masks.append(mask.astype("int16"))
        palette = palette or colors
    return np.stack(images), np.stack(masks), names, palette


def as_ignored(ignore):
    """Return the values of pixels to ignore as a list of Python's integers.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.data.masks import as_ignored
    >>> as_ignored(np.array([3, 1])), as_ignored(11)
    ([1, 3], [11])
    """
    values = np.asarray(ignore)
    if values.dtype.kind not in "ui" or values.ndim > 1:
        raise ValueError(
            f"`ignore` must be an integer or several. Received: ignore={ignore!r}"
        )
    return sorted(set(np.ravel(values).tolist()))


def is_mask_directory(directory):
    """Whether a folder holds folders `images` and `masks`."""
    return all(
        (pathlib.Path(directory) / name).is_dir() for name in ("images", "masks")
    )


def _pairs(directory):
    """Return the paths of each image and its mask."""
    if not is_mask_directory(directory):
        raise FileNotFoundError(
            "`directory` must be a folder that holds folders images and masks. "
            f"Received: directory={str(directory)!r}"
        )
    suffixes = image_suffixes()
    files = {}
    for kind in ("images", "masks"):
        files[kind] = {}
        for path in sorted((directory / kind).iterdir()):
            if path.suffix.lower() not in suffixes or path.name.startswith("."):
                continue
            if path.stem in files[kind]:
                raise ValueError(
                    f"Two files of {directory / kind} have one name, "
                    f"{files[kind][path.stem].name} and {path.name}: remove one."
                )
            files[kind][path.stem] = path
    for kind, other in (("images", "masks"), ("masks", "images")):
        alone = [p.name for stem, p in files[kind].items() if stem not in files[other]]
        if alone:
            raise ValueError(
                f"{len(alone)} of {directory / kind} have no file of their name in "
                f"{other}: {', '.join(alone[:5])}. Add these, or remove those."
            )
    if not files["images"]:
        raise FileNotFoundError(f"{directory / 'images'} holds no images.")
    return [(path, files["masks"][stem]) for stem, path in files["images"].items()]


def _class_names(directory):
    for folder in (directory, directory.parent):
        path = folder / "classes.txt"
        if path.exists():
            lines = path.read_text(encoding="utf-8").split("\n")
            names = tuple(line.strip() for line in lines if line.strip())
            twice = [name for name in names if names.count(name) > 1]
            if twice or len(names) < 2:
                raise ValueError(
                    f"{path} must name two classes or more, each once. "
                    f"Received: {twice[0] if twice else len(names)!r}"
                    f"{' twice' if twice else ' names'}"
                )
            return names
    return ()


def _read_pair(image_path, mask_path, size):
    """Return an image and its mask as arrays, and the mask's palette."""
    from PIL import Image, ImageOps

    try:
        with contextlib.ExitStack() as stack:
            image, mask = (
                ImageOps.exif_transpose(stack.enter_context(Image.open(path)))
                for path in (image_path, mask_path)
            )
            image = as_rgb(image)
            if image.size != mask.size:
                raise ValueError(
                    f"the mask is {mask.width} x {mask.height} and the image "
                    f"{image.width} x {image.height}: both must be of one size"
                )
            if mask.mode not in ("P", "L", "1", "I;16", "I"):
                raise ValueError(
                    f"the mask is in colours (mode {mask.mode!r}): save the classes' "
                    "numbers, as a grey or a palette image"
                )
            colors = None
            if mask.mode == "P" and mask.palette is not None:
                flat = mask.getpalette("RGB") or []
                colors = [flat[i : i + 3] for i in range(0, len(flat), 3)]
                colors += [[0, 0, 0]] * (256 - len(colors))
            if size is not None and image.size != (size[1], size[0]):
                image, mask = fitted(image, mask, *size)
            return np.asarray(image), np.asarray(mask).astype("int32"), colors
    except (OSError, ValueError) as error:
        raise ValueError(f"{shown(image_path)}, {mask_path.name}: {error}.") from error


def fitted(image, mask, height, width):
    """Crop an image and its mask about their centre to the aspect ratio, and resize.

    Args:
        image: Pillow's image.
        mask: Its mask, of its size.
        height: New height in pixels.
        width: New width in pixels.

    Example:

    >>> from PIL import Image
    >>> from keras_lkca.data.masks import fitted
    >>> image, mask = fitted(Image.new("RGB", (40, 30)), Image.new("L", (40, 30)), 8, 8)
    >>> image.size, mask.size
    ((8, 8), (8, 8))
    """
    from PIL import Image

    scale = min(image.width / width, image.height / height)
    left = (image.width - scale * width) / 2
    top = (image.height - scale * height) / 2
    box = (left, top, left + scale * width, top + scale * height)
    return (
        image.resize((width, height), Image.Resampling.BICUBIC, box),
        mask.resize((width, height), Image.Resampling.NEAREST, box),
    )
