"""Adaptation: what was learned, on other grids and for other classes."""

import keras
import numpy as np
import pytest
from conftest import NAMES, with_noise

from keras_lkca import LKCANet, LKCAViT, ViT, deploy
from keras_lkca.layers import LKCA, PatchEmbedding
from keras_lkca.models import ImageModel, adapt, lkca_trunk

SHAPE = (16, 24, 3)
FAMILIES = {
    "LKCANet": (LKCANet, {"stem_filters": (4, 4), "patch_size": 4}),
    "stages": (
        LKCANet,
        {"stem_filters": (4, 4), "embed_dim": (8, 12), "depth": (1, 1)},
    ),
    "LKCAViT": (LKCAViT, {"num_kernels": 2}),
    "local": (LKCAViT, {"kernel_size": 3}),
    "ViT": (ViT, {"num_heads": 2}),
}


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def make(name, **more):
    family, arguments = FAMILIES[name]
    defaults = {"input_shape": SHAPE, "embed_dim": 8, "depth": 1, "num_classes": 4}
    defaults.update(class_names=NAMES)
    return with_noise(family(**{**defaults, **arguments, **more}))


def own(names=NAMES):
    inputs = keras.Input(SHAPE)
    x = keras.layers.Conv2D(8, 4, strides=4)(inputs)
    x = lkca_trunk(x, 2)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(4, name="mine")(x)
    model = (
        ImageModel(inputs, outputs, names) if names else keras.Model(inputs, outputs)
    )
    return with_noise(model)


@pytest.fixture(params=[*FAMILIES, "own", "plain"])
def model(request):
    if request.param in ("own", "plain"):
        return own(NAMES if request.param == "own" else None)
    return make(request.param)


def test_with_nothing_to_change_it_is_a_copy(model, rng, tmp_path):
    again = adapt(model)
    assert type(again) is type(model) and again is not model
    assert getattr(again, "class_names", None) == getattr(model, "class_names", None)
    x = rng.integers(0, 256, (3, *SHAPE)).astype("uint8")
    np.testing.assert_array_equal(numpy(again(x)), numpy(model(x)))
    again.save(tmp_path / "again.keras")
    loaded = keras.models.load_model(tmp_path / "again.keras")
    np.testing.assert_allclose(numpy(loaded(x)), numpy(model(x)), rtol=1e-6)


