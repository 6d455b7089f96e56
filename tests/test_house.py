"""The house: what its plan asks of chapters, modules, front page and weight, computed from the code."""
import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

TOP = Path(__file__).resolve().parent.parent
MODULES = sorted(p for p in (TOP/"latentalign").glob("*/*.py") if p.name != "__init__.py")
README = (TOP/"README.md").read_text(encoding="utf-8")


def body_lines(function):
    "Lines of a function without its signature and docstring."
    body = function.body[1:] if isinstance(function.body[0], ast.Expr) and isinstance(function.body[0].value, ast.Constant) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_modules_and_functions_are_of_a_size_to_be_read():
    assert not [p.name for p in MODULES if len(p.read_text(encoding="utf-8").splitlines()) > 320]
    trees = [ast.parse(p.read_text(encoding="utf-8")) for p in MODULES]
    sizes = sorted(body_lines(n) for tree in trees for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))
    assert statistics.median(sizes) <= 7 and sizes[int(.9*len(sizes))] <= 17


def imports(path):
    "The modules of this package that a module imports at its top."
    package = path.parent.name
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level: yield node.module if node.level == 2 else f"{package}.{node.module}"


def test_no_import_in_a_circle():
    graph = {f"{p.parent.name}.{p.stem}": set(imports(p)) for p in MODULES}
    done = set()
    while ready := [name for name, wanted in graph.items() if name not in done and wanted <= done]: done |= set(ready)
    assert done == set(graph), f"in a circle, or imported and not there: {sorted(set(graph) - done)}"


def test_tables_need_neither_torch_nor_accelerate():
    program = "import sys, latentalign.evaluation.tables; print([m for m in ('torch', 'accelerate', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=TOP)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


ROWS = re.findall(r"^\| ([^|]+) \| (.+) \| \[[^\]]+\]\(([^)]+\.ipynb)\) \| `([\w.]+)` \|$", README, re.M)


def test_front_page_is_short_and_has_its_parts():
    assert len(README.splitlines()) <= 150 and len(ROWS) >= 15
    places = [README.index(word) for word in ("![png](figures/readme", "listening.html", "pip install", "make train", "## Measured", "## Four doors", "## Equation", "## Chapters", "## Licence")]
    assert places == sorted(places)


@pytest.mark.parametrize("source, notebook, name", [(s, n, f) for s, _, n, f in ROWS])
def test_equation_is_found_from_the_front_page(source, notebook, name):
    "One click to the notebook, where the function stands below a heading that can be linked."
    cells = nbformat.read(TOP/notebook, as_version=4).cells
    function = name.rsplit(".", 1)[1]
    defining = next(i for i, cell in enumerate(cells) if re.search(rf"^(def|class) {function}\b", cell.source, re.M))
    assert any(cell.cell_type == "markdown" and re.search(r"^#{1,3} ", cell.source, re.M) for cell in cells[:defining])


def test_working_tree_stays_light():
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=TOP, capture_output=True)
    if listed.returncode: pytest.skip("no git here")
    weight = sum((TOP/name).stat().st_size for name in set(listed.stdout.decode().split("\0")) if name and (TOP/name).is_file())
    assert weight <= 40*2**20, f"{weight/2**20:.1f} MiB"
