import json

import keras
import numpy as np
import pytest
import reference
from conftest import every_layer

from keras_lkca.layers import (
    LKCA,
    BatchNormalization,
    ClassToken,
    FixedConv,
    PatchEmbedding,
    PositionEmbedding,
    SelfAttention,
    StochasticDepth,
    TokenDense,
)
from keras_lkca.ops import attention_matrix

# layer, arguments, input shape without batch, trainable weights
LAYERS = {
    "LKCA": (LKCA, {}, (4, 6, 8), 8 * 8 + 7 * 11 + 8 * 8 + 8),
    "LKCA all arguments": (
        LKCA,
        {
            "value_dim": 12,
            "num_kernels": 3,
            "kernel_size": (3, 5),
            "use_bias": False,
            "dropout_rate": 0.2,
            "method": "toeplitz",
            "kernel_initializer": keras.initializers.RandomNormal(stddev=0.5),
            "projection_initializer": "he_normal",
            "bias_initializer": "ones",
            "kernel_regularizer": keras.regularizers.L2(1e-3),
            "projection_regularizer": "l1",
            "seed": 3,
        },
        (4, 6, 8),
        8 * 12 + 3 * 5 * 3 + 12 * 8,
    ),
    "LKCA depthwise": (
        LKCA,
        {"num_kernels": 8, "method": "depthwise", "kernel_size": 3},
        (4, 6, 8),
        8 * 8 + 3 * 3 * 8 + 8 * 8 + 8,
    ),
    "LKCA hybrid": (LKCA, {"method": "hybrid"}, (4, 6, 8), 8 * 8 + 77 + 8 * 8 + 8),
    "LKCA with a gate": (
        LKCA,
        {"gate_activation": "gelu", "value_dim": 6, "num_kernels": 2},
        (4, 6, 8),
        2 * 8 * 6 + 6 + 2 * 77 + 6 * 8 + 8,
    ),
    "LKCA spectral": (
        LKCA,
        {"num_kernels": 2, "method": "spectral"},
        (4, 6, 8),
        8 * 8 + 2 * 77 + 8 * 8 + 8,
    ),
    "TokenDense": (
        TokenDense,
        {"units": 5, "activation": "gelu", "kernel_initializer": "he_normal"},
        (4, 6, 8),
        8 * 5 + 5,
    ),
    "TokenDense of vectors": (TokenDense, {"units": 5, "use_bias": False}, (8,), 40),
    "PatchEmbedding": (
        PatchEmbedding,
        {"patch_size": (2, 3), "embed_dim": 10},
        (4, 9, 3),
        2 * 3 * 3 * 10 + 10,
    ),
    "PositionEmbedding": (PositionEmbedding, {}, (4, 6, 8), 4 * 6 * 8),
    "PositionEmbedding of tokens": (
        PositionEmbedding,
        {"initializer": "zeros"},
        (5, 8),
        5 * 8,
    ),
    "ClassToken": (ClassToken, {}, (5, 8), 8),
    "SelfAttention": (
        SelfAttention,
        {"num_heads": 2, "dropout_rate": 0.1, "seed": 1},
        (5, 8),
        3 * 8 * 8 + 8 * 8 + 8,
    ),
    "BatchNormalization": (BatchNormalization, {"momentum": 0.5}, (4, 6, 8), 2 * 8),
    "StochasticDepth": (StochasticDepth, {"rate": 0.3, "seed": 5}, (4, 6, 8), 0),
}


@pytest.fixture(params=LAYERS)
def case(request):
    layer, arguments, shape, weights = LAYERS[request.param]
    return layer, arguments, (2, *shape), weights


def numpy(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))


def after_a_dense_layer(layer, shape):
    """Some layers have no weights of their own; `fit` warns where none are."""
    inputs = keras.Input(shape[1:])
    return keras.Model(inputs, layer(keras.layers.Dense(shape[-1])(inputs)))


def test_config_survives_json_before_and_after_build(case):
    layer_class, arguments, shape, _ = case
    layer = layer_class(**arguments)
    before = json.loads(json.dumps(layer.get_config()))
    layer.build(shape)
    assert json.loads(json.dumps(layer.get_config())) == before
    again = layer_class.from_config(before)
    assert json.loads(json.dumps(again.get_config())) == before
    restored = keras.saving.deserialize_keras_object(
        json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    )
    assert type(restored) is layer_class
    assert json.loads(json.dumps(restored.get_config())) == before
    for name in arguments:
        assert name in before


