import io
import itertools
import os
import pathlib
import pickle
import random
import sys
import tarfile

import keras
import numpy as np
import pytest
from conftest import pack
from PIL import Image, features

from keras_lkca import data
from keras_lkca.data.batches import batch_rows
from keras_lkca.data.decoding import decode
from keras_lkca.data.folders import images_below

tf = pytest.importorskip("tensorflow")


def write_image(path, color, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def test_digits_are_split_once_and_fairly():
    images, labels = data.digits("train")
    test_images, test_labels = data.digits("test")
    assert images.shape == (1400, 8, 8, 1) and test_images.shape == (397, 8, 8, 1)
    assert images.dtype == "uint8" and images.min() == 0 and images.max() == 255
    assert abs(np.bincount(labels) / 1400 - np.bincount(test_labels) / 397).max() < 0.01
    np.testing.assert_array_equal(images, data.digits("train")[0])
    both = np.concatenate([images, test_images]).reshape(1797, -1)
    assert len(np.unique(both, axis=0)) >= 1790  # nearly no two alike: no overlap


def test_digits_statistics_stand_in_the_table():
    images = data.digits("train")[0] / 255
    assert data.DATASETS["digits"].mean == (round(images.mean(), 4),)
    assert data.DATASETS["digits"].std == (round(images.std(), 4),)


def test_the_table():
    assert data.describe("cifar100").num_classes == 100
    assert data.describe("tiny_imagenet").input_shape == (64, 64, 3)
    assert [n for n, d in data.DATASETS.items() if not d.flip] == [
        "svhn_cropped",
        "digits",
    ]
    for facts in data.DATASETS.values():
        assert len(facts.mean) == len(facts.std) == facts.input_shape[-1]


def test_load_digits_needs_no_folder():
    images, labels = data.load("digits", "test")
    assert images.shape == (397, 8, 8, 1) and labels.dtype == "int64"


# Arrays in a file


@pytest.fixture
def arrays(rng):
    return {
        "x_train": rng.integers(0, 256, (6, 32, 32, 3)).astype("uint8"),
        "y_train": np.arange(6),
        "x_test": rng.integers(0, 256, (4, 32, 32, 3)).astype("uint8"),
        "y_test": np.arange(4)[:, None],  # as keras.datasets has them
    }


@pytest.mark.parametrize("folder", [".", "npz"])
def test_load_a_file_of_arrays(arrays, folder, tmp_path):
    (tmp_path / folder).mkdir(exist_ok=True)
    np.savez(tmp_path / folder / "cifar10.npz", **arrays)
    for split in ("train", "test"):
        images, labels = data.load("cifar10", split, tmp_path)
        np.testing.assert_array_equal(images, arrays[f"x_{split}"])
        np.testing.assert_array_equal(labels, arrays[f"y_{split}"].reshape(-1))
        assert images.dtype == "uint8" and labels.dtype == "int64"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": np.zeros((6, 28, 28, 3), "uint8")}, r"must hold uint8 images"),
        ({"x_train": np.zeros((6, 32, 32, 3), "float32")}, r"must hold uint8 images"),
        ({"y_train": np.arange(5)}, "`labels` must be 6 integers"),
        ({"y_train": np.arange(5, 11)}, "between 0 and 9.*from 5 to 10"),
        ({"y_train": np.arange(-1, 5)}, "between 0 and 9.*from -1 to 4"),
        ({"y_train": np.zeros(6)}, "`labels` must be 6 integers.*float64"),
    ],
)
def test_a_file_of_other_arrays_is_refused(arrays, change, message, tmp_path):
    np.savez(tmp_path / "cifar10.npz", **{**arrays, **change})
    with pytest.raises(ValueError, match=message):
        data.load("cifar10", "train", tmp_path)


def test_a_damaged_file_of_arrays_is_refused(arrays, tmp_path):
    del arrays["y_train"]
    np.savez(tmp_path / "cifar10.npz", **arrays)
    with pytest.raises(ValueError, match="holds no 'y_train'"):
        data.load("cifar10", "train", tmp_path)
    (tmp_path / "cifar10.npz").write_bytes(b"PK half a file")
    with pytest.raises(ValueError, match="cifar10.npz is no file of arrays"):
        data.load("cifar10", "train", tmp_path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "cifar10.npz")
    with pytest.raises(ValueError, match="cifar10.npz is no file of arrays"):
        data.load("cifar10", "train", tmp_path)


# Splits and batches


def test_split_draws_a_share_of_every_class():
    labels = np.repeat(np.arange(5), [100, 50, 20, 10, 4])
    drawn, others = data.split(labels, 0.25)
    assert len(drawn) == 46
    np.testing.assert_array_equal(np.sort(np.r_[drawn, others]), np.arange(184))
    counts = np.bincount(labels[drawn], minlength=5)
    assert np.abs(counts - np.array([25, 12.5, 5, 2.5, 1])).max() <= 1
    np.testing.assert_array_equal(drawn, data.split(labels, 0.25)[0])
    assert (drawn != data.split(labels, 0.25, seed=1)[0]).any()


def test_split_refuses_a_column_of_labels():
    with pytest.raises(ValueError, match=r"one axis.*reshape\(-1\).*\(10, 1\)"):
        data.split(np.zeros((10, 1), int), 0.5)


@pytest.mark.parametrize("share", [0.0, 1.0, 0.001])
def test_split_at_the_ends(share):
    drawn, others = data.split(np.arange(10) % 2, share)
    assert (len(drawn), len(others)) == ((10, 0) if share == 1 else (0, 10))


def test_split_is_fair_to_small_classes():
    """Of many classes of one image, as many are drawn as the share says."""
    drawn, _ = data.split(np.arange(100), 0.3)
    assert len(drawn) == 30


