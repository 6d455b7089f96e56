"Audio files, rendered scores and data set layouts."
import gzip, inspect, json, pickle, warnings
import numpy as np, pytest, soundfile, torch
from torch.utils.data import DataLoader, Subset
from latentalign.base.audio import check_wave, find_audio, read_audio, resample, write_audio
from latentalign.data.recordings import AudioFiles, AudioFolder, CROP, MIN_LEVEL_DB, SAMPLE_RATE, Stems
from latentalign.data.recordings import held_out, level_db, read_segment, split_files
from latentalign.data.stems import LAYOUTS, PAPERS_WEIGHTS, find_songs, layout_items, matching_files
from latentalign.data.stems import papers_mixture, song_split, stem_items, stem_tracks
from latentalign.data.datasets import Turns, open_source, warn_once


def sine(frequency, rate, seconds, level=.5):
    return (level*np.sin(2*np.pi*frequency*np.arange(round(seconds*rate))/rate)).astype(np.float32)

def strongest(wave, rate):
    return np.abs(np.fft.rfft(wave*np.hanning(len(wave)), 1 << 17)).argmax()*rate/(1 << 17)

@pytest.fixture
def folder(tmp_path):
    "Three sines in three formats, rates and channel counts."
    (tmp_path/"a").mkdir()
    write_audio(tmp_path/"a/one.wav", sine(500, 48000, 1), 48000)
    write_audio(tmp_path/"a/two.flac", np.stack([sine(1000, 44100, 1)]*2), 44100)
    write_audio(tmp_path/"a/three.ogg", sine(2000, 22050, 1), 22050)
    return tmp_path/"a"


# resampling, reading, writing

@pytest.mark.parametrize("rate", [8000, 16000, 22050, 32000, 48000, 96000])
def test_a_resampled_sine_is_the_sine(rate):
    got, want = resample(sine(1000, rate, 1), rate, 44100), sine(1000, 44100, 1)
    assert abs(len(got) - len(want)) <= 1 and np.abs(got[600:43500] - want[600:43500]).max() < 1e-4

def test_a_file_read_at_another_rate_is_the_sine(tmp_path):
    write_audio(tmp_path/"sine.wav", sine(1000, 48000, 1), 48000)
    wave, rate = read_audio(tmp_path/"sine.wav", 44100)
    assert rate == 44100 and wave.shape == (1, 44100) and wave.dtype == torch.float32
    assert np.abs(wave[0].numpy() - sine(1000, 44100, 1))[500:-500].max() < 1e-3

def test_resampling_turns_the_right_axis_and_keeps_the_type():
    wave = torch.zeros(2, 3, 4800)
    wave[1, 2] = torch.from_numpy(sine(1000, 48000, .1))
    got = resample(wave, 48000, 24000)
    assert isinstance(got, torch.Tensor) and got.shape == (2, 3, 2400)
    assert got[0].abs().max() == 0 and got[1, :2].abs().max() == 0 and got[1, 2].abs().max() > .4
    for bad in (-1, True, False, "cd", None, float("nan")):
        with pytest.raises(ValueError, match=str(bad)): resample(wave, bad, 44100)
        with pytest.raises(ValueError, match=str(bad)): resample(wave, 44100, bad)

@pytest.mark.parametrize("dtype", ["f2", "<f4", ">f4", "<f8", ">f8", "longdouble"])
def test_every_floating_array_is_a_wave(dtype):
    wave = np.arange(12).reshape(2, 6).astype(dtype)
    for view in (wave, wave[::-1], wave[:, ::-1], wave[:, ::-2], wave[1, ::-1], wave.T[::-1], wave[:1, -1:][::-1, ::-1]):
        got = check_wave(view)
        assert got.dtype == torch.float32 and got.tolist() == view.tolist()
        resample(view, 44100, 22050)

@pytest.mark.parametrize("bad, word", [(np.zeros(4, ">i2"), "int16"), (np.zeros(4, "u2"), "uint16"), (np.zeros(4, bool), "bool"), (np.zeros(4, complex), "complex128"),
                                       (np.array(["a"]), "floating"), (np.array([None]), "object"), (torch.zeros(4, dtype=torch.int16), "int16"),
                                       (np.float32(1), "empty"), (np.zeros((2, 0), ">f4"), "empty"), (np.array([1e39, np.nan]), "2 samples")])
def test_what_is_no_wave_is_named(bad, word):
    with warnings.catch_warnings(action="error"), pytest.raises(ValueError, match=word): check_wave(bad)

