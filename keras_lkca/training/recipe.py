"""How a model is trained, as one set of numbers."""

import dataclasses
import json
import re

import keras
import numpy as np

from keras_lkca.checks import check_number, check_positive_int, check_rate
from keras_lkca.data.augmentation import Augmentation
from keras_lkca.data.batches import check_repeats
from keras_lkca.models.classifiers import (
    gives_probabilities,
    is_segmenter,
    task_of,
)
from keras_lkca.training.distillation import Distillation, OfLabels
from keras_lkca.training.segmentation import (
    MeanIoU,
    PixelAccuracy,
    SegmentationLoss,
)

# By which `fit` knows a model that it compiled before.
OPTIMIZER = "adamw_of_recipe"
# The mean is the dataset's.
AUGMENTATION_FIELDS = tuple(
    field.name for field in dataclasses.fields(Augmentation) if field.name != "mean"
)
# What a recipe has that says nothing of it: so it was before the recipes had names,
# and so it stays for the JSON files of then.
_AUGMENTATION = {
    "rand_augment": 2,
    "erase_probability": 0.25,
    "mix_probability": 0.5,
}
# Where the paper's code differs from the defaults.
_PAPER = {
    "decay_everything": True,
    "epsilon": 1e-8,
    "policy": "auto",
    "rand_augment": 0,
    "as_published": True,
}
# Of the position embedding and of the class token.
_SPARED = ("embeddings", "token")
# By which a block is known: its layers' names begin as that of its mixer does.
_MIXER = re.compile("(.+_)(?:lkca|attention)")