def numbered(count, size=8):
    """Images whose pixels all hold the image's number, labelled by it."""
    values = np.arange(count, dtype="uint8")
    images = np.broadcast_to(values[:, None, None, None], (count, size, size, 3)).copy()
    return images, values.astype("int64")


PIPELINES = pytest.mark.parametrize("pipeline", ["tf.data", "arrays"])


def take(batches, count):
    to_numpy = keras.ops.convert_to_numpy
    return [
        (np.asarray(x) if hasattr(x, "_numpy") else to_numpy(x), np.asarray(y))
        for (x, y), _ in zip(batches, range(count), strict=False)
    ]


@PIPELINES
def test_batches_show_every_image_once_a_pass_in_a_new_order(pipeline):
    batches = data.training_batches(*numbered(18), 4, 18, pipeline=pipeline)
    labels = np.concatenate([y.argmax(-1) for _, y in take(batches, 9)])
    passes = labels.reshape(2, 18)
    assert (np.sort(passes) == np.arange(18)).all()
    assert (passes[0] != passes[1]).any()


@PIPELINES
def test_batches_keep_image_and_label_together(pipeline):
    images, labels = numbered(20)
    batches = data.training_batches(
        images + 1,  # none is as black as the edge
        labels,
        4,
        20,
        data.Augmentation(crop_padding=2),
        pipeline=pipeline,
    )
    for x, y in take(batches, 5):
        assert x.dtype == y.dtype == "float32"
        np.testing.assert_array_equal(x.max((1, 2, 3)), y.argmax(-1) + 1)
        np.testing.assert_array_equal(y.sum(-1), 1)


@PIPELINES
def test_batches_go_on_from_any_step(pipeline):
    """Whatever came before: order and augmentation are those of the step."""
    images, labels = data.digits("test")
    augmentation = data.Augmentation(
        crop_padding=1, erase_probability=0.5, mix_probability=0.5
    )

    def run(first, count, seed=3):
        batches = data.training_batches(
            *(images, labels, 50, 10, augmentation, seed, first, pipeline)
        )
        return take(batches, count)

    whole, rest = run(0, 12), run(9, 3)
    for (x, y), (x_rest, y_rest) in zip(whole[9:], rest, strict=True):
        np.testing.assert_array_equal(x, x_rest)
        np.testing.assert_array_equal(y, y_rest)
    assert (whole[0][0] != run(0, 1, seed=4)[0][0]).any()


def test_both_pipelines_take_the_same_images():
    drawn = [
        np.concatenate(
            [
                y.argmax(-1)
                for _, y in take(
                    data.training_batches(*numbered(20), 8, 20, pipeline=name), 5
                )
            ]
        )
        for name in ("tf.data", "arrays")
    ]
    np.testing.assert_array_equal(*drawn)


@PIPELINES
def test_fit_sees_every_batch_once_and_in_order(pipeline):
    """Also across epochs, where Keras could start the batches anew."""
    images, labels = numbered(24, size=2)

    def model():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((2, 2, 3))
        outputs = keras.layers.Flatten()(keras.layers.Rescaling(1 / 24)(inputs))
        model = keras.Model(inputs, keras.layers.Dense(24)(outputs))
        model.compile(keras.optimizers.SGD(0.1, momentum=0.5), "mse")
        return model

    fitted, fed = model(), model()
    batches = data.training_batches(images, labels, 6, 24, pipeline=pipeline)
    fitted.fit(batches, steps_per_epoch=2, epochs=4, verbose=0, shuffle=False)
    one_hot = np.eye(24, dtype="float32")[labels]
    for (rows, _), _ in zip(batch_rows(24, 6, seed=0), range(8), strict=False):
        fed.train_on_batch(images[rows].astype("float32"), one_hot[rows])
    for a, b in zip(fitted.get_weights(), fed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be a positive"),
        ({"batch_size": 21}, "`batch_size` must not be above.*21 for 20 images"),
        ({"num_classes": 0}, "`num_classes` must be a positive"),
        ({"num_classes": 1}, r"`labels` must be 20 numbers in \[0, 1\]"),
        ({"class_weight": "even"}, "`class_weight` must be 'balanced', a dict.*'even'"),
        ({"class_weight": {20: 1.0}}, "`class_weight` must name classes, 0 to 19"),
        ({"class_weight": {"cat": 1.0}}, "`class_weight` must name classes.*'cat'"),
        ({"class_weight": {0: -1.0}}, "`class_weight` must be a number, 0 or above"),
        ({"class_weight": [1.0] * 19}, "a weight for each of 20 classes"),
        (
            {"class_weight": {0: 2}, "labels": np.ones((20, 20))},
            "`class_weight` needs labels of one class an image.*sums are 20",
        ),
        ({"num_classes": 19}, "`labels` must lie between 0 and 18.*to 19"),
        ({"pipeline": "numpy"}, "`pipeline` must be one of.*'numpy'"),
        ({"seed": -1}, "`seed` must be an integer, 0 or above"),
        ({"first_step": 1.5}, "`first_step` must be an integer, 0 or above"),
        ({"labels": np.arange(19)}, "`labels` must be 20 integers"),
        ({"labels": np.eye(20)[:, :19]}, "`labels` must be 20 integers"),
        ({"images": [[0]]}, "`images` must be an array of numbers.*list"),
        ({"images": np.zeros((20, 8, 8), "uint8")}, "`images` must be an array of num"),
        (
            {
                "one_hot": False,
                "augmentation": data.Augmentation(mix_probability=0.5),
            },
            "Mixed images have no integer labels.*mix_probability=0.5",
        ),
    ],
)
def test_bad_batch_arguments(arguments, message):
    images, labels = numbered(20)
    defaults = {"images": images, "labels": labels, "batch_size": 4, "num_classes": 20}
    with pytest.raises(ValueError, match=message):
        data.training_batches(**{**defaults, **arguments})


