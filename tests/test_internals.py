"""Canaries: what `keras_lkca/internals.py` needs of Keras beyond its public names.

Each says what to mend when a new version of Keras breaks it.
"""

import inspect
import re

import keras
import numpy as np
import pytest
from conftest import ROOT, trained

from keras_lkca import internals, layers


def changed(name, does):
    """Return what to do where Keras no longer does as it did."""
    return (
        f"Keras {keras.version()} {does}: mend `keras_lkca.internals.{name}`, which is "
        "all that knows of it, or keep the bound of `keras` in pyproject.toml"
    )


@pytest.fixture
def graph():
    inputs = keras.Input((4, 6, 8))
    mixer = layers.LKCA(kernel_size=3, dropout_rate=0.5, seed=3, name="mixer")
    x = keras.layers.Add(name="add")([mixer(inputs), inputs])
    relu = keras.layers.ReLU(name="relu")
    inner = keras.Sequential([keras.Input((4, 6, 8)), relu], name="inner")
    return keras.Model(inputs, inner(x))


def test_calls(graph):
    does = "keeps the calls of a graph elsewhere"
    found = [call.operation.name for call in internals.calls(graph)]
    assert found == ["inner", "add", "mixer"], changed("calls", does)
    _, add, mixer = internals.calls(graph)
    assert [len(call.input_tensors) for call in (add, mixer)] == [2, 1], does
    assert mixer.arguments.args == (graph.inputs[0],), changed("calls", does)
    assert mixer.outputs[0] is add.input_tensors[0], changed("calls", does)


def test_producer(graph):
    call, index = internals.producer(graph.outputs[0])
    message = changed("producer", "keeps a tensor's history elsewhere")
    assert call.operation.name == "inner" and index == 0, message


def test_graphs(graph):
    assert [path for path, _ in internals.graphs(graph)] == ["", "inner/"]


def test_layers_by_path(graph):
    assert list(internals.layers_by_path(graph))[1:3] == ["mixer", "add"]
    assert "inner/relu" in internals.layers_by_path(graph)


def test_sublayers(graph):
    names = {layer.name for layer in internals.sublayers(graph.get_layer("mixer"))}
    message = changed("sublayers", "does not tell a layer's layers")
    assert names == {"value", "projection", "dropout"}, message
    names = {layer.name for layer in internals.sublayers(graph)}
    assert {"mixer", "value", "relu"} <= names, message


def test_is_quantized():
    layer = keras.layers.Dense(4)
    layer.build((None, 4))
    message = changed("is_quantized", "does not tell what quantize() did to a layer")
    assert not internals.is_quantized(layer), message
    layer.quantize("int8")
    assert internals.is_quantized(layer), message


def test_forget_compiled():
    """A function that was compiled holds as a constant what was no variable."""

    class Constant(keras.layers.Layer):
        value = 1.0

        def call(self, x):
            return x + self.value

    layer = Constant()
    model = keras.Sequential([keras.Input((1,)), layer])
    zeros = np.zeros((1, 1), "float32")
    model.predict(zeros, verbose=0)
    layer.value = 2.0
    internals.forget_compiled(model)
    message = changed("forget_compiled", "keeps its compiled functions elsewhere")
    assert model.predict(zeros, verbose=0) == 2, message


def test_seed_states(graph):
    (state,) = internals.seed_states(graph)
    message = changed("seed_states", "keeps the seeds of dropout in another way")
    assert tuple(state.shape) == (2,), message
    graph(np.ones((1, 4, 6, 8), "float32"), training=True)
    count = int(keras.ops.convert_to_numpy(state)[1])
    state.assign([7, 5])
    graph(np.ones((1, 4, 6, 8), "float32"), training=True)
    assert keras.ops.convert_to_numpy(state).tolist() == [7, 6], message
    assert count == 1, message


