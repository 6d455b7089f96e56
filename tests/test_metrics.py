"Metrics against numbers of other programs, closed forms, and the inputs they refuse."
import math
import numpy as np, pytest, torch
from latentalign.metrics import check_pair, envelope_error, log_mel, mel_filters, mss_error, si_sdr_score, snr_score, spectral_envelope


# waveform and spectrum

n = np.arange(22050)
REFERENCE = torch.tensor(.3*np.sin(2*np.pi*(200*n/44100 + 4000*(n/44100)**2)) + .1*np.sin(2*np.pi*1234.5*n/44100), dtype=torch.float32)
NOISE = torch.tensor(n.astype(np.int64)**2 % 65537/65537 - .5, dtype=torch.float32)
ESTIMATES = {"noisy": REFERENCE + .02*NOISE, "quiet": .5*REFERENCE, "clipped": REFERENCE.clamp(-.2, .2), "offset": REFERENCE + .05,
             "late": torch.cat([torch.zeros(1), REFERENCE[:-1]]), "noise": .1*NOISE}
# auraloss 0.4.0 (torch 2.11, librosa 0.11): -SNRLoss(zero_mean=False), -SISDRLoss(zero_mean=False) and MultiResolutionSTFTLoss(
# fft_sizes=[512, 2048, 4096], hop_sizes=[220, 551, 1102], win_lengths=[441, 1102, 2205], w_sc=0., w_log_mag=1., w_lin_mag=0.,
# sample_rate=44100, scale="mel", n_bins=80), estimate first, each pair in a batch of its own
AURALOSS = {"noisy": (31.739416, 31.738670, 3.627337), "quiet": (6.020600, 104.407043, .423749), "clipped": (9.637369, 12.347832, 4.354037),
            "offset": (13.014156, 13.018318, .468309), "late": (9.439837, 9.056443, .040076), "noise": (-.076080, -48.952156, 5.382760)}

@pytest.mark.parametrize("name", ESTIMATES)
def test_scores_equal_auraloss(name):
    snr, si_sdr, mss = AURALOSS[name]
    assert float(snr_score(ESTIMATES[name], REFERENCE)) == pytest.approx(snr, abs=1e-4)
    assert float(si_sdr_score(ESTIMATES[name], REFERENCE)) == pytest.approx(si_sdr, abs=.05 if name == "quiet" else 1e-4)  # rounding alone
    assert float(mss_error(ESTIMATES[name], REFERENCE, 44100)) == pytest.approx(mss, abs=1e-4)

# the same, windows 480/1200/2400 and FFT 512/2048/4096 at 48 kHz, 160/400/800 and 256/512/1024 at 16 kHz; at 22.05 kHz (220/551/1102,
# 256/1024/2048) auraloss says nan, because one of the 80 bands of its shortest window holds no bin and log 0 - log 0 is no number
@pytest.mark.parametrize("rate, mss", [(48000, 3.708155), (16000, 3.169704), (22050, None)])
def test_mss_at_other_rates(rate, mss):
    value = float(mss_error(ESTIMATES["noisy"], REFERENCE, rate))
    assert math.isfinite(value) if mss is None else value == pytest.approx(mss, abs=1e-4)
    assert (len(mel_filters(rate, 256)) < 80) == (rate != 16000)

def test_an_items_value_does_not_depend_on_its_batch_mates():
    """auraloss with spectral convergence gives a batch of these two 5.8433, one by one 3.6407 and 7.0796 (mean 5.3602): it divides by
    the norm of the whole batch, and a loud item hides a quiet one."""
    pair = torch.stack([ESTIMATES["noisy"], 10*ESTIMATES["noise"]]), torch.stack([REFERENCE, 10*REFERENCE])
    for metric in (snr_score, si_sdr_score, lambda a, b: mss_error(a, b, 44100), lambda a, b: envelope_error(a, b, 44100)):
        alone = torch.stack([metric(*items) for items in zip(*pair)])
        assert torch.allclose(metric(*pair), alone, atol=1e-5)
        assert torch.allclose(metric(*(x[:, None] for x in pair)), alone[:, None], atol=1e-5)  # (batch, channels, samples)

