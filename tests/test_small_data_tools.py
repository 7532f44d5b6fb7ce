"""What is done around a training: mirroring, temperature, learning rate, teacher."""

import keras
import numpy as np
import pytest

from keras_lkca import predict
from keras_lkca.training import evaluate


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
