"""Learn from another classifier's answers, beside the labels."""

import contextlib
import zlib

import keras
import numpy as np
from keras import ops

from keras_lkca.data.batches import as_arrays
from keras_lkca.models import classifiers
from keras_lkca.training.temperature import logits_of


def check_teacher(teacher, model, names, task):
    """Raise a `ValueError` unless a classifier can teach another one.

    Args:
        teacher: Any classifier, functional or Sequential.
        model: The one that is to learn.
        names: Names of the classes that it is to tell apart, `None` where they are
            not known.
        task: What it decides, see `keras_lkca.models.classifiers.task_of`.
    """
    if not isinstance(teacher, keras.Model):
        raise ValueError(
            "`teacher` must be a Keras model, a classifier of the same images. "
            f"Received: teacher={teacher!r}"
        )
    if teacher is model or {id(v) for v in teacher.variables} & {
        id(v) for v in model.trainable_variables
    }:
        raise ValueError(
            "`teacher` must be another model than the one that learns, and share no "
            "weights with it, which would change as it learns. Received: the same"
        )
    if task == "segmentation":
        raise ValueError(
            "`teacher` is for classifiers of images; a segmenter learns from masks "
            "alone. Received: a teacher for a segmenter"
        )
    try:
        shape, columns = classifiers.check_shapes(teacher)
        # A model of logits on several columns does not say which task it is of.
        hidden = not classifiers.gives_probabilities(teacher) and columns > 1
        own = task if hidden else classifiers.task_of(teacher)
    except ValueError as error:
        raise ValueError(
            f"`teacher` must be a classifier: {error}".replace("`model`", "it")
        ) from error
    if any(
        size not in (None, wanted)
        for size, wanted in zip(shape, model.input_shape[1:], strict=True)
    ):
        raise ValueError(
            "`teacher` must take the images that the model learns from, of "
            f"{model.input_shape[1:]}: put a keras.layers.Resizing before it, or use "
            f"keras_lkca.models.adapt. Received: a teacher of images of {shape}"
        )
    if columns != model.output_shape[-1] or own != task:
        raise ValueError(
            f"`teacher` must answer as the model does, in {model.output_shape[-1]} "
            f"columns of a {task} task. Received: a teacher of {columns} columns of a "
            f"{own} task"
        )
    known = classifiers.class_names(teacher)
    if known and names and tuple(known) != tuple(names):
        first = next(i for i, name in enumerate(known) if name != names[i])
        raise ValueError(
            "`teacher` must tell apart the classes that the model learns, in their "
            f"order. Received: a teacher whose class {first} is {known[first]!r}, "
            f"where the model's is {names[first]!r}"
        )


def described(teacher):
    """Return what tells a teacher from others, also after it was saved and loaded."""
    check = 0
    for weight in teacher.get_weights():
        check = zlib.crc32(np.ascontiguousarray(weight), check)
    return {"parameters": teacher.count_params(), "crc32": check}


def taught(batches, teacher, task, temperature, apart=contextlib.nullcontext):
    """Add a teacher's answers to the labels of batches.

    Args:
        batches: Iterable of (images, labels), and weights where there are any; the
            images as the model will see them, augmented.
        teacher: The teacher.
        task: What it decides.
        temperature: By what its logits are divided.
        apart: Makes the context in which the teacher answers.

    Yields:
        Images, labels `(batch, 2 * columns)` of which the second half is the
        teacher's probabilities, and the weights.
    """
    for batch in batches:
        images, labels, *weights = as_arrays(batch)
        with apart():
            outputs = ops.convert_to_numpy(teacher.predict_on_batch(images))
        logits = logits_of(teacher, outputs.astype("float32"), task)
        answers = classifiers.from_logits(logits / temperature, task)
        labels = np.concatenate([labels, answers], axis=-1).astype("float32")
        yield images, labels, *weights


