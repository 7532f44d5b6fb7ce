"""What the models of images share: classes' names, presets, how they are saved."""

import collections.abc
import difflib
import json
import pathlib
import re
import warnings
import zipfile

import keras
import numpy as np

from keras_lkca.checks import check_flag, check_image_shape
from keras_lkca.internals import is_quantized, sublayers
from keras_lkca.layers.dense import LORA, HoldsDense, change, use_erf
from keras_lkca.models.colors import check_colors
from keras_lkca.models.levels import feature_levels
from keras_lkca.models.presets import (
    PRESETS,
    check_preset,
    default_patch_size,
    list_presets,
    read_weights,
)

# What a trained preset may be given: it leaves alone what was learned, or the weights'
# shapes tell.
_FREE = {
    *("name", "trainable", "dtype", "method", "drop_path_rate", "dropout_rate"),
    *("kernel_initializer", "position_stddev", "patch_size", "kernel_size"),
    "include_top",
}
# Without its classifier likewise.
_TOP = {"num_classes", "class_names", "classifier_activation", "pooling"}
# What Keras's `quantize` changes in a configuration, and is saved by itself.
_QUANTIZED = ("dtype", "quantization_config")


def found_in_h5(cls):
    """Let Keras find a class in .h5, which keeps no package: no other has its name."""
    keras.saving.get_custom_objects()[cls.__name__] = cls
    return cls


