"""What a run writes when it is over."""

import importlib.util

from keras_lkca.data.batches import batchwise
from keras_lkca.files import atomic, shown
from keras_lkca.models.classifiers import (
    gives_probabilities,
    outputs_of,
    probabilities,
)
from keras_lkca.models.colors import colors_of
from keras_lkca.training import callbacks, evaluation, segmentation, temperature
from keras_lkca.training.state import load_weights, write_json


def finish(model, config, folder, rows, splits, names, task, frozen):
    """Read the test images, for the best and the last epoch, whose weights stay."""
    validation, test, on_test = splits
    arguments, best = config["arguments"], callbacks.best_epoch(rows)
    batch_size = arguments["recipe"]["batch_size"]
    results, scores, samples = {"last": {}, "best": {}}, {}, None
    for name, epoch in (("best", best), ("last", len(rows))):
        results[name]["epoch"] = epoch
        # Into the model in hand: its own layers may be registered nowhere.
        load_weights(model, folder / f"{name}.keras")
        if epoch <= frozen:
            # So far with the frozen model's flags and the optimizer of its classifier.
            if not model.optimizer.built:
                model.optimizer.build(model.trainable_variables)
            callbacks.keep(model, folder / f"{name}.keras", epoch)
        if epoch not in scores:
            figures, confusion, known = {}, None, None
            if test is not None and task == "segmentation":
                figures, confusion = segmentation.compare_masks(
                    model, *test, batch_size
                )
            elif test is not None:
                tested = task or evaluation.task_with(model, test[1])
                logits = not gives_probabilities(model)
                images = batchwise(test[0], batch_size)
                outputs = outputs_of(model, images, batch_size)
                known = outputs, test[1]
                figures, confusion = evaluation.compare(*known, tested, logits)
            calibrated = task not in (None, "segmentation")
            if validation is not None and not on_test and calibrated:
                options = validation, known, batch_size, task
                figures = figures | temperature.report(model, *options)
            scores[epoch] = figures, confusion
        results[name] |= scores[epoch][0]
        if task == "segmentation" and samples is None:  # the best model's
            some = [part[:4] for part in test or validation or ((), ())]
            if len(some[0]):
                guess = probabilities(model, some[0], batch_size)
                samples = *some, guess.argmax(-1)
        if not on_test and "val_accuracy" in rows[0]:
            results[name]["validation_accuracy"] = rows[epoch - 1]["val_accuracy"]
        if not on_test and "val_mean_iou" in rows[0]:
            results[name]["validation_mean_iou"] = rows[epoch - 1]["val_mean_iou"]
    chosen = "validation images" if "val_loss" in rows[0] else "nothing: the last one"
    seconds = sum(row["seconds"] for row in rows)
    metrics = {
        **{
            key: arguments[key]
            for key in (
                "dataset",
                "model",
                "preset",
                "start_from",
                "teacher",
                "fraction",
            )
            if arguments.get(key) is not None
        },
        **{key: config[key] for key in ("preset", "name") if key in config},
        "seed": arguments["seed"],
        **{key: config[key] for key in ("parameters", "images", "backend")},
        "epochs": len(rows),
        "stopped_early": config["stopped_early"],
        "best_epoch_chosen_on": "the test images, which flatters"
        if on_test
        else chosen,
        **results,
        "fit_seconds": round(seconds, 1),
        "versions": config["versions"],
    }
    if config["images"]["train"]:
        seen = len(rows) * config["steps_per_epoch"] * batch_size
        metrics["images_per_second"] = round(seen / seconds)
    confusion = scores[best][1]
    if test is not None:
        metrics["best_per_class_accuracy"] = evaluation.per_class(confusion, names)
    if test is not None and task == "segmentation":
        metrics["best_per_class_iou"] = evaluation.per_class_iou(confusion, names)
    draw(config, folder, rows, best, on_test, names, confusion)
    if samples is not None and importlib.util.find_spec("matplotlib") is not None:
        colors = colors_of(model)
        title = config.get("name") or "segmentation"
        with atomic(folder / "samples.png") as path:
            figure = segmentation.side_by_side(*samples, colors, names, title)
            figure.savefig(path, dpi=120)
    write_json(folder / "metrics.json", metrics)
    reached = ""
    if test is not None:
        key = "test_mean_iou" if task == "segmentation" else "test_accuracy"
        reached = (
            f"{key.replace('_', ' ').replace('iou', 'IoU')} {metrics['last'][key]:.2%} "
            f"after the last epoch, {metrics['best'][key]:.2%} after the best, {best}; "
        )
    print(f"{reached}wrote {shown(folder)}")
    return metrics


def draw(config, folder, rows, best, on_test, names, confusion):
    """Draw the curves and the confusion matrix, if matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        print('no pictures: they need matplotlib, pip install "keras-lkca[plot]"')
        return
    title = config.get("name") or config["preset"]
    with atomic(folder / "curves.png") as path:
        held_out = "test" if on_test else "validation"
        figure = evaluation.curves(rows, title, best, held_out)
        figure.savefig(path, dpi=120)
    if confusion is not None and confusion.ndim == 2:
        with atomic(folder / "confusion.png") as path:
            figure = evaluation.confusion_figure(confusion, names, title)
            figure.savefig(path, dpi=120)