def test_in_tensorflow():
    tf = pytest.importorskip("tensorflow")
    layer = keras.layers.RandomFlip()
    message = changed("in_tensorflow", "has another backend in preprocessing layers")
    before = layer.backend.convert_to_tensor([1.0])
    with internals.in_tensorflow([layer]):
        assert tf.is_tensor(layer.backend.convert_to_tensor([1.0])), message
    assert type(layer.backend.convert_to_tensor([1.0])) is type(before), message


def test_draw():
    images = keras.ops.ones((4, 8, 8, 3))
    layer = keras.layers.RandomFlip("horizontal")
    message = changed("draw", "draws and applies random changes in another way")
    draws = []
    for _ in range(2):
        seeds = keras.random.SeedGenerator(1)
        changes = internals.draw(layer, images, seeds)
        draws.append(keras.ops.convert_to_numpy(changes["flips"]))
        assert int(keras.ops.convert_to_numpy(seeds.state.value)[1]) == 1, message
        assert layer.transform_images(images, changes, True).shape == (4, 8, 8, 3)
    np.testing.assert_array_equal(*draws, err_msg=message)


def test_solarization():
    """Pixels above the threshold turn; Keras's is lower the smaller the factor."""
    images, thresholds = np.full((1, 1, 1, 3), 250, "float32"), []
    for kind in (keras.layers.Solarization, internals.Solarization):
        layer = kind(0.0, 0.1, value_range=(0, 255))
        changes = internals.draw(layer, images, keras.random.SeedGenerator(0))
        threshold = keras.ops.convert_to_numpy(changes["thresholds"])
        thresholds.append(float(np.ravel(threshold)[0]))
    message = changed("Solarization", "has mended its layer, or draws in another way")
    assert 0 <= thresholds[0] <= 25.5, message
    assert thresholds[1] == pytest.approx(255 - thresholds[0]), message


def test_one_scale_per_matrix():
    tf = pytest.importorskip("tensorflow")
    module = tf.Module()
    function = tf.function(lambda x: x, [tf.TensorSpec((1,), tf.float32)])
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], module
    )
    name = "_experimental_disable_per_channel_quantization_for_dense_layers"
    message = f"TensorFlow {tf.__version__} has no {name}: see what replaces it, and "
    assert getattr(converter, name) is False, message + "mend internals."
    internals.one_scale_per_matrix(converter)
    assert getattr(converter, name) is True


def test_cloning_calls_what_it_is_told():
    """Not an internal, but what `deploy.fold` rests on."""
    model = trained(depth=1)
    asked = []

    def call(layer, *arguments, **options):
        asked.append(layer.name)
        return layer(*arguments, **options)

    graph = keras.Model(model.input, model.output)
    keras.models.clone_model(graph, call_function=call)
    assert asked == [layer.name for layer in model.layers[1:]], (
        f"Keras {keras.version()} clones in another order or way: mend "
        "`keras_lkca/deploy/folding.py`; files of former versions need the order"
    )


def test_nothing_internal_is_used_elsewhere():
    private = "|".join(
        [
            r"keras\.src|_keras_history|_inbound_nodes|_outbound_nodes|_flatten_layers",
            r"\.backend\.(set_backend|reset)\b|get_random_transformation",
            r"quantization_mode|(predict|test|train)_function\b|seed_generator_state",
            r"_experimental_|history\.operation",
        ]
    )
    for path in (ROOT / "keras_lkca").rglob("*.py"):
        if path.name != "internals.py":
            found = re.search(private, path.read_text())
            assert not found, f"{path}: {found[0]} belongs in keras_lkca/internals.py"


def test_each_has_its_canary():
    own = [
        name
        for name, value in vars(internals).items()
        if getattr(value, "__module__", None) == internals.__name__
    ]
    assert own
    for name in own:
        assert inspect.getdoc(getattr(internals, name))
        assert f"test_{name.lower()}" in globals(), f"write a canary for {name}"