@keras.saving.register_keras_serializable(package="keras_lkca")
class ImageModel(keras.Model):
    """A functional model of images that carries the names of its classes.

    Use it in place of `keras.Model` for a graph of your own: the names travel with
    the `.keras` file, and `keras_lkca.predict` and the exported files answer with them.
    It is the base class of the families, which are saved as their constructor's
    arguments. What was done to the layers since is saved as well: quantized, frozen,
    given another activation or rate. What cannot be saved is refused then.

    Args:
        inputs: Keras tensor of images, `keras.Input((height, width, channels))`.
        outputs: Keras tensor, of a classifier `(batch, classes)`.
        class_names: Sequence of strings, one per class, or two for a single column
            (of 0 and of 1); `None` where they are not known.
        name: Name of the model, or `None`.
        trainable: Whether its weights are to be trained.
        arguments: Dictionary of a subclass's constructor arguments, from which
            `from_config` builds it; `None` saves the graph.
        unknown: Dictionary of arguments that a subclass was given and has not.
        class_colors: Sequence of (red, green, blue) in [0, 255], one per class, of a
            model that tells a class for every pixel; `None` where they are not known.

    Input shape:
        That of `inputs`.

    Output shape:
        That of `outputs`.

    Raises:
        ValueError: If `class_names` are not a string per class, or there are
            `unknown` arguments, naming the nearest.

    Example:

    >>> import keras
    >>> from keras_lkca.models import ImageModel, lkca_block
    >>> images = keras.Input((8, 8, 3))
    >>> x = lkca_block(keras.layers.Conv2D(16, 3, padding="same")(images))
    >>> x = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x))
    >>> ImageModel(images, x, class_names=["cat", "dog"]).class_names
    ('cat', 'dog')

    References:
        - Keras, [the functional API](https://keras.io/guides/functional_api/).
    """

    def __init__(
        self,
        inputs,
        outputs,
        class_names=None,
        name: str | None = None,
        trainable: bool = True,
        arguments: dict | None = None,
        unknown: dict | None = None,
        class_colors=None,
    ):
        for argument, value in (unknown or {}).items():
            known = sorted({*(arguments or {}), "name", "trainable"})
            near = difflib.get_close_matches(argument, known, n=1) or known
            raise ValueError(
                f"{type(self).__name__} has no argument {argument!r}; the nearest is "
                f"{near}. Received: {argument}={value!r}"
            )
        super().__init__(inputs=inputs, outputs=outputs, name=name)
        names = check_class_names(class_names, self.output_shape)
        self._class_names = names
        self._class_colors = check_colors(class_colors, self.output_shape[-1])
        if "class_names" in (arguments or {}):
            arguments = {**arguments, "class_names": names}  # of an iterator, read
        self._arguments = None if arguments is None else _plain(arguments)
        if not check_flag("trainable", trainable):
            self.trainable = False  # its layers too, which Keras leaves as they are
        self._as_built = (
            None if arguments is None else _settings_by_path(_inner_layers(self))
        )

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes' names in the order of the outputs, where they are known."""
        # Keras wraps what a model holds.
        return self._class_names and tuple(self._class_names)

    @property
    def class_colors(self) -> np.ndarray | None:
        """The classes' colours, uint8 `(classes, 3)`, where they are known."""
        if self._class_colors is None:
            return None
        return np.array([tuple(color) for color in self._class_colors], "uint8")

    @property
    def pyramid_outputs(self) -> dict:
        """The last feature map of each grid, see `keras_lkca.models.feature_levels`.

        With `keras.Model(model.input, model.pyramid_outputs)` they are a backbone for
        whatever takes several levels.
        """
        return feature_levels(self)

    @property
    def quantized_layers(self) -> dict:
        """The layers that `quantize` changed, by their path in the model."""
        return {
            path: layer
            for path, layer in _inner_layers(self).items()
            if isinstance(layer, keras.layers.Dense) and is_quantized(layer)
        }

    def export(self, filepath, format="tf_saved_model", *args, **kwargs):
        """Export as `keras.Model.export`, where the format has what the layers take.

        Args:
            filepath: Where to write.
            format: Keras's name of a format.
            *args: What else `keras.Model.export` takes.
            **kwargs: Likewise.

        Raises:
            ValueError: If a layer has `method="spectral"`, and the format no Fourier
                transforms that it could use; or under torch, if ONNX is to have a batch
                of any size.
        """
        if format in ("onnx", "openvino", "litert"):
            for layer in sublayers(self):
                if getattr(layer, "method", None) == "spectral":
                    raise ValueError(
                        f"{format!r} has no Fourier transforms for {layer.name}, whose "
                        "method is 'spectral'. Use keras_lkca.deploy.export(model, "
                        f"output, format={format!r}), or a model with "
                        f"method='hybrid'. Received: format={format!r}"
                    )
        shape = (1, *self.input_shape[1:])
        sized = bool(args) or kwargs.get("input_signature") is not None
        if format in ("onnx", "openvino") and not sized and None not in shape:
            self(np.zeros(shape, "float32"))  # as Keras asks
        changed = use_erf(self) if format == "onnx" else []
        try:
            return super().export(filepath, format, *args, **kwargs)
        except Exception as error:
            if sized or type(error).__name__ != "SymbolicValueError":  # torch.onnx's
                raise
            known = ", ".join("SIZE" if size is None else str(size) for size in shape)
            raise ValueError(
                "Keras's LayerNormalization exports to ONNX under torch for one size "
                "of batch alone. Use keras_lkca.deploy.export(model, output, "
                "format='onnx'), whose batch is any; or give the size, "
                f"input_signature=[keras.InputSpec(shape=({known}), dtype='float32')]. "
                "Received: a batch of any size"
            ) from error
        finally:
            for layer in changed:
                layer.activation = keras.activations.gelu

    @classmethod
    def from_preset(
        cls,
        preset: str,
        input_shape: tuple[int, int, int] | None = None,
        num_classes: int | None = None,
        load_weights: bool = True,
        **overrides,
    ):
        """Build a model of a preset's size, or a trained one.

        Args:
            preset: A name of `keras_lkca.list_presets()`, of this class;
                `ImageModel.from_preset` takes those of every class.
            input_shape: The images' (height, width, channels). The patch size
                follows it, 4 at 32 x 32 and 8 at 64 x 64, unless given. Defaults to
                the trained model's, or else to (32, 32, 3).
            num_classes: Positive integer, the number of classes. Defaults to the
                trained model's, or else to 10.
            load_weights: Whether a trained preset comes with its weights and the names
                of its classes; of what it learned nothing can be changed then. For
                other images and classes there is `keras_lkca.models.adapt`.
            **overrides: Any other argument of the constructor. With weights
                `include_top=False` leaves the classifier out.

        Returns:
            A model of the preset's class.

        Raises:
            ValueError: If there is no such preset, naming the nearest, or it is
                another class's, or its weights were not learned with what is asked for.

        Example:

        >>> from keras_lkca import LKCAViT
        >>> LKCAViT.from_preset("lkca_vit_tiny", num_classes=100).count_params()
        1039941
        """
        row = check_preset(preset)
        load_weights = check_flag("load_weights", load_weights)
        family = keras.saving.get_registered_object(f"keras_lkca>{row.model}")
        if issubclass(cls, family):
            family = cls  # a subclass of the user's own
        elif not issubclass(family, cls):
            raise ValueError(
                f"{preset!r} is a preset of {row.model}: use {row.model}.from_preset. "
                f"Received: preset={preset!r}"
            )
        given = {"input_shape": input_shape, "num_classes": num_classes}
        given = {name: value for name, value in given.items() if value is not None}
        arguments = {"input_shape": (32, 32, 3), "num_classes": 10, **row.arguments}
        if row.weights is None or not load_weights:
            arguments.update(given)
            shape = check_image_shape(arguments["input_shape"])
            arguments.setdefault("patch_size", default_patch_size(shape))
            if "input_shape" in row.arguments:
                # What normalises the images of a trained model is one per channel.
                if shape[-1] != row.arguments["input_shape"][-1]:
                    arguments.update(image_mean=None, image_std=None)
            return family(**{**arguments, **overrides})
        values, names = read_weights(preset, row.weights)
        arguments.setdefault("patch_size", default_patch_size(arguments["input_shape"]))
        arguments["class_names"] = names
        asked = {**given, **overrides}
        if not asked.get("include_top", True):
            arguments["class_names"] = None
        elif asked.get("class_names") is None:
            asked.pop("class_names", None)
        else:
            asked["class_names"] = as_names(asked["class_names"])
        _check_learned(family, preset, {**row.arguments, "class_names": names}, asked)
        model = family(**{**arguments, **asked})
        _set_weights(model, values, preset, asked)
        return model

    def save(self, filepath, overwrite: bool = True, **kwargs):
        """Save the model, as `keras.Model.save`.

        Args:
            filepath: The file, `.keras`; or `.h5` for `LKCAViT`, `LKCANet` and
                `LKCASegmenter`.
            overwrite: Whether to replace what is there.
            **kwargs: Further arguments of `keras.Model.save`.

        Raises:
            ValueError: If the file of another class is `.h5`: it keeps no package, and
                others may call a class of theirs the same.
        """
        name = type(self).__name__
        legacy = str(filepath).endswith((".h5", ".hdf5"))
        if legacy and keras.saving.get_custom_objects().get(name) is not type(self):
            raise ValueError(
                f"`filepath` must end with .keras: Keras would not find {name} again "
                "from .h5, which keeps no package; its weights alone go into "
                f".weights.h5 (save_weights). Received: filepath={str(filepath)!r}"
            )
        super().save(filepath, overwrite=overwrite, **kwargs)

    def get_config(self):
        """Return the constructor's arguments or the graph, and what was changed."""
        if self._arguments is None:
            graph = keras.Model(self.input, self.output, name=self.name).get_config()
            own = {"trainable": self.trainable, "class_names": self.class_names}
            if self.class_colors is not None:
                own["class_colors"] = self.class_colors.tolist()
            return {**graph, **own}
        config = {"name": self.name, "trainable": self.trainable, **self._arguments}
        quantized = {
            path: keras.saving.serialize_keras_object(layer.quantization_config)
            for path, layer in self.quantized_layers.items()
        }
        changed = _changes(_inner_layers(self), self._as_built, self.trainable)
        extra = {"quantized": quantized, "changed": changed}
        return {**config, **{name: what for name, what in extra.items() if what}}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Build a model from what `get_config` returned."""
        config = dict(config)
        if "layers" in config:
            names, colors = config.pop("class_names"), config.pop("class_colors", None)
            graph = keras.Model.from_config(dict(config), custom_objects)
            model = cls(
                *(graph.input, graph.output, names),
                name=graph.name,
                class_colors=colors,
            )
            if not config["trainable"]:
                # Of which some layers may be trainable nevertheless.
                frozen = [(layer, layer.trainable) for layer in sublayers(model)]
                model.trainable = False
                for layer, trainable in frozen:
                    layer.trainable = trainable
            return model
        quantized, changed = config.pop("quantized", {}), config.pop("changed", {})
        model = cls(**config)
        quantize_as(model, quantized, custom_objects)
        change(_inner_layers(model), changed)
        return model


def _check_learned(family, preset, arguments, asked):
    """Raise a `ValueError` where a trained preset is asked to be what it did not learn.

    Args:
        family: The class it is of.
        preset: Its name.
        arguments: Dictionary of the constructor's arguments that it was trained with.
        asked: Dictionary of those that are asked for.
    """
    free = _FREE if asked.get("include_top", True) else _FREE | _TOP
    asked = {name: value for name, value in asked.items() if name not in free}
    if not asked:
        return
    learned = family(**arguments).get_config()
    for name, value in asked.items():
        if name not in learned:
            continue  # which the constructor refuses
        if callable(value):
            value = keras.activations.serialize(value)
        value = _plain({name: value})[name]
        # The logits are the same with a softmax behind them and without.
        logits = name == "classifier_activation" and all(
            x in (None, "linear", "softmax") for x in (value, learned[name])
        )
        if logits or value == learned[name]:
            continue
        remedy = "give `load_weights=False` for a new model of its size"
        what = f"{name}={learned[name]!r}"
        if name == "class_names":  # there may be a hundred
            what = f"the classes {', '.join(learned[name][:3])}, ..."
        channels = name == "input_shape" and (
            check_image_shape(value)[-1] != learned[name][-1]
        )
        if channels:
            remedy = f"give it images of {learned[name][-1]} channels, or {remedy[5:]}"
        elif name in ("input_shape", "num_classes", "class_names"):
            remedy = (
                f"`keras_lkca.models.adapt(model, {name}=...)` carries what it learned "
                f"over; or {remedy}"
            )
        else:
            remedy = f"leave it out, or {remedy}"
        raise ValueError(
            f"{preset!r} was trained with {what}: {remedy}. Received: {name}={value!r}"
        )


def _set_weights(model, values, preset, asked):
    """Set a model's weights by their paths."""
    wanted = {weight.path: tuple(weight.shape) for weight in model.weights}
    there = {path: array.shape for path, array in values.items()}
    if not asked.get("include_top", True):
        there = {path: shape for path, shape in there.items() if path in wanted}
    if wanted != there:
        differ = sorted({*wanted.items()} ^ {*there.items()})[0][0]
        raise ValueError(
            f"The weights of {preset!r} do not fit the model asked for, first at "
            f"{differ!r}: give `load_weights=False` for a new model of its size. "
            f"Received: {', '.join(f'{k}={v!r}' for k, v in asked.items())}"
        )
    for weight in model.weights:
        weight.assign(values[weight.path].astype("float32"))


