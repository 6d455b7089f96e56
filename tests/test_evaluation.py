"""Figures of linearity and noise on latents, on models whose answers are known by hand."""
import math

import numpy as np
import pytest
import torch

from latentalign.training.alignment import snr_to_time
from latentalign.evaluation.arithmetic import Coded, curve_median, decoder_additivity, decoder_homogeneity
from latentalign.evaluation.arithmetic import effective_rank, encoder_additivity, encoder_homogeneity
from latentalign.evaluation.arithmetic import homogeneity_curve, latent_spectrum, linearity, linearity_values
from latentalign.evaluation.arithmetic import noisy_latents, relative_error, separate, separation
from latentalign.base.mel import mss_error
from latentalign.evaluation.protocols import GAINS
from latentalign.evaluation.test_sets import check_stems

CLOSE = dict(atol=2e-3, rtol=0)


pytestmark = pytest.mark.usefixtures("one_thread")


class Frames:
    "Frames of 64 samples as the columns of a latent, and two maps on such columns."
    sample_rate = 8000
    def __init__(self, encoder, decoder): self.encoder, self.decoder, self.calls = encoder, decoder, []
    def encode(self, wave): self.calls.append("encode"); return self.encoder(wave.unflatten(-1, (-1, 64)).mT)
    def decode(self, z, length): self.calls.append("decode"); return self.decoder(z).mT.flatten(-2)[..., :length]


ROWS = torch.linalg.qr(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)))[0].T


def linear(): return Frames(lambda x: ROWS @ x, lambda z: ROWS.T @ z)
def root(): return Frames(lambda x: x.sign()*x.abs().sqrt(), lambda z: z*z.abs())
def shifted(): return Frames(lambda x: x + 1, lambda z: z - 1)


def noise(seed, clips=2, samples=8000): return .2*torch.randn(clips, samples, generator=torch.Generator().manual_seed(seed))
def stems(): return {name: noise(k) for k, name in enumerate(("vocals", "bass", "drums", "other"))}


def test_exactly_linear_model_has_no_error():
    coded = Coded(linear(), stems())
    found = linearity_values(coded, homogeneity_curve(coded, (.3, 2.7, -1.)))
    assert len(found) == 2 + 3 + 3 + 2*4
    for name, values in found.items():
        if name.startswith("reconstruction"): assert (values > .1).all()            # 16 of 64 directions are kept
        elif name.endswith(("error", "mss")): assert values.max() < 1e-4, name
        else: assert values.min() > 70, name                                       # SNR and SI-SDR, dB


def test_every_latent_and_sound_is_computed_once():
    model = linear()
    coded = Coded(model, stems())
    linearity_values(coded, homogeneity_curve(coded))
    assert model.calls.count("encode") == 5 + 6 + 4 and model.calls.count("decode") == 1 + 6 + 1 + 2*4


@pytest.mark.parametrize("gain", [1/9, 1/4, 1., 2.25])
def test_homogeneity_of_the_root_model(gain):
    coded, gains = Coded(root(), {"x": noise(0)}), torch.tensor([gain, 1.])
    assert torch.allclose(encoder_homogeneity(coded, gains), torch.tensor([abs(gain**-.5 - 1), 0.]), **CLOSE)
    found = decoder_homogeneity(coded, gains)
    assert torch.allclose(found["mss"], torch.tensor([abs(math.log(gain)), 0.]), **CLOSE)
    if gain != 1: assert abs(found["snr"][0] + 20*math.log10(abs(1 - gain))) < 1e-3


@pytest.mark.parametrize("count", [2, 4])
def test_additivity_and_separation_of_the_root_model(count):
    "With n equal stems s: Enc(m) = √n·√s, the sum is n·√s; decoded n²·s against n·s; a separated stem is (√n − √(n−1))²·s."
    x = .3*noise(1).sign() + .1*noise(1)
    coded = Coded(root(), {str(k): x for k in range(count)})
    n = float(count)
    assert torch.allclose(encoder_additivity(coded), torch.full((2,), n**.5 - 1), **CLOSE)
    found = decoder_additivity(coded)
    assert torch.allclose(found["mss"], torch.full((2,), math.log(n)), **CLOSE)
    assert torch.allclose(found["snr"], torch.full((2,), -20*math.log10(n - 1)), **CLOSE)
    found = separation(coded, "0")
    assert torch.allclose(found["mss"], torch.full((2,), -2*math.log(n**.5 - (n - 1)**.5)), **CLOSE)
    assert found["si_sdr"].min() > 60                                              # only the level is wrong


