"""One HTML page with all that can be seen of a trained model."""

import datetime
import html
import io
import pathlib

import keras
import numpy as np

from keras_lkca.checks import check_positive_int
from keras_lkca.extras import require
from keras_lkca.files import atomic, shown
from keras_lkca.internals import is_quantized, layers_by_path, sublayers
from keras_lkca.interpret import figures
from keras_lkca.interpret.attention import self_attention, static_grid
from keras_lkca.interpret.fields import check_images
from keras_lkca.interpret.macs import macs_by_layer
from keras_lkca.interpret.statistics import kernel_statistics, mixing_layers
from keras_lkca.layers import FixedConv
from keras_lkca.models.image_model import given_name

# matplotlib draws lines and letters in this colour, which the page replaces by its own.
INK = "#123456"

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --page: #ffffff;
  --card: #f5f7fa; --line: #d9dfe7; --accent: #0b6bcb; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa6b5;
  --page: #14181f; --card: #1c222b; --line: #303945; --accent: #6cb2ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1100px; padding: 2rem 1.2rem 4rem; color: var(--ink);
  background: var(--page); font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.9rem; margin: 0 0 .3rem; } h2 { margin: 2.6rem 0 .4rem; }
p { max-width: 46rem; } .soft, figcaption { color: var(--soft); }
.facts { display: grid; gap: .8rem; margin: 1.4rem 0;
  grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); }
.facts div { background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; padding: .7rem .9rem; }
.facts b { display: block; font-size: 1.35rem; }
figure { margin: 1rem 0; padding: 1rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .6rem; overflow-x: auto; }
figure svg { display: block; margin: auto; width: 100%; min-width: 34rem; height: auto;
  color: var(--ink); }
