"""Closed forms, and models that start from them, under every command and protocol."""
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from latentalign import Autoencoder
from latentalign.data import datasets
from latentalign.training import fitting
from latentalign.codec.autoencoder import CLOSED_FORMS, code_config, fingerprint, fit_code
from latentalign.tools.cards import training_facts
from latentalign.tools.opening import load_models
from latentalign.tools.latent_files import load_latents
from latentalign.tools.describing import describe_model
from latentalign.tools.command import main
from latentalign.surprisal.hearing import heard_latents, sound_frames
from latentalign.tools.heard import Sound, listening_sounds
from latentalign.evaluation.protocols import Protocol, under_protocol
from latentalign.evaluation.quantities import report_path
from latentalign.tools.steps import Reproduction, plan, start_of
from latentalign.surprisal.listener import SEQUENCE_PRESETS
from latentalign.base.config import config_to_dict
from latentalign.base.models import BUNDLED
from latentalign.surprisal.model import Surprisal, SurprisalConfig
from latentalign.surprisal.training import SURPRISAL_RECIPES, SurprisalOptions, pooled
from latentalign.training.recipes import RECIPES
from latentalign.training.options import RunOptions, with_texture
from latentalign.training.run import start_from, train

pytestmark = pytest.mark.usefixtures("one_thread")
RATE, FORM = 22050, "magnitude:64"


def brown(clips, samples, seed=0):
    "Noise that falls by 6 dB an octave, a tenth of full scale."
    x = torch.randn(clips, samples, generator=torch.Generator().manual_seed(seed)).cumsum(-1)
    return .1*(x - x.mean(-1, keepdim=True))/x.std(-1, keepdim=True)


class Source:
    "In the place of training sound."
    def __init__(self, crop): self.crop = crop
    def __getitem__(self, i): return brown(1, self.crop, i)[0]


@pytest.fixture(scope="module", autouse=True)
def pool(tmp_path_factory):
    "A cache of its own, no recordings, and noise in the place of rendered scores, of which a few seconds are enough."
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("LATENTALIGN_DATA", str(tmp_path_factory.mktemp("data")))
        patch.setattr(fitting, "open_source", lambda data, crop, **more: Source(crop))
        patch.setattr(fitting, "EXCERPT_SECONDS", 2.)
        patch.setattr(fitting, "FIT_CROPS", 24)
        patch.setattr(fitting.open_pool, "__defaults__", (0, "train", 4))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")   # there are no recordings
            yield


@pytest.fixture(scope="module")
def forms(pool): return {name: Autoencoder.from_pretrained(f"{name}:64") for name in CLOSED_FORMS}


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    "The folder of a model that starts from a closed form, with networks for texture that say something."
    config = with_texture(replace(RECIPES["tiny"], model=code_config("linear", 64, RATE, width=16)), .5).model
    small = replace(config.network, fold=64, base_channels=16, bottleneck_channels=32, noise_channels=16, heads=2)
    torch.manual_seed(0)
    model = Autoencoder(replace(config, network=small)).eval()
    fit_code(model, brown(24, 2048*12 + 768))
    g = torch.Generator().manual_seed(0)
    for part, size in ((model.encoder.branch, .01), (model.magnitude.branch, .01), (model.denoiser, .05)): torch.nn.init.normal_(part.conv_out.weight, std=size, generator=g)
    folder = tmp_path_factory.mktemp("runs")/"staged"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def work(tmp_path, monkeypatch):
    "The current folder, with two sounds of a second."
    monkeypatch.chdir(tmp_path)
    Path("sound").mkdir()
    for i, wave in enumerate(brown(2, RATE, 7)): soundfile.write(f"sound/{i}.wav", wave.numpy(), RATE, "FLOAT")
    return tmp_path


# names