def test_a_constant_in_the_latent_is_no_linearity():
    "Enc(x) = x + 1: Enc(ax) − a·Enc(x) = 1 − a; Enc(Σ) − ΣEnc = 1 − n; the decoder subtracts the constant once too often, or too seldom."
    x = noise(3)
    coded = Coded(shifted(), {"a": x, "b": x})
    norm = (2*x + 1).square().sum(1).sqrt()
    assert torch.allclose(encoder_homogeneity(coded, torch.tensor([.5, .5])), math.sqrt(8000)*.5/(.5*norm), rtol=1e-4)
    assert torch.allclose(encoder_additivity(coded), math.sqrt(8000)/norm, rtol=1e-4)
    estimate, reference = separate(coded, "a")
    assert torch.allclose(estimate, x - 1, atol=1e-5) and torch.allclose(reference, x, atol=1e-5)


def test_errors_are_against_the_autoencoded_sound():
    "A decoder that answers with another sound of the right kind is still linear."
    turned = Frames(lambda x: x, lambda z: -3*z)
    found = linearity(turned, stems())
    assert found["reconstruction_snr"] < -11 and found["decoder_additivity_mss"] < 1e-5 and found["separation_bass_si_sdr"] > 70


def test_silent_stem_has_no_value_and_no_influence():
    parts = stems()
    parts["drums"] = parts["drums"]*torch.tensor([[0.], [1.]])
    coded = Coded(root(), parts)
    found = linearity_values(coded, homogeneity_curve(coded))
    assert [name for name, v in found.items() if v.isnan()[0]] == ["separation_drums_mss", "separation_drums_si_sdr"]
    assert not any(v.isnan()[1] for v in found.values())
    assert math.isfinite(linearity(root(), parts)["separation_drums_mss"])


def test_relative_error():
    x = noise(0)
    assert torch.allclose(relative_error(torch.stack([1.5*x[0], 0*x[1]]), x), torch.tensor([.5, 1.]))
    assert relative_error(x, 0*x).isinf().all() and not relative_error(0*x, 0*x).any()
    with pytest.raises(ValueError, match="shapes differ"): relative_error(x, x[:1])


def test_the_curve_of_homogeneity_and_its_median():
    "Enc(ax) = √a·Enc(x) with its sign: errors |a^-½ − 1| and MSS |ln a|, nothing where the sign turns; the median of six is between the third and the fourth."
    coded = Coded(root(), {"x": noise(0)})
    curve = homogeneity_curve(coded)
    assert [round(20*math.log10(abs(a))) for a in GAINS] == [-40, -30, -20, -10, 6, 0] and GAINS[-1] == -1 and list(curve) == ["0.01", "0.03162", "0.1", "0.3162", "1.995", "-1"]
    for a, found in zip(GAINS, curve.values()):
        assert torch.allclose(found["encoder_homogeneity_error"], torch.full((2,), 0. if a < 0 else abs(a**-.5 - 1)), rtol=1e-3, atol=1e-4)
    assert torch.allclose(curve["0.3162"]["decoder_homogeneity_mss"], torch.full((2,), math.log(10)/2), atol=5e-3)
    assert torch.allclose(curve_median(curve)["encoder_homogeneity_error"], torch.full((2,), ((10**.25 - 1) + (10**.5 - 1))/2), rtol=1e-3)
    assert linearity(root(), {"x": noise(0)})["encoder_homogeneity_error"] == pytest.approx(1.4703, abs=1e-3)


