"""The command line: what it writes, what it leaves alone, and how it says what went wrong."""
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from latentalign import Autoencoder
from latentalign.tools import coding, command, mixing
from latentalign.tools.latent_files import Latents, load_latents, save_latents
from latentalign.tools.command import main
from latentalign.base.files import RECORDS

PROGRAM = "from latentalign.tools.command import main; raise SystemExit(main())"
TOP = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    "Much faster beside other programs, here and in the programs started below."
    threads, os.environ["OMP_NUM_THREADS"] = torch.get_num_threads(), "1"
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    del os.environ["OMP_NUM_THREADS"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "A folder with two saved models of the same kind."
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "other")): Autoencoder.from_preset("tiny", seed=seed).save_pretrained(folder/name)
    return folder


def tone(path, rate, channels=1, samples=20_011):
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(samples)[:, None]/rate
    soundfile.write(path, .3*np.sin(2*np.pi*(440 + 110*np.arange(channels))*t), rate)


@pytest.fixture
def work(tmp_path, monkeypatch):
    "The current folder: `music` with two good files and four bad ones."
    monkeypatch.chdir(tmp_path)
    tone(Path("music/good.wav"), 44100)
    tone(Path("music/deep/er/stereo.FLAC"), 48000, channels=2, samples=30_011)
    tone(Path("music/short.wav"), 44100, samples=99)
    Path("music/broken.wav").write_bytes(b"RIFF and then nothing")
    Path("music/empty.wav").touch()
    soundfile.write("music/nan.wav", np.full(20_000, np.nan), 44100, "FLOAT")
    Path("music/notes.txt").write_text("not looked at")
    return tmp_path


def run(line, *, program=PROGRAM):
    "Type `latentalign` and a line; returns status, standard output, standard error."
    done = subprocess.run([sys.executable, "-c", program, *line.split()], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(TOP)})
    return done.returncode, done.stdout, done.stderr


def files(folder): return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*") if p.is_file() and p.name != RECORDS)
def times(folder): return {p: (Path(folder)/p).stat().st_mtime_ns for p in files(folder)}


def test_encode_goes_past_bad_files_and_names_them(work, models):
    status, out, err = run(f"encode music --out z --model {models}/one")
    assert status == 1 and out == ""
    assert files("z") == ["deep/er/stereo.safetensors", "good.safetensors"]
    told = err.splitlines()
    assert "2 written, 4 failed:" in told
    for name, why in (("broken", "cannot read"), ("empty", "cannot read"), ("short", "too short"), ("nan", "NaN")):
        assert sum(f"music/{name}.wav" in line and why in line for line in told) == 1, err
    assert len(told) == 5 and "Traceback" not in err
    latents = load_latents("z/deep/er/stereo.safetensors")
    assert latents.z.shape[:2] == (2, 64) and (latents.samples, latents.sample_rate) == (30_011, 48000)


def test_resume_leaves_alone_what_is_there(work, models, capsys):
    line = f"encode music --out z --model {models}/one".split()
    assert main(line) == 1
    before = times("z")
    Path("z/good.safetensors").unlink()
    assert main(line) == 1
    assert "1 written, 1 there already" in capsys.readouterr().err
    after = times("z")
    assert after.keys() == before.keys()
    assert {p for p in after if after[p] != before[p]} == {"good.safetensors"}
    assert main([*line, "--overwrite"]) == 1
    assert all(t > after[p] for p, t in times("z").items())


