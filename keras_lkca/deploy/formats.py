"""Each format, written by its own library and read by the runtime that serves it.

Another format is a row of `FORMATS`, and the two functions that it names.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

from keras_lkca.deploy.encoded import read_file
from keras_lkca.extras import require
from keras_lkca.internals import one_scale_per_matrix, sublayers
from keras_lkca.layers import LKCA, FixedConv
from keras_lkca.models.classifiers import gives_probabilities, image_shape, task_of
from keras_lkca.ops.plan import choose_method


def use_products(model):
    """Let LKCA be computed by matrix products where it would be by transforms."""
    for layer in sublayers(model):
        if isinstance(layer, FixedConv) and layer.planned_method == "spectral":
            layer.compute_by("hybrid")
        elif isinstance(layer, LKCA) and "spectral" in _methods(layer):
            layer.method = "hybrid"


def _methods(layer):
    """Return the methods that an LKCA layer may take for one image or any batch."""
    if layer.method != "auto" or None in layer.grid:
        return {layer.method}
    *kernel_size, groups = layer.kernel.shape
    return {
        choose_method(
            *layer.grid,
            layer.value.units,
            batch=batch,
            kernel_size=kernel_size,
            groups=groups,
            training=training,
            backend=keras.config.backend(),
        )
        for batch in (1, None)
        for training in (False, None)
    }


def probabilities(model, images):
    """Return a classifier's probabilities, in float32; two of one column."""
    outputs = keras.ops.cast(model(images, training=False), "float32")
    binary = task_of(model) == "binary"
    if not gives_probabilities(model):
        outputs = (keras.ops.sigmoid if binary else keras.ops.softmax)(outputs)
    if binary:
        outputs = keras.ops.concatenate([1 - outputs, outputs], -1)
    return outputs


def write_tf_saved_model(model, path, shape, image_bytes, class_names):
    """Write a SavedModel with the signatures of TensorFlow Serving.

    Args:
        model: A classifier; the backend is TensorFlow.
        path: Folder to write.
        shape: The images' (height, width, channels), `None` where of any size.
        image_bytes: Whether to add a signature on encoded images.
        class_names: Names of the classes, or `None`.
    """
    tf = require("tensorflow", "export")

    def answers(images):
        found = probabilities(model, images)
        best = tf.argmax(found, -1)
        outputs = {"probabilities": found, "classes": best}
        if class_names and len(best.shape) == 1:  # of pixels there are too many
            outputs["labels"] = tf.gather(tf.constant(class_names), best)
        return outputs

    shape = (None, *shape)

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, name="images")])
    def serve(images):
        return answers(images)

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.uint8, name="images")])
    def serve_uint8(images):
        return answers(tf.cast(images, tf.float32))

    @tf.function(
        input_signature=[tf.TensorSpec((None,), tf.string, name="image_bytes")]
    )
    def serve_bytes(image_bytes):
        images = tf.map_fn(
            lambda data: read_file(tf, data, image_shape(model)),
            image_bytes,
            fn_output_signature=tf.TensorSpec(image_shape(model), tf.float32),
        )
        return answers(images)

    signatures = {"serving_default": serve, "uint8": serve_uint8}
    if image_bytes:
        signatures["image_bytes"] = serve_bytes
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    tf.saved_model.save(module, str(path), signatures=signatures)


def read_tf_saved_model(path):
    """Return a SavedModel as a function, by the signature that is served."""
    tf = require("tensorflow", "export")
    loaded = tf.saved_model.load(str(path), tags=["serve"])
    serve = loaded.signatures["serving_default"]

    def read(images, _keep=loaded):  # its variables go when it goes
        return serve(images=tf.constant(images))["probabilities"].numpy()

    return read


def _function(model, *shape):
    """Return the model as one TensorFlow function of images."""
    tf = require("tensorflow", "export")

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float32, name="images")])
    def function(images):
        return {"probabilities": probabilities(model, images)}

    return function


def write_onnx(model, path, shape):
    """Write an ONNX file, of any batch size; the backend is TensorFlow."""
    tf2onnx = require("tf2onnx", "export")
    from keras_lkca.deploy import onnx_nodes

    function = _function(model, None, *shape)
    tf2onnx.convert.from_function(
        function,
        input_signature=function.input_signature,
        opset=17,
        custom_rewriter=[onnx_nodes.layer_norms, onnx_nodes.gelus],
        output_path=str(path),
    )


def read_onnx(path):
    """Return an ONNX file as a function, by ONNX Runtime."""
    runtime = require("onnxruntime", "export")
    session = runtime.InferenceSession(str(path))
    return lambda images: session.run(["probabilities"], {"images": images})[0]


QUANTIZE = ("weights", "int8")


