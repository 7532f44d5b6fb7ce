"""One HTML page with all that can be seen of a trained model."""

import datetime
import html
import io
import pathlib

import keras
import numpy as np

from keras_lkca import models
from keras_lkca.checks import check_positive_int
from keras_lkca.extras import require
from keras_lkca.files import atomic
from keras_lkca.interpret import figures
from keras_lkca.interpret.attention import (
    MAX_TOKENS,
    self_attention,
    static_grid,
    vit_grid,
)
from keras_lkca.interpret.fields import (
    check_explainable,
    check_images,
    feature_map_model,
)
from keras_lkca.interpret.macs import count_macs
from keras_lkca.interpret.statistics import kernel_statistics, mixing_layers

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


def report(model, images, output, other=None, max_images: int = 10) -> pathlib.Path:
    """Write one HTML page with a model's figures, and the numbers behind them.

    It is whole in itself: the figures are within, nothing is fetched.

    Args:
        model: A `LKCAViT`, or what `deploy.fold` returned.
        images: `(n, height, width, channels)` in [0, 255], to average the receptive
            field over and to show; a few tens do.
        output: Path of the page, `.html`.
        other: A `keras_lkca.ViT` of the same images, shown beside it.
        max_images: Positive integer, how many images to show.

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
    for name, layer in mixing_layers(model).items():
        static_grid(name, layer)
    check_images(model, images)
    check_positive_int("max_images", max_images)
    if other is not None:
        if not self_attention(other):
            raise ValueError(
                "`other` must be a keras_lkca.ViT. "
                f"Received: {type(other).__name__} {other.name!r}"
            )
        vit_grid(other)
        check_images(other, images)
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
            (title, ident, text, _svg(draw(), ident))
            for title, ident, text, draw in _sections(model, images, other, max_images)
        ]
    page = _page(model, sections, _facts(model), _table(model))
    with atomic(output) as path:
        path.write_text(page, encoding="utf-8")
    return output


def _sections(model, images, other, max_images):
    """Return titles, anchors, captions and functions that draw."""
    first = images[0]
    grid = feature_map_model(model).output_shape[1:3]
    query = (grid[0] // 3, grid[1] // 3)
    fresh = {}
    if isinstance(model, models.LKCAViT):
        config = {**model.get_config()}
        config.pop("quantized", None)
        fresh = {"untrained": models.LKCAViT.from_config(config)}
    fields = {**fresh, "trained" if fresh else "": model}
    if other is not None:
        fields["the ViT, trained"] = other
    sections = [
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
            lambda: figures.plot_statistics(model, other, first),
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
            "its own scale. In LKCA it is the same for every image"
            + ("; in the ViT it is that of this image." if other is not None else "."),
            lambda: figures.plot_attention_map(model, query, first, other),
        ),
        (
            "Which pixels count",
            "receptive-field",
            "The energy of the gradients of the centre token of the last feature map, "
            f"over {len(images)} images, on a logarithmic scale, and the part of the "
            "image that holds 50, 90 and 99 % of it.",
            lambda: figures.plot_receptive_field(fields, images),
        ),
    ]
    if grid[0] * grid[1] > MAX_TOKENS:
        sections = [section for section in sections if section[1] != "equivalence"]
    if _explainable(model):
        sections.append(
            (
                "What speaks for a class",
                "saliency",
                "What each token adds to the logit of the predicted class, whose "
                "number or name stands above, against the mean of all, each image on "
                "its own scale. The sum over the tokens is exact; but the tokens have "
                "taken in each other before, and share the last normalisation.",
                lambda: figures.plot_saliency(model, images[:max_images]),
            )
        )
    return sections


def _explainable(model):
    try:
        check_explainable(model)
    except ValueError:
        return False
    return True


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


def _facts(model):
    shape = " x ".join(map(str, model.input_shape[1:]))
    statistics = kernel_statistics(model)
    reach = [_number(s["mean_distance_on_grid"], 1) for s in statistics.values()]
    facts = [
        ("model", f"{type(model).__name__}"),
        ("images", shape),
        ("parameters", f"{model.count_params():,}"),
        ("multiply-accumulates", f"{count_macs(model) / 1e6:,.1f} M"),
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


def _table(model):
    counts, statistics = count_macs(model, by_layer=True), kernel_statistics(model)
    rows = []
    for layer in model.layers:
        macs = counts.get(layer.name)
        if not layer.count_params() and macs is None:
            continue
        projections, mixing, elementwise = macs or (0, 0, 0)
        numbers = (layer.count_params(), projections, mixing, elementwise)
        cells = [f"{number:,}" for number in numbers]
        found = statistics.get(layer.name)
        cells += [
            _number(found[key], 2) if found else ""
            for key in ("mean_distance_on_grid", "within_1", "odd", "first_singular")
        ]
        rows.append((layer.name, *cells))
    header = (
        *("layer", "parameters", "projections", "mixing", "elementwise"),
        *("reach", "within 1 token", "odd", "first singular value"),
    )
    lines = ["<tr>" + "".join(f"<th>{x}</th>" for x in header) + "</tr>"]
    for name, *cells in rows:
        cells = "".join(f"<td>{cell}</td>" for cell in cells)
        lines.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    return "<table>" + "\n".join(lines) + "</table>"


def _page(model, sections, facts, table):
    name = html.escape(model.name)
    links = "".join(f'<a href="#{i}">{html.escape(t)}</a>' for t, i, _, _ in sections)
    body = "\n".join(
        f'<h2 id="{ident}">{html.escape(title)}</h2>\n<figure>{svg}'
        f"<figcaption>{html.escape(text)}</figcaption></figure>"
        for title, ident, text, svg in sections
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