def test_a_turned_sign_is_no_level():
    "Enc(x) = |x| is homogeneous for every gain above 0, and off by twice the latent at −1."
    curve = homogeneity_curve(Coded(Frames(torch.abs, lambda z: z), {"x": noise(0)}), (.01, 2., -1.))
    assert max(curve[a]["encoder_homogeneity_error"].max() for a in ("0.01", "2")) < 1e-5 and torch.allclose(curve["-1"]["encoder_homogeneity_error"], torch.full((2,), 2.))


def test_scales_reach_every_mss():
    windows, hops = (Coded(root(), stems(), scales) for scales in ("windows", "hops"))
    values = [linearity_values(coded, homogeneity_curve(coded, (.1,))) for coded in (windows, hops)]
    assert all((a == b).all() != name.endswith("mss") or b.max() < 1e-3 for name, a, b in ((n, values[0][n], values[1][n]) for n in values[0]) if not a.isnan().any())
    assert torch.allclose(values[1]["decoder_additivity_mss"], mss_error(hops.decode(sum(hops.stem_z.values())), hops.sound, 8000, "hops"))


@pytest.mark.parametrize("bad, words", [
    (lambda s: {}, "no stems"), (lambda s: s | {"bass": s["bass"][:, 1:]}, r"bass.*7999"), (lambda s: s | {"bass": 0*s["bass"]}, "silence in bass"),
    (lambda s: s | {"bass": s["bass"]*torch.nan}, r"'bass'.*NaN"), (lambda s: s | {"bass": s["bass"].int()}, r"'bass'.*int32"),
    (lambda s: {"a": s["bass"], "b": -s["bass"]}, "cancel out")])
def test_stems_that_cannot_be_measured(bad, words):
    with pytest.raises(ValueError, match=words): linearity(linear(), bad(stems()))


def test_stems_must_add_up_to_their_mixture():
    parts = stems()
    mixture = sum(parts.values())
    assert check_stems(parts, mixture + .01*mixture).keys() == parts.keys()
    with pytest.raises(ValueError, match=r"at -14\.0 dB.*-20"): check_stems(parts, 1.2*mixture)
    with pytest.raises(ValueError, match=r"at -14\.0 dB.*-30"): check_stems(parts, torch.stack([mixture[0], 1.2*mixture[1]]), tolerance_db=-30)
    with pytest.raises(ValueError, match="different shapes"): check_stems(parts, mixture[:, :-1])


def test_spectrum_and_effective_rank():
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 8, generator=g))[0]
    z = basis @ (torch.randn(2, 8, 20_000, generator=g)*torch.tensor([3., 1, 0, 0, 0, 0, 0, 0])[:, None]) + 7   # a mean is no variance
    spectrum = latent_spectrum(z)
    assert np.allclose(spectrum, [.9, .1, 0, 0, 0, 0, 0, 0], atol=.003)
    assert abs(effective_rank(spectrum) - math.exp(-.9*math.log(.9) - .1*math.log(.1))) < .02
    assert effective_rank(torch.full((64,), 1/64)) == pytest.approx(64)
    with pytest.raises(ValueError, match="same in every frame"): latent_spectrum(torch.ones(3, 4))


def test_noise_has_the_wanted_ratio_whatever_the_level():
    z = torch.randn(3, 2, 64, 300, generator=torch.Generator().manual_seed(0))*torch.tensor([1e-3, 1., 50.])[:, None, None, None]
    for snr, t in ((16., .2), (4., 1/3), (1., .5), (.25, 2/3)):
        assert snr_to_time(snr) == pytest.approx(t)
        kept, rest = (1 - t)*z, noisy_latents(z, snr, seed=1) - (1 - t)*z
        assert torch.allclose(kept.flatten(1).square().sum(1)/rest.flatten(1).square().sum(1), torch.full((3,), snr), rtol=.03)
    assert torch.equal(noisy_latents(z, math.inf), z)
    assert torch.equal(noisy_latents(z, 1., 1, first=2)[:1], noisy_latents(torch.cat([z[:2], z[:1]]), 1., 1)[2:])
    assert not torch.equal(noisy_latents(z, 1., 1), noisy_latents(z, 1., 2))
    with pytest.raises(ValueError, match="got -1"): noisy_latents(z, -1)
