"""`bench.py figures`: the results as log-log pictures for the documentation."""

import json
import pathlib

from harness import HERE

from keras_lkca.extras import require
from keras_lkca.files import atomic

FOLDER = HERE.parent / "docs" / "benchmarks"
# Okabe and Ito's colours, told apart by everyone; a marker each besides.
STYLES = {
    "toeplitz": ("#0072B2", "o"),
    "hybrid": ("#009E73", "s"),
    "spectral": ("#56B4E9", "^"),
    "depthwise": ("#E69F00", "D"),
    "folded conv": ("#CC79A7", "v"),
    "attention": ("#D55E00", "X"),
    "LKCA block": ("#0072B2", "o"),
    "attention block": ("#D55E00", "X"),
}


def draw(output):
    """Draw each operator and scaling result, and say what was written."""
    plt = require("matplotlib.pyplot", "plot", "matplotlib")
    pathlib.Path(output).mkdir(parents=True, exist_ok=True)
    for path in sorted((HERE / "results").glob("*.json")):
        record = json.loads(path.read_text())
        rows = [r for r in record["rows"] if r.get("kernel", "global") == "global"]
        if not path.name.startswith(("operator", "scaling")):
            continue
        for row in rows:
            scale(row)
        figure = chart(plt, rows, record["conditions"])
        with atomic(pathlib.Path(output) / f"{path.stem}.svg") as temporary:
            figure.savefig(temporary, metadata={"Date": None})
        plt.close(figure)
        print(f"wrote {output}/{path.stem}.svg")


def scale(row):
    """Divide the operator's figures by images and channels, which differ by grid."""
    if "inputs" not in row:
        return
    batch, _, _, channels = row["inputs"]
    for result in row["results"].values():
        for key in ("median", "peak_mib"):
            if key in result:
                result[key] *= (1e3 if key == "median" else 1024) / (batch * channels)


def chart(plt, rows, where):
    """Draw time and memory against tokens, a column of panels a pass."""
    passes = list(dict.fromkeys(row["pass"] for row in rows))
    kinds = [("median", "time per call, ms"), ("peak_mib", "peak memory, MiB")]
    if "inputs" in rows[0]:
        each = "for each image and channel"
        kinds = [
            ("median", f"time, µs\n{each}"),
            ("peak_mib", f"peak memory, KiB\n{each}"),
        ]
    kinds = [
        (key, label)
        for key, label in kinds
        if any(key in r for row in rows for r in row["results"].values())
    ]
    figure, axes = plt.subplots(
        *(len(kinds), len(passes)),
        figsize=(4.6 * len(passes), 3.4 * len(kinds)),
        squeeze=False,
        sharex=True,
        sharey="row",
        layout="constrained",
    )
    for line, (key, label) in zip(axes, kinds, strict=True):
        line[0].set_ylabel(label)
        for axis, name in zip(line, passes, strict=True):
            panel(axis, [row for row in rows if row["pass"] == name], key)
            axis.set_title(name)
    for axis in axes[-1]:
        axis.set_xlabel("tokens (height x width)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    backend = where["backend"] + (" with XLA" if where.get("xla") else "")
    figure.suptitle(
        f"{backend} {where[where['backend']]}, {where.get('dtype', 'float32')}, "
        f"{where['device']}, {where['cores']} cores"
    )
    return figure


def panel(axis, rows, key):
    """Draw one line a contestant."""
    names = dict.fromkeys(name for row in rows for name in row["results"])
    for name in names:
        points = [
            (row["grid"] ** 2, row["results"][name][key])
            for row in rows
            if key in row["results"].get(name, {})
        ]
        color, marker = STYLES[name]
        axis.plot(
            *zip(*points, strict=True) if points else ([], []),
            label=name,
            color=color,
            marker=marker,
            markersize=5,
        )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    # Every second power of two: others' labels would touch.
    ticks = [4**n for n in range(3, 8)]
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=45)
    axis.grid(True, which="major", alpha=0.3)
    axis.minorticks_off()
