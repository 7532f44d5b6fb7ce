import re
import warnings

import keras
import numpy as np
import pytest
from conftest import ROOT, with_noise

import keras_lkca
from keras_lkca import LKCAViT, ViT, count_macs, deploy, interpret, ops
from keras_lkca.interpret import Macs, macs_by_layer
from keras_lkca.layers import LKCA, SelfAttention
from keras_lkca.models import lkca_trunk
from keras_lkca.models.image_model import given_name

GRID = (4, 6)


def small(depth=2, seed=0, **arguments):
    """A model on a grid of 4 x 6 tokens whose kernels are random."""
    defaults = {"input_shape": (16, 24, 3), "embed_dim": 16, "mlp_ratio": 1}
    model = LKCAViT(depth=depth, **{**defaults, **arguments})
    rng = np.random.default_rng(seed)
    for layer in interpret.mixing_layers(model).values():
        layer.kernel.assign(rng.normal(size=layer.kernel.shape))
    return model


def with_kernel(kernel, depth=1, **arguments):
    """A model whose layers all have this kernel."""
    model = small(depth, kernel_size=kernel.shape[:2], **arguments)
    for layer in interpret.mixing_layers(model).values():
        layer.kernel.assign(kernel.reshape(layer.kernel.shape))
    return model


def delta(down=0, right=0, shape=(7, 11)):
    kernel = np.zeros(shape)
    kernel[shape[0] // 2 + down, shape[1] // 2 + right] = 1
    return kernel


def vit(**arguments):
    defaults = {"input_shape": (16, 24, 3), "embed_dim": 16, "num_heads": 2}
    return ViT(**{**defaults, "depth": 2, **arguments})


@pytest.fixture
def image(rng):
    return rng.integers(0, 256, (16, 24, 3)).astype("uint8")


# Kernels


@pytest.mark.parametrize("num_kernels", [1, 4])
def test_kernels_are_the_layers(num_kernels):
    model = small(num_kernels=num_kernels)
    found = interpret.kernels(model)
    assert list(found) == ["block_0_lkca", "block_1_lkca"]
    for name, kernel in found.items():
        assert kernel.shape == (7, 11, num_kernels) and kernel.dtype == "float32"
        own = keras.ops.convert_to_numpy(model.get_layer(name).kernel)
        np.testing.assert_array_equal(kernel, own)
    folded = interpret.kernels(deploy.fold(model))
    for a, b in zip(found.values(), folded.values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_kernels_of_a_model_of_ones_own():
    inputs = keras.Input((4, 6, 8))
    inner = keras.Model(inputs, LKCA(kernel_size=3, name="mixer")(inputs), name="inner")
    outputs = LKCA(name="last")(inner(inputs))
    found = interpret.kernels(keras.Model(inputs, outputs))
    assert {k: v.shape for k, v in found.items()} == {
        "inner/mixer": (3, 3, 1),
        "last": (7, 11, 1),
    }


def numbers(kernel, **arguments):
    model = with_kernel(kernel, **arguments)
    return interpret.kernel_statistics(model)["block_0_lkca"]


def test_statistics_of_known_kernels():
    found = numbers(delta())
    for key in ("within_1", "within_2", "first_singular"):
        assert found[key] == pytest.approx(1)
    for key in ("mean_distance", "mean_distance_on_grid", "odd", "left_right"):
        assert found[key] == pytest.approx(0)
    assert found["low_frequency"] == pytest.approx(0.25)

    found = numbers(delta(2, -1))
    assert found["mean_distance"] == pytest.approx(5**0.5)
    assert found["within_1"] == pytest.approx(0)
    assert found["within_2"] == pytest.approx(1)
    for key in ("odd", "left_right", "up_down"):
        assert found[key] == pytest.approx(0.5)

    found = numbers(delta(0, 1) - delta(0, -1))
    assert found["odd"] == pytest.approx(1) and found["left_right"] == pytest.approx(1)
    assert found["up_down"] == pytest.approx(0)

    found = numbers(np.ones((7, 11)))
    assert found["low_frequency"] > 0.9
    assert found["within_1"] == pytest.approx(9 / 77)
    # The mean distance of two tokens of the grid.
    i, j = np.indices(GRID).reshape(2, -1)
    distances = np.hypot(i[:, None] - i, j[:, None] - j)
    assert found["mean_distance_on_grid"] == pytest.approx(distances.mean())
    assert interpret.uniform_distance(GRID) == pytest.approx(distances.mean())

    two = numbers(delta(0, 0) + delta(1, 1))
    assert two["first_singular"] == pytest.approx(0.5)
    np.testing.assert_allclose(two["singular_values"][0, :3], [1, 1, 0], atol=1e-6)


def test_statistics_before_training_are_not_numbers():
    found = numbers(np.zeros((7, 11)))
    assert np.isnan(found["mean_distance"]).all() and np.isnan(found["odd"]).all()


def test_frequency_response_of_deltas():
    flat = interpret.frequency_response(with_kernel(delta()))["block_0_lkca"]
    np.testing.assert_allclose(flat, np.ones((1, 64, 64)), atol=1e-6)
    shifted = interpret.frequency_response(with_kernel(delta(2, -1)), 15)
    rows, columns = shifted["frequencies"]
    phase = 2 * np.pi * (2 * rows[:, None] - columns)
    np.testing.assert_allclose(
        shifted["block_0_lkca"][0], np.exp(1j * phase), atol=1e-6
    )


def test_frequency_response_is_what_a_wave_is_multiplied_by(rng):
    kernel = rng.normal(size=(5, 3))
    response = interpret.frequency_response(with_kernel(kernel), 16)
    at = (11, 5)
    frequency = [response["frequencies"][axis][k] for axis, k in enumerate(at)]
    i, j = np.indices((16, 16))
    wave = np.exp(2j * np.pi * (frequency[0] * i + frequency[1] * j))
    mixed = sum(
        part
        * keras.ops.convert_to_numpy(
            ops.large_kernel_conv(
                values[None, ..., None].astype("float32"),
                kernel[..., None].astype("float32"),
            )
        )[0, ..., 0]
        for part, values in ((1, wave.real), (1j, wave.imag))
    )
    inner = np.s_[2:-2, 1:-1]
    expected = response["block_0_lkca"][0][at] * wave
    np.testing.assert_allclose(mixed[inner], expected[inner], atol=1e-4)


# Attention


@pytest.mark.parametrize(
    "arguments",
    [{}, {"num_kernels": 4}, {"kernel_size": 3}, {"kernel_size": (9, 15)}],
)
def test_maps_are_rows_of_the_attention_matrix(arguments):
    model = small(**arguments)
    for query in ((0, 0), (3, 5), (1, 4)):
        maps = interpret.attention_map(model, query)
        for name, found in maps.items():
            matrix = keras.ops.convert_to_numpy(
                ops.attention_matrix(model.get_layer(name).kernel, *GRID)
            )
            row = matrix[:, query[0] * 6 + query[1]].reshape(-1, *GRID)
            np.testing.assert_allclose(found, row, atol=1e-6)


def test_maps_of_known_kernels():
    maps = interpret.attention_map(with_kernel(np.full((7, 11), 0.5)), (2, 3))
    np.testing.assert_array_equal(maps["block_0_lkca"], np.full((1, *GRID), 0.5))
    maps = interpret.attention_map(with_kernel(delta(1, -2)), (2, 3))
    expected = np.zeros(GRID)
    expected[3, 1] = 1
    np.testing.assert_array_equal(maps["block_0_lkca"][0], expected)


def test_attention_weights_are_what_the_layer_applies(rng):
    layer = SelfAttention(num_heads=4)
    tokens = rng.normal(size=(2, 5, 16)).astype("float32")
    outputs = keras.ops.convert_to_numpy(layer(tokens))
    weights = keras.ops.convert_to_numpy(layer.attention_weights(tokens))
    np.testing.assert_allclose(weights.sum(-1), np.ones((2, 4, 5)), atol=1e-5)
    joint = keras.ops.convert_to_numpy(layer.query_key_value(tokens))
    value = joint.reshape(2, 5, 3, 4, 4)[:, :, 2]
    mixed = np.einsum("bhqk,bkhc->bqhc", weights, value).reshape(2, 5, 16)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(layer.projection(mixed)), outputs, atol=1e-5
    )


def test_maps_of_a_vit(image):
    model = vit()
    found = interpret.attention_map(model, (1, 2), image)
    assert list(found) == ["block_0_attention", "block_1_attention"]
    for weights in found.values():
        assert weights.shape == (2, *GRID) and (weights > 0).all()
        assert (weights.sum((1, 2)) < 1).all()  # the rest is the class token's
    other = interpret.attention_map(model, (1, 2), 255 - image)
    assert np.abs(other["block_0_attention"] - found["block_0_attention"]).max() > 0
    of_class = interpret.attention_map(model, None, image)
    assert of_class["block_0_attention"].shape == (2, *GRID)
    rollout = interpret.attention_rollout(model, (1, 2), image)
    assert rollout.shape == (2, *GRID) and (rollout.sum((1, 2)) < 1).all()


def test_rollout_of_known_kernels():
    nothing = interpret.attention_rollout(with_kernel(np.zeros((7, 11)), 2), (1, 2))
    expected = np.zeros(GRID)
    expected[1, 2] = 1
    np.testing.assert_allclose(nothing, [expected, expected])
    # One to the right, or not, twice; the sign does not count.
    right = interpret.attention_rollout(with_kernel(-3 * delta(0, 1), 2), (1, 2))
    np.testing.assert_allclose(right[0, 1, 2:5], [0.5, 0.5, 0])
    np.testing.assert_allclose(right[1, 1, 2:5], [0.25, 0.5, 0.25])
    np.testing.assert_allclose(right.sum((1, 2)), [1, 1])


# Receptive fields


def test_the_field_of_an_untrained_model_is_its_patch(images):
    model = LKCAViT((16, 24, 3), embed_dim=16, depth=2)
    field = interpret.effective_receptive_field(model, images)
    assert field.shape == (16, 24) and field.sum() == pytest.approx(1)
    centre = np.s_[8:12, 12:16]
    assert (field[centre] > 0).all()
    assert field[centre].sum() == pytest.approx(1)


def test_the_field_of_a_delta_is_two_patches(images):
    """The token's own by the residual connection, and the one that is looked at."""
    model = with_kernel(delta(1, -2))
    field = interpret.effective_receptive_field(model, images, query=(1, 3))
    patches = field.reshape(4, 4, 6, 4).sum((1, 3))
    assert sorted(map(tuple, np.argwhere(patches > 1e-9))) == [(1, 3), (2, 1)]


def test_the_field_is_the_jacobian(rng):
    model = small(depth=1, input_shape=(8, 8, 1), embed_dim=4, patch_size=4)
    image = rng.uniform(0, 255, (1, 8, 8, 1))
    field = interpret.effective_receptive_field(model, image, draws=300)
    trunk = interpret.feature_map_model(model)
    energy, step = np.zeros((8, 8)), 2.0
    for i, j in np.ndindex(8, 8):
        moved = np.concatenate([image, image])
        moved[:, i, j] += [[step], [-step]]
        tokens = keras.ops.convert_to_numpy(trunk(moved.astype("float32")))[:, 1, 1]
        energy[i, j] = (((tokens[0] - tokens[1]) / (2 * step)) ** 2).sum()
    np.testing.assert_allclose(field, energy / energy.sum(), rtol=0.25, atol=2e-3)


def test_the_field_of_a_vit_is_the_image(images):
    field = interpret.effective_receptive_field(vit(), images)
    assert field.shape == (16, 24) and (field > 0).all()


def test_the_field_of_models_of_ones_own(rng):
    """Sequential, and with a model within it."""
    images = rng.uniform(0, 255, (2, 16, 24, 3))
    convolution = keras.Sequential(
        [
            keras.Input((16, 24, 3)),
            keras.layers.Conv2D(4, 3, padding="same"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2),
        ]
    )
    field = interpret.effective_receptive_field(convolution, images)
    assert (field > 0).sum() == 9
    backbone = small(include_top=False, pooling=None)
    inputs = keras.Input((16, 24, 3))
    x = keras.layers.GlobalAveragePooling2D()(backbone(inputs))
    whole = keras.Model(inputs, keras.layers.Dense(2)(x))
    np.testing.assert_allclose(
        interpret.effective_receptive_field(whole, images),
        interpret.effective_receptive_field(backbone, images),
        rtol=1e-4,
        atol=1e-8,
    )


@pytest.mark.parametrize("pooling", ["avg", None])
def test_the_field_of_a_vit_without_its_class_token(pooling, images):
    """The tokens are those of the grid, whatever becomes of the class token."""
    model = ViT(
        (16, 24, 3),
        **{"depth": 1, "embed_dim": 16, "num_heads": 2, "pooling": pooling},
        include_top=pooling is not None,
    )
    tokens = keras.Model(model.inputs[0], model.get_layer("block_0_mlp_add").output)
    expected = keras.ops.convert_to_numpy(tokens(images))[:, 1:]
    found = keras.ops.convert_to_numpy(interpret.feature_map_model(model)(images))
    assert found.shape[1:3] == (4, 6)
    if pooling:  # without, LayerNorm comes last
        np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-6)
    assert interpret.effective_receptive_field(model, images).shape == (16, 24)