def test_a_closed_form_is_fitted_once_and_kept(forms, capfd, monkeypatch):
    again = Autoencoder.from_pretrained(FORM)
    assert capfd.readouterr().err == "" and all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), forms["magnitude"].state_dict().values()))
    kept = list((fitting.cache_folder()/"closed-forms").glob("magnitude-64-22050-*"))
    assert len(kept) == 1
    (kept[0]/"model.safetensors").write_bytes(b"cut off")                    # damaged: it is made again, and says so
    made = Autoencoder.from_pretrained(FORM)
    assert str(kept[0]) in capfd.readouterr().err and fingerprint(made) == fingerprint(again)
    monkeypatch.setattr(fitting, "named_sources", lambda data, split="train": "something else")
    Autoencoder.from_pretrained(FORM)                                        # other sound there: fitted to that
    assert len(list((fitting.cache_folder()/"closed-forms").glob("magnitude-64-22050-*"))) == 2


def test_names_that_are_none_say_how_they_are_written(capsys, work):
    for name, word in (("magnitude", "magnitude:64"), ("magnitude:100", "does not divide"), ("magnitude:64@48000", "44100"), ("linear:x", "magnitude:64")):
        assert main(["info", name]) == 2 and word in capsys.readouterr().err
    Autoencoder(code_config("mdct", 64, RATE)).save_pretrained("linear")     # a folder of such a name is a folder
    assert main(["info", "linear"]) == 0 and "MDCT" in capsys.readouterr().out


def test_without_the_extra_it_is_named_or_recordings_do(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "find_spec", lambda name, find=datasets.find_spec: None if name == "symusic" else find(name))
    for data in ("auto", "scores"):
        with pytest.raises(ValueError, match=r"symusic.*latentalign\[data\]"): datasets.open_source(data, crop=RATE)
    monkeypatch.setenv("LATENTALIGN_DATA", str(tmp_path))
    (tmp_path/"free-music").mkdir()
    soundfile.write(tmp_path/"free-music"/"a.wav", brown(1, 4*RATE)[0].numpy(), RATE)
    with pytest.warns(UserWarning, match="symusic"): assert datasets.auto_data() == [(str(tmp_path/"free-music"), 1)]
    with pytest.raises(ValueError, match="symusic"): datasets.auto_data("test")   # of which there are none in stems
    assert datasets.open_source("auto", crop=RATE, sample_rate=RATE)[0].shape == (RATE,)


def test_names_in_paths_have_no_colon():
    assert report_path("magnitude:64@44100") == Path("runs/evaluated-magnitude-64-44100/evaluation.json")
    assert report_path("public:m2l=x.pt").parent.name == "evaluated-m2l" and report_path("owner/name").parent.name == "evaluated-owner-name"
    assert SurprisalOptions("magnitude:64").folder == Path("runs/surprisal-magnitude-64") and SurprisalOptions("public:m2l").folder.name == "surprisal-public-m2l"


# commands

@pytest.mark.parametrize("kind", ["closed", "staged"])
def test_commands(kind, staged, forms, work, capsys):
    name = FORM if kind == "closed" else str(staged)
    model = load_models([name], "cpu").popitem()[1]
    assert main(["info", name]) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("32 channels", "10.77 frames", "64 times fewer", "magnitude", "texture" if kind == "staged" else "closed form", fingerprint(model)))
    assert main(f"encode sound --out z --model {name}".split()) == 0
    z = load_latents("z/0.safetensors")
    assert z.z.shape == (1, 32, 12) and z.model == fingerprint(model)
    assert main(f"decode z --out y --model {name} --phases 3 --no-texture".split()) == main(f"reconstruct sound --out r --model {name} --phases 3 --no-texture".split()) == 0
    y = soundfile.read("y/0.wav", dtype="float32")[0]
    assert np.array_equal(y, soundfile.read("r/0.wav", dtype="float32")[0]) and np.array_equal(y, model.decode(z.z[0], RATE, phases=3, texture=False).numpy())
    assert main(f"reconstruct sound --out t --model {name} --texture --phases 0".split()) == (0 if kind == "staged" else 2)
    assert kind == "staged" or "no networks for texture" in capsys.readouterr().err and not Path("t").exists()
    assert main(f"mix sound/0.wav sound/1.wav --gains 1 2 --out m.safetensors --model {name}".split()) == 0
    assert torch.allclose(load_latents("m.safetensors").z, z.z + 2*load_latents("z/1.safetensors").z)
    assert main(f"subtract m.safetensors z/1.safetensors sound/1.wav --out s.safetensors --model {name}".split()) == 0
    assert torch.allclose(load_latents("s.safetensors").z, z.z, atol=1e-5)
    assert main(f"subtract m.safetensors sound/1.wav --out s.wav --phases 1 --model {name}".split()) == 0 and soundfile.info("s.wav").frames == RATE


