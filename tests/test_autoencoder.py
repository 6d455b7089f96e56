"""The autoencoder and its storage: bad input is named and nothing is lost; what is saved comes back; nothing but the sound decides."""
import copy
import dataclasses
import json
import os
import pickle
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import torch

from latentalign import Autoencoder
from latentalign.codec.autoencoder import fingerprint
from latentalign.codec.blocks import NetworkConfig
from latentalign.tools.describing import describe_model
from latentalign.codec.network import AutoencoderConfig, PRESETS
from latentalign.codec.public_weights import PUBLIC, read_public
from latentalign.base.files import atomic_write
from latentalign.base.config import FORMAT_VERSION, change_config, config_from_dict, config_to_dict
from latentalign.base.models import load_pickled_weights, load_weights, save_state, save_weights
from latentalign.codec.transform import TransformConfig
from latentalign.codec.windows import windows

TOP = Path(__file__).resolve().parent.parent
NARROW = AutoencoderConfig(  # as `tiny`, narrower, with small windows so that a short sound has many
    transform=TransformConfig(sample_rate=22050, hop_length=256),
    network=NetworkConfig(bins=512, fold=32, base_channels=16, multipliers=(1,), strides=(), attention=(True,), denoiser_blocks=1,
                          bottleneck_channels=32, bottleneck_blocks=1, noise_channels=32),
    window=32, context=4)
STRIDED = dataclasses.replace(NARROW, window=16, context=2, network=dataclasses.replace(
    NARROW.network, multipliers=(1, 2), strides=((2, 2),), attention=(False, True)))  # two STFT frames a latent frame


def make(config, seed=0):
    "An untrained model whose output depends on everything: its last convolution, zero at first, is given weights."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Autoencoder(config).eval()
        torch.nn.init.normal_(model.denoiser.conv_out.weight, std=.05)
    return model


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def ae(): return make(NARROW)


@pytest.fixture
def saved(ae, tmp_path):
    "The folder of a saved model."
    ae.save_pretrained(tmp_path/"model")
    return tmp_path/"model"


def noise(*shape, seed=0): return .1*torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- bad sounds and latents

@pytest.mark.parametrize("wave, words", [
    (torch.zeros(0), ["empty", "(0,)"]), (torch.zeros(2, 0), ["empty", "(2, 0)"]), (torch.zeros(0, 9999), ["empty", "(0, 9999)"]),
    (torch.tensor(1.), ["()"]), (torch.full((9999,), torch.nan), ["9999", "NaN"]),
    (torch.tensor([0., torch.inf]*5000), ["5000", "infinite"]), (np.zeros(9999, np.int16), ["int16"]),
    (torch.zeros(9999, dtype=torch.int32), ["int32"]), (np.zeros(9999, bool), ["bool"]), (torch.zeros(9999, dtype=torch.complex64), ["complex64"]),
    (torch.zeros(255), ["255 samples", "too short", "256"])])
@pytest.mark.parametrize("method", ["encode", "features"])
def test_bad_waves_are_named(ae, wave, words, method):
    with pytest.raises(ValueError) as e: getattr(ae, method)(wave)
    assert all(word in str(e.value) for word in words), e.value


@pytest.mark.parametrize("rate", [0, -44100, float("nan"), float("inf"), "44100", "CD"])
def test_bad_sample_rates_are_named(ae, rate):
    for call in (lambda: ae.encode(torch.zeros(9999), sample_rate=rate), lambda: ae.decode(torch.zeros(64, 9), sample_rate=rate)):
        with pytest.raises(ValueError) as e: call()
        assert repr(rate) in str(e.value)


@pytest.mark.parametrize("z, words", [
    (torch.zeros(63, 9), ["(63, 9)", "64"]), (torch.zeros(9, 64), ["(9, 64)"]), (torch.zeros(64), ["(64,)"]), (torch.zeros(64, 0), ["(64, 0)"]),
    (torch.zeros(0, 64, 9), ["(0, 64, 9)"]), (torch.full((64, 9), torch.nan), ["NaN"]), (np.full((64, 9), np.inf), ["infinity"])])
def test_bad_latents_are_named(ae, z, words):
    with pytest.raises(ValueError) as e: ae.decode(z)
    assert all(word in str(e.value) for word in words), e.value


