"""The listening page: its HTML, the sounds in it, and the page as a browser finds it."""
import base64
import importlib.util
import io
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from latentalign import Autoencoder
from latentalign.tools.opening import load_models
from latentalign.tools.command import main
from latentalign.tools.heard import GAIN, RATIOS, Sound, listening_rows, measured, original_sounds
from latentalign.tools.page import decibels, flac_uri, page_gain, page_html, spectrogram_uri
from latentalign.tools.listening import MIN_SECONDS, hear, write_listening
from latentalign.evaluation.test_sets import Clip, open_test_set

TOP = Path(__file__).resolve().parent.parent
VOID = {"meta", "img", "br"}
EVIL = """a"><script>alert(1)</script>&'b"""
STEMS = ("vocals", "bass", "drums", "other")
SECONDS = .6


pytestmark = pytest.mark.usefixtures("one_thread")


class Frames:
    "Frames of 64 samples as the columns of a latent, and two maps on such columns."
    def __init__(self, encoder=lambda x: x, decoder=lambda z: z, sample_rate=8000): self.encoder, self.decoder, self.sample_rate = encoder, decoder, sample_rate
    def encode(self, wave): return self.encoder(torch.nn.functional.pad(wave, (0, -wave.shape[-1] % 64)).unflatten(-1, (-1, 64)).mT)
    def decode(self, z, length): return self.decoder(z).mT.flatten(-2)[..., :length]


class Read(HTMLParser):
    "A page as it is parsed: its elements, and the text of each; every tag that opens must close, in order."
    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.declaration = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_decl(self, declaration): self.declaration = declaration

    def handle_starttag(self, tag, attributes):
        assert len({name for name, _ in attributes}) == len(attributes), (tag, attributes)
        element = {"tag": tag, "text": "", "inside": [e["tag"] for e in self.open]} | dict(attributes)
        self.elements.append(element)
        if tag not in VOID: self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1]["tag"] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        for element in self.open: element["text"] += data

    def all(self, tag, **wanted): return [e for e in self.elements if e["tag"] == tag and all(e.get(k) == v for k, v in wanted.items())]


def sound_of(element):
    "The samples of a player as whole numbers, and their rate."
    kind, _, content = element["src"].partition(",")
    assert kind == "data:audio/flac;base64"
    with soundfile.SoundFile(io.BytesIO(base64.b64decode(content, validate=True))) as f:
        assert (f.format, f.subtype, f.channels) == ("FLAC", "PCM_16", 1)
        return f.read(dtype="int16"), f.samplerate


def level(samples): return 10*math.log10(np.mean((samples/2**15)**2))
def number(text): return float(text.replace("−", "-").replace("∞", "inf"))


@pytest.fixture(scope="module")
def models():
    "A model with the level factored out (exactly homogeneous), and a toy of another rate that makes everything ten times louder."
    plain = Autoencoder.from_preset("tiny")
    torch.nn.init.normal_(plain.denoiser.conv_out.weight, std=.05, generator=torch.Generator().manual_seed(0))  # zero before training
    exact = Autoencoder(replace(plain.config, factor_level=True)).eval()
    exact.load_state_dict(plain.state_dict())
    return {"exact": exact, EVIL: Frames(decoder=lambda z: 10*z)}


@pytest.fixture(scope="module")
def path(models, tmp_path_factory):
    return write_listening(tmp_path_factory.mktemp("page")/"page.html", models, clips=1, seconds=SECONDS, seed=3,
                           about={"exact": {"made of": EVIL}, EVIL: {"rate": 8000}}, credit=f"by {EVIL}")