def test_the_model_is_loaded_once(work, models, monkeypatch):
    calls, load = [], coding.load_model
    monkeypatch.setattr(coding, "load_model", lambda *args: calls.append(args) or load(*args))
    main(f"reconstruct music --out y --model {models}/one".split())
    assert len(calls) == 1


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_round_trip_keeps_length_rate_and_channels(work, models, kind):
    sounds = "music/good.wav music/deep/er/stereo.FLAC"
    assert main(f"encode {sounds} --out z --model {models}/one".split()) == 0
    assert main(f"decode z --out y --model {models}/one --format {kind}".split()) == 0
    assert main(f"reconstruct {sounds} --out r --model {models}/one --format {kind}".split()) == 0
    assert files("y") == files("r") == [f"good.{kind}", f"stereo.{kind}"]
    for source in sounds.split():
        name, given = f"{Path(source).stem}.{kind}", soundfile.info(source)
        for folder in ("y", "r"):
            got = soundfile.info(f"{folder}/{name}")
            assert (got.frames, got.samplerate, got.channels) == (given.frames, given.samplerate, given.channels)
        assert np.array_equal(soundfile.read(f"y/{name}")[0], soundfile.read(f"r/{name}")[0])


def test_steps_and_seed_reach_the_decoder(work, models):
    ae = Autoencoder.from_pretrained(models/"one")
    assert main(f"encode music/good.wav --out z --model {models}/one".split()) == 0
    assert main(f"decode z --out y --model {models}/one --steps 2 --seed 5".split()) == 0
    latents = load_latents("z/good.safetensors")
    wanted = ae.decode(latents.z[0], length=20_011, steps=2, seed=5, sample_rate=44100)
    assert np.array_equal(soundfile.read("y/good.wav", dtype="float32")[0], wanted.numpy())


def test_foreign_and_damaged_latents_are_refused(work, models, capsys):
    assert main(f"encode music/good.wav --out z --model {models}/one".split()) == 0
    assert main(f"decode z --out y --model {models}/other".split()) == 1
    assert "another model" in capsys.readouterr().err and not Path("y").exists()

    whole = Path("z/good.safetensors").read_bytes()
    for name, content in (("cut", whole[:-100]), ("header", whole[:20]), ("empty", b""), ("text", b"z = 3")):
        Path(f"z/{name}.safetensors").write_bytes(content)
    save_file({"z": torch.zeros(1, 64, 9)}, "z/plain.safetensors")
    save_file({"z": torch.zeros(1, 64, 9)}, "z/newer.safetensors", metadata={"latentalign": '{"version": 99}'})
    save_file({"x": torch.zeros(1, 64, 9)}, "z/nameless.safetensors",
              metadata={"latentalign": '{"version": 1, "samples": 9, "sample_rate": 9, "model": ""}'})
    save_latents("z/flat.safetensors", Latents(torch.zeros(64, 9), 2000, 22050, ""))
    assert main(f"decode z --out y --model {models}/one".split()) == 1
    err = capsys.readouterr().err
    assert "1 written, 8 failed:" in err and files("y") == ["good.wav"]
    for name in ("cut", "header", "empty", "text", "plain", "newer", "nameless", "flat"): assert f"z/{name}.safetensors" in err
    assert "newer latentalign" in err and "(64, 9)" in err


def test_name_collisions_stop_before_any_work(work, models, capsys):
    tone(Path("other/good.wav"), 44100)
    for line, named in ((f"encode music other --out z --model {models}/one", ("music/good.wav", "other/good.wav", "z/good")),
                        (f"reconstruct music/good.wav --out music --model {models}/one", ("music/good.wav", "overwritten"))):
        before = times(".")
        assert main(line.split()) == 2
        err = capsys.readouterr().err
        assert all(name in err for name in named) and times(".") == before


def test_sounds_of_one_name_in_two_formats_both_get_a_result(work, models):
    for suffix in ("mp3", "flac"): tone(Path(f"music/good.{suffix}"), 44100)
    assert main(f"encode music/good.wav music/good.mp3 music/deep/../good.flac music/good.mp3 --out z --model {models}/one".split()) == 0
    assert files("z") == [f"good.{s}.safetensors" for s in ("flac", "mp3", "wav")]


def test_results_inside_the_searched_folder_are_no_inputs(work, models):
    line = f"reconstruct music/deep --out music/deep/y --model {models}/one".split()
    assert main(line) == main(line) == 0
    assert files("music/deep") == ["er/stereo.FLAC", "y/er/stereo.wav"]
    assert main(f"encode music/deep --out music --model {models}/one".split()) == 0
    assert Path("music/er/stereo.safetensors").exists() and Path("music/y/er/stereo.safetensors").exists()


