import numpy as np
import pytest
from PIL import Image

from keras_lkca import data

tf = pytest.importorskip("tensorflow")


def numbered(count, size=8, channels=3):
    """Images whose pixels all hold the image's number, labelled by it."""
    values = np.arange(count, dtype="uint8")
    images = np.broadcast_to(values[:, None, None, None], (count, size, size, channels))
    return tf.data.Dataset.from_tensor_slices((images, values.astype("int64")))


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


def test_load_digits():
    dataset = data.load("digits", "test")
    image, label = next(iter(dataset))
    assert image.shape == (8, 8, 1) and image.dtype == tf.uint8
    assert label.dtype == tf.int64 and len(dataset) == 397


def test_training_pipeline_shows_every_image_once_an_epoch_in_a_new_order():
    pipeline = data.training_pipeline(numbered(20), 4, num_classes=20)
    epochs = []
    for _ in range(2):
        labels = [y.numpy().argmax(-1) for _, y in pipeline]
        assert sorted(np.concatenate(labels)) == list(range(20))
        epochs.append(np.concatenate(labels).tolist())
    assert epochs[0] != epochs[1]


def test_training_pipeline_keeps_image_and_label_together():
    dataset = numbered(20).map(lambda x, y: (x + 1, y))  # none is as black as the edge
    for images, labels in data.training_pipeline(dataset, 4, num_classes=20):
        np.testing.assert_array_equal(
            images.numpy().max((1, 2, 3)), labels.numpy().argmax(-1) + 1
        )
        np.testing.assert_array_equal(labels.numpy().sum(-1), 1)


def test_training_pipeline_repeats_with_its_seed():
    def run(seed):
        dataset = data.load("digits", "test")
        pipeline = data.training_pipeline(dataset, 50, num_classes=10, seed=seed)
        return np.stack([x.numpy() for _ in range(2) for x, _ in pipeline])

    np.testing.assert_array_equal(run(3), run(3))
    assert (run(3) != run(4)).any()


def crops(image, padding, flip):
    """All that the augmentation may make of an image."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    for i, j in np.ndindex(2 * padding + 1, 2 * padding + 1):
        crop = padded[i : i + height, j : j + width]
        yield crop.tobytes()
        if flip:
            yield crop[:, ::-1].tobytes()


@pytest.mark.parametrize("flip", [False, True])
def test_augmentation_is_a_shift_and_a_flip(flip, rng):
    image = rng.integers(0, 256, (6, 5, 3)).astype("uint8")
    dataset = tf.data.Dataset.from_tensors((image, 0)).repeat(400)
    allowed = set(crops(image, 1, flip))
    assert len(allowed) == (18 if flip else 9)
    seen = set()
    for images, _ in data.training_pipeline(
        dataset, 40, num_classes=1, flip=flip, crop_padding=1
    ):
        seen.update(x.tobytes() for x in images.numpy())
    assert seen == allowed


def test_no_augmentation(rng):
    image = rng.integers(0, 256, (6, 5, 3)).astype("uint8")
    dataset = tf.data.Dataset.from_tensors((image, 0)).repeat(8)
    pipeline = data.training_pipeline(
        dataset, 8, num_classes=1, flip=False, crop_padding=0
    )
    images, _ = next(iter(pipeline))
    np.testing.assert_array_equal(images, np.stack([image] * 8))


def test_evaluation_pipeline_is_everything_in_order():
    batches = list(data.evaluation_pipeline(numbered(10), 4, num_classes=10))
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    labels = np.concatenate([y.numpy().argmax(-1) for _, y in batches])
    np.testing.assert_array_equal(labels, np.arange(10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be a positive"),
        ({"batch_size": 21}, "`batch_size` must not be above.*21 for 20 images"),
        ({"num_classes": 0}, "`num_classes` must be a positive"),
        ({"crop_padding": -1}, "`crop_padding` must be a non-negative"),
    ],
)
def test_bad_pipeline_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.training_pipeline(
            numbered(20), **{"batch_size": 4, "num_classes": 20, **arguments}
        )


def test_images_of_many_sizes_are_refused():
    dataset = numbered(20).map(lambda x, y: (tf.ensure_shape(x, (8, 8, 3)), y))
    ragged = tf.data.Dataset.from_generator(
        lambda: iter(dataset),
        output_signature=(
            tf.TensorSpec((None, None, 3), "uint8"),
            tf.TensorSpec((), "int64"),
        ),
    )
    with pytest.raises(ValueError, match="one known shape.*None"):
        data.training_pipeline(ragged, 4, num_classes=20)


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
    dataset, facts = data.from_directory(tmp_path, (6, 4))
    assert facts.class_names == ("cat", "dog") and facts.num_classes == 2
    assert facts.input_shape == (6, 4, 3)
    np.testing.assert_allclose(facts.mean, np.array([100, 0, 100]) / 255, atol=0.02)
    np.testing.assert_allclose(facts.std, np.array([100, 0, 100]) / 255, atol=0.02)
    assert len(dataset) == 20
    for image, label in dataset:
        assert image.shape == (6, 4, 3) and image.dtype == tf.uint8
        red, _, blue = image.numpy().astype(int)[3, 2]
        assert (red > 150) == (label == 0) and (blue > 150) == (label == 1)


def test_from_directory_splits(tmp_path):
    for index in range(10):
        write_image(tmp_path / "a" / f"{index}.png", (index, 0, 0))
        write_image(tmp_path / "b" / f"{index}.png", (100 + index, 0, 0))
    seen = [
        {
            int(image[0, 0, 0])
            for image, _ in data.from_directory(
                tmp_path, (4, 4), split, validation_split=0.25
            )[0]
        }
        for split in ("train", "test")
    ]
    assert [len(values) for values in seen] == [15, 5]
    assert not seen[0] & seen[1]


def test_from_directory_bad_input(tmp_path):
    with pytest.raises(FileNotFoundError, match="`directory` is no folder.*missing"):
        data.from_directory(tmp_path / "missing", (8, 8))
    with pytest.raises(FileNotFoundError, match="one folder a class"):
        data.from_directory(tmp_path, (8, 8))
    write_image(tmp_path / "a" / "0.png", (1, 2, 3))
    (tmp_path / "b").mkdir()
    with pytest.raises(FileNotFoundError, match=r"there are none in \['b'\]"):
        data.from_directory(tmp_path, (8, 8))
    with pytest.raises(ValueError, match="`split` must be 'train', or 'test' with"):
        data.from_directory(tmp_path, (8, 8), "test")
    for share in (1.0, -0.1, "0.2"):
        with pytest.raises(ValueError, match="`validation_split` must be|lie"):
            data.from_directory(tmp_path, (8, 8), validation_split=share)
    for size in (0, (8, 0), "8"):
        with pytest.raises(ValueError, match="`image_size` must be"):
            data.from_directory(tmp_path, size)
    (tmp_path / "b").rmdir()
    with pytest.raises(ValueError, match="'test' none of the 1 images"):
        data.from_directory(tmp_path, (8, 8), "test", validation_split=0.5)


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
    train = list(data.load("tiny_imagenet", "train", tiny_imagenet))
    assert len(train) == 200
    for image, label in train:
        assert image.shape == (64, 64, 3) and image.dtype == tf.uint8
        assert abs(int(image[0, 0, 0]) - int(label)) <= 1  # JPEG is not exact
    folder = tiny_imagenet / "tiny-imagenet-200"
    labels = [int(label) for _, label in data.load("tiny_imagenet", "test", folder)]
    assert labels == [2, 1, 0]


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
