"""`fit` on any classifier and any data: what it writes, how it goes on."""

import importlib.util
import signal

import keras
import numpy as np
import pyramid
import pytest
from conftest import ROOT

from keras_lkca import LKCAViT, data, deploy, interpret, predict
from keras_lkca.training import Recipe, callbacks, fit, train


def tiny(**arguments):
    options = {"patch_size": 4, "embed_dim": 8, "depth": 1, "drop_path_rate": 0.0}
    return LKCAViT((8, 8, 1), **{**options, **arguments})


def quick(**changes):
    options = {"epochs": 2, "batch_size": 32, "flip": False, "crop_padding": 1}
    return Recipe.quick(**{**options, **changes})


def assert_same_weights(a, b):
    models = [keras.models.load_model(folder / "last.keras") for folder in (a, b)]
    for x, y in zip(*(m.get_weights() for m in models), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    for x, y in zip(*(m.optimizer.variables for m in models), strict=True):
        x, y = map(keras.ops.convert_to_numpy, (x, y))
        np.testing.assert_allclose(x, y, atol=1e-6, err_msg="optimizer")


def test_a_pyramid_of_ones_own_is_killed_and_goes_on(run_python, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    run_python(ROOT / "tests" / "pyramid.py", killed, expect=-signal.SIGKILL)
    assert not (killed / "metrics.json").exists()
    assert len(callbacks.read_history(killed / "history.csv")) == 2
    # Whatever weights and seeds the model of the new process has.
    metrics = pyramid.train(killed, seed=99, resume=True)
    assert metrics["epochs"] == 4 and metrics["name"] == "pyramid"
    assert metrics["images"] == {"train": 1260, "validation": 140, "test": 397}
    pyramid.train(whole)
    assert_same_weights(killed, whole)
    rows = [callbacks.read_history(x / "history.csv") for x in (killed, whole)]
    for a, b in zip(*rows, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["val_accuracy"] == pytest.approx(b["val_accuracy"], abs=1e-3)


def test_what_is_left_out_is_the_runs_and_what_is_given_must_be(tmp_path):
    run = tmp_path / "run"
    arguments = {"validation": 0.1, "output": run}
    fit(tiny(), data.digits(), recipe=quick(), seed=5, steps_per_epoch=2, **arguments)
    (run / "metrics.json").unlink()
    for given, message in (
        ({"seed": 0}, "`seed` of the run to resume is 5.*seed=0"),
        ({"steps_per_epoch": None}, "`steps_per_epoch` of the run to resume is 2"),
        ({"recipe": quick(epochs=3)}, "`recipe` of the run to resume is"),
        ({"jit_compile": False}, "`jit_compile` of the run to resume is None"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(tiny(), data.digits(), resume=True, **arguments, **given)
    metrics = fit(tiny(), data.digits(), resume=True, **arguments)
    assert metrics["seed"] == 5 and metrics["epochs"] == 2
    again = fit(tiny(), data.digits(), resume=True, seed=5, recipe=quick(), **arguments)
    assert again == metrics


def test_train_tells_defaults_from_what_was_left_out(tmp_path):
    options = {"model_options": {"patch_size": 4, "embed_dim": 8, "depth": 1}}
    options |= {"output": tmp_path / "run", "steps_per_epoch": 2}
    train("digits", recipe=quick(), seed=5, fraction=0.5, **options)
    for given, message in (
        ({"seed": 0}, "`seed` of the run to resume is 5.*seed=0"),
        ({"fraction": 1.0}, "`fraction` of the run to resume is 0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            train(output=tmp_path / "run", resume=True, **given)
    train(output=tmp_path / "run", resume=True, fraction=0.5, select="validation")


@pytest.mark.parametrize("loss", ["sparse", "one-hot"])
def test_a_compiled_model_keeps_what_it_was_compiled_with(loss, tmp_path, capsys):
    model = tiny()
    losses, from_logits = keras.losses, {"from_logits": True}
    kinds = {"sparse": losses.SparseCategoricalCrossentropy(**from_logits)}
    kinds["one-hot"] = losses.CategoricalCrossentropy(**from_logits)
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    model.compile(optimizer, kinds[loss], metrics=["accuracy"])
    recipe = quick(mix_probability=0.5 if loss == "one-hot" else 0.0)
    run = tmp_path / "run"
    fit(model, data.digits(), validation=0.1, recipe=recipe, output=run)
    assert model.optimizer is optimizer
    assert "keeps the optimizer" in capsys.readouterr().out
    rows = callbacks.read_history(run / "history.csv")
    assert rows[1]["loss"] < rows[0]["loss"] and rows[1]["accuracy"] > 0.05
    assert rows[0]["learning_rate"] == pytest.approx(0.01)


def test_mixed_images_have_no_integer_labels(tmp_path):
    model = tiny()
    model.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="Mixed images have no integer labels"):
        recipe = quick(mix_probability=0.5)
        fit(model, data.digits(), recipe=recipe, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_run_compiled_is_compiled_anew(tmp_path, capsys):
    """Or a second run would go on at the first one's last learning rate."""
    model = tiny()
    for name in "ab":
        fit(model, data.digits(), recipe=quick(), output=tmp_path / name)
    loaded = keras.models.load_model(tmp_path / "b" / "last.keras")
    fit(loaded, data.digits(), recipe=quick(), output=tmp_path / "c")
    assert "keeps the optimizer" not in capsys.readouterr().out
    histories = [callbacks.read_history(tmp_path / x / "history.csv") for x in "abc"]
    rates = [[row["learning_rate"] for row in rows] for rows in histories]
    assert rates[0] == rates[1] == rates[2]
    losses = [rows[-1]["loss"] for rows in histories]
    assert losses[2] < losses[1] < losses[0]


def test_a_softmax_is_seen(tmp_path):
    model = tiny(classifier_activation="softmax")
    images, labels = test = data.digits("test")
    metrics = fit(
        *(model, data.digits(), test, test),
        recipe=quick(epochs=1, label_smoothing=0.0),
        output=tmp_path / "run",
    )
    assert "flatters" in metrics["best_epoch_chosen_on"]
    (row,) = callbacks.read_history(tmp_path / "run" / "history.csv")
    assert metrics["last"]["test_loss"] == pytest.approx(row["val_loss"], rel=1e-3)
    probabilities = model.predict(images, verbose=0)
    expected = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    assert metrics["last"]["test_loss"] == pytest.approx(expected, rel=1e-4)


class Halved(keras.layers.Layer):
    """A layer of one's own that is registered nowhere."""

    def call(self, inputs):
        return inputs / 2


def test_layers_of_ones_own_are_trained_and_tested(tmp_path):
    base = tiny()
    model = keras.Model(base.input, Halved()(base.output))
    # What it ends with gives neither logits nor probabilities that could be known.
    with pytest.raises(ValueError, match="must end with a softmax, a sigmoid or"):
        fit(model, data.digits(), recipe=quick(), output=tmp_path / "no")
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(Halved()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    metrics = fit(
        *(model, data.digits(), 0.1, data.digits("test")),
        recipe=quick(ema_momentum=0.9, learning_rate=1e-4),
        output=tmp_path / "run",
    )
    images, labels = data.digits("test")
    predicted = model.predict(images, verbose=0).argmax(-1)  # the last weights
    assert np.mean(predicted == labels) == metrics["last"]["test_accuracy"]


def test_without_validation_the_last_epoch_is_the_best(tmp_path):
    metrics = fit(tiny(), data.digits(), recipe=quick(), output=tmp_path / "run")
    assert metrics["best"] == metrics["last"] == {"epoch": 2}
    assert "nothing" in metrics["best_epoch_chosen_on"]
    best, last = (tmp_path / "run" / f"{x}.keras" for x in ("best", "last"))
    assert best.read_bytes() == last.read_bytes()


def test_without_matplotlib_there_are_no_pictures(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda x: None if x == "matplotlib" else find(x)
    )
    fit(tiny(), data.digits(), recipe=quick(epochs=1), output=tmp_path / "run")
    assert "no pictures" in capsys.readouterr().out
    assert not list((tmp_path / "run").glob("*.png"))
    assert (tmp_path / "run" / "metrics.json").exists()


class Halves(keras.utils.PyDataset):
    """A dataset of one's own, with integer labels."""

    def __init__(self, images, labels):
        super().__init__()
        self.images, self.labels = images, labels

    def __len__(self):
        return 10

    def __getitem__(self, index):
        rows = slice(index * 50, (index + 1) * 50)
        return self.images[rows], self.labels[rows]


class Stop(Exception):
    pass


class StopBeforeTheSecondEpoch(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise Stop


@pytest.mark.parametrize("passes", [1, 2])
def test_a_dataset_of_batches_goes_on(passes, tmp_path):
    images, labels = data.digits()
    recipe = quick(mix_probability=0.5, passes_per_epoch=passes)

    def run(name, **options):
        return fit(
            tiny(),
            Halves(images[:500], labels[:500]),
            validation=Halves(images[500:1000], labels[500:1000]),
            recipe=recipe,
            output=tmp_path / name,
            **options,
        )

    keras.utils.set_random_seed(1)
    metrics = run("whole")
    assert metrics["images"] == {"train": None, "validation": 500, "test": 0}
    keras.utils.set_random_seed(1)
    with pytest.raises(Stop):
        run("stopped", extra_callbacks=[StopBeforeTheSecondEpoch()])
    run("stopped", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")
    model = keras.models.load_model(tmp_path / "whole" / "last.keras")
    assert int(model.optimizer.iterations) == 2 * 10 * passes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "lkca"}, "`model` must be a built Keras model"),
        ({"train": "digits"}, "`train` must be a pair of arrays.*'digits'"),
        ({"train": 3}, "`train` must be a pair of arrays.*3"),
        ({"train": iter([])}, "`steps_per_epoch` is needed for a dataset whose"),
        ({"validation": 1.5}, "`validation` must be images and labels.*1.5"),
        ({"validation": 1e-5}, "`validation` must leave images on both sides"),
        ({"test": (np.zeros((4, 9, 9, 1)), np.zeros(4, int))}, "`test` must be.*8, 8"),
        ({"test": (np.zeros((4, 8, 8, 1)), np.full(4, 10))}, "between 0 and 9"),
        ({"recipe": "quick"}, "`recipe` must be a Recipe.*'quick'"),
        ({"seed": -1}, "`seed` must be an integer"),
        ({"pipeline": "numpy"}, "`pipeline` must be one of"),
        ({"resume": True}, "`resume` continues the run in `output`"),
        ({"about": {"x": object}}, "that config.json can hold"),
    ],
)
def test_bad_arguments_leave_nothing_behind(arguments, message, tmp_path):
    run = tmp_path / "run"
    defaults = {"model": tiny(), "train": data.digits(), "recipe": quick()}
    with pytest.raises(ValueError, match=message):
        fit(**{**defaults, "output": run, **arguments})
    assert not run.exists()


@pytest.fixture(scope="module")
def trained_pyramid(tmp_path_factory):
    """What the pyramid's run leaves behind."""
    output = tmp_path_factory.mktemp("pyramid") / "run"
    pyramid.train(output)
    return output / "last.keras"


def test_a_pyramid_of_ones_own_is_folded_named_and_reported(trained_pyramid, tmp_path):
    model = keras.models.load_model(trained_pyramid)
    images, _ = data.digits("test")
    folded = deploy.fold(model)
    assert folded.count_params() < model.count_params()
    logits, same = (m.predict(images, verbose=0) for m in (model, folded))
    np.testing.assert_allclose(same, logits, atol=1e-4)
    names = [f"digit {i}" for i in range(10)]
    for which in (model, folded):
        (best, *_), *_ = predict(which, images[:2], top=1, class_names=names)
        assert best[0] == names[logits[0].argmax()]
    report = interpret.report(folded, images[:4], tmp_path / "r.html", beside=model)
    text = report.read_text()
    assert "pyramid" in text and text.count("<svg") >= 5
    assert set(interpret.kernel_statistics(model)) == {
        *("fine_0_lkca", "fine_1_lkca", "coarse_0_lkca")
    }


@pytest.mark.filterwarnings("ignore")  # the converters' own
@pytest.mark.parametrize("format", ["tf_saved_model", "onnx"])
def test_a_pyramid_of_ones_own_is_exported(format, trained_pyramid, tmp_path):
    for package in deploy.FORMATS[format].packages:
        pytest.importorskip(package)
    names = [f"digit {i}" for i in range(10)]
    path = deploy.export(trained_pyramid, tmp_path / "p", format, class_names=names)
    assert path.exists()  # and compared with the model by the runtime that serves it
