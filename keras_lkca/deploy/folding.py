"""The same function with fewer numbers: what training needs and serving does not."""

import collections

import keras
import numpy as np

from keras_lkca.internals import calls, forget_compiled, graphs, producer, sublayers
from keras_lkca.layers import (
    LKCA,
    BatchNormalization,
    FixedConv,
    StochasticDepth,
    TokenDense,
)
from keras_lkca.models import ImageModel, LKCAViT
from keras_lkca.models.image_model import quantize_as

# What an LKCA layer is folded into, by the ends of the names.
_PARTS = ("value", "mixing", "gate", "gated", "projection")
# Of no class of the user's own, which may do otherwise.
BATCH_NORMS = (keras.layers.BatchNormalization, BatchNormalization)
# What does nothing in inference.
TRAINING_ONLY = (
    *(keras.layers.Dropout, keras.layers.AlphaDropout, keras.layers.GaussianDropout),
    *(keras.layers.SpatialDropout1D, keras.layers.SpatialDropout2D),
    *(keras.layers.SpatialDropout3D, keras.layers.GaussianNoise, StochasticDepth),
    keras.layers.ActivityRegularization,
)


def fold(model: keras.Model) -> "FoldedModel":
    """Fold a trained model's linear maps into fewer of them.

    With one kernel per layer nothing but linear maps stands between the value and the
    output projection, and the mixing of tokens commutes with both: they become one.
    The scale and offset of a LayerNormalization go into the layers behind it, where
    these are all Dense or LKCA layers, BatchNormalization into the convolution before
    it. Dropout, noise and stochastic depth vanish, and what follows from the kernels
    alone is computed once.

    `A(LayerNorm(x) V) O + b = A(n(x) W + c) + b` with `W = diag(gamma) V O` and
    `c = beta V O`, where `n` normalises and `A` mixes the tokens. With several kernels
    per layer, or a gate, `V` and `O` stay two.

    What cannot be folded stays as it is, and is named in a line that is printed: a
    layer that is called several times or on a grid of any size, a quantized one, an
    LKCA layer within a layer that is no model, and a LayerNormalization whose output
    goes elsewhere.

    Args:
        model: A functional or sequential model with `keras_lkca.layers.LKCA` layers in
            it, or in models within it: `LKCAViT` or one of your own.

    Returns:
        A `FoldedModel` of the same outputs up to rounding, to predict with, save,
        quantize and export. It is not meant to be trained: its weights are not those
        of the model, which stays as it is.

    Raises:
        ValueError: If `model` is no such model, or none of its LKCA layers can be
            folded.

    Example:

    >>> from keras_lkca import LKCAViT, deploy
    >>> model = LKCAViT.from_preset("lkca_vit_tiny", num_classes=100)
    >>> deploy.fold(model).count_params() / model.count_params() < 0.86
    True
    """
    is_graph = isinstance(model, keras.Model) and getattr(model, "outputs", None)
    if not is_graph or not any(isinstance(x, LKCA) for x in sublayers(model)):
        raise ValueError(
            "`model` must be a functional Keras model with LKCA layers; other models "
            f"are exported as they are. Received: model={model!r}"
        )
    folding = _Folding(model)
    folded = folding.graph(model)
    left = ", ".join(f"{name} ({why})" for name, why in folding.left.items())
    if not any(isinstance(layer, FixedConv) for layer in sublayers(folded)):
        raise ValueError(
            f"`model` has no LKCA layer that can be folded: {left}. "
            f"Received: model={model!r}"
        )
    if left:
        print(f"fold left as they are: {left}", flush=True)
    folded.trainable = False
    return folded


