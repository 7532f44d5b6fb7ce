"""The one table of model sizes, and how a name becomes a constructor's arguments."""

import dataclasses
import difflib
import hashlib
import math
import pathlib

import keras
import numpy as np

from keras_lkca.checks import check_finite, check_flag, check_image_shape
from keras_lkca.files import atomic

# Of the array in a file of weights.
_CLASS_NAMES = "class_names"


@dataclasses.dataclass(frozen=True)
class Weights:
    """Where a trained preset comes from.

    Attributes:
        dataset: What it was trained on, as `"CIFAR-10"`.
        test_accuracy: Share of the test images it classifies rightly, in [0, 1].
        training: How it was trained, in words.
        licence: Of the images.
        sha256: Of the file `models/weights/PRESET.npz` in this package, or at `url`.
        url: Where to download a file that is too large for the package, once.
    """

    dataset: str
    test_accuracy: float
    training: str
    licence: str
    sha256: str
    url: str | None = None


@dataclasses.dataclass(frozen=True)
class Preset:
    """A model size, or a trained model.

    Attributes:
        model: Name of the class it builds, such as `"LKCAViT"`.
        arguments: Arguments of that class's constructor, any of them.
        parameters: Number of trainable parameters by (image size, patch size,
            classes), for square images of three channels.
        num_heads: Heads of the comparison's softmax attention. An LKCAViT has one
            kernel per layer, as in the paper; this is the number to give
            `num_kernels` for a kernel per head. An LKCANet has that many kernels.
        paper_name: What the paper calls it, if it does.
        weights: Of a trained model, `keras_lkca.models.Weights`.
    """

    model: str
    arguments: dict
    parameters: dict
    num_heads: int
    paper_name: str | None = None
    weights: Weights | None = None


# Image size, patch size, classes.
_CASES = ((64, 8, 200), (32, 4, 10), (32, 4, 100))


def _lkca(embed_dim, depth, num_heads, mlp_ratio, counts, paper_name=None):
    arguments = {"embed_dim": embed_dim, "depth": depth, "mlp_ratio": mlp_ratio}
    parameters = dict(zip(_CASES, counts, strict=True))
    return Preset("LKCAViT", arguments, parameters, num_heads, paper_name)


def _vit(embed_dim, depth, num_heads, counts, paper_name=None):
    arguments = {"embed_dim": embed_dim, "depth": depth, "mlp_ratio": 2}
    arguments["num_heads"] = num_heads
    parameters = dict(zip(_CASES[:2], counts, strict=True))
    return Preset("ViT", arguments, parameters, num_heads, paper_name)


