"Metrics against numbers of other programs, closed forms, and the inputs they refuse."
import math, subprocess, sys
import numpy as np, pytest, torch
from latentalign import perceptual
from latentalign.audio import resample
from latentalign.metrics import check_pair, envelope_error, log_mel, mel_filters, mss_error, si_sdr_score, snr_score, spectral_envelope
from latentalign.perceptual import PitchScore, compare_pitch, crepe_features, crepe_frames, find_extra, melody_score, note_pitch, pitch_score, track_pitch, visqol_score
from latentalign.soundfont import Note

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
    assert float(envelope_error(.3*tilted, tilted, 44100)) < .05

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


# ViSQOL

def plucks(seconds=1.1, rate=48000):
    t = torch.arange(round(seconds*rate))/rate
    return sum(.1/k*torch.sin(2*math.pi*220*k*t) for k in range(1, 20))*torch.exp(-3*(2*t).remainder(1))

def test_visqol_is_the_packages_value_at_48_khz():
    "4.732101 is what the C++ program gives identical waves in audio mode; the other is the package's own value."
    from visqol import VisqolApi
    x = plucks()
    worse = (8*x).round()/8
    api = VisqolApi(); api.create(mode="audio")
    want = api.measure_from_arrays(x.double().numpy(), worse.double().numpy(), 48000).moslqo
    got = visqol_score(torch.stack([x, worse]), x.expand(2, -1), 48000)
    assert got.tolist() == pytest.approx([4.732101, want], abs=1e-5) and 1 < want < 4
    resampled = visqol_score(resample(worse, 48000, 44100), resample(x, 48000, 44100), 44100)
    assert resampled.shape == () and abs(float(resampled) - want) < .1

def test_visqol_guards_what_the_package_does_not():
    x = plucks()
    assert visqol_score(torch.stack([x, torch.zeros_like(x)])[None], x.expand(1, 2, -1), 48000)[0].tolist() == pytest.approx([4.732101, 1], abs=1e-5)
    with pytest.raises(ValueError, match="-200 dB"): visqol_score(x, torch.zeros_like(x), 48000)
    with pytest.raises(ValueError, match="-88 dB.*leave this clip out"): visqol_score(x, .001*x, 48000)
    with pytest.raises(ValueError, match="got 0.999 s"): visqol_score(x[:47950], x[:47950], 48000)
    with pytest.raises(ValueError, match="1 samples that are NaN"): visqol_score(torch.where(torch.arange(len(x)) == 7, math.nan, x), x, 48000)
    with pytest.raises(ValueError, match="shapes differ"): visqol_score(x[:-1], x, 48000)
    with pytest.raises(ValueError, match="-1"): visqol_score(x, x, -1)

def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(perceptual, "find_spec", lambda name: None)
    perceptual._visqol.cache_clear(); perceptual.crepe_weights.cache_clear()
    with pytest.raises(ValueError, match=r"visqol: pip install 'latentalign\[eval\]'"): visqol_score(plucks(), plucks(), 48000)
    with pytest.raises(ValueError, match=r"torchcrepe: pip install 'latentalign\[eval\]'"): track_pitch(plucks(), 48000)

def test_importing_loads_no_extra():
    script = "import sys, latentalign.perceptual; print(*{'visqol', 'torchcrepe', 'librosa', 'scipy', 'torchaudio', 'numba'} & set(sys.modules))"
    assert not subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


# pitch

def tone(f0, seconds=.5, rate=22050):
    t = torch.arange(round(seconds*rate))/rate
    return sum(.1/k*torch.sin(2*math.pi*f0*k*t) for k in range(1, 9) if k*f0 < rate/2)

def test_the_network_is_torchcrepes():
    torchcrepe = pytest.importorskip("torchcrepe")
    frames, level = crepe_frames(torch.cat([tone(200), NOISE[:4000]]), 16000)
    theirs = torch.cat(list(torchcrepe.preprocess(torch.cat([tone(200), NOISE[:4000]])[None], 16000, 320)))
    assert torch.allclose(frames, theirs, atol=1e-5) and level.shape == frames.shape[:1]
    for capacity, frames in (("tiny", theirs), ("full", theirs[::12])):
        torchcrepe.load.model("cpu", capacity)
        with torch.inference_mode():
            want = torchcrepe.infer.model(frames)
            layer = torchcrepe.infer.model.classifier
            got = torch.sigmoid(layer(crepe_features(frames, capacity)))
        assert torch.allclose(got, want, atol=2e-5)

