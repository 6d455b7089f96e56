"Metrics against numbers of other programs, closed forms, and the inputs they refuse."
import json, math, subprocess, sys, urllib.error, warnings
from dataclasses import asdict
from itertools import combinations, product
from statistics import median
import numpy as np, pytest, torch
from latentalign.evaluation import embeddings
from latentalign.evaluation import perceptual
from latentalign.base.audio import resample
from latentalign.evaluation.distances import METRICS, distribution_result, frechet_error, kernel_error
from latentalign.evaluation.distances import median_distance
from latentalign.evaluation.embeddings import EMBEDDINGS, Embedding, VGGISH_FILE, VGGish, embedding_or_crepe
from latentalign.evaluation.embeddings import open_embedding, vggish_picture
from latentalign.base.intervals import CERTAIN, MIN_UNITS, difference_p, extrapolate, holm, jackknife_interval
from latentalign.base.intervals import mean_interval, starts_p
from latentalign.base.mel import SCALES, check_pair, log_mel, mel_filters, mss_error
from latentalign.evaluation.metrics import envelope_error, si_sdr_score, snr_score, spectral_envelope
from latentalign.evaluation.perceptual import ANCHORS, PitchScore, compare_pitch, crepe_features, crepe_frames
from latentalign.evaluation.perceptual import find_extra, melody_score, note_pitch, pitch_score, track_pitch
from latentalign.evaluation.perceptual import visqol_score
from latentalign.data.soundfont import Note

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

