"""The example scripts, on a little data and for a few steps."""

import re
import runpy
import warnings

import keras
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from keras_lkca import LKCAViT, data, deploy

EXAMPLES = ROOT / "examples"


@pytest.fixture
def run_example(capsys, monkeypatch):
    """Run a script as its own program, in this process, and return what it printed."""

    def run(name, *arguments):
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # which a user's program does not raise
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def pets(tmp_path, rng):
    """Reddish cats and bluish dogs."""
    for name, channel in (("cat", 0), ("dog", 2)):
        folder = tmp_path / "pets" / name
        folder.mkdir(parents=True)
        for index in range(20):
            pixels = rng.integers(0, 60, (12, 12, 3)).astype("uint8")
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "pets"


def test_quickstart(run_python, tmp_path):
    out = run_python(
        EXAMPLES / "quickstart.py",
        *("--output", tmp_path, "--steps", 2, "--sizes", 100, 200),
    )
    rows = re.findall(r"^(LKCAViT|ViT) +([\d,]+)", out, re.M)
    assert [name for name, _ in rows] == ["LKCAViT", "ViT"] * 2
    counts = {name: int(count.replace(",", "")) for name, count in rows}
    assert abs(counts["ViT"] / counts["LKCAViT"] - 1) < 0.1  # of equal size
    (difference,) = re.findall(r"differ by at most (\S+)", out)
    assert float(difference) < 1e-5
    for name in ("quickstart.png", "kernels.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size[0] > 700
    assert isinstance(keras.models.load_model(tmp_path / "digits.keras"), LKCAViT)


def test_segment(run_example, tmp_path, rng):
    for split, count in (("train", 12), ("test", 4)):
        for kind, shape in (("images", (20, 24, 3)), ("masks", (20, 24))):
            (tmp_path / split / kind).mkdir(parents=True)
            for index in range(count):
                values = rng.integers(0, 256 if kind == "images" else 3, shape)
                picture = Image.fromarray(values.astype("uint8"))
                picture.save(tmp_path / split / kind / f"{index}.png")
    out = run_example(
        *("segment.py", tmp_path, "--epochs", 1, "--batch-size", 4),
        *("--output", tmp_path / "run"),
    )
    assert re.search(r"^mean IoU \d+\.\d%", out, re.M)
    assert "predicted (4, 20, 24)" in out
    assert (tmp_path / "run" / "samples.png").exists()


def test_cifar100(run_example, tmp_path, rng):
    pytest.importorskip("tensorflow")
    np.savez(
        tmp_path / "cifar100.npz",
        x_train=rng.integers(0, 256, (300, 32, 32, 3)).astype("uint8"),
        y_train=np.arange(300) % 100,
        x_test=rng.integers(0, 256, (20, 32, 32, 3)).astype("uint8"),
        y_test=np.arange(20),
    )
    out = run_example(
        *("cifar100.py", "--data-dir", tmp_path, "--epochs", 1),
        *("--steps", 2, "--output", tmp_path / "deep" / "cifar100.keras"),
    )
    assert "509,800" in out  # as many parameters as `lkca_vit_05m`
    assert re.search(r"^test accuracy \d", out, re.M)
    model = keras.models.load_model(tmp_path / "deep" / "cifar100.keras")
    assert model.class_names == data.describe("cifar100").class_names
    named = re.findall(r"^(\w+) \d+%, (\w+) \d+%$", out, re.M)
    assert len(named) == 3 and set(sum(named, ())) <= set(model.class_names)


def test_cifar100_normalizes_and_augments_as_it_says(rng, tmp_path, monkeypatch):
    """Its parts, by themselves: the pipeline's images, and the model's first layer."""
    pytest.importorskip("tensorflow")
    source = (EXAMPLES / "cifar100.py").read_text().partition("model = make_model()")[0]
    images = rng.integers(0, 256, (200, 32, 32, 3)).astype("uint8")
    labels = np.arange(200) % 100
    np.savez(
        tmp_path / "cifar100.npz",
        **{"x_train": images, "y_train": labels, "x_test": images, "y_test": labels},
    )
    monkeypatch.setattr("sys.argv", ["cifar100.py", "--data-dir", str(tmp_path)])
    parts = {"__doc__": "", "__name__": "__main__"}
    exec(source, parts)
    x, y = next(iter(parts["train"].as_numpy_iterator()))
    assert x.shape == (128, 32, 32, 3) and x.dtype == np.uint8 and y.shape == (128,)
    kept = images[parts["kept"]].reshape(-1, 3)
    for image in x[:5]:  # shifted: some of it is there, and the rest is black
        inside = image.reshape(-1, 3)[image.any(-1).ravel()]
        assert len(inside) >= 28 * 28
        assert (kept == inside[0]).all(-1).any()
    model = parts["make_model"](embed_dim=8, depth=1)
    first = keras.Model(model.input, model.layers[1].output)
    facts = data.describe("cifar100")
    expected = (images[:2] / 255 - np.array(facts.mean)) / np.array(facts.std)
    got = first.predict(images[:2], verbose=0)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_own_images(pets, run_example, tmp_path):
    arguments = ("--image-size", 16, "--epochs", 5, "--output", tmp_path / "run")
    out = run_example("own_images.py", pets, *arguments)
    assert "32 images to train on, 8 for the test" in out
    assert "classes: cat, dog" in out
    (accuracy,) = re.findall(r"^test accuracy ([\d.]+)%$", out, re.M)
    assert float(accuracy) >= 75  # of eight images, red or blue
    assert len(re.findall(r"^(?:cat|dog) +is taken for (?:cat|dog) \d", out, re.M)) == 5
    model = keras.models.load_model(tmp_path / "run" / "best.keras")
    assert model.class_names == ("cat", "dog")
    assert (tmp_path / "run" / "metrics.json").exists()


def test_pyramid(run_example, tmp_path):
    command = ("pyramid.py", "--epochs", 1, "--output", tmp_path / "run")
    out = run_example(*command)
    assert "stage0_block0_lkca: kernel (15, 15, 1)" in out
    assert "stage1_block0_lkca: kernel (7, 7, 6)" in out
    ((before, after, difference),) = re.findall(
        r"^folded: ([\d,]+) parameters became ([\d,]+), .* at most (\S+)$", out, re.M
    )
    assert int(after.replace(",", "")) < int(before.replace(",", ""))
    assert float(difference) < 1e-4
    model = keras.models.load_model(tmp_path / "run" / "best.keras")
    assert model.class_names == tuple("0123456789")
    for package in deploy.FORMATS["onnx"].packages:
        pytest.importorskip(package)
    again = run_example(*command, "--format", "onnx")
    assert "is complete" in again and re.search(r"^wrote .*exported", again, re.M)


def test_custom_loop(run_example, tmp_path):
    output = tmp_path / "loop.keras"
    arguments = ("--steps", 60, "--every", 20, "--output", output)
    out = run_example("custom_loop.py", *arguments)
    rows = re.findall(r"^ +(\d+) +([\d.]+) +([\d.]+)%$", out, re.M)
    assert [int(step) for step, *_ in rows] == [20, 40, 60]
    (accuracy,) = re.findall(r"^test accuracy ([\d.]+)%", out, re.M)
    # What is saved are the best weights.
    images, labels = data.digits("test")
    predicted = keras.models.load_model(output).predict(images, verbose=0).argmax(1)
    assert np.mean(predicted == labels) * 100 == pytest.approx(float(accuracy), abs=0.1)
    stopped = run_example(
        *("custom_loop.py", "--steps", 90, "--every", 1),
        *("--patience", 1, "--output", output),
    )
    assert "no gain in 1 validations" in stopped


@pytest.mark.parametrize(
    "path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem
)
def test_an_example_is_short_and_listed(path):
    assert len(path.read_text().splitlines()) <= 100
    listed = re.findall(
        r"^\| \[`(\w+\.py)`\]", (EXAMPLES / "README.md").read_text(), re.M
    )
    assert listed.count(path.name) == 1