@pytest.mark.parametrize("options, words", [(dict(steps=0), ["0"]), (dict(length=0), ["0"]), (dict(length=-5), ["-5"]), (dict(seed=-1), ["-1"]),
                                            (dict(batch_size=0), ["0"])])
def test_bad_options_are_named(ae, options, words):
    with pytest.raises(ValueError) as e: ae.decode(torch.zeros(64, 9), **options)
    assert all(word in str(e.value) for word in words), e.value


def test_a_length_far_beyond_the_latents_warns(ae):
    with pytest.warns(UserWarning, match="99999"): y = ae.decode(torch.zeros(64, 9), length=99_999)
    assert y.shape == (99_999,)


# ---- what decides the result, and what does not

@pytest.mark.parametrize("lead", [(), (1,), (2,), (3, 2), (2, 1, 2)])
def test_leading_dimensions_are_kept(ae, lead):
    wave = noise(*lead, 5003)
    z = ae.encode(wave)
    y, h = ae.decode(z, length=5003), ae.features(wave)
    assert z.shape[:-2] == lead and z.shape[-2] == 64 and y.shape == wave.shape
    assert h.shape[:-2] == lead and h.shape[-1] == z.shape[-1]
    for i, one in enumerate(wave.reshape(-1, 5003)):
        assert torch.allclose(ae.encode(one), z.reshape(-1, *z.shape[-2:])[i], atol=1e-5)
        assert torch.allclose(ae.decode(ae.encode(one), length=5003), y.reshape(-1, 5003)[i], atol=1e-5)


def test_numpy_in_numpy_out(ae):
    wave = noise(2, 5003)
    z, y = ae.encode(wave), ae.decode(ae.encode(wave))
    for given in (wave.numpy(), wave.numpy().astype(np.float64), np.asfortranarray(wave.numpy()), wave.numpy()[::-1][::-1]):
        got = ae.encode(given)
        assert isinstance(got, np.ndarray) and got.dtype == np.float32 and np.allclose(got, z.numpy(), atol=1e-6)
    assert isinstance(ae.decode(z.numpy()), np.ndarray) and np.array_equal(ae.decode(z.numpy()), y.numpy())
    assert isinstance(ae.features(wave.numpy()), np.ndarray)
    assert torch.equal(ae.encode(wave.double()), z) and ae.encode(wave.half()).dtype == torch.float32


@pytest.mark.parametrize("config", [NARROW, STRIDED, dataclasses.replace(NARROW, window=None)], ids=["narrow", "strided", "whole"])
@pytest.mark.parametrize("samples", [2053, 256*29, 256*(3*24 + 8) - 768, 256*(3*24 + 8), 256*256 + 1, 50_021])
def test_batch_and_order_do_not_matter(config, samples):
    model, wave = make(config), noise(3, samples, seed=samples)
    z = model.encode(wave)
    y = model.decode(z, length=samples)
    for size in (2, 5, 64):
        assert torch.allclose(model.encode(wave, batch_size=size), z, atol=1e-5)
        assert torch.allclose(model.decode(z, length=samples, batch_size=size), y, atol=1e-5)
    order = [2, 0, 1]
    assert torch.allclose(model.encode(wave[order], batch_size=2), z[order], atol=1e-5)
    assert torch.allclose(model.decode(z[order], length=samples, batch_size=2), y[order], atol=1e-5)