@pytest.fixture(scope="module")
def page(path): return Read(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def heard(models):
    "What the page should hold, computed again."
    return hear(models, open_test_set("scores", 22050, 1, SECONDS, 3).load(0), 22050, seed=3)


# the page

def test_page_is_html_that_loads_nothing(path, page):
    text = path.read_text(encoding="utf-8")
    assert page.declaration == "DOCTYPE html" and text.startswith("<!DOCTYPE html>")
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[\w+/=]+", "", text.lower()).replace("{}//", ""))
    for element in page.elements:
        if "src" in element: assert element["src"].startswith("data:")
        if "href" in element: assert element["href"].startswith("#")
        assert element["tag"] not in ("link", "iframe", "object", "embed", "base") and not any(name.startswith("on") for name in element)
    assert "default-src 'none'" in page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert len(text) < 4*2**20*SECONDS/2


def test_page_can_be_read_by_everybody(page):
    assert page.all("html", lang="en") and len(page.all("title")) == len(page.all("h1")) == len(page.all("main")) == 1
    assert page.all("title")[0]["text"] and page.all("meta", name="viewport")
    levels = [int(e["tag"][1]) for e in page.elements if re.fullmatch("h[1-6]", e["tag"])]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:]))
    ids = [e["id"] for e in page.elements if "id" in e]
    assert len(set(ids)) == len(ids)
    for element in page.elements:
        for reference in ("aria-labelledby", "href"):
            if reference in element: assert element[reference].removeprefix("#") in ids
    assert all(e.get("scope") in ("col", "row", "rowgroup") for e in page.all("th")) and len(page.all("th", scope="col")) == 3
    assert all(e["alt"] and e["width"] and e["height"] for e in page.all("img"))
    labels = [e["aria-label"] for e in page.all("audio")]
    assert len(set(labels)) == len(labels) and all("controls" in e and "autoplay" not in e for e in page.all("audio"))
    assert "prefers-color-scheme:dark" in page.all("style")[0]["text"]


def test_every_row_is_there_for_every_model(page, heard):
    rows = [row for row in listening_rows(STEMS) if row.key not in ("mean", "texture")]  # which no model here has
    titles = [re.sub(r"\s+", " ", e["text"]) for e in page.all("th", scope="row")]
    assert titles == [row.title + row.sentence for row in rows] and len(rows) == 4 + 1 + 3*4 + 5
    assert [e["text"] for e in page.all("th", scope="rowgroup")] == ["The clip", "Arithmetic on latents", *(f"Oracle separation: {s}" for s in STEMS), "Noise on the latent"]
    labels = {e["aria-label"] for e in page.all("audio")}
    originals = [row for row in rows if not row.references]
    assert labels == ({f"{row.title}, {heard.name}" for row in originals} | {f"exact: {row.title}, {heard.name}" for row in rows if row.references}
                      | {f"{EVIL}: {row.title}, {heard.name}" for row in rows if row.references and row.key != "two steps"})
    assert [e["text"] for e in page.all("td", **{"data-model": EVIL})].count("–") == 1, "two steps are unknown of a foreign model"
    assert all(row.sentence.endswith((".", "?")) for row in rows)


def test_names_are_escaped(path, page, models, tmp_path):
    assert len(page.all("script")) == 1 and "<script>alert" not in path.read_text()
    assert page.all("th", scope="col")[2]["text"] == EVIL and page.all("dd")[0]["text"] == EVIL and page.all("footer")[0]["text"] == f"Clips of scores, {SECONDS} s each, seed 3. by {EVIL}"
    rng, name = np.random.default_rng(0), """<img src=x onerror="alert('1')"> & so on"""
    soundfile.write(tmp_path/f"{name}.wav", .1*rng.standard_normal((8000, 2)), 8000)
    found = Read(write_listening(tmp_path/"page.html", {"toy": models[EVIL]}, str(tmp_path), seconds=SECONDS).read_text())
    assert found.all("h2")[0]["text"] == f"Clip 1: {name}" and len(found.all("img")) == 1 + len(found.all("audio"))
    assert found.all("footer")[0]["text"] == f"Clips of {tmp_path.name}, {SECONDS} s each, seed 0.", "no folders"
    (tmp_path/f"{name}.wav").rename(tmp_path/"a\x1b[31m\u202eb.wav")
    text = write_listening(tmp_path/"page.html", {"toy": models[EVIL]}, str(tmp_path), seconds=SECONDS).read_text()
    assert not set(text) & set("\x1b\u202e") and Read(text).all("h2")[0]["text"] == r"Clip 1: a\x1b[31m\u202eb", "they are shown, and do nothing"


# the sounds

