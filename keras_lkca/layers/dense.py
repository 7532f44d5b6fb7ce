import collections

import keras
from keras import ops

from keras_lkca.backend import affine, is_traced
from keras_lkca.checks import check_positive_int, check_rate
from keras_lkca.internals import is_quantized, sublayers

# What Keras's `enable_lora` takes, for adapters of low rank.
LORA = ("lora_rank", "lora_alpha")


@keras.saving.register_keras_serializable(package="keras_lkca")
class TokenDense(keras.layers.Dense):
    """`keras.layers.Dense` over tokens, computed as one product of two matrices.

    `out[..., u] = activation(sum over c of inputs[..., c] * kernel[c, u] + bias[u])`

    The same function with the same arguments and weights. But XLA copies a gradient
    of rank three or four, transposed, before it multiplies by it, which takes longer
    than the product: here the batch and the grid are one axis by then. torch adds
    the bias within the product.

    Args:
        units: Positive integer, channels of an output.
        *args: See `keras.layers.Dense`.
        **kwargs: See `keras.layers.Dense`.

    Attributes:
        rematerialize: Whether training keeps the inputs alone, and computes the rest
            again for the gradient. `False`, unless `keras_lkca.training.fit` is told.

    Call arguments:
        inputs: The tokens.

    Input shape:
        `(batch, ..., channels)`, any rank from 2, channels static.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: If `units` is not a positive integer.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.layers import TokenDense
    >>> tuple(TokenDense(32, activation="gelu")(np.ones((2, 8, 12, 16), "f4")).shape)
    (2, 8, 12, 32)

    References:
        - Keras, [Dense layer](https://keras.io/api/layers/core_layers/dense/).
    """

    rematerialize = False

    def __init__(self, units: int, *args, **kwargs):
        super().__init__(check_positive_int("units", units), *args, **kwargs)

    def call(self, inputs, training=None):
        """Multiply by the kernel."""
        *grid, channels = inputs.shape[1:]
        # A trace is to serve other grids too, and to know its channels.
        if None in grid or channels is None or is_traced():
            return super().call(inputs, training=training)
        weights = [self.kernel] if self.bias is None else [self.kernel, self.bias]
        return recomputed(self, training, self._product, inputs, *weights)

    def _product(self, inputs, kernel, bias=None):
        *grid, channels = inputs.shape[1:]
        outputs = ops.reshape(inputs, (-1, channels))
        if bias is None:
            outputs = ops.matmul(outputs, kernel)
        else:
            outputs = affine(outputs, kernel, bias)
        outputs = ops.reshape(outputs, (-1, *grid, self.units))
        return outputs if self.activation is None else self.activation(outputs)

    def quantize(self, mode=None, type_check=True, config=None):
        """Quantize as `keras.layers.Dense`, whose own way to compute it then takes."""
        super().quantize(mode, type_check=False, config=config)


def recomputed(layer, training, function, *tensors):
    """Apply a function, of which training keeps the arguments alone if so wanted.

    Args:
        layer: The layer that applies it, whose `rematerialize` says whether it is.
        training: Whether gradients are wanted.
        function: Function of tensors without random numbers. It may call layers, but
            the calling layer's own weights are to be among its arguments: they are read
            here, as the dtype that this layer casts them to is not known any more when
            the function is applied again.
        *tensors: What it is applied to, tensors and weights.
    """
    if layer.rematerialize and training:
        return keras.remat(function)(*map(ops.convert_to_tensor, tensors))
    return function(*tensors)


class HoldsDense:
    """A layer with Dense layers within, saved with what was done to them since.

    They are quantized, frozen, or given another activation.
    """

    def dense_layers(self):
        """Return the Dense layers within, by their names."""
        names = ("value", "query_key_value", "gate", "projection")
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def dense_built(self):
        """Freeze the layers within if this one is frozen: what ends its `build`."""
        for layer in self.dense_layers().values():
            layer.trainable = self.trainable

    def get_build_config(self):
        """Return the input's shape, and what was quantized or changed."""
        quantized = {
            name: keras.saving.serialize_keras_object(layer.quantization_config)
            for name, layer in self.dense_layers().items()
            if is_quantized(layer)
        }
        changed = collections.defaultdict(dict)
        for name, layer in self.dense_layers().items():
            if layer.trainable != self.trainable:
                changed[name]["trainable"] = layer.trainable
            built_as = self.gate_activation if name == "gate" else None
            if layer.activation is not (built_as or keras.activations.linear):
                activation = keras.activations.serialize(layer.activation)
                changed[name]["activation"] = activation
        config = super().get_build_config()
        extra = {"quantized": quantized, "changed": dict(changed)}
        return {**config, **{name: what for name, what in extra.items() if what}}

    def build_from_config(self, config):
        """Build, and quantize and change what was."""
        config = dict(config)
        quantized = config.pop("quantized", {})
        changed = config.pop("changed", {})
        super().build_from_config(config)
        for name, how in quantized.items():
            how = keras.saving.deserialize_keras_object(how)
            self.dense_layers()[name].quantize(config=how)
        change(self.dense_layers(), changed)


def fresh(initializer):
    """Return a copy of an initializer: one instance draws the same numbers twice.

    One with a seed of its own still does, and so may a function.
    """
    if isinstance(initializer, keras.initializers.Initializer):
        return type(initializer).from_config(initializer.get_config())
    return initializer


def set_dropout_rate(layer, rate):
    """Set the rate of the dropout within a layer."""
    if check_rate("dropout_rate", rate) and not hasattr(
        layer.dropout, "seed_generator"
    ):
        raise ValueError(
            "`dropout_rate` of a layer made with 0 cannot be raised, for it has no "
            f"random numbers: make it with another. Received: dropout_rate={rate!r}"
        )
    layer.dropout.rate = rate


def change(layers, changed):
    """Set on layers what is to be changed in their configurations, both by name."""
    for name, values in changed.items():
        layer = layers[name]
        values = keras.saving.deserialize_keras_object(values)
        lora = [values.pop(key, None) for key in LORA]
        if lora[0] is not None:
            layer.enable_lora(*lora)
        # A constructor turns a name into a function or an initializer.
        made = type(layer).from_config({**layer.get_config(), **values})
        for key in values:
            setattr(layer, key, getattr(made, key))


@keras.saving.register_keras_serializable(package="keras_lkca")
def erf_gelu(x):
    """GELU by `erf`, which every format has; TensorFlow's own takes `erfc`."""
    return 0.5 * x * (1 + ops.erf(x * (0.5**0.5)))


def use_erf(model):
    """Let exact GELUs be computed by `erf`, and return the layers that were changed."""
    exact = [
        layer
        for layer in sublayers(model)
        if getattr(layer, "activation", None) is keras.activations.gelu
    ]
    for layer in exact:
        layer.activation = erf_gelu
    return exact