@keras.saving.register_keras_serializable(package="keras_lkca")
class Distillation(keras.losses.Loss):
    """A loss of labels, and the distance to a teacher's answers.

    `(1 - weight) * loss + weight * temperature**2 * KL(teacher || model)`, the
    probabilities of both at that temperature. The square makes up for the gradients,
    which are smaller by as much. Labels that come without answers, as those of
    validation images, count by the loss alone.

    Args:
        loss: Keras loss of the labels.
        weight: Number in [0, 1].
        temperature: Positive number.
        task: What the model decides, see `keras_lkca.models.classifiers.task_of`: a
            softmax, or a sigmoid of each column.
        from_logits: Whether the model returns logits.
        name: Name of the loss.
        reduction: As for `keras.losses.Loss`.
        dtype: As for `keras.losses.Loss`.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from keras_lkca.training.distillation import Distillation
    >>> cross_entropy = keras.losses.CategoricalCrossentropy(from_logits=True)
    >>> loss = Distillation(cross_entropy, weight=1.0, temperature=1.0)
    >>> labels, answers = np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]])
    >>> both = np.concatenate([labels, answers], axis=1)
    >>> round(float(loss(both, np.zeros((1, 2)))), 3)
    0.0
    >>> round(float(loss(labels, np.zeros((1, 2)))), 3)  # the logarithm of 2
    0.693

    References:
        Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.
    """

    def __init__(
        self,
        loss,
        weight: float,
        temperature: float,
        task: str = "categorical",
        from_logits: bool = True,
        name: str = "distillation",
        reduction: str = "sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.loss = keras.losses.get(loss)
        self.weight, self.temperature = weight, temperature
        self.task, self.from_logits = task, from_logits

    def call(self, y_true, y_pred):
        """Return the loss of each image."""
        columns = y_pred.shape[-1]
        if y_true.shape[-1] == columns:
            return self.loss.call(y_true, y_pred)
        labels, answers = y_true[:, :columns], y_true[:, columns:]
        logits = y_pred if self.from_logits else _to_logits(y_pred, self.task)
        logits = logits / self.temperature
        if self.task == "categorical":
            distance = _xlogx(answers) - answers * ops.log_softmax(logits, axis=-1)
            distance = ops.sum(distance, axis=-1)
        else:
            own = ops.binary_crossentropy(answers, logits, from_logits=True)
            distance = _xlogx(answers) + _xlogx(1 - answers) + own
            distance = ops.mean(distance, axis=-1)
        soft = self.weight * self.temperature**2 * distance
        return (1 - self.weight) * self.loss.call(labels, y_pred) + soft

    def get_config(self):
        """Return the arguments."""
        return {
            **super().get_config(),
            "loss": keras.losses.serialize(self.loss),
            "weight": self.weight,
            "temperature": self.temperature,
            "task": self.task,
            "from_logits": self.from_logits,
        }


def _to_logits(probabilities, task):
    yes = ops.log(ops.maximum(probabilities, 1e-7))
    if task == "categorical":
        return yes
    return yes - ops.log(ops.maximum(1 - probabilities, 1e-7))


def _xlogx(x):
    return x * ops.log(ops.maximum(x, 1e-30))


@keras.saving.register_keras_serializable(package="keras_lkca")
class OfLabels(keras.metrics.Metric):
    """A metric of the labels alone, where a teacher's answers come with them.

    Args:
        metric: Keras metric of labels and outputs, whose name it takes.
        name: Name of the metric; `None` for that.
        dtype: As for `keras.metrics.Metric`.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from keras_lkca.training.distillation import OfLabels
    >>> accuracy = OfLabels(keras.metrics.CategoricalAccuracy(name="accuracy"))
    >>> accuracy.update_state(np.array([[1, 0, 0.1, 0.9]]), np.array([[0.8, 0.2]]))
    >>> float(accuracy.result())
    1.0
    """

    def __init__(self, metric, name: str | None = None, dtype=None):
        metric = keras.metrics.get(metric)
        super().__init__(name=name or metric.name, dtype=dtype)
        self.metric = metric

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Count a batch."""
        y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        labels = y_true[:, : y_pred.shape[-1]]
        self.metric.update_state(labels, y_pred, sample_weight)

    def result(self):
        """Return the metric's value."""
        return self.metric.result()

    def reset_state(self):
        """Begin anew."""
        self.metric.reset_state()

    def get_config(self):
        """Return the arguments."""
        return {**super().get_config(), "metric": keras.metrics.serialize(self.metric)}