def quantize_as(model, quantized, custom_objects=None):
    """Quantize the layers that a model's configuration names."""
    layers = _inner_layers(model)
    for path, how in quantized.items():
        how = keras.saving.deserialize_keras_object(how, custom_objects)
        layers[path].quantize(config=how)


def read_model(model) -> keras.Model:
    """Return a model, from its `.keras` file if it is a path.

    Args:
        model: A Keras model, a path, or the name of a trained preset.

    Returns:
        The model.

    Raises:
        ValueError: If the path is no `.keras` file, or holds objects that are not
            registered.
        FileNotFoundError: If there is no such file.

    Example:

    ```python
    model = read_model("model.keras")
    ```
    """
    if isinstance(model, keras.Model):
        return model
    if not isinstance(model, (str, pathlib.Path)):
        raise ValueError(
            f"`model` must be a Keras model or the path of one. Received: {model!r}"
        )
    if model in PRESETS and PRESETS[model].weights:
        return ImageModel.from_preset(model)
    if model in PRESETS and not pathlib.Path(model).exists():
        raise ValueError(
            f"{model!r} is a size without weights; with weights there are "
            f"{list_presets(trained=True)}. Received: model={model!r}"
        )
    path = pathlib.Path(model).expanduser()
    if not path.exists():
        near = difflib.get_close_matches(str(model), list_presets(trained=True), n=1)
        hint = f" and no such preset; the nearest is {near[0]!r}" if near else ""
        raise FileNotFoundError(f"There is no {path}{hint}.")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is no `.keras` file; save the model with "
            "model.save('model.keras')."
        )
    try:
        # Safe mode, Keras's default, refuses code in the file.
        return keras.models.load_model(path, compile=False)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be loaded. Classes of your own must be registered "
            "(keras.saving.register_keras_serializable) and imported before. "
            f"{type(error).__name__}: {error}"
        ) from error