def write_litert(model, path, shape, quantize, calibration_images):
    """Write a LiteRT file for one image at a time; the backend is TensorFlow.

    Args:
        model: A classifier.
        path: File to write.
        shape: The images' (height, width, channels).
        quantize: `None`, or one of `QUANTIZE`.
        calibration_images: float32 images from which `"int8"` takes the ranges.
    """
    tf = require("tensorflow", "export")
    function = _function(model, 1, *shape)
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    module.function = function
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], module
    )
    if quantize:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "int8":
        converter.representative_dataset = lambda: (
            [image[None]] for image in calibration_images
        )
        one_scale_per_matrix(converter)
    path.write_bytes(converter.convert())


def read_litert(path):
    """Return a LiteRT file as a function, by its interpreter, image by image."""
    interpreter = require("ai_edge_litert.interpreter", "export", "ai-edge-litert")
    interpreter = interpreter.Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    (inputs,), (outputs,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )

    def read(images):
        results = []
        for image in images:
            interpreter.set_tensor(inputs["index"], image[None])
            interpreter.invoke()
            results.append(interpreter.get_tensor(outputs["index"])[0])
        return np.stack(results)

    return read


def write_openvino(model, path, shape):
    """Write OpenVINO's two files, of any batch size; the backend is TensorFlow."""
    runtime = require("openvino", "export")
    function = _function(model, None, *shape).get_concrete_function()
    sizes = [-1, *(size or -1 for size in shape)]
    converted = runtime.convert_model(function, input=[("images", sizes)])
    # Not compressed to half precision.
    runtime.save_model(converted, str(path), compress_to_fp16=False)


def read_openvino(path):
    """Return an OpenVINO file as a function, computed in float32."""
    runtime = require("openvino", "export")
    compiled = runtime.Core().compile_model(
        str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return lambda images: compiled([images])[0]


def write_torch(model, path, shape):
    """Write a program for `torch.export.load`; the backend is torch."""
    library = require("torch", "torch")

    class Serve(library.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images):
            return probabilities(self.model, images)

    # Of the example no two sizes are the same, which would be taken for one.
    pairs = zip(shape, image_shape(model), strict=True)
    sizes = [2, *(size or own + 8 + axis for axis, (size, own) in enumerate(pairs))]
    free = {
        axis: library.export.Dim(("batch", "height", "width")[axis], min=1)
        for axis, size in enumerate((None, *shape))
        if size is None
    }
    with library.no_grad():
        program = library.export.export(
            Serve().eval(), (library.zeros(sizes),), dynamic_shapes={"images": free}
        )
    library.export.save(program, str(path))


def read_torch(path):
    """Return an exported program as a function."""
    library = require("torch", "torch")
    program = library.export.load(str(path)).module()

    def read(images):
        with library.no_grad():
            return program(library.from_numpy(images)).numpy()

    return read


@dataclasses.dataclass(frozen=True)
class Format:
    """A format that models are exported to.

    Args:
        backend: The backend that exports it.
        packages: What the export and its check import.
        extra: The extra of keras-lkca that brings them.
        write: A function of a model, a path, the images' shape, `None` where they are
            of any size, and the `options`, by name.
        read: A function of a path that returns one of float32 images, to probabilities.
        ending: That of its file; none for a folder that holds one for each version.
        options: Those of `keras_lkca.deploy.export`'s arguments that it takes.
        beside: Ending of a second file, or `None`.
        any_size: Whether images may be of any size, where the model takes such.
        transforms: Whether it has Fourier transforms.
    """

    backend: str
    packages: tuple[str, ...]
    extra: str
    write: Callable
    read: Callable
    ending: str = ""
    options: tuple[str, ...] = ()
    beside: str | None = None
    any_size: bool = True
    transforms: bool = False


FORMATS = {
    "tf_saved_model": Format(
        "tensorflow",
        ("tensorflow",),
        "export",
        write_tf_saved_model,
        read_tf_saved_model,
        options=("image_bytes", "class_names", "version"),
        transforms=True,
    ),
    "onnx": Format(
        "tensorflow",
        ("tensorflow", "tf2onnx", "onnxruntime"),
        "export",
        write_onnx,
        read_onnx,
        ".onnx",
    ),
    "litert": Format(
        "tensorflow",
        ("tensorflow", "ai_edge_litert"),
        "export",
        write_litert,
        read_litert,
        ".tflite",
        options=("quantize", "calibration_images"),
        any_size=False,
    ),
    "openvino": Format(
        "tensorflow",
        ("tensorflow", "openvino"),
        "export",
        write_openvino,
        read_openvino,
        ".xml",
        beside=".bin",
    ),
    "torch": Format(
        "torch",
        ("torch",),
        "torch",
        write_torch,
        read_torch,
        ".pt2",
        transforms=True,
    ),
}