def test_there_and_back_on_a_larger_grid(model):
    larger = adapt(model, (32, 40, 3))
    assert larger.input_shape == (None, 32, 40, 3)
    back = adapt(larger, SHAPE)
    for layer in model.layers:
        if not isinstance(layer, LKCA):
            continue
        small, large = layer.kernel, larger.get_layer(layer.name).kernel
        np.testing.assert_array_equal(
            numpy(back.get_layer(layer.name).kernel), numpy(small)
        )
        edges = [(b - a) // 2 for a, b in zip(small.shape, large.shape, strict=True)]
        rows, columns = edges[:2]
        middle = numpy(large)[rows : rows + small.shape[0]]
        np.testing.assert_array_equal(
            middle[:, columns : columns + small.shape[1]], numpy(small)
        )
        assert np.abs(numpy(large)).sum() == pytest.approx(np.abs(numpy(small)).sum())


def test_positions_are_interpolated():
    model = make("LKCAViT", depth=1)
    positions = model.get_layer("positions").embeddings
    positions.assign(np.full(positions.shape, 0.25))
    larger = adapt(model, (32, 40, 3)).get_layer("positions").embeddings
    assert larger.shape == (8, 10, 8)
    np.testing.assert_allclose(numpy(larger), 0.25, rtol=1e-5)
    vit = make("ViT")
    tokens = vit.get_layer("positions").embeddings
    tokens.assign(np.concatenate([np.ones((1, 8)), np.full((24, 8), 0.5)]))
    larger = numpy(adapt(vit, (32, 40, 3)).get_layer("positions").embeddings)
    np.testing.assert_allclose(larger[0], 1)
    np.testing.assert_allclose(larger[1:], 0.5, rtol=1e-5)
    assert larger.shape == (81, 8)


@pytest.mark.parametrize("name", ["LKCAViT", "LKCANet", "ViT"])
def test_tokens_of_another_size(name):
    model = (
        make(name, input_shape=(16, 16, 3), num_kernels=1)
        if name != "ViT"
        else (make(name, input_shape=(16, 16, 3)))
    )
    finer = adapt(model, patch_size=2)
    coarser = adapt(model, patch_size=(8, 4))
    if name != "ViT":
        kernel = numpy(model.get_layer("block_0_lkca").kernel)
        for new in (finer, coarser):
            there = numpy(new.get_layer("block_0_lkca").kernel)
            wide = numpy(adapt(model, (64, 64, 3)).get_layer("block_0_lkca").kernel)
            assert wide.sum() == pytest.approx(kernel.sum(), rel=1e-5)
            assert there.shape[:2] == tuple(
                2 * size - 1 for size in new.get_layer("positions").output.shape[1:3]
            )
    if name == "LKCANet":
        return
    # An even image gives the same tokens, whatever the patches.
    image = np.full((1, 16, 16, 3), 77.0)
    tokens = [
        numpy(keras.Model(x.input, x.get_layer("patches").output)(image))[0, 0, 0]
        for x in (model, finer, coarser)
    ]
    np.testing.assert_allclose(tokens[1], tokens[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(tokens[2], tokens[0], rtol=1e-4, atol=1e-5)


def test_kernels_keep_their_sum_where_tokens_change_size():
    layer = LKCA(kernel_initializer="glorot_normal", kernel_size=5)
    inputs = keras.Input((32, 32, 3))
    x = PatchEmbedding(4, 8, name="patches")(inputs)
    model = keras.Model(inputs, layer(x))
    coarser = adapt(model, patch_size=8).layers[-1]
    assert numpy(coarser.kernel).sum() == pytest.approx(
        numpy(layer.kernel).sum(), rel=1e-5
    )


def test_classes_that_both_have_are_kept(model, rng):
    names = ("dog", "eel", "ant")
    if getattr(model, "class_names", None) is None:
        new = adapt(model, num_classes=3)
        assert new.output_shape == (None, 3)
        return
    new = adapt(model, class_names=names)
    assert new.class_names == names and new.output_shape == (None, 3)
    x = rng.integers(0, 256, (3, *SHAPE)).astype("uint8")
    old = numpy(model(x))
    columns = [NAMES.index("dog"), NAMES.index("ant")]
    np.testing.assert_allclose(numpy(new(x))[:, [0, 2]], old[:, columns], rtol=1e-5)
    assert adapt(model, num_classes=4).class_names == NAMES
    assert adapt(model, num_classes=5).class_names is None


def test_two_classes_of_one_name(rng):
    twice = ("ant", "crane", "crane", "dog")
    model = make("LKCANet", class_names=twice)
    x = rng.integers(0, 256, (3, *SHAPE)).astype("uint8")
    np.testing.assert_array_equal(numpy(adapt(model)(x)), numpy(model(x)))
    few = adapt(model, class_names=["dog", "ant"])
    np.testing.assert_allclose(numpy(few(x)), numpy(model(x))[:, [3, 0]], rtol=1e-5)
    with pytest.raises(ValueError, match="two classes of the name 'crane'"):
        adapt(model, class_names=["crane", "ant"])
    with pytest.raises(ValueError, match="`class_names` must be different"):
        adapt(make("LKCANet"), class_names=["cat", "cat", "dog"])


def test_one_column_is_kept_for_the_same_two_classes():
    model = make("LKCAViT", num_classes=1, class_names=["no", "yes"])

    def head(model):
        return numpy(model.get_layer("classifier").kernel)

    same = adapt(model, (32, 24, 3), class_names=["no", "yes"])
    np.testing.assert_array_equal(head(same), head(model))
    # What decides between others is learned anew.
    for names, number in (
        (("yes", "no"), 1),
        (("no", "yes"), 2),
        (("no", "yes", "?"), 3),
    ):
        new = adapt(model, num_classes=number, class_names=names)
        assert new.output_shape == (None, number) and new.class_names == names
        assert not np.isin(head(new), head(model)).any()


def test_names_for_a_model_that_had_none(tmp_path):
    new = adapt(own(None), class_names=("x", "y"))
    new.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").class_names == ("x", "y")
    with pytest.raises(ValueError, match="`class_names` must be a string for each"):
        adapt(own(None), num_classes=3, class_names=["x", "y"])


def test_without_a_classifier(rng):
    model = make("LKCANet", include_top=False, pooling=None, class_names=None)
    assert adapt(model, (32, 32, 3)).output_shape == (None, 8, 8, 8)
    vector = make("LKCANet", include_top=False, class_names=None)  # of 8 numbers too
    for each in (model, vector):
        with pytest.raises(ValueError, match="must end with a Dense layer"):
            adapt(each, num_classes=3)


def test_what_cannot_be_adapted():
    model = make("LKCAViT")
    with pytest.raises(ValueError, match="`input_shape` must have the 3 channels"):
        adapt(model, (32, 32, 1))
    with pytest.raises(ValueError, match="neither folded nor quantized"):
        adapt(deploy.fold(model), (32, 32, 3))
    with pytest.raises(ValueError, match="without models within it"):
        adapt(keras.Sequential([keras.Input(SHAPE), model]))
    with pytest.raises(ValueError, match="`model` must be a functional Keras model"):
        adapt("model.keras")
    with pytest.raises(ValueError, match="`class_names` must be a string for each"):
        adapt(model, num_classes=3, class_names=["a", "b"])
    for names in ("abc", {"a", "b"}, (1, 2)):
        with pytest.raises(ValueError, match="`class_names` must be a string for each"):
            adapt(model, class_names=names)
    with pytest.raises(ValueError, match="`patch_size` can be changed of a model with"):
        adapt(own(), patch_size=2)
    with pytest.raises(ValueError, match="divisible by `patch_size`"):
        adapt(model, (30, 30, 3))
    inputs = keras.Input(SHAPE)
    x = keras.layers.Flatten(name="flat")(lkca_trunk(inputs, 1))
    flat = keras.Model(inputs, keras.layers.Dense(4, name="after")(x))
    with pytest.raises(ValueError, match="'after/kernel' whose shape depends"):
        adapt(flat, (32, 32, 3))
    quantized = make("LKCAViT")
    quantized.get_layer("block_0_mlp_expand").quantize("int8")
    with pytest.raises(ValueError, match="neither folded nor quantized"):
        adapt(quantized, (32, 32, 3))
