"The models that come with the package, their cards, and the page of results."
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latentalign import Autoencoder, Surprisal
from latentalign.cards import LARGEST, bundle, lineage, training_facts, training_seconds
from latentalign.metrics import mss_error
from latentalign.storage import BUNDLED, bundled_models

TOP = Path(__file__).parent.parent
FAMILY = ("m2l", "lin", "lin-exact", "align", "lin-align", "lin-exact-align")
LISTENERS = ("m2l", "align", "lin-align")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_family_is_whole():
    assert set(FAMILY) <= set(bundled_models("autoencoder")) and set(LISTENERS) <= set(bundled_models("surprisal"))
    for path in BUNDLED.glob("*/*"):
        assert (path/"model.safetensors").stat().st_size <= LARGEST and (path/"config.json").is_file()
        card = (path/"README.md").read_text()
        assert card.startswith("---\nlicense: apache-2.0\n") and f"\n# {path.name}\n" in card
        for word in ("Size", "Data", "Steps", "Time", "Machine", "Weaknesses"): assert f"* **{word}:** " in card, (path, word)
        assert "seed" in card and "| --: |" in card, "steps, seed and a table of measurements"


@pytest.mark.parametrize("name", FAMILY)
def test_autoencoder_loads_offline_and_listens(name):
    model = Autoencoder.from_pretrained(name)
    t = torch.arange(22050) / 22050
    sounds = torch.stack([.3 * torch.sin(2 * torch.pi * f * t) * (1 - t) for f in (262., 440.)])
    own = mss_error(model.decode(model.encode(sounds), length=22050), sounds, 22050)
    other = mss_error(model.decode(model.encode(sounds.flip(0)), length=22050), sounds, 22050)
    assert model.sample_rate == 22050 and (own < other).all()


def test_what_was_trained_for_linearity_is_more_linear():
    "Gain and sum of tones; noise is outside of what the models have heard."
    t = torch.arange(22050) / 22050
    low, high = (.3 * torch.sin(2 * torch.pi * f * t) * (1 - t) for f in (262., 440.))
    def errors(name):
        encode, relative = Autoencoder.from_pretrained(name).encode, lambda z, aim: float((z - aim).norm() / aim.norm())
        return relative(encode(.5 * low), .5 * encode(low)), relative(encode(low) + encode(high), encode(low + high))
    assert all(linear < .5 * plain for linear, plain in zip(errors("lin-align"), errors("m2l")))


@pytest.mark.parametrize("name", LISTENERS)
def test_surprisal_model_finds_its_autoencoder(name):
    model = Surprisal.from_pretrained(name)
    assert model.config.autoencoder == name
    ic = model(.1 * torch.randn(22050, generator=torch.Generator().manual_seed(0)), 22050, (0., .5), silence="none")
    assert ic.shape[0] == 2 and torch.isfinite(torch.as_tensor(ic)[:, 1:]).all()


def run_folder(folder, **record):
    folder.mkdir(parents=True)
    (folder/"run.json").write_text(json.dumps({"variant": "lin", "data": "scores", "init_from": "", "train": {"steps": 7, "batch_size": 8, "seed": 3}} | record))
    (folder/"environment.json").write_text(json.dumps({"machine": "x", "threads": 2, "accelerator": "none", "torch": "2"}))
    (folder/"metrics.jsonl").write_text('{"step": 5, "seconds_per_step": 12}\n{"step": 7, "seconds_per_step": 30}\n')
    return folder


def test_records_tell_where_a_model_comes_from(tmp_path):
    run_folder(tmp_path/"runs/a", variant="m2l")
    b = run_folder(tmp_path/"runs/b", init_from="runs/a")
    assert [name for name, _ in lineage(b)] == ["a", "b"] and training_seconds(b) == 5 * 12 + 2 * 30
    facts = training_facts(b)
    assert facts["steps"] == "7 steps of 8 (`m2l`), then 7 steps of 8 (`lin`), seed 3" and facts["time"].startswith("2 minutes") and "GPL-2" in facts["data"]
    moved = shutil.copytree(tmp_path/"runs", tmp_path/"elsewhere")
    assert [name for name, _ in lineage(moved/"b")] == ["a", "b"], "records are found side by side wherever they lie"


def test_records_that_lead_nowhere_are_named(tmp_path):
    with pytest.raises(ValueError, match="runs/a"): lineage(run_folder(tmp_path/"runs/b", init_from="runs/a"))
    run_folder(tmp_path/"runs/a", init_from="runs/b")
    with pytest.raises(ValueError, match="begin with each other"): lineage(tmp_path/"runs/b")
    with pytest.raises(ValueError, match="no record"): training_facts(tmp_path)


def test_too_large_a_model_is_not_shipped(tmp_path, monkeypatch):
    folder = run_folder(tmp_path/"run")
    Autoencoder.from_preset("tiny").save_pretrained(folder)
    monkeypatch.setattr("latentalign.cards.LARGEST", 1e6)
    with pytest.raises(ValueError, match="1 are the most"): bundle(folder, Autoencoder, tmp_path/"out")


def test_the_page_is_drawn_from_the_records_and_stands_in_the_readme(tmp_path):
    pages = [TOP/"figures/results"/name for name in ("results.md", "variants.md", "speed.md")]
    shutil.copytree(TOP/"figures", tmp_path/"figures")
    for page in pages: (tmp_path/"figures/results"/page.name).unlink()
    subprocess.run([sys.executable, "-m", "papermill", str(TOP/"nbs/results.ipynb"), "page.ipynb", "-p", "figures", "figures"], check=True, capture_output=True)
    for page in pages:
        assert (tmp_path/"figures/results"/page.name).read_text() == page.read_text() and page.read_text().strip() in (TOP/"README.md").read_text()
        for picture in re.findall(r"\]\((figures/[^)]+)\)", page.read_text()): assert (TOP/picture).is_file(), picture


def test_where_linearity_ends_is_measured(tmp_path):
    "A model that is homogeneous by construction follows every gain, and its latents keep their direction."
    (tmp_path/"figures").mkdir()
    subprocess.run([sys.executable, "-m", "papermill", str(TOP/"nbs/shortfall.ipynb"), "page.ipynb", "-p", "models", "lin-exact", "-p", "clips", "2"], check=True, capture_output=True)
    found = json.loads((tmp_path/"figures/shortfall.json").read_text())["models"]["lin-exact"]
    for gain, entry in found["gains"].items():
        assert entry["size"] == pytest.approx(20 * math.log10(float(gain)), abs=1e-3) and entry["direction"] == pytest.approx(1, abs=1e-5)
    assert 0 < found["sum"]["error"] < 2 and found["sum"]["sum"] != found["sum"]["noise"]


def test_cards_quote_the_records():
    for name in FAMILY:
        mean = json.loads((TOP/f"figures/results/{name}/evaluation.json").read_text())["sets"]["scores"]["linearity"]["reconstruction_mss"]["mean"]
        assert f"| reconstruction, MSS, nepers | {mean:.3g} [" in (BUNDLED/"autoencoder"/name/"README.md").read_text()