@pytest.mark.parametrize("line, words", [
    ("encode music --out z --model nowhere", ["'nowhere'", "bundled"]),
    ("encode music --out z --model public:nobody", ["'nobody'", "lin-cae", "music2latent"]),
    ("encode music --out z --model public:m2l=nowhere.pth", ["nowhere.pth"]),
    ("encode absent.wav --out z --model MODEL", ["absent.wav"]),
    ("encode music/deep/er/none --out z --model MODEL", ["music/deep/er/none"]),
    ("decode music --out z --model MODEL", ["music", ".safetensors"]),
    ("encode music --out z --model MODEL --device abacus", ["'abacus'"]),
    ("info nowhere", ["'nowhere'"]),
    ("info music/good.wav", ["music/good.wav"]),
    ("info music", ["music", "config.json"])])
def test_wrong_use_is_named(work, models, capsys, line, words):
    assert main(line.replace("MODEL", f"{models}/one").split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("latentalign: ") and len(err.splitlines()) == 1, err
    assert all(word in err for word in words), err
    assert not Path("z").exists()


@pytest.mark.parametrize("line, words", [
    ("", ["COMMAND"]), ("encore music", ["'encore'", "encode", "decode", "reconstruct", "info"]),
    ("encode music", ["--out"]), ("encode --out z", ["FILE|FOLDER"]), ("encode music --out z --stepz 2", ["--stepz"]),
    ("decode z --out y --steps 0", ["'0'", "1 or more"]), ("decode z --out y --seed -1", ["'-1'"]),
    ("decode z --out y --steps many", ["'many'"]), ("decode z --out y --format mid", ["'mid'", "wav", "flac", "ogg"])])
def test_argument_errors_list_what_is_known(capsys, line, words):
    with pytest.raises(SystemExit) as stop: main(line.split())
    err = capsys.readouterr().err
    assert stop.value.code == 2 and all(word in err for word in words), err


def test_info(work, models, capsys):
    assert main(["encode", "music/deep", "--out", "z", "--model", f"{models}/one"]) == 0
    assert main(["info", f"{models}/one"]) == 0
    model = capsys.readouterr().out
    for word in ("22050 Hz", "64 channels", "4 times fewer", "256 frames", "2,782,416", "fingerprint"): assert word in model
    assert main(["info", "z/er/stereo.safetensors"]) == 0
    latents = capsys.readouterr().out
    for word in ("48000 Hz", "30011 samples", "channels: 2", "stereo.FLAC", f"{models}/one"): assert word in latents
    assert f"({model.split()[-1]})" in latents, "the fingerprint says which model made the latents"


def test_mix_decodes_the_weighted_sum_of_latents(work, models):
    tone(Path("a.wav"), 44100, channels=2)
    tone(Path("b.wav"), 22050, samples=10_005)                     # as long as a, at another rate, mono
    assert main(f"mix a.wav b.wav --gains 0.7 -1 --out y.wav --model {models}/one --steps 2 --seed 3".split()) == 0
    ae = Autoencoder.from_pretrained(models/"one")
    a, b = (ae.encode(soundfile.read(f, dtype="float32", always_2d=True)[0].T, sample_rate=r) for f, r in (("a.wav", 44100), ("b.wav", 22050)))
    for channel in (0, 1):
        wanted = ae.decode(.7*a[channel] - b[0], length=20_011, steps=2, seed=3, sample_rate=44100)
        np.testing.assert_allclose(soundfile.read("y.wav")[0][:, channel], wanted, atol=1e-5)
    assert soundfile.info("y.wav").samplerate == 44100


def test_subtract_undoes_mix(work, models):
    for name, channels in (("a", 1), ("b", 2), ("c", 1)): tone(Path(f"{name}.wav"), 44100, channels)
    assert main(f"encode a.wav b.wav c.wav --out z --model {models}/one".split()) == 0
    assert main(f"mix a.wav z/b.safetensors c.wav --out abc.safetensors --model {models}/one".split()) == 0
    assert main(f"subtract abc.safetensors a.wav z/c.safetensors --out rest.safetensors --model {models}/one".split()) == 0
    np.testing.assert_allclose(load_latents("rest.safetensors").z, load_latents("z/b.safetensors").z, atol=1e-4)


def test_a_mixture_that_is_there_is_left_alone(work, models, capsys, monkeypatch):
    line = f"mix music/good.wav --out y.flac --model {models}/one".split()
    assert main(line) == 0
    before = Path("y.flac").stat().st_mtime_ns
    assert main(line) == 0 and Path("y.flac").stat().st_mtime_ns == before and "--overwrite" in capsys.readouterr().err
    assert main([*line, "--overwrite"]) == 0 and Path("y.flac").stat().st_mtime_ns > before


@pytest.mark.parametrize("line, words", [
    ("mix music/good.wav --length long --out y.wav --model MODEL", ["longest, first, shortest", "'long'"]),
    ("mix music/good.wav --length 0 --out y.wav --model MODEL", ["'0'"]),
    ("mix music/good.wav --at 0 1 --out y.wav --model MODEL", ["times (--at)", "got 2"]),
    ("mix music/good.wav --at -1 --out y.wav --model MODEL", ["music/good.wav", "-1"]),
    ("mix music/good.wav --headroom -1 --out y.wav --model MODEL", ["--headroom", "-1"]),
    ("mix music/good.wav --gains 1e39 --out y.wav --model MODEL", ["1e+39"]),
    ("mix music/good.wav --gains 1 2 --out y.wav --model MODEL", ["1 gains", "got 2"]),
    ("mix music/good.wav --gains nan --out y.wav --model MODEL", ["finite", "nan"]),
    ("mix music/good.wav --out y.mid --model MODEL", ["'.mid'", ".flac", ".safetensors"]),
    ("mix music/good.wav --out music/../music/good.wav --model MODEL", ["overwritten"]),
    ("mix music/nan.wav --out y.wav --model MODEL", ["music/nan.wav", "NaN"]),
    ("mix absent.wav --out y.wav --model MODEL", ["absent.wav", "no such file"]),
    ("subtract z.safetensors music/good.wav --out y.wav --model MODEL", ["z.safetensors", "another model"])])
def test_mixtures_that_cannot_be(work, models, capsys, line, words):
    save_latents("z.safetensors", Latents(torch.zeros(1, 64, 9), 2000, 22050, "another"))
    assert main(line.replace("MODEL", f"{models}/one").split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("latentalign: ") and len(err.splitlines()) == 1 and all(word in err for word in words), err
    assert not list(Path().glob("y.*"))


def test_channels_that_do_not_go_together(models):
    sounds = [Latents(torch.zeros(n, 64, 9), 9, 9, "") for n in (2, 3)]
    with pytest.raises(ValueError, match="2, 3"): mixing.combine_latents(sounds, [1., 1.])
    with pytest.raises(ValueError, match="different models"): mixing.combine_latents([sounds[0], Latents(torch.zeros(2, 64, 9), 9, 9, "x")], [1., 1.])


def test_every_command_has_help_and_its_place(capsys):
    for name in command.COMMANDS:
        with pytest.raises(SystemExit) as stop: main([name, "--help"])
        assert stop.value.code == 0 and command.COMMANDS[name][1] in " ".join(capsys.readouterr().out.split())


def test_help_does_not_import_torch():
    program = PROGRAM.replace("raise SystemExit(main())", "import sys\ntry: main()\nexcept SystemExit: print('torch' in sys.modules)")
    for line in ("--help", "encode --help"):
        status, out, err = run(line, program=program)
        assert status == 0 and out.splitlines()[-1] == "False", out + err


KILLED = """
import os, signal
from latentalign.base import audio
from latentalign.tools import coding, command
from latentalign.base import files
{patch}
raise SystemExit(command.main())
"""
BEFORE_RENAMING = """
calls = []
def fsync(f):
    calls.append(f)
    if len(calls) == 4: os.kill(os.getpid(), signal.SIGKILL)
files.os.fsync = fsync
"""
AFTER_THE_FIRST_BLOCK = """
write = audio.soundfile.SoundFile.write
def half(self, data):
    write(self, data[:1000]); self.flush()
    os.kill(os.getpid(), signal.SIGKILL)
audio.soundfile.SoundFile.write = half
"""


@pytest.mark.parametrize("verb, patch, whole", [("encode", BEFORE_RENAMING, 1), ("reconstruct", BEFORE_RENAMING, 1),
                                                ("reconstruct", AFTER_THE_FIRST_BLOCK, 0)])
def test_kill_9_leaves_no_half_file(work, models, verb, patch, whole):
    for i in range(3): tone(Path(f"three/{i}.wav"), 44100)
    line = f"{verb} three --out out --model {models}/one"
    status, _, err = run(line, program=KILLED.format(patch=patch))
    assert status == -signal.SIGKILL, err
    seen = [p for p in files("out") if not Path(p).name.startswith(".")]
    assert len(seen) == whole
    before = times("out")
    assert main(line.split()) == 0
    results = [p for p in files("out") if not Path(p).name.startswith(".")]
    assert len(results) == 3 and all(times("out")[p] == before[p] for p in seen) and results == files("out"), "what the killed one left is swept"
    for p in results:
        if verb == "encode": assert load_latents(f"out/{p}").samples == 20_011
        else: assert soundfile.info(f"out/{p}").frames == 20_011


def test_ctrl_c_leaves_nothing_half_and_says_how_to_go_on(work, models):
    for i in range(40): tone(Path(f"many/{i:02}.wav"), 44100, samples=200_003)
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *f"encode many --out z --model {models}/one".split()],
                               stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(TOP)},
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))  # ignored in a shell's background
    until = time.time() + 60
    while not list(Path().glob("z/[0-9]*")) and process.poll() is None and time.time() < until: time.sleep(.02)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "stopped" in err and "Traceback" not in err, err
    done = files("z")
    assert 0 < len(done) < 40 and not any(Path(p).name.startswith(".") for p in done)
    for p in done: load_latents(f"z/{p}")


