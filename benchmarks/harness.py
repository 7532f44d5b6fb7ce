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

from keras_lkca.ops.backend import device_kind
from keras_lkca.training.files import atomic

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
    """Return where and with what a measurement was made."""
    backend = keras.config.backend()
    module = sys.modules[backend]
    git = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "command": "python benchmarks/"
        + " ".join([pathlib.Path(sys.argv[0]).name] + sys.argv[1:]),
        "backend": backend,
        "device": device_kind(),
        "machine": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "keras": keras.__version__,
        backend: module.__version__,
        "numpy": np.__version__,
        "commit": commit or "unknown",
        "date": datetime.date.today().isoformat(),
        **more,
    }


def _processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def write(name, record, markdown, folder=None):
    """Write a measurement's JSON and Markdown, whole or not at all."""
    folder = pathlib.Path(folder or HERE / "results")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / f"{name}.json") as path:
        path.write_text(json.dumps(record, indent=1) + "\n")
    with atomic(folder / f"{name}.md") as path:
        path.write_text(markdown)
    print(f"wrote {folder / name}.json and .md", file=sys.stderr)