@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
@pytest.mark.parametrize("rate", [16000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_rate_and_channel_count(tmp_path, suffix, rate, channels):
    path = write_audio(tmp_path/f"sine{suffix}", np.stack([sine(1000, rate, 1)]*channels), rate)
    wave, _ = read_audio(path)
    assert wave.shape == (channels, rate)
    crop = AudioFolder(tmp_path, crop=8192, sample_rate=44100)[0].numpy()
    assert crop.shape == (8192,) and crop.dtype == np.float32
    assert abs(strongest(crop, 44100) - 1000) < 2 and abs(level_db(crop) - level_db(sine(1000, 44100, 1))) < .5

def test_more_than_two_channels_are_mixed_down(tmp_path):
    write_audio(tmp_path/"six.wav", np.stack([np.full(5000, c, np.float32)/8 for c in range(6)]), 44100)
    assert np.allclose(read_segment(tmp_path/"six.wav", 100, 50, 44100), 2.5/8)

def test_an_mp3_that_lacks_a_part_of_its_last_frame_is_refused(tmp_path):
    "Its encoder counted the frames; who is given no count cannot know. Bytes put in between are no frames either, and none is lost for them."
    from latentalign.base.audio import read_audio, write_audio
    path = write_audio(tmp_path/"a.mp3", .1*np.random.default_rng(0).standard_normal((1, 12000)).astype("f4"), 22050)
    whole = path.read_bytes()
    assert read_audio(path)[0].shape == (1, 12000)
    for hurt in (whole[:-1], whole[:-27], whole[:-200], whole[:len(whole)//2], whole[:-300] + b"x"*32 + whole[-300:]):
        path.write_bytes(hurt)
        with pytest.raises(ValueError, match="a.mp3.*(ends before the length that its header gives|no whole MPEG frames)"): read_audio(path)
    for more in (bytes(3000), b"TAG".ljust(128)):
        path.write_bytes(whole + more)
        assert read_audio(path)[0].shape == (1, 12000)
    path.write_bytes(bytes(300) + whole)                                              # frames behind something else
    assert read_audio(path)[0].shape == (1, 12000)
    for at in (140, 160):                                                             # the header in the first frame has a checksum
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1:])
        with pytest.raises(ValueError, match="a.mp3.*checksum is wrong"): read_audio(path)

@pytest.mark.parametrize("suffix", [".wav", ".mp3", ".ogg"])
def test_a_segment_is_the_slice_of_the_whole(tmp_path, suffix):
    noise = np.random.default_rng(0).uniform(-.2, .2, 3*32000).astype(np.float32)
    path = write_audio(tmp_path/f"noise{suffix}", noise, 32000)
    whole = read_audio(path, 44100, mono=True)[0][0].numpy()
    for start in (0, 7, 50021, 3*44100 - 1000, 4*44100):
        got, want = read_segment(path, start, 3000, 44100), whole[start:start + 3000]
        assert np.allclose(got[:len(want)], want, atol=2e-5) and not got[len(want) + 1:].any()

def test_writing_is_whole_or_nothing(tmp_path):
    path = write_audio(tmp_path/"x.wav", sine(100, 8000, 1), 8000)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="NaN"): write_audio(path, np.full(10, np.nan), 8000)
    with pytest.raises(ValueError, match="2000"): write_audio(path, np.zeros((2000, 10)), 8000)   # too many channels
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["x.wav"]
    with pytest.raises(ValueError, match=r"\.xyz"): write_audio(tmp_path/"x.xyz", np.zeros(9), 8000)
    with pytest.raises(ValueError, match=r"\(1, 2, 9\)"): write_audio(path, np.zeros((1, 2, 9)), 8000)

def test_unreadable_files_are_named(tmp_path):
    (tmp_path/"broken.flac").write_bytes(b"nothing of the kind")
    soundfile.write(tmp_path/"empty.wav", np.zeros((0, 1)), 8000)
    for name in ("broken.flac", "empty.wav", "absent.wav"):
        with pytest.raises(ValueError, match=name): read_audio(tmp_path/name)


# folders

def test_bad_folders_and_weights(folder, tmp_path):
    (tmp_path/"empty").mkdir()
    with pytest.raises(ValueError, match="empty"): AudioFolder(tmp_path/"empty")
    with pytest.raises(ValueError, match="absent"): AudioFolder(tmp_path/"absent")
    for weights in ([1, 2], [0], [-1], [float("nan")]):
        with pytest.raises(ValueError, match="weights"): AudioFolder([folder], weights)
    with pytest.raises(ValueError, match="crop"): AudioFolder(folder, crop=0)
    with pytest.raises(ValueError, match="'best'"): AudioFolder(folder, split="best")
    with pytest.raises(IndexError): AudioFolder(folder)[-1]

def test_crops_depend_on_seed_and_index_alone(folder):
    source = AudioFolder(folder, crop=1000, seed=5)
    inline = torch.stack([source[i] for i in range(24)])
    assert len(source) == 2**31 - 1
    assert torch.equal(inline.flip(0), torch.stack([source[i] for i in reversed(range(24))]))
    assert torch.equal(inline, torch.stack([pickle.loads(pickle.dumps(source))[i] for i in range(24)]))
    for workers in (0, 2):
        batches = DataLoader(Subset(source, range(24)), batch_size=4, num_workers=workers)
        assert torch.equal(inline, torch.cat(list(batches)))
    other = torch.stack([AudioFolder(folder, crop=1000, seed=6)[i] for i in range(24)])
    assert not torch.equal(inline, other)

def test_subfolders_are_searched_and_hidden_files_are_not(folder):
    write_audio(folder/"deep.wav", sine(100, 8000, 1), 8000)
    (folder/"x/y").mkdir(parents=True)
    (folder/"deep.wav").rename(folder/"x/y/deep.WAV")
    (folder/"._deep.wav").write_bytes(b"not audio")
    (folder/"notes.txt").write_text("not audio")
    assert [p.name for p in find_audio(folder)] == ["one.wav", "three.ogg", "two.flac", "deep.WAV"]

def test_no_folder_is_searched_twice_and_hidden_ones_are_not(folder, tmp_path):
    names = ["one.wav", "three.ogg", "two.flac"]
    (folder/"loop").symlink_to(folder)
    (folder/"up").symlink_to(folder.parent)
    (folder/".trash/inner").mkdir(parents=True)
    write_audio(folder/".trash/inner/gone.wav", sine(100, 8000, 1), 8000)
    assert [p.name for p in find_audio(folder)] == names
    (tmp_path/"elsewhere").mkdir()
    (tmp_path/"elsewhere/link").symlink_to(folder)               # links are followed
    assert [p.name for p in find_audio(tmp_path/"elsewhere/link")] == [p.name for p in find_audio(tmp_path/"elsewhere")] == names
    assert [p.name for p in find_audio(folder/".trash")] == ["gone.wav"]

def test_a_damaged_file_is_reported_once_and_left_out(folder):
    (folder/"broken.flac").write_bytes((folder/"two.flac").read_bytes()[:50])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        source = AudioFolder(folder, crop=1000)
        crops = [source[i] for i in range(40)]
    assert ["broken.flac" in str(w.message) for w in said] == [True]
    assert min(level_db(c.numpy()) for c in crops) > -20

def test_what_was_met_before_makes_no_difference(folder):
    flac = (folder/"two.flac").read_bytes()
    (folder/"broken.flac").write_bytes(flac[:50])
    (folder/"cut.flac").write_bytes(flac[:len(flac)*2//3])      # good in its first part
    with warnings.catch_warnings(action="ignore"):
        source = AudioFolder(folder, crop=1000)
        forwards = [source[i] for i in range(40)]
        assert all(torch.equal(forwards[i], AudioFolder(folder, crop=1000)[i]) for i in reversed(range(40)))

def test_only_damaged_files_end_in_an_error(tmp_path):
    (tmp_path/"broken.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match="broken.wav"), warnings.catch_warnings(action="ignore"): AudioFolder(tmp_path)[0]

def test_near_silence_is_skipped(tmp_path):
    write_audio(tmp_path/"half.wav", np.concatenate([np.zeros(80000, np.float32), sine(300, 44100, .5)]), 44100)
    write_audio(tmp_path/"hiss.wav", sine(5000, 44100, 2, level=1e-4), 44100)
    source = AudioFolder(tmp_path, crop=2000)
    assert min(level_db(source[i].numpy()) for i in range(30)) >= -60
    quiet = [level_db(AudioFolder(tmp_path, crop=2000, min_level_db=-200.)[i].numpy()) for i in range(30)]
    assert min(quiet) < -60

def test_a_silent_file_does_not_loop_for_ever(tmp_path):
    write_audio(tmp_path/"silence.wav", np.zeros(44100), 44100)
    source = AudioFolder(tmp_path, crop=2000)
    with pytest.warns(UserWarning, match="64 crops"): assert not source[0].any()

def test_short_files_are_padded_at_a_drawn_place(tmp_path):
    write_audio(tmp_path/"short.wav", np.ones(100), 44100)
    crops = torch.stack([AudioFolder(tmp_path, crop=1000)[i] for i in range(30)])
    assert (crops.sum(1) == 100).all() and len(set(crops.argmax(1).tolist())) > 20

def test_weights_are_the_shares(tmp_path):
    for k, name in enumerate("abc"):
        (tmp_path/name).mkdir()
        for n in range(k + 1): write_audio(tmp_path/name/f"{n}.wav", np.full(400, .1*(k + 1)), 44100)
    (tmp_path/"c/broken.wav").write_bytes(b"RIFF")             # must not take away from its folder's share
    source = AudioFolder([tmp_path/n for n in "abc"], weights=[60, 30, 10], crop=100)
    with warnings.catch_warnings(action="ignore"): drawn = [round(float(source[i][50])*10) for i in range(1500)]
    counts, expected = np.bincount(drawn, minlength=4)[1:], 1500*np.array([.6, .3, .1])
    assert ((counts - expected)**2/expected).sum() < 9.21      # chi-square, two degrees of freedom, 1 %

def test_files_of_a_folder_are_equally_likely_whatever_their_length(tmp_path):
    for value, seconds in ((1, .1), (2, 5.)): write_audio(tmp_path/f"{value}.wav", np.full(int(44100*seconds), .1*value), 44100)
    source = AudioFolder(tmp_path, crop=100)
    assert 70 < sum(float(source[i][50]) < .15 for i in range(200)) < 130

def test_held_out_files_are_a_tenth_and_stable(tmp_path):
    names = [f"{i}.wav" for i in range(1000)]
    out = held_out(names)
    assert 70 < out.sum() < 130 and (held_out(names[::-1])[::-1] == out).all()
    for few in (names[:2], names[:3], names[:9]): assert 0 < held_out(few).sum() < len(few)
    items = [tmp_path/n for n in names]
    train, valid = (split_files(items, tmp_path, s)[0] for s in ("train", "valid"))
    assert sorted(train + valid) == sorted(items)
    assert split_files(items[:1], tmp_path, "train")[1] == (0., .9) and split_files(items[:1], tmp_path, "valid")[1] == (.9, 1.)

def test_a_single_file_is_split_in_time(tmp_path):
    write_audio(tmp_path/"ramp.wav", np.linspace(.1, 1., 44100), 44100)
    train, valid = (AudioFolder(tmp_path, crop=500, split=s) for s in ("train", "valid"))
    edge = .1 + .9*.9
    assert max(train[i].max() for i in range(50)) <= edge + 1e-4 and min(valid[i].min() for i in range(50)) >= edge - 1e-4


# layouts

EXAMPLES = {
    "mtg-jamendo": ["raw/00/1000.mp3", "raw/57/957.low.mp3"],
    "moisesdb": ["v0.1/4f2a/bass/b.wav", "v0.1/4f2a/drums/d1.wav", "v0.1/4f2a/drums/d2.wav", "v0.1/77aa/vocals/v.wav"],
    "m4singer": ["Alto-1#A Song/0000.wav", "Tenor-2#B/0001.wav"],
    "dns-challenge": ["datasets_fullband/clean_fullband/read_speech/a.wav", "datasets_fullband/clean_fullband/b.wav"],
    "e-gmd": ["drummer1/session1/1_rock.wav", "drummer10/eval_session/2.wav"],
    "musiccaps": ["-0Gj8-vB1q4_30.wav", "[0abcDEF_ghi]-[70-80].flac", "0abcDEF_ghj_70.5.ogg"],
    "musdb18-hq": [f"{t}/{x}.wav" for t in ("train/A - B", "train/C - D", "test/E - F")
                   for x in ("mixture", "vocals", "bass", "drums", "other")],
}

@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    "A small folder of each layout, with a stray file in each."
    root = tmp_path_factory.mktemp("sets")
    for name, files in EXAMPLES.items():
        for file in files + ["stray.ogg", "elsewhere/stray.wav"]:
            (root/name/file).parent.mkdir(parents=True, exist_ok=True)
            write_audio(root/name/file, sine(1000, 44100, .1, .4 if file.endswith("mixture.wav") else .1), 44100)
    for track in ("4f2a", "77aa"): (root/f"moisesdb/v0.1/{track}/data.json").write_text("{}")
    return root

@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_find_their_files_and_no_others(sets, name):
    found = [p.relative_to((sets/name).resolve()).as_posix() for p, _ in matching_files(name, sets/name)]
    assert sorted(found) == sorted(EXAMPLES[name])
    assert open_source(f"{name}:{sets/name}", crop=500)[3].shape == (500,)
    train, valid = (layout_items(name, sets/name, s)[0] for s in ("train", "valid"))
    assert train and valid and not set(train) & set(valid)

@pytest.mark.parametrize("name", LAYOUTS)
def test_a_wrong_layout_says_what_was_expected_and_found(sets, name):
    other = "e-gmd" if name != "e-gmd" else "m4singer"
    with pytest.raises(ValueError) as error: matching_files(name, sets/other)
    assert LAYOUTS[name].expected in str(error.value) and f"{other}/" in str(error.value)

def test_an_inner_folder_will_do(sets):
    assert len(matching_files("dns-challenge", sets/"dns-challenge/datasets_fullband/clean_fullband")) == 2
    assert len(matching_files("mtg-jamendo", sets/"mtg-jamendo/raw/00")) == 1

def test_stems_sum_to_the_mixture_or_the_difference_is_told(sets):
    tracks = stem_tracks("musdb18-hq", sets/"musdb18-hq", "train")
    assert [t.name for t in tracks] == ["A - B", "C - D"] and set(tracks[0].paths) == {"vocals", "bass", "drums", "other"}
    with warnings.catch_warnings(action="error"): assert tracks[0].mismatch_db() < -100
    louder = stem_tracks("moisesdb", sets/"moisesdb")[0]
    assert louder.mixture(22050).shape == (1, 2205) and abs(float(louder.mixture().abs().max()) - .3) < 1e-3
    off = type(tracks[0])("off", {"vocals": tracks[0].paths["vocals"]}, tracks[0].mixture_path)
    with pytest.warns(UserWarning, match="off"): assert abs(off.mismatch_db() - 20*np.log10(3/4)) < .1
    with pytest.raises(ValueError, match="flute"): tracks[0].stem("flute")
    with pytest.raises(ValueError, match="e-gmd"): stem_tracks("e-gmd", sets/"e-gmd")

def test_a_missing_stem_is_named(sets, tmp_path):
    for x in ("mixture", "vocals", "drums", "other"):
        (tmp_path/"train/T").mkdir(parents=True, exist_ok=True)
        write_audio(tmp_path/f"train/T/{x}.wav", np.ones(10), 44100)
    with pytest.raises(ValueError, match="bass"): stem_tracks("musdb18-hq", tmp_path)

def test_the_papers_mixture_has_its_weights(sets):
    source = papers_mixture(sets, crop=100, split=None)
    assert np.allclose(source.cumulative, np.cumsum([60, 20, 9, 8, 3])/100)
    assert [len(g) for g in source.groups] == [2, 2, 2, 2, 2] and source[0].shape == (100,)
    assert torch.equal(open_source(f"papers:{sets}", crop=100, split=None)[7], papers_mixture(sets, crop=100, split=None)[7])
    with pytest.raises(ValueError, match="moisesdb"): papers_mixture({"e-gmd": sets/"e-gmd"})
    assert sum(PAPERS_WEIGHTS.values()) == 100

def test_moisesdb_gives_stems_and_mixes_to_train_on_and_mixes_to_validate(sets):
    items = {split: layout_items("moisesdb", sets/"moisesdb", split)[0] for split in ("train", "valid", None)}
    assert all(isinstance(i, Stems) for i in items["train"] + items[None]) and all(isinstance(i, tuple) for i in items["valid"])
    files = lambda split: {p for i in items[split] for part in (i.parts if isinstance(i, Stems) else [i]) for p in part}
    assert files("train").isdisjoint(files("valid")) and files("train") | files("valid") == files(None) and len(files(None)) == 4
    song = next(i for i in items[None] if len(i.parts) == 2)                                    # one bass file, two of drums
    source = AudioFiles([[song]], crop=64, min_level_db=-200)
    kinds = {len(song.choose(np.random.default_rng(i))[0]) for i in range(50)}
    assert kinds == {1, 2, 3} and source[0].shape == (64,)

def test_open_source_opens_folders_and_lists_what_it_knows(sets):
    assert len(open_source(f"{sets/'e-gmd'},{sets/'m4singer'}", crop=100).sources) == 2
    assert isinstance(open_source(sets/"e-gmd"), AudioFiles)
    for bad in ("score", "jamendo:/tmp", "/no/such/folder", "scores,stems:", "stems"):
        with pytest.raises(ValueError, match="known: scores.*stems:FOLDER.*musdb18-hq"): open_source(bad)

def test_scores_and_folders_take_turns(sets):
    both = open_source(f"scores,{sets/'e-gmd'}", crop=1000, sample_rate=22050, seed=3)
    alone = [open_source(data, crop=1000, sample_rate=22050, seed=3) for data in ("scores", sets/"e-gmd")]
    for i, (source, k) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]): assert torch.equal(both[i], alone[source][k]), i
    assert torch.equal(both[16], alone[1][8]), "every sixteenth item is not always of the same kind"
    assert torch.equal(open_source(f"{sets/'e-gmd'},scores", crop=1000, sample_rate=22050, seed=3)[5], both[7])
    for bad in ("scores,", "scores,scores/of/nobody", ""):
        with pytest.raises(ValueError, match="no such folder"): open_source(bad)

def test_turns_go_by_weight_and_miss_nothing():
    for weights in ([1, 1], [2, 1], [3, 2, 4], [60, 20, 9, 8, 3]):
        sources = [range(10000*s, 10000*s + 10000) for s in range(len(weights))]
        drawn = [Turns(sources, weights)[i] for i in range(8*2*sum(weights))]
        assert sorted(drawn) == [10000*s + k for s, w in enumerate(weights) for k in range(16*w)]       # eight rounds: every item once
        assert all(drawn[i + 1] == drawn[i] + 1 for i in range(0, len(drawn), 2))                       # neighbours stay together
        every = {x//10000 for x in (Turns(sources, weights)[16*i] for i in range(4*sum(weights)))}
        assert every == set(range(len(weights))), weights
    for weights in ([1], [0, 1], [1.5, 1], [-1, 1]):
        with pytest.raises(ValueError, match="2 sources.*whole numbers"): Turns([range(9)]*2, weights)

def test_one_grammar_for_all_sources(sets, tmp_path):
    odd = tmp_path/"a,b@2"
    odd.mkdir()
    write_audio(odd/"x.wav", sine(1000, 44100, .1), 44100)
    assert isinstance(open_source(odd), AudioFiles) and isinstance(open_source(str(odd)), AudioFiles)    # a folder is a folder, whatever its name
    source = open_source(f"e-gmd:{sets/'e-gmd'}@3,stems:{sets/'musdb18-hq/train'},{sets/'m4singer'}@2", crop=100)
    assert source.weights == [3, 1, 2] and all(isinstance(x, AudioFiles) for x in source.sources)
    for bad in ("@0", "@-1", "@1.5", "@x", "@"):
        with pytest.raises(ValueError, match="whole number from 1"): open_source(f"scores{bad},{odd}")


# songs in stems

def write_song(folder, stems, samples=22050, rate=22050):
    "A song of constant stems {name: value}."
    folder.mkdir(parents=True)
    for name, value in stems.items(): write_audio(folder/f"{name}.wav", np.full(samples, value, np.float32), rate)

@pytest.fixture
def songs(tmp_path):
    "Eight songs in two stems of .1 and .2, and what the two files would sum to in a mixture of 1 (which is no stem)."
    for k in range(8): write_song(tmp_path/f"songs/{k}", {"guitar": .1, "backing": .2, "mixture": 1.})
    return tmp_path/"songs"

def test_songs_split_as_wholes_and_validation_in_time(songs):
    names = lambda split: {p.parent.name for i in stem_items(songs, split)[0] for part in (i.parts if isinstance(i, Stems) else [i]) for p in part}
    assert names("train") == names("valid") == set("1357") and names("test") == set("0246") and names(None) == set("01234567")
    assert [stem_items(songs, s)[1] for s in ("train", "valid", "test", None)] == [(0., .9), (.9, 1.), (0., 1.), (0., 1.)]
    for split in ("train", "test"): (songs/split).mkdir()
    for k in range(8): (songs/str(k)).rename(songs/("train" if k < 6 else "test")/str(k))
    assert names("train") == set("012345") and names("test") == set("67")
    (songs/"train/5").rename(songs/"valid-5"); (songs/"valid").mkdir(); (songs/"valid-5").rename(songs/"valid/5")
    assert names("train") == set("01234") and names("valid") == {"5"} and stem_items(songs, "train")[1] == (0., 1.)
    with pytest.raises(ValueError, match="'dev'.*train, valid, test"): stem_items(songs, "dev")

def test_of_many_songs_a_tenth_is_for_tests():
    many = {f"{k:03}": k for k in range(400)}
    train, test = (song_split(many, s)[0] for s in ("train", "test"))
    assert 20 < len(test) < 60 and sorted(train + test) == list(range(400))
    with pytest.raises(ValueError, match="'train'.*two are needed"): song_split({"only": 0}, "train")

def test_stem_items_are_mixtures_solos_and_remixes_that_depend_on_the_index_alone(songs):
    source = open_source(f"stems:{songs}", crop=200, sample_rate=22050, seed=2)
    values = np.array([float(source[i].mean()) for i in range(1000)])
    share = lambda x: np.mean(np.abs(values - x) < 1e-3)
    assert .44 < share(.3) < .57 and .09 < share(.1) < .19 and .09 < share(.2) < .19 and values.max() < 1.5
    again = open_source(f"stems:{songs}", crop=200, sample_rate=22050, seed=2)
    assert all(torch.equal(source[i], again[i]) for i in reversed(range(50))) and torch.equal(pickle.loads(pickle.dumps(source))[7], source[7])
    for split in ("valid", "test"):
        held = open_source(f"stems:{songs}", crop=200, sample_rate=22050, split=split)
        assert all(abs(float(held[i].mean()) - .3) < 1e-3 for i in range(40))

@pytest.mark.parametrize("make, words", [
    (lambda f: write_song(f/"one", {"guitar": .1}), "the song one has one stem.*guitar.wav.*two or more"),
    (lambda f: write_song(f/"one", {"guitar": .1, "mix": .2}), "the song one has one stem"),
    (lambda f: write_song(f/"one", {"mixture": .1}), "the song one has a mixture and no stems"),
    (lambda f: write_song(f/"one", {"guitar": .1, "backing": 0.}), "backing.wav is silent.*-60 dB"),
    (lambda f: write_song(f/"one", {"guitar": .1, "backing": 1e-4}), "backing.wav is silent"),
    (lambda f: write_song(f, {"guitar": .1, "backing": .2}), "holds audio files itself.*SONG/STEM.ogg"),
    (lambda f: (write_song(f/"one", {"guitar": .1, "backing": .2}), write_audio(f/"one/drums.wav", np.full(30000, .1), 22050)), "not equally long.*backing.wav 1.00 s, drums.wav 1.36 s"),
    (lambda f: (write_song(f/"one", {"guitar": .1, "backing": .2}), write_audio(f/"one/guitar.flac", np.full(22050, .1), 22050)), "a stem twice: guitar.flac, guitar.wav"),
    (lambda f: (write_song(f/"one", {"guitar": .1, "backing": .2}), (f/"one/drums.wav").write_bytes(b"RIFF")), "cannot read.*drums.wav"),
    (lambda f: f.mkdir(), "nothing in.*SONG/STEM.ogg"),
    (lambda f: None, "no such folder.*SONG/STEM.ogg"),
])
def test_folders_that_are_no_songs_in_stems_are_named(tmp_path, make, words):
    make(tmp_path/"songs")
    with pytest.raises(ValueError, match=words): open_source(f"stems:{tmp_path/'songs'}")

def test_a_stem_may_begin_late_or_have_another_rate(tmp_path):
    write_song(tmp_path/"a/x", {"guitar": .1, "backing": .2})
    write_audio(tmp_path/"a/x/late.wav", np.concatenate([np.zeros(40000, np.float32), np.full(4100, .1, np.float32)]), 44100)
    assert sorted(find_songs(tmp_path/"a")["x"].paths) == ["backing", "guitar", "late"]


# memory

def test_what_fits_is_read_once_and_sounds_the_same(folder):
    kept, read = AudioFolder(folder, crop=3000, seed=1), AudioFolder(folder, crop=3000, seed=1, memory=0)
    for i in range(20): assert (kept[i] - read[i]).abs().max() < 2**-11*.6 and level_db((kept[i] - read[i]).numpy()) < level_db(read[i].numpy()) - 60
    assert len(kept.memory.waves) == 3 and read.memory is None and {w.dtype for w in kept.memory.waves.values()} == {np.dtype("f2")}
    for path in folder.glob("*"): path.write_bytes(b"gone")
    assert kept[0].any() and all(torch.equal(kept[i], kept[i]) for i in range(5))                # nothing is read again

def test_memory_is_for_the_whole_source_or_for_nothing(folder):
    need = 2*(44100 + 44100 + 44100)                                                            # three files of a second
    assert AudioFolder(folder, memory=need).memory is not None and AudioFolder(folder, memory=need - 1).memory is None


# the source that finds what there is

def test_auto_takes_what_there_is_and_tells_once_what_is_missing(songs, tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTALIGN_DATA", str(tmp_path/"own"))
    warn_once.cache_clear()
    with pytest.warns(UserWarning, match=r"no recordings.*0\.133.*0\.118.*free_music.py"): source = open_source("auto", crop=500)
    assert not isinstance(source, Turns)
    with warnings.catch_warnings(action="error"): open_source("auto", crop=500)
    (tmp_path/"own").mkdir()
    songs.rename(tmp_path/"own/stems")
    with pytest.warns(UserWarning, match="free-music missing"): source = open_source("auto", crop=500, sample_rate=22050)
    assert source.weights == [2, 1]
    for name in ("free-music", "loops"):
        (tmp_path/"own"/name).mkdir()
        write_audio(tmp_path/"own"/name/"x.wav", sine(500, 22050, 1), 22050)
    with warnings.catch_warnings(action="error"):
        assert open_source("auto", crop=500, split="train").weights == [6, 1, 1, 1] and open_source("auto", crop=500, split="test").weights == [2, 1]


# free music

@pytest.fixture(scope="module")
def free_music():
    import importlib.util
    from pathlib import Path
    spec = importlib.util.spec_from_file_location("free_music", Path(__file__).parents[1]/"data/free_music.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

@pytest.mark.parametrize("licence, free", [("CC0-1.0", True), ("CC-BY-SA-3.0", True), ("GPL-2+", True), ("public-domain", True), ("CC-BY-NC-4.0", False),
                                           ("CC-BY-NC-SA-3.0", False), ("CC-BY-ND-4.0", False), ("unknown", False), ("custom or GPL-2+", True),
                                           ("GPL-2+ and CC-BY-NC-3.0", False), ("LGPL-2.1+ and MIT", True), ("", False)])
def test_free_licences_are_known(free_music, licence, free): assert free_music.is_free(licence) == free

def test_the_last_rule_of_a_copyright_file_holds(free_music):
    found = free_music.rules("""Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Source: nowhere

Files: *
Copyright: 2001 The Game
License: GPL-2+

Files: music/a.ogg
       music/b*.ogg
Copyright: The Band
           Its Singer
License: CC-BY-NC-3.0
 Do not sell.
 .
 License: Expat

License: GPL-2+
 text
""")
    assert [free_music.rule_of(f"usr/share/game/music/{x}.ogg", found) for x in "abc"] == [("CC-BY-NC-3.0", "The Band Its Singer")]*2 + [("GPL-2+", "2001 The Game")]
    for text, short in (("Creative Commons\nAttribution-ShareAlike 3.0 Unported", "CC-BY-SA-3.0"), ("under the Attribution-NonCommercial-ShareAlike 4.0", "CC-BY-NC-SA-4.0"),
                        ("the Creative Commons\nAttribution ShareAlike licence 3.0:", "CC-BY-SA-3.0"), ("Attribution-NoDerivs 2.5", "CC-BY-ND-2.5"),
                        ("Permission is hereby granted, free of\ncharge, to any person obtaining", "MIT"), ("All rights reserved.", "unknown")):
        assert free_music.rules(text)[0][1] == short

def test_a_package_becomes_music_with_a_list(free_music, tmp_path):
    tree, out = tmp_path/"tree", tmp_path/"out"
    for name, seconds in (("music/Album 1/Long Song.ogg", 11), ("music/short.ogg", 2), ("music/sold.ogg", 11), ("sounds/click.ogg", 11)):
        (tree/"usr/share/game"/name).parent.mkdir(parents=True, exist_ok=True)
        write_audio(tree/"usr/share/game"/name, np.stack([sine(1000, 44100, seconds), np.zeros(seconds*44100, np.float32)]), 44100)
    (tree/"usr/share/doc/p").mkdir(parents=True)
    (tree/"usr/share/doc/p/copyright").write_text("Format: http://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nCopyright: B\nLicense: CC-BY-4.0\n\n"
                                                  "Files: music/sold.ogg\nCopyright: C\nLicense: CC-BY-NC-4.0\n")
    entries, left_out = free_music.unpack_music(tree, "p", "1.0-2", out, 22050, False, ".flac")
    entry, = entries
    assert entry == dict(file="free-music/p/album-1/long-song.flac", title="Long Song", artist="B", licence="CC-BY-4.0", copyright="B", seconds=11., rate=22050, channels=1, package="p", version="1.0-2")
    assert len(left_out) == 2 and "sold.ogg (licence CC-BY-NC-4.0)" in left_out[1] and "short.ogg" in left_out[0] and (out/"notices/p/copyright").exists()
    wave, rate = read_audio(out/entry["file"])
    assert rate == 22050 and wave.shape == (1, 11*22050) and abs(strongest(wave[0].numpy()[1000:], rate) - 1000) < 2 and abs(level_db(wave.numpy()) - level_db(sine(1000, 44100, 1)/2)) < .2
    free_music.write_list(out/"list.json", entries)
    assert json.loads((out/"list.json").read_text()) == entries

def test_without_apt_the_script_says_so(free_music, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert free_music.main([str(tmp_path)]) == 1 and "apt-get" in capsys.readouterr().err
    with pytest.raises(SystemExit): free_music.main(["--packages", "quake"])
    assert "singularity-music" in capsys.readouterr().err


def test_all_sources_have_the_same_defaults():
    from latentalign.data.rendering import RenderedScores
    for source in (AudioFiles, AudioFolder, RenderedScores, papers_mixture, open_source):
        given = {name: p.default for name, p in inspect.signature(source).parameters.items()}
        assert (given["crop"], given["sample_rate"], given["seed"]) == (CROP, SAMPLE_RATE, 0) == (32768, 44100, 0), source
        assert given.get("min_level_db", MIN_LEVEL_DB) == MIN_LEVEL_DB == -60


# rendered scores

@pytest.fixture(scope="module")
def small(tmp_path_factory):
    "Arguments for a small source of rendered scores, with a cache of its own."
    for package in ("music21", "symusic", "pretty_midi"): pytest.importorskip(package)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield dict(chorales=12, tunes=24, crop=4096, sample_rate=22050)

@pytest.fixture
def RenderedScores(small):
    from functools import partial
    from latentalign.data.rendering import RenderedScores
    return partial(RenderedScores, **small)

def test_a_share_of_the_training_items_is_one_stem_alone(RenderedScores):
    def alone(items, **choices):
        source, found = RenderedScores(seed=2, **choices), 0
        for i in range(items):
            item, cut = source[i].numpy(), slice(i % 4*4096, (i % 4 + 1)*4096)
            mixture, stems = source.recent[i//4].mixture[cut], [x[cut] for x in source.recent[i//4].stems.values()]
            assert level_db(item) > -60 and (np.array_equal(item, mixture) or any(np.array_equal(item, x) for x in stems))
            found += not np.array_equal(item, mixture)
        return found
    assert 5 <= alone(64) <= 28 and alone(8, solo=1.) >= 6
    assert alone(8, solo=0.) == alone(8, split="valid") == alone(8, split="test", solo=1.) == 0
    for bad in (-.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"solo.*{bad}"): RenderedScores(solo=bad)

def test_stems_sum_and_crops_are_cuts_of_the_rendering(RenderedScores):
    source = RenderedScores(seed=2, crops_per_rendering=3, solo=0)
    for r in range(6):
        made = source.rendering(r)
        assert list(made.stems) == ["vocals", "bass", "drums", "other"] and made.sample_rate == 22050
        assert np.abs(made.mixture - sum(made.stems.values())).max() < 1e-6 and np.abs(made.mixture).max() < 1
        assert np.isfinite(made.mixture).all() and made.mixture.shape == (3*4096,) and made.notes
        for k in range(3):
            assert np.array_equal(source[3*r + k], made.mixture[k*4096:(k + 1)*4096]) and level_db(source[3*r + k].numpy()) > -60
        assert all(made.stems[stem].any() == any(n.stem == stem for n in made.notes) for stem in ("vocals", "bass", "other"))

def test_renderings_do_not_depend_on_order_or_workers(RenderedScores):
    source = RenderedScores(seed=2)
    inline = torch.stack([source[i] for i in range(16)])
    assert torch.equal(inline.flip(0), torch.stack([RenderedScores(seed=2)[i] for i in reversed(range(16))]))
    for workers in (0, 2):
        assert torch.equal(inline, torch.cat(list(DataLoader(Subset(source, range(16)), batch_size=4, num_workers=workers))))
    assert torch.equal(inline[9], pickle.loads(pickle.dumps(source))[9])
    assert not torch.equal(inline, torch.stack([RenderedScores(seed=3)[i] for i in range(16)]))

def test_splits_share_neither_pieces_nor_instruments(RenderedScores):
    train, valid, test = (RenderedScores(s) for s in ("train", "valid", "test"))
    names = [{p["name"] for p in s.pieces} for s in (train, valid, test)]
    assert all(names) and not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]
    used = [{p for r in range(12) for p in s.rendering(r).programs.items()} for s in (train, test)]
    assert not used[0] & used[1]
    with pytest.raises(ValueError, match="'dev'.*train, valid, test"): RenderedScores("dev")

def test_test_instruments_are_not_those_of_training():
    from latentalign.data.rendering import INSTRUMENTS
    for stem, programs in INSTRUMENTS.items():
        assert not set(programs["train"]) & set(programs["test"]) and 78 not in programs["train"] + programs["test"]

@pytest.mark.parametrize("program", [0, 4, 24, 32, 40, 73])
def test_the_folded_soundfont_is_in_tune(small, program):
    from latentalign.data.soundfont import Note, play, soundfont
    for pitch in (57, 64, 69, 76):
        wave = play([Note(.1, .8, pitch, 100, "vocals")], program, False, 1., soundfont())
        ratio = strongest(wave[13230:39690], 44100)/(440*2**((pitch - 69)/12))
        assert abs(1200*np.log2(ratio/max(1, round(ratio)))) < 15, pitch

def test_melody_notes_are_true(RenderedScores):
    melody = RenderedScores(seed=1).melody(0, program=4)
    ends = [n.onset + n.duration for n in melody.notes]
    assert all(end <= n.onset for end, n in zip(ends, melody.notes[1:])) and abs(np.abs(melody.mixture).max() - .5) < 1e-4
    rate = melody.sample_rate
    right = 0
    for n in melody.notes:
        ratio = strongest(melody.mixture[int(n.onset*rate):int((n.onset + n.duration)*rate)], rate)/(440*2**((n.pitch - 69)/12))
        right += abs(1200*np.log2(ratio/max(1, round(ratio)))) < 25
    assert right > .9*len(melody.notes)

def test_attacks_come_at_the_onsets(small):
    from latentalign.data.soundfont import Note, play, soundfont
    notes = [Note(.1 + .3*k, .15, 60 + k, 100, "vocals") for k in range(12)]
    envelope = np.abs(play(notes, 4, False, 4., soundfont()))[:4*44100//44*44].reshape(-1, 44).max(1)
    for n in notes:
        near = envelope[int(n.onset*44100/44) - 50:][:150]
        assert abs(np.argmax(near > .2*near[50:].max()) - 50) < 20     # ms

def test_a_whole_piece_holds_its_excerpts_notes(RenderedScores):
    source = RenderedScores(seed=4)
    whole, part = source.whole(1), source.rendering(1)
    assert whole.piece == part.piece and whole.programs == part.programs and len(whole.notes) > len(part.notes)
    assert len(whole.mixture)/22050 > max(n.onset + n.duration for n in whole.notes) and np.abs(whole.mixture).max() < 1
    assert level_db(whole.mixture[-2000:]) < level_db(whole.mixture) - 15          # the end is a tail, not a cut

def test_the_cache_is_read_and_a_damaged_one_is_made_again(small, monkeypatch):
    from latentalign.data import scores
    from latentalign.data.soundfont import cache_folder
    args = small["chorales"], small["tunes"]
    pieces = scores.load_scores(*args)
    path, = cache_folder().glob("scores-*.json.gz")
    with monkeypatch.context() as patch:
        patch.setattr(scores, "parse_piece", lambda *a: pytest.fail("parsed again"))
        assert scores.load_scores(*args) == pieces
    good = {p["name"]: p for p in pieces}
    monkeypatch.setattr(scores, "parse_piece", lambda source, name, voices: good.get(name))
    for damage in (path.read_bytes()[:100], b"", gzip.compress(b"{}"), gzip.compress(json.dumps([]).encode())):
        path.write_bytes(damage)
        with pytest.warns(UserWarning, match="damaged"): assert scores.load_scores(*args) == pieces

CHORALE = "X:1\nM:4/4\nL:1/4\nK:C\n|: C D E F | G A B c | d e f g |1 c4 :|2 A B c- c | c d e f |]\n"

def test_of_endings_the_last_is_played(tmp_path):
    "In a tune, and in all parts of a score that writes its brackets in the first part only; what is tied over a bar of the last ending stays tied."
    pytest.importorskip("music21")
    from music21 import converter
    from latentalign.perception.score_files import read_score
    from latentalign.data.scores import parse_piece
    straight = CHORALE.replace("|1 c4 :|2 ", "| ").replace("|:", "|")
    assert parse_piece(CHORALE, "a", ("melody",)) == parse_piece(straight, "a", ("melody",)) and "c4" not in straight
    twice = parse_piece(CHORALE.replace(" |]", " |1 g4 :|2 e4 |]"), "a", ("melody",))["parts"]["melody"]
    assert twice[-1] == [20, 4, 76] and len(twice) == 20
    score = converter.parse(CHORALE, format="abc")
    score.insert(0, converter.parse(CHORALE.replace("|1", "|").replace("|2", "|").replace("C D", "E E"), format="abc").parts[0])
    score.write("musicxml", path := tmp_path/"two.musicxml")
    found = parse_piece(path, "a", ("one", "two"))["parts"]
    assert len(score.parts[1].recurse().getElementsByClass("RepeatBracket")) == 0 < len(score.parts[0].recurse().getElementsByClass("RepeatBracket"))
    assert [n[2] for n in found["two"]][:2] == [64, 64] and found["one"][2:] == found["two"][2:] == parse_piece(straight, "a", ("melody",))["parts"]["melody"][2:]
    assert read_score(path, part=1).pitches.tolist() == [n[2] for n in found["two"]]

def test_a_rendering_that_diverges_is_drawn_again(RenderedScores, monkeypatch):
    from latentalign.data import rendering as scores
    source, calls, play = RenderedScores(seed=5), [], scores.play
    def fails_once(*args):
        calls.append(args)
        if len(calls) == 1: raise ValueError("program 0 reaches 1e37")
        return play(*args)
    monkeypatch.setattr(scores, "play", fails_once)
    with pytest.warns(UserWarning, match="1e37"): assert np.isfinite(source.rendering(0).mixture).all()

@pytest.mark.parametrize("value", [1e37, np.nan, np.inf])
def test_a_synthesiser_gone_wild_is_refused(small, monkeypatch, value):
    from latentalign.data import soundfont
    wild = type("Wild", (), {"render": lambda self, score, stereo: np.full((2, 88200), value, np.float32)})
    monkeypatch.setattr(soundfont, "synthesizer", lambda *args: wild())
    with pytest.raises(ValueError, match="program 78"): soundfont.play([], 78, False, 1., soundfont.soundfont())

def test_chosen_programs_play_the_same_whatever_was_played_before(small):
    from latentalign.data.rendering import INSTRUMENTS
    from latentalign.data.soundfont import Note, play, soundfont
    font = soundfont()
    programs = [(stem == "drums", p) for stem, parts in INSTRUMENTS.items() for part in parts.values() for p in part]
    keys = lambda drums: range(36, 52) if drums else range(38, 86, 6)
    one = lambda drums, p: play([Note(.05*k, .05, key, 90, "") for k, key in enumerate(keys(drums))], p, drums, .8, font)
    first = {x: one(*x) for x in programs}
    assert all(np.array_equal(first[x], one(*x)) and 0 < np.abs(first[x]).max() < 2 for x in reversed(programs))

def test_a_missing_or_foreign_soundfont_is_named(small, tmp_path):
    from latentalign.data.soundfont import soundfont
    with pytest.raises(ValueError, match="absent.sf2"): soundfont(tmp_path/"absent.sf2")
    (tmp_path/"foreign.sf2").write_bytes(b"not a SoundFont")
    with pytest.raises(ValueError, match="RIFF"): soundfont(tmp_path/"foreign.sf2")
