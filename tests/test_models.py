import dataclasses
import functools
import hashlib
import http.server
import json
import pathlib
import threading

import keras
import numpy as np
import pytest
from conftest import BACKENDS, NAMES

from keras_lkca import LKCA, LKCANet, LKCAViT, ViT, deploy, list_presets
from keras_lkca.layers import SelfAttention
from keras_lkca.models import (
    PRESETS,
    ImageModel,
    LKCASegmenter,
    Preset,
    Weights,
    adapt,
    attention_block,
    classifiers,
    lkca_block,
    lkca_trunk,
    presets,
)
from keras_lkca.models.presets import default_patch_size

FILES = pathlib.Path(__file__).parent / "trained"
CLASSES = {"LKCANet": LKCANet, "LKCAViT": LKCAViT, "ViT": ViT}
ONE = np.int64(1)
SMALL = {"depth": 2, "embed_dim": 16}
COUNTS = [
    (preset, *counted, count)
    for preset, row in PRESETS.items()
    for counted, count in row.parameters.items()
]


@pytest.fixture(params=CLASSES)
def model_class(request):
    return CLASSES[request.param]


def images(rng, *shape):
    return rng.integers(0, 256, shape or (4, 32, 32, 3)).astype("uint8")


def with_random_weights(model, rng):
    """New LKCA kernels are zeros, which would hide what they do."""
    for weight in model.weights:
        values = rng.normal(size=weight.shape) * 0.1
        weight.assign(abs(values) if "variance" in weight.path else values)
    return model


@pytest.mark.once
@pytest.mark.parametrize(("preset", "size", "patch", "classes", "count"), COUNTS)
def test_preset_parameter_counts(preset, size, patch, classes, count):
    model = CLASSES[PRESETS[preset].model].from_preset(
        preset, input_shape=(size, size, 3), num_classes=classes
    )
    trainable = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert trainable == count
    assert model.get_config()["patch_size"] in (patch, None)


def test_the_published_counts_stand_in_the_table():
    assert PRESETS["lkca_vit_tiny"].parameters[64, 8, 200] == 1_073_225
    assert PRESETS["vit_tiny"].parameters[64, 8, 200] == 1_106_288
    assert len(COUNTS) == (5 + 7) * 3 + 6 * 2


def test_list_presets():
    assert list_presets() == list(PRESETS)
    assert {name for kind in CLASSES for name in list_presets(kind)} == set(PRESETS)
    assert all(name.startswith("lkca") for name in list_presets("LKCAViT"))
    with pytest.raises(ValueError, match="`model` must be one of.*'CNN'"):
        list_presets("CNN")


@pytest.mark.parametrize(
    ("shape", "patch"),
    [
        ((32, 32, 3), 4),
        ((64, 64, 3), 8),
        ((64, 32, 3), 4),
        ((8, 8, 1), 1),
        ((4, 4, 1), 1),
        ((28, 28, 1), 2),
        ((224, 224, 3), 28),
        ((37, 37, 3), 1),
    ],
)
def test_default_patch_size(shape, patch):
    assert default_patch_size(shape) == patch


def test_overrides_of_a_preset():
    model = LKCAViT.from_preset(
        "lkca_vit_05m", input_shape=(16, 32, 1), patch_size=(4, 8), num_kernels=4
    )
    assert model.get_layer("block_0_lkca").kernel.shape == (7, 7, 4)
    assert model.input_shape == (None, 16, 32, 1)


@pytest.mark.parametrize(
    ("cls", "preset", "message"),
    [
        (
            LKCAViT,
            "lkca_vit_tny",
            r"`preset` must be one of.*no such preset.*'lkca_vit_tiny'.*'lkca_vit_tny'",
        ),
        (ViT, "vit_smal", r"no such preset.*'vit_small'.*'vit_smal'"),
        (LKCAViT, "xyz", "no such preset.*'lkca_vit_05m'.*'xyz'"),
        (LKCAViT, "vit_tiny", "preset of ViT: use ViT.from_preset"),
        (ViT, "lkca_vit_tiny", "preset of LKCAViT: use LKCAViT.from_preset"),
    ],
)
def test_unknown_presets(cls, preset, message):
    with pytest.raises(ValueError, match=message):
        cls.from_preset(preset)


@pytest.mark.parametrize("shape", [32, (32, 32), (None, None, 3), "32"])
def test_bad_input_shape_of_a_preset(shape):
    with pytest.raises(ValueError, match="`input_shape` must be"):
        LKCAViT.from_preset("lkca_vit_05m", input_shape=shape)


def test_non_square_images(model_class, rng):
    model = model_class(input_shape=(16, 24, 1), patch_size=(4, 8), **SMALL)
    assert model(images(rng, 2, 16, 24, 1)).shape == (2, 10)