def test_latents_depend_on_their_window_alone(ae):
    "A change of the sound reaches the windows that see it and no others."
    wave = noise(50_021)
    other = wave.clone()
    other[30_000:30_100] += .5
    z, changed = ae.encode(wave), ae.encode(other)
    overlap, hop = ae.config.transform.overlap, ae.config.transform.hop_length
    touched = range((30_000 + overlap)//hop - 3, (30_099 + overlap)//hop + 1)
    for w in windows(z.shape[-1], 32, 4):
        same = torch.equal(z[:, w.keep_start:w.keep_stop], changed[:, w.keep_start:w.keep_stop])
        assert same == (not any(w.start <= frame < w.stop for frame in touched))


def test_same_seed_same_sound(ae):
    z = ae.encode(noise(9001))
    assert torch.equal(ae.decode(z, seed=3, steps=3), ae.decode(z, seed=3, steps=3))
    assert not torch.allclose(ae.decode(z, seed=3), ae.decode(z, seed=4))
    assert not torch.allclose(ae.decode(z, seed=3, steps=1), ae.decode(z, seed=3, steps=2))
    assert torch.equal(ae.decode(z), ae.decode(z, seed=0, steps=1))


def test_global_randomness_is_untouched(ae, saved):
    def state(): return torch.get_rng_state(), np.random.get_state()[1].copy()
    torch.manual_seed(7); np.random.seed(7)
    before = state()
    Autoencoder.from_preset("tiny", seed=5)
    ae.decode(ae.encode(noise(5003)), seed=2, steps=2)
    assert all(np.array_equal(a, b) for a, b in zip(before, state()))
    torch.manual_seed(8)
    y = ae.decode(ae.encode(noise(5003)), seed=2)
    torch.manual_seed(9)
    assert torch.equal(ae.decode(ae.encode(noise(5003)), seed=2), y)


def test_first_weights_are_those_of_the_seed_whatever_other_threads_draw():
    "Bit for bit those of the global generator with that seed."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        expected = Autoencoder(PRESETS["tiny"]).state_dict()
    stop, found = threading.Event(), []
    def draw():
        while not stop.is_set(): torch.rand(99); torch.manual_seed(5)
    others = [threading.Thread(target=draw), threading.Thread(target=lambda: found.extend(Autoencoder.from_preset("tiny", seed=4) for _ in range(2)))]
    for t in others: t.start()
    made = [Autoencoder.from_preset("tiny", seed=3).state_dict() for _ in range(3)]
    others[1].join(); stop.set(); others[0].join()
    assert all(torch.equal(m[k], expected[k]) for m in made for k in expected) and all(torch.equal(a, b) for a, b in zip(*(f.state_dict().values() for f in found)))


def test_loading_leaves_global_randomness_alone(saved):
    before = torch.get_rng_state()
    Autoencoder.from_pretrained(saved)
    assert torch.equal(torch.get_rng_state(), before)


def test_fingerprints_cover_what_can_be_heard_or_seen(ae):
    def marked(**changes):
        other = copy.copy(ae); other.config = change_config(ae.config, changes); return fingerprint(other)
    seen = [marked(**{k: v}) for k, v in {"network.heads": 2, "noise.sigma_data": .4, "noise.sigma_max": 9., "noise.sigma_min": .003, "noise.rho": 6., "transform.sample_rate": 22051, "transform.alpha": .6,
                                          "transform.beta": .33, "window": 64, "context": 8, "factor_level": True}.items()]
    assert len({fingerprint(ae), *seen}) == 12
    assert {marked(**{k: 3}) for k in ("noise.p_mean", "noise.p_std", "noise.levels")} == {fingerprint(ae)}  # of the training alone
    other = copy.deepcopy(ae); other.denoiser.conv_out.weight.data[0, 0, 0, 0] += 1e-6
    assert fingerprint(other) != fingerprint(ae) and fingerprint(copy.deepcopy(ae).bfloat16()) not in (fingerprint(ae), fingerprint(copy.deepcopy(ae).half()))


def test_from_preset_repeats_itself():
    one, same, other = (Autoencoder.from_preset("tiny", seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[k], same[k]) for k in one) and not all(torch.equal(one[k], other[k]) for k in one)


def test_no_gradient_is_kept(ae):
    wave = noise(5003).requires_grad_()
    z = ae.encode(wave)
    assert not z.requires_grad and not ae.features(wave).requires_grad and not ae.decode(z).requires_grad
    assert all(p.grad is None for p in ae.parameters())


@pytest.mark.parametrize("samples", [256, 257, 9973, 10_240, 48_000])
@pytest.mark.parametrize("rate", [None, 8000, 44100, 48000, 22050, 44056.5])
def test_length_comes_back_at_any_rate(ae, samples, rate):
    if (rate or 22050) > 22050: samples *= 3  # at least one latent frame at the model's rate
    wave = noise(samples)
    y = ae.decode(ae.encode(wave, sample_rate=rate), length=samples, sample_rate=rate)
    assert y.shape == (samples,) and torch.isfinite(y).all()


def test_decoding_without_a_length_holds_the_sound_and_less_than_a_frame_more(ae):
    for samples in (256, 9973, 256*100, 256*100 + 1):
        extra = ae.decode(ae.encode(noise(samples))).shape[-1] - samples
        assert 0 <= extra < ae.frame_length, (samples, extra)


def test_silence_and_a_single_sample_are_ordinary_sounds(ae):
    for wave in (torch.zeros(5003), torch.nn.functional.pad(torch.ones(1), (2500, 2502)), torch.ones(5003)*1e3):
        z = ae.encode(wave)
        assert torch.isfinite(z).all() and torch.isfinite(ae.decode(z, length=5003)).all()


# ---- save and load

def test_saved_and_loaded_is_the_same_model(ae, saved):
    back = Autoencoder.from_pretrained(saved)
    assert back.config == ae.config and not back.training
    wave = noise(2, 9001)
    assert torch.equal(back.encode(wave), ae.encode(wave)) and torch.equal(back.features(wave), ae.features(wave))
    assert torch.equal(back.decode(ae.encode(wave), steps=2, seed=1), ae.decode(ae.encode(wave), steps=2, seed=1))
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_latent_scale_is_saved_and_undone(saved):
    model = Autoencoder.from_pretrained(saved)
    wave = noise(9001)
    z, y = model.encode(wave), model.decode(model.encode(wave))
    model.latent_std.fill_(.25)
    model.save_pretrained(saved)
    back = Autoencoder.from_pretrained(saved)
    assert float(back.latent_std) == .25
    assert torch.equal(back.encode(wave), 4*z) and torch.allclose(back.decode(4*z), y, atol=1e-6)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json(name):
    assert config_from_dict(AutoencoderConfig, json.loads(json.dumps(config_to_dict(PRESETS[name])))) == PRESETS[name]


def test_the_licence_of_the_weights_is_kept(ae, saved):
    assert "licence" not in (saved/"config.json").read_text() and "licence" not in describe_model(ae)
    model = Autoencoder.from_pretrained(saved)
    assert model.licence == ""
    model.licence = "CC BY-NC 4.0"
    model.save_pretrained(saved)
    back = Autoencoder.from_pretrained(saved)
    assert json.loads((saved/"config.json").read_text())["licence"] == back.licence == "CC BY-NC 4.0" and back.config == ae.config
    assert back.with_window(None).licence == describe_model(back)["licence"] == "CC BY-NC 4.0"
    assert Autoencoder.licence == ae.licence == ""


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError) as e: Autoencoder.from_preset("huge")
    assert all(word in str(e.value) for word in ("'huge'", *PRESETS))


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "./nowhere", "/nowhere/at/all", ""])
def test_a_model_that_is_nowhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as e: Autoencoder.from_pretrained(name)
    assert repr(name) in str(e.value) or "config.json" in str(e.value)


