"""What this package needs of Keras beyond its public names, each with its reason.

A new version may change any of it. `tests/test_internals.py` tries each and says what
to do; `pyproject.toml` bounds the version to the minor one that was tried.
"""

import contextlib

import keras

# A graph: Keras publishes a model's layers, but not how they are called.


def calls(model):
    """Return a model's calls of layers and operations, the last ones first.

    Each layer counts as often as it is called in this model. A Keras tensor's history
    is what tells them, also those of a model within the model.

    Args:
        model: A functional or sequential Keras model that is built.

    Returns:
        List of Keras's nodes, each with an `operation`, `arguments`, `input_tensors`
        and `outputs`.
    """
    found, queue = {}, list(getattr(model, "outputs", None) or ())
    inputs = {id(tensor) for tensor in getattr(model, "inputs", None) or ()}
    while queue:
        tensor = queue.pop(0)
        if id(tensor) in inputs:
            continue
        node, _ = producer(tensor)
        if id(node) not in found:
            found[id(node)] = node
            queue += node.input_tensors
    return [
        node
        for node in found.values()
        if not isinstance(node.operation, keras.layers.InputLayer)
    ]


def producer(tensor):
    """Return the call that a Keras tensor comes from, and which output it is."""
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index], history.tensor_index


def graphs(model, path=""):
    """Yield a model and those within it that are graphs too, each with its path.

    The path is a prefix of its layers' names, `"backbone/"`.
    """
    yield path, model
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from graphs(layer, f"{path}{layer.name}/")


def layers_by_path(model):
    """Return the layers of a model and of models within it by path, without those."""
    return {
        path + layer.name: layer
        for path, graph in graphs(model)
        for layer in graph.layers
        if not isinstance(layer, keras.Model)
    }


def sublayers(layer):
    """Return the layers that a layer holds: Keras lists those of a model only."""
    return layer._flatten_layers(include_self=False)


# State that Keras keeps.


def is_quantized(layer):
    """Whether `quantize` changed a Dense layer, whose weights are codes then."""
    return layer.quantization_mode is not None


def forget_compiled(model):
    """Have a model compile anew: its compiled functions hold arrays as constants."""
    model.train_function = model.predict_function = model.test_function = None


def seed_states(model):
    """Return the variables of dropout's seeds, (seed, count): no file keeps them."""
    return [v for v in model.variables if v.name == "seed_generator_state"]


# Augmentation: Keras's layers draw and apply in one, with seeds of their own.


@contextlib.contextmanager
def in_tensorflow(layers):
    """Have preprocessing layers compute on TensorFlow's tensors, in its pipelines.

    They do by themselves where they are called, which these are not.
    """
    try:
        for layer in layers:
            layer.backend.set_backend("tensorflow")
        yield
    finally:
        for layer in layers:
            layer.backend.reset()


def draw(layer, images, seeds):
    """Return a preprocessing layer's random changes, drawn from the seeds given."""
    return layer.get_random_transformation(images, training=True, seed=seeds)


class Solarization(keras.layers.Solarization):
    """Turn the more pixels the larger `threshold_factor`; Keras's layer the fewer."""

    def get_random_transformation(self, data, training=True, seed=None):
        """Draw the thresholds, counted from the other end."""
        changes = super().get_random_transformation(data, training, seed)
        changes["thresholds"] = 255 - changes["thresholds"]
        return changes


# TensorFlow's.


def one_scale_per_matrix(converter):
    """Have a LiteRT converter take one scale for a matrix.

    With one for each row, its default, the scales take a tenth of the file.
    """
    converter._experimental_disable_per_channel_quantization_for_dense_layers = True