@PIPELINES
def test_integer_labels_and_float_images(pipeline):
    images, labels = numbered(20)
    options = {"augmentation": data.Augmentation(flip=False, crop_padding=0)}
    batches = data.training_batches(
        (images + 0.25).astype("float64"),
        labels,
        *(10, 20),
        one_hot=False,
        pipeline=pipeline,
        **options,
    )
    for x, y in take(batches, 2):
        assert x.dtype == "float32" and y.dtype == "int32"
        np.testing.assert_array_equal(x[:, 0, 0, 0], y + 0.25)
    mixed = np.eye(20) * 0.5 + 0.025
    (_, y), *_ = take(data.training_batches(images, mixed, 10, 20, None), 1)
    np.testing.assert_allclose(y.max(-1), 0.525)


@PIPELINES
def test_class_weights_are_the_mixed_images_third(pipeline):
    images, labels = data.digits("test")
    images, labels = images[labels < 3], np.minimum(labels[labels < 3], 1)  # 0, and 1
    augmentation = data.Augmentation(rand_augment=1, mix_probability=0.7)

    def run(class_weight, labels=labels, classes=2, one_hot=True, augment=augmentation):
        arguments = images, labels, np.int64(30), np.int64(classes), augment
        options = {"pipeline": pipeline, "class_weight": class_weight}
        batches = data.training_batches(*arguments, one_hot=one_hot, **options)
        return [
            [np.asarray(keras.ops.convert_to_numpy(part)) for part in batch]
            for batch, _ in zip(batches, range(4), strict=False)
        ]

    for (x, y, w), (x_alone, y_alone) in zip(
        run({1: 3.0, 0: 0.5}), run(None), strict=True
    ):
        np.testing.assert_array_equal(x, x_alone)
        np.testing.assert_array_equal(y, y_alone)
        assert w.shape == (30,) and w.dtype == "float32"
        np.testing.assert_allclose(w, y @ [0.5, 3.0], rtol=1e-5)
    assert any(((0 < y) & (y < 1)).any() for _, y, _ in run([1, 1]))  # mixed
    # A column of yes or no, integers, and every class counting alike.
    column = run({0: 0.5, 1: 3}, labels.astype(bool), 1)
    assert column[0][1].shape == (30, 1)
    for _, y, w in column:
        np.testing.assert_allclose(w, 0.5 + 2.5 * y[:, 0], rtol=1e-5)
    for _, y, w in run({1: np.float32(3)}, one_hot=False, augment=None):
        assert y.dtype == "int32"
        np.testing.assert_array_equal(w, np.where(y, 3, 1))
    counts = np.bincount(labels)
    for _, y, w in run("balanced", classes=3, augment=None):  # of the third are none
        np.testing.assert_allclose(w, len(labels) / (2 * counts[y.argmax(1)]), 1e-5)


def test_a_dataset_of_ones_own_brings_weights():
    images, labels = numbered(20)
    own = [(images[:8], labels[:8], np.arange(8)), (images[8:], labels[8:], labels[8:])]
    augmentation = data.Augmentation(crop_padding=0, rand_augment=1, mix_probability=1)
    for options, factor in (({}, 1), ({"class_weight": {3: 2.0}}, 2)):
        options |= {"augmentation": augmentation}
        batches = data.dataset_batches(own, 20, 2, **options)
        for (_, y, w), _ in zip(batches, range(2), strict=False):
            y, w = map(keras.ops.convert_to_numpy, (y, w))
            expected = np.arange(20) * np.where(np.arange(20) == 3, factor, 1)
            np.testing.assert_allclose(w, y @ expected, rtol=1e-4)
    with pytest.raises(ValueError, match="'balanced' needs arrays"):
        next(data.dataset_batches(own, 20, 2, class_weight="balanced"))


class OwnBatches(keras.utils.PyDataset):
    """What many a user has: it shuffles by NumPy's generator when an epoch ends."""

    def __init__(self, images, labels):
        super().__init__()
        self.images, self.labels = images, labels
        self.order = np.arange(len(labels))

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rows = self.order[index * 8 : (index + 1) * 8]
        return self.images[rows], self.labels[rows]

    def on_epoch_end(self):
        self.order = np.random.permutation(self.order)


