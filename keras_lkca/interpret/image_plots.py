"""Figures of what models do with images; see `plots.py`."""

import numpy as np

from keras_lkca.interpret.attention import (
    MAX_TOKENS,
    attention_map,
    attention_rollout,
    check_image,
    self_attention,
)
from keras_lkca.interpret.fields import (
    check_explainable,
    check_images,
    effective_receptive_field,
    energy_areas,
    saliency,
)
from keras_lkca.interpret.plots import COLUMNS, DIVERGING, SEQUENTIAL, panels, short

OVERLAY = "inferno"


def plot_attention_map(model, query, image=None, other=None):
    """Draw where one token looks, layer by layer and through all of them.

    Args:
        model: See `keras_lkca.interpret.attention_map`; of several kernels or heads
            the mean is drawn.
        query: Pair of integers (row, column) on the token grid.
        image: `(height, width, channels)` in [0, 255], drawn first.
        other: A second model, drawn below; a `keras_lkca.ViT` of the same images.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: See `keras_lkca.interpret.attention_map`.
        ImportError: If matplotlib is missing.

    Example:

    >>> from keras_lkca import LKCAViT, interpret
    >>> figure = interpret.plot_attention_map(LKCAViT(depth=2), query=(2, 3))
    """
    models = [model] if other is None else [model, other]
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
        title, values, style = drawn
        if style == "image":
            panel.imshow(_displayed(values), cmap="gray", vmin=0, vmax=255)
            panel.set_axis_off()
        else:
            limit = np.abs(values).max() or 1.0
            low = -limit if style == DIVERGING else 0
            panel.imshow(values, cmap=style, vmin=low, vmax=limit)
            edge = "black" if style == DIVERGING else "white"
            if query is not None:
                panel.plot(query[1], query[0], "+", color=edge, ms=8, mew=1.2)
            panel.set(xticks=(0, values.shape[1] - 1), yticks=(0, values.shape[0] - 1))
        panel.set_title(title, size=9)
    return figure


def _map_panels(model, query, image):
    maps = attention_map(model, query, image)
    signed = min(values.min() for values in maps.values()) < 0
    kind = "ViT" if self_attention(model) else "LKCA"
    drawn = [("the image", np.asarray(image), "image")] if image is not None else []
    for name, values in maps.items():
        style = DIVERGING if signed else SEQUENTIAL
        drawn.append((f"{kind}, {short(name)}", values.mean(0), style))
    grids = {values.shape[1:] for values in maps.values()}
    if len(grids) == 1 and np.prod(min(grids)) <= MAX_TOKENS:
        rollout = attention_rollout(model, query, image)[-1]
        drawn.append((f"{kind}, all blocks", rollout, SEQUENTIAL))
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
        shown = np.log10(np.maximum(field / field.max(), 1e-4))
        image = panel.imshow(shown, cmap=OVERLAY, vmin=-4, vmax=0)
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
        shown = _displayed(image)
        axes[place].imshow(shown, cmap="gray", vmin=0, vmax=255)
        label = names[chosen] if names and not isinstance(chosen, str) else chosen
        axes[place].set_title(str(label), size=9, parse_math=False)
        panel = axes[place + columns]
        panel.imshow(shown, cmap="gray", vmin=0, vmax=255)
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
