import collections
import dataclasses
import io
import pathlib
import struct
import warnings
import zlib

import keras
import numpy as np
import pytest
from conftest import NAMES, every_layer, needs, trained
from PIL import Image

import keras_lkca
from keras_lkca import LKCANet, LKCAViT, ViT, deploy
from keras_lkca.deploy import read_model
from keras_lkca.models import classifiers

# Names and probabilities


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


def test_predict_by_a_trained_preset(tmp_path):
    image = np.zeros((32, 32, 3), "uint8")
    Image.fromarray(image).save(tmp_path / "dark.png")
    (best,) = deploy.predict("lkca_net_08m_cifar10", tmp_path / "dark.png", top=10)
    names = LKCANet.from_preset("lkca_net_08m_cifar10").class_names
    assert {name for name, _ in best} == set(names) > {"cat", "dog", "ship"}
    with pytest.raises(ValueError, match="is a size without weights.*_cifar10"):
        deploy.predict("lkca_net_08m", image)


def test_bad_input_to_predict(classifier, images, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no .*missing.png"):
        keras_lkca.predict(classifier, tmp_path / "missing.png")
    with pytest.raises(FileNotFoundError, match="no such preset.*'lkca_net_08m_cifar1"):
        keras_lkca.predict("lkca_net_08m_cifar", images)
    with pytest.raises(ValueError, match="`images` must be numbers.*NoneType of obj"):
        keras_lkca.predict(classifier, None)
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
    with pytest.raises(ValueError, match="`batch_size` must be a positive"):
        keras_lkca.predict(classifier, images, batch_size=0)
    with pytest.raises(ValueError, match="grey ones become such by np.repeat.*16, 24"):
        keras_lkca.predict(classifier, images[..., 0])
    with pytest.raises(ValueError, match="`images` must be of one size"):
        keras_lkca.predict(classifier, [images[0], images[0, :8]])
    with pytest.raises(ValueError, match="is a folder; give the paths"):
        keras_lkca.predict(classifier, tmp_path)
    with pytest.raises(ValueError, match="`paths` must be paths.*3 among"):
        deploy.read_images([3], (16, 24, 3))
    with pytest.raises(ValueError, match="`shape` must be .height, width, channels"):
        deploy.read_images([], (16, 24))
    with pytest.raises(ValueError, match="`model` must be a Keras model or the path"):
        keras_lkca.predict(3, images)
    with pytest.raises(ValueError, match="`model` must map images .* classes"):
        keras_lkca.predict(trained(include_top=False, pooling=None), images)


def test_names_of_a_model_within_another(classifier, images, tmp_path):
    """They come through a softmax; others may be given; files are resized."""
    inputs = keras.Input((None, None, 3))
    x = classifier(keras.layers.Resizing(16, 24)(inputs))
    model = keras.Model(inputs, keras.layers.Softmax()(x))
    expected = keras_lkca.predict(classifier, images, top=2)
    found = keras_lkca.predict(model, images, top=2)
    given = keras_lkca.predict(model, images, top=2, class_names=list("abcd"))
    for many, few, letters in zip(expected, found, given, strict=True):
        assert [name for name, _ in few] == [name for name, _ in many]
        assert [name for name, _ in letters] == [
            "abcd"[NAMES.index(name)] for name, _ in many
        ]
    Image.fromarray(images[0]).save(tmp_path / "image.png")
    (best,) = keras_lkca.predict(model, tmp_path / "image.png", top=1)
    assert best[0][0] == expected[0][0][0]
    large = images.repeat(2, 1).repeat(2, 2)
    assert keras_lkca.predict(model, large, top=1)[0][0][0] in NAMES
    with pytest.raises(ValueError, match=r"shape \('n', 'any', 'any', 3\), or paths"):
        keras_lkca.predict(model, images[..., 0])
    # A Dense after it has classes of its own.
    other = keras.Model(classifier.inputs, keras.layers.Dense(4)(classifier.outputs[0]))
    assert keras_lkca.predict(other, images[0], top=1)[0][0][0] in "0123"
    for names in (["a", "b"], "abcd"):
        with pytest.raises(ValueError, match="`class_names` must be a string for each"):
            keras_lkca.predict(model, images, class_names=names)


def test_where_names_come_from():
    """From a model within, where each class stays in its column."""
    layers, ops, inputs = keras.layers, keras.ops, keras.Input((16, 24, 3))
    base, same = (trained(num_classes=4, class_names=NAMES, depth=1) for _ in "12")
    other = trained(num_classes=4, class_names=list("wxyz"), depth=1)
    unnamed = trained(num_classes=4, depth=1)
    within = keras.Sequential([inputs, layers.RandomFlip(), base])
    tiles = layers.Reshape((1, 16, 24, 3))(inputs)
    tiles = layers.GlobalAveragePooling1D()(layers.TimeDistributed(base)(tiles))
    for outputs, names in (
        (layers.Softmax()(within(inputs)), NAMES),
        (layers.Softmax()(deploy.fold(base)(inputs)), NAMES),
        (ops.softmax(ops.cast(base(inputs), "float32") / 2), NAMES),
        (layers.Activation("softmax")(layers.Rescaling(0.5)(base(inputs))), NAMES),
        (layers.Average()([base(inputs), same(inputs), unnamed(inputs)]), NAMES),
        (layers.Average()([base(inputs), base(layers.RandomFlip()(inputs))]), NAMES),
        (tiles, NAMES),
        (layers.Average()([base(inputs), other(inputs)]), None),
        (layers.Dense(4)(base(inputs)), None),
        (layers.Dense(3)(base(inputs)), None),
    ):
        assert classifiers.class_names(keras.Model(inputs, outputs)) == names
    two = keras.Model(inputs, [base(inputs), other(inputs)])
    assert classifiers.class_names(two) is None
    around = keras_lkca.models.ImageModel(
        inputs, base(inputs), class_names=list("wxyz")
    )
    assert classifiers.class_names(around) == tuple("wxyz")
    assert classifiers.class_names(deploy.fold(around)) == tuple("wxyz")


def logits_and_sigmoids(columns, names=None):
    """A model that ends with logits, and one with a sigmoid behind it."""
    model = trained(num_classes=columns, class_names=names, depth=1)
    inputs = keras.Input((16, 24, 3))
    return model, keras.Model(inputs, keras.layers.Activation("sigmoid")(model(inputs)))


def test_predict_yes_or_no_and_any_number_of_labels(images):
    """One column is two classes; a sigmoid on each of several stays as it is."""
    logits, sigmoid = logits_and_sigmoids(1, ["no", "yes"])
    expected = sigmoid.predict(images, verbose=0)[:, 0]
    for model in (logits, sigmoid):
        for pairs, p in zip(keras_lkca.predict(model, images), expected, strict=True):
            assert [pair[0] for pair in pairs] == ["no", "yes"][:: -1 if p > 0.5 else 1]
            assert dict(pairs) == pytest.approx({"yes": p, "no": 1 - p}, abs=1e-5)
    (best,) = keras_lkca.predict(sigmoid, images[0], top=1, class_names=["0", "1"])[0]
    assert best[0] == str(int(expected[0] > 0.5)) and best[1] >= 0.5
    far = keras.layers.Dense(1, bias_initializer=keras.initializers.Constant(-1e6))
    far = keras.Model(sigmoid.input, far(sigmoid.output))
    assert keras_lkca.predict(far, images[0])[0] == [("0", 1), ("1", 0)]
    _, sigmoids = logits_and_sigmoids(4, NAMES)
    expected = sigmoids.predict(images, verbose=0)
    for pairs, row in zip(keras_lkca.predict(sigmoids, images), expected, strict=True):
        assert dict(pairs) == pytest.approx(dict(zip(NAMES, row, strict=True)))
        assert [p for _, p in pairs] == sorted(row.tolist(), reverse=True)
    for names in (["yes"], ["a", "b", "c"]):
        with pytest.raises(ValueError, match="`class_names` must be .*two for one col"):
            keras_lkca.predict(logits, images, class_names=names)


@pytest.mark.once
@pytest.mark.filterwarnings("ignore")
def test_yes_or_no_and_any_number_of_labels_are_exported(images, tmp_path):
    """As they are predicted."""
    needs("tf_saved_model")
    import tensorflow as tf

    for number, model in enumerate(
        (logits_and_sigmoids(1, ["no", "yes"])[0], logits_and_sigmoids(4, NAMES)[1])
    ):
        path = deploy.export(model, tmp_path / str(number))
        loaded = tf.saved_model.load(str(path))
        found = loaded.signatures["uint8"](images=tf.constant(images))
        names = classifiers.class_names(model)
        results = keras_lkca.predict(model, images)
        for index, pairs in enumerate(results):
            row = found["probabilities"][index].numpy()
            assert dict(zip(names, row, strict=True)) == pytest.approx(
                dict(pairs), abs=1e-5
            )
            assert found["labels"][index].numpy().decode() == pairs[0][0]


def test_a_file_with_unknown_classes_says_what_to_do(tmp_path):
    class Mine(keras.layers.Layer):
        def call(self, x):
            return x

    inputs = keras.Input((4, 4, 3))
    keras.Model(inputs, Mine()(inputs)).save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="(?s)must be registered.*Mine"):
        read_model(tmp_path / "model.keras")


