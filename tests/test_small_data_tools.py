"""What is done around a training: mirroring, temperature, learning rate, teacher."""

import keras
import numpy as np
import pytest
from conftest import quick, tiny

from keras_lkca import data, predict
from keras_lkca.training import (
    evaluate,
    evaluation,
    find_learning_rate,
    fit,
    fit_temperature,
    with_temperature,
)


def sided(columns, activation=None):
    """A classifier that looks at the left half of an image alone."""
    images = keras.Input((4, 4, 1))
    x = keras.layers.Cropping2D(((0, 0), (0, 2)))(images)
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(x))
    options = {"kernel_initializer": "random_normal", "activation": activation}
    return keras.Model(images, keras.layers.Dense(columns, **options)(x))


@pytest.fixture
def squares(rng):
    return rng.integers(0, 256, (20, 4, 4, 1)).astype("uint8")


# Mirroring


@pytest.mark.parametrize(
    ("columns", "activation"),
    [(3, None), (3, "softmax"), (1, None), (1, "sigmoid"), (3, "sigmoid")],
)
def test_mirroring_averages_probabilities(columns, activation, squares, rng):
    model = sided(columns, activation)
    several = columns > 1 and activation == "sigmoid"
    labels = rng.integers(0, 2, (20, columns) if several else 20)
    both = [model.predict(x, verbose=0) for x in (squares, squares[:, :, ::-1].copy())]
    if activation is None:
        ending = keras.ops.softmax if columns > 1 else keras.ops.sigmoid
        both = [keras.ops.convert_to_numpy(ending(x)) for x in both]
    expected = np.mean(both, axis=0)
    assert np.abs(both[0] - expected).max() > 0.001
    for images in (squares, squares[:, :, ::-1]):
        for row, best in zip(
            expected, predict(model, images, top=3, mirror=True), strict=True
        ):
            row = row if columns > 1 else [1 - row[0], row[0]]
            for name, probability in best:
                assert probability == pytest.approx(row[int(name)], abs=1e-5)
        scores, _ = evaluate(model, images, labels, mirror=True)
        own = expected[np.arange(20), labels] if columns > 1 and not several else None
        if own is None:
            yes = labels.reshape(expected.shape)
            own = np.where(yes, expected, 1 - expected)
        assert scores["test_loss"] == pytest.approx(-np.log(own).mean(), rel=1e-4)


def test_several_labels_of_logits_are_mirrored(squares):
    """Which the labels alone tell."""
    model = sided(3)
    labels = np.tile([1, 1, 0], (20, 1))
    both = [model.predict(x, verbose=0) for x in (squares, squares[:, :, ::-1].copy())]
    chances = np.mean([1 / (1 + np.exp(-x)) for x in both], axis=0)
    scores, _ = evaluate(model, squares, labels, mirror=True)
    assert scores["test_accuracy"] == np.mean((chances > 0.5) == labels)


# Temperature


def test_the_calibration_error_against_bins_counted_by_hand(rng):
    confidence, right = rng.random(200), rng.random(200) < 0.6
    confidence[0] = 1.0
    expected = 0
    for low in range(15):
        rows = (confidence >= low / 15) & (confidence < (low + 1) / 15)
        rows |= (confidence == 1) & (low == 14)
        if rows.any():
            gap = confidence[rows].mean() - right[rows].mean()
            expected += abs(gap) * rows.sum() / 200
    assert evaluation.calibration_error(confidence, right) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("columns", "activation"),
    [(3, None), (3, "softmax"), (1, None), (1, "sigmoid"), (3, "sigmoid")],
)
def test_a_temperature_is_found_and_kept(columns, activation, rng, tmp_path):
    """Labels drawn by probabilities, of logits that are four times as sure."""
    images = rng.integers(0, 256, (400, 4, 4, 1)).astype("uint8")
    model = sided(columns)
    logits = 8 * model.predict(images, verbose=0)
    true = 1 / (1 + np.exp(-logits))
    several = columns > 1 and activation == "sigmoid"
    if columns > 1 and not several:
        true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        labels = (rng.random((400, 1)) > true.cumsum(1)).sum(1).clip(0, 2)
    else:
        labels = (rng.random(true.shape) < true).astype(int)
    dense = model.layers[-1]
    for weight in dense.weights:
        weight.assign(32 * weight)
    if activation:
        dense = keras.layers.Activation(activation, dtype="float32")
        model = keras.Model(model.inputs, dense(model.outputs[0]))
    before = model.get_weights()
    found = fit_temperature(model, images, labels)
    assert 2.5 < found < 6
    again = with_temperature(model, found)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert fit_temperature(again, images, labels) == pytest.approx(1, abs=0.02)
    (old, _), (new, _) = (evaluate(m, images, labels) for m in (model, again))
    assert new["test_loss"] < old["test_loss"]
    assert new["test_accuracy"] == old["test_accuracy"]
    if not several:
        assert new["test_ece"] < 0.5 * old["test_ece"]
    again.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        *(m.predict(images[:5], verbose=0) for m in (loaded, again)), atol=1e-6
    )


