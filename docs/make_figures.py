"""Draw the site's figures from a trained model: `make figures`.

python docs/make_figures.py --model lkca.keras --beside vit.keras --data-dir ~/data
"""

import argparse
import json
import pathlib

import keras
import matplotlib
import numpy as np

from keras_lkca import data, interpret
from keras_lkca.files import atomic

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


def main():
    """Draw them all, and write down what they show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a .keras file, LKCA")
    parser.add_argument("--beside", required=True, help="a .keras file, ViT")
    parser.add_argument("--data-dir", help="folder that holds CIFAR-100")
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(__file__).resolve().parent / "figures",
    )
    args = parser.parse_args()
    model = named(keras.models.load_model(args.model, compile=False))
    beside = keras.models.load_model(args.beside, compile=False)
    images, labels = data.load("cifar100", "test", args.data_dir)
    fresh = type(model).from_config(model.get_config())
    # Of the first images, some that are classified rightly.
    right = model.predict(images[:200], verbose=0).argmax(1) == labels[:200]
    chosen = images[:200][right][:10]
    args.output.mkdir(parents=True, exist_ok=True)
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
        for name, figure in figures.items():
            with atomic(args.output / f"{name}.svg") as path:
                figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
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
    size = sum(path.stat().st_size for path in args.output.iterdir())
    print(f"wrote {len(figures)} figures into {args.output}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
