"""What Keras writes as many operations, in the form that ONNX Runtime computes at once.

Functions for tf2onnx, which calls them with its graph, of TensorFlow's operations
still, and expects these operations back.
"""

import itertools

import numpy as np
from tf2onnx.graph_matcher import GraphMatcher, OpTypePattern


def layer_norms(graph, operations):
    """Write each LayerNormalization over the last axis as one node.

    Keras computes `x * inverse + (beta - mean * inverse)`.

    Args:
        graph: The graph.
        operations: Its operations.

    Returns:
        The operations.
    """
    for scaled, centred in itertools.product((True, False), repeat=2):
        for match in _matches(_layer_norm(scaled, centred), operations):
            mean, end = match.get_op("mean"), match.get_op("end")
            x, shape = mean.input[0], graph.get_shape(mean.input[0])
            last = [len(shape) - 1], [-1]
            if not (
                {match.get_tensor(name) for name in ("x1", "x2")} == {x}
                and match.get_op("mean2") is mean
                and all(
                    _values(match.get_op(name).inputs[1]) in last
                    and graph.get_shape(match.get_op(name).output[0])[-1] == 1
                    for name in ("mean", "variance")
                )
            ):
                continue
            gamma, beta = match.get_op("gamma"), match.get_op("beta")
            gamma = _values(gamma) if scaled else [1.0] * shape[-1]
            beta = [_values(beta)] if centred else []
            if any(len(each) != shape[-1] for each in (gamma, *beta)):
                continue
            epsilon = float(match.get_op("epsilon").get_tensor_value())
            options = {"axis": -1, "epsilon": epsilon}
            _replace(graph, end, "LayerNormalization", x, gamma, *beta, attr=options)
    return operations


def gelus(graph, operations):
    """Write each GELU by erf as the division and the products that are known.

    Args:
        graph: The graph.
        operations: Its operations.

    Returns:
        The operations.
    """
    for match in _matches(_gelu(), operations):
        x, end = match.get_tensor("x"), match.get_op("end")
        names = "half", "root", "one"
        numbers = [match.get_op(name).get_tensor_value() for name in names]
        if match.get_tensor("x1") != x or not np.allclose(numbers, [0.5, 0.5**0.5, 1]):
            continue
        erf = _node(graph, end, "Erf", _node(graph, end, "Div", x, 2**0.5))
        product = _node(graph, end, "Mul", x, _node(graph, end, "Add", erf, 1.0))
        _replace(graph, end, "Mul", product, _constant(graph, end, 0.5))
    return operations


def _layer_norm(scaled, centred):
    x1, x2 = _op("*", name="x1"), _op("*", name="x2")
    mean = _op("Mean", _op("*"), _op("Const"), name="mean")
    apart = _op("SquaredDifference", x1, _op("StopGradient", mean))
    variance = _op("Mean", apart, _op("Const"), name="variance")
    inverse = _op("Rsqrt", _op("AddV2", variance, _op("Const", name="epsilon")))
    if scaled:
        inverse = _op("Mul", inverse, _op("Const", name="gamma"))
    shift = _op("Mul", _op("Neg", _op("Mean", name="mean2")), inverse)
    if centred:
        shift = _op("AddV2", shift, _op("Const", name="beta"))
    return _op("AddV2", _op("Mul", x2, inverse), shift, name="end")


def _gelu():
    half, root = _op("Const", name="half"), _op("Const", name="root")
    erf = _op("Erf", _op("Mul", _op("*", name="x1"), root))
    half = _op("Mul", half, _op("*", name="x"))
    return _op("Mul", half, _op("AddV2", erf, _op("Const", name="one")), name="end")


def _op(kind, *inputs, name=None):
    return OpTypePattern(kind, name=name, inputs=list(inputs))


def _matches(pattern, operations):
    return list(GraphMatcher(pattern, allow_reorder=True).match_ops(operations))


def _values(constant):
    return np.ravel(constant.get_tensor_value()).tolist()


def _constant(graph, end, value):
    name = f"{end.name}_{len(graph.get_nodes())}"
    return graph.make_const(name, np.array(value, "float32")).output[0]


def _node(graph, end, kind, *inputs, **options):
    """Return the output of a new node, of the shape of the one that it stands for."""
    names = [x if isinstance(x, str) else _constant(graph, end, x) for x in inputs]
    shapes, dtypes = [graph.get_shape(end.output[0])], [graph.get_dtype(end.output[0])]
    options |= {"shapes": shapes, "dtypes": dtypes}
    return graph.make_node(kind, names, op_name_scope=end.name, **options).output[0]


def _replace(graph, end, kind, *inputs, **options):
    new = _node(graph, end, kind, *inputs, **options)
    graph.replace_all_inputs(end.output[0], new)
