"""`fit` on any classifier and any data: what it writes, how it goes on."""

import dataclasses
import importlib.util
import json
import os
import signal

import keras
import numpy as np
import pyramid
import pytest
from conftest import ROOT, tiny

from keras_lkca import LKCANet, data, deploy, interpret, predict
from keras_lkca.training import (
    Recipe,
    callbacks,
    evaluate,
    finishing,
    fit,
    sources,
    train,
)


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


class Subclassed(keras.Model):
    """A model whose shapes Keras does not tell."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(10)

    def call(self, images):
        return self.dense(keras.ops.reshape(images, (-1, 64)))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_file_among_those_held_out_that_cannot_be_decoded_is_named(
    split, rng, tmp_path, monkeypatch
):
    """When it is met, where they take too much to be held in memory."""
    Image = pytest.importorskip("PIL.Image")
    pixels = rng.integers(0, 256, (9, 8, 8, 3)).astype("uint8")
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{index}.png")
    (tmp_path / "6.png").write_bytes(b"no image")
    files = data.ImageFiles(sorted(tmp_path.glob("*.png")), 8)
    labels = np.arange(9) % 2
    options = {split: (files, labels), "recipe": quick(epochs=1, batch_size=4)}
    named = r"1 of \d files cannot be decoded:\n.*6.png"
    for limit, kept in ((2**30, False), (0, split == "test")):
        monkeypatch.setattr(sources, "HELD_BYTES", limit)
        output = tmp_path / str(limit)
        with pytest.raises(ValueError, match=named):
            model = LKCANet((8, 8, 3), 2, patch_size=4, embed_dim=8, depth=1)
            fit(model, (pixels, labels), output=output, **options)
        assert (output / "last.keras").exists() == kept


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


@pytest.mark.once
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


@pytest.mark.once
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


@pytest.mark.once
@pytest.mark.parametrize("pipeline", data.PIPELINES)
def test_class_weights_are_kept_and_compared(pipeline, tmp_path):
    images, labels = data.digits()
    names = [f"digit {i}" for i in range(10)]
    options = {"validation": np.float32(0.1), "recipe": quick(), "pipeline": pipeline}
    options |= {"seed": np.int64(3), "steps_per_epoch": np.int64(4)}
    given = {"digit 0": 40, "9": 0.0, 1: np.float32(0.5)}
    rows = {}
    for name, class_weight in (("none", None), ("some", given), ("even", "balanced")):
        model, output = tiny(class_names=names), tmp_path / name
        fit(
            model, (images, labels), output=output, class_weight=class_weight, **options
        )
        rows[name] = callbacks.read_history(output / "history.csv")
    kept = json.loads((tmp_path / "some" / "config.json").read_text())["arguments"]
    assert kept["class_weight"] == [40.0, 0.5, *[1.0] * 7, 0.0] and kept["seed"] == 3
    # What weighs much raises the loss of the training, not that of the validation.
    assert rows["some"][0]["loss"] > 2 * rows["none"][0]["loss"]
    assert rows["some"][0]["val_loss"] < 2 * rows["none"][0]["val_loss"]
    assert rows["even"][0]["loss"] == pytest.approx(rows["none"][0]["loss"], rel=0.3)
    resume = {"output": tmp_path / "some", "resume": True, "validation": 0.1}
    fit(tiny(class_names=names), data.digits(), class_weight=given, **resume)
    fit(tiny(class_names=names), data.digits(), **resume)
    with pytest.raises(
        ValueError, match="`class_weight` of the run to resume is .40.0"
    ):
        fit(tiny(class_names=names), data.digits(), class_weight="balanced", **resume)
    with pytest.raises(ValueError, match="name classes, 0 to 9 or of digit 0, digit 1"):
        fit(tiny(class_names=names), data.digits(), class_weight={"cat": 1})


def test_a_dataset_with_weights_is_taken(tmp_path):
    images, labels = data.digits()
    own = [
        (images[i : i + 50], labels[i : i + 50], np.full(50, weight))
        for i, weight in ((0, 1.0), (50, 0.0), (100, 1.0))
    ]
    losses = []
    for name, train_on in (("own", own), ("plain", [batch[:2] for batch in own])):
        keras.utils.set_random_seed(0)
        run = tmp_path / name
        options = {"recipe": quick(epochs=1, learning_rate=1e-6), "output": run}
        fit(tiny(), train_on, own, class_weight={0: 1.0}, **options)
        losses.append(callbacks.read_history(run / "history.csv")[0])
    # Two thirds of the images count.
    assert losses[0]["loss"] == pytest.approx(losses[1]["loss"] * 2 / 3, rel=0.05)
    assert losses[0]["val_loss"] == pytest.approx(losses[1]["val_loss"], rel=0.01)
    with pytest.raises(ValueError, match="'balanced' needs arrays"):
        fit(tiny(), own, class_weight="balanced", output=tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("columns", "activation"), [(1, "sigmoid"), (1, None), (3, "sigmoid"), (3, None)]
)
def test_yes_or_no_and_several_labels(columns, activation, tmp_path):
    (images, y), (test_images, test_y) = data.digits(), data.digits("test")
    labels, test_labels = (
        np.stack([z > 4, z % 2, z == 0], 1).astype("int32") if columns > 1 else z > 4
        for z in (y, test_y)
    )
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(columns, activation)(x))
    metrics = fit(
        *(model, (images, labels), 0.1, (test_images, test_labels)),
        recipe=quick(
            epochs=4, learning_rate=3e-2, label_smoothing=0.0, mix_probability=0.1
        ),
        output=tmp_path / "run",
        class_weight={0: 1.5} if columns == 1 else None,
    )
    row = callbacks.read_history(tmp_path / "run" / "history.csv")[-1]
    loaded = keras.models.load_model(tmp_path / "run" / "last.keras")
    expected = test_labels.astype("float32").reshape(len(test_y), -1)
    kept = loaded.evaluate(test_images, expected, verbose=0, return_dict=True)
    scores, confusion = evaluate(model, test_images, test_labels)
    for name, value in scores.items():
        assert metrics["last"][name] == pytest.approx(value, rel=1e-5)
    for name, value in scores.items():
        key = name.removeprefix("test_")
        if key == "ece":  # which Keras has not
            continue
        assert value == pytest.approx(kept[key], abs=2e-3) and f"val_{key}" in row
    assert ("test_auc" in scores) == (columns > 1)
    assert scores["test_accuracy"] > (0.6 if columns == 1 else 0.75)
    assert confusion.shape == ((2, 2) if columns == 1 else (3, 2, 2))
    right = np.trace(confusion, axis1=-2, axis2=-1).sum() / confusion.sum()
    assert right == pytest.approx(scores["test_accuracy"])
    names = list(metrics["best_per_class_accuracy"])
    assert names == (["0", "1"] if columns == 1 else ["0", "1", "2"])
    with pytest.raises(ValueError, match="`labels` must"):
        evaluate(model, test_images, test_y)
    if columns > 1:
        with pytest.raises(
            ValueError, match="`class_weight` needs labels of one class"
        ):
            run = tmp_path / "no"
            fit(model, (images, labels), class_weight={0: 2}, output=run)


@pytest.mark.once
def test_images_that_were_divided_are_noticed_once(tmp_path):
    images, labels = data.digits()
    divided = images.astype("float32") / 255
    own = [(divided[:64], labels[:64])]
    inputs = keras.Input((8, 8, 1))
    outer = keras.Model(inputs, keras.ops.softmax(tiny()(inputs)))
    resized = keras.Sequential(
        [keras.Input((None, None, 1)), keras.layers.Resizing(8, 8)]
    )
    resized.add(tiny())
    message = "The values of `{}` lie between 0 and 1, .*in \\[0, 255\\]"
    options = {"recipe": quick(epochs=1, batch_size=64), "steps_per_epoch": 1}
    for number, (train_on, held_out, name) in enumerate(
        (
            ((divided, labels), (divided, labels), r"train\[0\]"),
            (own, (divided, labels), r"validation\[0\]"),
            (own, (images, labels), "train"),
        )
    ):
        with pytest.warns(UserWarning, match=message.format(name)) as seen:
            output = tmp_path / str(number)
            fit(tiny(), train_on, held_out, output=output, **options)
        assert sum("The values of" in str(one.message) for one in seen) == 1
    for model in (tiny(), outer, resized):
        for call in (
            lambda m, x: predict(m, x),
            lambda m, x: evaluate(m, x, labels[:9]),
        ):
            with pytest.warns(UserWarning, match=message.format("images")) as seen:
                call(model, divided[:9])
            (one,) = (one for one in seen if "The values of" in str(one.message))
            assert one.filename == __file__
    # None of these is.
    scaled = keras.Sequential([inputs, keras.layers.Rescaling(255.0), tiny()])
    plain = keras.Sequential([inputs, keras.layers.Flatten(), keras.layers.Dense(10)])
    for model, x in (
        (tiny(), images[:9] // 255),
        (tiny(), images[:9].astype("float32")),
        (tiny(), np.zeros((9, 8, 8, 1), "float32")),
        (tiny(), images[:9].astype("float32") * 1.05 - 6),  # as where they are resized
        (tiny(), images[:9].astype("int64")),
        (scaled, divided[:9]),
        (plain, divided[:9]),
    ):
        evaluate(model, x, labels[:9])
        predict(model, x)


@pytest.mark.once
@pytest.mark.parametrize(
    ("scaled", "message"),
    [
        (lambda x: x / 127.5 - 1, "lie between -1 and 1, as if they were normalised"),
        (
            lambda x: (x / 255 - 0.45) / 0.22,
            "-2.05 and 2.5, as if they were normalised",
        ),
        (lambda x: x - 128.0, "between -128 and 127, as if they were normalised"),
        (
            lambda x: x.astype("uint16") * 257,
            "6.55e.04, as if they were of more than 8 b",
        ),
    ],
)
def test_images_that_were_scaled_otherwise_are_noticed(scaled, message):
    images, labels = data.digits("test")
    for call in (predict, lambda m, x: evaluate(m, x, labels[:9])):
        with pytest.warns(UserWarning, match=message):
            call(tiny(), scaled(images[:9]))


@pytest.mark.once
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_that_are_no_numbers_are_refused(value, tmp_path):
    images, labels = data.digits()
    bad = images[:64].astype("float32")
    bad[3, 2, 1] = value
    good = images[:64], labels[:64]
    options = {"recipe": quick(epochs=1), "output": tmp_path / "run"}
    bad_labels = np.eye(10)[labels[:64]]
    bad_labels[5] = value
    model = tiny()
    for call in (
        lambda: predict(model, bad),
        lambda: predict(model, bad[3]),
        lambda: evaluate(model, bad, labels[:64]),
        lambda: interpret.saliency(model, bad[3]),
        lambda: interpret.effective_receptive_field(model, bad),
        lambda: fit(tiny(), (bad, labels[:64]), **options),
        lambda: fit(tiny(), good, (bad, labels[:64]), **options),
        lambda: fit(tiny(), good, test=(bad, labels[:64]), **options),
        lambda: fit(tiny(), (images[:64], bad_labels), **options),
        lambda: evaluate(model, images[:64], bad_labels),
        lambda: next(data.training_batches(bad, labels[:64], 8, 10)),
        lambda: next(data.dataset_batches([(bad, labels[:64])], 10, 1)),
        lambda: deploy.export(
            *(model, tmp_path / "x", "litert"), quantize="int8", calibration_images=bad
        ),
    ):
        with pytest.raises(ValueError, match="must be finite numbers.*NaN or infin"):
            call()
    assert not list(tmp_path.iterdir())


@pytest.mark.once
def test_two_classes_of_one_name_are_told_apart(tmp_path):
    names = ["crane", "crane", *map(str, range(2, 10))]
    model = tiny(class_names=names)
    images, labels = data.digits()
    options = {"recipe": quick(epochs=1), "output": tmp_path / "run"}
    train = images[:64], labels[:64]
    with pytest.raises(ValueError, match="must name each class once; 'crane' stands"):
        fit(model, train, class_weight={"crane": 2.0}, **options)
    with pytest.raises(ValueError, match="must name each class once; '4' stands"):
        fit(model, train, class_weight={4: 2.0, "4": 3.0}, **options)
    with pytest.raises(ValueError, match="`class_index` must be a class, .*'crane'"):
        interpret.saliency(model, images[0], "crane")
    metrics = fit(model, train, test=train, class_weight={0: 2.0}, **options)
    found = metrics["best_per_class_accuracy"]
    assert list(found)[:3] == ["crane (0)", "crane (1)", "2"] and len(found) == 10


@pytest.mark.once
def test_names_of_a_run_that_are_no_utf_8(tmp_path, capsys):
    name = os.fsdecode(b"caf\xe9 $1")
    test = data.digits("test")
    options = {"recipe": quick(epochs=1), "steps_per_epoch": 1, "name": name}
    try:
        (tmp_path / name).mkdir()
    except (OSError, UnicodeError):
        pytest.skip("the file system takes no such names")
    model = tiny(class_names=[f"{name} {i}" for i in range(10)])
    fit(model, test, test=test, output=tmp_path / name, **options)
    fit(model, test, test=test, output=tmp_path / name, resume=True, **options)
    out = capsys.readouterr().out
    assert r"caf\xe9 $1: 731 parameters" in out and r"/caf\xe9 $1 is complete" in out
    interpret.report(model, test[0][:2], tmp_path / name / "a.html", title=name)
    assert r"<h1>caf\xe9 $1: " in (tmp_path / name / "a.html").read_text("utf-8")


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


@pytest.mark.once
def test_what_the_end_needs_is_asked_at_the_beginning(tmp_path):
    base, test = tiny(), data.digits("test")
    model = keras.Model(base.input, Halved()(base.output))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    options = {"recipe": quick(epochs=1), "steps_per_epoch": 2}
    with pytest.raises(ValueError, match="`test` cannot be evaluated: `model` must en"):
        fit(model, data.digits(), test=test, output=tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()
    fit(model, data.digits(), test, output=tmp_path / "a", **options)
    assert model.count_params() and (tmp_path / "a" / "metrics.json").exists()
    # Labels of which an image has shares are evaluated and validate.
    shares = np.eye(10)[test[1]] * 0.7 + 0.03
    soft = (test[0], shares)
    metrics = fit(base, data.digits(), soft, soft, output=tmp_path / "b", **options)
    scores, _ = evaluate(base, *test)
    assert metrics["last"]["test_accuracy"] == scores["test_accuracy"]


@pytest.mark.once
@pytest.mark.parametrize("kind", [list, tuple])
def test_two_batches_are_no_pair(kind, tmp_path):
    images, labels = data.digits()
    own = kind(kind((images[i : i + 32], labels[i : i + 32])) for i in (0, 32))
    options = {"recipe": quick(epochs=1), "output": tmp_path / "run"}
    metrics = fit(tiny(), own, own, [*own], **options)
    assert metrics["images"] == {"train": None, "validation": 64, "test": 64}


def test_without_validation_the_last_epoch_is_the_best(tmp_path):
    metrics = fit(tiny(), data.digits(), recipe=quick(), output=tmp_path / "run")
    assert metrics["best"] == metrics["last"] == {"epoch": 2}
    assert "nothing" in metrics["best_epoch_chosen_on"]
    best, last = (tmp_path / "run" / f"{x}.keras" for x in ("best", "last"))
    assert best.read_bytes() == last.read_bytes()


@pytest.mark.once
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
    after = 1

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.after:
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


class Figures(keras.callbacks.Callback):
    """Validation that comes out as told: the second epoch is the best of six."""

    def on_epoch_end(self, epoch, logs=None):
        logs["val_accuracy"] = (0.1, 0.5, 0.2, 0.5, 0.3, 0.4)[epoch]


@pytest.fixture
def undrawn(monkeypatch):
    """Without pictures, which take longer than such runs."""
    monkeypatch.setattr(finishing, "draw", lambda *arguments: None)


@pytest.mark.once
def test_a_run_without_progress_stops_early(tmp_path, monkeypatch, capsys, undrawn):
    monkeypatch.setattr(Recipe, "callbacks", lambda self: [Figures()])

    def run(name, validation=0.1, **options):
        keras.utils.set_random_seed(1)
        options |= {"steps_per_epoch": 2, "output": tmp_path / name}
        metrics = fit(tiny(), data.digits(), validation, **options)
        return metrics["epochs"], metrics["best"]["epoch"], metrics["stopped_early"]

    recipe = quick(epochs=6, patience=2)
    assert run("whole", recipe=recipe) == (4, 2, True)
    assert "stopped early: no better epoch since 2" in capsys.readouterr().out
    # Also one that was stopped while it waited, or when it had waited enough.
    stop = StopBeforeTheSecondEpoch()
    stop.after = 3
    with pytest.raises(Stop):
        run("stopped", recipe=recipe, extra_callbacks=[stop])
    assert run("stopped", resume=True) == (4, 2, True)
    (tmp_path / "whole" / "metrics.json").unlink()
    assert run("whole", resume=True) == (4, 2, True)
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")
    # Epochs of the classifier alone do not count, if others come after.
    assert run("frozen", recipe=recipe, freeze=3) == (5, 2, True)
    assert run("long", recipe=quick(epochs=4, patience=2)) == (4, 2, False)
    with pytest.raises(ValueError, match="`patience` of the recipe needs `valid.*=2"):
        run("none", validation=None, recipe=recipe)
    assert not (tmp_path / "none").exists()


# A backbone that stays as it is at first


def net(**arguments):
    """A model with BatchNormalization and stochastic depth, in part frozen."""
    options = {"patch_size": 2, "stem_filters": (4,), "embed_dim": 8, "depth": 1}
    model = LKCANet((8, 8, 1), num_kernels=2, **{**options, **arguments})
    model.get_layer("positions").trainable = False
    return model


def flags(model):
    return {layer.name: layer.trainable for layer in model.layers}


class Weights(keras.callbacks.Callback):
    """Note the weights after every epoch."""

    def on_train_begin(self, logs=None):
        self.__dict__.setdefault("seen", [self.noted()])

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(self.noted())

    def noted(self):
        return {
            weight.path: keras.ops.convert_to_numpy(weight).copy()
            for weight in self.model.weights
        }

    def changed(self, first, second):
        a, b = self.seen[first], self.seen[second]
        return {
            path.split("/")[0] for path in a if not np.array_equal(a[path], b[path])
        }


def test_the_classifier_is_trained_alone_at_first(tmp_path, capsys):
    weights, model = Weights(), net()
    before, run = flags(model), tmp_path / "run"
    recipe = quick(epochs=4, mix_probability=0.5)
    options = {"steps_per_epoch": 3, "output": run, "extra_callbacks": [weights]}
    fit(model, data.digits(), 0.1, recipe=recipe, freeze=2, **options)
    assert "trained alone up to epoch 2\nepoch 1/4" in capsys.readouterr().out
    assert weights.changed(0, 2) == {"classifier"}
    # Then everything, statistics too, but for what was frozen by hand.
    everything = {path.split("/")[0] for path in weights.seen[0]}
    assert weights.changed(2, 4) == everything - {"positions"}
    assert flags(model) == before and not before["positions"]
    # At the rates of one run, by an optimizer that begins anew.
    rates = [x["learning_rate"] for x in callbacks.read_history(run / "history.csv")]
    schedule = recipe.schedule(12)
    expected = [float(schedule(step)) for step in (3, 6, 9, 12)]
    np.testing.assert_allclose(rates, expected, rtol=1e-4)
    last = keras.models.load_model(run / "last.keras")
    assert flags(last) == before and int(last.optimizer.iterations) == 6
    assert json.loads((run / "config.json").read_text())["arguments"]["freeze"] == 2


@pytest.mark.parametrize("momentum", [None, 0.5])
def test_the_classifier_is_trained_alone_all_along(momentum, tmp_path, undrawn):
    """And what is kept of it has the flags of before, and can be trained on."""
    weights, own = Weights(), net()
    inputs = keras.Input((8, 8, 1))
    model = keras.Model(inputs, keras.layers.Softmax()(own(inputs)))
    before, run = flags(own), tmp_path / "run"
    recipe = quick(ema_momentum=momentum, learning_rate=0.02)
    options = {"steps_per_epoch": 3, "output": run, "recipe": recipe}
    options["extra_callbacks"] = [weights]
    fit(model, data.digits(), 0.1, freeze="backbone", **options)
    assert weights.changed(0, 2) == {"classifier"} == weights.changed(1, 2)
    assert flags(own) == before
    for name in ("best", "last"):  # without a warning
        kept = keras.models.load_model(run / f"{name}.keras")
        assert flags(kept.get_layer(own.name)) == before
        assert callbacks.epoch_of(run / f"{name}.keras") in (1, 2)
    for a, b in zip(kept.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    images, labels = data.digits("test")
    loss = model.train_on_batch(images[:9], np.eye(10)[labels[:9]])
    assert np.isfinite(loss).all()


def test_a_frozen_run_is_stopped_and_goes_on(tmp_path, undrawn):
    """While the classifier is alone, where it is no more, and after it."""

    def run(name, freeze=2, **options):
        keras.utils.set_random_seed(1)
        recipe = quick(epochs=4, ema_momentum=0.5, mix_probability=0.5, layer_decay=0.7)
        options |= {"freeze": freeze, "recipe": recipe, "steps_per_epoch": 2}
        return fit(net(), data.digits(), 0.1, output=tmp_path / name, **options)

    whole = run("whole")
    last = keras.models.load_model(tmp_path / "whole" / "last.keras")
    assert [int(x.iterations) for x in last.optimizer.optimizers] == [4, 4, 4]
    rows = callbacks.read_history(tmp_path / "whole" / "history.csv")
    # Under the others each one compiles for a quarter of a minute.
    for after in "123" if keras.config.backend() == "torch" else "1":
        stop = StopBeforeTheSecondEpoch()
        stop.after = int(after)
        with pytest.raises(Stop):
            run(after, extra_callbacks=[stop])
        metrics = run(after, resume=True)
        assert_same_weights(tmp_path / "whole", tmp_path / after)
        again = callbacks.read_history(tmp_path / after / "history.csv")
        for a, b in zip(rows, again, strict=True):
            for name in ("loss", "val_loss", "learning_rate"):
                assert a[name] == pytest.approx(b[name], rel=1e-5), name
        assert metrics["best"] == whole["best"]
    with pytest.raises(ValueError, match="`freeze` of the run to resume is 2"):
        run("1", freeze="backbone", resume=True)


@pytest.mark.once
def test_what_cannot_be_frozen(tmp_path):
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(10, 8)(inputs)
    headless = keras.Model(inputs, keras.layers.Flatten()(x))
    frozen, compiled = net(), net()
    frozen.get_layer("classifier").trainable = False
    compiled.compile("adam", "categorical_crossentropy")
    for model, freeze, message in (
        (net(), 2, "between 1 and 1 in a run of 2, or None. Received: freeze=2"),
        (net(), 0, "`freeze` must be 'backbone'.*freeze=0"),
        (net(), True, "`freeze` must be 'backbone'.*freeze=True"),
        (net(), "head", "`freeze` must be 'backbone'.*freeze='head'"),
        (headless, 1, "`freeze` needs a model that ends with a Dense layer"),
        (frozen, 1, "it is frozen itself: set.*the layer 'classifier'"),
        (compiled, 1, "`freeze` needs a model that is not compiled.*optimizer 'adam"),
    ):
        with pytest.raises(ValueError, match=message):
            options = {"recipe": quick(), "freeze": freeze, "output": tmp_path / "a"}
            fit(model, data.digits(), **options)
    assert not (tmp_path / "a").exists()


TWO_NAMES = dataclasses.replace(data.describe("digits"), class_names=("no", "yes"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "lkca"}, "`model` must map images.*str from None to None"),
        ({"model": Subclassed()}, "a functional or a Sequential.*Subclassed from None"),
        ({"train": "digits"}, "`train` must be a pair of arrays.*'digits'"),
        ({"train": 3}, "`train` must be a pair of arrays.*3"),
        (
            {"train": data.digits()[0]},
            r"`train` must be a pair.*one array of shape .1400",
        ),
        ({"train": [*data.digits()[0][:4]]}, "`train` must be a pair.*list of 4 arr"),
        ({"train": (*data.digits(), 0)}, "`train` must be a pair.*tuple of 3 arrays"),
        (
            {"test": data.digits()[0]},
            r"`test` must be a pair.*one array of shape .1400",
        ),
        ({"validation": "digits"}, "`validation` must be a pair.*'digits'"),
        ({"validation": [3]}, "`validation` must give batches.*Received: int"),
        ({"validation": []}, "`validation` must not be empty"),
        ({"validation": 1}, "`validation` must be images and labels.*validation=1"),
        ({"validation": np.float32(2)}, r"`validation` must be images.*2\.0"),
        ({"train": iter([])}, "`steps_per_epoch` is needed for a dataset whose"),
        ({"validation": 1.5}, "`validation` must be images and labels.*1.5"),
        ({"validation": 1e-5}, "`validation` must leave images on both sides"),
        ({"test": (np.zeros((4, 9, 9, 1)), np.zeros(4, int))}, "`test` must be.*8, 8"),
        ({"test": (np.zeros((4, 8, 8, 1)), np.full(4, 10))}, "between 0 and 9"),
        (
            {"test": (np.zeros((4, 8, 8, 1)), np.full((4, 10), 0.2))},
            "`test` cannot be evaluated: `labels` must be one class.*sums of 2 to 2",
        ),
        ({"facts": TWO_NAMES}, "`facts.class_names` must be 10 names.*Received: 2"),
        ({"about": {"seed": 5}}, "`about` must not hold arguments.*seed=5 to `fit`"),
        ({"recipe": "quick"}, "`recipe` must be a Recipe.*'quick'"),
        ({"class_weight": [0] * 10}, "`class_weight` must be above zero for one cl"),
        (
            {
                "class_weight": {0: 0.0, 1: 0.0},
                "train": (data.digits()[0][:64], np.arange(64) % 2),
            },
            "`class_weight` leaves no image that counts",
        ),
        (
            {"model": tiny(trainable=False)},
            "`model` has no trainable weights.*`model.trainable = True`",
        ),
        ({"seed": -1}, "`seed` must be an integer"),
        ({"pipeline": "numpy"}, "`pipeline` must be one of"),
        ({"resume": True}, "`resume` continues the run in `output`"),
        ({"resume": "no"}, "`resume` must be True or False"),
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