class _Folding:
    """What is known while a model is rebuilt, with the models within it."""

    def __init__(self, model):
        within = {id(graph): graph for _, graph in graphs(model) if _is_graph(graph)}
        self.counts = collections.Counter(
            id(call.operation) for graph in within.values() for call in calls(graph)
        )
        self.made = {}  # by what each takes the place of, shared ones once
        self.left = {}  # names of what stays, and why

    def graph(self, model, path=""):
        """Return a functional model, folded."""
        if not isinstance(model, keras.Sequential):
            graph = keras.Model(model.input, model.output, name=model.name)
        else:
            graph = keras.Model(model.inputs, model.outputs, name=model.name)
        nodes = calls(graph)
        norms = self._norms(graph, nodes, path)
        batch_norms = self._batch_norms(graph, nodes)
        names = {node.operation.name for node in nodes}
        mixers = {
            id(node.operation)
            for node in nodes
            if isinstance(node.operation, LKCA) and not self._why_not(node)
        }
        for node in nodes:
            why = self._why_not(node)
            if _holds_lkca(node.operation) and why:
                self.left[path + node.operation.name] = why
        chains, weights, gone = {}, [], set()

        def clone(operation):
            if id(operation) in self.made:
                return self.made[id(operation)]
            norm = norms.get(id(operation))
            if id(operation) in mixers:
                chain, values = _folded_lkca(operation, norm, names)
                new = chain[0]
                chains[id(new)] = chain
                weights.extend(zip(chain, values, strict=True))
            elif id(operation) in batch_norms:
                config = {**operation.get_config(), "use_bias": True}
                new = type(operation).from_config(config)
                norm = batch_norms[id(operation)]
                weights.append((new, _before_norm(norm, *operation.get_weights())))
            elif any(operation is norm for norm in batch_norms.values()):
                new = _copy(operation)
                gone.add(id(new))
            elif isinstance(operation, keras.Model) and _is_graph(operation):
                new = self.graph(operation, f"{path}{operation.name}/")
            elif norm is operation:
                config = {**norm.get_config(), "center": False, "scale": False}
                new = type(norm).from_config(config)
            elif norm is not None:
                kernel, *bias = operation.get_weights()
                values = _after_norm(norm, kernel, *bias)
                config = {**operation.get_config(), "use_bias": len(values) > 1}
                new = type(operation).from_config(config)
                weights.append((new, values))
            else:
                new = _copy(operation)
                if isinstance(operation, keras.layers.Layer):
                    weights.append((new, operation.get_weights()))
            self.made[id(operation)] = new
            return new

        def call(layer, *args, **kwargs):
            if id(layer) in gone or _vanishes(layer, args, kwargs):
                return args[0]
            if id(layer) not in chains:
                return layer(*args, **kwargs)
            value, mixing, *others = chains[id(layer)]
            x = mixing(value(args[0]))
            if len(others) > 1:
                gate, product, *others = others
                x = product([x, gate(args[0])])
            for projection in others:
                x = projection(x)
            return x

        new = keras.models.clone_model(graph, clone_function=clone, call_function=call)
        for layer, values in weights:
            layer.set_weights(values)
        names = colors = None
        if isinstance(model, ImageModel):
            names, colors = model.class_names, model.class_colors
        folded = FoldedModel(
            *(new.input, new.output, names), name=model.name, class_colors=colors
        )
        folded.dtype_policy = model.dtype_policy
        return folded

    def _why_not(self, node):
        """Return why an LKCA or Dense layer does not take part, or `None`."""
        layer = node.operation
        if type(layer) not in (LKCA, TokenDense, keras.layers.Dense):
            if _holds_lkca(layer):
                return "LKCA within a layer that is no functional model"
            return "neither Dense nor LKCA"
        if self.counts[id(layer)] > 1:
            return "called several times"
        is_lkca = type(layer) is LKCA
        within = layer.dense_layers().values() if is_lkca else [layer]
        if any(len(dense.weights) != 1 + dense.use_bias for dense in within):
            return "quantized, or with LoRA: fold it first"
        if type(layer) is LKCA and None in node.input_tensors[0].shape[1:]:
            return "on a grid of any size"
        if type(layer) is LKCA and layer.dropout_rate and _trains(node):
            return "called with training=True"
        return None

    def _norms(self, graph, nodes, path):
        """Return the LayerNormalization whose part each layer takes, by layer."""
        takers, ends = collections.defaultdict(list), set(map(id, graph.outputs))
        for node in nodes:
            for tensor in node.input_tensors:
                takers[id(tensor)].append(node)

        def behind(tensor):
            for node in takers[id(tensor)]:
                arguments = node.arguments
                if _vanishes(node.operation, arguments.args, arguments.kwargs):
                    yield from behind(node.outputs[0])
                else:
                    why = self._why_not(node)
                    yield why and f"goes to {node.operation.name}, {why}", node
            if id(tensor) in ends:
                yield "is an output", None

        norms = {}
        for node in nodes:
            norm = node.operation
            if type(norm) is not keras.layers.LayerNormalization:
                continue
            found = list(behind(node.outputs[0]))
            reasons = [why for why, _ in found if why]
            if self.counts[id(norm)] > 1:
                reasons = ["called several times"]
            last = len(node.outputs[0].shape) - 1
            if norm.axis not in (-1, last, [-1], [last]):
                reasons = ["not over the last axis"]
            if reasons and (norm.center or norm.scale):
                self.left[path + norm.name] = reasons[0]
            elif not reasons:
                norms[id(norm)] = norm
                norms.update((id(taker.operation), norm) for _, taker in found)
        return norms

    def _batch_norms(self, graph, nodes):
        """Return the BatchNormalization behind each convolution that takes it."""
        takers = collections.Counter(
            id(tensor) for node in nodes for tensor in node.input_tensors
        )
        takers.update(map(id, graph.outputs))
        found = {}
        for node in nodes:
            norm, tensor = node.operation, node.input_tensors[0]
            if type(norm) not in BATCH_NORMS or _trains(node):
                continue
            if any(tensor is x for x in graph.inputs):
                continue
            layer = producer(tensor)[0].operation
            if (
                type(layer) is keras.layers.Conv2D
                and takers[id(tensor)] == 1
                and self.counts[id(norm)] == self.counts[id(layer)] == 1
                and layer.activation is keras.activations.linear
                and layer.data_format == "channels_last"
                and norm.axis in (-1, 3, [-1], [3])
                and norm.compute_dtype == layer.compute_dtype
                and len(layer.weights) == 1 + layer.use_bias
            ):
                found[id(layer)] = norm
        return found