def test_silence_has_a_value():
    silence = torch.zeros(22050)
    assert snr_score(silence, silence) == 0 and abs(snr_score(silence, REFERENCE)) < 1e-5
    for pair in ((silence, REFERENCE), (REFERENCE, silence), (silence, silence)):
        assert float(si_sdr_score(*pair)) == pytest.approx(-80, abs=1e-4)  # as auraloss
        for metric in (mss_error, envelope_error): assert math.isfinite(metric(*pair, 44100))
    assert float(mss_error(silence, REFERENCE, 44100)) == pytest.approx(3.386889, abs=1e-4)  # auraloss as above
    assert mss_error(silence, silence, 44100) == envelope_error(silence, silence, 44100) == 0

def test_mel_filters_equal_librosa():
    """librosa 0.11.0: f = librosa.filters.mel(sr=44100, n_fft=2048, n_mels=80); f[3, 9], f[40, 136], f[79, 966], f.sum()"""
    filters = mel_filters(44100, 2048)
    assert filters.shape == (80, 1025)
    assert [float(filters[i]) for i in ((3, 9), (40, 136), (79, 966))] == pytest.approx([0.0187319, 0.00444965, 0.000797878], rel=1e-4)
    assert float(filters.sum()) == pytest.approx(3.714279, rel=1e-5)

def test_envelopes_forget_level_and_keep_tilt():
    pulses = torch.zeros(1, 22050); pulses[:, 512::1024] = .5
    f = torch.fft.rfftfreq(22050, 1/44100)
    tilted = torch.fft.irfft(torch.fft.rfft(pulses)*10**(f/10000*12/20), 22050)  # 12 dB from 0 to 10 kHz
    bands = spectral_envelope(tilted, 44100)[0].mean(-1)
    filters = mel_filters(44100, 4096, 16, 10000.)
    wanted = filters @ (torch.arange(2049)*44100/4096).clamp(min=1000)/10000*12/filters.sum(1)  # a rise below 1 kHz is filled up
    assert torch.allclose(bands, wanted - wanted.mean(), atol=.15)
    assert float(envelope_error(tilted, pulses, 44100)) == pytest.approx(float(wanted.std(correction=0)), abs=.1)
    assert float(envelope_error(.03*tilted, tilted, 44100)) < .05

@pytest.mark.parametrize("metric", [snr_score, si_sdr_score, lambda a, b: mss_error(a, b, 44100), lambda a, b: envelope_error(a, b, 44100)])
def test_what_cannot_be_compared_is_refused(metric):
    x = torch.zeros(2, 8000)
    with pytest.raises(ValueError, match=r"\(2, 7999\).*\(2, 8000\)"): metric(x[:, 1:], x)
    with pytest.raises(ValueError, match="shapes differ"): metric(x[:1], x)      # not broadcast
    with pytest.raises(ValueError, match="2 samples that are NaN"): metric(x, x.index_fill(1, torch.tensor([5]), math.nan))
    with pytest.raises(ValueError, match="int64"): metric(x.long(), x)
    with pytest.raises(ValueError, match="empty"): metric(x[:, :0], x[:, :0])

def test_arrays_are_waves_too():
    assert float(snr_score(.9*REFERENCE.numpy().astype(np.float64), REFERENCE.numpy())) == pytest.approx(20, abs=1e-3)
    assert all(w.dtype == torch.float32 for w in check_pair(np.ones(4), np.ones(4)))

@pytest.mark.parametrize("rate", [0, -44100, 999, math.nan, math.inf])
def test_sample_rates_are_checked(rate):
    for f in (lambda: mss_error(REFERENCE, REFERENCE, rate), lambda: envelope_error(REFERENCE, REFERENCE, rate)):
        with pytest.raises(ValueError, match=str(rate)): f()

def test_short_waves_are_refused():
    with pytest.raises(ValueError, match="2048 samples are too short"): mss_error(REFERENCE[:2048], REFERENCE[:2048], 44100)
    assert mss_error(REFERENCE[:2049], REFERENCE[:2049], 44100) == 0
    with pytest.raises(ValueError, match="2048 samples are too short"): envelope_error(REFERENCE[:2048], REFERENCE[:2048], 44100)
