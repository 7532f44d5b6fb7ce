"""What a trained classifier is worth: figures and pictures."""

import keras
import numpy as np

from keras_lkca.checks import check_positive_int
from keras_lkca.data.batches import as_one_hot
from keras_lkca.data.decoding import ImageFiles
from keras_lkca.data.masks import as_masks
from keras_lkca.files import shown
from keras_lkca.models import classifiers
from keras_lkca.models.classifiers import (
    as_images,
    check_shapes,
    from_logits,
    gives_probabilities,
    outputs_of,
    probabilities,
    task_of,
    warn_if_scaled,
)
from keras_lkca.training.segmentation import compare_masks, intersection_over_union


def evaluate(model, images, labels, batch_size: int = 128, mirror: bool = False):
    """Classify images and compare with their labels.

    Args:
        model: A classifier that returns logits, or ends with a softmax or a sigmoid;
            or a segmenter, as `keras_lkca.LKCASegmenter`.
        images: Array of images in [0, 255], `(n, height, width, channels)`; of a
            classifier also `keras_lkca.data.ImageFiles`, decoded some at a time.
        labels: Integer array `(n,)`, or shares of the classes `(n, classes)` that sum
            to 1, of which the largest is the true class; for one column `(n,)` or
            `(n, 1)` of 0 and 1; for several labels an image `(n, classes)` of 0 and 1;
            for a segmenter masks, integers `(n, height, width)`, -1 or 255 for pixels
            to ignore.
        batch_size: Images per step.
        mirror: Whether to take the mean of the probabilities, not of the logits, of an
            image and of its mirror image. Not for images such as digits, which
            mirrored are of no class or another: see `flip` of
            `keras_lkca.data.Dataset`.

    Returns:
        A dictionary of `test_loss` (the cross-entropy, without label smoothing),
        `test_accuracy`, `test_ece` and, above five classes, `test_top5_accuracy`; and
        the confusion matrix `(classes, classes)`, true classes down, predicted ones
        across. `test_ece` is the expected calibration error in 15 bins: how far the
        model's confidence, the probability of the predicted class, lies from the share
        of right predictions, from 0, the best, to 1. For several labels an image the
        accuracy is the share of all answers that are right, `test_auc` the mean area
        under the labels' ROC curves, there is a matrix `(classes, 2, 2)` of no and yes
        for each label, and no `test_ece`. Of a segmenter all is counted in pixels, and
        there is `test_mean_iou`, the mean over the classes of the intersection of
        truth and prediction over their union, instead of the calibration error.

    Raises:
        ValueError: If the images or the labels are not as above.

    Example:

    >>> from keras_lkca import LKCAViT, data
    >>> from keras_lkca.training import evaluate
    >>> model = LKCAViT((8, 8, 1), patch_size=1, embed_dim=8, depth=1)
    >>> scores, confusion = evaluate(model, *data.digits("test"))
    >>> sorted(scores), int(confusion.sum())
    (['test_accuracy', 'test_ece', 'test_loss', 'test_top5_accuracy'], 397)
    """
    check_positive_int("batch_size", batch_size)
    if classifiers.is_segmenter(model):
        _, classes = check_shapes(model, pixels=True)
        images = as_images(model, images)
        warn_if_scaled(model, images)
        masks = as_masks(labels, images.shape[:3], classes, "labels")
        if (masks < 0).all():
            raise ValueError(
                "`labels` must have a pixel that counts. "
                "Received: masks of which all are to be ignored"
            )
        return compare_masks(model, images, masks, min(batch_size, 16), mirror)
    # A classifier of vectors has nothing that images must be.
    if len(getattr(model, "input_shape", None) or ()) != 2:
        check_shapes(model)
        if isinstance(images, ImageFiles):
            as_images(model, np.empty((1, *images.shape[1:]), "uint8"))  # as a check
        else:
            images = as_images(model, images)
            warn_if_scaled(model, images)
    task = task_with(model, labels)

    def outputs(images):
        if mirror:
            return probabilities(model, images, batch_size, mirror, task)
        return outputs_of(model, images, batch_size)

    if isinstance(images, ImageFiles):
        true_shares(labels, len(images), model.output_shape[-1], task)
        some = 8 * batch_size
        parts = range(0, len(images), some)
        known = np.concatenate([outputs(images[i : i + some]) for i in parts])
    else:
        known = outputs(images)
    logits = not mirror and not gives_probabilities(model)
    return compare(known, labels, task, logits)


