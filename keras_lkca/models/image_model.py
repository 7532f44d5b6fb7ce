"""What the models of images share: how they are saved."""

import difflib
import inspect

import keras

from keras_lkca.layers.dense import HoldsDense


def check_keywords(model, keywords):
    """Raise a `ValueError` for arguments that neither the model nor Keras has.

    Keras passes over those in silence.
    """
    for name in set(keywords) - {"name", "trainable"}:
        named = {
            parameter.name
            for cls in type(model).__mro__
            if issubclass(cls, ImageModel) and "__init__" in vars(cls)
            for parameter in inspect.signature(cls.__init__).parameters.values()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        }
        known = sorted(named - {"self"})
        near = difflib.get_close_matches(name, known, n=1) or known
        raise ValueError(
            f"{type(model).__name__} has no argument {name!r}; the nearest is {near}. "
            f"Received: {name}={keywords[name]!r}"
        )


class ImageModel(keras.Model):
    """A model that is saved as its constructor's arguments.

    What `keras.Model.quantize` did to its layers is saved with them. A subclass sets
    `_arguments`, plain numbers and strings.
    """

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes' names in the order of the outputs, where they are known."""
        names = self._arguments["class_names"]
        return names and tuple(names)

    @property
    def quantized_layers(self) -> dict:
        """The layers that `quantize` changed, by their path in the model."""
        return {
            path: layer
            for path, layer in _dense_layers(self)
            if layer.quantization_mode is not None
        }

    def get_config(self):
        """Return the constructor's arguments, and what was quantized."""
        config = {"name": self.name, "trainable": self.trainable, **self._arguments}
        quantized = {
            path: keras.saving.serialize_keras_object(layer.quantization_config)
            for path, layer in self.quantized_layers.items()
        }
        return {**config, "quantized": quantized} if quantized else config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Build a model from what `get_config` returned."""
        config = dict(config)
        quantized = config.pop("quantized", {})
        model = cls(**config)
        layers = dict(_dense_layers(model))
        for path, how in quantized.items():
            how = keras.saving.deserialize_keras_object(how, custom_objects)
            layers[path].quantize(config=how)
        return model


def _dense_layers(model):
    """Yield paths and layers, those within LKCA, SelfAttention and patches too."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dense):
            yield layer.name, layer
        if isinstance(layer, HoldsDense):
            for name, dense in layer.dense_layers().items():
                yield f"{layer.name}/{name}", dense