@pytest.mark.parametrize("rate", [44100, 22050, 16000])
def test_ten_twentyfive_and_fifty_ms_are_windows_or_hops(rate):
    "Frames centred one hop apart: samples // hop + 1 of them, with hops of 10, 25 and 50 ms where these are hops, and of half as much where they are windows."
    x = REFERENCE[:rate//2]
    for name, hops in (("windows", (5, 12.5, 25)), ("hops", (10, 25, 50))):
        assert [log_mel(x, rate, *ms).shape[-1] for ms in SCALES[name]] == [len(x)//int(rate*h/1000) + 1 for h in hops]
    by_hand = [(log_mel(2*x + .01*NOISE[:len(x)], rate, w, h) - log_mel(x, rate, w, h)).abs().mean() for w, h in ((20, 10), (50, 25), (100, 50))]
    assert float(mss_error(2*x + .01*NOISE[:len(x)], x, rate, "hops")) == pytest.approx(float(sum(by_hand)/3), abs=1e-5)
    with pytest.raises(ValueError, match="'frames'.*windows, hops"): mss_error(x, x, rate, "frames")
    with pytest.raises(ValueError, match="0.01"): log_mel(x, rate, 10, .01)

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

def plucks(seconds=1.1, rate=48000, partials=19):
    t = torch.arange(round(seconds*rate))/rate
    return sum(.1/k*torch.sin(2*math.pi*220*k*t) for k in range(1, partials + 1))*torch.exp(-3*(2*t).remainder(1))

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

def test_anchors_are_no_sound_and_a_dull_one():
    x = torch.stack([plucks(), .5*plucks()])
    silence, dull = (ANCHORS[name](x, 48000) for name in ("silence", "low-pass 3.5 kHz"))
    assert silence.shape == dull.shape == x.shape and 10*math.log10(silence.square().mean()) == pytest.approx(-101.1, abs=.1)  # 1/32768 wide, uniform
    power = torch.fft.rfft(dull[0]).abs().square()
    assert power[round(3500*1.1):].max() < 1e-6*power.max() and torch.allclose(torch.fft.rfft(dull)[:, :3800], torch.fft.rfft(x)[:, :3800], atol=1e-2)
    bright = plucks(partials=59)                                                      # up to 13 kHz: 44 of 59 partials lie above 3.5 kHz, and 4 of the 19 of x
    lost = [4.732101 - float(visqol_score(ANCHORS["low-pass 3.5 kHz"](wave, 48000), wave, 48000)) for wave in (bright, x[0])]
    assert lost[0] > 2 > 1 > lost[1] > .3, lost

def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(perceptual, "find_spec", lambda name: None)
    perceptual._visqol.cache_clear(); perceptual.crepe_weights.cache_clear()
    with pytest.raises(ValueError, match=r"visqol: pip install 'latentalign\[eval\]'"): visqol_score(plucks(), plucks(), 48000)
    with pytest.raises(ValueError, match=r"torchcrepe: pip install 'latentalign\[eval\]'"): track_pitch(plucks(), 48000)

def test_importing_loads_no_extra():
    script = "import sys, latentalign.evaluation.perceptual, latentalign.evaluation.embeddings; print(*{'visqol', 'torchcrepe', 'transformers', 'librosa', 'scipy', 'torchaudio', 'numba'} & set(sys.modules))"
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


# embeddings

def test_an_embedding_hears_the_whole_clip_and_nothing_else():
    seen = []
    last = Embedding("last", 8000, 5, 1, lambda cuts: seen.append(cuts) or cuts[:, -1:])
    assert last(torch.arange(17.), 8000).tolist() == [[4], [9], [14], [16]]
    assert last(torch.arange(5.), 8000).tolist() == [[4]] and last(torch.ones(3), 8000).tolist() == [[0]]
    assert last(torch.zeros(16000), 16000).shape == (1600, 1) and max(map(len, seen)) == 8
    short = Embedding("length", 8000, 5, 1, lambda cuts: torch.full((len(cuts), 1), float(cuts.shape[1])), pad=False)
    assert short(torch.ones(3), 8000).tolist() == [[3]]
    for bad, word in ((torch.zeros(2, 9), r"\(2, 9\)"), (torch.full((9,), math.nan), "9 samples"), (torch.zeros(0), "empty")):
        with pytest.raises(ValueError, match=word): last(bad, 8000)
    with pytest.raises(ValueError, match="sample rate"): last(torch.zeros(9), -8000)

def test_crepe_embeds_without_download():
    crepe = open_embedding("crepe")
    wave = torch.cat([tone(220, 1.3), tone(330, 1.3)])
    rows = crepe(wave, 22050)
    assert crepe.name == "crepe" and rows.shape == (3, 256) and rows.dtype == torch.float32 and torch.equal(rows, crepe(wave, 22050))
    assert torch.allclose(rows[0], crepe_features(crepe_frames(resample(wave, 22050, 16000)[:16000], 16000)[0]).mean(0), atol=1e-5)
    assert crepe(torch.zeros(8000), 16000).isfinite().all()

@pytest.fixture(scope="module", params=["rand_trunc", "fusion"])
def tiny_clap(request, tmp_path_factory):
    "A CLAP of random weights in the layout of transformers, once without and once with the fusion of long clips."
    from transformers import ClapAudioConfig, ClapConfig, ClapFeatureExtractor, ClapModel, ClapTextConfig
    folder = tmp_path_factory.mktemp("clap")
    torch.manual_seed(0)
    audio = ClapAudioConfig(patch_embeds_hidden_size=8, depths=[1, 1], num_attention_heads=[1, 2], hidden_size=16, num_mel_bins=64, projection_dim=12, enable_fusion=request.param == "fusion")
    text = ClapTextConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9, projection_dim=12)
    ClapModel(ClapConfig(text_config=text.to_dict(), audio_config=audio.to_dict(), projection_dim=12)).save_pretrained(folder)
    ClapFeatureExtractor(frequency_min=50, truncation=request.param).save_pretrained(folder)
    return folder

def test_clap_is_read_from_a_folder_and_draws_nothing_at_random(tiny_clap, capfd):
    from transformers import ClapAudioModelWithProjection, ClapFeatureExtractor
    clap = open_embedding("clap", tiny_clap)
    assert "UNEXPECTED" not in "".join(capfd.readouterr())
    wave = .1*torch.randn(14*24000, generator=torch.Generator().manual_seed(0))
    rows = [(np.random.seed(seed), clap(wave, 24000))[1] for seed in (0, 1)]
    assert clap.name == "clap" and clap.dimensions == 12 and rows[0].shape == (2, 12) and torch.equal(*rows)
    first = resample(wave, 24000, 48000)[:480000]
    features = ClapFeatureExtractor.from_pretrained(tiny_clap)(first.numpy(), sampling_rate=48000, return_tensors="pt")["input_features"]
    with torch.inference_mode(): want = ClapAudioModelWithProjection.from_pretrained(tiny_clap).eval()(features.float(), is_longer=torch.zeros(1, 1, dtype=bool)).audio_embeds[0]
    assert torch.allclose(rows[0][0], want/want.norm(), atol=1e-5)

def test_an_incomplete_clap_is_refused(tiny_clap, tmp_path):
    from safetensors.torch import load_file, save_file
    weights = load_file(tiny_clap/"model.safetensors")
    save_file({k: v for k, v in weights.items() if "audio_projection.linear1" not in k}, tmp_path/"model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "preprocessor_config.json"): (tmp_path/name).symlink_to(tiny_clap/name)
    with pytest.raises(ValueError, match="lacks 2 weights.*audio_projection.linear1.*larger_clap_music.*'crepe'"): open_embedding("clap", tmp_path)

def small_vggish(hidden=4): return VGGish(channels=(2, 3, 2, 3, 2, 3), hidden=hidden)

def test_vggish_is_read_from_the_published_layout(monkeypatch, tmp_path):
    torch.manual_seed(0)
    names = {f"features.{i}.{kind}" for i in (0, 3, 6, 8, 11, 13) for kind in ("weight", "bias")} | {f"embeddings.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")}
    net = small_vggish()
    assert set(net.state_dict()) == names
    torch.save(net.state_dict(), tmp_path/VGGISH_FILE)
    monkeypatch.setattr(embeddings, "VGGish", small_vggish)
    vggish = open_embedding("vggish", tmp_path)
    wave = .1*torch.randn(40000, generator=torch.Generator().manual_seed(0))
    rows = vggish(wave, 16000)
    assert vggish.name == "vggish" and rows.shape == (3, 128) and torch.equal(rows, vggish(wave, 16000))
    with torch.inference_mode(): assert torch.allclose(rows[2], net(vggish_picture(wave[None, -15600:]))[0], atol=1e-6)
    torch.save(small_vggish(5).state_dict(), tmp_path/VGGISH_FILE)
    with pytest.raises(ValueError, match="does not fit"): open_embedding("vggish", tmp_path)
    (tmp_path/VGGISH_FILE).write_bytes(b"cut off")
    with pytest.raises(ValueError, match="refused"): open_embedding("vggish", tmp_path)

def test_the_picture_that_vggish_sees():
    "One band of the first frame, summed by hand from the definition."
    assert vggish_picture(torch.zeros(2, 15600)).shape == (2, 1, 96, 64)
    mel = lambda f: 1127*math.log(1 + f/700)
    edges = [mel(125) + i*(mel(7500) - mel(125))/65 for i in range(66)]
    a, f = .3, 3000.
    wave = a*torch.sin(2*math.pi*f*torch.arange(15600)/16000)
    window = .5 - .5*torch.cos(2*math.pi*torch.arange(400)/400)
    spectrum = [abs(sum(complex(w*x*math.cos(-2*math.pi*k*n/512), w*x*math.sin(-2*math.pi*k*n/512)) for n, (w, x) in enumerate(zip(window.tolist(), wave[:400].tolist())))) for k in range(80, 114)]
    band = 42
    weights = [max(0, min((mel(k*31.25) - edges[band])/(edges[band + 1] - edges[band]), (edges[band + 2] - mel(k*31.25))/(edges[band + 2] - edges[band + 1]))) for k in range(80, 114)]
    want = math.log(sum(s*w for s, w in zip(spectrum, weights)) + .01)
    assert float(vggish_picture(wave[None])[0, 0, 0, band]) == pytest.approx(want, abs=1e-3) and want > 0

def test_missing_weights_say_what_to_fetch_and_what_is_used_instead(monkeypatch, tmp_path):
    def offline(*args, **kwargs): raise urllib.error.URLError("no network")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    for name, folder, words in (("vggish", None, "no network.*fetch https://github.com/.*vggish-10086976.pth.*'crepe'"), ("vggish", tmp_path, f"{tmp_path.name} holds no.*fetch.*'crepe'"),
                                ("clap", None, "no network.*fetch config.json.*huggingface.co/laion/larger_clap_music.*'crepe'"), ("clap", tmp_path, f"{tmp_path.name}.*fetch.*'crepe'"),
                                ("clap", "nowhere", "neither a folder nor a Hub id.*fetch.*'crepe'")):
        with pytest.raises(ValueError, match=words): open_embedding(name, folder)
        with pytest.warns(UserWarning, match=f"{words}.*Used instead: 'crepe'"): assert embedding_or_crepe(name, folder).name == "crepe"
    with pytest.raises(ValueError, match="openl3.*clap, vggish, crepe"): open_embedding("openl3")
    with pytest.raises(ValueError, match="openl3.*clap, vggish, crepe"): embedding_or_crepe("openl3")
    assert list(EMBEDDINGS) == ["clap", "vggish", "crepe"]
    with warnings.catch_warnings(action="error"): assert embedding_or_crepe("crepe").name == "crepe"

def test_published_vggish_if_it_is_here():
    "The smoke test of the TensorFlow original: 3 s of 1 kHz, after the last ReLU: mean 0.131, deviation 0.238."
    from pathlib import Path
    if not (Path(torch.hub.get_dir())/"checkpoints"/VGGISH_FILE).is_file(): pytest.skip("its weights were never downloaded")
    rows = open_embedding("vggish")(torch.sin(2*math.pi*1000*torch.arange(3*44100)/44100), 44100).relu()
    assert float(rows.mean()) == pytest.approx(.131, rel=.1) and float(rows.std(correction=0)) == pytest.approx(.238, rel=.1)


# distances between sets

def exact(n, mean, covariance, seed=0):
    "A set of n rows with exactly this mean and covariance (divided by n - 1)."
    rows = np.random.default_rng(seed).standard_normal((n, len(mean)))
    return np.linalg.qr(rows - rows.mean(0))[0]*np.sqrt(n - 1) @ np.linalg.cholesky(np.asarray(covariance, float)).T + mean

def test_fad_of_gaussians_in_closed_form():
    assert frechet_error(exact(7, [3.], [[4.]], 0), exact(31, [1.], [[9.]], 1)) == pytest.approx(4 + (2 - 3)**2, abs=1e-12)
    diagonal = frechet_error(exact(20, [0, 0, 1], np.diag([1, 4, 9]), 2), exact(30, [0, 2, 1], np.diag([4, 4, 1]), 3))
    assert diagonal == pytest.approx(4 + (1 + 0 + 4), abs=1e-12)  # offset squared, then (1 - 2)^2 + (2 - 2)^2 + (3 - 1)^2
    rotate = np.linalg.qr(np.random.default_rng(4).standard_normal((3, 3)))[0]
    assert frechet_error(exact(20, [0, 0, 1], np.diag([1, 4, 9]), 2) @ rotate, exact(30, [0, 2, 1], np.diag([4, 4, 1]), 3) @ rotate) == pytest.approx(diagonal, abs=1e-11)

def test_fad_is_the_textbooks_where_that_works():
    scipy = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((300, 8)) @ rng.standard_normal((8, 8)), rng.standard_normal((200, 8)) @ rng.standard_normal((8, 8)) + 1
    a, b, d = np.cov(x, rowvar=False), np.cov(y, rowvar=False), x.mean(0) - y.mean(0)
    assert frechet_error(x, y) == pytest.approx(float(d @ d + np.trace(a + b - 2*scipy.sqrtm(a @ b).real)), rel=1e-9)
    assert frechet_error(torch.tensor(x), torch.tensor(y)) == frechet_error(x, y) == pytest.approx(frechet_error(y, x), rel=1e-12)

@pytest.mark.parametrize("n, d", [(5, 400), (400, 5)])
def test_fad_of_few_and_of_many(n, d):
    x = np.random.default_rng(0).standard_normal((n, d))*1e3
    assert 0 <= frechet_error(x, x) < 1e-6 and frechet_error(x + 2, x) == pytest.approx(4*d, rel=1e-6)
    assert frechet_error(3*x, x) == pytest.approx(4*np.square(x - x.mean(0)).sum()/(n - 1) + 4*np.square(x.mean(0)).sum(), rel=1e-9)

X, Y = np.array([[0., 0], [1, 0], [0, 2], [3, 3]]), np.array([[1., 1], [2, 0], [4, 1]])

@pytest.mark.parametrize("bandwidth", ["reference", "estimate", "both", 1.7])
def test_kad_by_the_definition(bandwidth):
    rows = {"reference": Y, "estimate": X, "both": [*X, *Y]}.get(bandwidth)
    h = bandwidth if rows is None else median(math.dist(a, b) for a, b in combinations(rows, 2))
    k = lambda a, b: math.exp(-math.dist(a, b)**2/(2*h**2))
    within = lambda rows: sum(k(a, b) for a, b in combinations(rows, 2))*2/(len(rows)*(len(rows) - 1))
    want = 100*(within(X) + within(Y) - 2*sum(k(a, b) for a, b in product(X, Y))/12)
    assert kernel_error(X, Y, bandwidth) == pytest.approx(want, abs=1e-11)
    far = np.array([1e4, -1e4])                                                     # a common offset costs no digits
    assert kernel_error(X + far, Y + far, bandwidth) == pytest.approx(want, abs=1e-6)

def test_kad_of_equal_distributions_is_about_zero_and_has_no_bias():
    rng = np.random.default_rng(0)
    values = [kernel_error(*rng.standard_normal((2, 12, 5))) for _ in range(400)]
    assert abs(np.mean(values)) < 3*np.std(values)/20 and min(values) < 0 < max(values)
    a, b = rng.standard_normal((2, 800, 5))
    h, shift = 2., 1.5
    want = 200*(h**2/(h**2 + 2))**2.5*(1 - math.exp(-shift**2/(2*(h**2 + 2))))
    assert kernel_error(a + np.eye(5)[0]*shift, b, h) == pytest.approx(want, rel=.1)

def test_kad_of_pairs():
    rng = np.random.default_rng(0)
    x, h = rng.standard_normal((9, 5)), 1.3
    y = x + .3*rng.standard_normal((9, 5))
    k = lambda a, b: math.exp(-math.dist(a, b)**2/(2*h**2))
    mean = lambda a, b: np.mean([k(a[i], b[j]) for i in range(9) for j in range(9) if i != j])
    assert kernel_error(x, y, h, paired=True) == pytest.approx(100*(mean(x, x) + mean(y, y) - 2*mean(x, y)), abs=1e-11)
    assert kernel_error(x, x, paired=True) == 0
    drawn = rng.standard_normal((400, 2, 12, 5))
    q = lambda variance: (4/(4 + variance))**2.5                                    # the kernel's mean over differences of that variance, at h = 2
    want, own = 100*(q(4) + q(2) - 2*q(3)), [kernel_error(a + b, a, 2., paired=True) for a, b in drawn]
    assert abs(np.mean(own) - want) < 3*np.std(own)/20 < .3*want and np.mean([kernel_error(a + b, a, 2.) for a, b in drawn]) < 0
    with pytest.raises(ValueError, match="9 clips cannot be paired with 8"): kernel_error(x, y[1:], paired=True)

def test_sets_that_cannot_be_compared():
    for f in (frechet_error, kernel_error):
        for x, y, word in ((X[:1], Y, "too few clips: 1 rows as estimate"), (X, Y[:1], "too few clips: 1 rows as reference"), (X, Y[:, :1], "2 dimensions.*1 as reference"),
                           (X*[[1], [1], [math.nan], [1]], Y, "1 rows of the estimate hold NaN"), (X[0], Y, r"\(2,\) as estimate")):
            with pytest.raises(ValueError, match=word): f(x, y)
    for bandwidth in ("median", 0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=str(bandwidth)): kernel_error(X, Y, bandwidth)
    with pytest.raises(ValueError, match="most of the 5 rows are alike"): kernel_error(X, np.ones((5, 2)))
    with pytest.raises(ValueError, match="alike"): median_distance(np.full((6, 3), .1))

def test_windows_of_a_clip_are_not_compared_with_each_other():
    "The mean over all pairs of rows of different clips, by a double loop; with pairs, of clip i with reconstruction j as well."
    rng, h = np.random.default_rng(0), 1.3
    x, y, c = rng.standard_normal((12, 5)), rng.standard_normal((12, 5)), np.repeat([4, 7, 9], 4)
    k = lambda a, b: math.exp(-math.dist(a, b)**2/(2*h**2))
    mean = lambda a, b: np.mean([k(a[i], b[j]) for i in range(12) for j in range(12) if c[i] != c[j]])
    assert kernel_error(x, y, h, True, (c, c)) == pytest.approx(100*(mean(x, x) + mean(y, y) - 2*mean(x, y)), abs=1e-10)
    across = np.mean([k(a, b) for a in x for b in y])
    assert kernel_error(x, y, h, clips=(c, c)) == pytest.approx(100*(mean(x, x) + mean(y, y) - 2*across), abs=1e-10)
    assert kernel_error(x, y, h, clips=(np.arange(12), np.arange(12))) == pytest.approx(kernel_error(x, y, h), abs=1e-10)
    many = np.concatenate([x, x[:4]]), np.concatenate([c, c[:4]])                     # a clip with more windows weighs no more
    assert kernel_error(many[0], y, h, clips=(many[1], c)) == pytest.approx(kernel_error(x, y, h, clips=(c, c)), abs=1e-10)
    with pytest.raises(ValueError, match="12 and 12 rows, but clips of 11 and 12"): kernel_error(x, y, h, clips=(c[1:], c))
    with pytest.raises(ValueError, match="two clips or more.*1 and 3"): kernel_error(x, y, h, clips=(0*c, c))


# intervals

def test_intervals_of_few_are_students():
    "By hand: mean 7/3, deviation 1.527525, t = 4.302653 of two degrees of freedom; mean 3.04, deviation .357771, t = 2.776445 of four."
    assert mean_interval([1, 2, 4]) == pytest.approx((-1.461250, 6.127917), abs=1e-5)
    assert mean_interval([3.1, 2.9, 3.4, 3.3, 2.5]) == pytest.approx((3.04 - 2.776445*.357771/5**.5, 3.04 + 2.776445*.357771/5**.5), abs=1e-5)
    assert mean_interval([7, 7, 7]) == (7, 7) and mean_interval([1, 2, 4], level=.5)[0] > 1.5

def test_intervals_hold_the_truth_as_often_as_they_say():
    rng, held = np.random.default_rng(0), {}
    for n in (3, 8, 12, 30): held[n] = np.mean([a <= 0 <= b for a, b in (mean_interval(rng.standard_normal(n), draws=400, seed=k) for k in range(400))])
    assert all(.92 < share < .98 for share in held.values()), held                    # percentiles: .75, .89, .90, .94
    skewed = np.mean([a <= 1 <= b for a, b in (mean_interval(rng.exponential(size=12), draws=400, seed=k) for k in range(400))])
    assert skewed > .91                                                               # Student's t: .89

def test_clips_of_a_piece_are_drawn_together():
    x = np.random.default_rng(0).standard_normal(12)
    assert mean_interval(np.repeat(x, 4), np.repeat(np.arange(12), 4)) == pytest.approx(mean_interval(x), abs=1e-9)
    assert mean_interval([1, 5, 3, 3], ["a", "a", "b", "b"]) == pytest.approx((3, 3))
    low, high = mean_interval([1, 1, 1, 4], ["a", "a", "a", "b"])                      # sums 3 and 4, counts 3 and 1, mean 7/4: residuals -9/4 and 9/4
    assert (high - low)/2 == pytest.approx(12.7062*math.sqrt(2*2*(9/4)**2)/4, rel=1e-4) and (low + high)/2 == pytest.approx(7/4)
    for bad, word in ((([1],), "too few for an interval: 1 values"), (([1, 2], ["a", "a"]), "1 pieces"), (([1, math.nan],), "1 of 2 values are NaN"), (([1, 2], ["a"]), "2 values, but 1 pieces")):
        with pytest.raises(ValueError, match=word): mean_interval(*bad)
    for bad in ({"level": 0}, {"level": 1.}, {"draws": 1}):
        with pytest.raises(ValueError, match=str(next(iter(bad.values())))): mean_interval([1, 2], **bad)

def test_jackknife_and_extrapolation():
    x = np.random.default_rng(0).standard_normal(20)
    for same in (torch.tensor(x), list(x)): assert jackknife_interval(same, np.mean) == pytest.approx(jackknife_interval(x, np.mean))
    assert jackknife_interval(x[:6], np.mean) == pytest.approx(mean_interval(x[:6]))
    pooled = jackknife_interval([PitchScore(9, 9, 10), PitchScore(5, 5, 10), PitchScore(6, 6, 10)], lambda scores: sum(scores, PitchScore()).accuracy)
    assert pooled == pytest.approx(mean_interval([.9, .5, .6]))
    limit, low, high = extrapolate(lambda out: 3 + 7/(20 - 2*len(out)), 10)            # bias 7/n exactly: nothing of it stays
    assert limit == pytest.approx(3, abs=.05) and low == pytest.approx(high, abs=1e-9)
    for bad in (lambda: jackknife_interval([1.], np.mean), lambda: jackknife_interval([1., 2], lambda v: math.nan), lambda: extrapolate(lambda out: 0., 2)):
        with pytest.raises(ValueError, match="too few|NaN|3 parts"): bad()

def test_nothing_is_certain_of_few_and_tables_are_corrected():
    assert difference_p([1., 1.1, 1.2, 1.1]) == 1 > CERTAIN > difference_p([1., 1.1, 1.2, 1.1, 1.]) and MIN_UNITS == 5
    assert difference_p([1., 1.1, 1.2]*12, [*"abc"]*12) == 1, "36 clips of three pieces"
    assert starts_p([1, 2, 3, 4], [90, 91, 92, 93, 94]) == 1 and starts_p([1, 2, 3, 4, 5], [90, 91, 92, 93, 94]) < 1e-9
    assert holm([.01, .02, .5]).tolist() == pytest.approx([.03, .04, .5]) and holm([.5, .02, .01])[2] == pytest.approx(.03)
    rng = np.random.default_rng(0)
    false = np.mean([holm([difference_p(cell) for cell in rng.standard_t(3, (20, 12))]).min() < CERTAIN for _ in range(150)])
    assert false < .1                                                                 # one by one: about .6
    with pytest.raises(ValueError, match="-0.1"): holm([-.1])

def clips(n, shift=0., seed=0, rows=3):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((rows, 4)) + rng.standard_normal(4) + shift for _ in range(n)]

