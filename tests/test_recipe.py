import dataclasses
import json
from unittest import mock

import keras
import numpy as np
import pytest
from conftest import ROOT, quick

from keras_lkca import LKCANet, LKCAViT, ViT, data
from keras_lkca.internals import sublayers
from keras_lkca.training import Recipe, callbacks, fit


def test_json_round_trip(tmp_path):
    recipe = Recipe.paper(epochs=7, ema_momentum=0.99, learning_rate=3e-4)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert Recipe.from_json('{"epochs": 7}') == Recipe.long(epochs=7)
    assert Recipe.long() == Recipe() != Recipe.paper()


@pytest.mark.once
def test_a_former_recipe_is_what_it_was():
    """A recipe without the fields that came later, as a run of before has it."""
    path = ROOT / "tests" / "former" / "run-torch" / "config.json"
    values = json.loads(path.read_text())["arguments"]["recipe"]
    recipe = Recipe.from_dict(values)
    later = {"epsilon": 1e-7, "policy": "rand", "as_published": False, "repeats": 1}
    later |= {"layer_decay": 1.0, "patience": None}
    later |= {"distill_weight": 0.9, "distill_temperature": 4.0}
    later |= {"dice_weight": 0.0, "zoom": 0.0, "rotation": 0.0}
    later |= {"gradient_accumulation_steps": 1, "rematerialize": False}
    assert recipe.to_dict() == {**values, **later}


@pytest.mark.parametrize("make", [Recipe.long, Recipe.paper])
def test_the_papers_numbers(make):
    recipe = make()
    assert (recipe.epochs, recipe.passes_per_epoch, recipe.batch_size) == (100, 3, 128)
    assert (recipe.learning_rate, recipe.weight_decay) == (1e-3, 0.05)
    assert (recipe.label_smoothing, recipe.drop_path_rate) == (0.1, 0.1)
    images = recipe.augment
    assert (images.erase_probability, images.erase_area) == (0.25, 0.4)
    assert (images.mix_probability, images.mixup_alpha, images.cutmix_alpha) == (
        *(0.5, 1.0, 1.0),
    )


def test_the_papers_recipe():
    """What the paper's code does otherwise, and Keras's optimizer does of it."""
    recipe, long = Recipe.paper(), Recipe.long()
    changed = {k: v for k, v in recipe.to_dict().items() if v != long.to_dict()[k]}
    assert changed == {
        "decay_everything": True,
        "epsilon": 1e-8,
        "policy": "auto",
        "rand_augment": 0,
        "as_published": True,
    }
    assert (recipe.optimizer(10).epsilon, long.optimizer(10).epsilon) == (1e-8, 1e-7)


def test_the_datasets_policy():
    policies = {
        name: Recipe.paper().augmentation(policy=facts.policy).policy
        for name, facts in data.DATASETS.items()
    }
    assert policies == {
        **dict.fromkeys(("cifar10", "cifar100"), "auto_cifar10"),
        "svhn_cropped": "auto_svhn",
        **dict.fromkeys(
            ("tiny_imagenet", "digits", "oxford_iiit_pet"), "auto_imagenet"
        ),
    }
    assert Recipe.paper().augmentation().policy == "auto_imagenet"
    own = Recipe.quick(policy="trivial").augmentation(policy="auto_svhn")
    assert own.policy == "trivial"


def test_what_is_erased_is_filled():
    """With the mean, or with the mean in the units of normalised images."""
    facts = {"mean": (0.5, 0.4), "std": (0.2, 0.25)}
    assert Recipe.long().augmentation(**facts).mean == (0.5, 0.4)
    assert Recipe.paper().augmentation(**facts).mean == pytest.approx((0.6, 0.5))
    assert Recipe.paper().augmentation(mean=(0.5, 0.4)).mean == (0.5, 0.4)


def test_the_schedule_warms_up_and_anneals():
    schedule = Recipe.paper().schedule(1000)
    rates = [float(schedule(step)) for step in (0, 50, 100, 550, 1000)]
    np.testing.assert_allclose(rates, [1e-5, 5e-4, 1e-3, 5e-4, 1e-6], atol=1e-5)
    assert rates[0] > 0  # or the first step would be lost
    for steps in (1, 2, 3):
        assert np.isfinite(float(Recipe.paper().schedule(steps)(steps)))