def copy_of(model):
    """Return a copy of a functional or Sequential model, its weights too, uncompiled.

    Keras's `clone_model` makes a plain functional model of one with names.
    """
    if isinstance(model, ImageModel):
        again = type(model).from_config(model.get_config())
    else:
        again = keras.models.clone_model(model)
    again.set_weights(model.get_weights())
    return again


def given_name(model):
    """Return the name that a model was given, or its class where Keras gave one."""
    given = re.sub(r"_\d+$", "", model.name).replace("_", "")
    # What a family's model was folded into still has its name.
    families = {row.model for row in PRESETS.values()}
    kinds = {kind.__name__ for kind in type(model).__mro__} | families
    return type(model).__name__ if given in map(str.lower, kinds) else model.name


def _inner_layers(model):
    """Return layers by path, those within LKCA, SelfAttention and patches after it."""
    found = {}
    for layer in model.layers:
        found[layer.name] = layer
        if isinstance(layer, HoldsDense):
            for name, dense in layer.dense_layers().items():
                found[f"{layer.name}/{name}"] = dense
    return found


def _settings_by_path(layers):
    """Return the configurations of layers by name as JSON, to compare with later."""
    return json.dumps({name: _settings(layer) for name, layer in layers.items()})


def _changes(layers, before, trainable):
    """Return what was set on layers after they were built, to be saved.

    Args:
        layers: Dictionary of layers by name; one within another is `"other/name"`.
        before: What `settings` returned of them.
        trainable: Whether what holds them all is.

    Returns:
        Dictionary by name of dictionaries of what changed in their configuration, for
        `change`.

    Raises:
        ValueError: If a layer with that set would not be the layer as it is.
    """
    found, before = {}, json.loads(before)
    for name, layer in layers.items():
        now = _settings(layer)
        # Freezing a layer freezes those within.
        holder = layers.get(name.rpartition("/")[0])
        old = {**before[name], "trainable": holder.trainable if holder else trainable}
        changed = {key: value for key, value in now.items() if value != old.get(key)}
        if is_quantized(layer):
            changed = {k: v for k, v in changed.items() if k not in _QUANTIZED}
        if not changed:
            continue
        found[name] = changed
        again = type(layer).from_config(keras.saving.deserialize_keras_object(old))
        asked = {k: v for k, v in changed.items() if k not in LORA}
        try:
            change({name: again}, {name: asked})
            kept = {k: v for k, v in _settings(again).items() if k in asked}
        except (AttributeError, TypeError, ValueError):
            kept = None
        if kept != asked:
            raise ValueError(
                f"What was changed on the built layer {name!r} cannot be saved with "
                "the model: give it to the constructor, or save "
                "`keras.Model(model.input, model.output)`, which keeps each layer as "
                f"it is. Received: {changed}"
            )
    return found


