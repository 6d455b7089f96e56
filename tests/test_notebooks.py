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
PATHS = sorted(path for path in (TOP/"nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
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
CHAPTERS = ("0_base", "1_codec", "2_data", "3_training", "4_evaluation", "5_surprisal", "6_perception", "7_tools", "9_studies")


def place(path): return path.relative_to(TOP/"nbs").as_posix()


every_notebook = pytest.mark.parametrize("path", PATHS, ids=place)
library_notebook = pytest.mark.parametrize("path", LIBRARY, ids=place)


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


def exported(path): return "\n".join(cell.source for cell in code_cells(read(path)) if re.search(r"^#\s*\|\s*export", cell.source, re.M))


def imported_modules(source):
    "The modules of this package that code imports, wherever in it, by their dotted names without the package's."
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("latentalign."): yield node.module.removeprefix("latentalign.")
        elif isinstance(node, ast.Import): yield from (alias.name.removeprefix("latentalign.") for alias in node.names if alias.name.startswith("latentalign."))


def imports_upwards(path, modules):
    "What a notebook's exported code imports from notebooks that do not sort before it."
    return [f"{place(path)} imports {name} of {place(modules[name])}" for name in imported_modules(exported(path)) if name in modules and place(modules[name]) >= place(path)]


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_from_what_sorts_before_it(module):
    chapter, name = place(MODULES[module]).split("/")
    assert chapter in CHAPTERS and re.fullmatch(r"\d\d_\w+\.ipynb", name)
    assert module == f"{chapter[2:]}.{name[3:-6]}" and (TOP/"latentalign"/f"{module.replace('.', '/')}.py").is_file()
    assert not imports_upwards(MODULES[module], MODULES)


def test_import_from_a_later_chapter_is_named(tmp_path):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("#| export\nfrom latentalign.training.loop import fit")])
    path = TOP/"nbs/1_codec/00_new.ipynb"
    found = [name for name in imported_modules(nb.cells[0].source) if place(MODULES[name]) >= place(path)]
    assert found == ["training.loop"]


def test_no_module_stays_behind():
    "What nbdev wrote for a notebook that is gone has to be deleted by hand."
    there = {path.relative_to(TOP/"latentalign").with_suffix("").as_posix().replace("/", ".") for path in (TOP/"latentalign").rglob("*.py")}
    assert {name for name in there if not name.endswith("__init__")} == set(MODULES) | {"_modidx", "train"} and len(set(MODULES.values())) == len(MODULES)


def links_of(text): return [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target and not target.startswith(("#", "data:", "mailto:"))]


def dead_links(folder, text): return [target for target in links_of(text) if target and not (folder/target).exists()]


@every_notebook
def test_links_lead_somewhere(path):
    dead = [target for cell in read(path).cells if cell.cell_type == "markdown" for target in dead_links(path.parent, cell.source)]
    assert not dead, f"{place(path)}: {dead}"
    named = {name for cell in read(path).cells for name in re.findall(r"[\w/.]*\b[a-z0-9]\w*\.ipynb", cell.source) if "_" in name}
    lost = [name for name in named if re.match(r"[./]*(nbs/)?(\d_\w+/)?\d\d_", name) and not any(p.as_posix().endswith(name.lstrip("./")) for p in PATHS)]
    assert not lost, f"{place(path)} names {lost}"


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LOG.md", "data/README.md"])
def test_links_of_the_pages_lead_somewhere(name):
    page = TOP/name
    assert not dead_links(page.parent, page.read_text(encoding="utf-8"))


def test_dead_link_is_found(tmp_path):
    (tmp_path/"there.md").touch()
    assert dead_links(tmp_path, "[a](there.md#x) [b](gone.ipynb) [c](https://example.org)") == ["gone.ipynb"]


BAR = re.compile(r"\d%\|")


@every_notebook
def test_output_holds_no_progress_bar(path):
    "Stripped when it is exported; a reader has no use for it."
    lines = [line for cell in code_cells(read(path)) for output in cell.outputs for line in output.get("text", "").splitlines() if BAR.search(line)]
    assert not lines, lines[:2]


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
