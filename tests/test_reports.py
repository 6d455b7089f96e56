"""Test sets, protocols, reports and what is drawn from them."""
import json
import math
from pathlib import Path
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import soundfile
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from latentalign import Autoencoder
from latentalign.base.audio import headroom, share_headroom
from latentalign.evaluation.comparison import PAPER_LINEARITY, PAPER_NOISE, against, differences, is_certain
from latentalign.evaluation.comparison import open_methods, open_runs, training_start
from latentalign.evaluation.tables import TITLES, gain_title, homogeneity_table, linearity_table, method_table
from latentalign.evaluation.tables import noise_table
from latentalign.evaluation.pictures import draw_bars, draw_kept, draw_linearity, draw_noise, draw_separation
from latentalign.evaluation.pictures import half_kept, kept, run_colour
from latentalign.evaluation.arithmetic import Coded
from latentalign.evaluation.protocols import Adapted, Chunked, PROTOCOLS, Protocol, SCORE_NAMES
from latentalign.evaluation.protocols import protocol_named, under_protocol
from latentalign.evaluation.quantities import read_report, report_path, summarise, unit_of
from latentalign.evaluation.quantities import write_report
from latentalign.evaluation.reports import SCORES, batches, evaluate, report_differences, sound_scores
from latentalign.evaluation.test_sets import Clip, ClipSet, open_test_set

FEW = Protocol(clips=3, seconds=1., snrs=(math.inf, 1., 0.), scores=("mss", "si_sdr"), embeddings=())


pytestmark = pytest.mark.usefixtures("one_thread")


class Linear:
    "A linear model on frames of 64 samples, at 8 kHz, that keeps every sample; it is asked for nothing but its three attributes."
    sample_rate = 8000
    def encode(self, wave): return torch.nn.functional.pad(wave, (0, -wave.shape[-1] % 64)).unflatten(-1, (-1, 64)).mT*3
    def decode(self, z, length): return z.mT.flatten(-2)[..., :length]/3


def write(path, wave, rate=8000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave.T, rate, "FLOAT")


STEMS = ("vocals", "bass", "drums", "other")


@pytest.fixture
def musdb(tmp_path):
    "Two test tracks of three seconds in the layout of MUSDB18-HQ."
    rng = np.random.default_rng(0)
    for track in "ab":
        waves = {stem: .1*rng.standard_normal((2, 24_000)) for stem in STEMS}
        for stem, wave in (waves | {"mixture": sum(waves.values())}).items(): write(tmp_path/"musdb"/"test"/track/f"{stem}.wav", wave)
    return tmp_path/"musdb"


# test sets

def test_rendered_clips_are_in_four_stems_that_all_sound_and_come_from_held_out_pieces():
    from latentalign.data.rendering import RenderedScores
    clips = open_test_set("scores", 8000, 6, 1.)
    train, test = ({p["name"] for p in RenderedScores(split, crop=8000).pieces} for split in ("train", "test"))
    made = list(clips)
    assert len(made) == 6 and not train & test
    for clip in made:
        assert set(clip.stems) == set(STEMS) and {len(w) for w in clip.stems.values()} == {8000}
        assert all(10*math.log10(w.double().square().mean()) > -60 for w in clip.stems.values())
        assert clip.name.split(",")[0] in test
    again = open_test_set("scores", 8000, 6, 1.)
    assert torch.equal(again.load(4).stems["bass"], made[4].stems["bass"]) and again.load(1).name == made[1].name
    assert open_test_set("scores", 8000, seed=1).load(0).name != made[0].name and open_test_set("scores", 8000).count == 48


def test_melodies_have_their_notes_within_the_clip():
    clip = open_test_set("melodies", 8000, 2, 3.).load(1)
    assert list(clip.stems) == ["vocals"] and len(clip.stems["vocals"]) == 24_000
    assert clip.notes and all(n.onset < 3 for n in clip.notes)
    assert all(a.onset + a.duration <= b.onset + 1e-3 for a, b in zip(clip.notes, clip.notes[1:]))


def test_musdb_excerpts_and_whole_tracks(musdb):
    excerpts = open_test_set(f"musdb18-hq:{musdb}", 8000, 5, .5)
    assert (excerpts.kind, excerpts.count) == ("stems", 5) and [c.name for c in excerpts] == ["a", "b", "a", "b", "a"]
    assert not torch.equal(excerpts.load(0).stems["bass"], excerpts.load(2).stems["bass"])
    whole = open_test_set(f"musdb18-hq:{musdb}", 8000, 0, 0.)
    assert whole.count == 2 and {len(w) for w in whole.load(0).stems.values()} == {24_000}
    assert np.allclose(whole.load(0).stems["bass"], soundfile.read(musdb/"test/a/bass.wav")[0].mean(1), atol=1e-6)
    assert len(open_test_set(f"musdb18-hq:{musdb}", 16000, 1, 0.).load(0).stems["bass"]) == 48_000