def test_players_hold_the_sounds_times_one_gain(page, heard):
    gain = page_gain([heard])
    assert gain < .9 and number(page.all("strong", id="headroom")[0]["text"].split()[0]) == pytest.approx(20*math.log10(gain), abs=.006)
    players, peak = {e["id"]: e for e in page.all("audio")}, 0
    for model, sounds in [("", heard.originals), *heard.models.items()]:
        for row in heard.rows:
            if row.key not in sounds or (model and row.key in heard.originals): continue
            samples, rate = sound_of(players.pop(heard.place(0, row.key, model)))
            wanted = sounds[row.key].wave.double().numpy()*gain*2**15
            assert rate == sounds[row.key].sample_rate and len(samples) == len(wanted) == round(SECONDS*rate)
            assert np.abs(samples - wanted).max() <= .5 + 1e-6, row.key
            peak = max(peak, np.abs(samples.astype(int)).max())
    assert not players and peak == round(.98*2**15)


def test_levels_between_players_are_kept(page, heard):
    at = {e["id"]: sound_of(e)[0] for e in page.all("audio")}
    place = lambda key, model="": at[heard.place(0, key, model)]
    for model in heard.models: assert level(place("gain", model)) - level(place("one step", model)) == pytest.approx(20*math.log10(GAIN), abs=2e-3)
    loud = heard.originals["original"].at(8000).wave.numpy()*10*page_gain([heard])*2**15
    assert np.abs(place("one step", EVIL) - loud).max() < 1, "ten times as loud as the original, and no player was made softer for it"
    halves = place("gain", "exact")*2 - place("one step", "exact").astype(int)
    assert np.abs(halves).max() <= 2


def test_figures_beside_a_player_are_those_of_its_sound(page, heard):
    captions = [e["text"] for e in page.all("figcaption")]
    assert len(captions) == len(page.all("audio"))
    for player, caption in zip(page.all("audio"), captions):
        assert number(caption.split()[2]) == pytest.approx(level(sound_of(player)[0]), abs=.06)
    titles = {row.title: row.key for row in heard.rows}
    row = next(row for row in heard.rows if row.key == "sum")
    text = next(c for p, c in zip(page.all("audio"), captions) if p["id"] == heard.place(0, "sum", "exact"))
    found = re.findall(r"against (.*?): level (\S+)\sdB, MSS (\S+), SI-SDR (\S+)\sdB", text)
    assert [titles[f[0]] for f in found] == list(row.references) == ["one step", "original"]
    for (title, *values), wanted in zip(found, (measured(heard.models["exact"]["sum"], heard.models["exact"][key]) for key in row.references)):
        for value, key, close in zip(values, ("level", "mss", "si_sdr"), (.006, .006, .06)): assert number(value) == pytest.approx(wanted[key], abs=close)
    text = next(c for p, c in zip(page.all("audio"), captions) if p["id"] == heard.place(0, "gain", "exact"))
    assert "level −6.02\xa0dB, MSS (to 0.5 times it) 0.00" in text
    text = next(c for p, c in zip(page.all("audio"), captions) if p["id"] == heard.place(0, "one step", EVIL))
    assert "level +20.00\xa0dB" in text


def test_toys_give_what_is_known_of_them():
    "Four equal stems and a decoder that squares: the sum of latents is 4² of the stem where the mixture is 4, half the latent a quarter of the sound."
    root = Frames(lambda x: x.sign()*x.abs().sqrt(), lambda z: z*z.abs())
    wave = .02*torch.randn(6400, generator=torch.Generator().manual_seed(0))
    found = hear({"root": root}, Clip("ours", dict.fromkeys(STEMS, wave)), 8000).models["root"]
    assert torch.equal(found["original"].wave, 4*wave) and torch.allclose(found["sum"].wave, 16*wave, atol=1e-6) and torch.allclose(found["gain"].wave, wave, atol=1e-6)
    assert torch.allclose(found["bass, found"].wave, (2 - 3**.5)**2*wave, atol=1e-6) and torch.allclose(found["bass, coded"].wave, wave, atol=1e-6)
    assert torch.equal(found["SNR inf"].wave, found["one step"].wave)
    levels = [measured(found[f"SNR {r:g}"], found["original"])["si_sdr"] for r in RATIOS]
    assert all(a > b for a, b in zip(levels, levels[1:]))
    assert measured(found["sum"], found["one step"])["level"] == pytest.approx(20*math.log10(4), abs=1e-3)
    assert measured(found["gain"], found["one step"], .25)["mss"] < 1e-4 < 1 < measured(found["gain"], found["one step"])["mss"]
    assert measured(found["sum"], Sound(0*wave, 8000)) == {}