def _is_graph(model):
    return bool(getattr(model, "outputs", None))


def _holds_lkca(operation):
    if isinstance(operation, keras.Model) and _is_graph(operation):
        return False  # asked of the layers within it
    within = sublayers(operation) if isinstance(operation, keras.layers.Layer) else []
    return any(isinstance(layer, LKCA) for layer in [operation, *within])


def _trains(node):
    return bool(node.arguments.kwargs.get("training"))


def _vanishes(layer, args, kwargs):
    """Whether a call does nothing in inference, not even change the dtype."""
    return (
        type(layer) in TRAINING_ONLY
        and len(args) == 1
        and not kwargs.get("training")
        and args[0].dtype == layer.compute_dtype
    )


def _copy(operation):
    """Return a layer of the same configuration; it is built as the first one was."""
    return keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(operation),
        custom_objects={type(operation).__name__: type(operation)},
        safe_mode=False,  # the code is the user's own, in hand
    )


def _folded_lkca(layer, norm, names):
    """Return the layers that take the place of one, and their weights."""
    (value,) = layer.value.get_weights()
    projection, *bias = layer.projection.get_weights()
    channels = projection.shape[1]
    # A narrow value is cheaper as it is.
    gated = layer.gate_activation is not None
    joined = layer.num_kernels == 1 and not gated and 2 * value.shape[1] >= channels
    if joined:
        value = _exact(value) @ _exact(projection)
    values = [_after_norm(norm, value)]
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    values.append([kernel, *bias] if joined else [kernel])
    stem = layer.name.removesuffix("_lkca")
    if any(f"{stem}_{part}" in names for part in _PARTS):
        stem = f"{layer.name}_folded"
    options = {"dtype": layer.dtype_policy}
    dense = TokenDense(
        value.shape[1], use_bias=len(values[0]) > 1, name=f"{stem}_value", **options
    )
    mixing = FixedConv(
        *(kernel.shape[:2], layer.num_kernels, joined and layer.use_bias, layer.method),
        name=f"{stem}_mixing",
        **options,
    )
    if joined:
        return [dense, mixing], values
    parts = [dense, mixing]
    if gated:
        gate = TokenDense(
            value.shape[1],
            activation=layer.gate.activation,
            name=f"{stem}_gate",
            **options,
        )
        product = keras.layers.Multiply(name=f"{stem}_gated", **options)
        parts += [gate, product]
        values += [_after_norm(norm, *layer.gate.get_weights()), []]
    last = TokenDense(
        channels, use_bias=layer.use_bias, name=f"{stem}_projection", **options
    )
    return [*parts, last], [*values, [projection, *bias]]