@pytest.mark.parametrize("model_class", [LKCAViT, ViT])
@pytest.mark.parametrize("everything", [False, True])
def test_weight_decay_spares_vectors_and_embeddings(model_class, everything):
    """Without a gradient and at a learning rate, only the decay changes a weight."""
    model = (
        model_class((8, 8, 3), patch_size=2, embed_dim=8, depth=1, num_heads=2)
        if (model_class is ViT)
        else model_class((8, 8, 3), patch_size=2, embed_dim=8, depth=1)
    )
    recipe = Recipe.paper(decay_everything=everything, warmup=0.0, weight_decay=0.5)
    optimizer = recipe.optimizer(10, model.trainable_variables)
    for variable in model.trainable_variables:
        variable.assign(keras.ops.ones(variable.shape))
    zeros = [keras.ops.zeros(v.shape) for v in model.trainable_variables]
    optimizer.apply(zeros, model.trainable_variables)
    spared = {
        v.path
        for v in model.trainable_variables
        if keras.ops.convert_to_numpy(v).min() == 1
    }
    kinds = {path.split("/")[-1] for path in spared}
    if everything:
        assert not spared
    else:
        expected = {"bias", "gamma", "beta", "embeddings"}
        assert kinds == expected | ({"token"} if model_class is ViT else set())
        decayed = {v.path.split("/")[-1] for v in model.trainable_variables} - kinds
        assert decayed == {"kernel"}


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_gradients_are_accumulated(layer_decay):
    """Several steps' gradients change the weights as their mean would in one."""
    weights = []
    for steps in (1, 2):
        model = LKCAViT((8, 8, 3), patch_size=2, embed_dim=8, depth=1)
        variables = model.trainable_variables
        for variable in variables:
            variable.assign(keras.ops.ones(variable.shape))
        recipe = Recipe.quick(
            gradient_accumulation_steps=steps, warmup=0.0, layer_decay=layer_decay
        )
        optimizer = recipe.optimizer(10**6, model.weights)
        for scale in (1.0, 3.0) if steps == 2 else (2.0,):
            gradients = [scale * keras.ops.ones(v.shape) for v in variables]
            optimizer.apply(gradients, variables)
        weights.append(model.get_weights())
    assert not np.allclose(weights[0][0], 1, rtol=1e-4)
    for one, accumulated in zip(*weights, strict=True):
        np.testing.assert_allclose(accumulated, one, rtol=1e-5)


