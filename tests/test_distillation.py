"""What a model learns from another one's answers."""

import json

import keras
import numpy as np
import pytest
from conftest import StopAfter, quick, tiny

from keras_lkca import LKCAViT, data
from keras_lkca.__main__ import main
from keras_lkca.training import fit, train
from keras_lkca.training.distillation import Distillation, OfLabels, taught


def always(answers, activation=None):
    """A teacher that answers the same to every image, by its biases."""
    model = tiny(num_classes=len(answers), classifier_activation=activation)
    head = model.get_layer("classifier")
    head.set_weights([np.zeros((8, len(answers))), np.asarray(answers)])
    return model


def softmax(logits):
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits))


# The loss


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize("task", ["categorical", "binary", "multilabel"])
def test_the_loss_is_that_of_its_formula(task, from_logits, rng):
    columns, temperature, weight = (1 if task == "binary" else 4), 3.0, 0.7
    own, teachers = rng.normal(size=(2, 5, columns)).astype("float32")
    labels = rng.integers(0, 2, (5, columns)).astype("float32")
    if task == "categorical":
        labels = np.eye(4, dtype="float32")[rng.integers(0, 4, 5)]
        base, ending = keras.losses.CategoricalCrossentropy, softmax
    else:
        base, ending = keras.losses.BinaryCrossentropy, sigmoid
    base = base(from_logits=from_logits, label_smoothing=0.1)
    p, q = ending(teachers / temperature), ending(own / temperature)
    distance = p * np.log(p / q)
    if task == "categorical":
        distance = distance.sum(-1)
    else:
        distance = (distance + (1 - p) * np.log((1 - p) / (1 - q))).mean(-1)
    outputs = own if from_logits else ending(own)
    hard = float(base(labels, outputs))
    loss = Distillation(base, weight, temperature, task, from_logits)
    found = float(loss(np.concatenate([labels, p], 1), outputs))
    expected = (1 - weight) * hard + weight * temperature**2 * distance.mean()
    assert found == pytest.approx(expected, rel=1e-4)
    # Validation has no answers.
    assert float(loss(labels, outputs)) == pytest.approx(hard, rel=1e-6)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    both = np.concatenate([labels, p], 1)
    assert float(again(both, outputs)) == pytest.approx(found, rel=1e-6)


def test_metrics_are_of_the_labels():
    metric = OfLabels(keras.metrics.TopKCategoricalAccuracy(2, name="top2"))
    metric.update_state([[1, 0, 0, 0.0, 0.5, 0.5]], [[0.1, 0.7, 0.2]])
    assert (metric.name, float(metric.result())) == ("top2", 0.0)
    metric.reset_state()
    metric.update_state([[0, 0, 1]], [[0.1, 0.7, 0.2]])
    again = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert (again.name, float(metric.result())) == ("top2", 1.0)


# The batches


@pytest.mark.parametrize(
    ("activation", "task"),
    [(None, "categorical"), ("softmax", "categorical"), ("sigmoid", "multilabel")],
)
def test_the_answers_come_with_the_labels(activation, task):
    logits = np.array([0.0, 1.0, -2.0])
    teacher = always(logits, activation)
    images, labels = np.zeros((4, 8, 8, 1), "uint8"), np.eye(3)[[0, 1, 2, 0]]
    batches = [(images, labels), (images, labels, np.ones(4))]
    first, second = taught(batches, teacher, task, 2.0)
    answers = (softmax if task == "categorical" else sigmoid)(logits / 2)
    assert first[1].shape == (4, 6) and len(first) == 2 and len(second) == 3
    np.testing.assert_array_equal(first[1][:, :3], labels)
    np.testing.assert_allclose(first[1][:, 3:], np.tile(answers, (4, 1)), atol=1e-5)


# The training


@pytest.mark.parametrize("pipeline", ["tf.data", "arrays"])
def test_a_model_learns_the_answers_and_not_the_labels(pipeline, tmp_path):
    """At weight 1 all labels may be wrong."""
    images, labels = data.digits("train")
    small = images[:100], np.zeros(100, int)
    teacher = always(3.0 * (np.arange(10) == 7))
    before = [weight.copy() for weight in teacher.get_weights()]
    model = tiny()
    recipe = quick(epochs=12, learning_rate=0.05, distill_weight=1.0)
    fit(
        model, small, recipe=recipe, output=tmp_path, pipeline=pipeline, teacher=teacher
    )
    found = softmax(model.predict(images[:20], verbose=0) / 1.0).mean(0)
    assert found.argmax() == 7
    for a, b in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("columns", [1, 3])
def test_of_yes_and_no_and_of_several_labels(columns, tmp_path, rng):
    images = rng.integers(0, 256, (60, 8, 8, 1)).astype("uint8")
    labels = rng.integers(0, 2, (60, columns)).astype("float32")
    options = {"num_classes": columns, "classifier_activation": "sigmoid"}
    teacher, model = tiny(**options), tiny(**options)
    recipe = quick(batch_size=20, mix_probability=0.5)
    metrics = fit(
        model,
        (images, labels),
        validation=(images, labels),
        recipe=recipe,
        output=tmp_path,
        class_weight=None if columns > 1 else {1: 2.0},
        teacher=teacher,
    )
    assert 0 <= metrics["last"]["validation_accuracy"] <= 1