@pytest.mark.parametrize("kind", ["closed", "staged"])
def test_evaluate_and_surprisal(kind, staged, forms, work, capsys):
    name = FORM if kind == "closed" else str(staged)
    model = load_models([name], "cpu").popitem()[1]
    out = ["--out", "report.json"] if kind == "staged" else []
    assert main(["evaluate", name, "--data", "sound", "--changes", 'clips=2 seconds=.4 scores=["mss"] embeddings=[] snrs=[Infinity,1,0]', *out]) == 0
    report = json.loads(Path("report.json" if out else "runs/evaluated-magnitude-64/evaluation.json").read_text())
    found = report["sets"]["sound"]
    assert report["model"]["name"] == name and found["latent"]["channels"] == 32
    assert found["noise"]["1"]["mss"]["mean"] > found["noise"]["inf"]["mss"]["mean"] and found["noise"]["0"]["mss"]["n"] == 2
    if kind == "closed": assert found["linearity"]["encoder_homogeneity_error"]["mean"] < 1e-5
    torch.manual_seed(0)
    sizes = replace(SEQUENCE_PRESETS["tiny"], channels=32, depth=1, flow_depth=1)
    Surprisal(SurprisalConfig(sizes, name, fingerprint(model))).attach(model).save_pretrained("listener")
    assert main("surprisal sound/0.wav --out ic --model listener --silence none".split()) == 0
    lines = Path("ic/0.csv").read_text().splitlines()
    assert len(lines) == 1 + RATE//2048 and lines[1] == "0.092880,NaN" and "NaN" not in lines[2]
    wrong = replace(model.config.code, channels=16)
    with pytest.raises(ValueError, match="16 latent channels"):
        Surprisal(SurprisalConfig(sizes, name, "")).attach(Autoencoder(replace(model.config, network=None, code=wrong)), any_autoencoder=True)


def test_listening_page(staged, forms, work):
    assert main(f"listen {FORM} tex={staged} --data sound --seconds .5 --out page.html".split()) == 0
    page = Path("page.html").read_text()
    assert f'<th scope="col">{FORM}</th><th scope="col">tex</th>' in page and "closed form: principal axes" in page
    assert page.count("the mean, without texture") and page.count(f"{FORM}: reconstruction, 1 step") and not page.count(f"{FORM}: with texture") and not page.count("2 steps")


# models

