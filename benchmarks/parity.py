"""Compare the presets with the authors' PyTorch models, random weights carried over.

git clone https://github.com/CatworldLee/LKCA-MiniViTsTrainer-Pytorch-CIFAR-TinyImageNet
KERAS_BACKEND=jax python benchmarks/parity.py --authors LKCA-MiniViTsTrainer...

Needs torch and einops under any backend. The clone is only imported; nothing of it is
copied. Writes results/parity-<backend>.json and .md, a row for each case: a preset, one
of the authors' two views of LKCA (or their ViT), and an image, patch and class count.
"""

import argparse
import importlib
import os
import pathlib
import subprocess
import sys
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Beside an installed package, the one this file belongs to.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import keras
import numpy as np
import torch
from harness import conditions, write

from keras_lkca import LKCAViT, ViT
from keras_lkca.models import PRESETS

SIZES = ((64, 8, 200), (32, 4, 10), (32, 4, 100))  # image, patch, classes
# The authors' modules and classes: view of the operator -> where it is.
VIEWS = {
    "convolution": ("models.largevit_cnn", "Large_ViT_cnn"),
    "attention": ("models.largevit_vit", "Large_ViT_vit"),
    "softmax": ("models.vit", "ViT"),
}


def authors_model(view, row, image, patch, classes):
    """Return the authors' model of a preset's size, with random weights throughout."""
    module, name = VIEWS[view]
    model = getattr(importlib.import_module(module), name)(
        img_size=image,
        patch_size=patch,
        num_classes=classes,
        dim=row.arguments["embed_dim"],
        depth=row.arguments["depth"],
        heads=row.num_heads,
        dim_head=row.arguments["embed_dim"] // row.num_heads,
        mlp_dim_ratio=row.arguments["mlp_ratio"],
    ).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("dynamicqk"):  # else zero
                weight.normal_(std=1 / weight.shape[-1])
            elif weight.ndim == 1:  # biases, and LayerNorm's scale and offset
                weight.add_(torch.randn_like(weight) * 0.1)
    return model


def carried_over(path, weights):
    """Return the array that a Keras variable takes from the authors' weights.

    Args:
        path: The variable's path, such as `"block_0_lkca/value/kernel"`.
        weights: The authors' weights by name, as NumPy arrays.
    """
    layer, *part = path.split("/")
    part = "/".join(part)
    outer = {"patches": "to_patch_embedding.1", "norm": "mlp_head.0"}
    outer["classifier"] = "mlp_head.1"
    if layer == "positions":
        return weights["pos_embedding"][0]
    if layer == "class_token":
        return weights["cls_token"]
    if layer in outer:
        name = outer[layer]
    else:
        _, number, inner = layer.split("_", 2)
        name = (
            f"transformer.layers.{number}."
            + {
                "mixer_norm": "0.norm",
                "lkca": "0.fn",
                "attention": "0.fn",
                "mlp_norm": "1.norm",
                "mlp_expand": "1.fn.net.0",
                "mlp_project": "1.fn.net.3",
            }[inner]
        )
        if inner == "lkca" and part == "kernel":
            return weights[f"{name}.dynamicqk"][0, 0, ..., None]
        if inner in ("lkca", "attention"):
            child, part = part.split("/")
            name += {"value": ".to_v", "query_key_value": ".to_qkv"}.get(
                child, ".to_out.0"
            )
    kind = part.split("/")[-1]
    array = weights[f"{name}.{'bias' if kind in ('bias', 'beta') else 'weight'}"]
    return array.T if kind == "kernel" else array


def difference(preset, view, image, patch, classes):
    """Return the largest difference of the logits over the largest logit."""
    row = PRESETS[preset]
    theirs = authors_model(view, row, image, patch, classes)
    weights = {name: w.detach().numpy() for name, w in theirs.named_parameters()}
    cls = ViT if view == "softmax" else LKCAViT
    ours = cls.from_preset(
        preset, input_shape=(image, image, 3), num_classes=classes, patch_size=patch
    )
    for variable in ours.weights:
        array = carried_over(variable.path, weights)
        variable.assign(np.reshape(array, variable.shape))
    images = np.random.default_rng(0).integers(0, 256, (4, image, image, 3), "uint8")
    scaled = (images.astype("float32") / 255 - 0.5) / 0.5  # as our default does
    # Their attention view asks for a GPU by name.
    with torch.no_grad(), mock.patch.object(torch.Tensor, "to", lambda x, *_: x):
        expected = theirs(torch.from_numpy(scaled).permute(0, 3, 1, 2)).numpy()
    got = ours.predict_on_batch(images)
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def cases():
    """Yield every preset in each of its views and sizes."""
    for preset, row in PRESETS.items():
        lkca = row.model == "LKCAViT"
        for view in ("convolution", "attention") if lkca else ("softmax",):
            for size in SIZES:
                yield preset, view, *size


def main():
    """Compare all cases and write the results down."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--authors", type=pathlib.Path, required=True, help="a clone")
    parser.add_argument("--tolerance", type=float, default=2e-6)
    parser.add_argument("--output", help="folder, by default results/")
    args = parser.parse_args()
    if not (args.authors / "models" / "largevit_cnn.py").exists():
        parser.error(
            "--authors must be a clone of the authors' repository, with "
            f"models/largevit_cnn.py in it. Received: --authors {args.authors}"
        )
    # Before this folder, which has a models.py too.
    sys.path.insert(0, str(args.authors.resolve()))
    torch.manual_seed(0)
    keras.utils.set_random_seed(0)
    rows = []
    for preset, view, image, patch, classes in cases():
        found = difference(preset, view, image, patch, classes)
        rows.append(
            {"preset": preset, "view": view, "image": image, "patch": patch}
            | {"classes": classes, "relative_difference": found}
        )
        print(f"{preset:15} {view:11} {image} {patch} {classes:3} {found:.1e}")
        keras.utils.clear_session()
    largest = max(row["relative_difference"] for row in rows)
    print(f"{len(rows)} cases, the largest relative difference is {largest:.1e}")
    git = ["git", "-C", str(args.authors), "rev-parse", "HEAD"]
    done = subprocess.run(git, capture_output=True, text=True)
    where = conditions(
        torch=torch.__version__, authors_commit=done.stdout.strip() or "unknown"
    )
    lines = ["# parity", "", *(f"- {k}: {v}" for k, v in where.items()), ""]
    lines += [
        "Logits of four random images: the largest difference over the largest "
        f"absolute value, float32. {len(rows)} cases, at most {largest:.1e}.",
        "",
        "| preset | authors' view | image | patch | classes | relative difference |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        "| {preset} | {view} | {image} | {patch} | {classes} | "
        "{relative_difference:.1e} |".format(**row)
        for row in rows
    ]
    record = {"conditions": where, "largest": largest, "rows": rows}
    name = f"parity-{keras.config.backend()}"
    write(name, record, "\n".join(lines) + "\n", args.output)
    if largest > args.tolerance:
        sys.exit(f"The largest difference is above --tolerance {args.tolerance:.0e}")


if __name__ == "__main__":
    main()