def _net(embed_dim, depth, counts):
    # The model chooses its patch size by itself.
    arguments = {"patch_size": None, "stem_filters": (embed_dim // 4, embed_dim // 2)}
    arguments.update(embed_dim=embed_dim, depth=depth, mlp_ratio=None)
    parameters = dict(zip(_CASES, counts, strict=True))
    return Preset("LKCANet", arguments, parameters, num_heads=8)


PRESETS = {
    "lkca_net_03m": _net(80, 6, (320_020, 304_630, 311_920)),
    "lkca_net_05m": _net(96, 7, (507_656, 489_226, 497_956)),
    "lkca_net_08m": _net(128, 6, (778_456, 753_946, 765_556)),
    "lkca_net_1m": _net(128, 8, (979_944, 955_434, 967_044)),
    "lkca_net_3m": _net(192, 11, (2_827_952, 2_791_282, 2_808_652)),
    "lkca_vit_05m": _lkca(100, 8, 4, 2, (534_300, 500_710, 509_800)),
    "lkca_vit_tiny": _lkca(136, 9, 8, 2, (1_073_225, 1_027_611, 1_039_941), "LKCA-T"),
    "lkca_vit_2m": _lkca(192, 9, 12, 2, (2_094_833, 2_030_515, 2_047_885)),
    "lkca_vit_base": _lkca(210, 10, 10, 2, (2_761_640, 2_691_310, 2_710_300), "LKCA-B"),
    "lkca_vit_4m": _lkca(246, 11, 6, 2, (4_131_293, 4_048_939, 4_071_169)),
    "lkca_vit_8m": _lkca(306, 14, 6, 2, (8_043_500, 7_941_106, 7_968_736)),
    "lkca_vit_large": _lkca(
        360, 12, 8, 3, (12_648_620, 12_528_190, 12_560_680), "LKCA-L"
    ),
    "vit_05m": _vit(120, 4, 4, (520_160, 479_890)),
    "vit_tiny": _vit(136, 7, 8, (1_106_288, 1_060_674), "ViT-Lite"),
    "vit_2m": _vit(200, 6, 8, (2_022_000, 1_955_010)),
    "vit_small": _vit(192, 9, 12, (2_756_744, 2_692_426), "ViT-Small"),
    "vit_4m": _vit(264, 7, 8, (4_039_664, 3_951_298)),
    "vit_8m": _vit(312, 10, 8, (7_956_512, 7_852_114)),
}


def _trained(preset, num_classes, image_mean, image_std, weights):
    row = PRESETS[preset]
    arguments = {"input_shape": (32, 32, 3), "num_classes": num_classes}
    arguments.update(image_mean=image_mean, image_std=image_std)
    return dataclasses.replace(
        row, arguments={**row.arguments, **arguments}, parameters={}, weights=weights
    )


PRESETS["lkca_net_08m_cifar10"] = _trained(
    "lkca_net_08m",
    num_classes=10,
    image_mean=(0.4914, 0.4822, 0.4465),
    image_std=(0.2470, 0.2435, 0.2616),
    weights=Weights(
        dataset="CIFAR-10",
        test_accuracy=0.9071,
        training="30 passes over 45,000 images, Recipe.quick(epochs=30, "
        "learning_rate=2e-3, rand_augment=1, mix_probability=0.5, mixup_alpha=0.0)",
        licence="none stated by the authors of the images (Krizhevsky, 2009)",
        sha256="d23226759ba4a82f50c453ecf7ba5f33f03344e9eee3ed9d6e6fb2988fb10b47",
    ),
)
PRESETS["lkca_net_08m_cifar100"] = _trained(
    "lkca_net_08m",
    num_classes=100,
    image_mean=(0.5071, 0.4865, 0.4409),
    image_std=(0.2673, 0.2564, 0.2762),
    weights=Weights(
        dataset="CIFAR-100",
        test_accuracy=0.6769,
        training="30 passes over 45,000 images, Recipe.quick(epochs=30, "
        "learning_rate=2e-3, rand_augment=1, mix_probability=0.5, mixup_alpha=0.0)",
        licence="none stated by the authors of the images (Krizhevsky, 2009)",
        sha256="8a6c1af667b4738b73a8b2bd661ce928d8319c7452f22461014bba59ff664b65",
    ),
)


def list_presets(model: str | None = None, trained: bool | None = None) -> list[str]:
    """List the presets' names, from small to large.

    Args:
        model: `"LKCANet"`, `"LKCAViT"` or `"ViT"` for the presets of one class; `None`
            for all.
        trained: `True` for those that come with weights, `False` for the sizes alone;
            `None` for both.

    Returns:
        List of names, for the class's `from_preset`.

    Raises:
        ValueError: If `model` names none of the classes, or `trained` is none of these.

    Example:

    >>> from keras_lkca import list_presets
    >>> list_presets("ViT")[:3]
    ['vit_05m', 'vit_tiny', 'vit_2m']
    """
    models = {preset.model for preset in PRESETS.values()}
    if model is not None and model not in list(models):
        raise ValueError(
            f"`model` must be one of {sorted(models)} or None. Received: "
            f"model={model!r}"
        )
    if trained is not None:
        trained = check_flag("trained", trained)
    return [
        name
        for name, row in PRESETS.items()
        if model in (None, row.model) and trained in (None, row.weights is not None)
    ]


def check_preset(preset):
    """Return a preset's row, or raise a `ValueError` that names the nearest."""
    if not isinstance(preset, str) or preset not in PRESETS:
        name = str(preset).lower()
        near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.5)
        raise ValueError(
            "`preset` must be one of keras_lkca.list_presets(); there is no such "
            f"preset, and the nearest are {near or list_presets()}. "
            f"Received: preset={preset!r}"
        )
    return PRESETS[preset]


def default_patch_size(input_shape):
    """Return the largest square patch that leaves the shorter side 8 tokens or more.

    It divides height and width: 4 at 32 x 32, 8 at 64 x 64.
    """
    height, width, _ = check_image_shape(input_shape)
    common = math.gcd(height, width)
    limit = max(min(height, width) // 8, 1)
    return max(size for size in range(1, limit + 1) if common % size == 0)


def weights_file(preset):
    """Return the path of a trained preset's file in this package."""
    return pathlib.Path(__file__).parent / "weights" / f"{preset}.npz"


def write_weights(path, model):
    """Write a model's weights by their paths, two bytes each, and its class names.

    Raises:
        ValueError: If it has no class names, or a weight lies beyond what two bytes
            hold, 65,504.
    """
    if not model.class_names:
        raise ValueError(
            "`model` must have `class_names`, which go with its weights. Received: "
            f"model={model!r}"
        )
    with np.errstate(over="ignore"):  # which is refused
        values = {
            weight.path: keras.ops.convert_to_numpy(weight).astype("float16")
            for weight in model.weights
        }
    for name, value in values.items():
        check_finite(f"{name} in two bytes", value)
    with atomic(path) as temporary:
        np.savez_compressed(
            temporary, **values, **{_CLASS_NAMES: np.array(model.class_names)}
        )


def read_weights(preset, row):
    """Return a trained preset's weights by their paths, and its class names.

    Raises:
        ValueError: If the file is not the one that the row names.
    """
    path = weights_file(preset)
    if row.url is not None:
        path = keras.utils.get_file(
            path.name, row.url, cache_subdir="keras_lkca", file_hash=row.sha256
        )
    found = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    if found != row.sha256:
        raise ValueError(
            f"The file of {preset!r} is not the one it was made with, by its SHA-256 "
            f"{row.sha256}: install the package anew. Received: {path} of {found}"
        )
    with np.load(path) as file:
        values = {name: file[name] for name in file.files}
    names = values.pop(_CLASS_NAMES)
    return values, tuple(map(str, names))