def test_a_named_model_within_another_keeps_its_names():
    inner = tiny(class_names=[*"abcdefghij"])
    outer = keras.Sequential([keras.Input((8, 8, 1)), inner, keras.layers.Softmax()])
    images = data.digits("test")[0][:4]
    cooled = with_temperature(outer, 2)
    expected = inner.predict(images, verbose=0) / 2
    expected = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    np.testing.assert_allclose(cooled.predict(images, verbose=0), expected, rtol=1e-4)
    assert predict(cooled, images)[0][0][0] in "abcdefghij"
    assert with_temperature(inner, 2).class_names == inner.class_names


def test_where_no_temperature_can_be_found_or_kept(squares):
    model = sided(3)
    right = model.predict(squares, verbose=0).argmax(1)
    with pytest.raises(ValueError, match="`images` must be such that a temp.*20 imag"):
        fit_temperature(model, squares, right)
    pair = [m(model.inputs[0]) for m in (sided(3), sided(3))]
    average = keras.Model(model.inputs, keras.layers.Average()(pair))
    with pytest.raises(ValueError, match="must end with one Dense.*ends with Average"):
        with_temperature(average, 2)
    wide = keras.Model(model.inputs, keras.ops.softmax(keras.ops.relu(model.output)))
    with pytest.raises(ValueError, match="must end with one Dense"):
        with_temperature(wide, 2)
    for temperature in (0, -1, "warm"):
        with pytest.raises(ValueError, match="`temperature` must be"):
            with_temperature(model, temperature)


@pytest.mark.once
def test_a_run_tells_its_temperature(tmp_path):
    test = data.digits("test")
    recipe, model = quick(learning_rate=1e-2), tiny(patch_size=2, embed_dim=16)
    metrics = fit(model, data.digits(), 0.1, test, recipe, tmp_path / "run")["best"]
    model = keras.models.load_model(tmp_path / "run" / "best.keras")
    cooled = with_temperature(model, metrics["temperature"])
    for which, end in ((model, ""), (cooled, "_at_temperature")):
        scores, _ = evaluate(which, *test)
        for name in ("test_loss", "test_ece"):
            assert metrics[name + end] == pytest.approx(scores[name], abs=1e-4)
    flattered = fit(tiny(), data.digits(), test, test, recipe, tmp_path / "b")
    assert "temperature" not in flattered["last"]


# Learning rate


def test_a_learning_rate_is_found_on_a_copy(tmp_path):
    model = tiny()
    model.compile("sgd", "mse")
    before, optimizer = model.get_weights(), model.optimizer
    picture = tmp_path / "rates.png"
    found = find_learning_rate(
        model, data.digits(), quick(mix_probability=0.5), steps=60, output=picture
    )
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.optimizer is optimizer
    rates, smoothed = np.array(found["rates"]), np.array(found["smoothed"])
    assert rates[0] == pytest.approx(1e-5) and len(rates) == len(found["losses"])
    np.testing.assert_allclose(rates[1:] / rates[:-1], 1e5 ** (1 / 59))
    best = smoothed.argmin()
    assert found["learning_rate"] == pytest.approx(rates[best] / 10)
    assert 1e-4 < found["learning_rate"] < 0.1 and smoothed[best] < smoothed[0]
    assert picture.stat().st_size > 5000
    # The average by its definition, weights that add up to one.
    losses, weights = found["losses"][:5], 0.9 ** np.arange(4, -1, -1)
    assert smoothed[4] == pytest.approx(losses @ weights / weights.sum())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lowest": 0}, "`lowest` must be above 0 and below"),
        ({"lowest": 1, "highest": 0.1}, "`lowest` must be above 0 and below"),
        ({"steps": 5}, "`steps` must be an integer, 10 or above"),
        ({"output": "no/rates.png"}, "`output` must be a .png"),
        ({"output": "rates.gif"}, "`output` must be a .png"),
        ({"train": [data.digits()]}, "`train` must be a pair.*a list"),
        ({"lowest": 100, "highest": 1000, "steps": 10}, "the loss falls between"),
    ],
)
def test_where_no_learning_rate_can_be_found(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"train": data.digits(), "recipe": quick(), **arguments}
    with pytest.raises(ValueError, match=message):
        find_learning_rate(tiny(), **options)
    assert not list(tmp_path.iterdir())