@pytest.mark.parametrize("pooling", ["avg", "max", None])
def test_without_the_top(model_class, pooling, rng):
    model = model_class(
        input_shape=(16, 24, 3), include_top=False, pooling=pooling, **SMALL
    )
    grid = (8, 12) if model_class is LKCANet else (4, 6)
    expected = (None, 16) if pooling else (None, *grid, 16)
    assert model.output_shape == expected
    assert model(images(rng, 2, 16, 24, 3)).shape == (2, *expected[1:])


def test_vit_feature_map_leaves_out_the_class_token(rng):
    whole = ViT(include_top=False, pooling=None, drop_path_rate=0, **SMALL)
    tokens = keras.Model(whole.input, whole.get_layer("block_1_mlp_add").output)
    x = images(rng)
    np.testing.assert_array_equal(
        whole.predict(x, verbose=0).reshape(4, 64, 16),
        tokens.predict(x, verbose=0)[:, 1:],
    )


def test_poolings_differ(rng):
    x = images(rng)
    for model_class, poolings in ((LKCAViT, ("avg", "max")), (ViT, ("token", "avg"))):
        outs = []
        for pooling in poolings:
            keras.utils.set_random_seed(1)
            model = model_class(pooling=pooling, **SMALL)
            outs.append(model.predict(x, verbose=0))
        assert np.abs(outs[0] - outs[1]).max() > 1e-3


def test_uint8_and_float_images_mean_the_same(model_class, rng):
    model = with_random_weights(model_class(**SMALL), rng)
    x = images(rng)
    np.testing.assert_array_equal(
        model.predict(x, verbose=0), model.predict(x.astype("float32"), verbose=0)
    )


def test_images_are_normalised_inside(model_class, rng):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    model = model_class(image_mean=mean, image_std=std, **SMALL)
    x = images(rng)
    normalize = keras.Model(model.input, model.get_layer("normalize").output)
    np.testing.assert_allclose(
        normalize.predict(x, verbose=0),
        (x / 255 - np.array(mean)) / np.array(std),
        rtol=1e-4,
        atol=1e-5,
    )
    default = model_class(**SMALL).get_layer("normalize")
    ends = np.array([0.0, 255.0], "float32").reshape(2, 1, 1, 1).repeat(3, -1)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(default(ends))[:, 0, 0, 0], [-1, 1], atol=1e-6
    )


def test_classifier_activation(model_class, rng):
    x = images(rng)
    model = with_random_weights(model_class(**SMALL), rng)
    soft = model_class(classifier_activation="softmax", **SMALL)
    soft.set_weights(model.get_weights())
    logits = model.predict(x, verbose=0).astype("float64")
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(soft.predict(x, verbose=0), expected, rtol=1e-4)


def test_config_is_the_constructor_s_arguments(model_class):
    model = model_class(
        input_shape=(16, 24, 3),
        num_classes=7,
        patch_size=(4, 8),
        image_mean=(0.1, 0.2, 0.3),
        classifier_activation="softmax",
        name="mine",
        dtype="mixed_bfloat16",
        **SMALL,
    )
    config = json.loads(json.dumps(model.get_config()))
    again = model_class.from_config(config)
    assert json.loads(json.dumps(again.get_config())) == config
    assert config["embed_dim"] == 16 and config["name"] == "mine"
    assert again.dtype_policy.name == "mixed_bfloat16"
    assert [w.path for w in again.weights] == [w.path for w in model.weights]


def test_numpy_arguments_are_as_good_as_python_s(model_class, tmp_path):
    model = model_class(
        input_shape=tuple(np.array([32, 32, 3])),
        num_classes=np.int64(3),
        patch_size=np.int32(4),
        embed_dim=np.uint16(16),
        depth=np.int8(2),
        mlp_ratio=np.int64(2),
        image_mean=np.array([0.1, 0.2, 0.3]),
        image_std=np.float32(0.5),
        drop_path_rate=np.float32(0.25),
        **({"num_heads": np.int64(4)} if model_class is ViT else {"num_kernels": ONE}),
    )
    json.dumps(model.get_config())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    assert model.get_config()["image_mean"] == (0.1, 0.2, 0.3)


def test_trains_saves_and_loads(model_class, rng, tmp_path):
    model = with_random_weights(model_class(**SMALL), rng)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = images(rng), np.arange(4)
    loss = model.fit(x, y, batch_size=2, verbose=0).history["loss"][0]
    assert np.isfinite(loss)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is model_class
    assert loaded.get_config() == model.get_config()
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0)
    )
    loaded.fit(x, y, batch_size=2, verbose=0)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(model_class, policy, rng):
    exact = with_random_weights(model_class(**SMALL), rng)
    model = model_class(dtype=policy, **SMALL)
    model.set_weights(exact.get_weights())
    x = images(rng)
    out = model.predict(x, verbose=0)
    assert out.dtype == "float32"
    expected = exact.predict(x, verbose=0)
    np.testing.assert_allclose(out, expected, atol=0.05 * np.abs(expected).max())
    assert model.get_layer("block_0_mixer_norm").compute_dtype == policy[6:]
    model.compile("adam", "sparse_categorical_crossentropy")
    assert np.isfinite(model.fit(x, np.arange(4), verbose=0).history["loss"][0])


