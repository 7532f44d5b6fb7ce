"""What every benchmark needs besides `alternate`: peak memory, and a record."""

import datetime
import gc
import json
import os
import pathlib
import platform
import subprocess
import sys

import keras
import numpy as np

from keras_lkca.backend import device_kind, version
from keras_lkca.files import atomic
from keras_lkca.ops.calibration import processor

HERE = pathlib.Path(__file__).resolve().parent


def peak_memory(call):
    """Return the MiB that a warmed-up call adds to the process at its peak.

    Linux counts it. Freed memory must go back to the system for the count to mean
    anything, so this runs in a process of its own, see `in_memory_process`.
    """
    call()
    gc.collect()
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return round((_status("VmHWM") - before) / 1024, 2)


def _status(field):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"no {field} in /proc/self/status")


def in_memory_process(arguments, rows):
    """Run this tool again, measuring memory, and return its results.

    The timed rows go in through stdin: what was left out there, takes too long here.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, str(HERE / "bench.py"), *arguments, "--only-memory"]
    done = subprocess.run(
        command,
        env=environment,
        input=json.dumps(rows),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def conditions(**more):
    """Return where and with what a measurement is made."""
    backend = keras.config.backend()
    command = " ".join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]])
    return {
        "command": f"KERAS_BACKEND={backend} python benchmarks/{command}",
        "backend": backend,
        "device": device_kind(),
        "machine": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "keras": keras.__version__,
        backend: version(),
        "numpy": np.__version__,
        "commit": commit(),
        "date": datetime.date.today().isoformat(),
        **more,
    }


def commit():
    """Return the commit that is measured, and whether files differ from it."""
    git = ["git", "-C", str(HERE)]
    try:
        name = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"]).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name + ("-dirty" if changed else "")


def write(name, record, markdown, folder=None):
    """Write a measurement's JSON and Markdown, whole or not at all."""
    folder = pathlib.Path(folder or HERE / "results")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / f"{name}.json") as path:
        path.write_text(json.dumps(record, indent=1) + "\n")
    with atomic(folder / f"{name}.md") as path:
        path.write_text(markdown)
    print(f"wrote {folder / name}.json and .md", file=sys.stderr)
