"The models that come with the package, their cards, and the page of results."
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latentalign import Autoencoder, Surprisal
from latentalign.training.records import training_seconds
from latentalign.tools.cards import LARGEST, bundle, lineage, training_facts
from latentalign.base.mel import mss_error
from latentalign.base.models import BUNDLED, bundled_models

TOP = Path(__file__).parent.parent
FAMILY, LISTENERS = bundled_models("autoencoder"), bundled_models("surprisal")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_family_is_whole():
    assert {"m2l", "lin"} <= set(FAMILY) and "m2l" in LISTENERS and set(LISTENERS) <= set(FAMILY)
    assert sum(path.stat().st_size for path in BUNDLED.rglob("*.safetensors")) <= 24e6
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
    sounds = torch.stack([.2 * sum(torch.sin(2 * torch.pi * k * f * t) / k for k in range(1, 9)) * (1 - t) for f in (262., 440.)])  # two notes that fade
    own = mss_error(model.decode(model.encode(sounds, 22050), length=22050), sounds, 22050)
    other = mss_error(model.decode(model.encode(sounds.flip(0), 22050), length=22050), sounds, 22050)
    assert model.sample_rate == 22050 and model.config.ratio == 64 and (own < other).all()


def test_what_was_trained_for_linearity_is_more_linear():
    "Gain and sum of tones; homogeneous by construction, so the gain is exact."
    t = torch.arange(22050) / 22050
    low, high = (.3 * torch.sin(2 * torch.pi * f * t) * (1 - t) for f in (262., 440.))
    def errors(name):
        encode, relative = (lambda x: Autoencoder.from_pretrained(name).encode(x, 22050)), lambda z, aim: float((z - aim).norm() / aim.norm())
        return relative(encode(.5 * low), .5 * encode(low)), relative(encode(low) + encode(high), encode(low + high))
    linear, plain = errors("lin"), errors("m2l")
    assert linear[0] < 1e-4 < plain[0] and linear[1] < .5 * plain[1]


@pytest.mark.parametrize("name", LISTENERS)
def test_surprisal_model_finds_its_autoencoder(name):
    model = Surprisal.from_pretrained(name)
    assert model.config.autoencoder == name
    t = torch.arange(22050) / 22050
    note = .2 * sum(torch.sin(2 * torch.pi * k * 262. * t) / k for k in range(1, 9)) * (1 - t)  # white noise has latents of another scale
    ic = model(note, 22050, (0., .5), silence="none")
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
    monkeypatch.setattr("latentalign.tools.cards.LARGEST", 1e6)
    with pytest.raises(ValueError, match="1 are the most"): bundle(folder, Autoencoder, tmp_path/"out")


def test_the_page_is_drawn_from_the_records_and_its_headlines_stand_in_the_readme(tmp_path):
    pages = [TOP/"figures/results"/name for name in ("results.md", "headline.md")]
    shutil.copytree(TOP/"figures", tmp_path/"figures")
    for page in pages: (tmp_path/"figures/results"/page.name).unlink()
    subprocess.run([sys.executable, "-m", "papermill", str(TOP/"nbs/9_studies/results.ipynb"), "page.ipynb", "-p", "figures", "figures"], check=True, capture_output=True)
    for page in pages: assert (tmp_path/"figures/results"/page.name).read_text() == page.read_text()
    for picture in re.findall(r"\]\(([^)]+\.png)\)", pages[0].read_text()): assert (pages[0].parent/picture).is_file(), picture
    readme = (TOP/"README.md").read_text(encoding="utf-8")
    assert pages[1].read_text().strip() in readme and len(readme.splitlines()) <= 150


def test_cards_quote_the_records():
    for name in FAMILY:
        record = json.loads((TOP/f"figures/family/{name}-0/record.json").read_text())["figures"]["rendered"]["mss"]
        assert f"| log-mel distance (MSS), nepers ↓ | {sum(record) / len(record):.3f} |" in (BUNDLED/"autoencoder"/name/"README.md").read_text()


def test_own_latent_is_closer_than_another_clips():
    "On sixteen of sixteen clips and more, rendered and of songs, for every model that comes with the package."
    for name in FAMILY:
        for found in json.loads((TOP/f"figures/family/{name}-0/record.json").read_text())["figures"].values():
            assert len(found["mss"]) >= 16 and all(own < other for own, other in zip(found["mss"], found["other_mss"])), name
