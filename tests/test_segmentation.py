"""A class for every pixel: the model, masks, their augmentation, training, answers."""

import json

import keras
import numpy as np
import pytest
from conftest import StopAfter
from PIL import Image

from keras_lkca import (
    LKCANet,
    LKCASegmenter,
    LKCAViT,
    ViT,
    data,
    deploy,
    interpret,
)
from keras_lkca.__main__ import main
from keras_lkca.data.masks import as_masks
from keras_lkca.models import ImageModel, adapt, feature_levels
from keras_lkca.models.classifiers import warn_if_scaled
from keras_lkca.models.colors import default_colors
from keras_lkca.training import Recipe, evaluate, find_learning_rate, fit, train
from keras_lkca.training.segmentation import (
    MeanIoU,
    PixelAccuracy,
    SegmentationLoss,
    balanced,
    intersection_over_union,
)

SIZE = (18, 22, 3)
NAMES = "ground", "red", "green"


def array(tensor):
    return keras.ops.convert_to_numpy(tensor)


def net(shape=SIZE, **arguments):
    options = {"patch_size": 2, "stem_filters": (4,), "stem_depth": 1, "embed_dim": 8}
    options |= {"depth": 1, "num_kernels": 2, "drop_path_rate": 0.0}
    return LKCANet(shape, **{**options, **arguments})


def segmenter(shape=SIZE, **arguments):
    options = {"num_classes": 3, "decoder_dim": 8, "class_names": NAMES}
    return LKCASegmenter(net(shape), **{**options, **arguments})


def shaken(model, rng):
    """A model whose weights all matter."""
    for weight in model.weights:
        if "seed" in weight.path:
            continue
        scale = 1.0 if weight.name in ("gamma", "moving_variance") else 0.0
        weight.assign(scale + rng.normal(size=weight.shape) * 0.1)
    return model


def scenes(count, seed=0, shape=SIZE):
    """Noise, a red or a green square on it, and the masks; the first row is ignored."""
    rng = np.random.default_rng(seed)
    height, width, _ = shape
    images = rng.integers(0, 80, (count, *shape)).astype("uint8")
    masks = np.zeros((count, height, width), "uint8")
    for image, mask in zip(images, masks, strict=True):
        (y, x), kind = rng.integers(1, 9, 2), rng.integers(1, 3)
        image[y : y + 8, x : x + 9, kind - 1] += 150
        mask[y : y + 8, x : x + 9] = kind
    masks[:, 0] = 255
    return images, masks


def write_scenes(folder, count, seed=0, palette=True):
    images, masks = scenes(count, seed)
    for kind, pictures in (("images", images), ("masks", masks)):
        (folder / kind).mkdir(parents=True)
        for index, picture in enumerate(pictures):
            picture = Image.fromarray(picture)
            if kind == "masks" and palette:
                # Of fewer colours PNG would keep 255 in fewer bits.
                picture.putpalette([9, 9, 9, 255, 0, 0, 0, 255, 0] + [0] * 759)
            picture.save(folder / kind / f"{index}.png")
    return images, masks


# Feature levels


def test_levels_of_every_family():
    several = net((32, 48, 3), embed_dim=(8, 16), depth=(1, 1))
    found = {name: x.shape[1:] for name, x in several.pyramid_outputs.items()}
    expected = {"P0": (32, 48, 4), "P1": (16, 24, 8), "P2": (8, 12, 16)}
    assert found == {**expected, "P0": found["P0"]}
    # The last of each grid, not the first.
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3))
    levels = keras.Model(several.input, several.pyramid_outputs)(images)
    last = several.get_layer("block_0_mixer_add").output
    np.testing.assert_array_equal(
        array(levels["P1"]), array(keras.Model(several.input, last)(images))
    )
    options = {"patch_size": 4, "embed_dim": 8, "depth": 1}
    for model in (
        LKCAViT((16, 24, 3), **options),
        ViT((16, 24, 3), num_heads=2, **options),
    ):
        (level,) = model.pyramid_outputs.items()
        assert (level[0], level[1].shape[1:]) == ("P2", (4, 6, 8))
    assert list(feature_levels(keras.Model(several.input, several.output))) == [
        *("P0", "P1", "P2")
    ]


def test_the_blocks_of_a_vision_transformer_are_the_segmenters(rng):
    backbone = ViT((16, 24, 3), patch_size=4, embed_dim=8, depth=2, num_heads=2)
    model = LKCASegmenter(shaken(backbone, rng), 3, decoder_dim=8)
    assert {"block_0_attention", "block_1_attention"} <= {x.name for x in model.layers}
    # The map is that of the model without its top.
    whole = ViT(
        (16, 24, 3),
        **{"patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2},
        **{"include_top": False, "pooling": None},
    )
    whole.set_weights(backbone.get_weights()[: len(whole.weights)])
    images = rng.integers(0, 256, (2, 16, 24, 3))
    own = keras.Model(backbone.input, backbone.pyramid_outputs["P2"])
    np.testing.assert_allclose(array(own(images)), array(whole(images)), atol=1e-5)


def test_models_without_levels():
    vectors = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="of images of one size"):
        feature_levels(vectors)
    flat = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    with pytest.raises(ValueError, match="must have a feature map"):
        feature_levels(keras.Sequential(flat))