def _settings(layer):
    with warnings.catch_warnings():
        # A function without a name is warned of where the model is saved.
        warnings.simplefilter("ignore")
        config = keras.saving.serialize_keras_object(layer.get_config())
    return json.loads(json.dumps(config), object_hook=_without_identity)


def _without_identity(values):
    return {key: x for key, x in values.items() if key != "shared_object_id"}


def as_names(class_names):
    """Return names as a tuple, what else was given as it is, to be refused.

    Iterators are read, here alone. A string is no sequence of names; sets and mappings
    have no order that could be the outputs'.

    Example:

    >>> from keras_lkca.models.image_model import as_names
    >>> as_names(name for name in ("cat", "dog"))
    ('cat', 'dog')
    """
    unordered = isinstance(class_names, (set, frozenset, collections.abc.Mapping))
    many = isinstance(class_names, collections.abc.Iterable) and not unordered
    if not many or isinstance(class_names, (str, bytes)):
        return class_names
    # NumPy's strings are strings too.
    return tuple(str(x) if isinstance(x, str) else x for x in class_names)


def check_class_names(class_names, output_shape):
    """Return classes' names as a tuple, or raise a `ValueError`."""
    if class_names is None:
        return None
    names = as_names(class_names)
    fits = isinstance(names, tuple) and all(isinstance(name, str) for name in names)
    if fits:
        # One column decides between two classes. Of pixels each has the columns.
        columns = 1 if len(names) == 2 and output_shape[-1] == 1 else len(names)
        fits = len(output_shape) in (2, 4) and output_shape[-1] == columns
        fits = fits and len(names) > 1
    if not fits:
        raise ValueError(
            "`class_names` must be a string for each of the classifier's classes, in "
            f"their order, two for one column; its outputs are {output_shape}. "
            f"Received: class_names={names!r}"
        )
    return names


def _plain(arguments):
    """Return arguments as a config keeps them: Python's own numbers and tuples."""

    def convert(value):
        if isinstance(value, (np.ndarray, np.generic)):
            value = value.tolist()
        if isinstance(value, dict):
            # A copy: Keras notes in it which objects it saw before.
            return {key: convert(item) for key, item in value.items()}
        return tuple(map(convert, value)) if isinstance(value, (tuple, list)) else value

    return {name: convert(value) for name, value in arguments.items()}
