"""The calls that a functional model is made of."""

import keras


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
        history = tensor._keras_history
        node = history.operation._inbound_nodes[history.node_index]
        if id(node) not in found:
            found[id(node)] = node
            queue += node.input_tensors
    return [
        node
        for node in found.values()
        if not isinstance(node.operation, keras.layers.InputLayer)
    ]