def test_global_policy_is_taken_and_kept(model_class):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = model_class(**SMALL)
    keras.config.set_dtype_policy("float32")
    assert model.dtype_policy.name == "mixed_bfloat16"
    again = model_class.from_config(model.get_config())
    assert again.dtype_policy.name == "mixed_bfloat16"
    plain = model_class.from_config({**model.get_config(), "dtype": "float32"})
    assert plain.get_layer("block_0_mixer_norm").compute_dtype == "float32"


def test_a_new_lkca_block_adds_its_mlp_alone(rng):
    x = rng.normal(size=(2, 4, 4, 8)).astype("float32")
    inputs = keras.Input((4, 4, 8))
    model = keras.Model(inputs, lkca_block(inputs, name="b"))
    mixed = keras.Model(inputs, model.get_layer("b_mixer_add").output)
    np.testing.assert_array_equal(mixed.predict(x, verbose=0), x)


def test_blocks_compose_by_hand(rng):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(16, 3, padding="same")(inputs)
    x = lkca_trunk(x, 2, num_kernels=4, kernel_size=5, dropout_rate=0.1)
    x = lkca_block(x, drop_path_rate=0.2)
    x = keras.layers.Reshape((64, 16))(x)
    x = attention_block(x, 4, dropout_rate=0.1)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(x))
    model.compile("adam", "mse")
    x = rng.normal(size=(2, 8, 8, 3)).astype("float32")
    assert np.isfinite(model.fit(x, np.ones((2, 16)), verbose=0).history["loss"][0])


def test_position_stddev(model_class):
    for stddev in (0.02, 1.0):
        model = model_class(**SMALL, position_stddev=stddev)
        values = keras.ops.convert_to_numpy(model.get_layer("positions").embeddings)
        assert values.std() == pytest.approx(stddev, rel=0.2)
    with pytest.raises(ValueError, match="`position_stddev` must be a positive number"):
        model_class(**SMALL, position_stddev=0)


def test_options_that_the_paper_does_not_have(rng, tmp_path):
    model = LKCAViT(
        **SMALL,
        stem_filters=(8, 8),
        gate_activation="gelu",
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.1),
    )
    assert model.get_layer("block_0_lkca").gate.activation is keras.activations.gelu
    assert model.get_layer("stem_2_0_conv").output.shape == (None, 8, 8, 16)
    again = reloaded(with_random_weights(model, rng), tmp_path)
    x = images(rng)
    np.testing.assert_allclose(
        again.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6
    )
    # By default it is the paper's model, whose weights have these names.
    paths = [weight.path for weight in LKCAViT(**SMALL).weights]
    assert not any("stem" in path or "gate" in path for path in paths)


def test_dropout_layers_are_there_only_when_asked_for(model_class):
    def dropouts(**arguments):
        model = model_class(**SMALL, mlp_ratio=2, **arguments)
        return [x for x in model.layers if isinstance(x, keras.layers.Dropout)]

    assert not dropouts()
    assert len(dropouts(dropout_rate=0.1)) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (32, 32)}, "`input_shape` must be"),
        ({"input_shape": (None, 32, 3)}, "`input_shape` must be a positive integer"),
        ({"num_classes": 0}, "`num_classes` must be a positive integer"),
        ({"depth": 0}, "`depth` must be a positive integer"),
        ({"embed_dim": 1.5}, "`embed_dim` must be a positive integer"),
        ({"input_shape": 32}, "`input_shape` must be"),
        ({"mlp_ratio": 0}, "`mlp_ratio` must be a positive number"),
        ({"mlp_ratio": "2"}, "`mlp_ratio` must be a positive number.*'2'"),
        ({"mlp_ratio": float("nan")}, "`mlp_ratio` must be a positive number"),
        ({"drop_path_rate": 1.1}, r"`drop_path_rate` must lie in \[0, 1\].*1.1"),
        ({"drop_path_rate": -1}, r"`drop_path_rate` must lie in \[0, 1\].*-1"),
        ({"dropout_rate": -0.1}, r"`dropout_rate` must lie in \[0, 1\]"),
        ({"pooling": "sum"}, "`pooling` must be one of.*'sum'"),
        ({"pooling": None}, "`pooling` must be one of.*include_top=False"),
        ({"image_mean": (0.5, 0.5)}, "`image_mean` must be a number or 3"),
        ({"image_mean": 127.0}, "`image_mean` must be a number or 3.*127.0"),
        ({"image_mean": "grey"}, "`image_mean` must be a number or 3.*'grey'"),
        ({"image_std": 0}, "`image_std` must be above zero"),
        ({"include_top": "no"}, "`include_top` must be True or False.*'no'"),
        ({"trainable": "no"}, "`trainable` must be True or False.*'no'"),
        (
            {"num_classes": 1, "classifier_activation": "softmax"},
            "`classifier_activation` of one column must not be a softmax",
        ),
        (
            {"classifier_activation": "sofmax"},
            "`classifier_activation` must be .*nearest is 'softmax'.*='sofmax'",
        ),
    ],
)
def test_bad_arguments(model_class, arguments, message):
    with pytest.raises(ValueError, match=message):
        model_class(**{**SMALL, **arguments})