@pytest.mark.parametrize(
    ("model_class", "dtype"),
    [(LKCANet, "float32"), (ViT, "float32"), (ViT, "mixed_bfloat16")],
)
def test_what_is_computed_again_is_the_same(model_class, dtype, tmp_path, monkeypatch):
    """With what is drawn at random; half precision as far as compilers round alike."""
    again = mock.Mock(wraps=keras.remat)
    monkeypatch.setattr(keras, "remat", again)
    weights, losses = [], []
    for wanted in (False, True):
        keras.utils.set_random_seed(1)
        options = {"drop_path_rate": 0.2, "dropout_rate": 0.2}
        options |= {"patch_size": 4, "embed_dim": 32, "depth": 1}
        model = model_class((8, 8, 1), dtype=dtype, **options)
        recipe = quick(epochs=1, rematerialize=wanted)
        options = {"recipe": recipe, "steps_per_epoch": 3}
        output = tmp_path / str(wanted)
        fit(model, data.digits(), output=output, **options)
        losses.append(callbacks.read_history(output / "history.csv")[0]["loss"])
        weights.append(model.get_weights())
        assert again.called == wanted
    assert not any(getattr(x, "rematerialize", False) for x in sublayers(model))
    exact = dtype == "float32"
    assert losses[1] == pytest.approx(losses[0], rel=1e-5 if exact else 1e-2)
    for one, other in zip(*weights, strict=True):
        if exact:
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_computed_again(tmp_path):
    layers = [keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
    message = "`rematerialize` of the recipe needs a model with LKCA.*none of them"
    with pytest.raises(ValueError, match=message):
        fit(model, data.digits(), recipe=quick(rematerialize=True), output=tmp_path)
    with pytest.raises(ValueError, match="`rematerialize` must be True or False"):
        Recipe(rematerialize=1)


STAGES = {"stem_filters": (4,), "patch_size": 2, "embed_dim": (8, 8), "depth": (1, 1)}
POWERS = {
    LKCAViT: ({"depth": 2}, {"positions": 3}),
    ViT: ({"depth": 2, "num_heads": 2}, {"class_token": 3, "positions": 3}),
    LKCANet: (STAGES, {"stem_1_0_norm": 3, "downsample_1_conv": 1, "positions_1": 1}),
}


@pytest.mark.parametrize("model_class", list(POWERS))
def test_blocks_nearer_to_the_images_learn_more_slowly(model_class):
    """Every first step, its weight decay too, has its block's share of the rate."""
    arguments, powers = POWERS[model_class]
    options = {"patch_size": 4, "embed_dim": 8, "drop_path_rate": 0.0, **arguments}
    model = model_class((8, 8, 1), **options)
    frozen = model.get_layer("block_0_mixer_norm")
    for layer in model.layers:  # of the stem what is spared the decay is left
        if layer is frozen or layer.name.startswith(("patches", "stem_0")):
            layer.trainable = False
    rng = np.random.default_rng(0)
    start = [rng.uniform(0.1, 0.5, weight.shape) for weight in model.weights]
    trained = model.trainable_variables
    gradients = [
        keras.ops.convert_to_tensor(rng.uniform(0.1, 1, v.shape).astype("float32"))
        for v in trained
    ]
    steps = {}
    for decay in (1.0, 0.5):
        model.set_weights(start)
        recipe = Recipe.quick(layer_decay=decay, warmup=0.0, weight_decay=0.1)
        optimizer = recipe.optimizer(10, model.weights)
        optimizer.apply(gradients, trained)
        steps[decay] = {
            weight.path: keras.ops.convert_to_numpy(weight) - before
            for weight, before in zip(model.weights, start, strict=True)
            if weight.trainable
        }
    powers = {**powers, "norm": 0, "classifier": 0}
    seen = set()
    for path, whole in steps[1.0].items():
        name = path.split("/")[0]
        power = powers.get(name)
        if name.startswith("block_"):
            power = 2 - int(name.split("_")[1])
        if power is None:
            continue
        seen.add(name)
        part = steps[0.5][path]
        np.testing.assert_allclose(part, whole * 0.5**power, atol=2e-7, err_msg=path)
        assert np.abs(whole).max() > 5e-4, path
    assert set(powers) <= seen and frozen.name not in seen
    assert isinstance(optimizer, keras.optimizers.MultiOptimizer)
    assert len(optimizer.optimizers) == 4


def test_layer_decay_needs_blocks():
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Dense(10, name="only")(keras.layers.Flatten()(inputs))
    with pytest.raises(ValueError, match="`layer_decay` needs a model of bl.*rs only$"):
        Recipe.quick(layer_decay=0.5).compile(keras.Model(inputs, x), 10)


def test_the_loss_takes_mixed_labels():
    logits = np.log(np.array([[0.7, 0.2, 0.1]], "float32"))
    labels = np.array([[0.5, 0.5, 0.0]], "float32")
    smoothed = labels * 0.7 + 0.1
    expected = -(smoothed * logits).sum()
    loss = Recipe.paper(label_smoothing=0.3).loss()(labels, logits)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_compile_counts_top5_above_five_classes():
    for classes, names in ((5, {"accuracy"}), (6, {"accuracy", "top5"})):
        model = LKCAViT(
            (8, 8, 3), num_classes=classes, patch_size=4, embed_dim=8, depth=1
        )
        Recipe.quick().compile(model, 10)
        x = np.zeros((4, 8, 8, 3), "uint8")
        y = np.eye(classes, dtype="float32")[:4]
        logs = model.train_on_batch(x, y, return_dict=True)
        assert set(logs) == {"loss", *names}


def test_the_average_is_kerass():
    assert Recipe.paper().callbacks() == []
    recipe = Recipe.paper(ema_momentum=0.9)
    assert isinstance(recipe.callbacks()[0], keras.callbacks.SwapEMAWeights)
    optimizer = recipe.optimizer(10)
    assert optimizer.use_ema and optimizer.ema_momentum == 0.9
    assert not Recipe.paper().optimizer(10).use_ema


def test_the_augmentation_is_the_recipes():
    augmentation = Recipe.long().augmentation(mean=(0.5, 0.5, 0.5))
    assert augmentation.flip and augmentation.rand_augment == 2
    assert augmentation.mixup and augmentation.cutmix and augmentation.erasing
    assert not Recipe.paper().augmentation(flip=False).flip  # digits
    light = Recipe.quick().augmentation()
    assert not (light.mixup or light.cutmix or light.erasing or light.rand_augment)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rat": 1}, "has no field 'learning_rat', but epochs, .*Received"),
        ({"epochs": 0}, "`epochs` must be an integer, 1 or above.*epochs=0"),
        ({"epochs": 2.5}, "`epochs` must be an integer"),
        ({"batch_size": True}, "`batch_size` must be an integer"),
        ({"crop_padding": -1}, "`crop_padding` must be an integer, 0 or above"),
        ({"learning_rate": 0}, "`learning_rate` must be above 0"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be a number"),
        ({"final_learning_rate": 1}, "above 0 and `final_learning_rate`"),
        ({"policy": "best"}, "`policy` must be one of .'rand', 'auto', 'trivial'"),
        ({"batch_size": 32, "repeats": 3}, "`batch_size` must be a multiple of the"),
        ({"epsilon": -1e-8}, "`epsilon` must be a number, 0 or above"),
        ({"weight_decay": "0.1"}, "`weight_decay` must be a number"),
        ({"label_smoothing": 1.5}, r"`label_smoothing` must lie in \[0, 1\]"),
        ({"ema_momentum": 2}, "`ema_momentum` must lie in"),
        ({"layer_decay": 0}, "`layer_decay` must be above 0; freeze='backbone'"),
        ({"layer_decay": 1.5}, r"`layer_decay` must lie in \[0, 1\]"),
        ({"patience": 0}, "`patience` must be a positive integer"),
        ({"flip": 1}, "`flip` must be True or False"),
        ({"augment": "auto"}, "has no field 'augment'"),
        ({"decay_everything": 1}, "`decay_everything` must be True or False"),
        (
            {"gradient_accumulation_steps": 0},
            "`gradient_accumulation_steps` must be an integer, 1 or above",
        ),
        ({"cutmix_alpha": 2}, "`cutmix_alpha` must be at most 1"),
        (
            {"mix_probability": 0.5, "mixup_alpha": 0, "cutmix_alpha": 0},
            "`mixup_alpha` or `cutmix_alpha` must be above 0",
        ),
    ],
)
def test_bad_fields(changes, message):
    for make in (Recipe.from_dict, lambda values: Recipe.quick(**values)):
        with pytest.raises(ValueError, match=message):
            make(changes)


@pytest.mark.parametrize("text", ["{", "[]", "3"])
def test_bad_json(text):
    with pytest.raises(ValueError, match="must be a JSON object"):
        Recipe.from_json(text)


def test_the_augmentation_is_one_object_and_json_is_flat():
    recipe = Recipe.quick(crop_padding=2, mix_probability=0.25)
    assert recipe.augment.crop_padding == 2
    assert "augment" not in recipe.to_dict() and recipe.to_dict()["crop_padding"] == 2
    own = dataclasses.replace(recipe, augment=data.Augmentation(flip=False))
    assert not own.to_dict()["flip"] and own.to_dict()["mix_probability"] == 0
    with pytest.raises(ValueError, match="`augment` must be a keras_lkca.data.Augm"):
        Recipe(augment="auto")


def test_it_is_data():
    recipe = Recipe.quick()
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.epochs = 3