FULL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
"""
NOISE = """
import numpy
coding.encode_file = lambda opened, path: coding.Latents(None, 0, 44100, opened.mark)
coding.decode_latents = lambda *args: numpy.random.default_rng(0).uniform(-.5, .5, (1, 400_000))
"""


@pytest.mark.parametrize("kind", ["wav", "ogg"])
def test_full_disk_is_told_and_keeps_the_old_file(work, models, kind):
    tone(Path("music/long.wav"), 44100, samples=400_000)
    line = f"reconstruct music/long.wav --out y --model {models}/one --format {kind}"
    Path("y").mkdir()
    tone(Path(f"y/long.{kind}"), 44100, samples=500)
    old = Path(f"y/long.{kind}").read_bytes()
    patch = FULL_DISK + NOISE
    status, _, err = run(f"{line} --overwrite", program=KILLED.format(patch=patch))
    assert status == 1 and "could not write" in err and f"y/long.{kind}" in err, err
    assert Path(f"y/long.{kind}").read_bytes() == old and files("y") == [f"long.{kind}"]


# ---- what made a result

@pytest.mark.parametrize("line, other, told", [
    ("encode music/good.wav", "--model MODELS/other", "model was"), ("reconstruct music/good.wav", "--model MODELS/other", "model was"),
    ("reconstruct music/good.wav", "--steps 2", "steps was 1, now 2"), ("reconstruct music/good.wav", "--seed 1", "seed was 0, now 1"),
    ("reconstruct music/good.wav", "--headroom 3", "headroom was None, now 3.0"), ("decode z", "--seed 1", "seed was 0, now 1")])
def test_results_of_other_settings_are_refused_and_named(work, models, capsys, line, other, told):
    if line == "decode z": assert main(f"encode music/good.wav --out z --model {models}/one".split()) == 0
    line, other = f"{line} --out o --model {models}/one".split(), other.replace("MODELS", str(models)).split()
    assert main(line) == 0
    before = times("o")
    assert main(line) == 0 and times("o") == before
    assert main(line + other) == 2 and told in capsys.readouterr().err and times("o") == before
    assert main([*line, *other, "--overwrite"]) == 0 and times("o") != before
    assert main(line + other) == 0 and main(line) == 2, "now the other ones are there"


def test_a_result_of_another_input_is_made_again_and_a_foreign_one_is_refused(work, models, capsys):
    tone(Path("music/more.wav"), 44100)
    line = f"reconstruct music/good.wav music/more.wav --out o --model {models}/one".split()
    assert main(line) == 0
    before = times("o")
    wave, rate = soundfile.read("music/good.wav")
    soundfile.write("music/good.wav", -wave, rate)                                 # as long, and as many bytes
    assert main(line) == 0 and "1 of them again" in capsys.readouterr().err
    assert {name for name in before if times("o")[name] != before[name]} == {"good.wav"}
    soundfile.write("o/more.wav", wave, rate)
    assert main(line) == 2 and "o/more.wav: it has been changed" in capsys.readouterr().err
    (Path("o")/RECORDS).unlink()
    assert main(line) == 2 and "nothing beside it tells what made it" in capsys.readouterr().err


def test_mixtures_know_their_gains_and_inputs(work, models, capsys):
    tone(Path("b.wav"), 44100)
    line = f"mix music/good.wav b.wav --out y.wav --model {models}/one --gains"
    assert main(f"{line} 1 -6dB".split()) == 0
    before = times(".")
    assert main(f"{line} 1 {10**(-6/20)!r}".split()) == 0 and times(".") == before, "the same gain in other words"
    assert main(f"{line} 1 -5dB".split()) == 2 and "gains was" in capsys.readouterr().err
    tone(Path("b.wav"), 44100, samples=20_000)
    assert main(f"{line} 1 -6dB".split()) == 0 and "b.wav has changed" in capsys.readouterr().err and times(".")["y.wav"] > before["y.wav"]


def test_latents_name_their_model_and_say_when_they_are_damaged(work, models, capsys, monkeypatch):
    assert main(f"encode music/good.wav --out z --model {models}/one".split()) == 0
    (work/"elsewhere").mkdir(); monkeypatch.chdir(work/"elsewhere")
    assert main("decode ../z --out y".split()) == 0 and soundfile.info("y/good.wav").frames == 20_011
    latents, data = load_latents("../z/good.safetensors"), Path("../z/good.safetensors").read_bytes()
    assert (latents.name, latents.source["name"], latents.frame_rate) == (str((models/"one").resolve()), "good.wav", 22050/256)
    for k in range(0, len(data) - 400, len(data)//40):                             # one bit in forty places
        Path("bad.safetensors").write_bytes(data[:k] + bytes([data[k] ^ 4]) + data[k + 1:])
        with pytest.raises(ValueError, match="bad.safetensors"):
            if torch.equal(load_latents("bad.safetensors").z, latents.z) and load_latents("bad.safetensors") != latents: raise ValueError("bad.safetensors: only a name differs")
    for changes in (dict(samples=10**12), dict(sample_rate=1), dict(sample_rate=2_000_000_000), dict(samples=0), dict(samples=1.5), dict(samples=True), dict(frame_rate=float("inf"))):
        save_latents("bad.safetensors", dataclasses.replace(latents, **changes))
        with pytest.raises(ValueError, match="bad.safetensors"): load_latents("bad.safetensors")


# ---- names

def test_folders_hide_no_models_and_home_is_understood(work, models, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(work))
    Autoencoder.from_preset("tiny").save_pretrained("mine")
    for name in ("lin", "someone"): Path(name).mkdir()
    assert main("info lin".split()) == 0 and main("info ~/mine".split()) == 0
    assert main("encode ~/music/good.wav --out ~/z --model ~/mine".split()) == 0 and Path("z/good.safetensors").exists() and not Path("~").exists()
    capsys.readouterr()
    assert main("info someone/model".split()) == 2 and "the Hub says" in capsys.readouterr().err, "asked for on the Hub"


def test_a_link_to_itself_is_one_failed_file(work, models, capsys):
    tone(Path("in/a.wav"), 44100)
    os.symlink("loop.wav", "in/loop.wav")
    assert main(f"encode in --out z --model {models}/one".split()) == 1 and files("z") == ["a.safetensors"]
    err = capsys.readouterr().err
    assert "1 written, 1 failed" in err and "in/loop.wav" in err


def test_names_that_cannot_be_written_are_refused_and_others_do_nothing(work, models, capsys):
    tone(Path("in/a\x1b[31m\u202e.wav"), 44100)
    Path("in/b\x1b[0m.wav").write_bytes(b"no sound")
    assert main(f"encode in --out z --model {models}/one".split()) == 1
    err = capsys.readouterr().err
    assert r"in/b\x1b[0m.wav" in err and "\x1b" not in err
    tone(Path("in/cafe.wav"), 44100)
    os.rename("in/cafe.wav", b"in/caf\xe9.wav")
    for given in ("in", os.fsdecode(b"in/caf\xe9.wav")):
        assert main(["encode", given, "--out", "y", "--model", f"{models}/one"]) == 2 and r"caf\udce9.wav" in capsys.readouterr().err and not Path("y").exists()


def test_results_have_the_permissions_that_the_user_gives(work, models):
    before = os.umask(0o027)
    try: assert main(f"encode music/good.wav --out z --model {models}/one".split()) == main(f"decode z --out y --model {models}/one".split()) == 0
    finally: os.umask(before)
    assert {oct(p.stat().st_mode & 0o777) for folder in ("z", "y") for p in Path(folder).iterdir()} == {"0o640"}


# ---- lengths and levels

def test_mixtures_of_other_lengths_are_those_of_sounds_filled_up_with_silence(work, models, capsys):
    a, b = (np.random.default_rng(k).uniform(-.2, .2, n) for k, n in enumerate((30_000, 22_050)))
    for name, wave in (("a", a), ("b", b), ("late", np.pad(b, (11_025, 0))), ("filled", np.pad(b, (0, 7_950))), ("cut", a[:22_050]), ("longer", np.pad(a, (0, 3_075)))): soundfile.write(f"{name}.wav", wave, 22_050)
    same = lambda one, other: np.testing.assert_allclose(load_latents(f"{one}.safetensors").z, load_latents(f"{other}.safetensors").z, atol=1e-6)
    for words in ("mix a.wav b.wav --out x0", "mix a.wav filled.wav --out y0", "mix b.wav a.wav --out x1", "mix filled.wav a.wav --out y1", "mix a.wav b.wav --length shortest --out x2", "mix cut.wav b.wav --out y2",
                  "mix a.wav b.wav --at 0 0.5 --out x3", "mix longer.wav late.wav --out y3", "subtract b.wav a.wav --out x4", "subtract b.wav cut.wav --out y4", "mix a.wav b.wav --length 1.5 --at 0 0.5 --out x5"):
        assert main(f"{words}.safetensors --model {models}/one".split()) == 0
    for k in range(5): same(f"x{k}", f"y{k}")
    assert [load_latents(f"x{k}.safetensors").samples for k in range(6)] == [30_000, 30_000, 22_050, 33_075, 22_050, 33_075]
    same("x5", "x3")
    err = capsys.readouterr().err
    assert "b.wav ends at 1.000 s: it is filled up with silence at 1.361 s" in err and "a.wav ends at 1.361 s: it is cut off at 1.000 s" in err


def test_what_clips_is_told_with_its_peak_and_can_be_turned_down(work, capsys):
    line = f"mix music/good.wav --model lin --gains 40dB --out"
    assert main(f"{line} loud.wav".split()) == 0 and "clips" not in capsys.readouterr().err
    peak = np.abs(soundfile.read("loud.wav")[0]).max()
    assert peak > 1 and main(f"{line} loud.flac".split()) == 0
    err = capsys.readouterr().err
    assert f"its peak is {peak:.3g} times full scale" in err and f"{20*np.log10(peak):+.1f} dB" in err
    for options, wanted in (("--headroom 0", 1.), ("--headroom 6", 10**-.3), ("--normalize", 1.), ("--normalize --headroom 1", 10**-.05)):
        assert main(f"{line} quiet.flac --overwrite {options}".split()) == 0 and "clips" not in capsys.readouterr().err
        assert np.abs(soundfile.read("quiet.flac")[0]).max() == pytest.approx(wanted, abs=1e-4)
    assert main(f"encode music/good.wav --out z --model lin".split()) == 0
    for verb, given in (("reconstruct", "music/good.wav"), ("decode", "z")):
        assert main(f"{verb} {given} --out {verb} --normalize --headroom 3".split() + ["--model", "lin"]) == 0
        assert np.abs(soundfile.read(f"{verb}/good.wav")[0]).max() == pytest.approx(10**-.15, abs=1e-5)


def test_stereo_comes_through_a_pipe(work, models):
    os.mkfifo("pipe.wav")
    writer = threading.Thread(target=lambda: Path("pipe.wav").write_bytes(Path("music/deep/er/stereo.FLAC").read_bytes()))
    writer.start()
    assert main(f"encode pipe.wav --out z --model {models}/one".split()) == 0
    writer.join()
    assert main(f"encode music/deep/er/stereo.FLAC --out z --model {models}/one".split()) == 0
    assert torch.equal(load_latents("z/pipe.safetensors").z, load_latents("z/stereo.safetensors").z) and len(load_latents("z/pipe.safetensors").z) == 2


# ---- a core install

WITHOUT = """
import sys
gone = {"accelerate", "torchaudio", "matplotlib", "PIL", "papermill", "music21", "symusic", "torchcrepe", "torchdiffeq", "visqol", "numba", "transformers", "ipywidgets", "scipy", "mtrf", "h5py"}
class Without:
    def __init__(self, finder): self.finder = finder
    def find_spec(self, name, *rest): return None if name.partition(".")[0] in gone else self.finder.find_spec(name, *rest)