# The model


def test_it_is_kept_whole(tmp_path, rng):
    colors = [(0, 0, 0), (200, 10, 0), (0, 255, 0)]
    model = shaken(segmenter(class_colors=colors), rng)
    model.get_layer("block_0_lkca").trainable = False
    images, _ = scenes(2)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(array(again(images)), array(model(images)), atol=1e-6)
    assert type(again) is LKCASegmenter and again.class_names == NAMES
    assert again.class_colors.tolist() == [list(color) for color in colors]
    assert not again.get_layer("block_0_lkca").trainable
    assert len(again.trainable_weights) == len(model.trainable_weights)
    assert model.output_shape == (None, 18, 22, 3)


@pytest.mark.parametrize("activation", [None, "softmax"])
def test_it_folds_to_the_same(activation, rng):
    model = shaken(segmenter(classifier_activation=activation), rng)
    folded = deploy.fold(model)
    images, _ = scenes(2)
    np.testing.assert_allclose(array(folded(images)), array(model(images)), atol=1e-5)
    assert folded.count_params() < model.count_params()
    assert folded.class_names == NAMES
    if activation:
        np.testing.assert_allclose(array(model(images)).sum(-1), 1, atol=1e-5)


def test_it_is_trained_in_half_precision():
    model = LKCASegmenter(net(dtype="mixed_bfloat16"), 3, decoder_dim=8)
    assert model.output.dtype == "float32"
    Recipe.segmentation().compile(model, 2)
    images, masks = scenes(4)
    loss, *_ = model.train_on_batch(images, as_masks(masks, masks.shape, 3))
    assert np.isfinite(float(loss))


def test_on_a_backbone_of_another_making(rng):
    images = keras.Input((20, 24, 1))
    x = keras.layers.Conv2D(6, 3, 2, "same")(images)
    model = LKCASegmenter(keras.Model(images, keras.layers.Conv2D(8, 3, 2)(x)), 2)
    assert model.output_shape == (None, 20, 24, 2)
    # What the backbone learned is the segmenter's.
    backbone = shaken(net(), rng)
    kernel = array(backbone.get_layer("block_0_lkca").kernel)
    own = LKCASegmenter(backbone, 3).get_layer("block_0_lkca").kernel
    np.testing.assert_array_equal(array(own), kernel)


@pytest.mark.parametrize("sequential", [False, True])
def test_on_any_backbone_it_is_rebuilt_as_often_as_you_like(sequential, tmp_path, rng):
    images = keras.Input((20, 24, 1))
    layers = [keras.layers.Conv2D(6, 3, 2, "same"), keras.layers.Conv2D(8, 3, 2)]
    backbone = keras.Sequential([images, *layers])
    if not sequential:
        backbone = keras.Model(images, layers[1](layers[0](images)))
    model = shaken(LKCASegmenter(backbone, 3, class_names=NAMES), rng)
    for _ in range(2):
        again = type(model).from_config(model.get_config())
        assert again.count_params() == model.count_params()
    other = adapt(model, num_classes=4)
    assert other.output_shape[-1] == 4
    model.save(tmp_path / "model.keras")
    kept = keras.models.load_model(tmp_path / "model.keras")
    pictures = rng.integers(0, 256, (2, 20, 24, 1))
    np.testing.assert_allclose(array(kept(pictures)), array(model(pictures)), atol=1e-6)


def test_colors_go_with_their_classes(tmp_path):
    colors = [(1, 1, 1), (200, 10, 0), (0, 255, 0)]
    model = segmenter(class_colors=colors)
    other = adapt(model, class_names=["green", "new", "ground"])
    found = other.class_colors.tolist()
    assert (found[0], found[2]) == ([0, 255, 0], [1, 1, 1])
    assert found[1] not in [list(color) for color in colors]
    folded = deploy.fold(model)
    folded.save(tmp_path / "folded.keras")
    again = keras.models.load_model(tmp_path / "folded.keras")
    assert folded.class_colors.tolist() == [list(color) for color in colors]
    np.testing.assert_array_equal(again.class_colors, folded.class_colors)


def test_presets_are_backbones():
    options = {"decoder_dim": 8, "class_names": NAMES, "drop_path_rate": 0.0}
    model = LKCASegmenter.from_preset("lkca_net_03m", (32, 40, 3), 3, **options)
    assert model.output_shape == (None, 32, 40, 3) and model.class_names == NAMES
    trained = LKCASegmenter.from_preset("lkca_net_08m_cifar10", (40, 40, 3), 3)
    known = ImageModel.from_preset("lkca_net_08m_cifar10")
    name = "block_3_lkca"
    before, after = (array(x.get_layer(name).kernel) for x in (known, trained))
    np.testing.assert_array_equal(after[2:-2, 2:-2], before)