def _after_norm(norm, kernel, bias=None):
    """Return a Dense layer's weights that take the place of a LayerNorm's too."""
    kernel = _exact(kernel)
    bias = None if bias is None else _exact(bias)
    if norm is not None and norm.center:
        bias = _exact(norm.beta) @ kernel + (0 if bias is None else bias)
    if norm is not None and norm.scale:
        kernel = _exact(norm.gamma)[:, None] * kernel
    return [kernel] if bias is None else [kernel, bias]


def _before_norm(norm, kernel, bias=0):
    """Return a convolution's weights that take the place of a BatchNorm's too."""
    deviation = np.sqrt(_exact(norm.moving_variance) + norm.epsilon)
    scale = (_exact(norm.gamma) if norm.scale else 1) / deviation
    offset = _exact(norm.beta) if norm.center else 0
    bias = (_exact(bias) - _exact(norm.moving_mean)) * scale + offset
    return [_exact(kernel) * scale, bias]


def _exact(array):
    return np.asarray(keras.ops.convert_to_numpy(array), "float64")


@keras.saving.register_keras_serializable(package="keras_lkca")
@keras.saving.register_keras_serializable(package="keras_lkca", name="FoldedLKCAViT")
class FoldedModel(ImageModel):
    """A model to serve: what `fold` returns, see there.

    What follows from the kernels is kept. Where weights are changed in another way
    than by this model's `set_weights` and `load_weights`, call `prepare()`.

    Args:
        inputs: See `keras_lkca.models.ImageModel`.
        outputs: Likewise.
        class_names: Likewise.
        name: Likewise.
        trainable: Likewise.

    Input shape:
        That of the model that was folded.

    Output shape:
        That of the model that was folded.

    Raises:
        ValueError: If `class_names` are not a string per class.

    Example:

    >>> from keras_lkca import LKCAViT, deploy
    >>> folded = deploy.fold(LKCAViT(depth=2, embed_dim=16))
    >>> folded.output_shape
    (None, 10)

    References:
        - Li et al., "Interpreting and Improving Attention From the Perspective of
          Large Kernel Convolution", [arXiv 2401.05738](
          https://arxiv.org/abs/2401.05738), method section.
    """

    def prepare(self):
        """Compute anew what follows from the kernels."""
        for layer in sublayers(self):
            if isinstance(layer, FixedConv):
                layer.prepare()
        forget_compiled(self)

    def set_weights(self, weights):
        """Set the weights, and what follows from them."""
        super().set_weights(weights)
        self.prepare()

    def load_weights(self, filepath, **arguments):
        """Load the weights, and compute what follows from them."""
        super().load_weights(filepath, **arguments)
        self.prepare()

    def get_config(self):
        """Return the graph and the dtype policy."""
        policy = keras.dtype_policies.serialize(self.dtype_policy)
        return {**super().get_config(), "dtype": policy}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Build a model from what `get_config` returned, or a former version."""
        config = dict(config)
        if "layers" not in config:  # as FoldedLKCAViT: the arguments of the LKCAViT
            quantized = config.pop("quantized", {})
            model = fold(LKCAViT(**config))
            quantize_as(model, quantized, custom_objects)
            return model
        policy = keras.dtype_policies.deserialize(config.pop("dtype"))
        model = super().from_config(config, custom_objects)
        model.dtype_policy = policy
        return model