def test_symbolic_and_eager_shape_agree(case, rng):
    layer_class, arguments, shape, _ = case
    eager = layer_class(**arguments)(rng.normal(size=shape).astype("float32"))
    layer = layer_class(**arguments)
    symbolic = layer(keras.Input(batch_shape=shape))
    assert tuple(symbolic.shape) == tuple(eager.shape)
    assert tuple(layer.compute_output_shape(shape)) == tuple(eager.shape)
    assert keras.backend.standardize_dtype(symbolic.dtype) == "float32"
    dynamic = layer_class(**arguments)(keras.Input(shape[1:]))
    assert tuple(dynamic.shape) == (None, *eager.shape[1:])


def test_weight_count(case):
    layer_class, arguments, shape, weights = case
    layer = layer_class(**arguments)
    layer.build(shape)
    assert sum(int(np.prod(w.shape)) for w in layer.trainable_weights) == weights
    averages = 2 if layer_class is BatchNormalization else 0
    assert len(layer.non_trainable_weights) == averages


def test_fit_step_changes_every_weight(case, rng):
    layer_class, arguments, shape, _ = case
    if layer_class is LKCA:
        # Past a kernel of zeros no gradient reaches the projections.
        arguments = {**arguments, "kernel_initializer": "he_normal"}
    layer = layer_class(**arguments)
    model = after_a_dense_layer(layer, shape)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    before = [numpy(w) for w in layer.trainable_weights]
    x = rng.normal(size=shape).astype("float32")
    y = rng.normal(size=(2, *model.output_shape[1:])).astype("float32")
    loss = model.fit(x, y, verbose=0).history["loss"][0]
    assert np.isfinite(loss)
    for old, weight in zip(before, layer.trainable_weights, strict=True):
        assert np.abs(old - numpy(weight)).max() > 0, weight.path


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(case, policy, rng):
    layer_class, arguments, shape, _ = case
    layer = layer_class(**arguments, dtype=policy)
    x = rng.normal(size=shape).astype("float32")
    out = layer(x)
    assert keras.backend.standardize_dtype(out.dtype) == policy.removeprefix("mixed_")
    assert all(w.dtype == "float32" for w in layer.weights)
    exact = layer_class(**arguments)
    exact.build(shape)
    exact.set_weights(layer.get_weights())
    np.testing.assert_allclose(numpy(out), numpy(exact(x)), rtol=0.05, atol=0.1)
    model = after_a_dense_layer(layer_class(**arguments, dtype=policy), shape)
    model.compile("sgd", "mse")
    y = rng.normal(size=(2, *model.output_shape[1:])).astype("float32")
    assert np.isfinite(model.fit(x, y, verbose=0).history["loss"][0])


def test_saves_and_loads(case, rng, tmp_path):
    layer_class, arguments, shape, _ = case
    inputs = keras.Input(shape[1:])
    model = keras.Model(inputs, layer_class(**arguments)(inputs))
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = rng.normal(size=shape).astype("float32")
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0)
    )
    assert loaded.layers[1].get_config() == model.layers[1].get_config()


# LKCA


def test_lkca_is_zero_at_first_and_its_formula_after(rng):
    x = rng.normal(size=(2, 3, 4, 6)).astype("float32")
    layer = LKCA(value_dim=8, num_kernels=2)
    np.testing.assert_array_equal(numpy(layer(x)), 0)
    for weight in layer.weights:
        weight.assign(rng.normal(size=weight.shape))
    value, kernel, projection, bias = (
        numpy(w)
        for w in (
            layer.value.kernel,
            layer.kernel,
            layer.projection.kernel,
            layer.projection.bias,
        )
    )
    expected = reference.conv(x @ value, kernel) @ projection + bias
    np.testing.assert_allclose(numpy(layer(x)), expected, rtol=1e-4, atol=1e-4)


def test_a_function_as_initializer():
    layer = LKCA(
        projection_initializer=lambda shape, dtype: keras.ops.ones(shape, dtype)
    )
    layer.build((None, 4, 4, 8))
    assert (numpy(layer.value.kernel) == 1).all()