def task_with(model, labels):
    """Return what a classifier decides, see `task_of`, where its labels may tell.

    Logits on several columns are of several labels an image where the labels are: rows
    of 0 and 1 that do not all sum to 1.

    Example:

    >>> import numpy as np
    >>> from keras_lkca import LKCAViT
    >>> from keras_lkca.training.evaluation import task_with
    >>> model = LKCAViT((8, 8, 1), num_classes=3, patch_size=4, embed_dim=8, depth=1)
    >>> task_with(model, np.array([[1, 0, 1], [0, 1, 0]]))
    'multilabel'
    """
    task, labels = task_of(model), np.asarray(labels)
    if task != "categorical" or gives_probabilities(model) or labels.ndim != 2:
        return task
    several = labels.shape[1] > 1 and (labels.sum(1) != 1).any()
    return "multilabel" if several and np.isin(labels, (0, 1)).all() else task


def compare(outputs, labels, task, logits):
    """Do what `evaluate` does for outputs `(n, columns)`, logits or probabilities."""
    labels = true_shares(labels, *outputs.shape, task)
    if task == "categorical":
        return _one_of_many(outputs, labels, not logits)
    if logits:
        outputs = from_logits(outputs, task)
    yes, no = (np.log(np.maximum(x, 1e-30)) for x in (outputs, 1 - outputs))
    predicted, true = outputs > 0.5, labels > 0.5
    scores = {
        "test_loss": float(-(labels * yes + (1 - labels) * no).mean()),
        "test_accuracy": float((predicted == true).mean()),
    }
    confusion = np.zeros((labels.shape[1], 2, 2), int)
    columns = np.broadcast_to(np.arange(labels.shape[1]), labels.shape)
    np.add.at(confusion, (columns, true.astype(int), predicted.astype(int)), 1)
    if task == "binary":
        right = (predicted == true)[:, 0]
        scores["test_ece"] = calibration_error(
            np.maximum(outputs, 1 - outputs)[:, 0], right
        )
        return scores, confusion[0]
    auc = keras.metrics.AUC(multi_label=True, num_labels=labels.shape[1])
    auc.update_state(true, outputs)
    scores["test_auc"] = float(keras.ops.convert_to_numpy(auc.result()))
    return scores, confusion


