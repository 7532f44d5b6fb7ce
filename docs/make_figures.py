"""Draw the site's figures: `make figures`.

python docs/make_figures.py  # the picture of the home page alone, needs no model
python docs/make_figures.py --model lkca.keras --beside vit.keras --data-dir ~/data
"""

import argparse
import json
import pathlib

import keras
import matplotlib
import matplotlib.patches
import numpy as np

from keras_lkca import data, interpret
from keras_lkca.files import atomic
from keras_lkca.ops import attention_matrix

STYLE = {
    "svg.fonttype": "none",  # letters stay letters, and the files small
    "svg.hashsalt": "keras_lkca",
    "font.family": "sans-serif",
    "font.size": 9,
    "image.composite_image": False,
    "savefig.facecolor": "white",
}


def named(model):
    """Return the model with CIFAR-100's class names, if it has none."""
    names = model.class_names or data.describe("cifar100").class_names
    config = {**model.get_config(), "class_names": names}
    copy = type(model).from_config(config)
    copy.set_weights(model.get_weights())
    return copy


def both_views(size=6):
    """Return the home page's picture: one kernel, as a convolution and as attention.

    The kernel is made up, so that it is easy to follow by eye: bright above, dark
    below, fading with the distance.
    """
    down, right = interpret.offsets((2 * size - 1, 2 * size - 1))
    kernel = np.exp(-(down**2 + right**2) / 9) * (0.55 - 0.45 * down + 0.25 * right)
    kernel /= np.abs(kernel).max()
    matrix = keras.ops.convert_to_numpy(
        attention_matrix(kernel[..., None].astype("float32"), size, size)
    )[0]
    style = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1, "edgecolors": "#ffffff"}
    queries = {(1, 1): "#c2410c", (4, 3): "#15803d"}
    figure = matplotlib.figure.Figure(figsize=(9.6, 4.0))
    figure.patch.set_facecolor("white")

    def panel(place, values, title, width):
        axes = figure.add_axes(place)
        # Without lines as an image, which makes a smaller file.
        axes.pcolormesh(values, lw=width, rasterized=width == 0, **style)
        axes.set(aspect="equal", xticks=[], yticks=[])
        axes.invert_yaxis()
        axes.spines[:].set_visible(False)
        axes.set_title(title, fontsize=10.5, pad=8)
        return axes

    def frame(axes, row, column, height, width, color):
        corner = (column, row)
        axes.add_patch(
            matplotlib.patches.Rectangle(
                corner, width, height, fill=False, ec=color, lw=2.2, clip_on=False
            )
        )

    axes = panel((0.02, 0.19, 0.27, 0.62), kernel, "", 0.5)
    axes.text(size - 0.5, size - 0.5, "0", ha="center", va="center", fontsize=8)
    for (i, j), color in queries.items():
        frame(axes, size - 1 - i, size - 1 - j, size, size, color)
    figure.text(0.155, 0.93, "one learned kernel", ha="center", fontsize=12, weight=600)
    figure.text(0.155, 0.86, "a weight per relative position", ha="center")
    figure.text(0.155, 0.09, f"{2 * size - 1} x {2 * size - 1} weights", ha="center")

    figure.text(0.47, 0.93, "as a convolution", ha="center", fontsize=12, weight=600)
    figure.text(0.47, 0.86, "centred on a token, it weighs the others", ha="center")
    windows = zip(queries.items(), (0.34, 0.49), strict=True)
    for ((i, j), color), left in windows:
        window = matrix[i * size + j].reshape(size, size)
        axes = panel((left, 0.3, 0.13, 0.4), window, "", 0.5)
        frame(axes, 0, 0, size, size, color)
        axes.plot(j + 0.5, i + 0.5, "o", color="black", ms=4)
        figure.text(left + 0.065, 0.22, f"token ({i}, {j})", ha="center", color=color)
    figure.text(0.48, 0.09, f"on a grid of {size} x {size} tokens", ha="center")

    axes = panel((0.68, 0.19, 0.27, 0.62), matrix, "", 0)
    for (i, j), color in queries.items():
        row = i * size + j
        frame(axes, row, 0, 1, size * size, color)
        axes.text(size**2 + 0.8, row + 0.5, f"({i}, {j})", va="center", color=color)
    figure.text(0.815, 0.93, "as attention", ha="center", fontsize=12, weight=600)
    figure.text(0.815, 0.86, "written out, a row per token", ha="center")
    figure.text(
        0.815, 0.09, f"{size**2} x {size**2} matrix, applied at once", ha="center"
    )
    for x in (0.312, 0.655):
        figure.text(x, 0.5, "=", ha="center", va="center", fontsize=20, color="#555555")
    return figure


def draw(figures, folder):
    """Write figures as SVG files, by their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        with atomic(folder / f"{name}.svg") as path:
            figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
        print(f"wrote {folder / name}.svg")


def main():
    """Draw them all, and write down what they show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a .keras file, LKCA")
    parser.add_argument("--beside", help="a .keras file, ViT; with --model")
    parser.add_argument("--data-dir", help="folder that holds CIFAR-100")
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(__file__).resolve().parent / "figures",
    )
    args = parser.parse_args()
    if (args.model is None) != (args.beside is None):
        parser.error("--model and --beside go together")
    with matplotlib.rc_context(STYLE):
        draw({"both-views": both_views()}, args.output)
    if args.model is None:
        return
    model = named(keras.models.load_model(args.model, compile=False))
    beside = keras.models.load_model(args.beside, compile=False)
    images, labels = data.load("cifar100", "test", args.data_dir)
    fresh = type(model).from_config(model.get_config())
    # Of the first images, some that are classified rightly.
    right = model.predict(images[:200], verbose=0).argmax(1) == labels[:200]
    chosen = images[:200][right][:10]
    with matplotlib.rc_context(STYLE):
        figures = {
            "equivalence": interpret.plot_equivalence(model),
            "kernels": interpret.plot_kernels(model),
            "statistics": interpret.plot_statistics(model, beside, chosen[0]),
            "frequency": interpret.plot_frequency_response(model),
            "attention": interpret.plot_attention_map(model, (2, 2), chosen[0], beside),
            "receptive-field": interpret.plot_receptive_field(
                {"untrained": fresh, "LKCA": model, "ViT": beside}, images[:256]
            ),
            "saliency": interpret.plot_saliency(model, chosen),
        }
        draw(figures, args.output)
    areas = {
        name: interpret.energy_areas(
            interpret.effective_receptive_field(each, images[:256])
        ).tolist()
        for name, each in {"fresh": fresh, "LKCA": model, "ViT": beside}.items()
    }
    numbers = {
        "models": [model.name, beside.name],
        "energy_areas_50_90_99": areas,
        "kernels": {
            layer: {
                key: np.round(value, 3).tolist()
                for key, value in found.items()
                if key != "singular_values"
            }
            for layer, found in interpret.kernel_statistics(model).items()
        },
    }
    with atomic(args.output / "numbers.json") as path:
        path.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