def test_lkca_with_a_gate_is_its_formula(rng):
    layer = LKCA(gate_activation="sigmoid", kernel_initializer="glorot_normal")
    x = rng.normal(size=(2, 4, 5, 6)).astype("float32")
    out = numpy(layer(x))
    value, kernel = numpy(layer.value.kernel), numpy(layer.kernel)
    gate = 1 / (1 + np.exp(-(x @ numpy(layer.gate.kernel) + numpy(layer.gate.bias))))
    mixed = reference.conv(x @ value, kernel)
    projected = (mixed * gate) @ numpy(layer.projection.kernel)
    np.testing.assert_allclose(
        out, projected + numpy(layer.projection.bias), rtol=1e-4, atol=1e-5
    )


def test_lkca_projections_start_different():
    layer = LKCA()
    layer.build((None, 4, 4, 8))
    assert np.abs(numpy(layer.value.kernel) - numpy(layer.projection.kernel)).max() > 0


@pytest.mark.parametrize(
    "method", ["auto", "depthwise", "toeplitz", "hybrid", "spectral"]
)
def test_lkca_runs_at_other_grid_sizes(method, rng):
    layer = LKCA(kernel_initializer="glorot_normal", method=method)
    layer.build((None, 4, 5, 6))
    value, projection = numpy(layer.value.kernel), numpy(layer.projection.kernel)
    for height, width in [(2, 3), (4, 5), (6, 9), (3, 9)]:
        x = rng.normal(size=(2, height, width, 6)).astype("float32")
        expected = reference.conv(x @ value, numpy(layer.kernel)) @ projection
        np.testing.assert_allclose(numpy(layer(x)), expected, rtol=1e-4, atol=1e-4)


def test_lkca_attention_matrix(rng):
    layer = LKCA(num_kernels=2, kernel_initializer="glorot_normal")
    with pytest.raises(ValueError, match="needs a built layer"):
        layer.attention_matrix()
    layer.build((None, 3, 4, 6))
    kernel = numpy(layer.kernel)
    np.testing.assert_array_equal(
        numpy(layer.attention_matrix()), reference.matrix(kernel, 3, 4)
    )
    np.testing.assert_array_equal(
        numpy(layer.attention_matrix(2, 5)), reference.matrix(kernel, 2, 5)
    )


def test_lkca_local_kernel_takes_a_dynamic_grid(rng):
    inputs = keras.Input((None, None, 6))
    layer = LKCA(kernel_size=3, kernel_initializer="glorot_normal")
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, None, None, 6)
    x = rng.normal(size=(1, 4, 7, 6)).astype("float32")
    np.testing.assert_allclose(
        model.predict(x, verbose=0), numpy(layer(x)), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(ValueError, match="`height` must be a positive integer"):
        layer.attention_matrix()
    assert tuple(layer.attention_matrix(2, 3).shape) == (1, 6, 6)


def test_lkca_dropout_acts_in_training_only(rng):
    x = rng.normal(size=(2, 4, 4, 6)).astype("float32")
    layer = LKCA(dropout_rate=0.5, kernel_initializer="he_normal", seed=1)
    dropped = numpy(layer(x, training=True))
    kept = dropped != 0
    assert 0.2 < kept.mean() < 0.8
    np.testing.assert_allclose(
        dropped[kept], 2 * numpy(layer(x))[kept], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 4}, r"`kernel_size` must be odd.*\(4, 4\)"),
        ({"kernel_size": (3, 2)}, r"`kernel_size` must be odd.*\(3, 2\)"),
        ({"kernel_size": (3, 3, 3)}, "`kernel_size` must be a positive integer or"),
        ({"kernel_size": -1}, "`kernel_size` must be a positive.*kernel_size=-1"),
        ({"kernel_size": 3.0}, "`kernel_size` must be a positive.*kernel_size=3.0"),
        ({"num_kernels": 0}, "`num_kernels` must be a positive.*num_kernels=0"),
        ({"num_kernels": 3, "value_dim": 8}, "`num_kernels` must divide `value_dim`"),
        ({"value_dim": -8}, "`value_dim` must be a positive.*value_dim=-8"),
        ({"dropout_rate": -0.1}, r"`dropout_rate` must lie in \[0, 1\].*-0.1"),
        ({"dropout_rate": 1.5}, r"`dropout_rate` must lie in \[0, 1\].*1.5"),
        ({"dropout_rate": "x"}, "`dropout_rate` must be a number.*'x'"),
        ({"method": "fft"}, "`method` must be one of.*'fft'"),
    ],
)
def test_lkca_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LKCA(**arguments)