def true_shares(labels, count, columns, task):
    """Return what each image truly has of each class, `(count, columns)`.

    Raises:
        ValueError: If the labels are not those of the task.

    Example:

    >>> from keras_lkca.training.evaluation import true_shares
    >>> true_shares([1, 0], 2, 3, "categorical").tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    shares = as_one_hot(labels, count, columns)
    if task == "categorical":
        sums = shares.sum(1)
        if not np.allclose(sums, 1, atol=1e-3) or not (shares >= 0).all():
            raise ValueError(
                "`labels` must be one class an image, or shares of the classes that "
                f"sum to 1. Received: sums of {sums.min():.3g} to {sums.max():.3g}"
            )
    return shares


def _one_of_many(logits, shares, probabilities):
    if probabilities:
        logits = np.log(np.maximum(logits, 1e-30))
    count, classes = logits.shape
    labels = shares.argmax(1)
    peak = logits.max(1)
    own = logits[np.arange(count), labels]
    # `own` where an image has one class. A logit may be infinite where there is none.
    zeros = np.zeros_like(logits)
    wanted = np.multiply(shares, logits, out=zeros, where=shares > 0).sum(1)
    losses = np.log(np.exp(logits - peak[:, None]).sum(1)) + peak - wanted
    predicted = logits.argmax(1)
    scores = {
        "test_loss": float(losses.mean()),
        "test_accuracy": float((predicted == labels).mean()),
    }
    confidence = from_logits(logits, "categorical").max(1)
    scores["test_ece"] = calibration_error(confidence, predicted == labels)
    if classes > 5:
        # The rank of the true class; of equal logits the others go first.
        others = (logits >= own[:, None]).sum(1) - 1
        scores["test_top5_accuracy"] = float((others < 5).mean())
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (labels, predicted), 1)
    return scores, confusion


def calibration_error(confidence, right, bins=15):
    """Return the expected calibration error, see `evaluate`.

    Args:
        confidence: Array `(n,)` in [0, 1].
        right: Array `(n,)`, whether each prediction is right.
        bins: Positive integer, bins of equal width.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.training.evaluation import calibration_error
    >>> calibration_error(np.full(4, 0.9), np.array([1, 0, 1, 1])).__round__(6)
    0.15

    References:
        Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599.
    """
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(index, confidence - right, bins)
    return float(np.abs(gaps).sum() / len(confidence))


def per_class(confusion, names):
    """Return each class's accuracy, `None` where there were no images of it.

    Of several labels an image it is the share of right answers about each.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.training.evaluation import per_class
    >>> per_class(np.array([[3, 1], [0, 0]]), ("cat", "dog"))
    {'cat': 0.75, 'dog': None}
    """
    names = _told_apart(names)
    if confusion.ndim == 3:
        right = confusion[:, 0, 0] + confusion[:, 1, 1]
        shares = right / confusion.sum((1, 2))
        return dict(zip(names, map(float, shares), strict=True))
    counts = confusion.sum(1)
    return {
        name: float(confusion[i, i] / counts[i]) if counts[i] else None
        for i, name in enumerate(names)
    }


def per_class_iou(confusion, names):
    """Return each class's intersection over union, `None` where there is none.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.training.evaluation import per_class_iou
    >>> per_class_iou(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]), ("a", "b", "b"))
    {'a': 0.75, 'b (1)': 0.8, 'b (2)': None}
    """
    values = intersection_over_union(confusion)
    return {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(_told_apart(names), values, strict=True)
    }


def _told_apart(names):
    """Return names, of which one of two alike would take the other's place."""
    return [
        f"{name} ({index})" if list(names).count(name) > 1 else name
        for index, name in enumerate(names)
    ]


def curves(rows, title, best, held_out="validation"):
    """Draw loss and accuracy, or mean IoU, over the epochs, the best one marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    figure.suptitle(_literal(title))
    epochs = [row["epoch"] for row in rows]
    keys = "loss", "mean_iou" if "mean_iou" in rows[0] else "accuracy"
    for axes, key in zip(figure.subplots(1, 2), keys, strict=True):
        for prefix, name in (("", "training"), ("val_", held_out)):
            if prefix + key not in rows[0]:
                continue
            values = [row[prefix + key] for row in rows]
            axes.plot(epochs, values, marker="o" if len(rows) < 30 else "", ms=3)
            axes.lines[-1].set_label(name)
        axes.axvline(best, color="0.6", lw=1, ls="--", label=f"best epoch, {best}")
        axes.set(xlabel="epoch", ylabel=key.replace("mean_iou", "mean IoU"))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    axes.legend()
    return figure


def confusion_figure(confusion, names, title):
    """Draw the confusion matrix, each row as shares of its class."""
    from matplotlib.figure import Figure

    count = len(names)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    size = min(max(4.5, 0.45 * count), 11)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="viridis", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    axes.set(title=_literal(title), xlabel="predicted class", ylabel="true class")
    if count <= 30:
        names = [_literal(name) for name in names]
        axes.set_xticks(range(count), names, rotation=90)
        axes.set_yticks(range(count), names)
    if count <= 15:
        for i, j in np.argwhere(confusion):
            color = "black" if shares[i, j] > 0.6 else "white"
            axes.text(
                j, i, confusion[i, j], ha="center", va="center", color=color, size=8
            )
    return figure


def _literal(text):
    """Keep matplotlib from reading dollars as mathematics, and from no UTF-8."""
    return shown(text).replace("$", r"\$")
