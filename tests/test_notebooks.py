"""The form of the notebooks: what nbdev, papermill and a reader of the web page rely on."""
import ast
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

TOP = Path(__file__).resolve().parent.parent
PATHS = sorted((TOP/"nbs").glob("*.ipynb"))
EXPORT = re.compile(r"^#\s*\|\s*default_exp\s+([\w.]+)", re.M)
MACHINE_PATH = re.compile(r"(?<![\w.~}-])/(work|home|root|tmp|Users)/[\w.-]+")
MAX_KIB = 1500


def read(path): return nbformat.read(path, as_version=4)
def code_cells(nb): return [cell for cell in nb.cells if cell.cell_type == "code"]


def module_of(path):
    "The module that the notebook at `path` exports to, or None."
    found = [m[1] for cell in code_cells(read(path)) if (m := EXPORT.search(cell.source))]
    return found[0] if found else None


MODULES = {module: path for path in PATHS if (module := module_of(path))}
LIBRARY = list(MODULES.values())
every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
library_notebook = pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.name)


def shown_text(nb):
    "Every line of text that a reader of `nb` meets: sources and textual outputs, without embedded sounds and pictures."
    for cell in nb.cells:
        yield cell.source
        for output in cell.get("outputs", []):
            yield output.get("text", "")
            for kind, content in output.get("data", {}).items():
                if kind.startswith("text/"): yield re.sub(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=\s]+", "", content)


def parse(source):
    "The syntax tree of a code cell, its magics left out."
    return ast.parse(re.sub(r"^\s*[%!].*$", "", source, flags=re.M))


@every_notebook
def test_notebook_is_valid_and_small(path):
    nbformat.validate(read(path))
    assert path.stat().st_size < MAX_KIB*1024, f"{path.stat().st_size//1024} KiB: make its pictures and sounds smaller"


@every_notebook
def test_notebook_starts_with_title_and_summary(path):
    first = next(cell for cell in read(path).cells if cell.cell_type != "raw")
    assert first.cell_type == "markdown" and re.match(r"# \S.*\n\s*\n?> \S", first.source), first.source[:200]


@every_notebook
def test_notebook_names_no_path_of_the_machine_it_ran_on(path):
    found = [m[0] for text in shown_text(read(path)) for m in MACHINE_PATH.finditer(text)]
    assert not found, found


@every_notebook
def test_notebook_shows_no_error(path):
    errors = [output.evalue for cell in code_cells(read(path)) for output in cell.outputs if output.output_type == "error"]
    assert not errors, errors


@every_notebook
def test_sounds_keep_their_level(path):
    "IPython scales every sound to full scale unless told not to, which would hide a wrong gain."
    for cell in code_cells(read(path)):
        for node in ast.walk(parse(cell.source)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "Audio":
                kept = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
                assert kept.get("normalize") is False, ast.unparse(node)


@library_notebook
def test_library_notebook_ends_with_its_export(path):
    assert "nbdev_export()" in code_cells(read(path))[-1].source


@library_notebook
def test_library_notebook_has_outputs(path):
    assert any(cell.outputs for cell in code_cells(read(path))), "run it and commit it with its outputs"


def imported_modules(path):
    "The modules of this package that the Python file `path` imports, wherever in the file."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            inside = node.level == 1 or (node.module or "").split(".")[0] == "latentalign"
            if inside:
                name = (node.module or "").removeprefix("latentalign").lstrip(".")
                yield from [name] if name else (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".", 1)[1] for alias in node.names if alias.name.startswith("latentalign."))


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_lower_numbers(module):
    number = {name: path.name.split("_")[0] for name, path in MODULES.items()}
    assert re.fullmatch(r"\d\d", number[module]), f"{MODULES[module].name}: library notebooks are numbered in reading order"
    exported = TOP/"latentalign"/f"{module}.py"
    higher = [name for name in imported_modules(exported) if name in number and number[name] >= number[module]]
    assert not higher, f"{exported.name} ({number[module]}) imports {higher}"


def test_library_notebooks_were_found():
    assert "transform" in MODULES and len(set(MODULES.values())) == len(MODULES)


def tags(path): return [tag for cell in read(path).cells for tag in cell.metadata.get("tags", [])]


def test_parameters_tag_survives_cleaning(tmp_path):
    shutil.copy(TOP/"settings.ini", tmp_path)
    (tmp_path/"nbs").mkdir()
    copy = Path(shutil.copy(TOP/"nbs"/"train.ipynb", tmp_path/"nbs"))
    assert tags(copy).count("parameters") == 1
    subprocess.run([Path(sys.executable).with_name("nbdev_clean")], cwd=tmp_path, check=True)
    assert tags(copy).count("parameters") == 1


def on_a_terminal(args, cwd):
    "Run `args` with a terminal of 80 columns as its standard streams; returns what it printed and its status."
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execvpe("sh", ["sh", "-c", 'stty cols 80; exec "$@"', "sh", *map(str, args)], os.environ)
    printed = b""
    while True:
        try: chunk = os.read(terminal, 4096)
        except OSError: break  # the terminal's other end was closed
        if not chunk: break
        printed += chunk
    os.close(terminal)
    return printed.decode(errors="replace"), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_papermill_needs_no_output_path_and_runs_in_this_environment(tmp_path):
    "`papermill nbs/train.ipynb -p variant lin` as typed on a terminal: its result, its kernel, its live progress bar."
    nb = nbformat.v4.new_notebook(metadata={"kernelspec": read(TOP/"nbs"/"train.ipynb").metadata.kernelspec})
    nb.cells = [nbformat.v4.new_code_cell("variant = 'm2l'", metadata={"tags": ["parameters"]}),
                nbformat.v4.new_code_cell("import sys; from tqdm import tqdm\nfor i in tqdm(range(3)): pass"),
                nbformat.v4.new_code_cell("print(variant, sys.prefix)")]
    (tmp_path/"nbs").mkdir()
    nbformat.write(nb, tmp_path/"nbs"/"train.ipynb")
    args = [sys.executable, TOP/".ci"/"papermill", "nbs/train.ipynb", "-p", "variant", "lin"]
    printed, status = on_a_terminal(args, cwd=tmp_path)
    assert status == 0, printed
    assert "3/3" in printed and f"lin {sys.prefix}" in printed
    executed = json.loads((tmp_path/"runs"/"lin"/"train.ipynb").read_text(encoding="utf-8"))
    assert f"lin {sys.prefix}\n" in "".join(executed["cells"][-1]["outputs"][0]["text"])
