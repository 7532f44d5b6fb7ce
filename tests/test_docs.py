"""The documentation: its code runs, and its API pages name all that is public."""

import importlib
import json
import re

import pytest
from conftest import ROOT

pytestmark = pytest.mark.once
DOCS = ROOT / "docs"
SUBPACKAGES = ("data", "deploy", "interpret", "layers", "models", "ops", "training")
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<info>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$", re.M | re.S
)


def python_blocks(path):
    """Yield the line and the code of each block that is to run."""
    text = path.read_text()
    for match in FENCE.finditer(text):
        language, _, marks = match["info"].strip().partition(" ")
        assert language, f"{path}: a block without a language, use text"
        if language == "python" and ".no-test" not in marks:
            yield text.count("\n", 0, match.start("code")), match["code"]


PAGES = [
    pytest.param(page, id=str(page.relative_to(DOCS)))
    for page in sorted(DOCS.rglob("*.md"))
    if any(python_blocks(page))
]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for line, code in python_blocks(page):
        # With the page's own line numbers in a traceback.
        exec(compile("\n" * line + code, str(page), "exec"), namespace)


def described(page):
    """Return the names that a page's `:::` blocks describe."""
    paths = re.findall(r"^::: (\S+)$", page.read_text(), re.M)
    # A function of the same name as its file is found by its whole path.
    return [re.sub(r"(\.\w+)\1$", r"\1", path) for path in paths]


@pytest.mark.parametrize("name", SUBPACKAGES)
def test_an_api_page_names_all_that_is_public(name):
    module = importlib.import_module(f"keras_lkca.{name}")
    names = [f"{module.__name__}.{public}" for public in module.__all__]
    assert sorted(described(DOCS / "api" / f"{name}.md")) == sorted(names)


def test_the_top_level_page_names_all_that_is_public():
    package = importlib.import_module("keras_lkca")
    page = (DOCS / "api" / "index.md").read_text()
    named = re.findall(r"^\| \[`keras_lkca\.(\w+)`\]", page, re.M)
    assert sorted(named) == sorted(package.__all__)


def test_every_page_and_figure_is_there():
    config = (ROOT / "mkdocs.yml").read_text()
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert set(re.findall(r"[\w/-]+\.md", config)) == pages
    for page in DOCS.rglob("*.md"):
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)


RESULTS = ROOT / "benchmarks" / "results"
BACKENDS = ("tensorflow", "jax", "torch")  # the columns of the table


def rows_of(kind):
    """Return the rows of a benchmark's committed results, under each backend."""
    files = (RESULTS / f"{kind}-{backend}-cpu.json" for backend in BACKENDS)
    return [json.loads(path.read_text())["rows"] for path in files]


def first_numbers():
    """Compute the first table of README.md from the committed results."""
    block = []
    for rows in rows_of("scaling"):
        (row,) = (
            row["results"]
            for row in rows
            if (row["tokens"], row["pass"]) == (4096, "training step")
        )
        ratio = row["attention block"]["median"] / row["LKCA block"]["median"]
        block.append(f"{ratio:.{0 if ratio > 20 else 1}f} times as fast")
    step = []
    for rows in rows_of("model"):
        result = rows[0]["results"]
        assert rows[0]["pass"] == "training step"
        names = [name for name in result if ", float32" in name][:2]
        lkca, vit = (result[name]["median"] for name in names)
        assert names[0].startswith("lkca_vit_tiny") and names[1].startswith("vit_tiny")
        step.append(f"{vit / lkca:.1f} times as fast")
    records = [
        json.loads((RESULTS / f"parity-{backend}.json").read_text())
        for backend in BACKENDS
    ]
    assert all(len(record["rows"]) == 60 for record in records)
    parity = [f"{record['largest']:.1e}".replace("e-0", "e-") for record in records]
    return [block, step, parity]


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "index.md"])
def test_the_first_numbers_are_those_of_the_results(page):
    table = page.read_text().partition("| LKCA, beside softmax attention |")[2]
    lines = table.splitlines()[2:5]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[1:4] for row in cells] == first_numbers()
    for row in cells:  # and each stands beside its command
        script = re.search(r"python (benchmarks/\w+\.py)", row[4]).group(1)
        assert (ROOT / script).exists()


def test_every_script_that_is_named_is_there():
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        if page.name != "changelog.md":  # which names what there was
            check_scripts(page)


def check_scripts(page):
    for name in re.findall(r"\b(?:examples|benchmarks)/\w+\.py", page.read_text()):
        assert (ROOT / name).exists(), (page, name)
