"""A class for every pixel: the loss, what it is worth, and how that looks."""

import keras
import numpy as np
from keras import ops

from keras_lkca.models import classifiers


@keras.saving.register_keras_serializable(package="keras_lkca")
class SegmentationLoss(keras.losses.Loss):
    """Cross-entropy of the pixels that count, and the Dice loss if asked.

    Every pixel of the batch that is not to be ignored counts alike, or by its class.
    The Dice loss is `1 - (2 sum(p y) + 1) / (sum(p) + sum(y) + 1)` of each class that
    the batch has, on average: it counts a rare class as much as a common one.

    Args:
        from_logits: Whether the model returns logits.
        label_smoothing: Share of each label that is spread over all classes.
        dice_weight: Number by which the Dice loss is multiplied, 0 for none.
        class_weight: Sequence of a number per class, what its pixels count in the
            cross-entropy; `None` for all alike.
        name: Name of the loss.
        reduction: As for `keras.losses.Loss`.
        dtype: As for `keras.losses.Loss`.

    Call arguments:
        y_true: Masks, integers `(batch, height, width)`, -1 for pixels to ignore.
        y_pred: `(batch, height, width, classes)`.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.training.segmentation import SegmentationLoss
    >>> masks = np.array([[[0, 1, -1]]])
    >>> round(float(SegmentationLoss()(masks, np.zeros((1, 1, 3, 2)))), 3)
    0.693

    References:
        Milletari et al., "V-Net", arXiv 1606.04797, section 3, for the Dice loss.
    """

    def __init__(
        self,
        from_logits: bool = True,
        label_smoothing: float = 0.0,
        dice_weight: float = 0.0,
        class_weight=None,
        name: str = "segmentation",
        reduction: str = "sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.from_logits, self.label_smoothing = from_logits, label_smoothing
        self.dice_weight = dice_weight
        self.class_weight = None if class_weight is None else list(class_weight)

    def call(self, y_true, y_pred):
        """Return the loss of each image, whose mean is that of the pixels."""
        classes = y_pred.shape[-1]
        y_true = ops.cast(y_true, "int32")
        counted = ops.cast(y_true >= 0, y_pred.dtype)
        shares = ops.one_hot(ops.maximum(y_true, 0), classes, dtype=y_pred.dtype)
        if self.from_logits:
            logs = ops.log_softmax(y_pred, axis=-1)
        else:
            logs = ops.log(ops.maximum(y_pred, 1e-7))
        wanted = (1 - self.label_smoothing) * shares + self.label_smoothing / classes
        weights = counted
        if self.class_weight is not None:
            own = ops.convert_to_tensor(self.class_weight, dtype=y_pred.dtype)
            weights = counted * ops.sum(shares * own, axis=-1)
        losses = ops.sum(-ops.sum(wanted * logs, axis=-1) * weights, axis=(1, 2))
        images = ops.cast(ops.shape(y_pred)[0], y_pred.dtype)
        losses = losses * images / ops.maximum(ops.sum(weights), 1e-6)
        if self.dice_weight:
            counted = ops.expand_dims(counted, -1)
            chances, shares = ops.exp(logs) * counted, shares * counted
            sizes = ops.sum(chances + shares, axis=(0, 1, 2))
            common = ops.sum(chances * shares, axis=(0, 1, 2))
            there = ops.cast(ops.sum(shares, axis=(0, 1, 2)) > 0, y_pred.dtype)
            dice = there * (1 - (2 * common + 1) / (sizes + 1))
            dice = ops.sum(dice) / ops.maximum(ops.sum(there), 1)
            losses = losses + self.dice_weight * dice
        return losses

    def get_config(self):
        """Return the arguments."""
        return {
            **super().get_config(),
            "from_logits": self.from_logits,
            "label_smoothing": self.label_smoothing,
            "dice_weight": self.dice_weight,
            "class_weight": self.class_weight,
        }


@keras.saving.register_keras_serializable(package="keras_lkca")
class PixelAccuracy(keras.metrics.Mean):
    """Share of the pixels that get their class, of those that count.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.training.segmentation import PixelAccuracy
    >>> accuracy = PixelAccuracy()
    >>> accuracy.update_state(np.array([[[0, 1, -1]]]), np.array([[[[2, 1]] * 3]]))
    >>> float(accuracy.result())
    0.5
    """

    def __init__(self, name: str = "accuracy", dtype=None):
        super().__init__(name=name, dtype=dtype)

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Count a batch of masks and outputs; `sample_weight` is not used."""
        y_true = ops.cast(y_true, "int32")
        right = ops.cast(ops.argmax(y_pred, axis=-1), "int32") == y_true
        super().update_state(right, sample_weight=ops.cast(y_true >= 0, "float32"))


@keras.saving.register_keras_serializable(package="keras_lkca")
class MeanIoU(keras.metrics.Metric):
    """Mean over the classes of intersection over union, of the pixels that count.

    As `keras.metrics.MeanIoU`, which under torch counts the pixels one by one: that
    takes two seconds for four images of 240 x 180.

    Args:
        num_classes: Number of classes.
        name: Name of the metric.
        dtype: As for `keras.metrics.Metric`.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.training.segmentation import MeanIoU
    >>> metric = MeanIoU(2)
    >>> outputs = np.array([[[[2, 1], [2, 1], [0, 1], [0, 1]]]])
    >>> metric.update_state(np.array([[[0, 0, 1, -1]]]), outputs)
    >>> float(metric.result())
    1.0
    """

    def __init__(self, num_classes: int, name: str = "mean_iou", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.num_classes = num_classes
        self.confusion = self.add_variable(
            (num_classes, num_classes), initializer="zeros", name="confusion"
        )

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Count a batch of masks and outputs; `sample_weight` is not used."""
        kinds = self.num_classes
        y_true = ops.reshape(ops.cast(y_true, "int32"), (-1,))
        guess = ops.reshape(ops.argmax(y_pred, axis=-1), (-1,))
        counted = ops.cast(y_true >= 0, "float32")[:, None]
        true = ops.one_hot(ops.maximum(y_true, 0), kinds, dtype="float32") * counted
        found = ops.matmul(
            ops.transpose(true), ops.one_hot(guess, kinds, dtype="float32")
        )
        self.confusion.assign_add(ops.cast(found, self.confusion.dtype))

    def result(self):
        """Return the mean over the classes that are there or predicted."""
        confusion = ops.convert_to_tensor(self.confusion)
        common = ops.diagonal(confusion)
        union = ops.sum(confusion, axis=0) + ops.sum(confusion, axis=1) - common
        there = ops.cast(union > 0, confusion.dtype)
        return ops.sum(common / ops.maximum(union, 1)) / ops.maximum(ops.sum(there), 1)

    def get_config(self):
        """Return the arguments."""
        return {**super().get_config(), "num_classes": self.num_classes}


def balanced(masks, classes):
    """Return a weight for each class by which all of them count alike.

    `n / (classes * count)`, of the classes that have pixels.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.training.segmentation import balanced
    >>> balanced(np.array([0, 0, 0, 1, -1]), 2)
    [0.6666666666666666, 2.0]
    """
    counts = np.bincount(masks[masks >= 0].reshape(-1), minlength=classes)
    wanted = counts.sum() / max(np.count_nonzero(counts), 1)
    return [float(wanted / count) if count else 1.0 for count in counts]


def compare_masks(model, images, masks, batch_size, mirror=False):
    """Classify every pixel and compare with masks.

    Args:
        model: A segmenter.
        images: Array of images.
        masks: Integer array `(n, height, width)`, -1 for pixels to ignore.
        batch_size: Images per step.
        mirror: Whether to average with the mirror images' answers.

    Returns:
        What `keras_lkca.training.evaluate` does: figures, and the confusion matrix of
        the pixels.
    """
    classes = model.output_shape[-1]
    confusion, loss = np.zeros((classes, classes), "int64"), 0.0
    for start in range(0, len(images), batch_size):
        some = images[start : start + batch_size]
        true = masks[start : start + batch_size]
        chances = classifiers.probabilities(model, some, batch_size, mirror)
        counted = true >= 0
        true, chances = true[counted].astype(int), chances[counted]
        own = chances[np.arange(len(true)), true]
        loss -= np.log(np.maximum(own, 1e-30)).sum()
        pairs = true * classes + chances.argmax(-1)
        confusion += np.bincount(pairs, minlength=classes**2).reshape(confusion.shape)
    count = max(confusion.sum(), 1)
    scores = {
        "test_loss": float(loss / count),
        "test_accuracy": float(np.trace(confusion) / count),
        "test_mean_iou": float(np.nanmean(intersection_over_union(confusion))),
    }
    return scores, confusion


def intersection_over_union(confusion):
    """Return the IoU of each class, NaN of those that are neither there nor predicted.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.training.segmentation import intersection_over_union
    >>> intersection_over_union(np.array([[3, 1], [0, 4]])).tolist()
    [0.75, 0.8]
    """
    common = np.diag(confusion).astype("float64")
    union = confusion.sum(0) + confusion.sum(1) - common
    return np.divide(common, union, out=np.full(len(union), np.nan), where=union > 0)


def side_by_side(images, masks, predicted, colors, names, title):
    """Draw images, what is true of them and what was predicted, a row for each.

    Args:
        images: uint8 or float array `(n, height, width, channels)` in [0, 255].
        masks: Integers `(n, height, width)`, -1 for pixels to ignore, drawn grey.
        predicted: Integers `(n, height, width)`.
        colors: uint8 array `(classes, 3)`.
        names: The classes' names.
        title: Title.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    count, (height, width) = len(images), masks.shape[1:]
    size = 2.6 * height / width
    figure = Figure(figsize=(8.4, count * size + 1.1), layout="constrained")
    figure.suptitle(title.replace("$", r"\$"))
    palette = np.vstack([colors, [[160, 160, 160]]]).astype("uint8")  # -1 is the last
    shown = images[..., :1] if images.shape[-1] not in (1, 3) else images
    axes = figure.subplots(count, 3, squeeze=False)
    for row, image, mask, guess in zip(axes, shown, masks, predicted, strict=True):
        image = np.clip(image, 0, 255).astype("uint8")
        parts = ((np.repeat(image, 3, -1) if image.shape[-1] == 1 else image),)
        for axis, part in zip(
            row, (*parts, palette[mask], palette[guess]), strict=True
        ):
            axis.imshow(part, interpolation="nearest")
            axis.set_axis_off()
    for axis, text in zip(axes[0], ("image", "true", "predicted"), strict=True):
        axis.set_title(text, size=10)
    there = [
        i for i in range(len(names)) if (masks == i).any() or (predicted == i).any()
    ]
    handles = [
        Patch(color=colors[i] / 255, label=names[i].replace("$", r"\$")) for i in there
    ]
    handles.append(Patch(color=palette[-1] / 255, label="ignored"))
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8)
    return figure