@pytest.mark.parametrize("metric", METRICS)
def test_a_result_carries_what_it_depends_on(metric):
    ours, theirs = [torch.tensor(c).float() for c in clips(20, 1., 1)], clips(15, 0., 2, rows=2)
    result = distribution_result(metric, ours, theirs, "crepe", 22050, draws=100)
    labels = {} if metric == "FAD" else {"clips": (np.repeat(np.arange(20), 3), np.repeat(np.arange(15), 2))}
    assert result.value == pytest.approx(METRICS[metric](torch.cat(ours), np.concatenate(theirs), **labels), abs=1e-9)
    assert (result.metric, result.embedding, result.dimensions, result.sample_rate) == (metric, "crepe", 4, 22050)
    assert (result.estimate_clips, result.reference_clips, result.estimate_rows, result.reference_rows) == (20, 15, 60, 30)
    assert result.low < result.limit < result.high and (result.bandwidth is None) == (metric == "FAD") and result.pieces == 15 and result.equal < result.value
    assert result == distribution_result(metric, ours, theirs, "crepe", 22050, draws=100)
    assert json.loads(json.dumps(asdict(result)))["value"] == result.value
    assert f"{metric}-crepe" in str(result) and "20 clips (60 windows) against 15 (30) at 22050 Hz" in str(result)