def test_carried_to_other_images_and_classes(rng):
    model = shaken(segmenter(), rng)
    images, _ = scenes(2)
    same = adapt(model)
    np.testing.assert_allclose(array(same(images)), array(model(images)), atol=1e-6)
    other = adapt(model, (30, 40, 3), class_names=["green", "ground", "blue"])
    assert other.output_shape == (None, 30, 40, 3)
    assert other.class_names == ("green", "ground", "blue")
    (old, _), (new, _) = (
        x.get_layer("classifier").get_weights() for x in (model, other)
    )
    np.testing.assert_array_equal(new[:, :2], old[:, [2, 0]])
    old, new = (array(x.get_layer("block_0_lkca").kernel) for x in (model, other))
    np.testing.assert_array_equal(new[6:-6, 9:-9], old)


@pytest.mark.parametrize("family", [ViT, LKCAViT])
def test_sizes_that_the_patch_does_not_divide(family, tmp_path, rng):
    """They are padded, and what the image holds is answered alone."""
    backbone = family((20, 24, 3), embed_dim=8, depth=1, drop_path_rate=0.0)
    whole = shaken(LKCASegmenter(backbone, 3, decoder_dim=8), rng)
    model = LKCASegmenter(backbone, 3, decoder_dim=8, input_shape=SIZE)
    model.set_weights(whole.get_weights())
    images, _ = scenes(2)
    padded = np.pad(images, [(0, 0), (0, 2), (0, 2), (0, 0)])
    answers = array(model(images))
    assert model.output_shape == (None, *SIZE[:2], 3)
    np.testing.assert_allclose(answers, array(whole(padded))[:, :18, :22], atol=1e-6)
    names = [[x.name for x in one.decoder_layers] for one in (model, whole)]
    assert set(names[0]) - set(names[1]) == {"cropped"}
    model.save(tmp_path / "m.keras")
    for again in (
        keras.models.load_model(tmp_path / "m.keras"),
        model if family is ViT else deploy.fold(model),
        adapt(model),
        adapt(model, SIZE),
    ):
        assert again.input_shape == (None, *SIZE)
        np.testing.assert_allclose(array(again(images)), answers, atol=1e-5)
    assert adapt(model, (33, 17, 3)).output_shape == (None, 33, 17, 3)
    field = interpret.effective_receptive_field(model, images, query=(2, 3))
    assert field.shape == SIZE[:2] and field.sum() == pytest.approx(1)
    if family is ViT:
        one, other = (
            interpret.attention_rollout(x, (1, 2), image)
            for x, image in ((model, images[0]), (whole, padded[0]))
        )
        np.testing.assert_allclose(one, other, atol=1e-6)
    with pytest.warns(UserWarning, match="divided by 255"):
        assert warn_if_scaled(model, images / 255)


@pytest.mark.once
def test_a_classifier_becomes_a_segmenter_of_such_sizes(tmp_path):
    classifier = LKCAViT((20, 24, 3), num_classes=4, embed_dim=8, depth=1)
    classifier.save(tmp_path / "c.keras")
    write_scenes(tmp_path / "scenes", 20)
    train(
        tmp_path / "scenes",
        start_from=tmp_path / "c.keras",
        task="segmentation",
        recipe=Recipe.segmentation(epochs=1, batch_size=4, crop_padding=1),
        output=tmp_path / "run",
    )
    model = keras.models.load_model(tmp_path / "run" / "last.keras")
    assert model.input_shape == (None, *SIZE)