# Export


def expected_of(model, images):
    outputs = np.asarray(model.predict(images, verbose=0), "float64")
    outputs = np.exp(outputs - outputs.max(1, keepdims=True))
    return outputs / outputs.sum(1, keepdims=True)


@pytest.mark.filterwarnings("ignore")  # the converters' own
@pytest.mark.parametrize("format", list(deploy.FORMATS))
def test_export_from_every_backend(format, classifier, exported, images):
    path = exported(format)
    assert not list(path.parent.glob(".writing-*"))
    outputs = deploy.FORMATS[format].read(path)(images.astype("float32"))
    np.testing.assert_allclose(outputs, expected_of(classifier, images), atol=1e-5)


@pytest.mark.once
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", list(deploy.FORMATS))
def test_a_vit_is_exported(format, images, tmp_path):
    needs(format)
    model = ViT((16, 24, 3), num_classes=4, depth=1, embed_dim=24, num_heads=2)
    row = deploy.FORMATS[format]
    path = deploy.export(model, tmp_path / f"model{row.ending}", format=format)
    outputs = row.read(path)(images.astype("float32"))
    np.testing.assert_allclose(outputs, expected_of(model, images), atol=1e-5)


@pytest.mark.once
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_model_that_is_not_folded_is_exported(format, rng, tmp_path):
    """Its plan depends on the batch, which is any; and folding is the default."""
    needs(format)
    model = trained(input_shape=(32, 32, 3), embed_dim=136, depth=1, num_classes=4)
    row = deploy.FORMATS[format]
    path = tmp_path / f"model{row.ending}"
    deploy.export(model, path, format=format, fold_model=False)
    read = row.read(path)
    for batch in (1, 5):
        images = rng.uniform(0, 255, (batch, 32, 32, 3)).astype("float32")
        np.testing.assert_allclose(read(images), expected_of(model, images), atol=1e-5)
    size = path.stat().st_size
    deploy.export(model, path, format=format, overwrite=True)
    assert path.stat().st_size < 0.95 * size