@pytest.mark.parametrize("name", ["runs/m2l", "here/model"])
def test_a_folder_that_is_not_there_is_not_asked_for_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the Hub"))
    (tmp_path/"here"/"other").mkdir(parents=True); (tmp_path/"here"/"other"/"config.json").write_text("{}")  # a folder of models; one that holds none hides no owner
    with pytest.raises(ValueError, match="no such folder") as e: Autoencoder.from_pretrained(name)
    assert repr(name) in str(e.value) and str(tmp_path) in str(e.value)


@pytest.mark.parametrize("error", [OSError("no network"), ValueError("no such repository"), RuntimeError("something")])
def test_errors_of_the_hub_are_told(error, tmp_path, monkeypatch):
    def download(*_, **__): raise error
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ValueError, match="the Hub says") as e: Autoencoder.from_pretrained("owner/name")
    assert all(word in str(e.value) for word in ("'owner/name'", str(tmp_path), str(error)))


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_file_is_missing(saved, missing):
    (saved/missing).unlink()
    with pytest.raises(ValueError) as e: Autoencoder.from_pretrained(saved)
    assert missing in str(e.value) and str(saved) in str(e.value)


@pytest.mark.parametrize("keep", [0, 5, 100, 5000, -1])
def test_truncated_weights(saved, keep):
    path = saved/"model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError) as e: Autoencoder.from_pretrained(saved)
    assert str(path) in str(e.value)


def test_weights_of_another_model(ae, saved):
    make(STRIDED).save_pretrained(saved.parent/"strided")
    (saved/"config.json").write_bytes((saved.parent/"strided"/"config.json").read_bytes())
    with pytest.raises(ValueError) as e: Autoencoder.from_pretrained(saved)
    assert str(saved) in str(e.value) and "missing" in str(e.value) and "another shape" in str(e.value)
    save_weights(saved/"model.safetensors", {"anything": torch.zeros(3)})
    with pytest.raises(ValueError, match="1 unknown"): Autoencoder.from_pretrained(saved)