@pytest.mark.once
@pytest.mark.parametrize("preset", ["lkca_vit_05m", "vit_05m", "lkca_net_03m"])
def test_presets_of_any_size(preset):
    model = LKCASegmenter.from_preset(preset, (30, 37, 3), 3, decoder_dim=8)
    assert model.output_shape == (None, 30, 37, 3)
    names = [x.name for x in model.layers]
    assert names[:3] == ["images", "padded", "normalize"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (19, 22, 3)}, r"the backbone, \(18, 22, 3\), or smaller"),
        ({"input_shape": (18, 22, 1)}, "of as many channels"),
        ({"num_classes": 1}, "`num_classes` must be 2 or above"),
        ({"decoder_dim": 0}, "`decoder_dim` must be a positive integer"),
        ({"levels": ["P7"]}, "`levels` must be some of the backbone's, P0, P1"),
        ({"levels": "P1"}, "`levels` must be some"),
        ({"classifier_activation": "sigmoid"}, "must be None or 'softmax'"),
        ({"class_names": ["a", "b"]}, "`class_names` must be a string for each"),
        ({"class_colors": [(0, 0, 0)]}, "`class_colors` must be 3 triples"),
        ({"class_colors": [(0, 0, 300)] * 3}, "`class_colors` must be 3 triples"),
        ({"class_colours": None}, "the nearest is .*class_colors"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        segmenter(**arguments)


def test_bad_backbones():
    with pytest.raises(ValueError, match="`backbone` must be a functional Keras model"):
        LKCASegmenter("lkca_net_03m")
    with pytest.raises(ValueError, match="and no segmenter"):
        LKCASegmenter(segmenter())
    with pytest.raises(ValueError, match="no such preset|must be one of|nearest"):
        LKCASegmenter.from_preset("lkca_net_3")


def test_colors_are_all_different():
    assert len({tuple(color) for color in default_colors(256).tolist()}) == 256


# Masks


@pytest.mark.parametrize(
    "options",
    [
        {"flip": True, "crop_padding": 3},
        {"flip": False, "crop_padding": 0, "zoom": 0.4},
        {"flip": False, "crop_padding": 0, "rotation": 20.0},
        {"flip": True, "crop_padding": 2, "zoom": 0.2, "rotation": 20.0, "repeats": 2},
    ],
)
def test_a_mask_moves_with_its_image(options):
    masks = np.zeros((4, 30, 40), "int16")
    masks[:, 4:14, 6:24], masks[:, 16:26, 16:36], masks[:, :, :2] = 1, 2, -1
    images = (60 + 60 * masks[..., None]).repeat(3, -1).astype("uint8")
    moved, found = map(array, data.Augmentation(**options)(images, masks, (3, 4)))
    assert found.dtype == "int32" and set(np.unique(found)) == {-1, 0, 1, 2}
    repeated = options.get("repeats", 1)
    assert not np.array_equal(found, np.repeat(masks, repeated, 0))
    counted = found >= 0
    alike = np.abs(moved[..., 0] - (60 + 60 * found)) < 25
    assert alike[counted].mean() > (0.9 if len(options) > 2 else 0.999)
    # What moved in is ignored: black, as no pixel was.
    assert not (moved[..., 0] < 1)[counted].any()


@pytest.mark.parametrize("pipeline", ["tf.data", "arrays"])
def test_batches_of_masks(pipeline):
    if pipeline == "tf.data":
        pytest.importorskip("tensorflow")
    images, masks = scenes(6)
    options = {"pipeline": pipeline, "augmentation": None}
    for augmentation in (None, data.Augmentation(crop_padding=1)):
        options["augmentation"] = augmentation
        batches = data.training_batches(images, masks, 4, 3, **options)
        some, found = map(np.asarray, next(iter(batches)))
        assert some.shape == (4, *SIZE) and some.dtype == "float32"
        assert found.shape == (4, 18, 22) and found.dtype == "int32"
        assert set(np.unique(found)) <= {-1, 0, 1, 2} and (found == -1).any()


@pytest.mark.parametrize(
    ("augmentation", "name"),
    [
        ({"rand_augment": 2}, "rand_augment"),
        ({"erase_probability": 0.5}, "erase_probability"),
        ({"mix_probability": 0.5}, "mix_probability"),
        ({"policy": "trivial"}, "policy"),
    ],
)
def test_what_does_not_move_masks_is_refused(augmentation, name):
    augmentation = data.Augmentation(**augmentation)
    images, masks = scenes(4)
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        augmentation(images, masks.astype("int32"), (0, 1))
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        next(iter(data.training_batches(*scenes(4), 4, 3, augmentation)))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.zeros((2, 4, 5), int), r"`masks` must be integers \(2, 4, 4\)"),
        (np.zeros((2, 4, 4)), "`masks` must be integers.*astype"),
        (
            np.full((2, 4, 4), 3),
            r"classes from 0 to 2.*Received: \[3\], first in mask 0",
        ),
        (np.full((2, 4, 4), -2), r"Received: \[-2\]"),
        (np.full((2, 4, 4), 65536), r"Received: \[65536\]"),
    ],
)
def test_bad_masks(masks, message):
    with pytest.raises(ValueError, match=message):
        as_masks(masks, (2, 4, 4), 3)


@pytest.mark.once
def test_folders_of_masks(tmp_path):
    images, masks = write_scenes(tmp_path / "a", 5)
    (tmp_path / "classes.txt").write_text("\n".join([*NAMES, ""]))
    found, own, facts = data.from_mask_directory(tmp_path / "a")
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(own, as_masks(masks, masks.shape, 3))
    assert (facts.num_classes, facts.class_names) == (3, NAMES)
    assert facts.class_colors == ((9, 9, 9), (255, 0, 0), (0, 255, 0))
    _, own, facts = data.from_mask_directory(tmp_path / "a", (9, 11), ignore=[0])
    assert own.shape == (5, 9, 11) and not (own == 0).any()
    assert facts.input_shape == (9, 11, 3)


