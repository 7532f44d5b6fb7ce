"""Layers that Keras writes as many operations, in the forms that ONNX Runtime knows.

Each function is what tf2onnx calls a rewriter: it takes tf2onnx's graph, while that
still has TensorFlow's operations, changes it and returns the operations.
"""

import itertools

import numpy as np
from onnx import TensorProto
from tf2onnx.graph_matcher import GraphMatcher, OpTypePattern
from tf2onnx.utils import make_name


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
            if _is_layer_norm(graph, match):
                mean, end = match.get_op("mean"), match.get_op("end")
                channels = graph.get_shape(mean.input[0])[-1]
                gamma = _numbers(match, "gamma") if scaled else np.ones(channels)
                beta = [_numbers(match, "beta")] if centred else []
                epsilon = float(_numbers(match, "epsilon")[0])
                inputs = mean.input[0], gamma, *beta
                options = {"axis": -1, "epsilon": epsilon}
                _replace(graph, end, "LayerNormalization", *inputs, attr=options)
    return operations


def gelus(graph, operations):
    """Write each GELU by erf as `x * (1 + erf(x / sqrt(2))) * 0.5`.

    It stays as many nodes in the file: ONNX Runtime makes one of this form.

    Args:
        graph: The graph.
        operations: Its operations.

    Returns:
        The operations.
    """
    for match in _matches(_gelu(), operations):
        if _is_gelu(graph, match):
            x, end = match.get_tensor("x"), match.get_op("end")
            erf = _node(graph, end, "Erf", _node(graph, end, "Div", x, 2**0.5))
            product = _node(graph, end, "Mul", x, _node(graph, end, "Add", erf, 1.0))
            _replace(graph, end, "Mul", product, 0.5)
    return operations


def _layer_norm(scaled, centred):
    mean = _op("Mean", _op("*"), _op("Const", name="axes"), name="mean")
    apart = _op("SquaredDifference", _op("*", name="x1"), _op("StopGradient", mean))
    variance = _op("Mean", apart, _op("Const", name="axes2"), name="variance")
    variance = _op("AddV2", variance, _op("Const", name="epsilon"))
    inverse, again = {"name": "inverse1"}, {"name": "inverse2"}
    if scaled:
        gamma = _op("Const", name="gamma")
        inverse = _op("Mul", _op("Rsqrt", variance), gamma, **inverse)
        again = _op("Mul", **again)
    else:
        inverse, again = _op("Rsqrt", variance, **inverse), _op("Rsqrt", **again)
    shift = _op("Mul", _op("Neg", _op("Mean", name="mean2")), again)
    if centred:
        shift = _op("AddV2", shift, _op("Const", name="beta"))
    return _op("AddV2", _op("Mul", _op("*", name="x2"), inverse), shift, name="end")


def _is_layer_norm(graph, match):
    """Whether what matches, operation by operation, is one in its numbers too."""
    mean = match.get_op("mean")
    x, shape = mean.input[0], graph.get_shape(mean.input[0])
    if not shape or shape[-1] < 1 or not _is_float32(graph, match):
        return False
    if {match.get_tensor(name) for name in ("x1", "x2")} != {x}:
        return False
    for name, other in (("mean", "mean2"), ("inverse1", "inverse2")):
        if match.get_op(name) is not match.get_op(other):
            return False
    for name in ("mean", "variance"):
        kept = graph.get_shape(match.get_op(name).output[0])
        if kept is None or kept[-1:] != [1]:
            return False
    for name in ("axes", "axes2"):
        if _numbers(match, name).tolist() not in ([-1], [len(shape) - 1]):
            return False
    sizes = {"gamma": shape[-1], "beta": shape[-1], "epsilon": 1}
    return all(
        match.get_op(name) is None or _numbers(match, name).size == size
        for name, size in sizes.items()
    )


def _gelu():
    erf = _op("Erf", _op("Mul", _op("*", name="x1"), _op("Const", name="root")))
    half = _op("Mul", _op("Const", name="half"), _op("*", name="x"))
    return _op("Mul", half, _op("AddV2", erf, _op("Const", name="one")), name="end")


def _is_gelu(graph, match):
    numbers = [_numbers(match, name) for name in ("half", "root", "one")]
    return (
        match.get_tensor("x1") == match.get_tensor("x")
        and all(number.size == 1 for number in numbers)
        and np.allclose(np.concatenate(numbers), [0.5, 0.5**0.5, 1])
        and _is_float32(graph, match)
    )


def _is_float32(graph, match):
    return graph.get_dtype(match.get_op("end").output[0]) == TensorProto.FLOAT


def _op(kind, *inputs, name=None):
    return OpTypePattern(kind, name=name, inputs=list(inputs))


def _matches(pattern, operations):
    """Return the matches, the last one first: a replacement changes what follows it."""
    matches = GraphMatcher(pattern, allow_reorder=True).match_ops(operations)
    return reversed(list(matches))


def _numbers(match, name):
    return np.ravel(match.get_op(name).get_tensor_value())


def _node(graph, end, kind, *inputs, **options):
    """Return the output of a new node, of the shape of the one that it stands for."""
    names = [
        x
        if isinstance(x, str)
        else graph.make_const(make_name(end.name), np.array(x, "float32")).output[0]
        for x in inputs
    ]
    shapes, dtypes = [graph.get_shape(end.output[0])], [graph.get_dtype(end.output[0])]
    options |= {"shapes": shapes, "dtypes": dtypes}
    return graph.make_node(kind, names, op_name_scope=end.name, **options).output[0]


def _replace(graph, end, kind, *inputs, **options):
    new = _node(graph, end, kind, *inputs, **options)
    graph.replace_all_inputs(end.output[0], new)