@pytest.mark.parametrize("metric", METRICS)
def test_intervals_are_of_pieces(metric):
    one, ten = ([np.repeat(rows[:1], k, 0) for rows in clips(30, 1., 3)] for k in (1, 10))  # ten equal windows know no more than one
    reference = clips(30, 0., 4, rows=1)
    width = lambda r: r.high - r.low
    single, copied = (distribution_result(metric, x, reference, "made up", 44100, draws=100) for x in (one, ten))
    assert .6 < width(copied)/width(single) < 1.6
    twice = distribution_result(metric, one*2, reference*2, "made up", 44100, pieces=([*range(30)]*2,)*2, draws=9)
    assert width(twice) == pytest.approx(width(single), rel=.15) and (twice.estimate_clips, twice.pieces) == (60, 30), "the same pieces twice say no more than once"

@pytest.mark.parametrize("metric", METRICS)
def test_pairs_are_left_out_and_dealt_as_pairs(metric):
    "Against the same clips in another order a reconstruction is no pair: its interval is as wide as of other clips. FAD knows no pairs but by their order."
    reference, noise, width = clips(30, 0., 4, rows=1), clips(30, 0., 5, rows=1), lambda r: r.high - r.low
    near = [r + .1*n for r, n in zip(reference, noise)]
    mixed = [reference[k] for k in np.random.default_rng(0).permutation(30)]
    other, alone, paired = (distribution_result(metric, near, side, "made up", 44100, paired=p, draws=100) for side, p in ((mixed, False), (reference, False), (reference, True)))
    assert width(paired) < .3*width(other) and paired.equal < .3*other.equal if metric == "FAD" else width(paired) < .7*width(alone) <= width(other)
    if metric == "FAD": assert (paired.value, paired.low, paired.high) == (alone.value, alone.low, alone.high) and other.value == pytest.approx(alone.value) and paired.equal < .3*alone.equal
    else: assert paired.value == pytest.approx(kernel_error(np.concatenate(near), np.concatenate(reference), paired=True))
    same = distribution_result(metric, reference, reference, "made up", 44100, paired=True, draws=50)
    assert max(abs(v) for v in (same.value, same.limit, same.low, same.high, same.equal)) < 1e-9