@pytest.mark.parametrize("name, change, words", [
    ("mixture", lambda w: 1.5*w, r"b: the stems do not add up.*-6\.0 dB.*-20 dB"), ("bass", lambda w: w[:, :-80], "b do not fit together.*23920"),
    ("drums", lambda w: w*np.nan, "NaN")])
@pytest.mark.parametrize("seconds", [0., 1.])
def test_bad_tracks_are_named(musdb, name, change, words, seconds):
    path = musdb/f"test/b/{name}.wav"
    write(path, change(soundfile.read(path)[0].T))
    if name != "bass": open_test_set(f"musdb18-hq:{musdb}", 8000, 0, seconds).load(0)    # each when its turn comes
    with pytest.raises(ValueError, match=words): open_test_set(f"musdb18-hq:{musdb}", 8000, 0, seconds).load(1)


def test_tracks_of_different_rates_are_refused(musdb):
    wave = soundfile.read(musdb/"test/a/bass.wav")[0].T
    write(musdb/"test/a/bass.wav", wave, 16000)
    with pytest.raises(ValueError, match="bass.wav has 24000 samples at 16000 Hz"): open_test_set(f"musdb18-hq:{musdb}", 8000, 0, 0.).load(0)


def test_silent_tracks_are_refused(musdb, tmp_path):
    for stem in (*STEMS, "mixture"): write(musdb/f"test/b/{stem}.wav", np.zeros((2, 24_000)))
    for data, seconds in ((f"musdb18-hq:{musdb}", 0.), (f"musdb18-hq:{musdb}", 1.), (str(musdb/"test"/"b"), 1.)):
        with pytest.raises(ValueError, match="(b|bass): nothing but silence"): list(open_test_set(data, 8000, 0, seconds))


def test_a_stem_silent_in_one_track_is_measured_elsewhere(musdb):
    "As drums in a track without drums: no value there, a value in the other."
    drums = soundfile.read(musdb/"test/a/drums.wav")[0].T
    mixture = soundfile.read(musdb/"test/a/mixture.wav")[0].T
    write(musdb/"test/a/drums.wav", 0*drums)
    write(musdb/"test/a/mixture.wav", mixture - drums)
    found = evaluate(Linear(), [f"musdb18-hq:{musdb}"], replace(FEW, clips=0, seconds=0.), ("linearity",))["sets"]["musdb18-hq"]["linearity"]
    assert found["separation_drums_mss"]["values"][0] is None and found["separation_drums_mss"]["n"] == 1 and found["separation_bass_mss"]["n"] == 2


