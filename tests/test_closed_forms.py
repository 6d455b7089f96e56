"""Closed forms as models like any other, and the figures that codecs are judged by, against what is known beforehand."""
import math
import time

import numpy as np
import pytest
import torch

from latentalign import Autoencoder
from latentalign.training import fitting
from latentalign.codec.autoencoder import code_config, fit_code
from latentalign.codec.closed_forms import CodeConfig, code_for, fit_projection, measure
from latentalign.evaluation.codec_figures import Pairs, codec_figures, frame_distances, jackknife_interval
from latentalign.evaluation.codec_figures import measure_codec, piece_interval
from latentalign.evaluation.perceptual import visqol_score

pytestmark = pytest.mark.usefixtures("one_thread")
KINDS = {"linear": "mdct", "magnitude": "linear", "compressed": "compressed"}


def music(items, samples, seed=0, rate=22050):
    "Chords of a few decaying partials: sound whose energy lies in few directions, as music's does."
    rng, t = np.random.default_rng(seed), np.arange(samples)/rate
    tone = lambda: rng.uniform(.02, .2)*sum(np.sin(2*np.pi*f*k*t)*np.exp(-t*rng.uniform(0, 4))/k for k in (1, 2, 3) for f in [110*2**(rng.integers(0, 36)/12)])
    return torch.from_numpy(np.stack([tone() + tone() for _ in range(items)]).astype(np.float32))


@pytest.fixture(scope="module")
def fitted():
    "The three kinds at 8×, fitted to the same sound."
    torch.set_num_threads(1)
    waves, models = music(80, 16896), {}
    for kind, domain in KINDS.items():
        models[kind] = Autoencoder(code_config(domain, 8, 22050)).eval()
        fit_code(models[kind], waves)
    return models


@pytest.fixture(scope="module")
def pairs():
    x, y = music(4, 22050, 1), music(4, 22050, 2)
    return Pairs(x, y, ("a", "a", "b", "b"), 22050)


@pytest.fixture(scope="module")
def figures(fitted, pairs):
    return {kind: codec_figures(model, pairs, visqol=False) for kind, model in fitted.items()}


def test_a_linear_code_has_no_error_of_linearity(figures):
    for name in ("additivity", "homogeneity_-40", "homogeneity_6", "homogeneity_inverted"): assert max(figures["linear"][name]) < 1e-5, name
    assert max(figures["linear"]["subtracted_own_mss"]) < 1e-3


def test_a_magnitude_is_homogeneous_above_zero_and_errs_by_two_at_minus_one(figures):
    found = figures["magnitude"]
    for db in (-40, -30, -20, -10, 6): assert max(found[f"homogeneity_{db}"]) < 1e-5, db
    assert found["homogeneity_inverted"] == pytest.approx([2]*4, abs=1e-5)
    assert .01 < min(found["additivity"]) and max(found["additivity"]) < 1


def test_a_power_of_the_magnitude_is_not_homogeneous(figures):
    "Without its offset, z(ax) = a^α z(x) and the error would be |a^(α−1) − 1|: at −40 dB, α = 0.65, 4.01."
    assert min(figures["compressed"]["homogeneity_-40"]) > 1 and min(figures["compressed"]["homogeneity_6"]) > .02


def test_parts_that_do_not_overlap_in_time_add_up_in_the_magnitude(fitted):
    "Additivity is lost to overlap alone: with a silence of more than a window between them, two sounds add up."
    x = music(2, 32768, 3)
    first, second = x.clone(), x.clone()
    first[:, 14000:] = 0; second[:, :18000] = 0
    found = codec_figures(fitted["magnitude"], Pairs(first, second, ("a", "b"), 22050), visqol=False, parts=False)
    assert max(found["additivity"]) < 1e-5


def test_every_kind_tells_its_own_latent_from_another_clips(figures):
    for kind, found in figures.items():
        assert all(own < other for own, other in zip(found["mss"], found["other_mss"])), kind