def test_images_of_any_size_that_a_model_resizes(images, tmp_path):
    """Wherever it does, its files and arrays are taken."""
    layers, base = keras.layers, trained(num_classes=4)
    larger, resizing = images.repeat(2, 1), layers.Resizing(16, 24)
    Image.fromarray(larger[0]).save(tmp_path / "image.png")

    def ends(*before, size=(None, None)):
        return keras.Sequential([keras.Input((*size, 3)), *before, base])

    inputs = keras.Input((None, None, 3))
    for model, shape in (
        (ends(layers.Rescaling(1.0), resizing), (16, 24, 3)),
        (ends(keras.Sequential([layers.RandomFlip(), resizing])), (16, 24, 3)),
        (ends(layers.Resizing(48, 48), layers.AveragePooling2D((3, 2))), (48, 48, 3)),
        (ends(layers.Resizing(16, 24), size=(None, 24)), (16, 24, 3)),
        (keras.Sequential([inputs, ends(resizing), layers.Softmax()]), (16, 24, 3)),
        (
            keras.Model(inputs, base(keras.ops.image.resize(inputs, (16, 24)))),
            (16, 24, 3),
        ),
    ):
        assert classifiers.image_shape(model) == shape
        for given, count in ((larger, 3), (tmp_path / "image.png", 1)):
            assert len(keras_lkca.predict(model, given, top=1)) == count
    pooled = layers.Dense(4)(layers.GlobalAveragePooling2D()(inputs))
    with pytest.raises(ValueError, match="must take images of one size"):
        keras_lkca.predict(keras.Model(inputs, pooled), images)


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("arguments", [{"method": "spectral"}, {"num_kernels": 8}])
def test_transforms_become_products(arguments, folded, images, monkeypatch):
    """Also those that are planned, whose plan is the same function."""
    if "method" not in arguments:
        for module in (keras_lkca.ops.plan, deploy.formats):
            monkeypatch.setattr(module, "choose_method", lambda *_, **__: "spectral")
    model = trained(depth=1, embed_dim=8, **arguments)
    model = deploy.fold(model) if folded else model
    expected = keras.ops.convert_to_numpy(model(images))
    deploy.formats.use_products(model)
    found = {layer.method for layer in model.layers if hasattr(layer, "method")}
    assert found == {"hybrid"}
    outputs = keras.ops.convert_to_numpy(model(images))
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.once
@pytest.mark.filterwarnings("ignore")
def test_a_model_of_transforms_is_exported(images, tmp_path):
    needs("litert")
    model = trained(depth=1, num_classes=4, method="spectral")
    for format in ("onnx", "openvino", "litert"):
        with pytest.raises(ValueError, match="no Fourier.*keras_lkca.deploy.export"):
            model.export(tmp_path / "model", format=format)
    path = deploy.export(model, tmp_path / "model.tflite", format="litert")
    outputs = deploy.FORMATS["litert"].read(path)(images.astype("float32"))
    np.testing.assert_allclose(outputs, expected_of(model, images), atol=1e-5)