def test_what_is_kept_goes_on_as_without_a_break(tmp_path):
    """And the teacher must be the same."""
    images, labels = data.digits("train")
    small, recipe = (images[:100], labels[:100]), quick(epochs=3)
    teacher = always(np.arange(10.0))
    models = []
    for name in ("whole", "broken"):
        keras.utils.set_random_seed(3)
        models.append(tiny())
        stop = [StopAfter(2)] if name == "broken" else []
        options = {"recipe": recipe, "output": tmp_path / name, "teacher": teacher}
        try:
            fit(models[-1], small, **options, extra_callbacks=stop)
        except KeyboardInterrupt:
            again = tiny()
            resumed = {"output": tmp_path / name, "resume": True}
            for other in (None, always(np.arange(10.0)[::-1])):
                with pytest.raises(ValueError, match="had teacher=.*start another run"):
                    fit(again, small, **resumed, teacher=other)
            fit(again, small, **resumed, teacher=teacher)
            models[-1] = again
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    kept = keras.models.load_model(tmp_path / "whole" / "best.keras")
    assert isinstance(kept.loss, Distillation)
    loss, accuracy, *_ = kept.evaluate(
        small[0], np.eye(10)[small[1]], verbose=0, batch_size=50
    )
    assert np.isfinite(loss) and 0 <= accuracy <= 1


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("lkca.keras", "`teacher` must be a Keras model"),
        (lambda: always(np.zeros(9)), "in 10 columns of a categorical task.*of 9"),
        (lambda: tiny(classifier_activation="sigmoid"), "columns of a multilabel task"),
        (lambda: LKCAViT((16, 16, 1), patch_size=4, depth=1), "Resizing"),
        (lambda: tiny(class_names=list("9876543210")), "class 0 is '9'"),
        (
            lambda: keras.Sequential([keras.Input((8, 8, 1)), keras.layers.ReLU()]),
            "`teacher` must be a classifier",
        ),
    ],
)
def test_bad_teachers(teacher, message, tmp_path):
    images, labels = data.digits("train")
    teacher = teacher() if callable(teacher) else teacher
    output = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        model = tiny(class_names=list("0123456789"))
        fit(model, (images, labels), recipe=quick(), output=output, teacher=teacher)
    assert not output.exists()


def test_a_teacher_is_another_model(tmp_path):
    model = tiny()
    options = {"recipe": quick(epochs=1), "steps_per_epoch": 1}
    for teacher in (model, keras.Model(model.input, model.output)):
        with pytest.raises(ValueError, match="`teacher` must be another model"):
            output = tmp_path / "run"
            fit(model, data.digits("test"), output=output, teacher=teacher, **options)
    # Names that only the teacher has are no reason against it.
    named = tiny(class_names=list("abcdefghij"))
    fit(model, data.digits("test"), output=output, teacher=named, **options)


@pytest.mark.once
def test_a_teacher_may_have_moved(tmp_path, monkeypatch):
    teacher = always(np.arange(10.0))
    teacher.save(tmp_path / "teacher.keras")
    options = {"model": "lkca", "recipe": quick(epochs=2), "steps_per_epoch": 1}
    options["model_options"] = {"patch_size": 4, "depth": 1, "embed_dim": 8}
    options |= {"output": tmp_path / "run", "teacher": tmp_path / "teacher.keras"}
    stop_after_one_epoch(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train("digits", **options)
    (tmp_path / "teacher.keras").rename(tmp_path / "moved.keras")
    resumed = {"output": tmp_path / "run", "resume": True}
    with pytest.raises(FileNotFoundError, match="`teacher` must be"):
        train(**resumed)
    metrics = train(**resumed, teacher=tmp_path / "moved.keras")
    assert metrics["epochs"] == 2


def stop_after_one_epoch(monkeypatch):
    from keras_lkca.training import fitting

    def fit_and_stop(*args, **kwargs):
        monkeypatch.undo()
        return fitting.fit(*args, **kwargs, extra_callbacks=[StopAfter(1)])

    monkeypatch.setattr(fitting, "fit", fit_and_stop)


def test_a_model_that_the_user_compiled_has_no_teacher(tmp_path):
    model = tiny()
    model.compile("sgd", "categorical_crossentropy")
    with pytest.raises(
        ValueError, match="`teacher` needs a model that is not compiled"
    ):
        fit(model, data.digits("test"), output=tmp_path / "run", teacher=tiny())


def test_of_the_recipe():
    with pytest.raises(ValueError, match="`distill_temperature` must be above 0"):
        quick(distill_temperature=0)
    with pytest.raises(ValueError, match="`distill_weight`"):
        quick(distill_weight=1.5)
    for name in ("distill_weight", "distill_temperature", "dice_weight"):
        with pytest.raises(ValueError, match=f"`{name}` of the recipe is for a"):
            fit(tiny(), data.digits("test"), recipe=quick(**{name: 0.5}))


@pytest.mark.once
def test_from_the_command_line(tmp_path, capsys):
    digits = data.describe("digits")
    teacher = tiny(class_names=digits.class_names or None)
    teacher.save(tmp_path / "teacher.keras")
    command = ["train", "digits", "--model", "lkca", "--recipe", "quick", "--epochs"]
    command += ["1", "--steps-per-epoch", "2", "--model-set", "patch_size=4", "depth=1"]
    command += ["embed_dim=8"]
    output = str(tmp_path / "run")
    taught = [
        "--teacher",
        str(tmp_path / "teacher.keras"),
        "--set",
        "distill_weight=0.5",
    ]
    main([*command, *taught, "--output", output])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["arguments"]["teacher"] == str(tmp_path / "teacher.keras")
    assert config["teacher"]["parameters"] == teacher.count_params()
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["teacher"] == str(tmp_path / "teacher.keras")
    with pytest.raises(FileNotFoundError, match="`teacher` must be a `.keras` file"):
        train("digits", teacher=tmp_path / "none.keras", output=tmp_path / "other")
    with pytest.raises(ValueError, match="`teacher`.*a model in hand is for"):
        train("digits", teacher=teacher, output=tmp_path / "other")
