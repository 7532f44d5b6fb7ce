"""Folding: any model with LKCA layers, the same outputs of fewer numbers."""

import warnings

import keras
import numpy as np
import pytest
from conftest import NAMES, trained, with_noise

import keras_lkca
from keras_lkca import LKCANet, LKCAViT, ViT, deploy, layers
from keras_lkca.models import ImageModel, lkca_trunk


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
    assert type(loaded) is deploy.FoldedModel
    assert loaded.class_names == model.class_names
    np.testing.assert_allclose(
        loaded.predict(images, verbose=0), expected, atol=1e-5 * max(scale, 1)
    )
    assert folded.count_params() < model.count_params()


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"gate_activation": None, "num_kernels": 1, "mlp_ratio": 1},
        {"embed_dim": (16, 24), "depth": (1, 1), "num_kernels": 1},
    ],
)
def test_a_net_is_folded(arguments, images, tmp_path, capsys):
    defaults = {"embed_dim": 16, "depth": 2, "stem_filters": (8, 8), "stem_depth": 1}
    model = with_noise(LKCANet((16, 24, 3), **{**defaults, **arguments}))
    folded = deploy.fold(model)
    assert not capsys.readouterr().out  # nothing is left as it was
    assert not any("norm" in weight.path for weight in folded.weights)
    expected = model.predict(images, verbose=0)
    folded.save(tmp_path / "folded.keras")
    for again in (folded, keras.models.load_model(tmp_path / "folded.keras")):
        np.testing.assert_allclose(
            again.predict(images, verbose=0), expected, rtol=1e-4, atol=1e-5
        )