@pytest.mark.parametrize("f0", [41.2, 98., 146.83, 440., 987.8, 1760.])
def test_known_pitches_are_found(f0):
    found = track_pitch(tone(f0), 22050)
    assert (1200*torch.log2(found.hertz[4:-4]/f0)).abs().max() < 20 and found.certainty[4:-4].min() > .5

def test_pitch_is_deterministic_and_level_free():
    x = tone(311.1) + .02*NOISE[:11025]
    first, again, quiet = track_pitch(x, 22050), track_pitch(x, 22050), track_pitch(.01*x, 22050)
    assert torch.equal(first.hertz, again.hertz) and torch.allclose(first.hertz, quiet.hertz, rtol=1e-4)
    assert len(first.hertz) == 1 + len(resample(x, 22050, 16000))//320
    assert track_pitch(1e-5*x, 22050).hertz.isnan().all()  # below -80 dB

def test_counts_by_hand():
    """cents away from the truth:            right 0, 49, -49   octaves 1200, -2400, 1249   wrong 51, 600, 1251   lost, no truth"""
    away = torch.tensor([0, 49, -49, 1200, -2400, 1249, 51, 600, 1251, math.nan, 0])
    truth = torch.full((11,), 440.); truth[-1] = math.nan
    score = compare_pitch(truth.nan_to_num(440)*2**(away/1200), truth)
    assert score == PitchScore(3, 6, 10) and (score.accuracy, score.chroma) == (.3, .6)
    assert sum([score, PitchScore(7, 7, 10)], PitchScore()).accuracy == .5
    with pytest.raises(ValueError, match="no frame"): PitchScore().accuracy
    with pytest.raises(ValueError, match="lengths differ"): compare_pitch(truth, truth[:-1])

def test_notes_are_the_truth():
    """69 from .1 s to .5 s: frames of 64 ms wholly within it lie from .132 s to .468 s, 20 ms apart: .14 ... .46; 57 begins at once"""
    notes = [Note(.5, .2, 57, 90, "vocals"), Note(.1, .4, 69, 90, "vocals")]
    truth = note_pitch(notes, 40)
    assert truth.isfinite().nonzero()[:, 0].tolist() == [*range(7, 24), *range(27, 34)]
    assert truth[7:24].unique().tolist() == [440] and truth[27:34].unique().tolist() == [220]
    with pytest.raises(ValueError, match="sound together at 0.300"): note_pitch([*notes, Note(.3, .3, 60, 90, "vocals")], 40)

def test_melody_and_recording_scores():
    wave = torch.cat([tone(440, .5), tone(220, .5)])
    notes = [Note(0, .5, 69, 90, "vocals"), Note(.5, .5, 57, 90, "vocals")]
    own, octave, semitone = melody_score(wave, notes, 22050), melody_score(torch.cat([tone(220, .5), tone(440, .5)]), notes, 22050), melody_score(wave, [Note(0, 1, 70, 90, "vocals")], 22050)
    assert own.accuracy == 1 and octave.accuracy == 0 and octave.chroma == 1 and semitone.chroma == 0
    recorded = pitch_score(wave, wave, 22050)
    assert recorded.accuracy == 1 and 40 < recorded.frames <= 51
    assert pitch_score(0*wave, wave, 22050) == PitchScore(0, 0, recorded.frames)
    assert pitch_score(wave, NOISE, 22050).frames < 5 and pitch_score(wave, 0*wave, 22050) == PitchScore()

def test_bad_pitch_input():
    with pytest.raises(ValueError, match=r"\(2, 8000\)"): track_pitch(torch.zeros(2, 8000), 16000)
    with pytest.raises(ValueError, match="huge.*tiny, full"): track_pitch(tone(220), 22050, "huge")
    with pytest.raises(ValueError, match="NaN"): melody_score(torch.full((8000,), math.nan), [], 16000)
    with pytest.raises(ValueError, match="shapes differ"): pitch_score(torch.zeros(8000), torch.zeros(8001), 16000)
    with pytest.raises(ValueError, match="sample rate"): track_pitch(tone(220), 0)