@pytest.mark.once
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_model_around_a_mixed_one_is_exported_in_float32(
    format, images, tmp_path, capsys
):
    """Of images of any size, with its GELUs, and the model in hand left as it is.

    Where the converter fixes the size, which torch's does to a crop, it is said.
    """
    needs(format)
    crops = format == "torch"

    def around(dtype):
        base = trained(num_classes=4, class_names=NAMES, dtype=dtype)
        inputs = keras.Input((None, None, 3))
        resized = keras.layers.Resizing(16, 24, crop_to_aspect_ratio=crops)(inputs)
        x = keras.layers.RandomFlip(dtype=dtype)(resized)
        outputs = keras.layers.Softmax(dtype="float32")(base(x))
        return keras.Model(inputs, outputs), base

    (model, base), (whole, _) = around("mixed_bfloat16"), around("float32")
    whole.set_weights(model.get_weights())
    row = deploy.FORMATS[format]
    path = deploy.export(model, tmp_path / f"model{row.ending}", format=format)
    only = "images of any size cannot be exported, only (16, 24, 3)"
    assert (only in capsys.readouterr().out) == crops
    images = images.astype("float32")
    sizes = [images] if crops else [images, images[:2].repeat(2, 1)]
    for some in sizes:
        outputs = row.read(path)(some)
        assert outputs.dtype == "float32"
        np.testing.assert_allclose(outputs, whole.predict(some, verbose=0), atol=1e-5)
    assert base.compute_dtype == "bfloat16"
    activation = base.get_layer("block_0_mlp_expand").activation
    assert activation is keras.activations.gelu


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
def test_what_tensorflow_serving_needs(exported, images, tmp_path, run_python):
    path = exported("tf_saved_model")
    assert path.name == "2" and (path / "saved_model.pb").exists()
    np.save(tmp_path / "images.npy", images)
    run_python("-c", SERVED, path, tmp_path / "images.npy", backend="tensorflow")


def oriented(number, kind=3):
    """EXIF data that says how an image is to be turned."""
    entry = struct.pack("<HHII", 0x112, kind, 1, number)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + b"\0\0\0\0"


def chunk(kind, data):
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def written(image, format, *chunks, **options):
    """An image as the bytes of a file, a PNG's with more chunks before its end."""
    file = io.BytesIO()
    image.save(file, format, **options)
    end = len(file.getvalue()) - 12 if chunks else None
    return b"".join((file.getvalue()[:end], *chunks, chunk(b"IEND", b"")[: end or 0]))