class Shuffled:
    """An iterable with a length that shuffles by Python's generator."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return 3

    def __iter__(self):
        rows = list(range(len(self.labels)))
        random.shuffle(rows)
        for start in range(0, len(rows), 8):
            part = rows[start : start + 8]
            yield self.images[part], np.eye(20, dtype="int64")[self.labels[part]]


def tf_batches(images, labels):
    tf = pytest.importorskip("tensorflow")
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    return dataset.shuffle(20, seed=1).batch(8).prefetch(1)


def torch_batches(images, labels):
    torch = pytest.importorskip("torch")
    tensors = torch.from_numpy(images), torch.from_numpy(labels)
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*tensors), batch_size=8, shuffle=True
    )


def endless(images, labels):
    """A generator, which is read on."""
    for step in itertools.count():
        rows = np.random.default_rng(step).permutation(20)[:8]
        yield images[rows], labels[rows]


OWN = pytest.mark.parametrize(
    "kind", [OwnBatches, Shuffled, tf_batches, torch_batches, endless]
)


@OWN
def test_a_dataset_of_ones_own_goes_on_from_any_epoch(kind):
    images, labels = numbered(20)
    augmentation = data.Augmentation(crop_padding=1, mix_probability=0.5)

    def run(first, count):
        keras.utils.set_random_seed(0)  # as in a process of its own
        own = kind(images, labels)
        return take(data.dataset_batches(own, 20, 3, augmentation, 5, first), count)

    whole, rest = run(0, 9), run(2, 3)
    for (x, y), (x_rest, y_rest) in zip(whole[6:], rest, strict=True):
        np.testing.assert_array_equal(x, x_rest)
        np.testing.assert_array_equal(y, y_rest)
    assert len({x.tobytes() for x, _ in whole}) == 9


class Brightened:
    """Batches that draw by Keras, which has one seed for all."""

    def __iter__(self):
        for _ in range(3):
            images, labels = numbered(8)
            yield images + keras.ops.convert_to_numpy(keras.random.uniform(())), labels


def test_what_keras_draws_is_drawn_again(monkeypatch):
    """Keras is seeded once an epoch: TensorFlow makes its functions ready anew then."""
    seeded, seeds = keras.utils.set_random_seed, []

    def noted(seed):
        seeds.append(seed)
        seeded(seed)

    monkeypatch.setattr(keras.utils, "set_random_seed", noted)
    whole = take(data.dataset_batches(Brightened(), 20, 3), 9)
    assert 3 <= len(seeds) == len(set(seeds)) <= 4  # the next may have begun
    rest = take(data.dataset_batches(Brightened(), 20, 3, first_epoch=2), 3)
    for (x, _), (x_rest, _) in zip(whole[6:], rest, strict=True):
        np.testing.assert_array_equal(x, x_rest)
    assert len({x.tobytes() for x, _ in whole}) == 9


@OWN
def test_a_dataset_of_ones_own_gives_all_of_it(kind):
    own = kind(*numbered(20))
    batches = take(data.dataset_batches(own, 20, 3, one_hot=False), 3)
    for x, y in batches:
        np.testing.assert_array_equal(x[:, 0, 0, 0], y)
    if kind is not endless:
        seen = np.concatenate([y for _, y in batches])
        np.testing.assert_array_equal(np.sort(seen), np.arange(20))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([numbered(8)], "after 1 batches of epoch 1: name fewer.*steps_per_epoch=2"),
        (iter([numbered(8)]), "after 1 batches of epoch 1: an iterator is read on"),
        ([(*numbered(8), np.ones(8), 0)], "must give batches.*tuple of 4"),
        ([numbered(8)[0]], "must give batches.*Received: ndarray$"),
        ([3, 4], "must give batches.*Received: int$"),
        ([(*numbered(8), np.ones(7))], "weights must be 8 numbers"),
        ([(np.zeros((8, 4, 4)), np.zeros(8, int))], "`images` must be an array of num"),
        ([(np.zeros((8, 4, 4, 3)), np.full(8, 20))], "`labels` must lie between"),
    ],
)
def test_bad_datasets_of_ones_own(batches, message):
    with pytest.raises(ValueError, match=message):
        take(data.dataset_batches(batches, 20, 2), 2)


class Once:
    """What has a length and begins anew, but is used up by its first epoch."""

    def __init__(self, batches):
        self.left = iter(batches)

    def __len__(self):
        return 2

    def __iter__(self):
        yield from self.left


def test_what_is_used_up_is_told_to_begin_anew():
    batches = [numbered(8)] * 2
    with pytest.raises(ValueError, match="0 batches of epoch 2: each epoch begins it"):
        take(data.dataset_batches(Once(batches), 20, 2), 3)
    for own, first in ((iter(batches), 1), (iter(batches[:1]), 2)):
        with pytest.raises(ValueError, match="batches of epoch .: an iterator is read"):
            next(data.dataset_batches(own, 20, 2, first_epoch=first))


def test_unknown_names():
    with pytest.raises(ValueError, match="`name` must be one of.*'imagenet'"):
        data.load("imagenet")
    with pytest.raises(ValueError, match="`split` must be.*'valid'"):
        data.load("digits", "valid")
    with pytest.raises(ValueError, match="`split` must be.*'valid'"):
        data.digits("valid")


# Folders


def test_from_directory(tmp_path):
    for index in range(10):
        write_image(tmp_path / "cat" / f"{index}.png", (200, 0, 0))
        write_image(tmp_path / "dog" / "more" / f"{index}.jpg", (0, 0, 200))
    write_image(tmp_path / ".thumbnails" / "0.png", (0, 200, 0))
    write_image(tmp_path / "cat" / ".thumbnails" / "0.png", (0, 200, 0))
    (tmp_path / "cat" / "._0.png").write_bytes(b"of another system")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    images, labels, facts = data.from_directory(tmp_path, (6, 4))
    assert facts.class_names == ("cat", "dog") and facts.num_classes == 2
    assert facts.input_shape == images.shape[1:] == (6, 4, 3)
    np.testing.assert_allclose(facts.mean, np.array([100, 0, 100]) / 255, atol=0.02)
    np.testing.assert_allclose(facts.std, np.array([100, 0, 100]) / 255, atol=0.02)
    assert images.dtype == "uint8" and labels.tolist() == [0] * 10 + [1] * 10
    red, blue = images[:, 3, 2, 0], images[:, 3, 2, 2]
    np.testing.assert_array_equal(red > 150, labels == 0)
    np.testing.assert_array_equal(blue > 150, labels == 1)


def test_every_kind_that_pillow_reads_is_read_and_others_are_counted(tmp_path, capsys):
    suffixes = "jpg jfif jpe png tif tiff TIFF ppm pgm bmp gif webp jp2 tga ico".split()
    suffixes += ["avif"] if features.check("avif") else []
    for index, suffix in enumerate(suffixes):
        mode = "L" if suffix == "pgm" else "RGB"
        path = tmp_path / "cat" / f"{index:02}.{suffix}"
        path.parent.mkdir(exist_ok=True)
        Image.new(mode, (16, 16), 200 if mode == "L" else (200,) * 3).save(path)
        assert images_below(tmp_path)[-1] == path
    write_image(tmp_path / "dog" / "0.png", (0, 0, 0))
    images, labels, _ = data.from_directory(tmp_path, 4)
    assert labels.tolist() == [0] * len(suffixes) + [1]
    assert abs(images[:-1].astype(int) - 200).max() < 3 and not images[-1].any()
    assert not capsys.readouterr().out
    for name in ("cat/0.txt", "cat/1.txt", "dog/more/0.h5", "dog/noend", ".hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    write_image(tmp_path / "cover.tif", (0, 0, 0))
    data.from_directory(tmp_path, 4)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"passed over in {tmp_path}: files that are no images (2 .t")
    assert "1 .h5" in line and "1 no suffix" in line
    assert line.endswith(" and images beside the class folders or tar files (1 .tif)")
    (tmp_path / "bee").mkdir()
    (tmp_path / "bee" / "0.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match=r"none in \['bee'\].*3 .txt.*1 .tif"):
        data.from_directory(tmp_path, 4)


def test_names_that_are_no_utf_8_are_printed(tmp_path, capsys):
    try:
        folder = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
        folder.mkdir()
    except (OSError, UnicodeError):
        pytest.skip("the file system takes no such names")
    write_image(folder / "a" / "0.png", (0, 0, 0))
    for name in (b"d\xe9.png", b"d.\xe9"):
        (folder / "a" / os.fsdecode(name)).write_text("no image")
    data.from_directory(folder, 4, on_error="skip")
    out = capsys.readouterr().out
    assert r"caf\xe9: files that are no images (1 .\xe9)" in out
    assert r"skipped: 1 of 2" in out and r"d\xe9.png" in out


def test_statistics_are_those_of_the_images(rng, tmp_path):
    images = rng.integers(0, 256, (5, 7, 6, 3)).astype("uint8")
    for index, image in enumerate(images):
        path = tmp_path / "a" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    loaded, _, facts = data.from_directory(tmp_path, (7, 6))
    np.testing.assert_array_equal(loaded, images)
    np.testing.assert_allclose(facts.mean, images.mean((0, 1, 2)) / 255)
    np.testing.assert_allclose(facts.std, images.std((0, 1, 2)) / 255)


def test_images_are_turned_cropped_and_made_rgb(tmp_path):
    """Left half black, right half white; crops keep the middle."""
    pixels = np.zeros((8, 16), "uint8")
    pixels[:, 8:] = 255
    picture = Image.fromarray(pixels)
    (tmp_path / "a").mkdir()
    picture.save(tmp_path / "a" / "0.png")  # of one channel
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.convert("RGB").save(tmp_path / "a" / "1.jpg", exif=exif, quality=100)
    picture.convert("P").save(tmp_path / "a" / "2.gif")
    images, _, _ = data.from_directory(tmp_path, 8)
    assert images.shape == (3, 8, 8, 3)
    for image, turned in zip(images, (False, True, False), strict=True):
        left, right = image[:, :3].mean(), image[:, 5:].mean()
        assert (left > 220 and right < 35) if turned else (left < 35 and right > 220)


def test_16_bit_images_are_scaled(tmp_path):
    (tmp_path / "a").mkdir()
    pixels = np.linspace(0, 65535, 64).reshape(8, 8).astype("uint16")
    Image.fromarray(pixels).save(tmp_path / "a" / "0.png")
    images, _, _ = data.from_directory(tmp_path, 8)
    np.testing.assert_array_equal(images[0, ..., 1], pixels >> 8)


def test_damaged_files_are_named_and_skipped_or_refused(tmp_path, capsys):
    for index in range(3):
        write_image(tmp_path / "a" / f"{index}.png", (index, 0, 0))
        write_image(tmp_path / "b" / f"{index}.png", (0, index, 0))
    whole = (tmp_path / "a" / "1.png").read_bytes()
    (tmp_path / "a" / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b" / "text.jpg").write_text("no image")
    with pytest.raises(ValueError, match="(?s)2 of 7 files.*1.png.*text.jpg.*on-error"):
        data.from_directory(tmp_path, 4)
    # Who cannot skip is not told to.
    with pytest.raises(ValueError, match=r"text.jpg[^\n]*\nReplace or remove them\.$"):
        decode([tmp_path / "b" / "text.jpg"], (4, 4))
    images, labels, _ = data.from_directory(tmp_path, 4, on_error="skip")
    assert images[:, 0, 0, :2].tolist() == [[0, 0], [2, 0], [0, 0], [0, 1], [0, 2]]
    assert labels.tolist() == [0, 0, 1, 1, 1]
    out = capsys.readouterr().out
    assert "skipped: 2 of 7" in out and "1.png" in out and "text.jpg" in out
    for index in (0, 2):
        (tmp_path / "a" / f"{index}.png").write_text("")
    with pytest.raises(
        FileNotFoundError, match=r"no image that can be decoded in.*'a'"
    ):
        data.from_directory(tmp_path, 4, on_error="skip")


def test_from_directory_bad_input(tmp_path):
    with pytest.raises(FileNotFoundError, match="`directory` is no folder.*missing"):
        data.from_directory(tmp_path / "missing", (8, 8))
    with pytest.raises(FileNotFoundError, match="one folder a class"):
        data.from_directory(tmp_path, (8, 8))
    write_image(tmp_path / "a" / "0.png", (1, 2, 3))
    (tmp_path / "b").mkdir()
    with pytest.raises(FileNotFoundError, match=r"there are none in \['b'\]"):
        data.from_directory(tmp_path, (8, 8))
    for size in (0, (8, 0), "8"):
        with pytest.raises(ValueError, match="`image_size` must be"):
            data.from_directory(tmp_path, size)
    with pytest.raises(ValueError, match="`on_error` must be 'raise' or 'skip'"):
        data.from_directory(tmp_path, 8, on_error="ignore")
    (tmp_path / "b").rmdir()
    with pytest.raises(ValueError, match="GiB of memory.*smaller `image_size`"):
        data.from_directory(tmp_path, 100_000)


@pytest.fixture(scope="module")
def tiny_imagenet(tmp_path_factory):
    """The official layout with one training image a class."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "tiny-imagenet-200"
    lines = []
    for index in range(200):
        wnid = f"n{index:08d}"
        write_image(
            folder / "train" / wnid / "images" / f"{wnid}_0.JPEG",
            (index, index, index),
            (64, 64),
        )
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
        if index < 3:
            name = f"val_{9 - index}.JPEG"  # sorted otherwise than the classes
            write_image(folder / "val" / "images" / name, (index, 0, 0), (64, 64))
            lines.append(f"{name}\t{wnid}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


def test_tiny_imagenet(tiny_imagenet):
    images, labels = data.load("tiny_imagenet", "train", tiny_imagenet)
    assert images.shape == (200, 64, 64, 3) and images.dtype == "uint8"
    assert labels.tolist() == list(range(200))
    difference = images[:, 0, 0, 0].astype(int) - labels
    assert np.abs(difference).max() <= 1  # JPEG is not exact
    folder = tiny_imagenet / "tiny-imagenet-200"
    images, labels = data.load("tiny_imagenet", "test", folder)
    assert labels.tolist() == [2, 1, 0]


def test_tiny_imagenet_bad_layout(tiny_imagenet, tmp_path):
    with pytest.raises(FileNotFoundError, match="(?s)there is no .*unzip.*--data-dir"):
        data.load("tiny_imagenet", "train", tmp_path)
    folder = tmp_path / "tiny-imagenet-200"
    write_image(folder / "train" / "n0" / "images" / "a.JPEG", (0, 0, 0))
    write_image(folder / "val" / "images" / "val_0.JPEG", (0, 0, 0))
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn1\t0\t0\t1\t1\n")
    with pytest.raises(FileNotFoundError, match="has 200 classes.*holds 1 folders"):
        data.load("tiny_imagenet", "test", tmp_path)
    for index in range(1, 200):
        (folder / "train" / f"n{index}").mkdir()
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn999\t0\t0\t1\t1")
    with pytest.raises(FileNotFoundError, match="no known class for.*val_0.JPEG"):
        data.load("tiny_imagenet", "test", tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no images of"):
        data.load("tiny_imagenet", "train", tmp_path)
    annotations = "val_0.JPEG\tn0\t0\t0\t1\t1\nval_1.JPEG\tn0\t0\t0\t1\t1\n"
    (folder / "val" / "val_annotations.txt").write_text(annotations)
    with pytest.raises(FileNotFoundError, match="names .*val_1.JPEG.*does not hold"):
        data.load("tiny_imagenet", "test", tmp_path)


def test_a_dataset_that_is_nowhere_says_where_it_looked(tmp_path, monkeypatch):
    import socket

    def unreachable(*_, **__):
        raise OSError("network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    for proxy in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(proxy, raising=False)
        monkeypatch.delenv(proxy.upper(), raising=False)
    with pytest.raises(FileNotFoundError) as error:
        data.load("cifar10", "train", tmp_path)
    for part in (str(tmp_path / "cifar10"), "tfds.load", "--data-dir", "unreachable"):
        assert part in str(error.value)
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        data.load("svhn_cropped", "test")
    with pytest.raises(FileNotFoundError, match="`data_dir` is no folder.*missing"):
        data.load("cifar10", "train", tmp_path / "missing")


def test_a_damaged_dataset_says_so(tmp_path):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="(?s)is damaged.*tfds.load"):
        data.load("cifar10", "train", tmp_path)


@pytest.mark.parametrize("pipeline", data.PIPELINES)
def test_repeated_augmentation(pipeline, rng):
    """Each batch holds every image twice, augmented apart, and begins at any step."""
    images = rng.integers(0, 256, (20, 6, 6, 3)).astype("uint8")
    augmentation = data.Augmentation(crop_padding=2, repeats=2)
    weights = dict(enumerate(range(1, 21)))

    def batches(first_step, count):
        batches = data.training_batches(
            *(images, np.arange(20), 8, 20, augmentation),
            first_step=first_step,
            pipeline=pipeline,
            class_weight=weights,
        )
        return [
            tuple(map(keras.ops.convert_to_numpy, batch))
            for batch in itertools.islice(iter(batches), count)
        ]

    found = batches(0, 5)
    labels = np.stack([y.argmax(-1) for _, y, _ in found])
    assert labels.shape == (5, 8)
    # Five batches of four images are one pass, and each image is there twice.
    assert sorted(labels.ravel()) == sorted([*range(20)] * 2)
    for x, y, weight in found:
        np.testing.assert_array_equal(weight, y.argmax(-1) + 1)
        pairs = [x[y.argmax(-1) == label] for label in set(y.argmax(-1))]
        assert all(len(pair) == 2 for pair in pairs)
        assert any(np.abs(a - b).max() > 0 for a, b in pairs)
    for ours, theirs in zip(batches(3, 2), found[3:], strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
    with pytest.raises(ValueError, match="multiple of.*batch_size=9, repeats=2"):
        data.training_batches(images, np.arange(20), 9, 20, augmentation)


# Images that are decoded when they are asked for


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder of three classes of noise about a colour."""
    root = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    for label, name in enumerate(("blue", "green", "red")):
        (root / name).mkdir()
        for index in range(14):
            pixels = rng.integers(0, 120, (12, 15, 3)).astype("uint8")
            pixels[..., 2 - label] += 120
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def places(many, tmp_path_factory):
    """The folder, and its images in tar files of both kinds."""
    root = tmp_path_factory.mktemp("packed")
    packed = {name: pack(many, root / name, name == "keys") for name in LAYOUTS[1:]}
    return {"folder": many, **packed}


LAYOUTS = ("folder", "keys", "class folders")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_image_files_stand_for_their_array(layout, many, places):
    array, labels, facts = data.from_directory(many, (8, 10))
    for unpacked in data.from_directory(places[layout], (8, 10))[:2]:
        np.testing.assert_array_equal(unpacked, array if unpacked.ndim > 1 else labels)
    images, also, streamed = data.from_directory(places[layout], (8, 10), stream=True)
    images = pickle.loads(pickle.dumps(images))
    assert isinstance(images, data.ImageFiles) and len(images) == len(array)
    assert (images.shape, images.dtype, images.size) == (
        array.shape,
        "uint8",
        array.size,
    )
    np.testing.assert_array_equal(also, labels)
    assert streamed == facts  # of no more than two thousand images
    for rows in (slice(3, 9), np.array([30, 2]), [5]):
        np.testing.assert_array_equal(images[rows], array[rows])
    np.testing.assert_array_equal(images[7], array[7])
    np.testing.assert_array_equal(
        np.asarray(images.part(np.array([4, 9]))), array[[4, 9]]
    )


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("pipeline", data.PIPELINES)
def test_batches_of_image_files_are_those_of_the_array(pipeline, layout, many, places):
    options = {"augmentation": data.Augmentation(crop_padding=1), "pipeline": pipeline}
    for first_step in (0, 5):
        both = [
            iter(
                data.training_batches(
                    images, labels, 8, 3, seed=1, **options, first_step=first_step
                )
            )
            for images, labels, _ in (
                data.from_directory(many, 8),
                data.from_directory(places[layout], 8, stream=True),
            )
        ]
        for _ in range(7):
            for whole, streamed in zip(*map(next, both), strict=True):
                np.testing.assert_array_equal(
                    *map(keras.ops.convert_to_numpy, (whole, streamed))
                )


STREAMED = """
import resource, sys
from keras_lkca import data
images, labels, _ = data.from_directory(sys.argv[1], 64, stream=True)
batches = data.training_batches(images, labels, 128, 2, data.Augmentation())
for _ in range(10):
    next(batches)
print(len(images), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.once
@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted otherwise")
def test_200_000_images_take_little_memory(tmp_path, run_python):
    """In memory they would take 2.3 GiB."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype("uint8")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for part in range(100):  # of a thousand names each: links are limited
            first = tmp_path / name / f"{part:02}-000.jpg"
            Image.fromarray(pixels).resize((64, 64)).save(first)
            for index in range(1, 1000):
                os.link(first, first.with_name(f"{part:02}-{index:03}.jpg"))
    count, peak = map(int, run_python("-c", STREAMED, tmp_path).split()[-2:])
    assert count == 200_000 and peak < 1.5 * 2**30


def test_what_cannot_be_streamed(many, tmp_path):
    with pytest.raises(ValueError, match="`on_error`='skip' is for images that"):
        data.from_directory(many, 8, "skip", stream=True)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").write_bytes(b"no image")
    images = data.ImageFiles([tmp_path / "cat" / "0.png"], 8)
    with pytest.raises(ValueError, match="1 of 1 files cannot be decoded.*\n.*0.png"):
        images[[0]]
    batches = data.training_batches(images, [0], 1, 2)
    with pytest.raises(ValueError, match="cannot be decoded"):
        next(batches)


def test_more_than_fits_in_memory_is_streamed(many, monkeypatch):
    from keras_lkca.data import folders

    monkeypatch.setattr(folders, "MAX_BYTES", 1000)
    images, _, _ = data.from_directory(many, 8, stream=None)
    assert isinstance(images, data.ImageFiles)


# Images in tar files


PNG = io.BytesIO()
Image.new("RGB", (4, 4), (9, 9, 9)).save(PNG, "png")
PNG = PNG.getvalue()


def shard(path, *files, end=True):
    """Write a tar of pairs of a name and its bytes, a text of its own or a link."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            entry = tarfile.TarInfo(name)
            if content is None:
                entry.type, entry.linkname = tarfile.LNKTYPE, "0.png"
            entry.size = len(content or b"")
            tar.addfile(entry, io.BytesIO(content or b""))
        size = tar.offset
    if not end:
        os.truncate(path, size)


def test_what_a_shard_holds_beside_images_is_passed_over(tmp_path, capsys):
    shard(
        tmp_path / "1.tar",
        *(("0.PNG", PNG), ("0.cls", b"1\n"), ("0.json", b"{}"), ("notes", b"")),
        *(("._0.png", b"of another system"), ("b/.hidden/1.png", PNG)),
        *(("b/0.png", PNG), ("b/0.cls", b"0"), ("left.cls", b"7"), ("c.json", b"")),
    )
    shard(tmp_path / "0.tar", ("0.png", PNG), ("0.cls", b"2"))  # keys begin anew
    shard(tmp_path / ".2.tar", ("0.png", PNG))
    images, labels, facts = data.from_directory(tmp_path, 4)
    assert labels.tolist() == [2, 1, 0] and (images == 9).all()
    assert labels.dtype == "int64" and facts.class_names == ("0", "1", "2")
    assert capsys.readouterr().out == (
        f"passed over in {tmp_path}: files that are no images (2 .json, 1 no suffix, "
        "1 .cls)\n"
    )
    # One more class than there are images of; above the parts of a dataset too.
    for place in (tmp_path, tmp_path / "val"):
        for path in [*tmp_path.glob("[01].tar")] if place != tmp_path else []:
            place.mkdir(exist_ok=True)
            path.rename(place / path.name)
        (tmp_path / "classes.txt").write_text("ant\nbee \ncat\ndog\n\n")
        _, labels, facts = data.from_directory(place, 4, stream=True)
        assert labels.tolist() == [2, 1, 0] and facts.num_classes == 4
        assert facts.class_names == ("ant", "bee", "cat", "dog")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("a.png", PNG)], "1.tar: a.png must have a class: an integer in a file of"),
        ([("a.png", PNG), ("b.cls", b"1")], "1.tar: a.png must have a class"),
        ([("a.png", PNG), ("a.cls", b"1.0")], r"1.tar: a.cls must hold the n.*'1\.0'"),
        ([("a.png", PNG), ("a.cls", b"-1")], "a.cls must hold the number.*'-1'"),
        ([("a.png", PNG), ("a.cls", b"4")], "class 4 of .*1.tar: a.png"),
        ([("a.png", PNG), ("a.jpg", PNG), ("a.cls", b"0")], "1.tar must.*a.jpg, whose"),
        (
            [("a.png", PNG), ("a.cls", b"0"), ("a.cls", b"0")],
            "1.tar must.*a.cls, whose",
        ),
        ([("c/a.png", PNG), ("./c/a.png", PNG)], "1.tar must.*c/a.png, whose key"),
        ([("a.txt", b""), ("b.json", b"")], "1.tar must hold images.*.json, .txt in"),
        ([], "1.tar must hold images of a kind.*nothing in it"),
        ([("c/0.png", PNG), ("c/1.png", None)], "1.tar: c/1.png must be a file, not"),
    ],
)
def test_bad_shards_are_refused(files, message, tmp_path):
    shard(tmp_path / "0.tar", ("0.png", PNG), ("0.cls", b"0"))
    shard(tmp_path / "1.tar", *files)
    if ".cls" not in str(files):
        (tmp_path / "0.tar").unlink()
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    with pytest.raises(ValueError, match=message):
        data.from_directory(tmp_path, 4, stream=True)


