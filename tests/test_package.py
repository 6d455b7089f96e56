"""The package as its users get it: the wheel, what importing it costs, and an installation with the core alone."""
import configparser
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TOP = Path(__file__).resolve().parent.parent
EXTRAS = {"train", "data", "eval", "eeg", "bids", "browser", "site", "all", "dev"}
ONLY_IN_EXTRAS = {"torchaudio", "music21", "matplotlib", "accelerate", "papermill", "symusic", "pretty_midi", "nbdev",
                  "fastcore", "jupyterlab", "pytest", "torchcrepe", "visqol-python", "numba", "transformers", "librosa", "scipy",
                  "mtrf", "h5py", "mne", "mne_bids", "PySide6",
                  "sphinx", "myst-nb"}


def run(*args, cwd):
    "Run a program outside the repository, with nothing of this environment in its path; returns what it printed."
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run([*map(str, args)], cwd=cwd, env=env | {"PYTHONNOUSERSITE": "1"}, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, args))}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel, built from a copy so that the build leaves nothing in the repository."
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("settings.ini", "setup.py", "pyproject.toml", "LICENSE", "README.md"):
        if (TOP/name).exists(): shutil.copy(TOP/name, source)
    for name in ("latentalign", "nbs", "tests"):
        shutil.copytree(TOP/name, source/name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, source, cwd=out)
    return next(out.glob("latentalign-*.whl"))


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


@pytest.fixture(scope="module")
def settings():
    ini = configparser.ConfigParser(delimiters=["="], interpolation=None)
    ini.read(TOP/"settings.ini", encoding="utf-8")
    return ini["DEFAULT"]


def requirements(metadata, extra=""):
    "What the wheel requires for `extra`; the empty name is the core."
    found = map(Requirement, metadata.get_all("Requires-Dist"))
    if not extra: return [req for req in found if req.marker is None]
    return [req for req in found if req.marker and req.marker.evaluate({"extra": extra})]


def test_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive: names = set(archive.namelist())
    stray = {name for name in names if not re.match(r"latentalign(-[\d.]+\.dist-info)?/", name)}
    assert not stray
    wanted = {path.relative_to(TOP).as_posix() for path in (TOP/"latentalign").rglob("*")
              if path.suffix in (".py", ".json", ".safetensors", ".md")}
    assert wanted == {name for name in names if name.startswith("latentalign/")}
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_metadata(metadata, settings):
    assert metadata["Name"] == "latentalign" and metadata["Version"] == settings["version"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert set(metadata.get_all("Provides-Extra")) == EXTRAS
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_requirements_are_lower_bounds(metadata):
    "A single broken release may be left out; only `dev`, which no user of the package installs, pins its tools."
    for extra in {"", *EXTRAS} - {"dev"}:
        for req in requirements(metadata, extra):
            operators = sorted(spec.operator for spec in req.specifier)
            assert operators in ([">="], ["!=", ">="]), str(req)


def test_core_is_small(metadata, settings):
    core = {req.name for req in requirements(metadata)}
    assert core == {Requirement(word).name for word in settings["requirements"].split()}
    assert len(core) <= 8 and not core & ONLY_IN_EXTRAS


def test_everything_installed_is_pinned(metadata):
    lines = [line for line in (TOP/"constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    wrong = [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.+!]+", line)]
    assert not wrong, "no addresses, no local paths"
    pinned = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert pinned["torch"] == pinned["torchaudio"], "torch and torchaudio are a matching pair"
    for req in map(Requirement, metadata.get_all("Requires-Dist")):
        assert req.specifier.contains(pinned[canonicalize_name(req.name)]), str(req)


def test_package_imports_nothing_of_the_extras(tmp_path):
    script = ("import sys, latentalign; assert 'torch' not in sys.modules; from latentalign import Autoencoder; "
              "print(*{name.split('.')[0] for name in sys.modules})")
    loaded = set(run(sys.executable, "-c", script, cwd=tmp_path).split())
    assert "torch" in loaded and not loaded & ONLY_IN_EXTRAS


def test_import_takes_less_than_a_second_beyond_torch(tmp_path):
    script = ("import torch; from time import perf_counter; start = perf_counter(); "
              "import latentalign; latentalign.Autoencoder; print(perf_counter() - start)")
    seconds = [float(run(sys.executable, "-c", script, cwd=tmp_path)) for _ in range(3)]
    assert min(seconds) < 1, seconds  # the first may compile, and other programs on the machine only ever add to it


def test_unknown_attribute_is_named():
    import latentalign
    with pytest.raises(AttributeError, match="no_such_thing"): latentalign.no_such_thing
    assert "Autoencoder" in dir(latentalign)


@pytest.fixture(scope="module")
def empty(wheel):
    "The `bin` folder of a new environment that holds the wheel and the core's requirements. Takes two minutes and 5 GB."
    with tempfile.TemporaryDirectory(dir=sys.prefix, prefix="empty-") as folder:  # /tmp may be too small
        run(sys.executable, "-m", "venv", folder, cwd=folder)
        pip = [Path(folder)/"bin"/"pip", "install", "-q", "--no-compile", "--disable-pip-version-check"]
        run(*pip, "-c", TOP/"constraints.txt", wheel, cwd=folder)
        yield Path(folder)/"bin"


ENCODE = """
import sys
import numpy, soundfile
from latentalign import Autoencoder

wav, model, latents = sys.argv[1:]
Autoencoder.from_preset("tiny").save_pretrained(model)
wave, sample_rate = soundfile.read(wav, dtype="float32")
z = Autoencoder.from_pretrained(model).encode(wave, sample_rate=sample_rate)
numpy.save(latents, numpy.asarray(z))
"""


def test_wheel_encodes_a_file_in_an_empty_environment(empty, tmp_path):
    installed = {line.split("==")[0] for line in run(empty/"pip", "freeze", cwd=tmp_path).splitlines()}
    assert "torch" in installed and not installed & ONLY_IN_EXTRAS
    run(empty/"pip", "check", cwd=tmp_path)

    wav, model, out = tmp_path/"tone.wav", tmp_path/"model", tmp_path/"out"
    soundfile.write(wav, 0.5*np.sin(2*np.pi*440*np.arange(2*44100)/44100), 44100)
    run(empty/"python", "-c", ENCODE, wav, model, tmp_path/"z.npy", cwd=tmp_path)
    z = np.load(tmp_path/"z.npy")
    assert z.ndim == 2 and z.shape[-1] > 1 and np.isfinite(z).all() and z.std() > 0

    run(empty/"latentalign", "encode", wav, "--model", model, "--out", out, cwd=tmp_path)
    written = {path.name: path for path in out.rglob("*") if path.is_file()}
    assert set(written) == {"tone.safetensors", "latentalign.jsonl"} and written["tone.safetensors"].stat().st_size > 0
