import pathlib
import warnings

import keras
import numpy as np
import pytest
from PIL import Image

import keras_lkca
from keras_lkca import LKCAViT, ViT, deploy
from keras_lkca.deploy import read_model


def trained(**arguments):
    """A small model with weights of which none is what it started as."""
    defaults = {"input_shape": (16, 24, 3), "depth": 2, "embed_dim": 24}
    model = LKCAViT(**{**defaults, **arguments})
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if "seed" not in weight.path:
            noise = rng.normal(0, 0.1, weight.shape)
            weight.assign(keras.ops.convert_to_numpy(weight) + noise)
    return model


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (3, 16, 24, 3)).astype("uint8")


# Folding


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"method": "toeplitz"},
        {"method": "hybrid"},
        {"method": "spectral"},
        {"method": "depthwise"},
        {"num_kernels": 4},
        {"num_kernels": 24, "method": "hybrid"},
        {"kernel_size": 3},
        {"kernel_size": (3, 5), "num_kernels": 2},
        {"pooling": "max", "classifier_activation": "softmax"},
        {"include_top": False},
        {"include_top": False, "pooling": None},
        {"image_mean": (0.5, 0.4, 0.3), "class_names": list("abcdefghij")},
        {"drop_path_rate": 0.5, "dropout_rate": 0.5, "mlp_ratio": 1.5},
    ],
)
def test_folded_outputs_are_the_same(arguments, images, tmp_path):
    model = trained(**arguments)
    folded = deploy.fold(model)
    expected = model.predict(images, verbose=0)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        folded.predict(images, verbose=0), expected, atol=1e-5 * max(scale, 1)
    )
    folded.save(tmp_path / "folded.keras")
    loaded = keras.models.load_model(tmp_path / "folded.keras")
    assert type(loaded) is deploy.FoldedLKCAViT
    assert loaded.class_names == model.class_names
    np.testing.assert_allclose(
        loaded.predict(images, verbose=0), expected, atol=1e-5 * max(scale, 1)
    )
    assert folded.count_params() < model.count_params()


def test_folding_leaves_the_model_alone(images):
    model = trained()
    before = [np.array(weight) for weight in model.get_weights()]
    deploy.fold(model)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_parameters_saved_by_folding():
    model = LKCAViT.from_preset("lkca_vit_tiny")
    folded = deploy.fold(model)
    # A value projection and a scale, an offset and a bias less than three, a block:
    # what LayerNorm had, but for the bias of the joint projection.
    dim, depth, classifier_norm = 136, 9, 2 * 136
    saved = depth * (dim * dim + 3 * dim) + classifier_norm
    assert model.count_params() - folded.count_params() == saved
    assert saved / model.count_params() > 0.14


def test_what_follows_from_the_kernel_is_kept_and_renewed(images, tmp_path):
    model = trained(method="toeplitz", depth=1)
    folded = deploy.fold(model)
    mixing = folded.get_layer("block_0_mixing")
    (matrix,) = mixing._kept
    np.testing.assert_allclose(
        matrix,
        keras.ops.convert_to_numpy(model.get_layer("block_0_lkca").attention_matrix()),
        atol=1e-6,
    )
    folded.save_weights(tmp_path / "a.weights.h5")
    expected = folded.predict(images, verbose=0)
    for load in (
        lambda other: other.load_weights(tmp_path / "a.weights.h5"),
        lambda other: other.set_weights(folded.get_weights()),
    ):
        plain = LKCAViT((16, 24, 3), depth=1, embed_dim=24, method="toeplitz")
        other = deploy.fold(plain)
        assert np.abs(other.predict(images, verbose=0) - expected).max() > 0.1
        load(other)
        np.testing.assert_allclose(
            other.predict(images, verbose=0), expected, atol=1e-6
        )


def test_a_layer_of_a_folded_model_follows_its_weights(rng):
    folded = deploy.fold(LKCAViT((16, 24, 3), depth=1, embed_dim=8, method="toeplitz"))
    mixing = folded.get_layer("block_0_mixing")
    kernel = rng.normal(0, 1, mixing.kernel.shape)
    mixing.set_weights([kernel, np.zeros(8)])
    x = rng.normal(0, 1, (2, *mixing.input.shape[1:])).astype("float32")
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(mixing(x)),
        keras.ops.convert_to_numpy(
            keras_lkca.ops.large_kernel_conv(x, kernel.astype("float32"), "spectral")
        ),
        atol=1e-4,
    )
    with pytest.raises(ValueError, match="incompatible with the layer"):
        mixing(x.transpose(0, 2, 1, 3))


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_folding_in_half_precision(dtype, images):
    model = trained(dtype=dtype)
    expected = model.predict(images, verbose=0).astype("float32")
    outputs = deploy.fold(model).predict(images, verbose=0).astype("float32")
    assert np.abs(outputs - expected).max() < 0.05 * np.abs(expected).max()