def test_noise_belongs_to_seed_and_clip():
    wave = .1*torch.randn(6400, generator=torch.Generator().manual_seed(0))
    sound = lambda seed, number: hear({"toy": Frames()}, Clip("ours", {"x": wave}), 8000, seed, number).models["toy"]["SNR 1"].wave
    assert torch.equal(sound(1, 2), sound(1, 2)) and not torch.equal(sound(1, 2), sound(1, 3)) and not torch.equal(sound(1, 2), sound(2, 2))


def test_a_page_is_the_same_again_and_silence_is_told():
    silent, wave = torch.zeros(6400), .1*torch.randn(6400, generator=torch.Generator().manual_seed(0))
    made = lambda: page_html([hear({"toy": Frames()}, Clip("ours", {"x": wave, "quiet": silent}), 8000)])
    text = made()
    assert text == made() and "it is silent, nothing to compare" in text and "−∞\xa0dB" in text and "nan" not in re.sub(r"base64,[\w+/=]+", "", text)
    assert page_gain([hear({"toy": Frames()}, Clip("ours", {"x": silent}), 8000)]) == 1


def test_rates_stand_side_by_side_on_one_axis(heard):
    assert {sounds["original"].sample_rate for sounds in heard.models.values()} == {22050, 8000}
    with torch.no_grad(): tone = Sound(.3*torch.sin(2*math.pi*3000*torch.arange(8000)/8000), 8000)
    pictures = [np.array(Image.open(io.BytesIO(base64.b64decode(spectrogram_uri(s, 1., 22050).partition(",")[2]))).convert("RGBA"), dtype=int) for s in (tone, tone.at(22050), tone.at(16000))]
    assert all(p.shape == (112, 240, 4) for p in pictures) and np.abs(pictures[0] - pictures[1]).mean() < 2 and np.abs(pictures[0] - pictures[2]).mean() < 4
    rows, mel = [5 + p[5:84, 60:220, :3].sum((1, 2)).argmax() for p in pictures], lambda f: 15 + 27*math.log(f/1000)/math.log(6.4)
    assert all(abs(row - (1 - .235 - .735*mel(3000)/mel(11025))*112) < 2 for row in rows), "3 kHz stands at 3 kHz"
    softer = np.array(Image.open(io.BytesIO(base64.b64decode(spectrogram_uri(tone, .01, 22050).partition(",")[2]))).convert("RGBA"), dtype=int)
    assert softer[5:80, 60:220, :3].mean() < .8*pictures[0][5:80, 60:220, :3].mean(), "no picture is normalised"


def test_a_recording_is_mixed_down_and_has_no_stems(tmp_path):
    rng = np.random.default_rng(0)
    wave = .1*rng.standard_normal((44100, 2))
    soundfile.write(tmp_path/"one.wav", wave, 44100, subtype="FLOAT")
    found = Read(write_listening(tmp_path/"page.html", {"toy": Frames(sample_rate=44100)}, str(tmp_path), clips=1, seconds=1.).read_text())
    samples, rate = sound_of(found.all("audio")[0])
    assert rate == 44100 and np.abs(samples/2**15 - wave.mean(1)).max() < 1e-4
    assert len(found.all("th", scope="row")) == 3 + len(RATIOS) and len(found.all("audio")) == 3 + len(RATIOS)
    two = Read(write_listening(tmp_path/"page.html", {"toy": Frames()}, str(tmp_path), clips=2, seconds=.5).read_text())
    assert len(two.all("h2")) == 3 and len(two.all("table")) == 2


# bad input

def test_bad_input_is_refused_before_anything_is_computed(tmp_path):
    toy, out = {"toy": Frames()}, tmp_path/"page.html"
    for wanted, word in (({"models": {}}, "no models"), ({"models": toy, "clips": 0}, "a clip or more, got 0"), ({"models": toy, "clips": -1}, "got -1"),
                         ({"models": toy, "seconds": .1}, "0.1 s are too short"), ({"models": toy, "seconds": math.nan}, "nan s are too short"),
                         ({"models": toy, "data": "score"}, "'score'"), ({"models": toy, "data": str(tmp_path)}, "no file below it")):
        with pytest.raises(ValueError, match=re.escape(word)): write_listening(out, **wanted)
    assert not out.exists()


