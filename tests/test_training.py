import json
import os
import re
import runpy

import keras
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from keras_lkca import LKCAViT, ViT, data, training
from keras_lkca.files import atomic

pytest.importorskip("tensorflow")


@pytest.mark.parametrize(
    ("model", "preset", "model_class"),
    [("lkca", "lkca_vit_05m", LKCAViT), ("vit", "vit_05m", ViT)],
)
def test_train_learns_and_writes_everything(model, preset, model_class, tmp_path):
    output = tmp_path / "deep" / "run"
    metrics = training.train(
        "digits",
        model=model,
        preset=preset,
        epochs=2,
        steps_per_epoch=12,
        batch_size=32,
        output=output,
    )
    assert sorted(path.name for path in output.iterdir()) == [
        "curves.png",
        "metrics.json",
        "model.keras",
    ]
    assert metrics == json.loads((output / "metrics.json").read_text())
    losses = metrics["history"]["loss"]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert metrics["backend"] == keras.config.backend()
    with Image.open(output / "curves.png") as picture:
        assert picture.size[0] > 500
    loaded = keras.models.load_model(output / "model.keras")
    assert type(loaded) is model_class
    images, labels = data.digits("test")
    predicted = loaded.predict(images, verbose=0).argmax(-1)
    assert np.mean(predicted == labels) == pytest.approx(
        metrics["test_accuracy"], abs=1e-3
    )


def test_the_schedule_warms_up_and_anneals():
    from keras_lkca.training.train import _optimizer

    optimizer = _optimizer(1000)
    assert optimizer.weight_decay == 0.05
    schedule = keras.optimizers.schedules.deserialize(
        optimizer.get_config()["learning_rate"]
    )
    rates = [float(schedule(step)) for step in (0, 50, 100, 550, 1000)]
    np.testing.assert_allclose(rates, [1e-5, 5e-4, 1e-3, 5e-4, 1e-6], atol=1e-5)
    assert rates[0] > 0  # or the first step would be lost


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "mnist"}, "`name` must be one of.*'mnist'"),
        ({"model": "cnn"}, "`model` must be one of.*'cnn'"),
        ({"preset": "lkca_tiny"}, "no such preset"),
        ({"preset": "vit_tiny"}, "preset of ViT"),
        ({"epochs": 0}, "`epochs` must be a positive"),
        ({"batch_size": -1}, "`batch_size` must be a positive"),
        ({"batch_size": 1401}, "`batch_size` must not be above"),
        ({"steps_per_epoch": 0}, "`steps_per_epoch` must be a positive"),
    ],
)
def test_bad_arguments_leave_nothing_behind(arguments, message, tmp_path):
    output = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        training.train(**{"dataset": "digits", "output": output, **arguments})
    assert not output.exists()


def test_an_output_folder_in_use_is_refused(tmp_path):
    (tmp_path / "model.keras").write_text("precious")
    with pytest.raises(ValueError, match="`output` holds a run already"):
        training.train("digits", output=tmp_path)
    assert (tmp_path / "model.keras").read_text() == "precious"


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="`output` cannot be written to"):
        training.train("digits", output=tmp_path / "file" / "run")


def test_atomic_leaves_the_old_file_where_writing_fails(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


# The examples


@pytest.fixture(scope="module")
def cifar100(tmp_path_factory):
    """A prepared TFDS folder of a few random images."""
    if "LKCA_DATA" in os.environ:
        return os.environ["LKCA_DATA"] + "/tfds"
    import tensorflow_datasets as tfds

    class Cifar100(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "cifar100"
        VERSION = tfds.core.Version("3.0.2")
        pkg_dir_path = ROOT

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(shape=(32, 32, 3)),
                        "label": tfds.features.ClassLabel(num_classes=100),
                    }
                ),
                supervised_keys=("image", "label"),
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples(16), "test": self._examples(8)}

        def _examples(self, count):
            rng = np.random.default_rng(0)
            for index in range(count):
                image = rng.integers(0, 256, (32, 32, 3)).astype("uint8")
                yield index, {"image": image, "label": index}

        _generate_examples = _examples

    root = tmp_path_factory.mktemp("tfds")
    Cifar100(data_dir=str(root)).download_and_prepare()
    return root


@pytest.mark.filterwarnings("ignore")  # what TFDS does while it writes is its own
def test_example_on_a_prepared_dataset(cifar100, run_python, tmp_path):
    arguments = "--preset lkca_vit_05m --epochs 1 --steps-per-epoch 2 --batch-size 4"
    out = run_python(
        ROOT / "examples" / "cifar100.py",
        *arguments.split(),
        *("--data-dir", cifar100, "--output", tmp_path / "run", "--seed", 3),
    )
    assert "509,800 parameters" in out and "test accuracy" in out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["seed"] == 3 and metrics["steps_per_epoch"] == 2
    assert (tmp_path / "run" / "model.keras").exists()


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "tiny_imagenet"])
def test_examples_take_the_same_arguments(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    out = capsys.readouterr().out
    for argument in (
        *("--model", "--preset", "--epochs", "--batch-size", "--data-dir"),
        *("--output", "--seed", "--steps-per-epoch"),
    ):
        assert argument in out


def test_example_says_what_is_wrong_in_one_line(run_python, tmp_path):
    error = run_python(
        *(ROOT / "examples" / "tiny_imagenet.py", "--data-dir", tmp_path), expect=2
    )
    assert "tiny-imagenet-200" in error and "Traceback" not in error


def test_quickstart(run_python, tmp_path):
    out = run_python(
        ROOT / "examples" / "quickstart.py",
        *("--output", tmp_path, "--steps", 2, "--sizes", 100, 200),
    )
    rows = re.findall(r"^(LKCAViT|ViT) +([\d,]+)", out, re.M)
    assert [name for name, _ in rows] == ["LKCAViT", "ViT"] * 2
    counts = {name: int(count.replace(",", "")) for name, count in rows}
    assert abs(counts["ViT"] / counts["LKCAViT"] - 1) < 0.1  # of equal size
    with Image.open(tmp_path / "quickstart.png") as picture:
        assert picture.size[0] > 1000
    assert (tmp_path / "digits.keras").exists()