def test_a_batch_normalization_stays_where_the_convolution_is_wanted(images):
    inputs = keras.Input((16, 24, 3))
    x = wanted = keras.layers.Conv2D(8, 3, padding="same", name="wanted")(inputs)
    x = keras.layers.BatchNormalization(name="after_wanted")(x)
    x = keras.layers.Conv2D(8, 3, activation="relu", name="active")(x)
    x = keras.layers.BatchNormalization(name="after_active")(x)
    x = keras.layers.Conv2D(8, 3, use_bias=True, strides=4, name="folded")(x)
    x = keras.layers.BatchNormalization(name="after_folded", scale=False)(x)
    x = lkca_trunk(x, 1)
    model = with_noise(keras.Model(inputs, [x, wanted]))
    folded = deploy.fold(model)
    kept = {layer.name for layer in folded.layers}
    assert {"after_wanted", "after_active"} < kept and "after_folded" not in kept
    for a, b in zip(
        folded.predict(images, verbose=0), model.predict(images, verbose=0), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


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


def test_fixed_conv_needs_a_static_grid():
    with pytest.raises(ValueError, match="FixedConv needs a static height"):
        layers.FixedConv((3, 3))(keras.Input((None, 4, 8)))


def check(model, images, tmp_path, atol=1e-5):
    """Fold, compare, save, load and compare; return the folded model."""
    before = [np.array(weight) for weight in model.get_weights()]
    expected = keras.tree.flatten(model.predict(images, verbose=0))
    folded = deploy.fold(model)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    folded.save(tmp_path / "folded.keras")
    loaded = keras.models.load_model(tmp_path / "folded.keras")
    for each in (folded, loaded):
        assert type(each) is deploy.FoldedModel and each.name == model.name
        assert each.compute_dtype == model.compute_dtype and not each.trainable_weights
        found = keras.tree.flatten(each.predict(images, verbose=0))
        for a, b in zip(found, expected, strict=True):
            scale = max(np.abs(b.astype("float32")).max(), 1)
            np.testing.assert_allclose(
                a.astype("float32"), b.astype("float32"), atol=atol * scale
            )
    return folded


def pyramid(**arguments):
    """Three levels of their own channels, grids and sizes of kernels."""
    inputs = keras.Input((16, 24, 3), name="images")
    x = keras.layers.Rescaling(1 / 255)(inputs)
    for level, (channels, size) in enumerate(((12, 3), (16, 5), (24, None))):
        x = keras.layers.Conv2D(channels, 2, strides=2, name=f"down_{level}")(x)
        x = lkca_trunk(x, 1, kernel_size=size, name=f"level_{level}", **arguments)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.LayerNormalization(name="norm")(x)
    outputs = keras.layers.Dense(4)(keras.layers.Dropout(0.5)(x))
    return with_noise(ImageModel(inputs, outputs, list("abcd"), name="pyramid"))


@pytest.mark.parametrize("num_kernels", [1, 4])
def test_a_pyramid_is_folded(num_kernels, images, tmp_path, capsys, run_python):
    model = pyramid(num_kernels=num_kernels, drop_path_rate=0.1, dropout_rate=0.1)
    folded = check(model, images, tmp_path)
    assert capsys.readouterr().out == ""
    assert folded.class_names == tuple("abcd")
    kinds = {type(layer) for layer in folded.layers}
    assert not kinds & {keras.layers.Dropout, layers.StochasticDepth, layers.LKCA}
    assert folded.get_layer("norm").weights == []
    # A value projection with one kernel, a scale and an offset, but for a bias.
    saved = sum((c * c if num_kernels == 1 else 0) + 3 * c for c in (12, 16, 24)) + 48
    assert model.count_params() - folded.count_params() == saved
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, keras, numpy as np, keras_lkca; "
        "model = keras.models.load_model(sys.argv[1]); "
        "np.save(sys.argv[3], model.predict(np.load(sys.argv[2]), verbose=0))"
    )
    paths = [tmp_path / name for name in ("folded.keras", "images.npy", "out.npy")]
    other = "jax" if keras.config.backend() == "torch" else "torch"
    run_python("-c", code, *paths, backend=other)
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(np.load(paths[-1]), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_backbone_within_a_model_is_folded(dtype, images, tmp_path):
    backbone = trained(num_classes=4, class_names=NAMES, dtype=dtype)
    model = keras.Sequential(
        [
            keras.Input((16, 24, 3)),
            keras.layers.RandomFlip("horizontal"),
            backbone,
            keras.Sequential([keras.layers.Softmax(dtype="float32")]),
        ],
        name="whole",
    )
    atol = 1e-5 if dtype == "float32" else 0.02
    folded = check(model, images, tmp_path, atol)
    within = folded.get_layer(backbone.name)
    assert within.class_names == NAMES and within.get_layer("block_0_mixing")
    assert [x for x, _ in keras_lkca.predict(folded, images, top=4)[0]] == [
        x for x, _ in keras_lkca.predict(model, images, top=4)[0]
    ]
    # What follows from the kernels follows the weights of the whole.
    other = deploy.fold(
        keras.Sequential(
            [
                keras.Input((16, 24, 3)),
                LKCAViT.from_config({**backbone.get_config(), "name": "other"}),
            ]
        )
    )
    expected = deploy.fold(backbone).predict(images, verbose=0)
    assert np.abs(other.predict(images, verbose=0) - expected).max() > 0.1
    other.set_weights(folded.get_weights())
    np.testing.assert_allclose(
        other.predict(images, verbose=0), expected, atol=atol * np.abs(expected).max()
    )


def test_what_cannot_be_folded_stays_and_is_named(images, tmp_path, capsys):
    class Own(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.mixer = layers.LKCA(kernel_size=3, name="within")

        def build(self, shape):
            self.mixer.build(shape)

        def call(self, x):
            return self.mixer(x)

    def norm(name):
        return keras.layers.LayerNormalization(name=name)

    inputs = keras.Input((16, 24, 3))
    x = keras.layers.Conv2D(8, 4, strides=4)(inputs)
    twice = layers.LKCA(name="twice")
    x = twice(twice(norm("before_twice")(x)))
    once = norm("two_takers")(x)  # one is a Dense, the other no linear layer
    x = keras.layers.Add()([keras.layers.Dense(8)(once), once])
    x = keras.layers.Dense(8, name="after_output")(ends := norm("ends")(x))
    x = Own(name="own")(x)
    shared = norm("shared")
    x = layers.LKCA(name="folded")(shared(x))
    x = keras.layers.Dense(8)(shared(x))
    x = keras.layers.LayerNormalization(axis=[1, 2, 3], name="rows")(x)
    x = keras.layers.Dense(8)(x)
    # Draws in inference too.
    noise = keras.layers.Dropout(0.0, name="always")(x, training=True)
    with keras.saving.custom_object_scope({"Own": Own}):
        model = with_noise(keras.Model(inputs, {"a": noise, "b": ends}))
        folded = check(model, images, tmp_path)
    said = capsys.readouterr().out
    assert said.startswith("fold left as they are: ") and said.count("\n") == 1
    for reason in (
        "twice (called several times)",
        "before_twice (goes to twice, called several times)",
        "two_takers (goes to add",
        "ends (is an output)",
        "own (LKCA within a layer that is no functional model)",
        "shared (called several times)",
        "rows (not over the last axis)",
    ):
        assert reason in said
    assert folded.get_layer("always") and folded.get_layer("folded_mixing")


@pytest.mark.parametrize(
    ("arguments", "has_bias"),
    [
        ({"value_dim": 3}, False),  # narrow: two projections are cheaper
        ({"value_dim": 24}, True),
        ({"use_bias": False}, False),
        ({"num_kernels": 8, "use_bias": False}, False),
        ({"dropout_rate": 0.5}, True),
    ],
)
@pytest.mark.parametrize("center", [True, False])
def test_a_layer_of_any_arguments_is_folded(arguments, has_bias, center, rng, tmp_path):
    inputs = keras.Input((5, 7, 8))
    x = keras.layers.LayerNormalization(center=center, name="norm")(inputs)
    x = keras.layers.GaussianNoise(0.5)(keras.layers.SpatialDropout2D(0.5)(x))
    x = layers.LKCA(name="value", **arguments)(x)
    # The name that its part would have is taken.
    model = keras.Model(inputs, keras.layers.Dense(8, name="value_mixing")(x))
    images = rng.normal(size=(2, 5, 7, 8)).astype("float32")
    folded = check(with_noise(model), images, tmp_path)
    assert folded.get_layer("value_folded_mixing").use_bias == has_bias
    assert not folded.get_layer("norm").weights


def test_a_model_that_is_shared_is_folded_once(rng, tmp_path):
    """With operations, two inputs, and layers that a tensor passes unchanged."""
    inputs = keras.Input((4, 6, 8))
    shared = keras.Model(inputs, layers.LKCA(name="mixer")(inputs), name="shared")
    a, b = keras.Input((4, 6, 8), name="a"), keras.Input((4, 6, 8), name="b")
    x = keras.ops.concatenate([shared(a), 2 * shared(b)], axis=-1)
    x = keras.layers.Dropout(0.5)(keras.ops.mean(x, axis=(1, 2)))
    model = with_noise(keras.Model([a, b], x))
    model.compile("adam", "mse")
    values = [rng.normal(size=(2, 4, 6, 8)).astype("float32") for _ in range(2)]
    folded = check(model, values, tmp_path)
    assert list(folded.get_layer("shared").layers)[1].name == "mixer_value"
    assert model.count_params() - folded.count_params() == 8 * 8


@pytest.mark.once
def test_a_folded_model_of_ones_own_is_quantized_and_saved(images, tmp_path):
    model = pyramid()
    folded = deploy.fold(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        folded.quantize("int8")
    expected = folded.predict(images, verbose=0)
    before = model.predict(images, verbose=0)
    assert 0 < np.abs(expected - before).mean() < 0.1 * np.abs(before).mean()
    folded.save(tmp_path / "small.keras")
    loaded = keras.models.load_model(tmp_path / "small.keras")
    assert len(loaded.quantized_layers) == len(folded.quantized_layers) == 10
    np.testing.assert_allclose(loaded.predict(images, verbose=0), expected, atol=1e-6)


@pytest.mark.once
def test_a_model_quantized_in_part_is_folded_in_part(images, tmp_path, capsys):
    model = trained()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model.quantize("int8", filters="mlp")
        model.get_layer("block_0_lkca").value.quantize("int8")
    check(model, images, tmp_path, atol=0.01)
    said = capsys.readouterr().out
    assert "block_0_lkca (quantized" in said
    assert "block_1_mlp_norm (goes to block_1_mlp_expand, quantized" in said
    assert "block_1_lkca" not in said


def test_models_that_cannot_be_folded():
    class Subclass(keras.Model):
        def __init__(self):
            super().__init__()
            self.mixer = layers.LKCA()

    for model in (ViT(depth=1, embed_dim=16), "model.keras", None, Subclass()):
        with pytest.raises(ValueError, match="must be a functional.*LKCA.*Received"):
            deploy.fold(model)
    dynamic = keras.Sequential(
        [keras.Input((None, None, 4)), layers.LKCA(kernel_size=3, name="mixer")]
    )
    with pytest.raises(ValueError, match="no LKCA layer .* folded: mixer .on a grid"):
        deploy.fold(dynamic)