def change(saved, edit):
    data = json.loads((saved/"config.json").read_text())
    edit(data)
    (saved/"config.json").write_text(json.dumps(data))


@pytest.mark.parametrize("edit, words", [
    (lambda d: d.update(format_version=FORMAT_VERSION + 1), [str(FORMAT_VERSION + 1), "newer"]),
    (lambda d: d.update(format_version="two"), ["'two'"]),
    (lambda d: d.update(format_version=None), ["None"]),
    (lambda d: d.update(linearity=True), ["'linearity'", "window"]),
    (lambda d: d["network"].update(depth=9), ["network", "'depth'", "base_channels"]),
    (lambda d: d.update(network=7), ["network", "7"]),
    (lambda d: d.update(window=4), ["4"]),
    (lambda d: d.update(licence=4), ["licence", "4"]),
    (lambda d: d.pop("window"), ["missing window"]),
    (lambda d: d["transform"].clear(), ["transform", "missing sample_rate, hop_length, alpha, beta"]),
    (lambda d: d["network"].pop("fold"), ["network", "missing fold"]),
    (lambda d: d["network"].update(bins=300), ["300"])])
def test_a_config_that_is_newer_or_foreign(saved, edit, words):
    change(saved, edit)
    with pytest.raises(ValueError) as e: Autoencoder.from_pretrained(saved)
    assert all(word in str(e.value) for word in words), e.value


@pytest.mark.parametrize("edit", [lambda d: d.update(window="32"), lambda d: d["transform"].update(hop_length="256"),
                                  lambda d: d["network"].update(base_channels=None), lambda d: d["network"].update(multipliers=3),
                                  lambda d: d["network"].update(bottleneck="nothing"), lambda d: d.update(noise=[])])
def test_a_config_with_values_of_another_kind(saved, edit):
    change(saved, edit)
    with pytest.raises(ValueError, match="config.json"): Autoencoder.from_pretrained(saved)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "7", '"text"', "\x00\x01"])
def test_a_config_that_is_no_object(saved, text):
    (saved/"config.json").write_text(text)
    with pytest.raises(ValueError) as e: Autoencoder.from_pretrained(saved)
    assert "config.json" in str(e.value)


@pytest.mark.parametrize("edit", [
    lambda d: d["transform"].update(beta=float("inf")), lambda d: d["transform"].update(alpha=float("nan")), lambda d: d["transform"].update(sample_rate=10**9), lambda d: d["transform"].update(hop_length=2**40),
    lambda d: d["network"].update(encoder_blocks=10**9), lambda d: d["network"].update(denoiser_blocks=257), lambda d: d["network"].update(bottleneck_blocks=-1), lambda d: d["network"].update(latent_channels=0),
    lambda d: d["network"].update(base_channels=2**50), lambda d: d["network"].update(multipliers=[10**8]), lambda d: d["network"].update(multipliers=[1]*10**5), lambda d: d["network"].update(heads=0), lambda d: d["network"].update(noise_channels=10**12),
    lambda d: d["noise"].update(sigma_max=float("inf")), lambda d: d["noise"].update(sigma_data=1e300), lambda d: d["noise"].update(levels=10**12), lambda d: d["noise"].update(p_mean=float("nan")), lambda d: d["noise"].update(rho=0.),
    lambda d: d.update(window=2**40), lambda d: d.update(window=None, context=10**12), lambda d: d.update(context=-1), lambda d: d.update(format_version=0), lambda d: d.update(format_version=True), lambda d: d.update(format_version=1.)])
def test_absurd_settings_are_refused_before_anything_is_built(saved, edit):
    change(saved, edit)
    with pytest.raises(ValueError, match="config.json") as e: Autoencoder.from_pretrained(saved)
    assert len(str(e.value)) < 700


def test_a_config_that_asks_for_more_than_the_weights_hold_costs_no_memory(saved):
    "256 blocks of 2**14 channels would be terabytes."
    change(saved, lambda d: d["network"].update(base_channels=2**14, encoder_blocks=256))
    with pytest.raises(ValueError, match="another shape"): Autoencoder.from_pretrained(saved)


# ---- damage

def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit//8] ^= 1 << bit % 8
    path.write_bytes(data)


