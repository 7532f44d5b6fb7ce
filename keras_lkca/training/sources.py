"""The images of a run: training, validation and test."""

import dataclasses
import pathlib

from keras_lkca import data
from keras_lkca.data.folders import statistics

# What a folder given as dataset holds out for the test, if it has no test/ of its own.
TEST_SHARE = 0.2


def load_split(given):
    """Load the training images, or a share of them, and the others.

    Returns:
        Images and labels to train with, to test with and, of a folder that has its
        own, to validate with, else `None`; and the dataset's facts.
    """
    name, seed = given["dataset"], given["seed"]
    if name in data.DATASETS:
        for option, default in (("image_size", None), ("on_error", "raise")):
            if given[option] != default:
                raise ValueError(
                    f"`{option}` is for a folder of images. "
                    f"Received: {option}={given[option]!r}, dataset={name!r}"
                )
        validation, facts = None, data.describe(name)
        train = data.load(name, "train", given["data_dir"])
        test = data.load(name, "test", given["data_dir"])
    else:
        train, test, validation, facts = _folder(given)
    if given["fraction"] < 1:
        rows, _ = data.split(train[1], given["fraction"], seed)
        if not len(rows):
            raise ValueError(
                f"`fraction` leaves none of the {len(train[1])} training images. "
                f"Received: fraction={given['fraction']!r}"
            )
        train = train[0][rows], train[1][rows]
    return train, test, validation, facts


def _folder(given):
    """Load the images of a folder: training, test, validation or `None`, and facts."""
    folder = pathlib.Path(given["dataset"])
    if not folder.is_dir():
        raise ValueError(
            f"`dataset` must be a folder of images or one of {sorted(data.DATASETS)}. "
            f"Received: dataset={given['dataset']!r}"
        )
    size = 64 if given["image_size"] is None else given["image_size"]
    arguments = size, given["on_error"]
    splits = {
        path.name
        for path in folder.iterdir()
        if path.name.lower() in ("train", "test", "val", "valid", "validation")
        and path.is_dir()
    }
    if splits not in (set(), {"train", "test"}, {"train", "test", "val"}):
        raise ValueError(
            f"{folder} holds {sorted(splits)}, which are no classes. Give it a folder "
            "train, a folder test and if you like a folder val, each of one folder a "
            "class; or name a folder of class folders, of which a fifth is held out "
            "for the test."
        )
    if not splits:
        images, labels, facts = data.from_directory(folder, *arguments)
        test, train = data.split(labels, TEST_SHARE, seed=0)
        if not len(test):
            raise ValueError(
                f"{folder} holds {len(labels)} images, too few to hold out any for the "
                "test."
            )
        facts = _at_least_two_classes(folder, facts)
        # What normalises the images must not have seen the test.
        mean, std = statistics(images[train])
        facts = dataclasses.replace(facts, mean=mean, std=std)
        train, test = ((images[rows], labels[rows]) for rows in (train, test))
        return train, test, None, facts
    images, labels, facts = data.from_directory(folder / "train", *arguments)
    others = {"val": None}
    for split in splits - {"train"}:
        *others[split], found = data.from_directory(folder / split, *arguments)
        if facts.class_names != found.class_names:
            differ = sorted(set(facts.class_names) ^ set(found.class_names))
            raise ValueError(
                f"{folder}/train and {folder}/{split} must hold the same classes. One "
                f"of them lacks {differ[:3]}."
            )
    facts = _at_least_two_classes(folder, facts)
    return (images, labels), others["test"], others["val"], facts


def _at_least_two_classes(folder, facts):
    if facts.num_classes < 2:
        raise ValueError(
            f"{folder} holds one class, {facts.class_names[0]!r}; there must be two or "
            "more. Name the folder that holds the class folders."
        )
    return facts


def cut_validation(train, test, validation, given):
    """Cut the validation images off the training images, if there are no others."""
    if given["select"] == "test":
        return train, test
    if validation is not None:
        return train, validation
    images, labels = train
    rows, others = data.split(labels, given["validation_split"], given["seed"])
    if not len(rows) or not len(others):
        raise ValueError(
            f"`validation_split` must leave images on both sides of {len(labels)}; use "
            "more of them, or select='test' to do without. Received: "
            f"validation_split={given['validation_split']!r}"
        )
    return (images[others], labels[others]), (images[rows], labels[rows])