def test_only_lkca_is_folded():
    for model in (ViT(depth=1, embed_dim=16), "model.keras", None):
        with pytest.raises(ValueError, match="`model` must be a LKCAViT.*Received"):
            deploy.fold(model)


def test_fixed_conv_needs_a_static_grid():
    with pytest.raises(ValueError, match="FixedConv needs a static height"):
        deploy.FixedConv((3, 3))(keras.Input((None, 4, 8)))


# Names and probabilities


NAMES = ("ant", "bee", "cat", "dog")


@pytest.fixture
def classifier():
    return trained(num_classes=4, class_names=NAMES)


def test_class_names_travel_with_the_model(classifier, tmp_path):
    classifier.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.class_names == NAMES
    assert LKCAViT(depth=1).class_names is None
    assert ViT(depth=1, num_classes=4, class_names=list(NAMES)).class_names == NAMES


@pytest.mark.parametrize(
    "arguments",
    [
        {"class_names": ["a", "b"]},
        {"class_names": [1, 2, 3, 4]},
        {"class_names": "abcd"},
        {"class_names": NAMES, "include_top": False},
    ],
)
@pytest.mark.parametrize("model_class", [LKCAViT, ViT])
def test_bad_class_names(model_class, arguments):
    with pytest.raises(ValueError, match="`class_names` must be a string for each"):
        model_class(num_classes=4, depth=1, **arguments)


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_predict_arrays(activation, images):
    model = trained(num_classes=4, class_names=NAMES, classifier_activation=activation)
    results = keras_lkca.predict(model, images, top=3)
    outputs = np.asarray(model.predict(images, verbose=0), "float64")
    if activation is None:
        outputs = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    for result, row in zip(results, outputs, strict=True):
        order = np.argsort(-row)[:3]
        assert [name for name, _ in result] == [NAMES[i] for i in order]
        np.testing.assert_allclose([p for _, p in result], row[order], rtol=1e-4)
    assert len(keras_lkca.predict(model, images[0], top=9)[0]) == 4


def test_predict_without_names(images):
    names = [name for name, _ in keras_lkca.predict(trained(), images)[0]]
    assert len(names) == 5 and set(names) <= set("0123456789")


def test_bad_input_to_predict(classifier, images, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no .*missing.png"):
        keras_lkca.predict(classifier, tmp_path / "missing.png")
    with pytest.raises(FileNotFoundError, match="There is no .*missing.keras"):
        keras_lkca.predict(tmp_path / "missing.keras", images)
    (tmp_path / "model.keras").write_text("no model")
    with pytest.raises(ValueError, match="model.keras is no `.keras` file"):
        keras_lkca.predict(tmp_path / "model.keras", images)
    (tmp_path / "image.png").write_text("no image")
    with pytest.raises(ValueError, match="cannot be decoded"):
        keras_lkca.predict(classifier, tmp_path / "image.png")
    with pytest.raises(ValueError, match=r"`images` must be numbers of shape"):
        keras_lkca.predict(classifier, images[:, :8])
    with pytest.raises(ValueError, match="`top` must be a positive"):
        keras_lkca.predict(classifier, images, top=0)
    with pytest.raises(ValueError, match="`model` must be a Keras model or the path"):
        keras_lkca.predict(3, images)
    with pytest.raises(ValueError, match="`model` must map images to classes"):
        keras_lkca.predict(trained(include_top=False, pooling=None), images)


def test_a_file_with_unknown_classes_says_what_to_do(tmp_path):
    class Mine(keras.layers.Layer):
        def call(self, x):
            return x

    inputs = keras.Input((4, 4, 3))
    keras.Model(inputs, Mine()(inputs)).save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="(?s)must be registered.*Mine"):
        read_model(tmp_path / "model.keras")


# Export


ENDINGS = {"onnx": ".onnx", "litert": ".tflite", "openvino": ".xml", "torch": ".pt2"}


def needs(format):
    for package in deploy.FORMATS[format][1]:
        pytest.importorskip(package)