@pytest.mark.parametrize("old", [False, True], ids=["with digest", "copied file"])
def test_one_changed_bit_of_the_weights_is_told(ae, saved, old):
    "By the file's own digest; where a foreign tool has written the file without one, by that in config.json."
    path, right = saved/"model.safetensors", ae.state_dict()
    if old: safetensors.torch.save_file({k: v.contiguous() for k, v in right.items()}, path)
    whole = path.read_bytes()
    for bit in np.random.default_rng(0).integers(8*len(whole), size=20):
        path.write_bytes(whole); flip(path, int(bit))
        try: got = Autoencoder.from_pretrained(saved).state_dict()
        except ValueError as e: assert str(saved) in str(e)
        else: assert all(torch.equal(got[k], right[k]) for k in right)
    path.write_bytes(whole); flip(path, 8*len(whole) - 5)
    with pytest.raises(ValueError, match="not those that were saved|not the weights"): Autoencoder.from_pretrained(saved)


def test_a_folder_from_before_digests_is_read(ae, saved):
    safetensors.torch.save_file({k: v.contiguous() for k, v in ae.state_dict().items()}, saved/"model.safetensors")
    change(saved, lambda d: d.pop("weights"))
    assert torch.equal(Autoencoder.from_pretrained(saved).encode(noise(5003)), ae.encode(noise(5003)))


@pytest.mark.parametrize("name, value, words", [
    ("latent_std", torch.tensor(0.), ["latent_std must be above 0", "got 0"]), ("latent_std", torch.tensor(-1.), ["latent_std must be above 0"]), ("latent_std", torch.tensor(torch.nan), ["latent_std", "NaN"]),
    ("denoiser.conv_out.weight", torch.inf, ["conv_out.weight", "infinity"]), ("denoiser.conv_out.weight", torch.int8, ["conv_out.weight", "torch.int8"]), ("denoiser.conv_out.weight", torch.complex64, ["conv_out.weight", "complex64"])])
def test_weights_that_cannot_be_are_named(ae, saved, name, value, words):
    weights = {k: v.clone() for k, v in ae.state_dict().items()}
    weights[name] = value if isinstance(value, torch.Tensor) else weights[name].to(value) if isinstance(value, torch.dtype) else weights[name].fill_(value)
    save_weights(saved/"model.safetensors", weights)
    change(saved, lambda d: d.pop("weights"))
    with pytest.raises(ValueError) as e: Autoencoder.from_pretrained(saved)
    assert all(word in str(e.value) for word in [str(saved), *words]), e.value


def test_one_changed_bit_of_a_state_is_told(tmp_path):
    state = {"step": 3, "model": {"w": torch.randn(60, 60, generator=torch.Generator().manual_seed(0))}}
    save_state(tmp_path/"a.pt", state)
    whole, told = (tmp_path/"a.pt").read_bytes(), 0
    for bit in np.random.default_rng(0).integers(8*len(whole), size=100):
        (tmp_path/"a.pt").write_bytes(whole); flip(tmp_path/"a.pt", int(bit))
        try: got = load_pickled_weights(tmp_path/"a.pt")
        except ValueError as e: told += 1; assert "a.pt" in str(e)
        else: assert torch.equal(got["model"]["w"], state["model"]["w"]) and got["step"] == 3
    assert told > 80


def test_damaged_files_of_a_model_end_in_named_errors(ae, saved):
    rng = np.random.default_rng(1)
    for name in ("config.json", "model.safetensors"):
        whole = (saved/name).read_bytes()
        for _ in range(40):
            data, at = bytearray(whole), int(rng.integers(min(len(whole), 4000)))
            kind = rng.integers(3)
            if kind == 0: data = data[:at]
            if kind == 1: data[at:at + 6] = rng.bytes(6)
            if kind == 2: del data[at:at + 9]
            (saved/name).write_bytes(data)
            try: Autoencoder.from_pretrained(saved)
            except ValueError as e: assert str(saved) in str(e)
        (saved/name).write_bytes(whole)


# ---- pickles