@pytest.mark.parametrize("cls", [LKCAViT, ViT])
def test_patches_tile_the_images(cls):
    with pytest.raises(ValueError, match="height must be divisible by `patch_size`"):
        cls(**SMALL, input_shape=(30, 32, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": (1, 2)}, "`embed_dim` and `depth` must be integers, or tuples"),
        ({"depth": (), "embed_dim": ()}, "`embed_dim` and `depth` must be integers"),
        ({"patch_size": 3}, "`patch_size` must be a power of 2, at most 8.*=3"),
        ({"patch_size": 16}, "`patch_size` must be a power of 2, at most 8.*=16"),
        ({"stem_filters": (8, 0)}, "`stem_filters` must be a positive integer"),
        ({"stem_filters": 8}, "`stem_filters` must be a tuple of.*stem_filters=8"),
        ({"gate_activation": "gelo"}, "`gate_activation` must be .*'gelu'.*='gelo'"),
        ({"num_kernels": 0}, "`num_kernels` must be a positive integer"),
        (
            {"num_kernels": 7},
            r"`num_kernels` must divide `embed_dim \* value_ratio`.*num_kernels=7",
        ),
    ],
)
def test_bad_arguments_of_a_net(arguments, message):
    with pytest.raises(ValueError, match=message):
        LKCANet(**{**SMALL, **arguments})


@pytest.mark.parametrize(
    ("shape", "arguments", "grid"),
    [
        ((32, 32, 3), {}, (8, 8)),
        ((64, 64, 3), {}, (8, 8)),
        ((8, 8, 1), {}, (8, 8)),
        ((28, 28, 1), {}, (14, 14)),
        ((45, 33, 3), {"patch_size": (8, 4)}, (6, 9)),
        ((224, 224, 3), {"embed_dim": (16, 24), "depth": (1, 2)}, (14, 14)),
    ],
)
def test_grids_of_a_net(shape, arguments, grid):
    model = LKCANet(
        shape,
        **{"embed_dim": 16, "depth": 1, **arguments},
        stem_filters=(8, 8),
        include_top=False,
        pooling=None,
    )
    assert model.output_shape[1:3] == grid
    mixers = [layer for layer in model.layers if isinstance(layer, LKCA)]
    assert mixers[-1].kernel.shape[:2] == tuple(2 * size - 1 for size in grid)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 4}, "`kernel_size` must be odd"),
        ({"num_kernels": 3}, "`num_kernels` must divide `embed_dim`"),
        ({"stem_filters": 8}, "`stem_filters` must be a tuple of.*stem_filters=8"),
        ({"kernel_initializer": "zeroes"}, "`kernel_initializer` must.*'zeros'.*roes"),
        ({"method": "conv"}, "`method` must be one of"),
    ],
)
def test_bad_lkca_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LKCAViT(**SMALL, **arguments)


def test_arguments_that_there_are_not():
    for model_class in CLASSES.values():
        with pytest.raises(ValueError, match="no argument 'dept'.*'depth'.*dept=1"):
            model_class(dept=1)

    class Mine(LKCAViT):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)

    with pytest.raises(ValueError, match="Mine has no argument 'dept'.*'depth'"):
        Mine(dept=1)


def test_channels_first_is_refused(model_class):
    keras.config.set_image_data_format("channels_first")
    with pytest.raises(ValueError, match="channels_last"):
        model_class(**SMALL)


PREDICT = """
import sys, keras, numpy as np
import keras_lkca
folder = sys.argv[1]
for name in sys.argv[2:]:
    model = keras.models.load_model(f"{folder}/{name}.keras")
    np.save(f"{folder}/{name}-{keras.config.backend()}.npy",
            model.predict(np.load(f"{folder}/images.npy"), verbose=0))
"""


def test_a_saved_model_loads_under_the_other_backends(run_python, rng, tmp_path):
    x = images(rng)
    np.save(tmp_path / "images.npy", x)
    here = {}
    for name, model_class in CLASSES.items():
        model = with_random_weights(model_class(**SMALL), rng)
        model.save(tmp_path / f"{name}.keras")
        here[name] = model.predict(x, verbose=0)
        assert here[name].std() > 0.01
    for backend in set(BACKENDS) - {keras.config.backend()}:
        run_python("-c", PREDICT, tmp_path, *here, backend=backend)
        for name, expected in here.items():
            there = np.load(tmp_path / f"{name}-{backend}.npy")
            np.testing.assert_allclose(there, expected, rtol=0, atol=1e-5)


