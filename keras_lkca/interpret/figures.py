"""Figures of what was learned; matplotlib draws them.

Diverging maps are centred at zero and go from blue to red, sequential ones from dark
to light: both are read alike with every kind of colour vision.
"""

import keras
import numpy as np

from keras_lkca.checks import check_positive_int
from keras_lkca.extras import require
from keras_lkca.files import shown
from keras_lkca.interpret.attention import (
    MAX_TOKENS,
    attention_map,
    attention_rollout,
    check_image,
    check_tokens,
    same_place,
    self_attention,
    softmax_maps,
    static_grid,
    vit_grid,
)
from keras_lkca.interpret.fields import (
    check_explainable,
    check_images,
    effective_receptive_field,
    energy_areas,
    saliency,
)
from keras_lkca.interpret.statistics import (
    frequency_response,
    kernel_statistics,
    kernels,
    mixing_layers,
    uniform_distance,
)
from keras_lkca.ops import attention_matrix

DIVERGING, SEQUENTIAL, OVERLAY = "RdBu_r", "viridis", "inferno"
COLUMNS = 5  # panels in a row


def panels(count, columns=COLUMNS, size=2.1, title=None):
    """Return a figure and its axes."""
    figure_module = require("matplotlib.figure", "plot", "matplotlib")
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = figure_module.Figure(
        figsize=(columns * size + 1, rows * (size + 0.25) + 0.5), layout="constrained"
    )
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.06)
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.ravel()[count:]:
        panel.remove()
    if title:
        figure.suptitle(title)
    return figure, axes.ravel()[:count]


def short(name):
    """Return a block's name for a title."""
    for ending in ("_lkca", "_mixing", "_attention"):
        name = name.removesuffix(ending)
    return name.replace("_", " ")


def _outer(axes, columns, below, left, alike=True):
    """Label the outer panels only; the ticks too where they are alike."""
    for index, panel in enumerate(axes):
        if index % columns == 0:
            panel.set_ylabel(left)
        elif alike:
            panel.set_yticklabels([])
        if index + columns >= len(axes):
            panel.set_xlabel(below)
        elif alike:
            panel.set_xticklabels([])


def _kernel_panel(panel, kernel, limit):
    down, right = (size // 2 for size in kernel.shape)
    image = panel.imshow(
        kernel,
        cmap=DIVERGING,
        vmin=-limit,
        vmax=limit,
        extent=(-right - 0.5, right + 0.5, down + 0.5, -down - 0.5),
    )
    panel.plot(0, 0, "+", color="black", ms=7, mew=1)
    panel.set_xticks(sorted({-right, 0, right}))
    panel.set_yticks(sorted({-down, 0, down}))
    return image


def plot_kernels(model, max_kernels: int = 4):
    """Draw each layer's kernels on one scale, the offset (0, 0) marked by a cross.

    Args:
        model: See `keras_lkca.interpret.kernels`.
        max_kernels: Positive integer, how many kernels of a layer to draw, the first
            ones.

    Returns:
        A `matplotlib.figure.Figure`. Over each kernel stands its reach, the
        `mean_distance_on_grid` of `keras_lkca.interpret.kernel_statistics`.

    Raises:
        ValueError: If the model has no LKCA layers.
        ImportError: If matplotlib is missing.

    Example:

    >>> from keras_lkca import LKCAViT, interpret
    >>> figure = interpret.plot_kernels(LKCAViT(depth=2))
    """
    check_positive_int("max_kernels", max_kernels)
    found = kernels(model)
    statistics = kernel_statistics(model)
    count = min(max(k.shape[-1] for k in found.values()), max_kernels)
    limit = max(np.abs(k[..., :count]).max() for k in found.values()) or 1.0
    total = sum(min(count, k.shape[-1]) for k in found.values())
    columns = COLUMNS if count == 1 else count
    figure, axes = panels(total, columns, title="Kernels: the weight of each offset")
    index = 0
    for name, kernel in found.items():
        for g in range(min(count, kernel.shape[-1])):
            image = _kernel_panel(axes[index], kernel[..., g], limit)
            mean = statistics[name]["mean_distance_on_grid"][g]
            reach = "" if np.isnan(mean) else f"\nreach {mean:.1f}"
            which = f", kernel {g}" if kernel.shape[-1] > 1 else ""
            axes[index].set_title(f"{short(name)}{which}{reach}", size=9)
            index += 1
    alike = len({kernel.shape[:2] for kernel in found.values()}) == 1
    _outer(axes, columns, "columns right", "rows down", alike)
    figure.colorbar(image, ax=list(axes), shrink=0.8, label="weight")
    return figure


def plot_statistics(model, beside=None, image=None):
    """Draw reach, share nearby, symmetry and frequencies over the depth.

    Args:
        model: See `keras_lkca.interpret.kernel_statistics`. Of several kernels per
            layer the mean is drawn.
        beside: A second model, whose reach is drawn beside: that of its kernels, or of
            a `keras_lkca.ViT` the mean attention distance on `image`.
        image: See `keras_lkca.interpret.attention_map`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If the model has no LKCA layers.
        ImportError: If matplotlib is missing.

    Example:

    >>> from keras_lkca import LKCAViT, interpret
    >>> figure = interpret.plot_statistics(LKCAViT(depth=2))
    """
    statistics = kernel_statistics(model)
    grids = {tuple(layer.grid) for layer in mixing_layers(model).values()}

    def over_depth(key, statistics=statistics):
        with np.errstate(invalid="ignore"):
            return [float(np.mean(s[key])) for s in statistics.values()]

    figure, axes = panels(3, size=2.9, title="From the first block to the last")
    axes[0].plot(over_depth("mean_distance_on_grid"), "o-", ms=4, label="LKCA")
    if beside is not None and self_attention(beside):
        distances = [_distance_of_maps(m) for m in _all_maps(beside, image)]
        axes[0].plot(distances, "s--", ms=4, label="ViT, one image")
    elif beside is not None:
        distances = over_depth("mean_distance_on_grid", kernel_statistics(beside))
        axes[0].plot(distances, "s--", ms=4, label="LKCA, beside")
    if len(grids) == 1 and None not in min(grids):
        uniform = uniform_distance(min(grids))
        axes[0].axhline(uniform, color="0.6", lw=1, ls=":", label="all tokens alike")
    axes[0].set(ylabel="mean distance on the grid, tokens", ylim=(0, None))
    for key, label in (
        ("within_1", "mass within 1 token"),
        ("within_2", "mass within 2 tokens"),
        ("first_singular", "energy, first singular value"),
    ):
        axes[1].plot(over_depth(key), "o-", ms=4, label=label)
    for key, label in (
        ("odd", "odd under a half turn"),
        ("left_right", "odd left to right"),
        ("up_down", "odd up to down"),
        ("low_frequency", "low frequencies"),
    ):
        axes[2].plot(over_depth(key), "o-", ms=4, label=label)
    axes[2].axhline(0.25, color="0.6", lw=1, ls=":", label="low, a single weight")
    for panel in axes[1:]:
        panel.set(ylabel="share", ylim=(0, 1))
    for panel in axes:
        panel.set_xlabel("block")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
        handles, _ = panel.get_legend_handles_labels()
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2)}
        panel.legend(fontsize=7.5, ncols=1 + (len(handles) > 3), frameon=False, **below)
    return figure