class Trap:
    "Leaves a file if it is unpickled."
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [lambda data, path: torch.save(data, path),
                                   lambda data, path: torch.save(data, path, _use_new_zipfile_serialization=False),
                                   lambda data, path: path.write_bytes(pickle.dumps(data))], ids=["zip", "old", "plain"])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, write):
    path, sprung = tmp_path/"weights.pth", tmp_path/"sprung"
    write({"gen_state_dict": {"a": torch.zeros(2)}, "x": Trap(sprung)}, path)
    for call in (lambda: load_pickled_weights(path), lambda: read_public("m2l", path), lambda: Autoencoder.from_public("m2l", path)):
        with pytest.raises(ValueError) as e: call()
        assert str(path) in str(e.value) and not sprung.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no pickle at all", pickle.dumps([1, 2, 3]), pickle.dumps({}), pickle.dumps({"a": 1}),
                                     pickle.dumps({"gen_state_dict": {}}), pickle.dumps({"gen_state_dict": [1, 2]})])
def test_a_foreign_pickle_is_refused(tmp_path, content):
    path = tmp_path/"weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError) as e: Autoencoder.from_public("m2l", path)
    assert str(path) in str(e.value)


@pytest.mark.parametrize("content", [{1: torch.zeros(1)}, {"gen_state_dict": torch.zeros(3)}, {"gen_state_dict": {1: torch.zeros(1)}},
                                     {"a": torch.zeros(1), "epoch": 3}, torch.zeros(3)])
def test_foreign_tensors_are_refused(tmp_path, content):
    path = tmp_path/"weights.pth"
    torch.save(content, path)
    for name in ("m2l", "music2latent"):
        with pytest.raises(ValueError) as e: read_public(name, path)
        assert str(path) in str(e.value)


@pytest.mark.parametrize("settings", ["{hop_size", "\x00", "", "7", "[512]", "hop_size: 512", "{hop_size: '512', alpha_rescale: .65, beta_rescale: .34}",
                                      "{hop_size: 512, alpha_rescale: , beta_rescale: .34}", "{hop_size: 512, alpha_rescale: .65, beta_rescale: [.34]}"])
def test_foreign_settings_are_refused(tmp_path, settings):
    torch.save({"a": torch.zeros(1)}, tmp_path/"weights.pth")
    (tmp_path/"frontend_kwargs_last.yaml").write_text(settings)
    with pytest.raises(ValueError) as e: read_public("lin-cae", tmp_path/"weights.pth")
    assert str(tmp_path/"frontend_kwargs_last.yaml") in str(e.value)


def test_settings_are_read_and_assumed_with_a_warning(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path/"weights.pth")
    with pytest.warns(UserWarning, match="hop 512, alpha 0.65, beta 0.34"): config, _ = read_public("lin-cae", tmp_path/"weights.pth")
    assert config.transform == TransformConfig()
    (tmp_path/"frontend_kwargs_last.yaml").write_text("{hop_size: 512, alpha_rescale: .5, beta_rescale: 1}")
    with warnings.catch_warnings(action="error"):
        assert read_public("lin-cae", tmp_path/"weights.pth")[0].transform == TransformConfig(alpha=.5, beta=1)
        assert read_public("music2latent", tmp_path/"weights.pth")[0].transform == TransformConfig()