@pytest.mark.once
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "masks/1.png").unlink(), "1 of .*images have no file.*1.png"),
        (lambda f: (f / "images/2.png").unlink(), "1 of .*masks have no file.*2.png"),
        (
            lambda f: Image.new("L", (5, 5)).save(f / "masks/0.png"),
            "0.png.*the mask is 5 x 5 and the image 22 x 18",
        ),
        (
            lambda f: Image.new("RGB", (22, 18)).save(f / "masks/0.png"),
            "the mask is in colours.*palette image",
        ),
        (lambda f: (f / "masks/0.png").write_bytes(b"x"), "0.png: cannot identify"),
        (
            lambda f: Image.new("L", (22, 18), 9).save(f / "masks/0.png"),
            "0.png holds the class 9, and classes.txt names 3",
        ),
        (
            lambda f: [
                Image.new(mode, (6, 7)).save(f / kind / "1.png")
                for mode, kind in (("RGB", "images"), ("L", "masks"))
            ],
            "`image_size` is needed where images differ",
        ),
        (
            lambda f: (f / "classes.txt").write_text("a\nb\na"),
            "must name two classes or more, each once. Received: 'a' twice",
        ),
        (
            lambda f: Image.new("RGB", (22, 18)).save(f / "images/0.jpg"),
            "Two files of .*images have one name",
        ),
    ],
)
def test_folders_that_are_not_whole(change, message, tmp_path):
    write_scenes(tmp_path, 3)
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    change(tmp_path)
    with pytest.raises(ValueError, match=message):
        data.from_mask_directory(tmp_path)


@pytest.mark.once
def test_one_class_is_none(tmp_path):
    write_scenes(tmp_path, 3)
    with pytest.raises(ValueError, match="two classes or more"):
        data.from_mask_directory(tmp_path, ignore=[1, 2])
    with pytest.raises(FileNotFoundError, match="folders images and masks"):
        data.from_mask_directory(tmp_path / "images")


# Loss and metrics


@pytest.mark.parametrize("from_logits", [True, False])
def test_the_loss_is_that_of_its_formula(from_logits, rng):
    logits = rng.normal(size=(2, 3, 4, 3)).astype("float32")
    masks = rng.integers(-1, 3, (2, 3, 4))
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    counted = masks >= 0
    shares = np.eye(3)[np.maximum(masks, 0)]
    own = np.array([1.0, 2.0, 0.5])
    weights = own[np.maximum(masks, 0)] * counted
    losses = -((0.9 * shares + 0.1 / 3) * np.log(chances)).sum(-1)
    expected = (losses * weights).sum() / weights.sum()
    p, y = chances * counted[..., None], shares * counted[..., None]
    both = 1 - (2 * (p * y).sum((0, 1, 2)) + 1) / ((p + y).sum((0, 1, 2)) + 1)
    expected += 0.3 * both.mean()
    loss = SegmentationLoss(
        from_logits, 0.1, dice_weight=0.3, class_weight=own.tolist()
    )
    loss = keras.losses.deserialize(keras.losses.serialize(loss))
    found = float(loss(masks, logits if from_logits else chances))
    assert found == pytest.approx(expected, rel=1e-5)


def test_nothing_that_counts_is_no_loss():
    masks = np.full((2, 3, 4), -1)
    assert float(SegmentationLoss(dice_weight=1.0)(masks, np.ones((2, 3, 4, 3)))) == 0


def test_metrics_pass_over_what_is_ignored(rng):
    outputs = rng.normal(size=(4, 5, 6, 3))
    masks = rng.integers(-1, 3, (4, 5, 6))
    counted, guess = masks >= 0, outputs.argmax(-1)
    accuracy, iou = PixelAccuracy(), MeanIoU(3)
    for half in (slice(2), slice(2, 4)):
        accuracy.update_state(masks[half], outputs[half])
        iou.update_state(masks[half], outputs[half])
    right = (guess == masks)[counted].mean()
    assert float(accuracy.result()) == pytest.approx(right, rel=1e-5)
    each = [
        ((guess == k) & (masks == k)).sum()
        / (((guess == k) | (masks == k)) & counted).sum()
        for k in range(3)
    ]
    assert float(iou.result()) == pytest.approx(np.mean(each), rel=1e-5)
    assert balanced(np.array([[0, 0, 0, 1, -1]]), 3) == [4 / 6, 4 / 2, 1.0]
    assert np.isnan(intersection_over_union(np.array([[2, 0], [0, 0]]))[1])


# Training and answers


