"""What each dataset is."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What a model and a pipeline need to know of a dataset.

    Attributes:
        num_classes: Number of classes.
        input_shape: The images' (height, width, channels).
        mean: Mean of each channel, images scaled to [0, 1].
        std: Standard deviation of each channel, likewise.
        flip: Whether a mirrored image is still of its class.
        class_names: Names of the classes in the order of their labels, where they
            are known.
        class_colors: Colours of the classes in its masks, (red, green, blue) each,
            where they are known.
        mask_values: Of a dataset with a class for every pixel, what each class is in
            the masks as published; others are ignored.
        host: Where its archive is downloaded from, if it has to be.
        policy: AutoAugment's policy for it, see `keras_lkca.data.Augmentation`.
    """

    num_classes: int
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = True
    class_names: tuple[str, ...] = ()
    class_colors: tuple[tuple[int, int, int], ...] = ()
    mask_values: tuple[int, ...] = ()
    host: str = ""
    policy: str = "auto_imagenet"


_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge
bus butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud
cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox
girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter
palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit
raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
spider squirrel streetcar sunflower sweet_pepper table tank telephone television
tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

DATASETS = {
    "cifar10": Dataset(
        num_classes=10,
        input_shape=(32, 32, 3),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        class_names=tuple(
            "airplane automobile bird cat deer dog frog horse ship truck".split()
        ),
        host="www.cs.toronto.edu",
        policy="auto_cifar10",
    ),
    "cifar100": Dataset(
        num_classes=100,
        input_shape=(32, 32, 3),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        class_names=tuple(_CIFAR100.split()),
        host="www.cs.toronto.edu",
        policy="auto_cifar10",
    ),
    "svhn_cropped": Dataset(
        num_classes=10,
        input_shape=(32, 32, 3),
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        flip=False,
        class_names=tuple("0123456789"),
        host="ufldl.stanford.edu",
        policy="auto_svhn",
    ),
    "tiny_imagenet": Dataset(
        num_classes=200,
        input_shape=(64, 64, 3),
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
        host="cs231n.stanford.edu",
    ),
    "oxford_iiit_pet": Dataset(
        num_classes=3,
        input_shape=(128, 128, 3),
        # Those of ImageNet, photographs as these are.
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        class_names=("pet", "background", "outline"),
        mask_values=(1, 2, 3),
        host="thor.robots.ox.ac.uk",
    ),
    "digits": Dataset(
        num_classes=10,
        input_shape=(8, 8, 1),
        mean=(0.3054,),
        std=(0.3759,),
        flip=False,
        class_names=tuple("0123456789"),
    ),
}


def describe(name: str) -> Dataset:
    """Return what the table knows of a dataset.

    Args:
        name: `"cifar10"`, `"cifar100"`, `"svhn_cropped"`, `"tiny_imagenet"`,
            `"oxford_iiit_pet"` or `"digits"`.

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