def _all_maps(vit, image):
    """Yield each layer's attention `(heads, rows, columns, rows, columns)`."""
    grid = vit_grid(vit)
    for weights in softmax_maps(vit, self_attention(vit), image).values():
        yield weights[:, 1:, 1:].reshape(-1, *grid, *grid)


def _distance_of_maps(maps):
    rows, columns = maps.shape[1:3]
    i, j = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    distance = np.hypot(
        i[:, :, None, None] - i[None, None], j[:, :, None, None] - j[None, None]
    )
    return float((maps * distance).sum() / maps.sum())


def plot_frequency_response(model, max_kernels: int = 4):
    """Draw the size of each kernel's transfer function, the largest value as 1.

    Args:
        model: See `keras_lkca.interpret.frequency_response`.
        max_kernels: Positive integer, how many kernels of a layer to draw.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If the model has no LKCA layers.
        ImportError: If matplotlib is missing.

    Example:

    >>> from keras_lkca import LKCAViT, interpret
    >>> figure = interpret.plot_frequency_response(LKCAViT(depth=2))
    """
    check_positive_int("max_kernels", max_kernels)
    responses = frequency_response(model)
    half = 0.5 / responses.pop("frequencies").shape[1]  # of a pixel
    statistics = kernel_statistics(model)
    count = min(max(len(r) for r in responses.values()), max_kernels)
    columns = COLUMNS if count == 1 else count
    figure, axes = panels(
        sum(min(count, len(r)) for r in responses.values()),
        columns,
        title="Waves that the kernel passes: the lowest in the middle",
    )
    index = 0
    for name, response in responses.items():
        for g, size in enumerate(np.abs(response[:count])):
            image = axes[index].imshow(
                size / (size.max() or 1),
                cmap=SEQUENTIAL,
                vmin=0,
                vmax=1,
                extent=(-0.5 - half, 0.5 - half, 0.5 - half, -0.5 - half),
            )
            share = statistics[name]["low_frequency"][g]
            low = "" if np.isnan(share) else f"\nlow {share:.0%}"
            axes[index].set_title(f"{short(name)}{low}", size=9)
            axes[index].set(xticks=(-0.5, 0, 0.5), yticks=(-0.5, 0, 0.5))
            index += 1
    _outer(axes, columns, "cycles per token", "cycles per token")
    figure.colorbar(image, ax=list(axes), shrink=0.8, label="share of the largest")
    return figure