@pytest.mark.parametrize("pipeline", ["tf.data", "arrays"])
def test_it_learns(pipeline, tmp_path):
    if pipeline == "tf.data":
        pytest.importorskip("tensorflow")
    model = segmenter(class_colors=[(0, 0, 0), (255, 0, 0), (0, 255, 0)])
    images, masks = scenes(40)
    recipe = Recipe.segmentation(
        **{"epochs": 12, "batch_size": 10, "learning_rate": 0.03, "crop_padding": 2},
        **{"zoom": 0.1, "rotation": 5.0, "dice_weight": 0.5},
    )
    metrics = fit(
        model,
        (images, masks),
        validation=scenes(8, 1),
        test=scenes(8, 2),
        recipe=recipe,
        output=tmp_path / "run",
        pipeline=pipeline,
        class_weight="balanced",
    )
    assert metrics["best"]["test_mean_iou"] > 0.45
    assert set(metrics["best_per_class_iou"]) == set(NAMES)
    best = max(float(row) for row in history(tmp_path / "run", "val_mean_iou"))
    assert metrics["best"]["validation_mean_iou"] == pytest.approx(best)
    kept = keras.models.load_model(tmp_path / "run" / "best.keras")
    scores, confusion = evaluate(kept, *scenes(8, 2))
    assert scores == pytest.approx(
        {k: v for k, v in metrics["best"].items() if k.startswith("test_")}, abs=1e-5
    )
    assert confusion.sum() == 8 * 17 * 22
    found = deploy.predict_masks(kept, scenes(8, 2)[0], mirror=True)
    assert (found == scenes(8, 2)[1])[:, 1:].mean() > 0.7


def history(folder, name):
    header, *rows = (folder / "history.csv").read_text().splitlines()
    index = header.split(",").index(name)
    return [row.split(",")[index] for row in rows]


def test_a_run_goes_on_as_without_a_break(tmp_path):
    images, masks = scenes(12)
    recipe = Recipe.segmentation(epochs=3, batch_size=4, crop_padding=2)
    models = []
    for name in ("whole", "broken"):
        keras.utils.set_random_seed(1)
        models.append(segmenter())
        options = {"recipe": recipe, "output": tmp_path / name}
        extra = [StopAfter(2)] if name == "broken" else []
        try:
            fit(models[-1], (images, masks), **options, extra_callbacks=extra)
        except KeyboardInterrupt:
            models[-1] = segmenter()
            fit(models[-1], (images, masks), output=tmp_path / name, resume=True)
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_frozen_is_what_came_from_the_backbone(tmp_path):
    model = segmenter()
    before = {weight.path: array(weight) for weight in model.weights}
    recipe = Recipe.segmentation(epochs=1, batch_size=4, crop_padding=1)
    fit(model, scenes(8), recipe=recipe, output=tmp_path / "run", freeze="backbone")
    changed = {
        weight.path.split("/")[0]
        for weight in model.weights
        if not np.array_equal(before[weight.path], array(weight))
    }
    decoder = {layer.name for layer in model.decoder_layers if layer.weights}
    assert changed <= decoder and {"classifier", "p1_lateral"} <= changed


@pytest.mark.once
def test_a_learning_rate_is_found():
    recipe = Recipe.segmentation(batch_size=8, crop_padding=1)
    found = find_learning_rate(segmenter(), scenes(16), recipe, steps=40)
    assert 1e-5 < found["learning_rate"] < 1


def test_models_that_the_user_compiled(tmp_path):
    sparse = keras.losses.SparseCategoricalCrossentropy
    options = {"recipe": Recipe.segmentation(epochs=1, batch_size=4)}
    options |= {"train": scenes(4), "output": tmp_path / "run"}
    for loss in ("sparse_categorical_crossentropy", sparse(from_logits=True)):
        model = segmenter()
        model.compile("sgd", loss)
        with pytest.raises(ValueError, match="ignore_class=-1"):
            fit(model, **options)
    model.compile("sgd", sparse(from_logits=True, ignore_class=-1))
    with pytest.raises(ValueError, match="`class_weight` needs a model that is not"):
        fit(model, **options, class_weight=[1, 2, 1])
    metrics = fit(model, **options, test=scenes(4))
    assert 0 <= metrics["best"]["test_mean_iou"] <= 1


def test_mirroring_turns_the_answer_back():
    """Of a model that tells left from right, mirrored answers are the mirror's."""
    images = keras.Input((4, 6, 1))
    x = keras.layers.Rescaling(1 / 255)(images)
    model = keras.Model(images, keras.layers.Dense(2)(x))
    model.layers[-1].set_weights([np.array([[-4.0, 4.0]]), np.array([2.0, -2.0])])
    picture = np.zeros((1, 4, 6, 1), "uint8")
    picture[:, :, :2] = 255
    for mirror in (False, True):
        found = deploy.predict_masks(model, picture, mirror=mirror)
        np.testing.assert_array_equal(found, picture[..., 0] > 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": True}, "`teacher` is for classifiers"),
        ({"recipe": Recipe.long(epochs=1, batch_size=2)}, "must be 0 for masks"),
        ({"class_weight": {"blue": 2}}, "`class_weight` must name classes"),
        ({"train": (scenes(4)[0], np.zeros(4, int))}, r"`train\[1\]` must be integers"),
        (
            {"train": [(scenes(4)[0], np.zeros(4, int))]},
            "batches of images and masks.*Received: labels of shape",
        ),
        ({"train": [(*scenes(4), np.ones(4))]}, "batches .images, masks.*weights"),
        (
            {"train": (scenes(4)[0], np.full((4, 18, 22), 255))},
            "must have a pixel that counts",
        ),
        ({"train": (scenes(4)[0], scenes(4)[1] + 3)}, r"`train\[1\]` must hold"),
    ],
)
def test_what_cannot_be_trained(change, message, tmp_path):
    model = segmenter()
    options = {"train": scenes(4), "recipe": Recipe.segmentation(batch_size=2)}
    options |= change
    if options.get("teacher"):
        options["teacher"] = segmenter()
    with pytest.raises(ValueError, match=message):
        fit(model, output=tmp_path / "run", **options)
    assert not list((tmp_path / "run").glob("*.keras"))