def a_model_of_ones_own(names=("cat", "dog")):
    inputs = keras.Input((8, 8, 3), name="images")
    x = lkca_block(keras.layers.Conv2D(8, 3, padding="same")(inputs), name="b")
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(2, name="classifier")(x)
    return ImageModel(inputs, outputs, class_names=names, name="mine")


def test_a_graph_of_ones_own_carries_names(rng, tmp_path):
    model = with_random_weights(a_model_of_ones_own(), rng)
    model.compile("adam", "sparse_categorical_crossentropy")
    x = images(rng, 4, 8, 8, 3)
    model.fit(x, np.arange(4) % 2, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is ImageModel and loaded.class_names == ("cat", "dog")
    assert loaded.name == "mine" and loaded.input_shape == (None, 8, 8, 3)
    np.testing.assert_array_equal(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0)
    )
    loaded.fit(x, np.arange(4) % 2, verbose=0)
    assert a_model_of_ones_own(None).class_names is None


@pytest.mark.parametrize("names", [("cat",), "ab", (1, 2), 2, {"a", "b"}, {"a": 0}])
def test_bad_names_of_a_graph_of_ones_own(names):
    with pytest.raises(ValueError, match="`class_names` must be a string for each"):
        a_model_of_ones_own(names)


ITERATORS = {
    "generator": lambda names: (name for name in names),
    "map": lambda names: map(str, names),
    "keys": lambda names: dict.fromkeys(names).keys(),
    "array": np.array,
}


@pytest.mark.parametrize("kind", ITERATORS)
def test_names_are_read_once(kind, tmp_path):
    given = ITERATORS[kind]
    model = LKCAViT(depth=1, embed_dim=8, num_classes=4, class_names=given(NAMES))
    assert reloaded(model, tmp_path).class_names == model.class_names == NAMES
    assert {type(name) for name in model.class_names} == {str}
    mine = reloaded(a_model_of_ones_own(given(["cat", "dog"])), tmp_path)
    assert mine.class_names == ("cat", "dog")
    x = np.zeros((1, 32, 32, 3))
    (answers,) = deploy.predict(LKCAViT(**SMALL, num_classes=4), x, 4, 1, given(NAMES))
    assert {name for name, _ in answers} == set(NAMES)
    few = adapt(model, num_classes=2, class_names=given(NAMES[2:]))
    for old, new in zip(
        model.get_layer("classifier").weights,
        few.get_layer("classifier").weights,
        strict=True,
    ):
        old, new = map(keras.ops.convert_to_numpy, (old, new))
        np.testing.assert_array_equal(old[..., 2:], new)


def test_a_preset_of_any_class():
    model = ImageModel.from_preset("vit_05m", num_classes=3)
    assert type(model) is ViT and model.output_shape == (None, 3)

    class Mine(LKCAViT):
        pass

    assert type(Mine.from_preset("lkca_vit_05m")) is Mine
    with pytest.raises(ValueError, match="preset of ViT: use ViT.from_preset"):
        Mine.from_preset("vit_tiny")


def test_a_row_holds_any_argument(monkeypatch):
    row = Preset("LKCAViT", {**SMALL, "num_kernels": 4, "patch_size": 2}, {}, 4)
    monkeypatch.setitem(PRESETS, "new", row)
    model = LKCAViT.from_preset("new", num_classes=3)
    assert model.get_layer("block_0_lkca").kernel.shape == (31, 31, 4)
    assert LKCAViT.from_preset("new", patch_size=8).get_config()["patch_size"] == 8


@pytest.fixture
def trained_preset(monkeypatch, tmp_path, rng):
    """A preset with weights, in a file of its own, and the model they are from."""
    arguments = {"patch_size": 4, "embed_dim": 8, "depth": 1, "stem_filters": (4, 4)}
    arguments.update(input_shape=(16, 24, 3), num_classes=4)
    arguments.update(image_mean=(0.4, 0.5, 0.6), classifier_activation="softmax")
    model = with_random_weights(LKCANet(**arguments, class_names=NAMES), rng)
    monkeypatch.setattr(presets, "weights_file", lambda name: tmp_path / f"{name}.npz")
    path = tmp_path / "trained.npz"
    presets.write_weights(path, model)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    weights = Weights("pets", 0.9, "10 passes", "public domain", checksum)
    row = Preset("LKCANet", arguments, {}, 8, weights=weights)
    monkeypatch.setitem(PRESETS, "trained", row)
    return model, path, row


def test_a_trained_preset(trained_preset, rng):
    model, _, _ = trained_preset
    again = LKCANet.from_preset("trained")
    assert again.class_names == NAMES
    x = images(rng, 3, 16, 24, 3)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(again(x)),
        keras.ops.convert_to_numpy(model(x)),
        rtol=5e-3,
        atol=5e-3,
    )
    half = LKCANet.from_preset("trained", dtype="mixed_bfloat16", drop_path_rate=0.5)
    assert half.dtype_policy.name == "mixed_bfloat16" and half.class_names == NAMES
    new = LKCANet.from_preset("trained", num_classes=7, load_weights=False)
    assert new.output_shape == (None, 7) and new.class_names is None
    grey = LKCANet.from_preset("trained", (16, 24, 1), load_weights=False)
    assert grey.get_config()["image_mean"] is None


