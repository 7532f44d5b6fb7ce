"""What a trained classifier is worth: figures and pictures."""

import numpy as np

from keras_lkca.data.datasets import check_labels
from keras_lkca.models.classifiers import gives_probabilities


def evaluate(model, images, labels, batch_size: int = 128):
    """Classify images and compare with their labels.

    Args:
        model: A classifier that returns logits, or ends with a softmax.
        images: Array of images.
        labels: Integer array `(n,)`.
        batch_size: Images per step.

    Returns:
        A dictionary of `test_loss` (the cross-entropy, without label smoothing),
        `test_accuracy` and, above five classes, `test_top5_accuracy`; and the
        confusion matrix `(classes, classes)`, true classes down, predicted ones
        across.

    Raises:
        ValueError: If there is not a label in [0, classes) for each image.

    Example:

    >>> from keras_lkca import LKCAViT, data
    >>> from keras_lkca.training import evaluate
    >>> model = LKCAViT((8, 8, 1), patch_size=1, embed_dim=8, depth=1)
    >>> scores, confusion = evaluate(model, *data.digits("test"))
    >>> sorted(scores), int(confusion.sum())
    (['test_accuracy', 'test_loss', 'test_top5_accuracy'], 397)
    """
    logits = model.predict(images, batch_size=batch_size, verbose=0)
    logits = np.asarray(logits, "float64")
    if gives_probabilities(model):
        logits = np.log(np.maximum(logits, 1e-30))
    labels = np.asarray(labels)
    count, classes = logits.shape
    check_labels(labels, count, classes)
    peak = logits.max(1)
    own = logits[np.arange(count), labels]
    losses = np.log(np.exp(logits - peak[:, None]).sum(1)) + peak - own
    predicted = logits.argmax(1)
    scores = {
        "test_loss": float(losses.mean()),
        "test_accuracy": float((predicted == labels).mean()),
    }
    if classes > 5:
        # The rank of the true class; of equal logits the others go first.
        others = (logits >= own[:, None]).sum(1) - 1
        scores["test_top5_accuracy"] = float((others < 5).mean())
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (labels, predicted), 1)
    return scores, confusion


def per_class(confusion, names):
    """Return each class's accuracy, `None` where there were no images of it.

    Example:

    >>> import numpy as np
    >>> from keras_lkca.training.evaluation import per_class
    >>> per_class(np.array([[3, 1], [0, 0]]), ("cat", "dog"))
    {'cat': 0.75, 'dog': None}
    """
    counts = confusion.sum(1)
    return {
        name: float(confusion[i, i] / counts[i]) if counts[i] else None
        for i, name in enumerate(names)
    }


def curves(rows, title, best, held_out="validation"):
    """Draw loss and accuracy over the epochs, the best one marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    figure.suptitle(_literal(title))
    epochs = [row["epoch"] for row in rows]
    for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for prefix, name in (("", "training"), ("val_", held_out)):
            if prefix + key not in rows[0]:
                continue
            values = [row[prefix + key] for row in rows]
            axes.plot(epochs, values, marker="o" if len(rows) < 30 else "", ms=3)
            axes.lines[-1].set_label(name)
        axes.axvline(best, color="0.6", lw=1, ls="--", label=f"best epoch, {best}")
        axes.set(xlabel="epoch", ylabel=key)
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
    """Keep matplotlib from reading dollars as mathematics."""
    return text.replace("$", r"\$")