@keras.saving.register_keras_serializable(package="keras_lkca")
class Later(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule from one of its later steps on, for an optimizer that begins there.

    Args:
        schedule: The schedule of the whole run.
        first_step: Integer, the step of it that is the optimizer's first.

    Example:

    >>> from keras_lkca.training import Recipe
    >>> from keras_lkca.training.recipe import Later
    >>> schedule = Recipe.paper().schedule(1000)
    >>> float(Later(schedule, 400)(7)) == float(schedule(407))
    True
    """

    def __init__(self, schedule, first_step: int):
        self.schedule, self.first_step = schedule, first_step

    def __call__(self, step):
        """Return the learning rate."""
        return self.schedule(step + self.first_step)

    def get_config(self):
        """Return the arguments."""
        schedule = keras.saving.serialize_keras_object(self.schedule)
        return {"schedule": schedule, "first_step": self.first_step}

    @classmethod
    def from_config(cls, config):
        """Build the schedule from what `get_config` returned."""
        schedule = keras.saving.deserialize_keras_object(config["schedule"])
        return cls(schedule, config["first_step"])


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a training run.

    The defaults are a long training. `Recipe.long()` says so by name and takes changes
    of any field; `Recipe.paper()` is the paper's training, and `Recipe.quick()` a short
    one.

    Attributes:
        epochs: Number of epochs, after each of which the model is validated.
        passes_per_epoch: Number of times an epoch goes through the training images.
        batch_size: Images per step.
        learning_rate: Highest learning rate, at the end of the warm-up.
        final_learning_rate: Learning rate at the end, where the cosine leads.
        warmup: Share of the steps over which the learning rate rises linearly.
        weight_decay: AdamW's decoupled weight decay.
        epsilon: AdamW's, added to the root of the gradients' mean square. Keras's own
            default is 1e-7.
        decay_everything: Whether to decay also biases, the scales and offsets of
            normalisation, position embeddings and the class token, which are spared
            otherwise.
        label_smoothing: Share of each label that is spread over all classes.
        layer_decay: Number in (0, 1], by which the learning rate falls from each block
            to the one before it, for a model that has learned already. The classifier
            and what else comes after the blocks has the whole rate, the last block
            `layer_decay` of it, the one before its square, and so on to the stem and
            the first positions; what lies between two blocks goes with the later. The
            weight decay goes with the rate. 1 for the same rate everywhere.
        drop_path_rate: Rate of stochastic depth in every block, an argument of the
            model that `keras_lkca.training.train` gives it.
        ema_momentum: Momentum of an exponential moving average of the weights, which
            is then what is validated and saved; `None` for none.
        patience: Number of epochs to wait for one that is better than the best so far,
            by what chooses the best epoch, before the run stops early; `None` for
            all epochs. It needs validation images. Epochs that train the classifier
            alone at first do not count. The schedule of the learning rate is that of
            all epochs, so give no more of them than are likely to be needed.
        distill_weight: Share in the loss, in [0, 1], of the distance to a teacher's
            answers, where `keras_lkca.training.fit` has a `teacher`; the rest is that
            of the labels.
        distill_temperature: Positive number by which the logits of both are divided
            there: the higher, the more the teacher's unlikely classes count.
        dice_weight: Number by which the Dice loss is multiplied that a segmenter's
            cross-entropy gets beside it; 0 for none.
        gradient_accumulation_steps: Positive integer, how many steps' gradients are
            averaged before the weights change, as if a batch had as many times
            `batch_size` images, in the memory of `batch_size`. BatchNormalization still
            sees `batch_size` at a time. The schedule and the steps of an epoch are
            counted as before.
        rematerialize: Whether `LKCA` and `SelfAttention` layers, and `TokenDense` ones
            with an activation, as in MLPs, keep their inputs alone for the gradient and
            compute the rest again: the same training within rounding, in less memory,
            for more time. For `keras_lkca.training.fit` and `find_learning_rate`;
            `compile` leaves it aside.
        augment: `keras_lkca.data.Augmentation`, what is done to the training images.
            A dataset whose mirrored images are of other classes is never mirrored.
            Its fields count as the recipe's in JSON, in `from_dict` and in the
            changes that `long`, `paper` and `quick` take.

    Raises:
        ValueError: If a value is not of its kind or range.

    Example:

    >>> from keras_lkca.training import Recipe
    >>> recipe = Recipe.quick(epochs=5)
    >>> Recipe.from_json(recipe.to_json()) == recipe
    True

    References:
        Li et al., arXiv 2401.05738, experiments. Layer-wise learning rates: Bao et
        al., "BEiT", arXiv 2106.08254, appendix. Weight and temperature of
        distillation: Tian et al., "Contrastive Representation Distillation", arXiv
        1910.10699, for the baseline of Hinton et al.
    """

    epochs: int = 100
    passes_per_epoch: int = 3
    batch_size: int = 128
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-6
    warmup: float = 0.1
    weight_decay: float = 0.05
    epsilon: float = 1e-7
    decay_everything: bool = False
    layer_decay: float = 1.0
    label_smoothing: float = 0.1
    drop_path_rate: float = 0.1
    ema_momentum: float | None = None
    patience: int | None = None
    distill_weight: float = 0.9
    distill_temperature: float = 4.0
    dice_weight: float = 0.0
    gradient_accumulation_steps: int = 1
    rematerialize: bool = False
    augment: Augmentation = dataclasses.field(
        default_factory=lambda: Augmentation(**_AUGMENTATION)
    )

    def __post_init__(self):
        """Check every field, and keep Python's own numbers, which JSON can hold."""
        checked = {}
        for name in (
            *("epochs", "passes_per_epoch", "batch_size"),
            "gradient_accumulation_steps",
        ):
            checked[name] = check_number(name, getattr(self, name), 1, integral=True)
        for name in (
            *("learning_rate", "final_learning_rate"),
            *("weight_decay", "epsilon", "distill_temperature", "dice_weight"),
        ):
            checked[name] = check_number(name, getattr(self, name))
        for name in (
            *("warmup", "layer_decay", "label_smoothing", "drop_path_rate"),
            "distill_weight",
        ):
            checked[name] = check_rate(name, getattr(self, name))
        if checked["distill_temperature"] == 0:
            raise ValueError(
                "`distill_temperature` must be above 0. "
                f"Received: distill_temperature={self.distill_temperature!r}"
            )
        if self.ema_momentum is not None:
            checked["ema_momentum"] = check_rate("ema_momentum", self.ema_momentum)
        if checked["layer_decay"] == 0:
            raise ValueError(
                "`layer_decay` must be above 0; freeze='backbone' trains the "
                f"classifier alone. Received: layer_decay={self.layer_decay!r}"
            )
        if self.patience is not None:
            checked["patience"] = check_positive_int("patience", self.patience)
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        for name in ("decay_everything", "rematerialize"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(
                    f"`{name}` must be True or False. Received: {name}={value!r}"
                )
        if not isinstance(self.augment, Augmentation):
            raise ValueError(
                "`augment` must be a keras_lkca.data.Augmentation. "
                f"Received: augment={self.augment!r}"
            )
        check_repeats(self.batch_size, self.augment)
        if not 0 < self.learning_rate >= self.final_learning_rate:
            raise ValueError(
                "`learning_rate` must be above 0 and `final_learning_rate`. Received: "
                f"final_learning_rate={self.final_learning_rate!r}, "
                f"learning_rate={self.learning_rate!r}"
            )

    @classmethod
    def long(cls, **changes):
        """Return the default recipe: 100 epochs of three passes, all augmentation.

        The paper's numbers with the augmentation of Keras's own layers, RandAugment for
        AutoAugment, and a weight decay that spares biases, scales and positions.

        Args:
            changes: Fields by name.
        """
        return cls.from_dict(changes)

    @classmethod
    def paper(cls, **changes):
        """Return the paper's recipe, as its authors' code has it.

        It has the numbers of `long`, decays every weight, has AutoAugment's policy for
        the dataset, and erases and mixes as the papers of those do. What still differs,
        and why, stands in a table (docs/api/training.md).

        Args:
            changes: Fields by name.
        """
        return cls.from_dict({**_PAPER, **changes})

    @classmethod
    def quick(cls, **changes):
        """Return a recipe for a first look: ten epochs of shifts and flips.

        Its learning rate is three times that of the others: in short trainings LKCA
        gains from that, and softmax attention loses (docs/results/small-data.md).

        Args:
            changes: Fields by name.
        """
        light = {
            "epochs": 10,
            "passes_per_epoch": 1,
            "learning_rate": 3e-3,
            "rand_augment": 0,
            "erase_probability": 0.0,
            "mix_probability": 0.0,
            "drop_path_rate": 0.0,
        }
        return cls.from_dict({**light, **changes})

    @classmethod
    def segmentation(cls, **changes):
        """Return a recipe for masks: what moves an image moves its mask.

        A hundred epochs of small batches, mirrored, shifted, zoomed by half and turned
        by ten degrees.

        Args:
            changes: Fields by name.
        """
        masks = {
            "passes_per_epoch": 1,
            "batch_size": 16,
            "crop_padding": 16,
            "zoom": 0.5,
            "rotation": 10.0,
            "rand_augment": 0,
            "erase_probability": 0.0,
            "mix_probability": 0.0,
        }
        return cls.from_dict({**masks, **changes})

    @classmethod
    def from_dict(cls, values: dict):
        """Return a recipe of some fields' values, the default ones for the others.

        Args:
            values: Fields by name.

        Raises:
            ValueError: If there is no such field, or a value is not of its kind.
        """
        own = [field.name for field in dataclasses.fields(cls)]
        own.remove("augment")
        known = [*own, *AUGMENTATION_FIELDS]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(
                f"A recipe has no field {unknown[0]!r}, but {', '.join(known)}. "
                f"Received: {unknown[0]}={values[unknown[0]]!r}"
            )
        images = {k: v for k, v in values.items() if k in AUGMENTATION_FIELDS}
        others = {k: v for k, v in values.items() if k in own}
        return cls(**others, augment=Augmentation(**{**_AUGMENTATION, **images}))

    @classmethod
    def from_json(cls, text: str):
        """Return the recipe that `to_json` wrote.

        Args:
            text: A JSON object; fields that it leaves out are the default ones.

        Raises:
            ValueError: If it is no JSON object, or as in `from_dict`.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"A recipe must be a JSON object ({error}).") from error
        if not isinstance(values, dict):
            raise ValueError(f"A recipe must be a JSON object. Received: {text!r}")
        return cls.from_dict(values)

    def to_dict(self) -> dict:
        """Return the fields' values by name, those of `augment` among them."""
        values = dataclasses.asdict(self)
        images = values.pop("augment")
        return {**values, **{name: images[name] for name in AUGMENTATION_FIELDS}}

    def to_json(self) -> str:
        """Return the recipe as a JSON object, a line per field."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def schedule(self, total_steps: int):
        """Return the learning rate: a linear warm-up, then half a cosine.

        Args:
            total_steps: Positive integer, the steps of the whole run.

        Returns:
            `keras.optimizers.schedules.CosineDecay`.
        """
        total_steps = check_positive_int("total_steps", total_steps)
        warmup = max(round(self.warmup * total_steps), 1)
        return keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=self.learning_rate / warmup,  # the first step counts
            warmup_target=self.learning_rate,
            warmup_steps=warmup,
            decay_steps=max(total_steps - warmup, 1),
            alpha=self.final_learning_rate / self.learning_rate,
        )

    def optimizer(self, total_steps: int, variables=(), first_step: int = 0):
        """Return AdamW with the schedule, the decay and the average of the recipe.

        Args:
            total_steps: Positive integer, the steps of the whole run.
            variables: The model's variables, `model.weights`, of which biases,
                normalisation and embeddings are spared the decay, and whose paths tell
                the block.
            first_step: Integer, the step of the schedule that it begins at.

        Returns:
            `keras.optimizers.AdamW`, or where there is a `layer_decay`
            `keras.optimizers.MultiOptimizer` with one for each rate.

        Raises:
            ValueError: If there is a `layer_decay`, and no block among the variables.
        """
        if self.layer_decay == 1:
            return self._adamw(total_steps, variables, first_step, OPTIMIZER)
        groups = {}
        for name, power in _powers([v.path for v in variables]).items():
            groups.setdefault(power, []).append(name)
        trained = {v.path.split("/")[0] for v in variables if v.trainable}
        optimizers = {}
        for power, names in groups.items():
            if trained.isdisjoint(names):
                continue
            rate = self.layer_decay**power
            scaled = dataclasses.replace(
                self,
                learning_rate=self.learning_rate * rate,
                final_learning_rate=self.final_learning_rate * rate,
            )
            # By the layers' names, which a saved model keeps.
            pattern = f"(?:{'|'.join(map(re.escape, names))})(?:/.*)?"
            own = [v for v in variables if v.path.split("/")[0] in names]
            optimizers[pattern] = scaled._adamw(
                total_steps, own, first_step, f"{OPTIMIZER}_{power}"
            )
        _, default = optimizers.popitem()
        return keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(default, optimizers), name=OPTIMIZER
        )

    def _adamw(self, total_steps, variables, first_step, name):
        schedule = self.schedule(total_steps)
        accumulated = self.gradient_accumulation_steps
        options = {
            "gradient_accumulation_steps": accumulated if accumulated > 1 else None,
            "learning_rate": Later(schedule, first_step) if first_step else schedule,
            "epsilon": self.epsilon,
            "name": name,
            "use_ema": self.ema_momentum is not None,
            "ema_momentum": 0.99 if self.ema_momentum is None else self.ema_momentum,
        }
        spared = [v for v in variables if _spared(v) and not self.decay_everything]
        trained = [v for v in variables if v.trainable]
        if trained and {id(v) for v in trained} <= {id(v) for v in spared}:
            return keras.optimizers.Adam(**options)  # torch cannot decay nothing
        optimizer = keras.optimizers.AdamW(weight_decay=self.weight_decay, **options)
        if spared:
            optimizer.exclude_from_weight_decay(var_list=spared)
        return optimizer

    def loss(
        self,
        from_logits: bool = True,
        task: str = "categorical",
        class_weight=None,
    ):
        """Return the cross-entropy of a model's outputs and one-hot or mixed labels.

        Args:
            from_logits: `False` where the model ends with a softmax or a sigmoid.
            task: `"categorical"` for one class out of many; `"binary"` for one column,
                or `"multilabel"` for any number of labels an image, whose labels are 0
                and 1 and whose loss is the binary cross-entropy; `"segmentation"` for
                masks, integers of which -1 is ignored.
            class_weight: Of masks, a number per class, or `None`.
        """
        if task == "segmentation":
            options = self.label_smoothing, self.dice_weight, class_weight
            return SegmentationLoss(from_logits, *options)
        losses = keras.losses
        kind = losses.CategoricalCrossentropy
        if task != "categorical":
            kind = losses.BinaryCrossentropy
        return kind(from_logits=from_logits, label_smoothing=self.label_smoothing)

    def compile(
        self,
        model,
        total_steps: int,
        jit_compile="auto",
        task: str | None = None,
        first_step: int = 0,
        teacher: bool = False,
        class_weight=None,
    ):
        """Compile a model with the recipe's optimizer and loss, accuracy and top-5.

        With several labels an image the accuracy is the share of all answers that are
        right, and the area under the ROC curve stands beside it. In training it counts
        mixed labels as wrong.

        Args:
            model: A classifier that returns logits, or ends with a softmax or a
                sigmoid.
            total_steps: Positive integer, the steps of the whole run.
            jit_compile: As for `keras.Model.compile`.
            task: See `loss`. Defaults to what the model's outputs tell: one column is
                yes or no, a sigmoid on several gives several labels, anything else is
                one class out of many.
            first_step: Integer, the step of the schedule that the training begins at.
            teacher: Whether a teacher's answers come with the labels of the training,
                see `keras_lkca.training.distillation`.
            class_weight: Of a segmenter, what the pixels of each class count in the
                loss, a number per class; `None` for all alike.

        Example:

        >>> from keras_lkca import LKCAViT
        >>> from keras_lkca.training import Recipe
        >>> model = LKCAViT((8, 8, 1), patch_size=1, embed_dim=16, depth=1)
        >>> Recipe.quick().compile(model, total_steps=100)
        """
        classes = model.output_shape[-1]
        task = task or ("segmentation" if is_segmenter(model) else task_of(model))
        from_logits = not gives_probabilities(model)
        if task == "segmentation":
            metrics = [PixelAccuracy(), MeanIoU(classes)]
        elif task == "categorical":
            metrics = [keras.metrics.CategoricalAccuracy(name="accuracy")]
            if classes > 5:
                metrics.append(keras.metrics.TopKCategoricalAccuracy(5, name="top5"))
        else:
            threshold = 0.0 if from_logits else 0.5
            metrics = [keras.metrics.BinaryAccuracy("accuracy", threshold=threshold)]
        if task == "multilabel":
            options = {"num_labels": classes, "from_logits": from_logits}
            metrics.append(keras.metrics.AUC(name="auc", multi_label=True, **options))
        loss = self.loss(from_logits, task, class_weight)
        if teacher:
            weights = self.distill_weight, self.distill_temperature
            loss = Distillation(loss, *weights, task, from_logits)
            metrics = list(map(OfLabels, metrics))
        model.compile(
            optimizer=self.optimizer(total_steps, model.weights, first_step),
            loss=loss,
            metrics=metrics,
            jit_compile=jit_compile,
        )

    def augmentation(
        self,
        flip: bool = True,
        mean=(0.0,),
        std=0.0,
        policy: str = "auto_imagenet",
    ) -> Augmentation:
        """Return what is done to the training images.

        Args:
            flip: Whether the dataset's images may be mirrored.
            mean: Mean of each channel, images scaled to [0, 1], which fills what is
                erased.
            std: Standard deviation of each channel, likewise. With `as_published` what
                is erased is filled with `mean + mean * std`: the code of that paper
                writes the mean into images that are normalised already.
            policy: The dataset's policy of AutoAugment, which `policy="auto"` stands
                for.

        Returns:
            `keras_lkca.data.Augmentation`.
        """
        if self.augment.as_published:
            mean = np.ravel(mean) * (1 + np.ravel(std))
        if self.augment.policy != "auto":
            policy = self.augment.policy
        return dataclasses.replace(
            self.augment, flip=self.augment.flip and flip, mean=mean, policy=policy
        )

    def callbacks(self) -> list:
        """Return the callbacks that the recipe needs: Keras's for the average."""
        if self.ema_momentum is None:
            return []
        return [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]


def _powers(paths):
    """Return of each layer how often its rate is multiplied by `layer_decay`.

    Args:
        paths: The paths of all variables of a model, in its layers' order.
    """
    names = list(dict.fromkeys(path.split("/")[0] for path in paths))
    blocks = [match[1] for name in names if (match := _MIXER.fullmatch(name))]
    if not blocks:
        raise ValueError(
            "`layer_decay` needs a model of blocks, whose layers' names tell them as "
            "those of keras_lkca.models.lkca_block(name='block_0') do: block_0_lkca, "
            f"block_0_mlp_norm. Received: layers {', '.join(names[:5])}"
        )
    found = [
        next((i for i, block in enumerate(blocks) if name.startswith(block)), None)
        for name in names
    ]
    powers, following = {}, len(blocks)  # whatever comes after them
    for name, index in zip(reversed(names), reversed(found), strict=True):
        following = following if index is None else index
        powers[name] = len(blocks) - following
    for name, index in zip(names, found, strict=True):
        if index is not None:
            break
        powers[name] = len(blocks) + 1  # what comes before them
    return dict(reversed(powers.items()))


def _spared(variable):
    # Biases, and the scales and offsets of normalisation, are vectors.
    return len(variable.shape) < 2 or variable.name in _SPARED
