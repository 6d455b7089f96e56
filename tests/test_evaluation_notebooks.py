"""evaluate, compare, listening and playground, run through papermill at a very small size, and the command beside them."""
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from papermill.translators import PythonTranslator

from latentalign import Autoencoder
from latentalign.tools.command import main
from latentalign.evaluation.quantities import read_report, write_report

TOP = Path(__file__).resolve().parent.parent
SMALL = 'clips=2 seconds=1 snrs=[Infinity,1,0] scores=["mss","si_sdr","pitch"] embeddings=[]'


def run(folder, name, *args, ok=True):
    "Type `papermill nbs/NAME.ipynb ARGS` in a folder, without an output path; returns what was printed."
    environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | {"PYTHONPATH": str(TOP), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, TOP/".ci"/"papermill", TOP/"nbs"/f"{name}.ipynb", *map(str, args)], cwd=folder, env=environment,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert (done.returncode == 0) == ok, done.stderr[-3000:]
    return done.stdout + done.stderr


def shown(path):
    "What an executed notebook shows: all texts, and how many pictures and players."
    outputs = [o for cell in nbformat.read(path, as_version=4).cells for o in cell.get("outputs", [])]
    text = "\n".join(o.get("text", "") + o.get("data", {}).get("text/markdown", "") for o in outputs)
    return text, sum("image/png" in o.get("data", {}) for o in outputs), sum("<audio" in o.get("data", {}).get("text/html", "") for o in outputs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Two evaluated runs: the bundled model through the notebook, an untrained one through the command."
    folder = tmp_path_factory.mktemp("evaluated")
    printed = run(folder, "evaluate", "-p", "checkpoint", "m2l", "-p", "changes", SMALL)
    assert "unknown parameter" not in printed
    Autoencoder.from_preset("tiny").save_pretrained(folder/"runs"/"untrained")
    here = os.getcwd()
    os.chdir(folder)
    try: assert main(["evaluate", "runs/untrained", "--changes", SMALL]) == 0
    finally: os.chdir(here)
    return folder


def test_evaluate_needs_no_download_and_tells_everything(folder):
    report = read_report(folder/"runs"/"evaluated-m2l"/"evaluation.json")
    assert report["model"]["name"] == "m2l" and report["model"]["fingerprint"] and report["seconds"] > 0
    assert set(report["sets"]) == {"scores", "melodies"} and set(report["sets"]["melodies"]["noise"]["1"]) == {"mss", "si_sdr", "pitch"}
    assert report["settings"] | {"clips": 2, "seconds": 1, "seed": 0, "figures": ["linearity", "latent", "noise"]} == report["settings"]
    text, pictures, players = shown(folder/"runs"/"evaluated-m2l"/"evaluate.ipynb")
    for word in ("*Lin-CAE, paper*", "*aligned, paper*", "SI-SDR ↑, dB", "encoder additivity, error", "noise alone", "pitch", "a = −1", "as far as so few clips can tell"): assert word in text, word
    assert pictures == 1 + 1 + 2 and players == (5 + 4) + 4 + 3


def test_compare_shows_what_was_recorded(folder):
    run(folder, "compare", "-p", "baseline", "m2l", "-p", "out", "page")
    text, pictures, players = shown(folder/"page"/"compare.ipynb")
    mean = {name: read_report(folder/"runs"/kept/"evaluation.json")["sets"]["scores"]["linearity"]["reconstruction_mss"]["mean"] for name, kept in (("m2l", "evaluated-m2l"), ("untrained",)*2)}
    assert mean["untrained"] > mean["m2l"]
    row = next(line for line in (folder/"page"/"linearity.md").read_text().splitlines() if line.startswith("| reconstruction, MSS"))
    assert f"| {mean['m2l']:.3g} |" in row and f"×{mean['untrained']/mean['m2l']:.2f} |" in row and "**" not in row and "*0.98*" in row
    assert row in text and pictures == 4
    assert {p.name for p in (folder/"page").glob("*.png")} == {"linearity.png", "noise.png", "kept.png", "separation.png"}


@pytest.mark.parametrize("name", ["train", "evaluate", "compare", "listening", "playground"])
def test_papermill_knows_every_parameter(name):
    "It reads the cell of parameters line by line, and passes over what it cannot read, such as an equals sign in a comment."
    cells = nbformat.read(TOP/"nbs"/f"{name}.ipynb", as_version=4).cells
    cell = next(cell for cell in cells if "parameters" in cell.metadata.get("tags", []))
    wanted = [line.split(":")[0] for line in cell.source.splitlines() if line[:1].isidentifier()]
    known = PythonTranslator.inspect(cell)
    assert wanted and [p.name for p in known] == wanted and all(p.help for p in known)


def test_listening_writes_a_page_and_shows_what_is_measured_in_it(folder):
    printed = run(folder, "listening", "-p", "models", "m2l mine=runs/untrained", "-p", "seconds", "0.5", "-p", "out", "heard/page.html")
    page = (folder/"heard"/"page.html").read_text()  # m2l has no texture, and so no second step
    assert page.count("<audio") == 5 + 16 + 17 and "unknown parameter" not in printed and "MiB" in printed
    cells = nbformat.read(folder/"heard"/"listening.ipynb", as_version=4).cells
    table = "".join(o["data"].get("text/html", "") for cell in cells for o in cell.get("outputs", []) if "data" in o)
    assert table.count("<figcaption>") == page.count("<figcaption>") and "<audio" not in table and "<img" not in table and '<th scope="col">mine</th>' in table


def test_compare_tells_what_it_cannot_compare(folder):
    report = read_report(folder/"runs"/"untrained"/"evaluation.json")
    del report["sets"]["scores"]["noise"]
    write_report(folder/"one.json", report)
    done = run(folder, "compare", "-p", "runs", "runs/evaluated-m2l/evaluation.json one=one.json", ok=False)
    assert "no linearity or no noise on the test set 'scores' in the reports of one" in done
    assert "no run 'm3l' to compare with; there are m2l, untrained" in run(folder, "compare", "-p", "baseline", "m3l", ok=False)


def test_command_prints_tables_and_leaves_a_report_alone(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    before = Path("runs/untrained/evaluation.json").stat().st_mtime_ns
    assert main(["evaluate", "runs/untrained", "--changes", SMALL]) == 0 and "there already" in capsys.readouterr().err
    assert main(["evaluate", "runs/untrained"]) == 2 and "made otherwise (clips was 2" in capsys.readouterr().err
    assert Path("runs/untrained/evaluation.json").stat().st_mtime_ns == before
    assert main(["evaluate", "runs/untrained", "--overwrite", "--data", "scores", "--sets", "linearity", "--changes", "clips=1 seconds=1", "--out", "one.json"]) == 0
    assert "| separation of bass, MSS ↓, nepers |" in capsys.readouterr().out and list(read_report("one.json")["sets"]) == ["scores"]
    for args, word in ((["--data", "score"], "'score'"), (["--protocol", "slow"], "lin-cae"), (["--sets", "loudness"], "loudness"), (["--changes", "clip=1"], "'clip'")):
        assert main(["evaluate", "runs/untrained", "--out", "no.json", *args]) == 2
        assert word in capsys.readouterr().err and not Path("no.json").exists()


def test_playground_runs_without_a_browser_and_does_not_normalise(folder):
    moved = nbformat.read(TOP/"nbs"/"playground.ipynb", as_version=4)
    move = "first = view.value; sliders['bass'].value = -1.; ratio.value = .25; second = view.value\nfor s in sliders.values(): s.value = 0.\nassert len({first, second, view.value}) == 3 and view.value.count('<audio') == 2"
    moved.cells.insert(len(moved.cells) - 1, nbformat.v4.new_code_cell(move))
    nbformat.write(moved, folder/"moved.ipynb")
    run(folder, folder/"moved", folder/"playground.ipynb", "-p", "seconds", "1")    # an absolute path stands for itself
    text, pictures, players = shown(folder/"playground.ipynb")
    html = "".join(o["data"].get("text/html", "") for cell in nbformat.read(folder/"playground.ipynb", as_version=4).cells for o in cell.get("outputs", []) if "data" in o)
    assert html.count("<img") == 1 and html.count("<audio") == 2 and "dB below full scale" in text
    code = "\n".join(cell.source for cell in nbformat.read(TOP/"nbs"/"playground.ipynb", as_version=4).cells if cell.cell_type == "code")
    assert code.count("Audio(") == code.count("normalize=False") == 1