@pytest.mark.parametrize("stems, word", [({"x": torch.ones(2, 8000)}, "mono"), ({"x": torch.ones(8000), "y": torch.ones(7999)}, "different lengths"),
                                         ({"x": torch.ones(round(MIN_SECONDS*8000) - 1)}, "too short"), ({"x": torch.full((8000,), math.nan)}, "NaN"),
                                         ({"x": torch.ones(8000, dtype=torch.int16)}, "integers")])
def test_clips_that_cannot_be_used(stems, word):
    with pytest.raises(ValueError, match=word): hear({"toy": Frames()}, Clip("ours", stems), 8000)


def test_a_sound_is_never_clipped_silently():
    with pytest.raises(ValueError, match="would clip"): flac_uri(Sound(torch.full((100,), 1.2), 8000))
    assert decibels(-math.inf) == "−∞\xa0dB" and decibels(1.25, "+.1f") in ("+1.2\xa0dB", "+1.3\xa0dB")


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    out = tmp_path/"page.html"
    out.write_text("old")
    def full(self, *_, **__): raise OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_text", full)
    soundfile.write(tmp_path/"one.wav", .1*np.random.default_rng(0).standard_normal(8000), 8000)
    with pytest.raises(OSError, match="page.html"): write_listening(out, {"toy": Frames()}, str(tmp_path), seconds=.5)
    monkeypatch.undo()
    assert out.read_text() == "old" and sorted(p.name for p in tmp_path.iterdir()) == ["one.wav", "page.html"]


# models by name, and the command

def test_models_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in ("runs/a", "runs/b=1"): Autoencoder.from_preset("tiny").save_pretrained(run)
    assert list(load_models(["m2l", "runs/a/", "mine=runs/a", "runs/b=1"], "cpu")) == ["m2l", "a", "mine", "b=1"]
    for words, word in ((["runs/a", "a=m2l"], "two models are called a"), (["m3l"], "m3l"), (["=m2l"], "no name")):
        with pytest.raises(ValueError, match=word): load_models(words, "cpu")


def test_command_writes_a_page_and_leaves_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main("listen m2l --out page.html --seconds 0.5 --data melodies --device cpu".split()) == 0
    found = Read(Path("page.html").read_text())
    assert len(found.all("audio")) == 3 + len(RATIOS) and "fingerprint" in found.all("dl")[0]["text"] and "MiB" in capsys.readouterr().err
    before = Path("page.html").stat().st_mtime_ns
    assert main("listen m2l --out page.html --seconds 0.5 --data melodies --device cpu".split()) == 0 and Path("page.html").stat().st_mtime_ns == before
    for other, told in (("--seed 1", "seed was 0, now 1"), ("--credit me", "credit was '', now 'me'")):
        assert main(f"listen m2l --out page.html --seconds 0.5 --data melodies --device cpu {other}".split()) == 2 and told in capsys.readouterr().err
    assert main("listen m3l --out no.html".split()) == 2 and "m3l" in capsys.readouterr().err and not Path("no.html").exists()


# a browser

browser = pytest.mark.skipif(importlib.util.find_spec("PySide6") is None or importlib.util.find_spec("PySide6.QtWebEngineWidgets") is None,
                             reason="no browser here: pip install 'latentalign[browser]' brings Qt's Chromium")


@browser
@pytest.mark.parametrize("width", [360, 1280])
def test_page_opens_in_a_browser(path, page, width):
    done = subprocess.run([sys.executable, TOP/"tests"/"browser.py", path, str(width)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["messages"] == [] and [Path(r).name for r in found["requests"]] == ["page.html"], "no errors, and nothing is asked for but the page"
    assert found["lang"] == "en" and found["title"] == page.all("title")[0]["text"]
    assert [a["id"] for a in found["audio"]] == [e["id"] for e in page.all("audio")]
    for audio in found["audio"]:
        assert audio["error"] is None and audio["volume"] == 1 and not audio["muted"] and audio["duration"] == pytest.approx(SECONDS, abs=2e-3)
        assert 150 < audio["width"] <= width
    assert sorted(set(found["images"])) == [240] and len(found["images"]) == len(page.all("img"))
    assert found["inner"] == width and found["scroll"] <= width, "nothing sticks out at the side"
    assert found["played"] == {"first": True, "stopped": True, "second": True, "link": True, "alone": 1}