def test_a_truncated_pickle_is_refused(tmp_path):
    path = tmp_path/"weights.pth"
    torch.save({"a": torch.zeros(10_000)}, path)
    whole = path.read_bytes()
    for keep in (10, 1000, len(whole)//2, len(whole) - 10):
        path.write_bytes(whole[:keep])
        with pytest.raises(ValueError) as e: load_pickled_weights(path)
        assert str(path) in str(e.value)


def test_public_weights_that_do_not_fit_or_are_not_there(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path/"weights.pth")
    with pytest.raises(ValueError, match="missing"), pytest.warns(UserWarning, match="assumed"): Autoencoder.from_public("lin-cae", tmp_path/"weights.pth")
    with pytest.raises(ValueError) as e: Autoencoder.from_public("lin-cae-3")
    assert all(name in str(e.value) for name in ("'lin-cae-3'", *PUBLIC))
    with pytest.raises(ValueError, match="inference_model"): Autoencoder.from_public("lin-cae", tmp_path)


# ---- nothing is lost

def test_a_state_comes_back(tmp_path):
    state = {"step": 3, "model": {"a": torch.arange(5.)}, "settings": "{}", "scaler": {}}
    save_state(tmp_path/"deep/state.pt", state)
    back = load_pickled_weights(tmp_path/"deep/state.pt")
    assert torch.equal(back["model"].pop("a"), state["model"].pop("a")) and back == state


def old_and_new(tmp_path):
    path = tmp_path/"old.txt"
    path.write_text("old")
    return path


def test_an_error_while_writing_keeps_the_old_file(tmp_path):
    path = old_and_new(tmp_path)
    for error in (OSError("disk"), ValueError("something"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            with atomic_write(path) as part:
                part.write_text("half")
                raise error
        assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


SAVE_ON_A_FULL_DISK = """
import resource, signal, sys
from latentalign import Autoencoder
from latentalign.base.models import save_state
model = Autoencoder.from_pretrained(sys.argv[1])
model.latent_std.fill_(7)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try: model.save_pretrained(sys.argv[1]) if sys.argv[3] == "model" else save_state(sys.argv[1] + "/state.pt", model.state_dict())
except OSError as e: print(e)
"""


def python(script, *args, **options):
    return subprocess.run([sys.executable, "-c", script, *map(str, args)], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(TOP), "OMP_NUM_THREADS": "1"}, **options)


@pytest.mark.parametrize("what, file", [("model", "model.safetensors"), ("state", "state.pt")])
@pytest.mark.parametrize("room", [0, 100_000])  # bytes that the disk still takes
def test_a_full_disk_keeps_the_old_file(ae, saved, what, file, room):
    save_state(saved/"state.pt", ae.state_dict())
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    done = python(SAVE_ON_A_FULL_DISK, saved, room, what)
    assert done.returncode == 0 and f"could not write {saved/file}" in done.stdout, done.stdout + done.stderr
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


# ---- the Hub

def test_from_the_hub(ae, saved, monkeypatch, tmp_path):
    asked = []
    def download(repo_id, allow_patterns=None, **_):
        asked.append((repo_id, sorted(allow_patterns)))
        return str(saved)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    back = Autoencoder.from_pretrained("owner/name")
    assert asked == [("owner/name", ["config.json", "model.safetensors"])]
    assert torch.equal(back.encode(noise(5003)), ae.encode(noise(5003)))
    (saved/"config.json").unlink()
    with pytest.raises(ValueError, match="config.json"): Autoencoder.from_pretrained("owner/name")


def test_public_weights_come_from_the_hub(monkeypatch, tmp_path):
    torch.save({"gen_state_dict": {"a": torch.zeros(3)}}, tmp_path/"music2latent.pt")
    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, file: asked.append((repo, file)) or str(tmp_path/file))
    with pytest.raises(ValueError, match="SonyCSLParis/music2latent"): Autoencoder.from_public("music2latent")
    assert asked == [("SonyCSLParis/music2latent", "music2latent.pt")]


def test_push_to_the_hub(ae, monkeypatch):
    made, uploaded = [], {}
    class Api:
        def create_repo(self, repo_id, private, exist_ok): made.append((repo_id, private, exist_ok))
        def upload_folder(self, repo_id, folder_path, **_):
            back = Autoencoder.from_pretrained(folder_path)
            assert torch.equal(back.encode(noise(5003)), ae.encode(noise(5003)))
            uploaded[repo_id] = sorted(p.name for p in Path(folder_path).iterdir())
            return "address of the commit"
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert ae.push_to_hub("me/mine", private=True) == "address of the commit"
    assert made == [("me/mine", True, True)] and uploaded == {"me/mine": ["config.json", "model.safetensors"]}


# ---- memory

GROWTH = """
import json, sys, torch
from latentalign import Autoencoder
from latentalign.codec.network import AutoencoderConfig
from latentalign.base.config import config_from_dict
def peak(): return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
model = Autoencoder(config_from_dict(AutoencoderConfig, json.loads(sys.argv[1]))).eval()
peaks = []
for seconds in (10, 600):
    wave = torch.zeros(seconds * 22050).uniform_(-.1, .1)
    z = model.encode(wave)
    peaks.append(peak())
    y = model.decode(z, length=len(wave))
    peaks.append(peak())
print(*peaks, (wave.nbytes + z.nbytes + y.nbytes) / 2**20)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
def test_memory_grows_with_the_sound_itself_and_nothing_else():
    "Ten minutes: sound, latents and result are held, with a copy of the one and the other on the way; never the image (4 times the sound)."
    config = dataclasses.replace(NARROW, window=256, context=16)
    done = python(GROWTH, json.dumps(config_to_dict(config)))
    assert done.returncode == 0, done.stderr
    short_encode, short, encode, decode, held = map(float, done.stdout.split())
    assert encode - short < 2*held and decode - short < 2.5*held, done.stdout