def test_the_limit_of_fad_is_the_true_distance():
    "60 clips, 32 dimensions: equal distributions are about 32·19/60 = 10 apart, and no interval around that holds 0."
    held, results = [], []
    for seed in range(12):
        x, y = np.random.default_rng(seed).standard_normal((2, 60, 32))
        results.append(r := distribution_result("FAD", x, y, "made up", 44100, draws=9)); held.append(r.low <= 0 <= r.high)
    assert sum(held) >= 11 and abs(np.mean([r.limit for r in results])) < .8 and np.mean([r.value for r in results]) > 9
    assert np.mean([r.equal for r in results]) == pytest.approx(np.mean([r.value for r in results]), rel=.05)
    few = distribution_result("FAD", x[:30], y[:30], "made up", 44100, draws=9)
    assert (few.limit, few.low, few.high) == (None, None, None) and few.equal == pytest.approx(few.value, rel=.2) and "too few windows" in str(few)

def test_results_that_mean_nothing_are_refused():
    for side, pair in (("estimate", (clips(MIN_UNITS - 1), clips(9))), ("reference", (clips(9), clips(MIN_UNITS - 1)))):
        with pytest.raises(ValueError, match=f"too few clips as {side}: {MIN_UNITS - 1} of {MIN_UNITS - 1} pieces"): distribution_result("KAD", *pair, "crepe", 44100)
    with pytest.raises(ValueError, match="FID.*FAD, KAD"): distribution_result("FID", clips(9), clips(9), "crepe", 44100)
    with pytest.raises(ValueError, match="9 clips cannot be paired with 10"): distribution_result("FAD", clips(9), clips(10), "crepe", 44100, paired=True)
    with pytest.raises(ValueError, match="27 rows of the reference hold NaN"): distribution_result("FAD", clips(9), clips(9, math.nan), "crepe", 44100)