@pytest.mark.parametrize(
    ("arguments", "shape", "message"),
    [
        ({}, (2, 4, 6), r"LKCA works on feature maps of rank 4.*\(2, 4, 6\)"),
        ({"num_kernels": 3}, (2, 4, 4, 8), "`num_kernels` must divide `channels`"),
        ({}, (None, None, 4, 8), "LKCA needs a static height"),
        ({}, (None, 4, None, 8), "LKCA needs a static width"),
        ({"kernel_size": 3}, (None, 4, 4, None), "LKCA needs a static channels"),
    ],
)
def test_lkca_bad_shapes(arguments, shape, message):
    with pytest.raises(ValueError, match=message):
        LKCA(**arguments).build(shape)


def test_lkca_wrong_rank_in_call():
    with pytest.raises(ValueError, match="ndim=4"):
        LKCA()(np.ones((2, 4, 6), "float32"))


# Patches and positions


def test_patch_embedding_projects_each_patch(rng):
    x = rng.normal(size=(2, 4, 9, 3)).astype("float32")
    layer = PatchEmbedding(patch_size=(2, 3), embed_dim=5)
    out = numpy(layer(x))
    kernel, bias = numpy(layer.projection.kernel), numpy(layer.projection.bias)
    for i, j in np.ndindex(2, 3):
        patch = x[:, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3].reshape(2, -1)
        np.testing.assert_allclose(
            out[:, i, j], patch @ kernel + bias, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((None, 30, 32, 3), "height must be divisible by `patch_size`.*30, 32"),
        ((None, 32, 30, 3), "width must be divisible by `patch_size`.*32, 30"),
        ((None, 32, 3), "rank 4"),
        ((None, None, 32, 3), "static height"),
    ],
)
def test_patch_embedding_bad_shapes(shape, message):
    with pytest.raises(ValueError, match=message):
        PatchEmbedding(4, 8).build(shape)


def test_patch_embedding_checks_later_images_too():
    layer = PatchEmbedding(4, 8)
    layer.build((None, 32, 32, 3))
    assert layer(np.ones((1, 16, 8, 3), "float32")).shape == (1, 4, 2, 8)
    with pytest.raises(ValueError, match="height must be divisible"):
        layer(np.ones((1, 30, 32, 3), "float32"))
    with pytest.raises(ValueError, match="width must be divisible"):
        layer.compute_output_shape((None, 32, 30, 3))


def test_patch_embedding_bad_arguments():
    with pytest.raises(ValueError, match="`patch_size` must be a positive.*0"):
        PatchEmbedding(0, 8)
    with pytest.raises(ValueError, match="`embed_dim` must be a positive.*2.5"):
        PatchEmbedding(4, 2.5)


def test_position_embedding_adds(rng):
    x = rng.normal(size=(2, 3, 4, 5)).astype("float32")
    layer = PositionEmbedding()
    out = numpy(layer(x))
    np.testing.assert_allclose(out, x + numpy(layer.embeddings), rtol=1e-6)
    big = PositionEmbedding()
    big.build((None, 40, 40, 10))
    assert abs(numpy(big.embeddings).std() - 1) < 0.05


def test_integer_input_is_promoted():
    layer = PositionEmbedding()
    out = layer(keras.ops.ones((2, 3, 4, 5), "uint8"))
    np.testing.assert_allclose(numpy(out)[0], 1 + numpy(layer.embeddings), rtol=1e-6)


def test_position_embedding_bad_shapes(rng):
    with pytest.raises(ValueError, match="static grid"):
        PositionEmbedding().build((None, None, 4, 5))
    with pytest.raises(ValueError, match="rank 3 or 4"):
        PositionEmbedding().build((None, 4))
    layer = PositionEmbedding()
    layer.build((None, 3, 4, 5))
    with pytest.raises(ValueError, match="expected shape"):
        layer(np.ones((2, 4, 3, 5), "float32"))