@pytest.mark.parametrize(
    "asked",
    [
        {"num_classes": np.int64(4), "class_names": iter(NAMES)},
        {"class_names": None, "image_mean": [0.4, 0.5, 0.6]},
        {"input_shape": [16, 24, 3], "patch_size": 4, "kernel_size": (7, 11)},
        {"gate_activation": keras.activations.gelu, "value_ratio": 2.0},
        {"classifier_activation": None, "trainable": False, "name": "mine"},
    ],
)
def test_what_a_trained_preset_learned_may_be_named(asked, trained_preset):
    model = ImageModel.from_preset("trained", **asked)
    assert model.class_names == NAMES
    for a, b in zip(model.weights, trained_preset[0].weights, strict=True):
        a, b = map(keras.ops.convert_to_numpy, (a, b))
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("pooling", ["avg", None])
def test_a_trained_backbone(pooling, trained_preset, rng):
    model, _, _ = trained_preset
    backbone = LKCANet.from_preset("trained", include_top=False, pooling=pooling)
    assert backbone.class_names is None
    x = images(rng, 3, 16, 24, 3)
    last = model.get_layer("norm" if pooling else "block_0_mixer_add").output
    expected = keras.Model(model.input, last)(x)
    np.testing.assert_allclose(
        *map(keras.ops.convert_to_numpy, (backbone(x), expected)), rtol=0.01, atol=0.01
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_classes": 7}, r"num_classes=4: `.*adapt\(model, num_classes=.*=7"),
        ({"input_shape": (32, 32, 3)}, r"24, 3\): `.*adapt\(model, input_shape="),
        ({"input_shape": (16, 24, 1)}, "give it images of 3 channels, or `load_w"),
        ({"class_names": "abcd"}, r"classes .*adapt\(model, class_names=.*'abcd'"),
        ({"class_names": iter("abcd")}, r"adapt\(model, class_names.*'a', 'b', 'c'"),
        ({"class_names": NAMES[::-1]}, "adapt"),
        ({"gate_activation": "relu"}, "gate_activation='gelu': leave it out"),
        ({"image_mean": 0.5}, r"image_mean=\(0.4, 0.5, 0.6\): leave.*image_mean=0.5"),
        ({"classifier_activation": "sigmoid"}, "classifier_activation='softmax'"),
        ({"pooling": "max"}, "pooling='avg': leave it out, or give `load_weights=Fa"),
        ({"depth": 2}, "depth=1: leave it out, or give `load_weights=False`"),
        ({"kernel_size": 3}, "of 'trained' do not fit.*load_weights=False"),
        ({"dept": 2}, "no argument 'dept'"),
        ({"load_weights": "no"}, "`load_weights` must be True or False"),
    ],
)
def test_weights_that_were_not_learned_with_it(asked, message, trained_preset):
    with pytest.raises(ValueError, match=message):
        ImageModel.from_preset("trained", **asked)


def test_weights_that_cannot_be_written(rng, tmp_path):
    model = LKCANet(**SMALL, stem_filters=(4, 4))
    with pytest.raises(ValueError, match="`model` must have `class_names`"):
        presets.write_weights(tmp_path / "x.npz", model)
    model = LKCANet(**SMALL, stem_filters=(4, 4), num_classes=2, class_names=("a", "b"))
    model.get_layer("classifier").bias.assign([0.0, 7e4])
    with pytest.raises(ValueError, match="`classifier/bias in two bytes` must be fin"):
        presets.write_weights(tmp_path / "x.npz", model)
    assert not list(tmp_path.iterdir())


def test_weights_of_another_file(trained_preset):
    _, path, _ = trained_preset
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="'trained' is not the one.*SHA-256"):
        LKCANet.from_preset("trained")