figcaption { font-size: .92rem; max-width: 46rem; margin: .6rem auto 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: .9rem; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
nav a { color: var(--accent); margin-right: 1rem; text-decoration: none; }
"""


def report(
    model, images, output, beside=None, max_images: int = 10, title: str | None = None
) -> pathlib.Path:
    """Write one HTML page with a model's figures, and the numbers behind them.

    It is whole in itself: the figures are within, nothing is fetched. Where a figure
    cannot be drawn of a model, the page says why in its place.

    Args:
        model: A model with LKCA layers, see `keras_lkca.interpret.mixing_layers`.
        images: `(n, height, width, channels)` in [0, 255], to average the receptive
            field over and to show; a few tens do.
        output: Path of the page, `.html`.
        beside: A second model of the same images, shown beside it: a `keras_lkca.ViT`,
            or another with LKCA layers.
        max_images: Positive integer, how many images to show.
        title: The page's heading. Defaults to the name that the model was given, or
            else its class.

    Returns:
        The path.

    Raises:
        ValueError: If an argument is not as above; nothing is written.
        ImportError: If matplotlib is missing.

    Example:

    ```python
    model = keras.models.load_model("model.keras")
    report(model, images, "report.html")
    ```
    """
    output = pathlib.Path(output).expanduser()
    if not output.parent.is_dir():
        raise ValueError(
            f"`output` must lie in a folder that exists. Received: output={output}"
        )
    if output.is_dir():
        raise ValueError(f"`output` is a folder, not a page. Received: output={output}")
    # What cannot be drawn is said before anything is.
    mixing_layers(model)
    check_images(model, images)
    check_positive_int("max_images", max_images)
    if beside is not None:
        if not self_attention(beside):
            mixing_layers(beside)
        check_images(beside, images)
    images = np.asarray(images)
    matplotlib = require("matplotlib", "plot")
    style = {
        **{key: INK for key in ("text.color", "axes.labelcolor", "axes.edgecolor")},
        **{key: INK for key in ("xtick.color", "ytick.color")},
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
        "legend.facecolor": "none",
        "svg.fonttype": "none",
        "svg.hashsalt": "keras_lkca",
        "font.family": "sans-serif",
        "font.size": 9,
        "image.composite_image": False,
    }
    with matplotlib.rc_context(style):
        sections = [
            (heading, ident, _figure(ident, text, draw))
            for heading, ident, text, draw in _sections(
                model, images, beside, max_images
            )
        ]
    facts, table = _facts(model, images), _table(model, images)
    page = _page(title or given_name(model), sections, facts, table)
    with atomic(output) as path:
        path.write_text(shown(page), encoding="utf-8")
    return output


def _untrained(model):
    """Return a model of new weights, or `None` where it cannot be rebuilt."""
    kinds = [(layer, type(layer)) for layer in sublayers(model)]
    if any(
        kind is FixedConv or (issubclass(kind, keras.layers.Dense) and is_quantized(x))
        for x, kind in kinds
    ):
        return None
    try:
        return type(model).from_config(model.get_config())
    except Exception:  # it may be of any class, and want anything
        return None


def _sections(model, images, beside, max_images):
    """Return headings, anchors, captions and functions that draw."""
    first = images[0]
    fresh = _untrained(model)
    fields = {"": model} if fresh is None else {"untrained": fresh, "trained": model}
    if beside is not None:
        fields[f"beside: {given_name(beside)}"] = beside

    def attention_maps():
        name, layer = next(iter(mixing_layers(model).items()))
        query = tuple(size // 3 for size in static_grid(name, layer))
        return figures.plot_attention_map(model, query, first, beside)

    return [
        (
            "Kernels",
            "kernels",
            "A layer's weight for every relative position: how much a token takes in "
            "from the one that many rows below and columns to the right (red), or "
            "takes away (blue). The cross is the token itself. All panels share one "
            "scale. Reach is the mean distance of the weight's mass on the grid, in "
            "tokens; equal weights have that of two tokens drawn by chance.",
            lambda: figures.plot_kernels(model),
        ),
        (
            "One map, two views",
            "equivalence",
            "The first layer's kernel; its window laid over the grid around one "
            "token; and the attention matrix that does the same to all tokens at "
            "once, of which that window is one row.",
            lambda: figures.plot_equivalence(model),
        ),
        (
            "From the first block to the last",
            "statistics",
            "How far the kernels reach (dotted: what equal weights have), how much of "
            "their mass lies nearby, how much of them is one column times one row, "
            "how far they are from symmetric (odd parts: 0 is symmetric, 0.5 is "
            "chance), and how much of what they pass is low frequencies (dotted: the "
            "quarter that a single weight has).",
            lambda: figures.plot_statistics(model, beside, first),
        ),
        (
            "Frequencies",
            "frequency",
            "The size of each kernel's transfer function, the lowest frequency in the "
            "middle: bright where waves pass, each panel on its own scale. Of the "
            "kernel alone: with what sign the block adds them is up to its "
            "projections.",
            lambda: figures.plot_frequency_response(model),
        ),
        (
            "Where a token looks",
            "attention",
            "A row of each layer's attention matrix, and of their rollout through the "
            "depth (heuristic: without signs, projections and MLPs), each panel on "
            "its own scale. In LKCA it is the same for every image, before a gate "
            "weighs what it gives; in a ViT it is that of this image.",
            attention_maps,
        ),
        (
            "Which pixels count",
            "receptive-field",
            "The energy of the gradients of the centre token of the last feature map, "
            f"over {len(images)} images, on a logarithmic scale, and the part of the "
            "image that holds 50, 90 and 99 % of it.",
            lambda: figures.plot_receptive_field(fields, images),
        ),
        (
            "What speaks for a class",
            "saliency",
            "What each token adds to the logit of the predicted class, whose number or "
            "name stands above, against the mean of all, each image on its own scale. "
            "The sum over the tokens is exact; but the tokens have taken in each other "
            "before, and share the last normalisation.",
            lambda: figures.plot_saliency(model, images[:max_images]),
        ),
    ]


def _figure(ident, text, draw):
    """Return a figure with its caption, or a sentence why there is none."""
    try:
        svg = _svg(draw(), ident)
    except ValueError as error:
        why = str(error).split(" Received:")[0]
        return f'<p class="soft">Left out: {html.escape(why)}</p>'
    caption = f"<figcaption>{html.escape(text)}</figcaption>"
    return f"<figure>{svg}{caption}</figure>"


def _svg(figure, ident):
    figure.suptitle("")  # the page's heading says it
    file = io.StringIO()
    figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    # What the figures call by the same name is each one's own.
    for sign in ('id="', "url(#", 'href="#'):
        text = text.replace(sign, f"{sign}{ident}-")
    return text.replace("<svg", f'<svg role="img" aria-labelledby="{ident}"', 1)


def _macs(model, images):
    try:
        return macs_by_layer(model, images.shape[1:])
    except ValueError:  # it has layers whose cost is not known
        return {}


def _facts(model, images):
    counts = _macs(model, images).values()
    macs = sum(layer.projections + layer.mixing for layer in counts)
    statistics = kernel_statistics(model)
    reach = [_number(s["mean_distance_on_grid"], 1) for s in statistics.values()]
    facts = [
        ("model", f"{type(model).__name__}"),
        ("images", " x ".join(map(str, images.shape[1:]))),
        ("parameters", f"{model.count_params():,}"),
        ("multiply-accumulates", f"{macs / 1e6:,.1f} M" if macs else "not known"),
        ("LKCA layers", str(len(statistics))),
        ("reach, first to last layer", f"{reach[0]} to {reach[-1]} tokens"),
    ]
    return "".join(
        f"<div><b>{html.escape(value)}</b>{html.escape(name)}</div>"
        for name, value in facts
    )


def _number(values, digits):
    mean = float(np.mean(values))
    return "\u2013" if np.isnan(mean) else f"{mean:.{digits}f}"  # before training


def _table(model, images):
    counts, statistics = _macs(model, images), kernel_statistics(model)
    rows = []
    for path, layer in layers_by_path(model).items():
        macs = counts.get(path)
        if not layer.count_params() and macs is None:
            continue
        projections, mixing, elementwise = macs or (0, 0, 0)
        numbers = (layer.count_params(), projections, mixing, elementwise)
        cells = [f"{number:,}" for number in numbers]
        found = statistics.get(path)
        cells += [
            _number(found[key], 2) if found else ""
            for key in ("mean_distance_on_grid", "within_1", "odd", "first_singular")
        ]
        rows.append((path, *cells))
    header = (
        *("layer", "parameters", "projections", "mixing", "elementwise"),
        *("reach", "within 1 token", "odd", "first singular value"),
    )
    lines = ["<tr>" + "".join(f"<th>{x}</th>" for x in header) + "</tr>"]
    for name, *cells in rows:
        cells = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    return "<table>" + "\n".join(lines) + "</table>"


def _page(title, sections, facts, table):
    name = html.escape(title)
    links = "".join(f'<a href="#{i}">{html.escape(t)}</a>' for t, i, _ in sections)
    body = "\n".join(
        f'<h2 id="{ident}">{html.escape(heading)}</h2>\n{figure}'
        for heading, ident, figure in sections
    )
    made = datetime.date.today().isoformat()
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: what it learned</title><style>{STYLE}</style></head><body>
<h1>{name}: what it learned</h1>
<p class="soft">Made by keras_lkca on {made}, Keras {keras.version()}
on {keras.config.backend()}.</p>
<div class="facts">{facts}</div>
<nav>{links}<a href="#layers">Layers</a></nav>
{body}
<h2 id="layers">Layers</h2>
<p>Parameters, multiply-accumulates of one image, and what the kernels come to:
reach in tokens, the others as shares from 0 to 1.</p>
<div class="scroll">{table}</div>
</body></html>
"""