def test_class_token_comes_first(rng):
    x = rng.normal(size=(2, 3, 5)).astype("float32")
    layer = ClassToken()
    out = numpy(layer(x))
    np.testing.assert_array_equal(out[:, 1:], x)
    np.testing.assert_array_equal(out[:, :1], numpy(layer.token)[[0, 0]])
    with pytest.raises(ValueError, match="rank 3"):
        ClassToken().build((None, 4, 4, 5))


# Stochastic depth


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean():
    x = np.ones((2000, 2, 3, 4), "float32")
    layer = StochasticDepth(0.25, seed=1)
    out = numpy(layer(x, training=True))
    per_sample = out.reshape(2000, -1)
    assert (per_sample == per_sample[:, :1]).all()
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.75], rtol=1e-6)
    assert abs(out.mean() - 1) < 0.05
    np.testing.assert_array_equal(numpy(layer(x)), x)


def test_stochastic_depth_is_seeded_and_draws_anew():
    x = np.ones((64, 3), "float32")
    first, second = StochasticDepth(0.5, seed=7), StochasticDepth(0.5, seed=7)
    a, b = numpy(first(x, training=True)), numpy(second(x, training=True))
    np.testing.assert_array_equal(a, b)
    assert (numpy(first(x, training=True)) != a).any()


def test_stochastic_depth_edges():
    x = np.ones((4, 3), "float32")
    np.testing.assert_array_equal(numpy(StochasticDepth(0)(x, training=True)), x)
    np.testing.assert_array_equal(numpy(StochasticDepth(1.0)(x, training=True)), 0)
    for rate in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"`rate` must lie in \[0, 1\]"):
            StochasticDepth(rate)


# Self-attention


def test_self_attention_is_its_formula(rng):
    x = rng.normal(size=(2, 5, 8)).astype("float32")
    layer = SelfAttention(num_heads=2)
    out = numpy(layer(x))
    joint = (x @ numpy(layer.query_key_value.kernel)).reshape(2, 5, 3, 2, 4)
    query, key, value = joint[:, :, 0], joint[:, :, 1], joint[:, :, 2]
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / 2
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    mixed = np.einsum("bhqk,bkhd->bqhd", weights, value).reshape(2, 5, 8)
    expected = mixed @ numpy(layer.projection.kernel) + numpy(layer.projection.bias)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_self_attention_bad_input():
    with pytest.raises(ValueError, match="`num_heads` must divide `channels`"):
        SelfAttention(3).build((None, 5, 8))
    with pytest.raises(ValueError, match="rank 3"):
        SelfAttention(2).build((None, 5, 5, 8))
    with pytest.raises(ValueError, match="`num_heads` must be a positive"):
        SelfAttention(0)
    for rate in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"`dropout_rate` must lie in \[0, 1\]"):
            SelfAttention(2, dropout_rate=rate)


@pytest.mark.parametrize(
    "build", [LKCA, lambda: PatchEmbedding(4, 8), PositionEmbedding]
)
def test_channels_first_is_refused(build):
    keras.config.set_image_data_format("channels_first")
    with pytest.raises(ValueError, match="channels_last.*'channels_first'"):
        build()


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (2, 5, 6), (2, 6)])
def test_token_dense_is_dense(shape, dtype, use_bias, rng):
    x = rng.normal(size=shape).astype("float32")
    layer, dense = (
        kind(7, activation="gelu", use_bias=use_bias, dtype=dtype)
        for kind in (TokenDense, keras.layers.Dense)
    )
    layer.build(shape)
    dense.build(shape)
    dense.set_weights([rng.normal(size=w.shape) for w in layer.get_weights()])
    layer.set_weights(dense.get_weights())
    actual, wanted = layer(x), dense(x)
    assert actual.dtype == wanted.dtype and actual.shape == wanted.shape
    tolerance = 1e-5 if dtype == "float32" else 4e-2
    np.testing.assert_allclose(
        numpy(keras.ops.cast(actual, "float32")),
        numpy(keras.ops.cast(wanted, "float32")),
        rtol=tolerance,
        atol=tolerance,
    )