def test_masks_are_not_for_classifiers(tmp_path):
    model = LKCAViT(SIZE, patch_size=2, embed_dim=8, depth=1, num_classes=3)
    with pytest.raises(ValueError, match="batches of images and classes of images"):
        recipe = Recipe.quick(epochs=1, batch_size=4)
        fit(model, [scenes(4)], recipe=recipe, output=tmp_path / "run")


@pytest.mark.parametrize(("columns", "message"), [(1, "two for yes"), (3, "softmax")])
def test_sigmoids_are_no_segmenters(columns, message, tmp_path):
    images = keras.Input(SIZE)
    outputs = keras.layers.Conv2D(columns, 1, activation="sigmoid")(images)
    if columns == 1:
        outputs = keras.layers.Conv2D(columns, 1)(images)
    with pytest.raises(ValueError, match=message):
        fit(keras.Model(images, outputs), scenes(4), output=tmp_path / "run")


def test_others_say_where_to_go(tmp_path):
    model = segmenter()
    with pytest.raises(ValueError, match="use keras_lkca.deploy.predict_masks"):
        deploy.predict(model, scenes(1)[0])
    with pytest.raises(ValueError, match="`model` must be a segmenter"):
        deploy.predict_masks(net(), scenes(1)[0])
    with pytest.raises(ValueError, match="`task` must be one of"):
        train(tmp_path, task="detection")
    with pytest.raises(ValueError, match="must be a folder of images and masks"):
        train("cifar10", task="segmentation")
    with pytest.raises(ValueError, match="`ignore` is for task='segmentation'"):
        train(tmp_path, ignore=3)
    with pytest.raises(ValueError, match="There are none in .*train"):
        train(tmp_path, task="segmentation")


@pytest.mark.once
@pytest.mark.parametrize("format", ["tf_saved_model", "onnx", "litert", "torch"])
def test_exports(format, tmp_path, rng):
    for package in deploy.FORMATS[format].packages:
        pytest.importorskip(package)
    model = shaken(segmenter(), rng)
    path = deploy.export(
        model, tmp_path / f"out{deploy.FORMATS[format].ending}", format
    )
    images, _ = scenes(3)
    found = deploy.FORMATS[format].read(path)(images.astype("float32"))
    chances = array(keras.ops.softmax(model(images)))
    np.testing.assert_allclose(found, chances, atol=1e-4)


@pytest.mark.once
def test_it_is_explained(tmp_path, rng):
    """Down to the receptive field of a pixel."""
    model = shaken(segmenter(), rng)
    images, _ = scenes(2)
    field = interpret.effective_receptive_field(model, images, query=(2, 3))
    assert field.shape == (18, 22) and field.sum() == pytest.approx(1)
    assert field[:6, :8].sum() > field[-6:, -8:].sum()
    page = interpret.report(model, images, tmp_path / "page.html")
    assert "block_0_lkca" in page.read_text()


# The command line