def raw_png(rng, depth, colour, channels, *chunks):
    """A PNG file of a kind that Pillow reads but does not write."""
    head = struct.pack(">IIBBBBB", 36, 22, depth, colour, 0, 0, 0)
    rows = rng.integers(0, 256, (22, 1 + (36 * depth * channels + 7) // 8), "uint8")
    rows[:, 0] = 0  # no filter
    parts = [chunk(b"IHDR", head), *chunks, chunk(b"IDAT", zlib.compress(rows))]
    return b"".join([b"\x89PNG\r\n\x1a\n", *parts, chunk(b"IEND", b"")])


@pytest.mark.once
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of palettes and EXIF
def test_files_are_read_in_the_graph_as_by_pillow(rng, tmp_path):
    """Each kind to the pixel, or it is refused."""
    tf = pytest.importorskip("tensorflow")
    from keras_lkca.deploy.encoded import read_file

    y, x = np.mgrid[:44, :70]
    waves = [128 + 100 * np.sin(x / 7), 128 + 100 * np.cos(y / 9), x * y % 256]
    array = np.stack([*waves, x * 3], -1).astype("uint8")
    image, large = Image.fromarray(array[..., :3]), Image.new("RGB", (200, 300))
    large.paste(image.resize((150, 200)), (20, 70))
    grey, palette = image.convert("L"), image.quantize(16)
    adobe, turned = written(image.convert("CMYK"), "jpeg"), "tiff:Orientation"
    text = b"XML:com.adobe.xmp\0", b"Raw profile type exif\0\0", oriented(6)[6:]
    colours = chunk(b"PLTE", rng.integers(0, 256, 48, "uint8").tobytes())
    good = [
        *(written(image, "jpeg", exif=oriented(i)) for i in range(10)),
        *(written(x, "jpeg", progressive=True) for x in (image, grey, large)),
        *(written(large.resize((60 * i, 50 * i)), "jpeg") for i in (2, 5, 9)),
        written(image, "jpeg", keep_rgb=True, comment=b"\xff\xe1"),
        written(image, "jpeg", subsampling=1, restart_marker_blocks=2),
        written(image, "jpeg", exif=b"Exif\0\0MM\0*\0\0\x09\0"),
        written(image, "jpeg", exif=oriented(0), xmp=f'{turned}="6"'.encode()),
        written(image, "jpeg", xmp=f'{turned} {turned}="6"'.encode()),
        written(image, "jpeg", xmp=f"<{turned}>5</{turned}>".encode()),
        written(image, "mpo", save_all=True, append_images=[large]),
        *(
            written(x, "png")
            for x in (image, large, grey, palette, image.resize((3, 2)))
        ),
        *(written(image.convert(mode), "png") for mode in ("1", "P", "LA")),
        written(Image.fromarray(array), "png"),
        *(written(palette, "png", transparency=x) for x in (3, bytes(range(16)))),
        *(written(x, "png", transparency=90) for x in (grey, image.convert("1"))),
        written(image, "png", transparency=(1, 2, 3)),
        written(image.resize((24, 16)), "png", exif=oriented(3)),
        written(image, "png", chunk(b"eXIf", text[2])),
        written(
            image, "png", chunk(b"iTXt", text[0] + f'\0\0\0\0{turned}="8"'.encode())
        ),
        *(raw_png(rng, depth, 0, 1) for depth in (1, 2, 4, 16)),
        *(raw_png(rng, 16, colour, n) for colour, n in ((2, 3), (4, 2), (6, 4))),
        *(raw_png(rng, depth, 3, 1, colours) for depth in (1, 2, 4)),
        raw_png(rng, 16, 0, 1, chunk(b"eXIf", text[2]), chunk(b"tRNS", b"\0\1")),
    ]
    bad = [
        *((written(palette, x), "JPEG or PNG") for x in ("bmp", "gif", "webp", "tiff")),
        *((data, "must be JPEG or PNG files") for data in (b"", b"\xff", b"no image")),
        (written(image, "jpeg")[:600], "Invalid JPEG"),
        (written(image, "png")[:600], "Invalid PNG"),
        *(
            (data, "JPEG files in CMYK")
            for data in (adobe, adobe.replace(b"Ad", b"Xd"))
        ),
        (written(image, "jpeg", exif=b"Exif\0\0no EXIF data"), "damaged EXIF data"),
        (written(image, "jpeg", exif=oriented(6, kind=4)), "is no single short"),
        (
            written(image, "png", chunk(b"iTXt", text[0] + b"\1\0\0\0")),
            "compressed XMP",
        ),
        (written(image, "png", chunk(b"zTXt", text[1])), "EXIF data as text"),
    ]
    paths = [tmp_path / str(index) for index in range(len(good))]
    for path, data in zip(paths, good, strict=True):
        path.write_bytes(data)
    for shape in ((16, 24, 3), (60, 60, 1)):
        read = tf.function(
            lambda data, shape=shape: read_file(tf, data, shape),
            input_signature=[tf.TensorSpec((), tf.string)],
        )
        expected = deploy.read_images(paths, shape).astype("float32")
        for index, pixels in enumerate(expected):
            difference = np.abs(read(good[index]).numpy() - pixels)
            assert difference.max() <= 1 and difference.mean() < 0.01, index
    for data, message in bad:
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            read(data)


@pytest.mark.once
def test_names_that_are_given_are_served(images, tmp_path):
    needs("tf_saved_model")
    import tensorflow as tf

    inputs, resizing = keras.Input((None, None, 3)), keras.layers.Resizing(16, 24)
    model = keras.Sequential([inputs, resizing, trained(num_classes=2)])
    images = images.repeat(2, 1)
    path = deploy.export(model, tmp_path / "pets", class_names=["no", "yes"])
    loaded = tf.saved_model.load(str(path))
    found = loaded.signatures["uint8"](images=tf.constant(images))["labels"].numpy()
    expected = keras_lkca.predict(model, images, top=1, class_names=["no", "yes"])
    assert [name.decode() for name in found] == [best[0][0] for best in expected]


@pytest.mark.once
def test_what_is_there_is_replaced_whole_or_not_at_all(
    classifier, tmp_path, monkeypatch
):
    needs("tf_saved_model")
    version = tmp_path / "pets" / "1"
    version.mkdir(parents=True)
    (version / "old").write_text("old")
    with pytest.raises(ValueError, match=r"1 exists; choose another version.*--overw"):
        deploy.export(classifier, tmp_path / "pets")
    with monkeypatch.context() as patch:
        # Below 0, which no difference is, and which is refused otherwise.
        patch.setattr(deploy.exporting, "check_number", lambda name, value: value)
        with pytest.raises(ValueError, match="differ by.*nothing was written"):
            deploy.export(classifier, tmp_path / "pets", tolerance=-1.0, overwrite=True)
    assert [path.name for path in version.iterdir()] == ["old"]

    def writes(row, model, path, *options):
        path.mkdir()
        (path / "saved_model.pb").write_text("new")

    monkeypatch.setattr(deploy.exporting, "_write_elsewhere", writes)
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


@pytest.mark.once
@pytest.mark.filterwarnings("ignore")
def test_quantized_litert(digits, tmp_path):
    needs("litert")
    model, images, expected = digits
    whole = deploy.export(model, tmp_path / "whole.tflite", format="litert")
    calibration, _ = keras_lkca.data.digits("train")
    for quantize, chosen in (("weights", None), ("int8", calibration[:100])):
        small = deploy.export(
            model,
            tmp_path / f"{quantize}.tflite",
            format="litert",
            quantize=quantize,
            calibration_images=chosen,
        )
        assert small.stat().st_size < 0.5 * whole.stat().st_size
        outputs = deploy.FORMATS["litert"].read(small)(images.astype("float32"))
        assert (outputs.argmax(1) == expected.argmax(1)).mean() > 0.98
        assert np.abs(outputs - expected).mean() < 0.005


@pytest.mark.once
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


@pytest.mark.once
@pytest.mark.filterwarnings("ignore")
def test_a_quantized_model_is_exported_but_not_folded(images, tmp_path):
    needs("onnx")
    model = trained(num_classes=4, dtype="mixed_bfloat16")
    model.quantize("int8")
    for call in (deploy.fold, lambda m: deploy.export(m, "nowhere", fold_model=True)):
        with pytest.raises(ValueError, match="no LKCA layer .*quantized.*fold it"):
            call(model)
    path = deploy.export(model, tmp_path / "model.onnx", format="onnx")
    outputs = deploy.FORMATS["onnx"].read(path)(images.astype("float32"))
    np.testing.assert_allclose(outputs, expected_of(model, images), atol=0.02)


@pytest.mark.once
@pytest.mark.filterwarnings("ignore")
def test_layers_that_onnx_runtime_computes_at_once(images, rng, tmp_path):
    """Keras writes them as many operations, of which onnx_nodes knows the form."""
    needs("onnx")
    import onnx
    import onnxruntime

    layers = keras.layers
    x = inputs = keras.Input((16, 24, 3))
    for options in (
        {},
        {"scale": False},
        {"center": False},
        {"scale": False, "center": False, "epsilon": 0.1},
        {"axis": (2, 3)},
    ):
        x = layers.LayerNormalization(**options)(layers.Dense(8, "gelu")(x))
    x = layers.LayerNormalization()(layers.LayerNormalization()(x))
    x = keras.ops.gelu(x, approximate=True)
    x = 0.5 * x * (1 + keras.ops.erf(x))  # which are no GELUs
    x = 0.5 * x * (2 + keras.ops.erf(x * 0.5**0.5))
    x = layers.Dense(4)(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    path = deploy.export(model, tmp_path / "model.onnx", format="onnx")
    outputs = deploy.FORMATS["onnx"].read(path)(images.astype("float32"))
    np.testing.assert_allclose(outputs, expected_of(model, images), atol=1e-5)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "computed.onnx")
    onnxruntime.InferenceSession(path, options)
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    kinds = collections.Counter(node.op_type for node in nodes)
    assert kinds["LayerNormalization"] == 6
    assert kinds["Gelu"] == 5
    assert kinds["Reciprocal"] == 1 and kinds["Erf"] == 2


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


@pytest.mark.once
def test_images_in_every_shape(tmp_path):
    """Alone, many, without an axis for the channel, opened by Pillow, in a file."""
    images = keras_lkca.data.digits("test")[0][:5]
    model = LKCAViT((8, 8, 1), patch_size=4, embed_dim=8, depth=1)
    expected = keras_lkca.predict(model, images)
    one = keras_lkca.predict(model, images[:1])
    opened = [Image.fromarray(image[..., 0]) for image in images]
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for path, image in zip(paths, opened, strict=True):
        image.save(path)
    for given in (images[..., 0], list(images), iter(images), opened, iter(opened)):
        assert keras_lkca.predict(model, given) == expected
    for given in (map(str, paths), iter(paths), paths[:2] + opened[2:]):
        assert keras_lkca.predict(model, given) == expected
    for given in (
        images[0],
        images[0, ..., 0],
        images[:1, ..., 0],
        opened[0],
        paths[0],
    ):
        assert keras_lkca.predict(model, given) == one
    for given in (str(paths[0]), opened[0]):
        read = deploy.read_images(given, (8, 8, 1))
        np.testing.assert_array_equal(read, images[:1])
    colour = Image.fromarray(np.zeros((30, 20, 3), "uint8")).convert("P")
    assert deploy.read_images(colour, (16, 24, 3)).shape == (1, 16, 24, 3)
    assert colour.size == (20, 30)  # as it was


def test_bad_input_to_quantized_export(classifier, images, tmp_path):
    needs("litert")
    for arguments, message in (
        ({"quantize": "int4"}, "`quantize` must be one of"),
        ({"quantize": "int8", "format": "onnx"}, "`quantize` is for format='litert'"),
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
    relu = keras.Model(inputs, keras.layers.Dense(2, "relu")(logits(inputs)))
    with pytest.raises(ValueError, match="must end with a softmax.*'relu'"):
        keras_lkca.predict(relu, images)
    with pytest.raises(ValueError, match="must end with a softmax.*'relu'"):
        deploy.export(relu, "nowhere", format="onnx")
    for outputs, message in (
        (2 * logits(inputs), "Multiply, which is neither"),
        (keras.layers.Average()([base(inputs), logits(inputs)]), "averages outputs"),
        (keras.layers.Dense(1, "softmax")(logits(inputs)), "softmax on one column"),
    ):
        with pytest.raises(ValueError, match=message):
            keras_lkca.predict(keras.Model(inputs, outputs), images)


@pytest.mark.once
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
    outputs = deploy.FORMATS["onnx"].read(path)(images.astype("float32"))
    np.testing.assert_allclose(outputs, expected_of(model, images), atol=1e-5)
    monkeypatch.setattr(its_layers.Doubled, "__module__", "__main__")
    with pytest.raises(ValueError, match="Doubled is defined in the program itself"):
        deploy.export(model, tmp_path / "other.onnx", format="onnx")
    assert not (tmp_path / "other.onnx").exists()


def test_bad_input_to_export(classifier, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`format` must be one of.*'tflite'"):
        deploy.export(classifier, tmp_path / "x", format="tflite")
    with pytest.raises(ValueError, match="`version` must be a positive"):
        deploy.export(classifier, tmp_path / "x", version=0)
    with pytest.raises(FileNotFoundError, match="There is no"):
        deploy.export(tmp_path / "missing.keras", tmp_path / "x")
    with pytest.raises(ValueError, match="`model` must map images .* classes"):
        deploy.export(trained(include_top=False, pooling=None), tmp_path / "x")
    with pytest.raises(ValueError, match="functional Keras model with LKCA layers"):
        deploy.export(ViT(depth=1), tmp_path / "x", fold_model=True)
    for format in ("onnx", "openvino"):
        with pytest.raises(ValueError, match="is a folder; .* writes a file"):
            deploy.export(classifier, tmp_path, format=format, overwrite=True)
    with pytest.raises(ValueError, match="is for format='tf_saved_model'"):
        deploy.export(classifier, tmp_path / "x", format="onnx", image_bytes=True)
    deep = LKCAViT((8, 8, 4), patch_size=2, embed_dim=16, depth=1)
    with pytest.raises(ValueError, match="`image_bytes` is for images of 1 channel or"):
        deploy.export(deep, tmp_path / "x", image_bytes=True)
    (tmp_path / "x.bin").write_text("")
    with pytest.raises(ValueError, match="exists; choose another"):
        deploy.export(classifier, tmp_path / "x.xml", format="openvino")
    (tmp_path / "x.bin").unlink()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written to"):
        deploy.export(classifier, tmp_path / "file" / "x")
    for name in ("tolerance", "overwrite", "image_bytes", "fold_model"):
        with pytest.raises(ValueError, match=f"`{name}` must be .*'no'"):
            deploy.export(classifier, tmp_path / "x", **{name: "no"})
    row = dataclasses.replace(deploy.FORMATS["onnx"], packages=("no_such_package",))
    monkeypatch.setitem(deploy.FORMATS, "onnx", row)
    with pytest.raises(ImportError, match=r"no-such-package.*keras-lkca\[export\]"):
        deploy.export(classifier, tmp_path / "x.onnx", format="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# Keras's own export, of which the layers are to be no hindrance

KERAS_FORMATS = {
    "tensorflow": ("tf_saved_model", "onnx", "openvino", "litert"),
    "jax": ("tf_saved_model",),
    "torch": ("onnx", "openvino", "torch"),
}


@pytest.mark.filterwarnings("ignore")  # the converters' own
@pytest.mark.parametrize("format", KERAS_FORMATS[keras.config.backend()])
def test_keras_exports_every_layer(format, rng, tmp_path):
    """The batch is of any size, but in torch's ONNX, which Keras wants static."""
    needs(format)
    model = every_layer()
    path = str(tmp_path / f"model{deploy.FORMATS[format].ending}")
    options, batches = {}, (1, 3)
    if keras.config.backend() == "torch" and format == "onnx":
        with pytest.raises(ValueError, match=r"deploy.export.*shape=\(1, 8, 12, 3\)"):
            model.export(path, format=format, verbose=False)
        shape, batches = (3, *model.input_shape[1:]), (3,)
        options = {"input_signature": [keras.InputSpec(shape=shape, dtype="float32")]}
    if format == "torch":
        import torch

        options = {"dynamic_shapes": {0: torch.export.Dim("batch", min=1)}}
    model.export(path, format=format, verbose=False, **options)
    assert model.get_layer("gated").gate.activation is keras.activations.gelu
    for batch in batches:
        images = rng.uniform(0, 255, (batch, *model.input_shape[1:])).astype("f4")
        expected = keras.ops.convert_to_numpy(model(images))
        outputs = EXPORTED[format](path, images)
        np.testing.assert_allclose(outputs, expected, atol=1e-5)


def served(path, images):
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    return loaded.serve(images).numpy()


def run_onnx(path, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def run_litert(path, images):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path)
    (inputs,), (outputs,) = (
        interpreter.get_input_details(),
        interpreter.get_output_details(),
    )
    interpreter.resize_tensor_input(inputs["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(inputs["index"], images)
    interpreter.invoke()
    return interpreter.get_tensor(outputs["index"])


EXPORTED = {
    "tf_saved_model": served,
    "onnx": run_onnx,
    "litert": run_litert,
    "openvino": lambda path, images: deploy.FORMATS["openvino"].read(path)(images),
    "torch": lambda path, images: deploy.FORMATS["torch"].read(path)(images),
}