def test_a_feature_map_within_another_model(images):
    inner = small()
    outer = keras.Sequential(
        [
            keras.Input((16, 24, 3)),
            keras.Sequential([keras.layers.RandomFlip()]),
            inner,
            keras.Sequential([keras.layers.Softmax()]),
        ]
    )
    np.testing.assert_allclose(
        interpret.effective_receptive_field(outer, images),
        interpret.effective_receptive_field(inner, images),
        rtol=1e-4,
        atol=1e-8,
    )
    flat = keras.Sequential([keras.Input((16,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="with a feature map of static size"):
        interpret.feature_map_model(keras.Sequential([keras.Input((16,)), flat]))


def test_areas_of_known_fields():
    field = np.zeros((10, 10))
    field[0, 0], field[0, 1:3] = 0.8, 0.1
    np.testing.assert_allclose(interpret.energy_areas(field), [0.01, 0.02, 0.03])
    np.testing.assert_allclose(interpret.energy_areas(field, 0.5), [0.01])
    with pytest.raises(ValueError, match="`shares` must lie between 0 and 1"):
        interpret.energy_areas(field, (0.5, 1))
    for bad in (0 * field, field - 1, field * np.nan):
        with pytest.raises(ValueError, match="`field` must hold energies"):
            interpret.energy_areas(bad)


# Saliency


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize(
    "build",
    [
        lambda: small(num_classes=5),
        lambda: deploy.fold(small(num_classes=5)),
        lambda: vit(num_classes=5, pooling="avg"),
        lambda: small(num_classes=5, dtype="mixed_bfloat16"),
    ],
)
def test_saliency_sums_to_the_logit(build, relative, image):
    model = build()
    logits = np.asarray(model.predict(image[None], verbose=0), "float64")[0]
    if relative:
        logits = logits - logits.mean()
    half = model.compute_dtype == "bfloat16"
    for index in (0, 3):
        tokens, rest = interpret.saliency(model, image, index, relative)
        assert tokens.shape == GRID
        assert tokens.sum() + rest == pytest.approx(
            logits[index], abs=0.05 if half else 1e-4
        )
    tokens, rest = interpret.saliency(model, image, relative=relative)
    assert tokens.sum() + rest == pytest.approx(
        logits.max(), abs=0.05 if half else 1e-4
    )


def test_saliency_without_a_bias(image):
    base = small(include_top=False, pooling=None)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(base.output)
    x = keras.layers.LayerNormalization(name="norm")(x)
    x = keras.layers.Dense(3, use_bias=False, name="classifier")(x)
    model = keras.Model(base.inputs, x)
    tokens, rest = interpret.saliency(model, image, 2, relative=False)
    logits = model.predict(image[None], verbose=0)[0]
    assert tokens.sum() + rest == pytest.approx(logits[2], abs=1e-4)


def test_saliency_of_a_named_class(image):
    model = small(num_classes=2, class_names=["ant", "bee"])
    tokens, _ = interpret.saliency(model, image, "bee")
    np.testing.assert_array_equal(tokens, interpret.saliency(model, image, 1)[0])


# What it costs


@pytest.mark.parametrize(
    ("preset", "published"),
    [
        ("lkca_vit_tiny", 66.1),
        ("lkca_vit_base", 172.8),
        ("lkca_vit_large", 803.0),
        ("vit_tiny", 69.6),
        ("vit_small", 176.1),
    ],
)
def test_macs_are_the_published_ones(preset, published):
    """Those leave the mixing out, and count norms and activations."""
    kind = LKCAViT if preset.startswith("lkca") else ViT
    model = kind.from_preset(preset, (64, 64, 3), 200)
    layers = macs_by_layer(model)
    counted = sum(x.projections + x.elementwise for x in layers.values())
    assert counted / 1e6 == pytest.approx(published, rel=1e-3)
    total = sum(x.projections + x.mixing for x in layers.values())
    assert count_macs(model) == total


@pytest.mark.parametrize("kernel_size", [None, 3, (3, 11)])
def test_mixing_counts_pairs_of_tokens(kernel_size):
    model = small(depth=1, kernel_size=kernel_size)
    kernel = np.ones(model.get_layer("block_0_lkca").kernel.shape, "float32")
    matrix = keras.ops.convert_to_numpy(ops.attention_matrix(kernel, *GRID))
    found = macs_by_layer(model)["block_0_lkca"]
    assert found == Macs(2 * 24 * 16 * 16, int(matrix.sum()) * 16, 0)
    assert count_macs(deploy.fold(model)) == count_macs(model) - 24 * 16 * 16


def test_macs_of_a_model_of_ones_own():
    inputs = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="a")(inputs)
    x = keras.layers.BatchNormalization(name="b")(x)
    x = keras.layers.DepthwiseConv2D(5, padding="same", name="c")(x)
    x = keras.layers.Conv2D(16, 2, strides=2, groups=2, name="d")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(4, name="e")(x))
    layers = macs_by_layer(model, (8, 12, 3))
    assert layers == {
        "a": Macs(96 * 8 * 27, 0, 96 * 8),
        "b": Macs(0, 0, 2 * 96 * 8),
        "c": Macs(96 * 8 * 25, 0, 0),
        "d": Macs(24 * 16 * 4 * 4, 0, 0),
        "e": Macs(64, 0, 0),
    }
    with pytest.raises(ValueError, match="`input_shape` must be given and fit"):
        count_macs(model)


def test_macs_of_models_within_models():
    inputs = keras.Input((None, None, 3))
    inner = keras.Model(inputs, keras.layers.Conv2D(8, 3, padding="same")(inputs))
    outside = keras.Input((32, 32, 3))
    assert count_macs(keras.Model(outside, inner(outside))) == 32 * 32 * 9 * 3 * 8

    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="cost of these layers is not known: Subcl"):
        count_macs(keras.Model(outside, Subclassed()(outside)))