@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((16, 3, 4, 6), "float32"),
        ((16, 3, 4, 6), "mixed_bfloat16"),
        ((16, 6), "mixed_float16"),  # as Keras does it
    ],
)
def test_batch_normalization_trains_as_keras_does(shape, dtype, rng):
    x = rng.normal(3, 2, shape).astype("float32")
    y = rng.normal(size=shape).astype("float32")
    after = []
    for layer_class in (keras.layers.BatchNormalization, BatchNormalization):
        keras.utils.set_random_seed(0)
        layer = layer_class(momentum=0.8, epsilon=1e-3, dtype=dtype)
        model = after_a_dense_layer(layer, shape)
        # In TensorFlow's graph, as XLA's programs are those of Keras's layer.
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        model.fit(x, y, epochs=3, batch_size=8, shuffle=False, verbose=0)
        after.append([*model.get_weights(), model.predict(x, verbose=0)])
    tolerance = 1e-5 if dtype == "float32" else 0.03
    for expected, found in zip(*after, strict=True):
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    assert np.ptp(after[0][-4]) > 0  # the offsets were trained


@pytest.mark.parametrize(
    "arguments", [{"axis": 1}, {"scale": False}, {"renorm": True}, {"center": False}]
)
def test_batch_normalization_of_another_kind_is_keras_own(arguments, rng):
    x = rng.normal(3, 2, (4, 3, 5, 6)).astype("float32")
    after = []
    for layer_class in (keras.layers.BatchNormalization, BatchNormalization):
        layer = layer_class(**arguments)
        out = numpy(layer(x, training=True))
        after.append([out, *layer.get_weights(), numpy(layer(x))])
    for expected, found in zip(*after, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_batch_normalization_of_a_frozen_layer_and_a_mask(rng):
    x = rng.normal(3, 2, (4, 5, 6)).astype("float32")
    layer = BatchNormalization()
    mask = np.arange(5)[None] < np.array([[1], [2], [3], [4]])
    keras_own = keras.layers.BatchNormalization()
    np.testing.assert_array_equal(
        numpy(layer(x, training=True, mask=mask)),
        numpy(keras_own(x, training=True, mask=mask)),
    )
    layer.trainable = False
    before = layer.get_weights()
    np.testing.assert_array_equal(numpy(layer(x, training=True)), numpy(layer(x)))
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_token_dense_and_patches_take_integers(rng):
    images = rng.integers(0, 256, (2, 4, 6, 3)).astype("uint8")
    assert TokenDense(7)(images).shape == (2, 4, 6, 7)
    assert PatchEmbedding(2, 5)(images).shape == (2, 2, 3, 5)


def test_token_dense_can_be_quantized(rng):
    x = rng.normal(size=(2, 3, 4, 6)).astype("float32")
    layer = TokenDense(7)
    before = numpy(layer(x))
    layer.quantize("int8")
    np.testing.assert_allclose(numpy(layer(x)), before, atol=0.05)


def test_token_dense_takes_a_dynamic_grid(rng):
    images = keras.Input((None, None, 6))
    model = keras.Model(images, TokenDense(7)(images))
    for shape in ((1, 2, 3, 6), (2, 4, 1, 6)):
        x = rng.normal(size=shape).astype("float32")
        assert model.predict(x, verbose=0).shape == (*shape[:-1], 7)


@pytest.mark.parametrize("name", ["LKCA", "SelfAttention", "PatchEmbedding"])
def test_layers_within_are_frozen_and_changed_with_it(name, tmp_path):
    cls, arguments, shape, _ = LAYERS[name]
    inputs = keras.Input(shape)
    for layer in (cls(**arguments, trainable=False), cls(**arguments)):
        layer.trainable = False
        model = keras.Model(inputs, layer(inputs))
        assert not model.trainable_weights
        layer.trainable = True
        assert len(model.trainable_weights) == len(layer.weights)
    layer.projection.trainable = False
    layer.projection.activation = keras.activations.relu
    expected = [weight.path for weight in model.trainable_weights]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert [weight.path for weight in again.trainable_weights] == expected
    assert again.layers[1].projection.activation is keras.activations.relu


@pytest.mark.parametrize("cls", [LKCA, SelfAttention])
def test_dropout_rate_can_be_set(cls):
    arguments = {} if cls is LKCA else {"num_heads": 2}
    layer = cls(**arguments, dropout_rate=0.5)
    layer.dropout_rate = 0.25
    assert layer.dropout.rate == layer.get_config()["dropout_rate"] == 0.25
    with pytest.raises(ValueError, match="between 0 and 1|in \\[0, 1\\]"):
        layer.dropout_rate = 2
    with pytest.raises(ValueError, match="made with 0 cannot be raised"):
        cls(**arguments).dropout_rate = 0.5


@pytest.mark.parametrize("three", [np.int64(3), np.uint8(3)])
def test_numpy_integers_are_taken(three):
    for layer in (
        PatchEmbedding(patch_size=three, embed_dim=three),
        TokenDense(three),
        LKCA(value_dim=three, num_kernels=three, kernel_size=three, seed=three),
        SelfAttention(num_heads=three, seed=three),
        StochasticDepth(0.5, seed=three),
        FixedConv(kernel_size=(three, 3), num_kernels=three),
    ):
        config = layer.get_config()
        assert json.loads(json.dumps(config)) and 3 in config.values()
        type(layer).from_config(config)
    assert attention_matrix(np.zeros((3, 3, 1)), three, three).shape == (1, 9, 9)
    with pytest.raises(ValueError, match="`seed` must be an integer or None.*'a'"):
        LKCA(seed="a")
    with pytest.raises(ValueError, match="`units` must be a positive integer.*units=0"):
        TokenDense(0)


# What a compiler or a tracer makes of every layer

METHODS = ("toeplitz", "depthwise", "hybrid", "spectral")


def compiled_calls(model, images):
    """Return the model in every form that the backend's tools give it, by name.

    Each is made from the images and is to take a batch of any size.
    """
    if keras.config.backend() == "torch":
        import torch

        images = torch.from_numpy(images)
        batch = torch.export.Dim("batch", min=1)
        shapes = (({0: batch},),)  # of the first of its `*args`
        exported = torch.export.export(model, (images,), dynamic_shapes=shapes)
        calls = {
            "trace": torch.jit.trace(model, images),
            "export": exported.module(),
        }
        return {
            name: lambda x, call=call: call(torch.from_numpy(x))
            for name, call in calls.items()
        }
    if keras.config.backend() == "jax":
        import jax

        batch = jax.export.symbolic_shape("batch")
        spec = jax.ShapeDtypeStruct((*batch, *images.shape[1:]), images.dtype)
        assert jax.eval_shape(model, spec).shape[1:] == model.output_shape[1:]
        exported = jax.export.export(jax.jit(model))(spec)
        return {"export": exported.call}
    import tensorflow as tf

    spec = [tf.TensorSpec((None, *images.shape[1:]), images.dtype)]
    return {
        "graph": tf.function(model, input_signature=spec),
        "XLA": tf.function(model, input_signature=spec, jit_compile=True),
    }


@pytest.mark.filterwarnings("ignore")  # torch's tracer warns of much that Keras does
def test_every_layer_is_traced_and_compiled(rng):
    model = every_layer(METHODS)
    images = {
        batch: rng.uniform(0, 255, (batch, *model.input_shape[1:])).astype("f4")
        for batch in (3, 1)
    }
    calls = compiled_calls(model, images[3])
    for batch, of_batch in images.items():
        expected = keras.ops.convert_to_numpy(model(of_batch))
        for name, call in calls.items():
            np.testing.assert_allclose(
                keras.ops.convert_to_numpy(call(of_batch)),
                expected,
                rtol=1e-4,
                atol=1e-4,
                err_msg=f"{name}, {batch} images",
            )


@pytest.mark.skipif(keras.config.backend() != "torch", reason="a tool of torch")
@pytest.mark.filterwarnings("ignore")
def test_a_layer_of_any_grid_is_traced_for_any(rng):
    import torch

    inputs = keras.Input((None, None, 4))
    outputs = LKCA(kernel_size=7, kernel_initializer="normal")(inputs)
    model = keras.Model(inputs, outputs)
    trace = torch.jit.trace(model, torch.zeros(1, 1, 1, 4))  # as Keras's ONNX export
    for shape in ((2, 8, 6, 4), (1, 3, 9, 4)):
        array = rng.normal(size=shape).astype("f4")
        expected = keras.ops.convert_to_numpy(model(array))
        outputs = keras.ops.convert_to_numpy(trace(torch.from_numpy(array)))
        np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