def test_subtraction_is_a_reconstruction_where_the_code_is_linear_and_only_there(figures):
    for kind, found in figures.items():
        assert (found["subtracted_true_mss"] == pytest.approx(found["part_mss"], abs=2e-3)) == (kind == "linear"), kind


def test_error_of_the_mean_is_that_of_the_projection(fitted, figures, pairs):
    "For the compressed code: energy outside its axes, computed here without encoder and decoder."
    model = fitted["compressed"]
    assert len(figures["compressed"]["error"]) == 4 and max(figures["compressed"]["error"]) < .5 and "error" not in figures["linear"]
    overlap, frame = model.config.transform.overlap, model.frame_length
    wave = pairs.mixture[:, :(22050 - overlap)//frame*frame + overlap]
    columns = measure(wave, model.config.transform, model.config.code).transpose(1, 2)
    axes = torch.linalg.qr(model.encoder.axes.detach())[0]
    rest = columns - model.encoder.offset
    kept = (model.encoder.offset + rest @ axes @ axes.T).clamp(min=0)
    expected = (kept - columns).square().flatten(1).sum(1)/columns.square().flatten(1).sum(1)
    assert figures["compressed"]["error"] == pytest.approx(expected.tolist(), rel=2e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_equal(fitted, kind, pairs, tmp_path):
    model = fitted[kind]
    model.save_pretrained(tmp_path)
    loaded = Autoencoder.from_pretrained(tmp_path)
    z = model.encode(pairs.x, 22050)
    assert torch.equal(loaded.encode(pairs.x, 22050), z) and loaded.config == model.config
    assert torch.equal(loaded.decode(z, phases=2), model.decode(z, phases=2))


@pytest.mark.parametrize("kind", KINDS)
def test_batch_is_single_and_phases_are_seeded(fitted, kind, pairs):
    model = fitted[kind]
    z = model.encode(pairs.x, 22050, batch_size=4)
    torch.testing.assert_close(z, torch.stack([model.encode(x, 22050) for x in pairs.x]), rtol=1e-4, atol=1e-5)
    together, again = model.decode(z, batch_size=4, phases=2), model.decode(z, batch_size=4, phases=2)
    assert torch.equal(together, again)
    torch.testing.assert_close(together[2], model.decode(z[2], phases=2), rtol=1e-3, atol=1e-4)
    assert torch.equal(model.decode(z, seed=1, phases=2), together) == (kind == "linear")


@pytest.mark.parametrize("kind", KINDS)
def test_windows_have_the_latents_of_the_whole(fitted, kind):
    wave, model = music(1, 60000, 4), fitted[kind]
    chunked = model.with_window(24, 4)
    torch.testing.assert_close(chunked.encode(wave, 22050), model.encode(wave, 22050), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_another_rate_is_resampled_and_no_closed_form_has_it(fitted, kind):
    model, t = fitted[kind], torch.arange(44100)/44100
    tone = lambda t: .2*torch.sin(2*math.pi*440*t)
    z, high = model.encode(tone(t[::2]), 22050), model.encode(tone(t), 44100)
    assert z.shape == high.shape
    assert float((high - z)[:, 2:-2].norm()/z[:, 2:-2].norm()) < .02
    for name in (f"{kind}:64@48000", f"{kind}:64@", f"{kind}:-4", kind + ":"):
        with pytest.raises(ValueError, match="rates are 22050 and 44100"): Autoencoder.from_pretrained(name)


def test_clips_at_another_rate_are_refused(fitted, pairs):
    with pytest.raises(ValueError, match="44100 Hz and the model 22050 Hz"): codec_figures(fitted["linear"], Pairs(pairs.x, pairs.y, pairs.pieces, 44100))


@pytest.mark.parametrize("ratio, domain, changes, said", [(100, "linear", {}, "does not divide"), (512, "linear", {"patch": 3}, "does not divide"), (3, "mdct", {}, "does not divide"),
                                                          (0, "linear", {}, "between 1 and 1024"), (math.nan, "linear", {}, "between 1 and 1024"), (64, "cubic", {}, "unknown domain")])
def test_ratios_and_patches_that_do_not_divide_are_refused(ratio, domain, changes, said):
    with pytest.raises(ValueError, match=said): code_for(ratio, 22050, domain, **changes)


@pytest.mark.parametrize("domain", KINDS.values())
def test_too_few_items_and_silence_are_refused(domain):
    model = Autoencoder(code_config(domain, 64, 22050))
    with pytest.raises(ValueError, match=r"\d+ frames are too few to fit 32 axes to; 128 or more"): fit_code(model, music(2, 16896))
    with pytest.raises(ValueError, match="silent"): fit_code(model, torch.zeros(40, 16896))
    with pytest.raises(ValueError, match="silent"): fit_projection(torch.zeros(500, 64), CodeConfig(domain, 1, 4))


@pytest.mark.filterwarnings("ignore:no recordings")
def test_a_closed_form_is_fitted_once(monkeypatch, tmp_path):
    monkeypatch.setenv("LATENTALIGN_CACHE", str(tmp_path))
    monkeypatch.setenv("LATENTALIGN_DATA", str(tmp_path))
    class Crops:
        def batch(self, numbers): return music(40, 16896)
    asked = []
    monkeypatch.setattr(fitting, "open_pool", lambda *args: asked.append(args) or Crops())
    first = Autoencoder.from_pretrained("magnitude:64")
    began = time.process_time()
    second = Autoencoder.from_pretrained("magnitude:64")
    assert len(asked) == 1 and time.process_time() - began < 2
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    next(tmp_path.rglob("model.safetensors")).write_bytes(b"damaged")
    Autoencoder.from_pretrained("magnitude:64")
    assert len(asked) == 2


def test_distances_of_frames_that_are_known():
    "0 from itself in whatever order, 64 (ln g)² from itself times g (64 bands moved, no difference in time), and as far there as back."
    x, hiss = music(4, 22050, 5), torch.randn(4, 22050, generator=torch.Generator().manual_seed(0))
    assert frame_distances(x, x, tuple("aabb"), 22050) == pytest.approx([0, 0, 0], abs=1e-6)
    assert frame_distances(x.flip(0), x, tuple("aabb"), 22050)[0] == pytest.approx(0, abs=1e-6)
    assert frame_distances(3*hiss, hiss, tuple("aabb"), 22050) == pytest.approx([64*math.log(3)**2]*3, rel=.02)
    assert frame_distances(hiss, x, tuple("aabb"), 22050)[0] == pytest.approx(frame_distances(x, hiss, tuple("aabb"), 22050)[0])
    with pytest.raises(ValueError, match="two pieces or more"): frame_distances(x, x, tuple("aaaa"), 22050)


def test_intervals_are_over_pieces_not_clips():
    assert piece_interval([1, 1, 1, 3], list("aaab")) == pytest.approx((2, 12.7062), rel=1e-4)
    assert jackknife_interval([2., 3., 1.]) == pytest.approx((2, 12.7062), rel=1e-4)
    with pytest.raises(ValueError, match="two or more, got 1"): piece_interval([1., 2.], ["a", "a"])
    with pytest.raises(ValueError, match="as many names"): piece_interval([1., 2.], ["a"])


def test_measured_sets_keep_names_and_options_reach_the_decoder(fitted, pairs):
    found = measure_codec(fitted["magnitude"], {"tones": pairs}, visqol=False, parts=False, phases=0)["tones"]
    more = codec_figures(fitted["magnitude"], pairs, visqol=False, parts=False)
    assert found["pieces"] == ["a", "a", "b", "b"] and len(found["frechet"]) == 3 and "other_mss" not in found
    assert sum(found["mss"]) > sum(more["mss"]) and found["additivity"] == more["additivity"]
