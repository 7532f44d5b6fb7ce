"""What a forward pass costs, whatever the method."""

import math
from typing import NamedTuple

import keras

from keras_lkca.checks import check_image_shape
from keras_lkca.internals import calls
from keras_lkca.interpret.statistics import token_pairs
from keras_lkca.layers import (
    LKCA,
    ClassToken,
    FixedConv,
    PatchEmbedding,
    PositionEmbedding,
    SelfAttention,
)
from keras_lkca.ops.conv import LargeKernelConv

# Operations and layers without weights that multiply tensors by each other.
PRODUCTS = (
    *("Matmul", "Dot", "Einsum", "Tensordot", "Inner", "Outer", "Vdot", "Kron"),
    *("Conv", "ConvTranspose", "DepthwiseConv", "SeparableConv", "DotProductAttention"),
    *("Attention", "AdditiveAttention", "FFT", "FFT2", "RFFT", "Correlate"),
)


class Macs(NamedTuple):
    """Multiply-accumulates of a layer.

    `projections` are products with learned matrices and local convolutions, `mixing`
    is the sum over the other tokens, `elementwise` what is done number by number: two
    for LayerNorm, one for an activation or a weight of a softmax.
    """

    projections: int = 0
    mixing: int = 0
    elementwise: int = 0


def count_macs(model, input_shape=None) -> int:
    """Count the multiply-accumulates of one image's forward pass.

    The mixing of tokens is counted as the sum that it is, `channels` times the pairs
    of tokens within the kernel's reach, whatever method computes it in fact; softmax
    attention as its two products. The figures that papers print often leave the
    mixing out, and count the rest element by element as well: from
    `keras_lkca.interpret.macs_by_layer` either can be had.

    Args:
        model: A functional Keras model.
        input_shape: The image's (height, width, channels), for a model whose input is
            dynamic. Defaults to the model's.

    Returns:
        An integer, projections and mixing.

    Raises:
        ValueError: If `input_shape` is not the model's, its input is dynamic and
            none is given, or it has layers whose cost is not known.

    Example:

    >>> import keras_lkca
    >>> model = keras_lkca.LKCAViT.from_preset("lkca_vit_tiny", (64, 64, 3), 200)
    >>> f"{keras_lkca.count_macs(model):,}"
    '70,634,048'
    """
    counts = macs_by_layer(model, input_shape).values()
    return sum(macs.projections + macs.mixing for macs in counts)


def macs_by_layer(model, input_shape=None) -> dict[str, Macs]:
    """Count the multiply-accumulates of each layer, see `count_macs`.

    Args:
        model: Likewise.
        input_shape: Likewise.

    Returns:
        Dict of `keras_lkca.interpret.Macs` by layer, without those that cost nothing.

    Raises:
        ValueError: As `count_macs`.

    Example:

    >>> from keras_lkca import LKCAViT, interpret
    >>> model = LKCAViT.from_preset("lkca_vit_tiny", (64, 64, 3), 200)
    >>> interpret.macs_by_layer(model)["block_0_lkca"]
    Macs(projections=2367488, mixing=557056, elementwise=0)
    """
    shape = tuple(getattr(model, "input_shape", None) or ())[1:]
    if not isinstance(model, keras.Model) or len(shape) != 3:
        raise ValueError(
            f"`model` must be a functional Keras model of images. Received: {model!r}"
        )
    wanted = shape if input_shape is None else check_image_shape(input_shape)
    if None in wanted or any(
        a not in (None, b) for a, b in zip(shape, wanted, strict=True)
    ):
        raise ValueError(
            f"`input_shape` must be given and fit the model's input, {shape}. "
            f"Received: input_shape={input_shape!r}"
        )
    if None in shape:
        model = keras.models.clone_model(model, input_tensors=keras.Input(wanted))
    counts, unknown = {}, []
    _count(model, "", counts, unknown)
    if unknown:
        raise ValueError(
            "The cost of these layers is not known: " + ", ".join(sorted(set(unknown)))
        )
    return {name: macs for name, macs in counts.items() if any(macs)}


def _count(model, prefix, counts, unknown):
    for node in reversed(calls(model)):
        operation = node.operation
        if isinstance(operation, keras.Model):
            shape = node.input_tensors[0].shape[1:]
            if None in shape or not getattr(operation, "outputs", None):
                unknown.append(type(operation).__name__)
                continue
            if None in operation.input_shape[1:]:
                operation = keras.models.clone_model(
                    operation, input_tensors=keras.Input(shape)
                )
            _count(operation, f"{prefix}{operation.name}/", counts, unknown)
            continue
        macs = _call(operation, node)
        if macs is None:
            unknown.append(type(operation).__name__)
        else:
            name = prefix + operation.name
            pairs = zip(counts.get(name, Macs()), macs, strict=True)
            counts[name] = Macs(*map(sum, pairs))


def _call(layer, node):
    """Return the counts of one call of a layer, or `None` where not known."""
    shape = node.outputs[0].shape[1:]
    outputs = math.prod(size for size in shape if size is not None)
    activation = getattr(layer, "activation", None)
    activated = activation not in (None, keras.activations.linear)
    elementwise = outputs if activated else 0
    if isinstance(layer, LKCA):
        value_dim = layer.value_dim or shape[-1]
        mixing = _pairs(shape, layer.kernel) * value_dim
        if layer.gate_activation is None:
            return Macs(2 * outputs * value_dim, mixing)
        gated = outputs // shape[-1] * value_dim  # its activation and its product
        return Macs(3 * outputs * value_dim, mixing, 2 * gated)
    if isinstance(layer, FixedConv):
        return Macs(0, _pairs(shape, layer.kernel) * shape[-1])
    if isinstance(layer, LargeKernelConv):
        arguments = node.arguments
        kernel = [*arguments.args, *arguments.kwargs.values()][1]
        return Macs(0, _pairs(shape, kernel) * shape[-1])
    if isinstance(layer, SelfAttention):
        tokens, channels = shape
        softmax = layer.num_heads * tokens**2
        return Macs(4 * tokens * channels**2, 2 * tokens**2 * channels, softmax)
    if isinstance(layer, PatchEmbedding):
        return Macs(
            outputs * math.prod(layer.patch_size) * node.input_tensors[0].shape[-1]
        )
    if isinstance(layer, keras.layers.Dense):
        return Macs(outputs * node.input_tensors[0].shape[-1], 0, elementwise)
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return Macs(outputs * math.prod(layer.kernel_size), 0, elementwise)
    if isinstance(layer, keras.layers.Conv2D):
        return Macs(outputs * math.prod(layer.kernel.shape[:3]), 0, elementwise)
    if isinstance(
        layer, (keras.layers.LayerNormalization, keras.layers.BatchNormalization)
    ):
        return Macs(0, 0, 2 * outputs)
    if isinstance(layer, keras.layers.Activation):
        return Macs(0, 0, outputs)
    if isinstance(layer, (PositionEmbedding, ClassToken)):
        return Macs()
    weights = layer.weights if isinstance(layer, keras.layers.Layer) else ()
    if type(layer).__name__ in PRODUCTS or any(len(w.shape) > 1 for w in weights):
        return None
    return Macs()


def _pairs(shape, kernel):
    """Return how many pairs of tokens a kernel joins."""
    return int(token_pairs(kernel.shape[:2], shape[:2]).sum())