@pytest.mark.once
def test_weights_that_are_downloaded(trained_preset, monkeypatch, tmp_path):
    model, path, row = trained_preset
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=tmp_path
    )
    monkeypatch.setattr(handler.func, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/trained.npz"
        weights = dataclasses.replace(row.weights, url=url)
        row = dataclasses.replace(row, weights=weights)
        monkeypatch.setitem(PRESETS, "trained", row)
        first = LKCANet.from_preset("trained")
        server.shutdown()
    path.unlink()
    for again in (first, LKCANet.from_preset("trained")):  # the second from the cache
        np.testing.assert_allclose(
            again.get_weights()[0], model.get_weights()[0], rtol=1e-3, atol=1e-6
        )


TINY = {"input_shape": (8, 8, 1), "patch_size": 4, "embed_dim": 8, "depth": 1}


def reloaded(model, tmp_path):
    model.save(tmp_path / "model.keras")
    return keras.models.load_model(tmp_path / "model.keras")


def first_mixer(model):
    return next(x for x in model.layers if isinstance(x, (LKCA, SelfAttention)))


def trainable_paths(model):
    return [weight.path for weight in model.trainable_weights]


@pytest.mark.parametrize("around", ["nothing", "functional", "sequential", "graph"])
def test_a_frozen_backbone_stays_frozen(around, model_class, rng, tmp_path):
    backbone = model_class(**TINY, include_top=False)
    backbone.trainable = False
    if around == "nothing":
        assert not reloaded(backbone, tmp_path).trainable_weights
        return
    inputs = keras.Input((8, 8, 1))
    head = keras.layers.Dense(3)
    if around == "sequential":
        model = keras.Sequential([inputs, backbone, head])
    else:
        graph = {"functional": keras.Model, "graph": ImageModel}[around]
        model = graph(inputs, head(backbone(inputs)))
    model.compile("adam", "mse")
    x, y = images(rng, 4, 8, 8, 1), np.zeros((4, 3))
    model.fit(x, y, verbose=0)
    model = reloaded(model, tmp_path)
    before = backbone.get_weights()
    assert len(model.trainable_weights) == 2
    model.fit(x, y, verbose=0)  # Keras warns if the optimizer's state does not fit.
    after = [keras.ops.convert_to_numpy(weight) for weight in model.weights[:-2]]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


def test_any_mix_of_frozen_layers_survives(model_class, tmp_path):
    model = model_class(**TINY)
    model.trainable = False
    mixer = first_mixer(model)
    mixer.trainable = True
    mixer.projection.trainable = False
    model.get_layer("classifier").trainable = True
    # A frozen model has no trainable weights; Keras asks its layers from around it.
    around = keras.Sequential([keras.Input((8, 8, 1)), model])
    expected = trainable_paths(around)
    # The kernels of the mixing and of two Dense layers; a gate has a bias as well.
    assert len(expected) == {LKCANet: 6, LKCAViT: 4, ViT: 3}[model_class]
    graph = ImageModel(model.input, model.output, trainable=False)
    assert not keras.Sequential([keras.Input((8, 8, 1)), graph]).trainable_weights
    mixer.trainable = True
    mixer.projection.trainable = False
    model.get_layer("classifier").trainable = True
    for model in (around, keras.Sequential([keras.Input((8, 8, 1)), graph])):
        for _ in range(2):
            model = reloaded(model, tmp_path)
            assert trainable_paths(model) == expected


def test_the_constructor_freezes(model_class, rng):
    model = model_class(**TINY, trainable=False)
    assert not keras.Sequential([keras.Input((8, 8, 1)), model]).trainable_weights
    model.trainable = True
    assert len(model.trainable_weights) == len(model_class(**TINY).trainable_weights)


def test_what_is_changed_on_a_built_model_is_saved(model_class, rng, tmp_path):
    model = model_class(**TINY, dropout_rate=0.1, mlp_ratio=2)
    with_random_weights(model, rng)
    mixer = first_mixer(model)
    block = mixer.name.rpartition("_")[0]
    model.get_layer("classifier").activation = keras.activations.softmax
    model.get_layer(f"{block}_mlp_expand").activation = keras.activations.relu
    model.get_layer(f"{block}_mlp_expand_dropout").rate = 0.3
    model.get_layer(f"{block}_mixer_drop_path").rate = 0.4
    model.get_layer("norm").epsilon = 0.5
    mixer.projection.activation = keras.activations.tanh
    mixer.dropout.rate = 0.2
    batch = images(rng, 4, 8, 8, 1)
    for again in (
        reloaded(model, tmp_path),
        model_class.from_config(model.get_config()),
    ):
        again.set_weights(model.get_weights())
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(again(batch)),
            keras.ops.convert_to_numpy(model(batch)),
            rtol=1e-6,
        )
        assert again.get_layer(f"{block}_mlp_expand_dropout").rate == 0.3
        assert again.get_layer(f"{block}_mixer_drop_path").rate == 0.4
        assert again.get_layer(mixer.name).dropout_rate == 0.2
        assert again.get_config()["changed"] == model.get_config()["changed"]


def test_adapters_of_low_rank_are_saved(model_class, rng, tmp_path):
    model = with_random_weights(model_class(**TINY), rng)
    model.get_layer("classifier").enable_lora(2)
    model.get_layer("classifier").lora_kernel_b.assign(rng.normal(size=(2, 10)))
    again = reloaded(model, tmp_path)
    assert again.get_layer("classifier").lora_enabled
    batch = images(rng, 4, 8, 8, 1)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(again(batch)),
        keras.ops.convert_to_numpy(model(batch)),
        rtol=1e-5,
        atol=1e-6,
    )


def test_what_cannot_be_saved_is_refused(model_class):
    model = model_class(**TINY)
    model.get_layer("norm").dtype_policy = keras.DTypePolicy("mixed_bfloat16")
    with pytest.raises(ValueError, match="'norm' cannot be saved.*'dtype'"):
        model.get_config()


