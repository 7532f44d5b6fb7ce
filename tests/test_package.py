"""What the package promises as a whole: imports, documentation, layout."""

import dataclasses
import doctest
import importlib
import inspect
import math
import pathlib
import pkgutil
import re
import tomllib

import keras
import pytest
from conftest import BACKENDS, ROOT

import keras_lkca
from keras_lkca.models import PRESETS, ImageModel, list_presets

MODULES = ["keras_lkca"] + [
    module.name for module in pkgutil.walk_packages(keras_lkca.__path__, "keras_lkca.")
]

BARE = """
import importlib.machinery, sys

class Missing:
    names = set(sys.argv[1:])
    def find_spec(self, name, path=None, target=None):
        if name in self.names:
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name)
    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Missing())
import numpy as np, keras, keras_lkca
model = keras_lkca.LKCAViT(depth=2, embed_dim=16)
model.compile("adam", "sparse_categorical_crossentropy")
x = np.zeros((2, 32, 32, 3), "uint8")
model.fit(x, np.array([0, 1]), verbose=0)
assert model.predict(x, verbose=0).shape == (2, 10)
from keras_lkca import data, training
for call in (data.digits, data.load, training.train):
    try:
        call("digits" if call is not data.digits else "train")
    except ImportError as error:
        assert 'pip install "keras-lkca[' in str(error), error
    else:
        raise AssertionError("a missing package was not noticed")
assert not Missing.names & set(sys.modules)
print("bare")
"""


def test_needs_keras_numpy_and_one_backend_alone(run_python):
    optional = {"tensorflow_datasets", "sklearn", "matplotlib", "PIL"}
    blocked = (optional | set(BACKENDS)) - {keras.config.backend()}
    assert "bare" in run_python("-c", BARE, *sorted(blocked))


@pytest.mark.once
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def public_objects():
    for name in ("ops", "layers", "models", "data", "training"):
        module = importlib.import_module(f"keras_lkca.{name}")
        for public in module.__all__:
            if inspect.isclass(o := getattr(module, public)) or callable(o):
                yield pytest.param(o, id=f"{name}.{public}")


@pytest.mark.parametrize("thing", list(public_objects()))
def test_public_docstrings_are_whole(thing):
    doc = inspect.getdoc(thing)
    if isinstance(thing, type) and issubclass(thing, keras.layers.Layer):
        order = ["Args", "Input shape", "Output shape", "Raises", "Example"]
        order.append("References")
    elif dataclasses.is_dataclass(thing):
        order = ["Attributes"]
    elif isinstance(thing, type):
        order = ["Args", "Call arguments", "Returns", "Raises", "Example"]
    else:
        order = ["Args", "Returns"]
    places = [doc.find(f"\n{part}:\n") for part in order]
    assert -1 not in places, dict(zip(order, places, strict=True))
    assert places == sorted(places)


def test_nothing_imports_keras_src():
    for path in (ROOT / "keras_lkca").rglob("*.py"):
        assert "keras.src" not in path.read_text(), path


def test_backend_specific_code_has_one_place():
    """TensorFlow is imported for tf.data alone; the other backends never."""
    pattern = re.compile(r"^\s*(?:import|from) (tensorflow|jax|torch)\b", re.M)
    for path in (ROOT / "keras_lkca").rglob("*.py"):
        assert not pattern.search(path.read_text()), path


# What each room may use; the ground floor is open to all and uses itself alone.
GROUND = {"backend", "checks", "devices", "extras", "files", "internals"}
MAY_USE = {
    "ops": set(),
    "layers": {"ops"},
    "models": {"ops", "layers"},
    "data": set(),
    "training": {"data", "models"},
    "deploy": {"ops", "layers", "models", "data"},
    "interpret": {"ops", "layers", "models"},
}


def used_by(path):
    """Return the rooms and the files of the ground floor that a file imports."""
    text = path.read_text()
    named = re.findall(r"^\s*(?:from|import) keras_lkca\.(\w+)", text, re.M)
    for names in re.findall(r"^\s*from keras_lkca import \(?([\w, \n]+)", text, re.M):
        named += re.findall(r"\w+", names)
    return {name for name in named if name in GROUND | set(MAY_USE)}


def test_dependencies_point_one_way():
    package = ROOT / "keras_lkca"
    for room, others in MAY_USE.items():
        for path in (package / room).glob("*.py"):
            assert used_by(path) <= GROUND | others | {room}, path
    for name in GROUND:
        assert used_by(package / f"{name}.py") <= GROUND


@pytest.mark.parametrize("name", [name for name in MODULES if name.count(".") == 1])
def test_no_module_has_the_name_of_what_it_exports(name):
    """Else the name would mean the one or the other, as the imports went."""
    package = importlib.import_module(name)
    files = {
        module.name
        for module in pkgutil.iter_modules(package.__dict__.get("__path__", []))
    }
    assert not files & set(getattr(package, "__all__", ()))


def readme():
    return (ROOT / "README.md").read_text()


BLOCKS = re.findall(r"```python\n(.*?)```", readme(), re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_readme_example_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})


def test_readme_names_the_commands():
    for command in ("make demo", "make test"):
        assert command in readme()


@pytest.mark.parametrize("preset", list_presets(trained=True))
def test_readme_table_of_trained_models(preset):
    row = PRESETS[preset]
    (line,) = re.findall(rf"^\| `{preset}` .*$", readme(), re.M)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    model = ImageModel.from_preset(preset, load_weights=False)
    trainable = sum(math.prod(w.shape) for w in model.trainable_weights)
    assert cells[1:4] == [
        row.weights.dataset,
        f"{row.weights.test_accuracy:.1%}".replace("%", " %"),
        f"{trainable:,}",
    ]


@pytest.mark.parametrize("preset", list_presets(trained=False))
def test_readme_preset_table(preset):
    row = PRESETS[preset]
    (line,) = re.findall(rf"^\| `{preset}` .*$", readme(), re.M)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    counts = [f"{n:,}" for n in row.parameters.values()]
    assert cells[1:6] == [
        row.paper_name or "",
        str(row.arguments["embed_dim"]),
        str(row.arguments["depth"]),
        str(row.num_heads),
        str(row.arguments["mlp_ratio"] or ""),
    ]
    assert [cell for cell in cells[6:] if cell] == counts


def test_version_and_extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", keras_lkca.__version__)
    extras = {"tensorflow", "jax", "torch", "data", "tfds", "export", "plot"}
    assert set(project["optional-dependencies"]) == extras | {"docs", "test"}
    assert pathlib.Path(ROOT / "LICENSE").read_text().strip().startswith("Apache")