def expected_of(model, images):
    outputs = np.asarray(model.predict(images, verbose=0), "float64")
    outputs = np.exp(outputs - outputs.max(1, keepdims=True))
    return outputs / outputs.sum(1, keepdims=True)


@pytest.mark.filterwarnings("ignore")  # the converters' own
@pytest.mark.parametrize("format", list(deploy.FORMATS))
@pytest.mark.parametrize("model_class", [LKCAViT, ViT])
def test_export_from_every_backend(model_class, format, images, tmp_path, run_python):
    """The file, read by what serves it, in a process of its own."""
    needs(format)
    model = trained(num_classes=4, class_names=NAMES)
    if model_class is ViT:
        keras.utils.set_random_seed(0)
        model = ViT((16, 24, 3), num_classes=4, depth=2, embed_dim=24, num_heads=2)
    path = deploy.export(
        model, tmp_path / f"model{ENDINGS.get(format, '')}", format=format
    )
    assert path.exists()
    assert not list(tmp_path.glob(".writing-*"))
    np.save(tmp_path / "images.npy", images.astype("float32"))
    read = (
        "import sys, numpy as np; from keras_lkca.deploy import formats; "
        "images = np.load(sys.argv[3]); "
        "outputs = formats.READERS[sys.argv[1]](sys.argv[2])(images); "
        "np.save(sys.argv[4], outputs)"
    )
    run_python(
        *("-c", read, format, path, tmp_path / "images.npy", tmp_path / "out.npy"),
        backend="torch" if format == "torch" else "tensorflow",
    )
    outputs = np.load(tmp_path / "out.npy")
    np.testing.assert_allclose(outputs, expected_of(model, images), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_model_that_is_not_folded_is_exported(format, rng, tmp_path):
    """Its plan depends on the batch, which is any."""
    needs(format)
    model = trained(input_shape=(32, 32, 3), embed_dim=136, depth=1, num_classes=4)
    path = tmp_path / f"model{ENDINGS[format]}"
    deploy.export(model, path, format=format, fold_model=False)
    if format != "torch" or keras.config.backend() == "torch":
        read = deploy.formats.READERS[format](path)
        for batch in (1, 5):
            images = rng.uniform(0, 255, (batch, 32, 32, 3)).astype("float32")
            np.testing.assert_allclose(
                read(images), expected_of(model, images), atol=1e-5
            )


@pytest.mark.filterwarnings("ignore")
def test_a_mixed_model_is_exported_in_float32(images, tmp_path):
    needs("onnx")
    model = trained(dtype="mixed_bfloat16")
    whole = trained(dtype="float32")
    whole.set_weights(model.get_weights())
    path = deploy.export(model, tmp_path / "model.onnx", format="onnx")
    outputs = deploy.formats.read_onnx(path)(images.astype("float32"))
    assert outputs.dtype == "float32"
    np.testing.assert_allclose(outputs, expected_of(whole, images), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_folding_is_the_default_and_smaller(tmp_path):
    needs("onnx")
    model = trained(embed_dim=64)
    sizes = [
        deploy.export(model, tmp_path / f"{fold}.onnx", format="onnx", fold_model=fold)
        .stat()
        .st_size
        for fold in (None, False)
    ]
    assert sizes[0] < 0.95 * sizes[1]


SERVED = """
import io, sys
import numpy as np
import tensorflow as tf
from PIL import Image

folder, images = sys.argv[1], np.load(sys.argv[2])
loaded = tf.saved_model.load(folder, tags=["serve"])
signatures = loaded.signatures
assert set(signatures) == {"serving_default", "uint8", "image_bytes"}, set(signatures)
floats = signatures["serving_default"](images=tf.constant(images, tf.float32))
bytes_ = signatures["uint8"](images=tf.constant(images))
assert set(floats) == {"probabilities", "classes", "labels"}
names = np.array(["ant", "bee", "cat", "dog"])
best = floats["probabilities"].numpy().argmax(-1)
assert (floats["classes"].numpy() == best).all()
assert [x.decode() for x in floats["labels"].numpy()] == names[best].tolist()
for key in ("probabilities", "classes"):
    np.testing.assert_array_equal(floats[key].numpy(), bytes_[key].numpy())


def png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


# An image of another size and aspect: its middle counts.
wide = np.zeros((32, 96, 3), "uint8")
wide[:, 24:72] = images[0].repeat(2, 0).repeat(2, 1)
encoded = tf.constant([png(images[0]), png(images[1]), png(wide)])
files = signatures["image_bytes"](image_bytes=encoded)["probabilities"].numpy()
np.testing.assert_allclose(files[:2], floats["probabilities"].numpy()[:2], atol=1e-5)
assert abs(files[2] - files[0]).max() < 0.2
for bad in (b"no image", b""):
    try:
        signatures["image_bytes"](image_bytes=tf.constant([bad]))
    except tf.errors.InvalidArgumentError as error:
        pass
    else:
        raise AssertionError(bad)

# As TensorFlow Serving loads it.
with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], folder)
    signature = graph.signature_def["serving_default"]
    outputs = session.run(
        signature.outputs["probabilities"].name,
        {signature.inputs["images"].name: images.astype("float32")},
    )
np.testing.assert_allclose(outputs, floats["probabilities"].numpy(), atol=1e-6)
"""


@pytest.mark.filterwarnings("ignore")
def test_what_tensorflow_serving_needs(classifier, images, tmp_path, run_python):
    needs("tf_saved_model")
    path = deploy.export(
        classifier, tmp_path / "pets", version=7, image_bytes=True, overwrite=True
    )
    assert path == tmp_path / "pets" / "7" and (path / "saved_model.pb").exists()
    np.save(tmp_path / "images.npy", images)
    run_python("-c", SERVED, path, tmp_path / "images.npy", backend="tensorflow")


@pytest.mark.filterwarnings("ignore")
def test_what_is_there_is_replaced_whole_or_not_at_all(
    classifier, tmp_path, monkeypatch
):
    needs("tf_saved_model")
    version = tmp_path / "pets" / "1"
    version.mkdir(parents=True)
    (version / "old").write_text("old")
    with pytest.raises(ValueError, match=r"1 exists; choose another version.*--overw"):
        deploy.export(classifier, tmp_path / "pets")
    with pytest.raises(ValueError, match="differ by.*nothing was written"):
        deploy.export(classifier, tmp_path / "pets", tolerance=-1.0, overwrite=True)
    assert [path.name for path in version.iterdir()] == ["old"]
    rename = pathlib.Path.rename

    def fails(self, target):
        if self.parent.name == "new":
            raise OSError("the disk is gone")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "rename", fails)
        with pytest.raises(OSError, match="the disk is gone"):
            deploy.export(classifier, tmp_path / "pets", overwrite=True)
    assert [path.name for path in version.iterdir()] == ["old"]
    deploy.export(classifier, tmp_path / "pets", overwrite=True)
    assert not (version / "old").exists() and (version / "saved_model.pb").exists()
    assert [path.name for path in version.parent.iterdir()] == ["1"]


@pytest.fixture(scope="module")
def digits():
    """A model that reads most digits, and its probabilities of the test images."""
    keras.utils.set_random_seed(0)
    images, labels = keras_lkca.data.digits("train")
    model = LKCAViT((8, 8, 1), patch_size=2, embed_dim=64, depth=2, drop_path_rate=0)
    model.compile(
        keras.optimizers.AdamW(5e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(images, labels, batch_size=100, epochs=10, verbose=0)
    images, labels = keras_lkca.data.digits("test")
    expected = expected_of(model, images)
    assert (expected.argmax(1) == labels).mean() > 0.8
    return model, images, expected


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantize", ["weights", "int8"])
def test_quantized_litert(quantize, digits, tmp_path):
    needs("litert")
    model, images, expected = digits
    whole = deploy.export(model, tmp_path / "whole.tflite", format="litert")
    calibration, _ = keras_lkca.data.digits("train")
    small = deploy.export(
        model,
        tmp_path / "small.tflite",
        format="litert",
        quantize=quantize,
        calibration_images=calibration[:100] if quantize == "int8" else None,
    )
    assert small.stat().st_size < 0.5 * whole.stat().st_size
    outputs = deploy.formats.read_litert(small)(images.astype("float32"))
    assert (outputs.argmax(1) == expected.argmax(1)).mean() > 0.98
    assert np.abs(outputs - expected).mean() < 0.005


@pytest.mark.parametrize("mode", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["lkca", "vit", "folded", "mixed"])
def test_what_keras_quantizes_is_saved(kind, mode, digits, tmp_path):
    model, images, _ = digits
    if kind == "vit":
        model = ViT((8, 8, 1), patch_size=2, embed_dim=64, depth=2, num_heads=4)
    elif kind == "folded":
        model = deploy.fold(model)
    else:
        config = model.get_config()
        config["dtype"] = "mixed_bfloat16" if kind == "mixed" else "float32"
        weights, model = model.get_weights(), LKCAViT.from_config(config)
        model.set_weights(weights)
    images = images[:100]
    before = expected_of(model, images)
    model.save(tmp_path / "whole.keras")
    with warnings.catch_warnings():
        # Keras names each layer that has nothing to quantize.
        warnings.simplefilter("ignore", UserWarning)
        model.quantize(mode)
    after = expected_of(model, images)
    assert 0 < np.abs(after - before).mean() < (0.003 if mode == "int8" else 0.03)
    model.save(tmp_path / "small.keras")
    sizes = [(tmp_path / f"{x}.keras").stat().st_size for x in ("small", "whole")]
    assert sizes[0] < 0.6 * sizes[1]
    loaded = keras.models.load_model(tmp_path / "small.keras")
    assert list(loaded.quantized_layers) == list(model.quantized_layers)
    assert len(loaded.quantized_layers) == {"vit": 10, "folded": 8}.get(kind, 10)
    np.testing.assert_allclose(expected_of(loaded, images), after, atol=1e-6)


def test_a_model_of_ones_own_is_quantized_and_saved(rng, tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = keras_lkca.layers.PatchEmbedding(2, 16)(inputs)
    x = keras_lkca.layers.LKCA(kernel_initializer="glorot_uniform")(x)
    x = keras.layers.Reshape((16, 16))(x)
    x = keras_lkca.layers.SelfAttention(2)(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.quantize("int8")
    images = rng.uniform(0, 1, (4, 8, 8, 3)).astype("float32")
    expected = model.predict(images, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(images, verbose=0), expected)


def test_some_layers_can_be_quantized(images, tmp_path):
    model = trained()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.quantize("int8", filters="mlp")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert len(loaded.quantized_layers) == 4
    np.testing.assert_array_equal(
        loaded.predict(images, verbose=0), model.predict(images, verbose=0)
    )


@pytest.mark.filterwarnings("ignore")
def test_a_quantized_model_is_exported_but_not_folded(images, tmp_path):
    needs("onnx")
    model = trained(num_classes=4, dtype="mixed_bfloat16")
    model.quantize("int8")
    for call in (deploy.fold, lambda m: deploy.export(m, "nowhere", fold_model=True)):
        with pytest.raises(ValueError, match="`model` is quantized: fold it first"):
            call(model)
    path = deploy.export(model, tmp_path / "model.onnx", format="onnx")
    outputs = deploy.formats.read_onnx(path)(images.astype("float32"))
    np.testing.assert_allclose(outputs, expected_of(model, images), atol=0.02)


def test_grey_files(tmp_path):
    (tmp_path / "images").mkdir()
    images = keras_lkca.data.digits("test")[0][:5]
    paths = [tmp_path / "images" / f"{index}.png" for index in range(5)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image[..., 0]).save(path)
    np.testing.assert_array_equal(deploy.read_images(paths, (8, 8, 1)), images)
    deep = LKCAViT((8, 8, 4), patch_size=2, embed_dim=16, depth=1)
    with pytest.raises(ValueError, match="Image files have 1 channel or 3"):
        keras_lkca.predict(deep, paths[0])


def test_bad_input_to_quantized_export(classifier, images, tmp_path):
    needs("litert")
    for arguments, message in (
        ({"quantize": "int4"}, "`quantize` must be one of"),
        ({"quantize": "int8", "format": "onnx"}, "`quantize` must be one of"),
        ({"quantize": "int8"}, "`calibration_images` are for quantize='int8'"),
        ({"calibration_images": images}, "`calibration_images` are for"),
        (
            {"quantize": "int8", "calibration_images": images[:, :8]},
            "`calibration_images` must be .*Received: shape",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            deploy.export(
                classifier, tmp_path / "x", **{"format": "litert", **arguments}
            )
    assert not list(tmp_path.iterdir())


def test_where_probabilities_come_from(images):
    """From a softmax however it was written, or else logits; nothing in between."""
    base = trained(num_classes=4, classifier_activation="softmax")
    logits = trained(num_classes=4)
    logits.set_weights(base.get_weights())
    expected = base.predict(images, verbose=0)
    inputs = keras.Input((16, 24, 3))
    for outputs in (
        base(inputs),
        keras.ops.softmax(logits(inputs)),
        keras.layers.Softmax()(logits(inputs)),
        logits(inputs),
        keras.layers.Average()([base(inputs), base(inputs)]),
        keras.layers.Activation("linear", dtype="float32")(base(inputs)),
    ):
        results = keras_lkca.predict(keras.Model(inputs, outputs), images, top=4)
        for result, row in zip(results, expected, strict=True):
            for name, probability in result:
                assert probability == pytest.approx(row[int(name)], abs=1e-5)
    sigmoid = keras.Model(inputs, keras.layers.Dense(1, "sigmoid")(logits(inputs)))
    with pytest.raises(ValueError, match="must end with a softmax.*'sigmoid'"):
        keras_lkca.predict(sigmoid, images)
    with pytest.raises(ValueError, match="must end with a softmax.*'sigmoid'"):
        deploy.export(sigmoid, "nowhere", format="onnx")
    for outputs, message in (
        (keras.ops.sigmoid(logits(inputs)), "Sigmoid, which is neither"),
        (2 * logits(inputs), "Multiply, which is neither"),
        (keras.layers.Average()([base(inputs), logits(inputs)]), "averages logits and"),
        (keras.layers.Dense(1)(logits(inputs)), "two classes or more"),
    ):
        with pytest.raises(ValueError, match=message):
            keras_lkca.predict(keras.Model(inputs, outputs), images)


@pytest.mark.filterwarnings("ignore")
def test_a_model_with_a_layer_of_ones_own_is_exported(images, tmp_path, monkeypatch):
    needs("onnx")
    (tmp_path / "its_layers.py").write_text(
        "import keras\n"
        "@keras.saving.register_keras_serializable(package='its')\n"
        "class Doubled(keras.layers.Layer):\n"
        "    def call(self, x):\n"
        "        return x * 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import its_layers

    inputs = keras.Input((16, 24, 3))
    x = its_layers.Doubled()(keras.layers.GlobalAveragePooling2D()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(4)(x))
    path = deploy.export(model, tmp_path / "model.onnx", format="onnx")
    outputs = deploy.formats.read_onnx(path)(images.astype("float32"))
    np.testing.assert_allclose(outputs, expected_of(model, images), atol=1e-5)
    monkeypatch.setattr(its_layers.Doubled, "__module__", "__main__")
    with pytest.raises(ValueError, match="Doubled is defined in the program itself"):
        deploy.export(model, tmp_path / "other.onnx", format="onnx")
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_model_around_another_is_exported(images, tmp_path):
    """With its GELUs, and the model in hand left as it is."""
    needs("onnx")
    base = trained(include_top=False)
    inputs = keras.Input((16, 24, 3))
    model = keras.Model(inputs, keras.layers.Dense(4)(base(inputs)))
    path = deploy.export(model, tmp_path / "model.onnx", format="onnx")
    outputs = deploy.formats.read_onnx(path)(images.astype("float32"))
    np.testing.assert_allclose(outputs, expected_of(model, images), atol=1e-5)
    activation = base.get_layer("block_0_mlp_expand").activation
    assert activation is keras.activations.gelu


def test_bad_input_to_export(classifier, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`format` must be one of.*'tflite'"):
        deploy.export(classifier, tmp_path / "x", format="tflite")
    with pytest.raises(ValueError, match="`version` must be a positive"):
        deploy.export(classifier, tmp_path / "x", version=0)
    with pytest.raises(FileNotFoundError, match="There is no"):
        deploy.export(tmp_path / "missing.keras", tmp_path / "x")
    with pytest.raises(ValueError, match="`model` must map images to classes"):
        deploy.export(trained(include_top=False, pooling=None), tmp_path / "x")
    with pytest.raises(ValueError, match="`fold_model` is for a LKCAViT"):
        deploy.export(ViT(depth=1), tmp_path / "x", fold_model=True)
    for format in ("onnx", "openvino"):
        with pytest.raises(ValueError, match="is a folder; .* writes a file"):
            deploy.export(classifier, tmp_path, format=format, overwrite=True)
    with pytest.raises(ValueError, match="are for format='tf_saved_model'"):
        deploy.export(classifier, tmp_path / "x", format="onnx", image_bytes=True)
    (tmp_path / "x.bin").write_text("")
    with pytest.raises(ValueError, match="exists; choose another"):
        deploy.export(classifier, tmp_path / "x.xml", format="openvino")
    (tmp_path / "x.bin").unlink()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written to"):
        deploy.export(classifier, tmp_path / "file" / "x")
    monkeypatch.setitem(deploy.FORMATS, "onnx", ("tensorflow", ("no_such_package",)))
    with pytest.raises(ImportError, match=r"no-such-package.*keras-lkca\[export\]"):
        deploy.export(classifier, tmp_path / "x.onnx", format="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