@pytest.mark.parametrize("kept", [0, 100, 700, 1024, 1536, 1700, -1])
def test_damaged_shards_are_refused(kept, tmp_path):
    """Also where one is cut between its members, or within the text of a class."""
    shard(tmp_path / "0.tar", ("0.png", PNG), ("0.cls", b"1"), end=False)
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[:kept] if kept >= 0 else whole + b"x" * 512)
    with pytest.raises(ValueError, match="0.tar must be a whole tar, not compressed"):
        data.from_directory(tmp_path, 4)


def test_what_lies_beside_shards_is_told(tmp_path, capsys):
    shard(tmp_path / "0.tar", ("0.png", PNG), ("0.cls", b"0"))
    (tmp_path / "loose.png").write_bytes(PNG)
    data.from_directory(tmp_path, 4)
    assert "beside the class folders or tar files (1 .png)" in capsys.readouterr().out
    (tmp_path / "cat").mkdir()
    (tmp_path / "loose.png").rename(tmp_path / "cat" / "0.png")
    data.from_directory(tmp_path, 4)
    assert "beside the class folders or tar files (1 .tar)" in capsys.readouterr().out


def test_folders_of_shards_that_are_refused(tmp_path):
    shard(tmp_path / "0.tar", ("0.png", PNG), ("0.cls", b"0"))
    shard(tmp_path / "1.tar", ("0.png", PNG), ("0.cls", b"2"))
    with pytest.raises(ValueError, match="0 to 2, and no image is of class 1.*1.tar: "):
        data.from_directory(tmp_path, 4)
    for text, line in (("a\n\nb", "'' in line 2"), ("a\nb\na\n", "'a' in line 3")):
        (tmp_path / "classes.txt").write_text(text)
        with pytest.raises(ValueError, match=f"classes.txt must hold the n.*{line}"):
            data.from_directory(tmp_path, 4)
    (tmp_path / "classes.txt").write_bytes(b"\xe4pfel\n")
    with pytest.raises(ValueError, match="classes.txt must be a text in UTF-8"):
        data.from_directory(tmp_path, 4)
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(2 * whole)
    with pytest.raises(ValueError, match="0.tar must be.*more follows the end"):
        data.from_directory(tmp_path, 4)
    (tmp_path / "0.tar").write_bytes(whole)
    (tmp_path / "2.tar.gz").write_bytes(b"")
    with pytest.raises(ValueError, match="2.tar.gz is compressed.*1 compressed of 3"):
        data.from_directory(tmp_path, 4)
    (tmp_path / "logs").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no folders but tar.*in \['logs'\]"):
        data.from_directory(tmp_path, 4)


def test_an_image_in_a_shard_that_cannot_be_decoded_is_named(tmp_path):
    shard(tmp_path / "0.tar", ("a/0.png", PNG), ("b/0.png", PNG[:50]), ("b/1.png", PNG))
    with pytest.raises(ValueError, match="1 of 3 files.*\n.*0.tar: b/0.png: "):
        data.from_directory(tmp_path, 4)
    assert len(data.from_directory(tmp_path, 4, "skip")[0]) == 2
    with pytest.raises(ValueError, match="0.tar: b/0.png: .*\nReplace them: a run"):
        data.from_directory(tmp_path, 4, stream=True)