@pytest.mark.once
def test_what_a_classifier_decides():
    inputs = keras.Input((8,))
    dense, activate = keras.layers.Dense, keras.layers.Activation
    inner = keras.Model(inputs, dense(3, "sigmoid")(inputs))
    for task, probable, outputs in (
        ("categorical", False, dense(3)(inputs)),
        ("categorical", True, dense(3, "softmax")(inputs)),
        ("multilabel", True, dense(3, "sigmoid")(inputs)),
        ("multilabel", True, keras.ops.sigmoid(dense(3)(inputs))),
        ("multilabel", True, activate("linear")(activate("sigmoid")(dense(3)(inputs)))),
        ("multilabel", True, keras.layers.Average()([inner(inputs), inner(inputs)])),
        ("binary", False, dense(1)(inputs)),
        ("binary", True, dense(1, "sigmoid")(inputs)),
    ):
        model = keras.Model(inputs, outputs)
        assert classifiers.task_of(model) == task
        assert classifiers.gives_probabilities(model) == probable
    model = keras.Model(inputs, dense(1, "softmax")(inputs))
    with pytest.raises(ValueError, match="softmax on one column"):
        classifiers.task_of(model)
    model = LKCAViT(num_classes=1, class_names=["no", "yes"], **SMALL)
    outer = keras.Model(model.input, keras.ops.sigmoid(model(model.input)))
    assert classifiers.class_names(outer) == ("no", "yes")
    assert LKCAViT.from_config(model.get_config()).class_names == ("no", "yes")
    with pytest.raises(ValueError, match="two for one column"):
        LKCAViT(num_classes=1, class_names=["yes"], **SMALL)


def saved_as_h5(model, path):
    """The model that Keras's own function saved, and loaded from its name alone."""
    keras.saving.save_model(model, path)
    return keras.saving.load_model(path)


@pytest.mark.parametrize("family", [LKCAViT, LKCANet, LKCASegmenter])
def test_h5_of_a_whole_model_loads(tmp_path, rng, family):
    """Keras writes the class of the outermost model without its package."""
    if family is LKCASegmenter:
        model = family(LKCANet(**SMALL, include_top=False), 4, class_names=NAMES)
    else:
        model = family(**SMALL, num_classes=4, class_names=NAMES)
    with_random_weights(model, rng).layers[-2].trainable = False
    loaded = saved_as_h5(model, tmp_path / "m.h5")
    assert type(loaded) is family and loaded.class_names == NAMES
    assert len(loaded.trainable_weights) == len(model.trainable_weights)
    x = images(rng)
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6
    )


@pytest.mark.once
def test_h5_of_a_class_that_others_may_call_the_same_is_refused(tmp_path):
    for refused in (ViT(**SMALL), a_model_of_ones_own()):
        with pytest.raises(ValueError, match="`filepath` must end with .keras.*'m.h5'"):
            refused.save("m.h5")
    model = LKCAViT(**SMALL)
    model.save_weights(tmp_path / "m.weights.h5")
    outer = keras.Model(model.input, model.output)
    loaded = saved_as_h5(outer, tmp_path / "m.h5")
    x = np.zeros((1, 32, 32, 3))
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6
    )


TRAINED = list_presets(trained=True)


@pytest.mark.once
def test_presets_that_are_listed():
    assert set(TRAINED) | set(list_presets(trained=False)) == set(PRESETS)
    with pytest.raises(ValueError, match="`trained` must be True or False.*'yes'"):
        list_presets(trained="yes")
    with pytest.raises(ValueError, match="`model` must be one of"):
        list_presets(["ViT"])
    for name in ("LKCA_NET_08M_cifar10", ["lkca_net_08m"]):
        with pytest.raises(ValueError, match="the nearest are .'lkca_net_0"):
            ImageModel.from_preset(name)


@pytest.mark.parametrize("preset", TRAINED)
def test_a_shipped_model_is_as_good_as_stated(preset):
    """Of a hundred test images as many are right as the accuracy lets expect."""
    row = PRESETS[preset]
    name = row.weights.dataset.lower().replace("-", "")
    with np.load(FILES / f"{name}-100-test-images.npz") as file:
        images, labels = file["images"], file["labels"]
    model = ImageModel.from_preset(preset)
    outputs = model.predict(images, verbose=0)
    expected = row.weights.test_accuracy
    error = np.sqrt(expected * (1 - expected) / len(labels))
    assert abs((outputs.argmax(1) == labels).mean() - expected) < 3 * error
    assert len(set(model.class_names)) == outputs.shape[1]
    (name, probability), *_ = deploy.predict(preset, images[:1])[0]
    assert name == model.class_names[outputs[0].argmax()]


def test_shipped_models_are_small():
    folder = presets.weights_file("any").parent
    assert {path.stem for path in folder.glob("*.npz")} == set(TRAINED)
    assert sum(path.stat().st_size for path in folder.glob("*.npz")) < 12e6