@pytest.mark.once
def test_from_the_command_line(tmp_path, capsys, rng):
    for split, count in (("train", 12), ("test", 4)):
        write_scenes(tmp_path / "scenes" / split, count, seed=count)
    (tmp_path / "scenes" / "classes.txt").write_text("\n".join(NAMES))
    folder, output = str(tmp_path / "scenes"), str(tmp_path / "run")
    command = ["train", folder, "--task", "segmentation", "--preset", "lkca_net_03m"]
    command += ["--model-set", "embed_dim=8", "depth=1", "stem_filters=[4]"]
    command += ["num_kernels=2", "patch_size=2", "decoder_dim=8", "--epochs", "1"]
    command += ["--batch-size", "4", "--class-weight", "red=2", "--output", output]
    main([*command, "--set", "crop_padding=1"])
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(metrics["best_per_class_iou"]) == set(NAMES)
    model = keras.models.load_model(tmp_path / "run" / "best.keras")
    assert model.class_colors[1].tolist() == [255, 0, 0]
    assert (tmp_path / "run" / "samples.png").stat().st_size > 5000
    capsys.readouterr()
    main(["evaluate", f"{output}/best.keras", folder, "--json", f"{output}/e.json"])
    text = capsys.readouterr().out
    assert "mean IoU" in text and "green" in text
    scores = json.loads((tmp_path / "run" / "e.json").read_text())
    best = metrics["best"]["test_mean_iou"]
    assert scores["mean_iou"] == pytest.approx(best, abs=1e-5)
    picture = tmp_path / "photo.jpg"
    Image.fromarray(scenes(1)[0][0]).resize((50, 40)).save(picture)
    masks = tmp_path / "masks"
    main(["predict", f"{output}/best.keras", str(picture), "--masks", str(masks)])
    with Image.open(masks / "photo-mask.png") as mask:
        assert (mask.mode, mask.size) == ("P", (50, 40))
        values = np.asarray(mask)
        assert mask.getpalette()[:6] == [9, 9, 9, 255, 0, 0]
    (expected,) = deploy.predict_masks(model, [picture])
    np.testing.assert_array_equal(values, expected)
    with Image.open(masks / "photo-over.png") as over:
        assert over.size == (50, 40)
    # Neither the photograph nor what lies there is written over.
    Image.fromarray(scenes(1)[0][0]).save(masks / "a-over.png")
    Image.fromarray(scenes(1)[0][0]).save(masks / "a.png")
    both = [str(masks / "a.png"), str(masks / "a-over.png")]
    with pytest.raises(SystemExit, match="2"):
        main(["predict", f"{output}/best.keras", *both, "--masks", str(masks)])
    assert "over an image" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", folder, "--recipe", "quick"])
    assert "--task segmentation" in capsys.readouterr().err
    # A classifier's weights become a segmenter's.
    net().save(tmp_path / "net.keras")
    carried = ["train", folder, "--task", "segmentation", "--start-from"]
    carried += [str(tmp_path / "net.keras"), "--epochs", "1", "--batch-size", "4"]
    main([*carried, "--output", str(tmp_path / "carried")])
    again = keras.models.load_model(tmp_path / "carried" / "best.keras")
    assert type(again) is LKCASegmenter and again.class_names == NAMES


# A dataset of TensorFlow Datasets


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A folder of TensorFlow Datasets: photographs of several sizes and their masks."""
    tfds = pytest.importorskip("tensorflow_datasets")
    root = tmp_path_factory.mktemp("tfds")
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=37),
            "segmentation_mask": tfds.features.Image(
                shape=(None, None, 1), use_colormap=True
            ),
        }
    )

    class OxfordIiitPet(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("4.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {
                "train": self._generate_examples(12),
                "test": self._generate_examples(3),
            }

        def _generate_examples(self, count):
            for index in range(count):
                rng = np.random.default_rng(index)
                image = rng.integers(0, 99, (140 + 10 * index, 160, 3)).astype("uint8")
                mask = np.full((*image.shape[:2], 1), 2, "uint8")
                middle = len(image) // 2
                mask[middle - 30 : middle, 40:80] = 1
                mask[middle : middle + 5] = 3
                mask[middle + 40 :] = 0
                image[mask[..., 0] == 1] += 150
                yield index, {"image": image, "label": index, "segmentation_mask": mask}

    OxfordIiitPet(data_dir=str(root)).download_and_prepare()
    return root


@pytest.mark.once
def test_a_dataset_with_masks(pets):
    images, masks = data.load("oxford_iiit_pet", "train", pets)
    assert images.shape == (12, 128, 128, 3) and images.dtype == "uint8"
    assert masks.shape == (12, 128, 128) and masks.dtype == "int16"
    assert set(np.unique(masks)) == {-1, 0, 1, 2}
    pet = images[0][masks[0] == 0]
    assert pet.mean() > 150 > images[0][masks[0] == 1].mean()
    arrays = {"x_test": images, "y_test": masks}
    np.savez(pets / "oxford_iiit_pet.npz", **arrays)
    again = data.load("oxford_iiit_pet", "test", pets)
    (pets / "oxford_iiit_pet.npz").unlink()
    for read, written in zip(again, (images, masks), strict=True):
        np.testing.assert_array_equal(read, written)


@pytest.mark.once
def test_it_is_trained_by_its_name(pets, tmp_path, capsys):
    output = tmp_path / "run"
    main(
        f"train oxford_iiit_pet --task segmentation --preset lkca_net_03m --epochs 1 "
        f"--data-dir {pets} --output {output} --set batch_size=2".split()
    )
    model = keras.models.load_model(output / "last.keras")
    assert model.class_names == ("pet", "background", "outline")
    main(f"evaluate {output / 'last.keras'} oxford_iiit_pet --data-dir {pets}".split())
    assert "mean IoU" in capsys.readouterr().out
    with pytest.raises(ValueError, match="`dataset` must be.*task='classification'"):
        train("oxford_iiit_pet", output=tmp_path / "no", data_dir=pets)
    with pytest.raises(ValueError, match="`dataset` must be.*or one of.*'cifar10'"):
        train("cifar10", output=tmp_path / "no", task="segmentation")
    with pytest.raises(ValueError, match="`ignore` is for a folder"):
        train("oxford_iiit_pet", output=tmp_path, task="segmentation", ignore=3)