def test_the_sounds_of_a_row(staged, forms):
    stems, model = {"sound": Sound(brown(1, RATE//2)[0], RATE)}, Autoencoder.from_pretrained(staged)
    assert not {"two steps", "mean", "texture"} & set(listening_sounds(forms["linear"], stems))
    mean, texture = (listening_sounds(m, stems) for m in (model, changed(model, texture=True)))
    assert torch.equal(mean["one step"].wave, mean["mean"].wave) and torch.equal(mean["texture"].wave, texture["one step"].wave)
    assert not torch.equal(mean["mean"].wave, mean["texture"].wave) and "two steps" not in mean and not torch.equal(texture["two steps"].wave, texture["one step"].wave)


def changed(model, **fields):
    "A model of the same weights and another configuration."
    other = Autoencoder(replace(model.config, **fields)).eval()
    other.load_state_dict(model.state_dict())
    return other


def test_decoding(staged, forms):
    for model, textures in ((Autoencoder.from_pretrained(staged), (False, True)), *((m, (None,)) for m in forms.values())):
        wave = brown(2, RATE)
        z, frames = model.encode(wave), -(-(RATE + model.config.transform.overlap)//2048)
        assert z.shape == (2, 32, frames) and .2 < z.square().mean() < 5
        given = model.encode(wave.numpy()[None], RATE)
        assert isinstance(given, np.ndarray) and np.allclose(given[0], z, atol=1e-5)
        for texture in textures:
            decode = lambda z, **more: model.decode(z, RATE, texture=texture, **{"phases": 2} | more)
            y = decode(z)
            assert torch.equal(y, decode(z)) and torch.allclose(decode(z[1]), y[1], atol=1e-5) and torch.allclose(decode(z, batch_size=2), y, atol=1e-5)
            assert isinstance(decode(z.numpy()), np.ndarray) and np.array_equal(decode(z.numpy()), y)
            if model.config.code.domain != "mdct": assert not torch.allclose(decode(z, seed=1), y, atol=1e-3) and not torch.allclose(decode(z, phases=5), y, atol=1e-3)
        if textures[-1]: assert not torch.allclose(decode(z, steps=2), y, atol=1e-3) and not torch.allclose(model.decode(z, RATE, phases=2), y, atol=1e-3)
        assert under_protocol(model, Protocol(steps=2)).decode(z, RATE).shape == wave.shape
        assert under_protocol(model, Protocol(chunk=.5, overlap=.1)).encode(wave).shape[:3:2] == (2, 32)
        assert model.features(wave).shape[::2] == (2, frames)


def test_bad_decodings_are_refused(staged, forms):
    model, plain, z = forms["magnitude"], Autoencoder.from_preset("tiny"), torch.zeros(32, 3)
    for given, word in (({"texture": True}, "no networks for texture"), ({"phases": -1}, "phases"), ({"phases": 1.5}, "whole number"), ({"steps": 0}, "steps")):
        with pytest.raises(ValueError, match=word): model.decode(z, **given)
    with pytest.raises(ValueError, match="no mean"): plain.decode(torch.zeros(64, 3), texture=False)
    with pytest.raises(ValueError, match="32, frames"): model.decode(torch.zeros(64, 3))
    for bad in ("--phases -1", "--phases many", "--steps 0"):
        with pytest.raises(SystemExit): main(f"decode x --out y --model {FORM} {bad}".split())


def test_a_closed_form_knows_no_future_and_other_windows(forms):
    for name, model in forms.items():
        wave = brown(1, RATE)[0]
        z, reach = model.encode(wave), 1 if name == "linear" else 0
        assert torch.allclose(heard_latents(model, wave, 1), z, atol=1e-4)     # a patch is a patch, whatever follows
        assert torch.allclose(model.with_window(6, 2).encode(wave), z, atol=1e-4)
        whole = model.with_window(None)
        assert whole.encode(wave).shape[-1] == (RATE - model.config.transform.overlap)//2048 and whole.decode(whole.encode(wave)).isfinite().all()
        assert sound_frames(model, wave, 2).shape == (RATE//4096, 32)


def test_round_trip_and_older_files(staged, forms, tmp_path):
    for model in (Autoencoder.from_pretrained(staged), forms["compressed"]):
        model.save_pretrained(tmp_path/"a")
        again = Autoencoder.from_pretrained(tmp_path/"a")
        assert again.config == model.config and fingerprint(again) == fingerprint(model)
        assert json.loads((tmp_path/"a"/"config.json").read_text())["format_version"] == 2
        z = model.encode(brown(1, RATE)[0])
        assert torch.equal(again.encode(brown(1, RATE)[0]), z) and torch.equal(again.decode(z, phases=1), model.decode(z, phases=1))
    plain = Autoencoder.from_preset("tiny")
    plain.save_pretrained(tmp_path/"old")
    data = config_to_dict(plain.config) | {"format_version": 1}
    for new in ("code", "texture"): del data[new]
    (tmp_path/"old"/"config.json").write_text(json.dumps(data))
    assert fingerprint(Autoencoder.from_pretrained(tmp_path/"old")) == fingerprint(plain)
    (tmp_path/"old"/"config.json").write_text(json.dumps({k: v for k, v in data.items() if k != "noise"}))
    with pytest.raises(ValueError, match="missing noise"): Autoencoder.from_pretrained(tmp_path/"old")


def test_the_fingerprint_tells_codes_apart(staged, forms):
    model = Autoencoder.from_pretrained(staged)
    code, marks = model.config.code, {fingerprint(model)}
    for fields in ({"texture": True}, {"code": replace(code, level_in=True)}, {"code": replace(code, level_out=True)}, {"code": replace(code, bound="layer_norm")},
                   {"transform": replace(model.config.transform, alpha=.5)}, {"window": 100}, {"noise": replace(model.config.noise, sigma_max=9.)}): marks.add(fingerprint(changed(model, **fields)))
    assert len(marks) == 8 and len({fingerprint(m) for m in forms.values()}) == 3
    assert fingerprint(Autoencoder.from_pretrained("m2l")) == json.loads((BUNDLED/"surprisal/m2l/config.json").read_text())["fingerprint"]  # as ever


def test_what_info_tells(staged, forms):
    told = describe_model(Autoencoder.from_pretrained(staged))
    assert "trained" in told["code"] and "8 frames at a time" in told["code"] and "the mean, with texture where it is asked for" in told["code"]
    assert describe_model(forms["magnitude"])["parameters"] == f"{2*32*4096:,} (encoder {32*4096:,}, magnitude {32*4096:,})"
    assert "exactly" in describe_model(forms["linear"])["code"] and "code" not in describe_model(Autoencoder.from_preset("tiny"))
    sizes = [int(s.replace(",", "")) for s in told["parameters"].replace(")", "").replace("(", "").replace(", ", " ").split() if s[0].isdigit()]
    assert "texture" in told["parameters"] and sizes[0] == sum(sizes[1:])


# training

def test_a_run_goes_on_with_its_own_settings_only(work, monkeypatch):
    monkeypatch.setattr(fitting, "open_source", datasets.open_source)
    monkeypatch.setattr("latentalign.training.run.FIT_CROPS", 40)
    for i in range(2): soundfile.write(f"sound/{i}.wav", brown(1, 2*RATE, i)[0].numpy(), RATE, "FLOAT")
    options = RunOptions("lin", "tiny", data="sound", steps=2, batch_size=2, device="cpu", precision="no", out="run",
                         changes="pool=4 model.code.width=8 train.log_every=1 train.checkpoint_every=1")
    train(options)
    assert Autoencoder.from_pretrained("run").config.code.level_in
    with pytest.raises(ValueError, match="seed"): train(replace(options, seed=1))
    with pytest.raises(ValueError, match="width"): train(replace(options, changes=options.changes.replace("width=8", "width=16")))
    with pytest.raises(ValueError, match="another code"): start_from(Autoencoder(code_config("compressed", 64, RATE, width=8)), "run")
    with pytest.raises(ValueError, match="another code"): start_from(Autoencoder.from_preset("tiny"), "run")
    assert "2 steps of 2 (`lin`)" in training_facts("run")["steps"]


def test_frames_of_surprisal_last_alike(forms):
    recipe = SURPRISAL_RECIPES["tiny"]
    assert pooled(recipe, forms["magnitude"]).pool == 1 and pooled(recipe, Autoencoder.from_preset("tiny")).pool == 8
    assert pooled(replace(recipe, pool=3), forms["magnitude"]).pool == 3 and pooled(recipe, Autoencoder(code_config("linear", 64, 44100))).pool == 1


def test_a_reproduction_below_full_size_starts_from_closed_forms():
    assert [start_of(v, "tiny") for v in ("m2l", "lin", "align", "align-uniform", "lin-align", "lin-exact")] == ["", "", "m2l", "m2l", "", ""]
    assert start_of("lin-align", "paper") == "m2l"
    steps = {s.name: s for part in plan(Reproduction("scores", "tiny", ("lin-align", "align"), device="cpu")) for s in part if s.kind == "train"}
    assert steps["train-lin-align"].options.recipe().train.minutes == RECIPES["tiny"].train.minutes == 2*steps["train-align"].options.recipe().train.minutes
    assert "closed form, 6 minutes" in steps["train-lin-align"].about and all(s.options.recipe() for s in steps.values())