def plot_equivalence(model, layer: str | None = None, query=None):
    """Draw one kernel as a window that slides, and as a matrix of attention.

    Left the kernel; then its window laid over the grid with its centre on the query,
    which is a row of the attention matrix written as a grid; then the whole matrix
    with that row marked.

    Args:
        model: See `keras_lkca.interpret.kernels`; the first kernel is drawn.
        layer: Name of a layer. Defaults to the first.
        query: Pair of integers (row, column). Defaults to a third down and right.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: If there is no such layer, or the query lies outside the grid.
        ImportError: If matplotlib is missing.

    Example:

    >>> from keras_lkca import LKCAViT, interpret
    >>> figure = interpret.plot_equivalence(LKCAViT(depth=1))
    """
    layers = mixing_layers(model)
    layer = next(iter(layers)) if layer is None else layer
    if layer not in layers:
        raise ValueError(
            f"`layer` must be one of {list(layers)}. Received: layer={layer!r}"
        )
    height, width = static_grid(layer, layers[layer])
    check_tokens((height, width))
    query = (height // 3, width // 3) if query is None else query
    window = attention_map(model, query)[layer][0]
    kernel = kernels(model)[layer][..., 0]
    matrix = keras.ops.convert_to_numpy(
        attention_matrix(layers[layer].kernel, height, width)
    )[0]
    limit = np.abs(kernel).max() or 1.0
    figure, axes = panels(3, size=3, title="One linear map, seen twice")
    figure.get_layout_engine().set(w_pad=0.15)
    _kernel_panel(axes[0], kernel, limit)
    axes[0].set(title="the kernel", xlabel="columns right", ylabel="rows down")
    style = {"cmap": DIVERGING, "vmin": -limit, "vmax": limit}
    axes[1].imshow(window, **style)
    axes[1].plot(query[1], query[0], "+", color="black", ms=8)
    axes[1].set(
        title=f"convolution: the window\nof token {tuple(query)}",
        xlabel="column",
        ylabel="row",
    )
    image = axes[2].imshow(matrix, **style)
    row = query[0] * width + query[1]
    axes[2].axhline(row - 0.5, color="black", lw=0.6)
    axes[2].axhline(row + 0.5, color="black", lw=0.6)
    axes[2].set(
        title=f"attention: the matrix,\nrow {row} marked", xlabel="key", ylabel="query"
    )
    figure.colorbar(image, ax=list(axes), shrink=0.8, label="weight")
    return figure


def plot_attention_map(model, query, image=None, beside=None):
    """Draw where one token looks, layer by layer and through all of them.

    Args:
        model: See `keras_lkca.interpret.attention_map`; of several kernels or heads
            the mean is drawn.
        query: See `keras_lkca.interpret.attention_map`.
        image: `(height, width, channels)` in [0, 255], drawn first.
        beside: A second model of the same images, drawn below.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: See `keras_lkca.interpret.attention_map`.
        ImportError: If matplotlib is missing.

    Example:

    >>> from keras_lkca import LKCAViT, interpret
    >>> figure = interpret.plot_attention_map(LKCAViT(depth=2), query=(2, 3))
    """
    models = [model] if beside is None else [model, beside]
    if image is not None:
        for each in models:
            check_image(each, image)
    rows = [_map_panels(each, query, image) for each in models]
    who = "the class token" if query is None else f"token {tuple(query)}"
    columns = min(max(map(len, rows)), COLUMNS + 1)
    padded = []
    for row in rows:
        padded += row + [None] * (-len(row) % columns)
    figure, axes = panels(
        len(padded),
        columns,
        title=f"Where {who} looks, each panel on its own scale",
    )
    for panel, drawn in zip(axes, padded, strict=True):
        if drawn is None:
            panel.remove()
            continue
        title, values, style, place = drawn
        if style == "image":
            panel.imshow(_displayed(values), cmap="gray", vmin=0, vmax=255)
            panel.set_axis_off()
        else:
            limit = np.abs(values).max() or 1.0
            low = -limit if style == DIVERGING else 0
            panel.imshow(values, cmap=style, vmin=low, vmax=limit)
            edge = "black" if style == DIVERGING else "white"
            if place is not None:
                panel.plot(place[1], place[0], "+", color=edge, ms=8, mew=1.2)
            panel.set(xticks=(0, values.shape[1] - 1), yticks=(0, values.shape[0] - 1))
        panel.set_title(title, size=9)
    return figure


def _map_panels(model, query, image):
    maps = attention_map(model, query, image)
    signed = min(values.min() for values in maps.values()) < 0
    kind = "ViT" if self_attention(model) else "LKCA"
    style = DIVERGING if signed else SEQUENTIAL
    first = next(iter(maps.values())).shape[1:]
    drawn = []
    if image is not None:
        drawn = [("the image", np.asarray(image), "image", None)]
    for name, values in maps.items():
        place = query and same_place(query, first, values.shape[1:])
        drawn.append((f"{kind}, {short(name)}", values.mean(0), style, place))
    grids = {values.shape[1:] for values in maps.values()}
    if len(grids) == 1 and np.prod(min(grids)) <= MAX_TOKENS:
        rollout = attention_rollout(model, query, image)[-1]
        drawn.append((f"{kind}, all blocks", rollout, SEQUENTIAL, query))
    return drawn


def plot_receptive_field(models, images, **arguments):
    """Draw the pixels that move the centre token, and the area of 50, 90 and 99 %.

    Args:
        models: A model, or a dict of models by title to compare, as one before and
            one after training.
        images: See `keras_lkca.interpret.effective_receptive_field`.
        **arguments: Likewise.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: See `keras_lkca.interpret.effective_receptive_field`.
        ImportError: If matplotlib is missing.

    Example:

    >>> import numpy as np
    >>> from keras_lkca import LKCAViT, interpret
    >>> images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3))
    >>> figure = interpret.plot_receptive_field(LKCAViT(depth=1), images)
    """
    models = models if isinstance(models, dict) else {"": models}
    figure, axes = panels(
        len(models), size=3, title="Effective receptive field of the centre token"
    )
    for panel, (title, model) in zip(axes, models.items(), strict=True):
        field = effective_receptive_field(model, images, **arguments)
        # Four decades: what is dark holds next to nothing.
        decades = np.log10(np.maximum(field / field.max(), 1e-4))
        image = panel.imshow(decades, cmap=OVERLAY, vmin=-4, vmax=0)
        areas = energy_areas(field)
        text = ", ".join(
            f"{share}: {area:.0%}"
            for share, area in zip(("50 %", "90 %", "99 %"), areas, strict=True)
        )
        title = f"{title}\nenergy in part of the image\n{text}".strip()
        panel.set_title(title, size=8, parse_math=False)
        panel.set(xlabel="pixels")
    axes[0].set_ylabel("pixels")
    figure.colorbar(image, ax=list(axes), shrink=0.8, label="log10 of energy")
    return figure


def plot_saliency(model, images, class_index=None):
    """Draw what each token adds to the logit of a class, over its image.

    Args:
        model: See `keras_lkca.interpret.saliency`.
        images: `(n, height, width, channels)` in [0, 255].
        class_index: See `keras_lkca.interpret.saliency`; for all of the images.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: See `keras_lkca.interpret.saliency`.
        ImportError: If matplotlib is missing.

    Example:

    >>> import numpy as np
    >>> from keras_lkca import LKCAViT, interpret
    >>> images = np.zeros((2, 32, 32, 3))
    >>> figure = interpret.plot_saliency(LKCAViT(depth=1), images)
    """
    check_explainable(model)
    check_images(model, images)
    images = np.asarray(images)
    columns = min(len(images), COLUMNS)
    rows = -(-len(images) // columns)
    figure, axes = panels(
        2 * rows * columns,
        columns,
        title="What speaks for the class (red) or against, each on its own scale",
    )
    names = getattr(model, "class_names", None)
    for panel in axes:
        panel.set_axis_off()
    predicted = model.predict(images, verbose=0).argmax(-1)
    for index, image in enumerate(images):
        chosen = int(predicted[index]) if class_index is None else class_index
        values, _ = saliency(model, image, chosen)
        place = index // columns * 2 * columns + index % columns
        height, width = image.shape[:2]
        picture = _displayed(image)
        axes[place].imshow(picture, cmap="gray", vmin=0, vmax=255)
        label = names[chosen] if names and not isinstance(chosen, str) else chosen
        axes[place].set_title(shown(label), size=9, parse_math=False)
        panel = axes[place + columns]
        panel.imshow(picture, cmap="gray", vmin=0, vmax=255)
        limit = np.abs(values).max() or 1.0
        drawn = panel.imshow(
            values,
            cmap=DIVERGING,
            vmin=-limit,
            vmax=limit,
            alpha=0.65,
            interpolation="bilinear",
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )
        panel.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    bar = figure.colorbar(drawn, ax=list(axes), shrink=0.6, ticks=[-limit, 0, limit])
    bar.ax.set_yticklabels(["against", "0", "for"])
    return figure


def _displayed(image):
    image = np.clip(np.asarray(image), 0, 255).astype("uint8")
    return image[..., 0] if image.shape[-1] == 1 else image[..., :3]