sys.meta_path[:] = [Without(f) for f in sys.meta_path]
from latentalign.tools.command import main
for line in sys.argv[1:]:
    try: status = main(line.split())
    except SystemExit as stop: status = stop.code
    print("STATUS", line.split()[0], status, flush=True); print("STATUS", line.split()[0], status, file=sys.stderr, flush=True)
"""


def test_a_core_install_names_the_extra_and_has_help(work, models):
    lines = ["evaluate lin", "listen lin --out o.html", "reproduce --help", "evaluate --help", "surprisal --help", f"encode music/good.wav --out z --model {models}/one"]
    done = subprocess.run([sys.executable, "-c", WITHOUT, *lines], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(TOP)})
    assert [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("STATUS")] == ["2", "2", "0", "0", "0", "0"], done.stdout + done.stderr
    assert done.stderr.count("needs `pip install 'latentalign[eval]'`") >= 2 and "Traceback" not in done.stderr and Path("z/good.safetensors").exists()


def test_what_only_compares_imports_no_accelerate_and_a_soundfont_no_torch():
    script = "import sys, latentalign.{0}; print({1!r} in sys.modules)"
    for module, heavy in (("evaluation.comparison", "accelerate"), ("data.soundfont", "torch"), ("base.files", "torch"), ("base.containers", "numpy")):
        done = subprocess.run([sys.executable, "-c", script.format(module, heavy)], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(TOP)})
        assert done.stdout.strip() == "False", (module, done.stdout + done.stderr)