def test_folders_and_musiccaps(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("deep/-0Gj8-vB1q4_30.wav", "0123456789A_10.wav", "notes.wav"): write(tmp_path/"set"/name, .1*rng.standard_normal((1, 16_000)))
    clips = open_test_set(f"musiccaps:{tmp_path}/set", 8000, 0, 1.)
    assert (clips.kind, clips.name, clips.count) == ("sounds", "musiccaps", 2) and list(clips.load(0).stems) == ["sound"]
    assert open_test_set(str(tmp_path/"set"), 8000).count == 3 and open_test_set(str(tmp_path/"set"), 8000).name == "set"


@pytest.mark.parametrize("data, words", [("", "unknown test set ''"), ("score", "'score'.*scores, melodies.*musdb18-hq:FOLDER"), ("musdb18-hq:nowhere", "nowhere"), ("musiccaps:", "unknown test set")])
def test_unknown_test_sets(data, words):
    with pytest.raises(ValueError, match=words): open_test_set(data, 8000)


def test_negative_sizes():
    for sizes in ((-1, 2.), (2, -1.)):
        with pytest.raises(ValueError, match="negative"): open_test_set("scores", 8000, *sizes)


# protocols

def test_the_papers_protocols():
    assert SCORE_NAMES == {*SCORES, "pitch"}
    lin = PROTOCOLS["lin-cae"]
    assert (lin.seconds, lin.chunk, lin.overlap, lin.halves, lin.embeddings) == (0, 2, .5, True, ("clap",))
    assert (lin.mss, PROTOCOLS["quick"].mss) == ("hops", "windows"), "footnote 3 of Lin-CAE speaks of hop lengths"
    assert PROTOCOLS["pa-audioic"].snrs == (math.inf, 4, 1) and PROTOCOLS["quick"].snrs == (math.inf, 16, 4, 1, .25, 0)


@pytest.mark.parametrize("name, changes, words", [
    ("quiet", "", "protocol 'quiet'.*quick"), ("quick", "clip=1", "'clip'.*clips"), ("quick", "clips=-1", "-1"), ("quick", "clips", "NAME=VALUE"), ("quick", "steps=0", "0"),
    ("quick", "chunk=1 overlap=0.6", "0.6"), ("quick", "gains=[0,2]", "gains"), ("quick", "gains=[1]", "gains"), ("quick", "gains=[]", "gains"), ("quick", "mss=frames", "'frames'.*windows, hops"), ("quick", "snrs=[4,1]", "infinite"), ("quick", "snrs=[Infinity,-1]", "negative"),
    ("quick", 'scores=["loudness"]', "loudness.*visqol"), ("quick", 'clips="many"', "many")])
def test_protocols_that_cannot_be(name, changes, words):
    with pytest.raises(ValueError, match=words): protocol_named(name, changes)


@pytest.mark.parametrize("samples", [100, 16_000, 16_001, 28_000, 28_001, 50_000])
def test_chunks_lose_nothing_and_stay_linear(samples):
    chunked = Chunked(Linear(), 2., .5)
    x, y = (torch.randn(2, samples, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    z = chunked.encode(x)
    assert z.shape[:2] == (2, chunked.count(samples)) and torch.allclose(chunked.decode(z, samples), x, atol=1e-5)
    assert torch.allclose(chunked.decode(2*z - chunked.encode(y), samples), 2*x - y, atol=1e-5)


def test_chunks_are_coded_each_by_itself():
    model = Autoencoder.from_preset("tiny")
    x = .1*torch.randn(1, 40_000, generator=torch.Generator().manual_seed(0))
    chunked = Chunked(model, 1., .25)
    z, hop = chunked.encode(x), round(.75*22050)
    assert torch.allclose(z[:, 1], model.encode(x[:, hop:hop + 22050]), atol=1e-4)


def test_steps_reach_models_of_this_package_alone():
    model = Autoencoder.from_preset("tiny")
    adapted = under_protocol(model, Protocol(steps=2))
    z = model.encode(.1*torch.randn(1, 9000, generator=torch.Generator().manual_seed(0)))
    assert isinstance(adapted, Adapted) and torch.allclose(adapted.decode(z, 9000), model.decode(z, length=9000, steps=2), atol=1e-5)
    with pytest.raises(ValueError, match="2"): under_protocol(Linear(), Protocol(steps=2))


# reports

def toy_set(lengths, notes=()):
    return ClipSet("toy", lambda i: Clip(str(i), {"x": .1*torch.randn(lengths[i], generator=torch.Generator().manual_seed(i))}, list(notes)), len(lengths), "sounds")


def test_batches_hold_clips_of_one_shape_in_order():
    lengths = [3, 3, 3, 4, 3]
    assert [(first, tuple(stems["x"].shape), [c.name for c in held]) for first, stems, held in batches(toy_set(lengths), 2)] == [(0, (2, 3), ["0", "1"]), (2, (1, 3), ["2"]), (3, (1, 4), ["3"]), (4, (1, 3), ["4"])]


def test_summary_of_a_figure():
    values = list(np.random.default_rng(0).normal(5, 1, 200))
    found = summarise("decoder_additivity_mss", [*values, math.nan, math.inf])
    assert found["n"] == 200 and found["mean"] == pytest.approx(np.mean(values)) and found["values"][-2:] == [None, None]
    low, high = found["interval"]
    assert high - low == pytest.approx(2*1.96/math.sqrt(200), rel=.2) and low < found["mean"] < high
    assert summarise("pitch", [math.nan]) == {"mean": None, "interval": None, "n": 0, "median": None, "unit": "part of the frames", "higher_is_better": True, "values": [None]}
    assert summarise("pitch", [math.nan])["median"] is None and summarise("mss", [2.])["interval"] is None and summarise("error", [1., 2., 9.])["median"] == 2
    assert summarise("mss", [2., 3.], pieces=["a", "a"])["interval"] is None, "two clips of one piece are one"
    assert summarise("mss", [1., 5, 2, 2], pieces=[*"aabb"])["interval"] == pytest.approx(summarise("mss", [3., 2])["interval"])
    assert summarise("pitch", [1., .9, 1., .8])["interval"][1] == 1 and summarise("mss", [.1, .2, .9])["interval"][0] == 0, "nothing beyond what can be"
    assert unit_of("separation_bass_si_sdr") == unit_of("reconstruction_snr") == ("dB", True)


def test_report_of_a_linear_model_knows_that_it_is_linear(tmp_path):
    report = evaluate(Linear(), ["scores", "melodies"], FEW, seed=3, about={"name": "toy"})
    scores, melodies = report["sets"]["scores"], report["sets"]["melodies"]
    for figure, found in scores["linearity"].items():
        if figure.endswith(("error", "mss")): assert found["mean"] < 1e-4, figure
        assert found["n"] == len(found["values"]) == 3
    assert set(melodies["linearity"]) == {"reconstruction_mss", "reconstruction_snr", "encoder_homogeneity_error", "decoder_homogeneity_mss", "decoder_homogeneity_snr"}
    noise = scores["noise"]
    assert list(noise) == ["inf", "1", "0"] and noise["inf"]["mss"]["mean"] < 1e-4 < .1 < noise["1"]["mss"]["mean"] < noise["0"]["mss"]["mean"]
    assert noise["1"]["si_sdr"]["mean"] == pytest.approx(0, abs=.2) and noise["0"]["si_sdr"]["mean"] < -30   # equal powers; nothing in common
    assert scores["latent"]["channels"] == 64 and sum(scores["latent"]["spectrum"]) == pytest.approx(1) and 1 < scores["latent"]["effective_rank"] < 64
    assert set(scores["example"]["stems"]) == set(STEMS) and "example" not in melodies
    assert scores["example"]["stems"]["bass"]["separated"] == scores["example"]["stems"]["bass"]["autoencoded"]
    assert report["settings"]["seed"] == 3 and report["settings"]["snrs"] == ["inf", "1", "0"] and report["environment"]["torch"] and report["model"] == {"name": "toy"}
    path = write_report(tmp_path/"deep"/"report.json", report)
    assert read_report(path) == report and [p.name for p in path.parent.iterdir()] == ["report.json"]
    again = evaluate(Linear(), ["scores"], FEW, ("linearity",), seed=3)
    assert again["sets"]["scores"]["linearity"] == scores["linearity"]


def test_batches_do_not_change_a_report(musdb):
    "Gains and noise belong to clips: a track of another length between them changes nothing."
    from latentalign.evaluation.reports import measure_set
    full = measure_set(Linear(), toy_set([8000]*3), FEW, ("linearity", "noise"), 0)
    split = measure_set(Linear(), ClipSet("toy", lambda i: toy_set([8000, 9000, 8000]).load(i), 3, "sounds"), FEW, ("linearity", "noise"), 0)
    for part in ("encoder_homogeneity_error", "decoder_homogeneity_snr"):
        assert np.allclose([full["linearity"][part]["values"][k] for k in (0, 2)], [split["linearity"][part]["values"][k] for k in (0, 2)], atol=1e-4)
    assert np.allclose([full["noise"]["1"]["si_sdr"]["values"][k] for k in (0, 2)], [split["noise"]["1"]["si_sdr"]["values"][k] for k in (0, 2)], atol=1e-3)


def test_pitch_is_judged_against_notes_or_against_the_recording():
    clip = open_test_set("melodies", 8000, 1, 2.).load(0)
    wave = clip.stems["vocals"][None]
    coded = Coded(Linear(), {"vocals": wave})
    assert sound_scores(wave, coded, [clip.notes], ("pitch",))["pitch"][0] > .8
    assert sound_scores(wave, coded, [[]], ("pitch",))["pitch"][0] == 1
    assert sound_scores(torch.zeros_like(wave), coded, [clip.notes], ("pitch",))["pitch"][0] == 0
    assert sound_scores(wave, Coded(Linear(), {"a": wave, "b": wave}), [[]], ("pitch", "mss")).keys() == {"mss"}


def test_what_is_asked_for_is_checked_before_any_work():
    with pytest.raises(ValueError, match="unknown figures loudness; known: linearity"): evaluate(Linear(), ["scores"], FEW, ("loudness",))
    with pytest.raises(ValueError, match="same name"): evaluate(Linear(), ["scores", "scores"], FEW)
    with pytest.raises(ValueError, match="'score'"): evaluate(Linear(), ["scores", "score"], FEW)


def test_too_few_clips_for_a_distribution_metric_are_refused_before_any_work():
    for protocol, words in ((replace(FEW, embeddings=("crepe",)), "too few clips in scores.*5 pieces.*here are [123]"), (replace(FEW, clips=8, embeddings=("crepe",), halves=True), "here are [1-4]")):
        with pytest.raises(ValueError, match=words): evaluate(Linear(), ["scores"], protocol)


def test_clips_are_read_before_any_work(musdb, monkeypatch):
    from latentalign.evaluation import reports
    monkeypatch.setattr(reports, "measure_set", lambda *a: pytest.fail("work was begun"))
    with pytest.raises(ValueError, match="rendering 0 lasts 0.50 s.*'visqol'"): evaluate(Linear(), ["scores"], replace(FEW, seconds=.5, scores=("visqol",)))
    monkeypatch.undo()
    write(musdb/"test"/"b"/"drums.wav", np.full((2, 24_000), np.nan))
    found = evaluate(Linear(), [f"musdb18-hq:{musdb}"], replace(FEW, clips=0, seconds=0.), ("linearity",))["sets"]["musdb18-hq"]
    assert found["clips"] == 1 and list(found["left_out"]) == ["clip 1"] and "NaN" in found["left_out"]["clip 1"]
    write(musdb/"test"/"a"/"drums.wav", np.full((2, 24_000), np.nan))
    with pytest.raises(ValueError, match="no clip of musdb18-hq can be measured.*NaN"): evaluate(Linear(), [f"musdb18-hq:{musdb}"], replace(FEW, clips=0, seconds=0.), ("linearity",))
    assert evaluate(Linear(), ["scores"], replace(FEW, clips=1, seconds=.5, scores=("visqol",)), ("linearity",))


@pytest.mark.parametrize("bad, words", [(np.zeros((1, 8000)), "silence"), (np.full((1, 8000), np.nan), "NaN")])
def test_one_bad_clip_is_left_out_and_named(tmp_path, bad, words):
    rng = np.random.default_rng(0)
    for k in range(5): write(tmp_path/"set"/f"{k}.wav", .1*rng.standard_normal((1, 8000)))
    write(tmp_path/"set"/"3x.wav", bad)
    with pytest.warns(UserWarning, match=f"set, clip 4 is left out: .*3x.*{words}"): report = evaluate(Linear(), [str(tmp_path/"set")], replace(FEW, clips=0), ("linearity",))
    found = report["sets"]["set"]
    assert found["clips"] == 5 == found["linearity"]["reconstruction_mss"]["n"] and found["pieces"] == [*"01234"] and words in found["left_out"]["clip 4"]


def test_a_report_holds_curve_anchors_and_pieces(musdb):
    from latentalign.evaluation.perceptual import low_pass, visqol_score
    protocol = replace(FEW, clips=4, gains=(.1, -1.), snrs=(math.inf,), scores=("visqol",))
    found = evaluate(Linear(), [f"musdb18-hq:{musdb}"], protocol)["sets"]["musdb18-hq"]
    assert list(found["homogeneity"]) == ["0.1", "-1"] and found["homogeneity"]["-1"]["encoder_homogeneity_error"]["mean"] < 1e-5 and found["pieces"] == [*"abab"]
    clip = sum(open_test_set(f"musdb18-hq:{musdb}", 8000, 4, 1.).load(2).stems.values())
    assert found["anchors"]["low-pass 3.5 kHz"]["visqol"]["values"][2] == pytest.approx(float(visqol_score(low_pass(clip, 8000), clip, 8000)), abs=.01)
    assert found["noise"]["inf"]["visqol"]["mean"] > 4.5 > found["anchors"]["silence"]["visqol"]["mean"] >= 1


def test_distances_carry_what_they_depend_on():
    protocol = replace(FEW, clips=8, snrs=(math.inf, 0.), scores=(), embeddings=("crepe",))
    noise = evaluate(Linear(), ["melodies"], protocol, ("noise",))["sets"]["melodies"]["noise"]
    assert abs(noise["inf"]["crepe_fad"]["mean"]) < 1e-3 and noise["0"]["crepe_fad"]["mean"] > .01 and noise["0"]["crepe_kad"]["mean"] > 1
    found = noise["0"]["crepe_kad"]
    assert (found["embedding"], found["sample_rate"], found["estimate_clips"], found["reference_clips"], found["n"]) == ("crepe", 8000, 8, 8, 8)
    assert found["interval"][0] < found["mean"] < found["interval"][1] and found["pieces"] <= 8
    fad = noise["0"]["crepe_fad"]                                                     # 8 windows in 256 dimensions
    assert fad["interval"] is None is fad["limit"] and fad["mean"] == fad["value"] > fad["equal"] > 0


def test_missing_weights_are_told_and_crepe_named_in_their_place(tmp_path):
    protocol = replace(FEW, clips=8, snrs=(math.inf,), scores=(), embeddings=(f"vggish={tmp_path}",))
    with pytest.warns(UserWarning, match="vggish-10086976.pth.*Used instead: 'crepe'"): report = evaluate(Linear(), ["melodies"], protocol, ("noise",))
    assert set(report["sets"]["melodies"]["noise"]["inf"]) == {"crepe_fad", "crepe_kad"} and report["settings"]["embeddings"] == ["vggish"]


def test_a_report_knows_what_made_it(musdb):
    data, about = [f"musdb18-hq:{musdb}"], {"fingerprint": "f"}
    report = evaluate(Linear(), data, replace(FEW, clips=0, seconds=0.), ("linearity",), 3, about)
    compare = lambda mark="f", data=data, protocol=replace(FEW, clips=0, seconds=0.), figures=("linearity",), seed=3: report_differences(report, mark, data, protocol, figures, seed)
    assert compare() == ([], [])
    for other, told in (({"mark": "g"}, "model was 'f', now 'g'"), ({"seed": 4}, "seed was 3, now 4"), ({"figures": ("latent",)}, "figures was ['linearity']"), ({"protocol": FEW}, "clips was 0"), ({"data": ["scores"]}, "sets was")):
        settings, sources = compare(**other)
        assert told in " ".join(settings) and not sources, (settings, sources)
    path = musdb/"test"/"b"/"bass.wav"
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    assert compare() == ([], [f"{data[0]} has changed"])


def test_reports_that_cannot_be_read(tmp_path):
    path = tmp_path/"r.json"
    for text, words in (("", "no report"), ("[]", "no report"), ('{"sets": 1}', "no report"), ('{"version": 99, "sets": {}, "settings": {}}', "newer latentalign.*99")):
        path.write_text(text)
        with pytest.raises(ValueError, match=words): read_report(path)
    with pytest.raises(ValueError, match="none.json"): read_report(tmp_path/"none.json")


def test_where_a_report_goes(tmp_path):
    assert report_path(str(tmp_path)) == Path("runs")/f"evaluated-{str(tmp_path).replace('/', '-')}"/"evaluation.json", "a folder that holds no model is no run"
    (tmp_path/"config.json").touch()
    assert report_path(str(tmp_path)) == tmp_path/"evaluation.json" and report_path("x", "y/z.json").as_posix() == "y/z.json"
    assert report_path("x", "a/b").as_posix() == "a/b/evaluation.json"
    assert report_path("owner/name").as_posix() == "runs/evaluated-owner-name/evaluation.json" and report_path("public:m2l=a/b.pt").as_posix() == "runs/evaluated-m2l/evaluation.json"


def test_headroom_is_shared():
    loud, soft = share_headroom([torch.tensor([-2., 1]), torch.tensor([.5])])
    assert loud.abs().max() == pytest.approx(.98) and soft[0]/loud[1] == .5 and share_headroom([torch.tensor([.5])])[0] == .5
    with pytest.raises(ValueError, match="no sounds"): headroom([])


# what is drawn

@pytest.fixture(scope="module")
def runs():
    def entry(mean): return {"mean": mean, "interval": [mean - .1, mean + .1], "n": 5, "values": [mean - .1, mean, mean, mean, mean + .1]}
    def report(scale):
        noise = {label: {"mss": entry(1 + t), "visqol": entry(4 - 2*t*t), "si_sdr": entry(10*math.log10((1.01 - t)/t) if t else 40.)}
                 for label, t in (("inf", 0.), ("4", 1/3), ("1", .5), ("0", 1.))}
        example = {"seconds": 1., "stems": {stem: {"separated": [[0, 1]], "autoencoded": [[0, 1]]} for stem in STEMS}}
        return {"version": 1, "sample_rate": 8000, "settings": {"seed": 0, "clips": 5}, "sets": {"scores": {"pieces": [*"abcde"], "homogeneity": {"0.01": {"encoder_homogeneity_error": entry(9.)}, "-1": {"encoder_homogeneity_error": entry(2.)}},
                                                                                                                 "anchors": {"silence": {"visqol": entry(1.5)}}, "linearity": {figure: entry(scale) for figure in TITLES}, "noise": noise, "example": example}}}
    return {"m2l": report(2.), "lin": report(.5)}


def test_tables_set_the_papers_apart(runs):
    title, _, *lines = linearity_table(runs, "scores", "m2l").splitlines()
    assert title == "**One training each, one seed: a difference may be the seed's, and nothing is marked as certain.**" and lines[0] == "|  | m2l | lin | *M2L, paper* | *Lin-CAE, paper* |"
    row = next(line for line in lines if "encoder additivity" in line)
    assert row == "| encoder additivity, error ↓, relative | 2 [1.9, 2.1] | 0.5 [0.4, 0.6] ×0.25 | *2.73* | *0.6* *(×0.22)* |"
    assert linearity_table({"m2l": runs["m2l"]}, "scores").startswith("|  | m2l |"), "a single run is compared with nobody"
    assert "-1.5 | *-11.11* | *-0.59* *(+10.5)*" in next(line for line in lines if "bass, SI-SDR" in line)
    many = linearity_table({"m2l": runs["m2l"], **{f"lin-{k}": runs["lin"] for k in range(4)}}, "scores", "m2l").splitlines()
    assert "| 2 | 0.5 ×0.25 | 0.5 ×0.25 |" in next(line for line in many if "encoder additivity" in line), "no intervals in a wide table"
    assert len(noise_table(runs, "scores", (), ("inf", "1")).splitlines()) == 2 + 2 + 2*2 + 1
    noise = noise_table(runs, "scores", ("aligned",)).splitlines()[2:]
    assert "| silence, in place of a reconstruction |  |  | 1.5 [1.4, 1.6] |  |  |  |" in noise
    assert noise[0] == "| run | SNR | MSS ↓, nepers | ViSQOL ↑, MOS-LQO | SI-SDR ↑, dB | FAD-vggish ↓ | FAD-clap ↓ |"
    assert noise[2] == "| m2l | ∞ | 1 [0.9, 1.1] | 4 [3.9, 4.1] | 40 [39.9, 40.1] | – | – |" and "| *aligned, paper* | 4 |  | *3.48* | *-9.05* | *2.46* | *0.08* |" in noise and "noise alone" in noise[5]


def test_the_papers_numbers():
    lin, m2l = PAPER_LINEARITY["Lin-CAE"], PAPER_LINEARITY["M2L"]
    assert (m2l["decoder_homogeneity_mss"], lin["decoder_homogeneity_mss"], m2l["encoder_homogeneity_error"], lin["encoder_homogeneity_error"]) == (2.27, 1.37, 8.52, .69)
    assert (m2l["decoder_additivity_mss"], lin["decoder_additivity_mss"], m2l["encoder_additivity_error"], lin["encoder_additivity_error"]) == (5.21, .99, 2.73, .60)
    assert PAPER_LINEARITY["Lin-CAE without homogeneity"]["separation_vocals_si_sdr"] == -7.95 and PAPER_LINEARITY["SA-VAE"]["clap_kad"] == 6.27
    assert [PAPER_NOISE["aligned"][r]["visqol"] for r in ("inf", "4", "1")] == [3.73, 3.48, 3.19] and PAPER_NOISE["unaligned"]["1"]["clap_fad"] == .84


def test_ratios_and_differences():
    assert (against("bass_mss", 1., 4.), against("snr", 1., 4.), against("mss", 1., 0.), against("mss", None, 1.)) == ("×0.25", "-3", "", "")


def test_kad_stands_beside_the_papers_only_under_its_own_embedding(runs):
    def report(kad): return runs["m2l"] | {"sets": {"scores": runs["m2l"]["sets"]["scores"] | {"noise": {"inf": kad}}}}
    rows = lambda kad: [line for line in linearity_table({"m2l": report(kad)}, "scores").splitlines() if "KAD" in line]
    entry = {"mean": 1.5, "interval": [1., 2.]}
    assert rows({"crepe_kad": entry}) == ["| reconstruction, KAD-crepe ↓ | 1.5 [1, 2] |  |  |", "| reconstruction, KAD-clap ↓ | – | *6.53* | *6.19* *(×0.95)* |"]
    assert rows({"clap_kad": entry}) == ["| reconstruction, KAD-clap ↓ | 1.5 [1, 2] | *6.53* | *6.19* *(×0.95)* |"] and rows({}) == []


def test_differences_are_certain_clip_by_clip():
    rng = np.random.default_rng(0)
    clip, other = 5*rng.standard_normal((2, 40))
    entry = lambda values: {"mean": 0., "values": [float(v) for v in values]}
    better = entry(clip - .3 + .2*rng.standard_normal(40))
    assert is_certain(better, entry(clip)) and is_certain(entry(clip), better) and not is_certain(entry(clip - .3), entry(other))
    assert not is_certain(entry(clip), entry(clip)) and not is_certain(better, entry(clip[:39])) and not is_certain({"mean": 1.}, entry(clip))
    certain = np.mean([is_certain(entry(clip + rng.standard_normal(40)), entry(clip)) for _ in range(400)])
    assert .03 < certain < .08, "5 % are meant"
    corrected = np.mean([any(is_certain(entry(clip + rng.standard_normal(40)), entry(clip), cells=20) for _ in range(20)) for _ in range(100)])
    assert corrected < .12, "of a table of 20 figures, 5 % again"
    shared = lambda: clip + np.repeat(rng.standard_normal(10), 4) + .3*rng.standard_normal(40)    # four clips a piece
    assert np.mean([is_certain(entry(shared()), entry(clip), np.repeat(np.arange(10), 4)) for _ in range(400)]) < .08 < np.mean([is_certain(entry(shared()), entry(clip)) for _ in range(400)])
    assert not is_certain(entry([1, 1.1, 1.2, 1.1]), entry([0]*4)) and is_certain(entry([1, 1.1, 1.2, 1.1, 1]), entry([0]*5)), "nothing is certain of four"


def run_record(folder, before="", seed=0, figure=1.):
    "A run with its report."
    folder.mkdir(parents=True)
    (folder/"run.json").write_text(json.dumps({"init_from": before, "train": {"seed": seed}}))
    report = {"version": 1, "sample_rate": 8000, "settings": {}, "sets": {"scores": {"linearity": {"reconstruction_mss": {"mean": figure, "interval": None, "values": [figure]*9}}}}}
    return write_report(folder/"evaluation.json", report)


def test_a_claim_about_a_method_needs_starts(tmp_path):
    "Ten fine-tunings of one baseline are one start; five baselines are five."
    run_record(tmp_path/"base", seed=7)
    tuned = [run_record(tmp_path/f"tuned-{k}", "runs/base", k, 1. + .01*k) for k in range(10)]
    assert training_start(tmp_path/"tuned-3") == "base, seed 7" and training_start(tmp_path) == ""
    away, = open_methods(f"x={run_record(tmp_path/'elsewhere'/'lonely', 'runs/gone')}")["x"]
    assert away == "gone, which is not there"
    ours, theirs = ([run_record(tmp_path/f"{name}-{k}", seed=k, figure=mean + .01*k) for k in range(5)] for name, mean in (("lin", .5), ("m2l", 1.)))
    joined = lambda paths: ",".join(map(str, paths))
    table = lambda *paths: method_table(open_methods(" ".join(f"{name}={joined(p)}" for name, p in zip(("m2l", "lin"), paths))), "scores", "m2l")
    good, shared, few = table(theirs, ours), table(theirs, tuned), table(theirs[:4], ours[:4])
    assert "**×0.51**" in good and "m2l 5, lin 5" in good and "bold: certain" in good
    assert "lin 1" in shared and "nothing is marked" in shared and shared.count("**") == 2 and few.count("**") == 2
    run_record(tmp_path/"ring-a", "ring-b"); run_record(tmp_path/"ring-b", "ring-a")
    with pytest.raises(ValueError, match="begin with each other"): training_start(tmp_path/"ring-a")
    with pytest.raises(ValueError, match="no run.json"): open_methods(f"x={write_report(tmp_path/'alone'/'evaluation.json', {'version': 1, 'sets': {}, 'settings': {}})}")


def test_the_curve_of_homogeneity_is_a_table(runs):
    assert (gain_title("0.01"), gain_title("1.995"), gain_title("-1")) == ("−40 dB", "+6 dB", "a = −1")
    rows = homogeneity_table({"m2l": runs["m2l"]}, "scores").splitlines()
    assert rows[0] == "|  | −40 dB | a = −1 | median of the curve |" and rows[2] == "| m2l: encoder homogeneity, error | 9 | 2 | 2 [1.9, 2.1] |"


def test_reports_without_stems_can_be_compared_and_drawn(runs):
    "Of sounds without stems there is no additivity and no separation."
    plain = {name: r | {"sets": {"scores": r["sets"]["scores"] | {"linearity": {k: v for k, v in r["sets"]["scores"]["linearity"].items() if "additivity" not in k and "separation" not in k}}}} for name, r in runs.items()}
    assert len(linearity_table(plain, "scores", "m2l").splitlines()) == 2 + 2 + 5
    fig, axes = plt.subplots(1, 3); draw_linearity(axes, plain, "scores"); plt.close(fig)
    assert [len(ax.patches) for ax in axes] == [2, 4, 0]


def test_runs_measured_in_different_ways_are_told(runs):
    assert differences(runs) == {}
    fewer = runs["lin"] | {"settings": {"seed": 0, "clips": 3, "steps": 2}}
    assert differences(runs | {"lin": fewer}) == {"clips": {"m2l": 5, "lin": 3}, "steps": {"m2l": None, "lin": 2}}


def test_more_than_ten_runs_have_colours_of_their_own():
    assert len({run_colour(k) for k in range(20)}) == 20


def test_what_is_kept(runs):
    found = runs["m2l"]["sets"]["scores"]; noise = found["noise"]
    assert half_kept(kept(found, "mss")) == pytest.approx(.5)
    assert kept(found, "visqol")[.5] == pytest.approx(.75) and half_kept(kept(found, "visqol")) == pytest.approx(.5 + .5*.25/.75)
    assert half_kept(kept(found, "si_sdr")) == pytest.approx(.5, abs=.01)
    assert kept({"noise": {"inf": noise["inf"]}}, "mss") == {} and kept(found, "pitch") == {} and half_kept({}) is None
    assert kept({"noise": {"inf": noise["0"], "0": noise["inf"]}}, "mss") == {}, "nothing can be lost where noise alone is better"
    four = {"noise": {label: {"mss": f["mss"] | {"values": f["mss"]["values"][:4]}} for label, f in noise.items()}}
    assert kept(found, "mss") and kept(four, "mss") == {}, "four clips are too few to say that anything is there"


def test_pictures_show_every_run(runs):
    fig, axes = plt.subplots(1, 3)
    draw_bars(axes[0], runs, "scores", {"encoder_additivity_error": "additivity", "encoder_homogeneity_error": "homogeneity"})
    draw_noise(axes[1], runs, "scores", "visqol"); draw_kept(axes[2], runs["lin"]["sets"]["scores"])
    assert [p.get_height() for p in axes[0].patches] == [2, 2, .5, .5] and len(axes[1].lines) == 2
    assert [t.get_text() for t in axes[1].get_xticklabels()] == ["∞", "4", "1", "noise\nalone"]
    fig, axes = plt.subplots(2, 4)
    draw_separation(axes, runs["lin"]["sets"]["scores"]["example"])
    assert all(ax.images for ax in axes.flat)
    plt.close("all")


def test_runs_are_opened_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="evaluate some runs first"): open_runs("")
    for name in ("b", "a"): write_report(f"runs/{name}/evaluation.json", {"version": 1, "sets": {}, "settings": {"seed": name}})
    assert list(open_runs("")) == ["a", "b"]
    assert list(open_runs("mine=runs/b/evaluation.json runs/a/evaluation.json")) == ["mine", "a"]
    with pytest.raises(ValueError, match="several reports are called a"): open_runs("a=runs/b/evaluation.json runs/a/evaluation.json")


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    from latentalign.tools.command import main
    Autoencoder.from_preset("tiny").save_pretrained(tmp_path/"run")
    config = tmp_path/"run"/"config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"format_version": 99}))
    with pytest.raises(ValueError, match="format version 99"): Autoencoder.from_pretrained(tmp_path/"run")
    assert main(["evaluate", str(tmp_path/"run")]) == 2 and not (tmp_path/"run"/"evaluation.json").exists()


def test_runs_with_other_ratios_share_an_axis():
    from matplotlib.figure import Figure
    entry = lambda v: {"pitch": {"mean": v, "interval": None}}
    runs = {"all": {"inf": entry(1.), "16": entry(.9), "1": entry(.5), "0.25": entry(.3)}, "few": {"inf": entry(1.), "1": entry(.4)}}
    ax = Figure().subplots()
    draw_noise(ax, {name: {"sets": {"scores": {"noise": found}}} for name, found in runs.items()}, "scores", "pitch")
    assert [list(line.get_xdata()) for line in ax.lines] == [[0, 1, 2, 3], [0, 2]]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["∞", "16", "1", "¼"]