def test_macs_of_operations_and_of_calls():
    inputs = keras.Input((4, 6, 8))
    shared = LKCA(name="mixer")
    outputs = shared(shared(inputs))
    kernel = np.ones((3, 3, 2), "float32")
    outputs = ops.large_kernel_conv(outputs, kernel)
    layers = macs_by_layer(keras.Model(inputs, outputs))
    assert layers["mixer"] == Macs(2 * 2 * 24 * 64, 2 * 24 * 24 * 8)
    pairs = (3 * 4 - 2) * (3 * 6 - 2)
    (operation,) = (macs for name, macs in layers.items() if name != "mixer")
    assert operation == Macs(0, pairs * 8)
    backbone = small(include_top=False)
    model = keras.Sequential([backbone, keras.layers.Dense(5, name="top")])
    assert count_macs(model) == count_macs(backbone) + 16 * 5
    x = keras.ops.matmul(inputs, np.ones((8, 8), "float32"))
    for unknown in (x, keras.layers.Dot(3)([inputs, inputs])):
        with pytest.raises(ValueError, match="not known: (Matmul|Dot)"):
            count_macs(keras.Model(inputs, unknown))


# Pictures


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:Matplotlib")
def test_figures(images, image):
    model, other = small(), vit()
    plain = keras.Sequential([keras.Input((16, 24, 3)), keras.layers.Flatten()])
    small_one = small(input_shape=(8, 8, 3))
    for figure, panels in (
        (interpret.plot_kernels(model), 2),
        (interpret.plot_kernels(small(num_kernels=8), max_kernels=3), 6),
        (interpret.plot_statistics(model), 3),
        (interpret.plot_statistics(model, beside=other, image=image), 3),
        (interpret.plot_statistics(model, beside=small(depth=3)), 3),
        (interpret.plot_frequency_response(model), 2),
        (interpret.plot_equivalence(model, "block_1_lkca", (3, 0)), 3),
        (interpret.plot_attention_map(model, (1, 2)), 3),
        (interpret.plot_attention_map(other, None, image), 4),
        (interpret.plot_attention_map(model, (1, 2), image, beside=other), 8),
        (interpret.plot_attention_map(pyramid(), (1, 2)), 2),
        (interpret.plot_receptive_field({"a": model, "b": other}, images), 2),
        (interpret.plot_saliency(model, images), 6),
        (interpret.plot_saliency(small(input_shape=(16, 24, 1)), images[..., :1]), 6),
    ):
        drawn = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
        assert len(drawn) == panels
    title = interpret.plot_kernels(with_kernel(delta(0, 2))).axes[0].get_title()
    assert title == "block 0\nreach 2.0"
    for bad, message in (
        (lambda: interpret.plot_kernels(model, 0), "`max_kernels` must be a positive"),
        (lambda: interpret.plot_frequency_response(model, -1), "`max_kernels` must"),
        (lambda: interpret.plot_saliency(model, images[:0]), "`images` must be"),
        (lambda: interpret.report(model, images, "a", max_images=0), "`max_images`"),
        (lambda: interpret.report(model, "cats", "a"), "`images` must be numbers"),
        (lambda: interpret.report(model, images, ROOT), "`output` is a folder"),
        (lambda: interpret.report(model, images, "a", plain), "no LKCA layers"),
        (lambda: interpret.report(model, images, "a", small_one), "`images` must be"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()


@pytest.mark.once
@pytest.mark.filterwarnings("ignore")  # Keras's on what it does not quantize
def test_report(images, tmp_path):
    names = ["$a x_$ ant", "bee", "cat", "<dog>"]
    model = small(num_classes=4, class_names=names)
    model.get_layer("classifier").bias.assign([9, 0, 0, 0])
    assert given_name(model) == "LKCAViT"
    path = interpret.report(model, images, tmp_path / "report.html", beside=vit())
    page = path.read_text()
    assert page.count("<svg") == 7 and page.count("<h2") == 8
    for wanted in (
        *(f"{model.count_params():,}", "block_1_lkca", "$a x_$ ant"),
        *("<h1>LKCAViT: what it learned", "untrained", "beside: ViT"),
    ):
        assert wanted in page
    for attribute in ('src="http', "<script", "@import", 'href="http'):
        assert attribute not in page
    assert "#123456" not in page
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    folded = interpret.report(deploy.fold(model), images, tmp_path / "folded.html")
    assert folded.read_text().count("<svg") == 7
    ids = re.findall(r' id="([^"]+)"', page)
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', page))
    assert used and all(ids.count(name) == 1 for name in used)
    untrained = LKCAViT((16, 24, 3), depth=1, embed_dim=8)
    page = interpret.report(untrained, images, tmp_path / "new.html").read_text()
    assert not re.search(r">[^<]*\bnan\b", page)
    model.quantize("int8")  # its kernels are not, its classifier is
    page = interpret.report(model, images, tmp_path / "int8.html").read_text()
    assert page.count("<svg") == 6 and "Left out: `model` is quantized" in page
    large = small(input_shape=(130, 130, 3), patch_size=2, depth=1)
    many = np.zeros((1, 130, 130, 3))
    page = interpret.report(large, many, tmp_path / "large.html").read_text()
    assert page.count("<svg") == 6 and "all blocks" not in page
    assert "Left out: Matrices of tokens by tokens are made for up to 4,096" in page


def pyramid():
    """Two levels of their own grids, channels and kernels, with random weights."""
    inputs = keras.Input((16, 24, 3))
    x = keras.layers.Conv2D(8, 4, strides=4)(inputs)
    x = lkca_trunk(x, 1, name="level_0", kernel_size=3)
    x = keras.layers.Conv2D(16, 2, strides=2)(x)
    x = lkca_trunk(x, 1, name="level_1", num_kernels=2)
    x = keras.layers.GlobalMaxPooling2D()(x)
    return with_noise(keras.Model(inputs, keras.layers.Dense(3)(x)))


def test_the_same_place_on_another_grid():
    maps = interpret.attention_map(pyramid(), (2, 5))
    assert {name: value.shape for name, value in maps.items()} == {
        "level_0_0_lkca": (1, 4, 6),
        "level_1_0_lkca": (2, 2, 3),
    }
    layer = pyramid().get_layer("level_1_0_lkca")
    matrix = keras.ops.convert_to_numpy(layer.attention_matrix())
    row = matrix[:, 1 * 3 + 2].reshape(2, 2, 3)
    np.testing.assert_allclose(maps["level_1_0_lkca"], row, atol=1e-6)


@pytest.mark.once
@pytest.mark.parametrize(
    ("build", "title", "drawn", "left"),
    [
        (pyramid, "Functional", 6, ["must classify the mean of its tokens"]),
        (lambda: deploy.fold(pyramid()), "FoldedModel", 6, ["must classify"]),
        (
            lambda: keras.Sequential(
                [
                    keras.Input((16, 24, 3)),
                    keras.layers.RandomFlip(),
                    small(name="backbone"),
                    keras.layers.Softmax(),
                ],
                name="mine",
            ),
            "mine",
            6,
            ["must classify"],
        ),
        (
            lambda: keras.Sequential(
                [
                    keras.Input((None, None, 3)),
                    keras.layers.Conv2DTranspose(4, 3),
                    LKCA(kernel_size=3, kernel_initializer="glorot_normal"),
                ],
                name="any",
            ),
            "any",
            3,
            ["dynamic grid", "feature map of static size", "must classify"],
        ),
    ],
)
def test_report_of_models_of_ones_own(build, title, drawn, left, images, tmp_path):
    page = interpret.report(build(), images, tmp_path / "a.html", beside=small())
    page = page.read_text()
    assert f"<h1>{title}: what it learned</h1>" in page
    assert page.count("<svg") == drawn and page.count("<h2") == 8
    for reason in left:
        assert re.search(f"Left out: [^<]*{reason}", page)
    assert ("untrained" in page) == (title != "FoldedModel" and drawn == 6)
    assert ("not known" in page) == (title == "any")


def test_example(tmp_path, run_python):
    model = LKCAViT((8, 8, 1), patch_size=2, embed_dim=8, depth=2)
    for layer in interpret.mixing_layers(model).values():
        layer.kernel.assign(layer.kernel + 1)
    model.save(tmp_path / "model.keras")
    out = run_python(
        *(ROOT / "examples" / "explain.py", tmp_path / "model.keras"),
        *("--dataset", "digits", "--images", 4, "--output", tmp_path / "a.html"),
    )
    assert "block_1_lkca" in out and (tmp_path / "a.html").exists()


# Bad input


def test_models_without_kernels(images, tmp_path):
    for call in (
        interpret.kernels,
        interpret.kernel_statistics,
        interpret.frequency_response,
        interpret.plot_kernels,
        lambda model: interpret.report(model, images, tmp_path / "a.html"),
    ):
        with pytest.raises(ValueError, match="`model` has no LKCA layers.*ViT"):
            call(vit())
        with pytest.raises(ValueError, match="`model` must be a Keras model"):
            call("model.keras")
    assert not list(tmp_path.iterdir())
    model = keras.Sequential([LKCA()])
    with pytest.raises(ValueError, match="has no kernel yet: call the model"):
        interpret.kernels(model)


def test_queries_outside_the_grid(images, image):
    for query in ((4, 0), (0, 6), (-1, 0), (1,), 3, (0.5, 1), None):
        with pytest.raises(ValueError, match="`query` must be .row, column. .* 4 x 6"):
            interpret.attention_map(small(), query)
        if query is not None:
            with pytest.raises(ValueError, match="`query` must be"):
                interpret.attention_map(vit(), query, image)
            with pytest.raises(ValueError, match="`query` must be"):
                interpret.effective_receptive_field(small(), images, query)
    with pytest.raises(ValueError, match="`layer` must be one of.*'block_7'"):
        interpret.plot_equivalence(small(), "block_7")


def test_images_of_another_size(image, images):
    for bad in (None, image[:8], images, image.astype(str)):
        with pytest.raises(ValueError, match=r"`image` must be numbers of shape \(16"):
            interpret.attention_map(vit(), (0, 0), bad)
        with pytest.raises(ValueError, match="`image` must be numbers of shape"):
            interpret.saliency(small(), bad)
    for bad in (image, images[:, :8], images[:0]):
        with pytest.raises(ValueError, match="`images` must be numbers of shape"):
            interpret.effective_receptive_field(small(), bad)


@pytest.mark.once
def test_other_bad_input(image, images):
    with pytest.raises(ValueError, match="`class_index` must be a class, 0 to 9"):
        interpret.saliency(small(), image, 10)
    with pytest.raises(ValueError, match="or one of class_names.*'cow'"):
        interpret.saliency(
            small(num_classes=2, class_names=["ant", "bee"]), image, "cow"
        )
    for model in (vit(), small(include_top=False), small(pooling="max"), None):
        with pytest.raises(ValueError, match="must classify the mean of its tokens"):
            interpret.saliency(model, image)
    with pytest.raises(ValueError, match="`size` must be at least .* 11"):
        interpret.frequency_response(small(), 10)
    model = small()
    model.get_layer("patches").set_weights(
        [0 * np.asarray(w) for w in model.get_layer("patches").get_weights()]
    )
    with pytest.raises(ValueError, match="No pixel moves the token"):
        interpret.effective_receptive_field(model, images)
    with pytest.raises(ValueError, match="`input_shape` must be given and fit"):
        count_macs(model, (32, 32, 3))
    inputs = keras.Input((4, 4, 3))
    outputs = keras.layers.Conv2DTranspose(4, 3)(inputs)
    attention = keras.layers.GroupQueryAttention(4, 2, 1)
    x = keras.layers.Reshape((-1, 4))(outputs)
    with pytest.raises(ValueError, match="not known: Conv2DTranspose, Group"):
        count_macs(keras.Model(inputs, attention(x, x)))
    dynamic = keras.Sequential([keras.Input((None, None, 4)), LKCA(kernel_size=3)])
    for call in (interpret.attention_map, interpret.plot_equivalence):
        with pytest.raises(ValueError, match="built on a dynamic grid"):
            call(dynamic, query=(0, 0))
    with pytest.raises(ValueError, match="feature map of static size"):
        interpret.effective_receptive_field(dynamic, images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        model = small()
        model.quantize("int8")
    with pytest.raises(ValueError, match="explain the model as it was before"):
        interpret.saliency(model, image)
    assert keras_lkca.interpret.kernels(dynamic)
