#!/usr/bin/env python3
"""Fetch free music from Debian's packages for training, as FLAC or Ogg with a list of what it is and under which licence.

    python data/free_music.py                          # everything, 44.1 kHz mono FLAC, into data/free-music and data/stems
    python data/free_music.py /elsewhere --rate 22050  # half the size, for models at 22.05 kHz
    python data/free_music.py --stereo --ogg --packages asc-music

Needs the programs apt-get and dpkg-deb (Debian, Ubuntu) and the Python packages soundfile and soxr. Nothing is installed: each
package is unpacked into a temporary folder. What is there already, in the form asked for, is not fetched again.
"""
import argparse, configparser, fnmatch, json, os, re, shutil, subprocess, sys, tempfile
from pathlib import Path

MUSIC = ("singularity-music", "hyperrogue-music", "planetblupi-music-ogg", "asc-music", "warzone2100-music")
STEMS = ("fretsonfire-songs-sectoid", "fretsonfire-songs-muldjord")   # songs as guitar and everything else
SUFFIXES = (".ogg", ".opus", ".mp3", ".flac", ".wav")
FREE = r"CC0(-1\.0)?|public-domain|CC-BY(-SA)?-\d\.\d|GPL-\d(\.\d)?\+?|LGPL-\d(\.\d)?\+?|MIT|Expat|BSD-[23]-clause|ISC|Artistic-2\.0"
SECONDS = 10.   # what is shorter is a signal of the game, not music


# licences

def is_free(
    licence:str,  # short name, "or" and "and" between several
)->bool:          # may everybody use, change and pass it on, also for money?
    "Whether a licence is known to be free; of several joined by `or` one is enough."
    parts = [re.split(r"\s+and\s+|\s*,\s*", choice.strip()) for choice in re.split(r"\s+or\s+", licence)]
    return any(all(re.fullmatch(FREE, p, re.I) for p in choice) for choice in parts)


def fields(
    paragraph:str,  # of a machine-readable copyright file
)->dict:            # field → text; continued lines joined
    "The fields of one paragraph."
    found = re.findall(r"^([\w-]+):[ \t]*((?:.*)(?:\n[ \t].*)*)", paragraph, re.M)
    return {name.lower(): re.sub(r"\n[ \t]+", "\n", text).strip() for name, text in found}


def licence_in_words(
    text:str,  # a copyright file in free words
)->str:        # short name of the licence of the work; "unknown"
    "The licence that a text names: Creative Commons by its title, MIT by its first sentence, public domain by name."
    plain = re.sub(r"\s+", " ", text)
    if m := re.search(r"Attribution((?:[- ]*(?:Non-?Commercial|Share-?Alike|No-?Deriv\w*))*)(?: licen[cs]e)? (\d\.\d)", plain, re.I):
        named = m[1].lower().replace("-", "")
        return "CC-BY" + "".join(s for word, s in (("noncommercial", "-NC"), ("noderiv", "-ND"), ("sharealike", "-SA")) if word in named) + "-" + m[2]
    if "Permission is hereby granted, free of charge, to any person" in plain: return "MIT"
    if re.search(r"CC0|public domain dedication", plain, re.I): return "CC0-1.0"
    return "unknown"


def rules(
    text:str,  # a Debian copyright file
)->list:       # (patterns, licence, copyright), the later ones come before the earlier
    "What a copyright file says of which files."
    if not re.match(r"Format:.*copyright-format", text): return [(["*"], licence_in_words(text), " ".join(re.findall(r"(?:Copyright )?\(C\)[^\n]*", text, re.I)))]
    found = map(fields, re.split(r"\n\s*\n", text))
    return [(f["files"].split(), f["license"].split("\n")[0].strip(), " ".join(f.get("copyright", "").split())) for f in found if "files" in f and "license" in f]


def rule_of(
    path:str,    # of a file in the package
    rules:list,  # as `rules` gives them
)->tuple:        # licence and copyright; ("unknown", "") where no rule holds
    "The last rule that a path, or an end of it (packages move the folders of their sources), matches."
    parts = path.split("/")
    ends = ["/".join(parts[k:]) for k in range(len(parts))]
    hits = [r for r in rules if any(fnmatch.fnmatch(end, pattern) for end in ends for pattern in r[0])]
    return hits[-1][1:] if hits else ("unknown", "")


# what is in a package

def command(*words, cwd=None)->str:
    "Run a program and return what it says. Raises RuntimeError with its last words if it fails."
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True)
    if done.returncode: raise RuntimeError((done.stderr.strip() or done.stdout.strip() or f"{words[0]} failed").splitlines()[-1])
    return done.stdout


def described(
    path:Path,  # an audio file of a package
)->dict:        # title and artist, where something tells
    "Title and artist, from an album.json or song.ini beside the file or from its own tags."
    import soundfile
    if (path.parent/"album.json").exists():
        for track in json.loads((path.parent/"album.json").read_text())["tracks"]:
            if track["filename"] == path.name: return dict(title=track["title"], artist=track["author"])
    if (path.parent/"song.ini").exists():
        ini = configparser.ConfigParser(interpolation=None)
        ini.read_string((path.parent/"song.ini").read_text(errors="replace").lstrip("\ufeff"))
        return {k: ini["song"][n] for k, n in (("title", "name"), ("artist", "artist")) if n in ini["song"]}
    with soundfile.SoundFile(str(path)) as f: tags = f.copy_metadata()
    return {k: tags[k] for k in ("title", "artist") if tags.get(k)}


def simple(name:str)->str:
    "A name for files: lower case, hyphens."
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def places(
    tree:Path,     # an unpacked package
    package:str,   # its name
)->dict:           # audio file → where it goes in the output, without a suffix
    "The music of a package: files below a folder `music`, or songs with a guitar.ogg and a song.ogg."
    found = sorted(p for p in tree.rglob("*") if p.suffix.lower() in SUFFIXES)
    if package in STEMS:
        stem = {"guitar": "guitar", "song": "backing"}
        return {p: Path("stems", simple(f"{p.parents[1].name} {p.parent.name}"), stem[p.stem]) for p in found if p.stem in stem}
    below = lambda p: p.relative_to(tree).parts[:-1]
    return {p: Path("free-music", package, *map(simple, below(p)[below(p).index("music") + 1:]), simple(p.stem)) for p in found if "music" in below(p)}


# conversion

def convert(
    source:Path,  # audio file
    target:Path,  # .flac or .ogg, written whole or not at all
    rate:int,     # Hz
    stereo:bool,  # keep two channels?
)->float:         # seconds
    "Convert a file; what passes full scale (lossy formats do) is turned down."
    import soundfile, soxr
    wave, own = soundfile.read(str(source), dtype="float32", always_2d=True)
    wave = wave[:, :2] if stereo else wave.mean(1, keepdims=True)
    wave = soxr.resample(wave, own, rate, quality="HQ") if own != rate else wave
    wave = wave/max(1., float(abs(wave).max())/.999)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        with soundfile.SoundFile(str(part), "w", rate, wave.shape[1]) as f:
            for start in range(0, len(wave), 1 << 16): f.write(wave[start:start + (1 << 16)])
        os.replace(part, target)
    finally: part.unlink(missing_ok=True)
    return len(wave)/rate


def unpack_music(
    tree:Path,     # an unpacked package
    package:str,   # its name
    version:str,   # its version
    out:Path,      # output folder
    rate:int, stereo:bool, suffix:str, # form of the output
)->tuple:          # entries of the list, and what was left out with the reason
    "Convert what is free and long enough in a package, and keep its copyright notice."
    import soundfile
    notice, = tree.glob("usr/share/doc/*/copyright")
    known, entries, left_out = rules(notice.read_text(errors="replace")), [], []
    for source, place in places(tree, package).items():
        name = source.relative_to(tree).as_posix()
        licence, owner = rule_of(name, known)
        if not is_free(licence): left_out.append(f"{name} (licence {licence})"); continue
        if soundfile.info(str(source)).duration < SECONDS: left_out.append(f"{name} (under {SECONDS:.0f} s)"); continue
        target = out/place.with_suffix(suffix)
        seconds = convert(source, target, rate, stereo)
        entries.append(dict(file=target.relative_to(out).as_posix(), **{"title": source.stem, "artist": owner} | described(source), licence=licence,
                            copyright=owner, seconds=round(seconds, 2), rate=rate, channels=2 if stereo else 1, package=package, version=version))
    kept = out/"notices"/package
    if entries:
        kept.mkdir(parents=True, exist_ok=True)
        for text in [notice, *tree.rglob("license.txt")]: shutil.copyfile(text, kept/(text.name if text == notice else f"{text.parent.name}-{text.name}"))
    return entries, left_out


def write_list(path:Path, entries:list):
    "The list, one entry a line, replaced in one piece."
    part = path.with_name(f".{os.getpid()}.{path.name}")
    part.write_text("[\n" + ",\n".join(json.dumps(e, ensure_ascii=False) for e in entries) + "\n]\n", encoding="utf-8")
    os.replace(part, path)


def fetch(
    package:str,  # name
    version:str,  # that apt would give
    out:Path, rate:int, stereo:bool, suffix:str,
)->tuple:         # as `unpack_music`
    "Download one package into a temporary folder, and convert what it holds."
    with tempfile.TemporaryDirectory(prefix="free-music-") as folder:
        command("apt-get", "download", f"{package}={version}", cwd=folder)
        deb, = Path(folder).glob("*.deb")
        command("dpkg-deb", "-x", str(deb), f"{folder}/tree")
        deb.unlink()
        return unpack_music(Path(folder)/"tree", package, version, out, rate, stereo, suffix)


def candidate(package:str)->str:
    "The version that apt would download. Raises RuntimeError if it knows none."
    found = re.search(r"^Version: (\S+)", command("apt-cache", "show", "--no-all-versions", package), re.M)
    if not found: raise RuntimeError(f"apt knows no version of {package}")
    return found[1]


def main(words=None)->int:
    "Fetch, convert and list; returns 1 if nothing came."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).resolve().parent, help="folder for free-music/, stems/, notices/ and free-music.json; default: that of this script")
    parser.add_argument("--rate", type=int, default=44100, help="sample rate, Hz (44100)")
    parser.add_argument("--stereo", action="store_true", help="keep two channels")
    parser.add_argument("--ogg", action="store_true", help="write Ogg Vorbis, a fifth of the size, instead of FLAC")
    parser.add_argument("--packages", nargs="+", default=MUSIC + STEMS, metavar="NAME", help="which (all of " + ", ".join(MUSIC + STEMS) + ")")
    o = parser.parse_args(words)
    if o.rate < 8000: parser.error(f"--rate is in Hz and at least 8000, got {o.rate}")
    if unknown := sorted(set(o.packages) - set(MUSIC + STEMS)): parser.error(f"unknown package {unknown[0]!r}; known: {', '.join(MUSIC + STEMS)}")
    if missing := [name for name in ("apt-get", "apt-cache", "dpkg-deb") if not shutil.which(name)]:
        print(f"{', '.join(missing)} missing: this needs Debian or a relative of it. Train on rendered scores, or give any folder of recordings as `data`.", file=sys.stderr)
        return 1
    o.out.mkdir(parents=True, exist_ok=True)
    path, suffix = o.out/"free-music.json", ".ogg" if o.ogg else ".flac"
    listed = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    for package in o.packages:
        try:
            version, same = candidate(package), [e for e in listed if e["package"] == package]
            wanted = (version, o.rate, 1 + o.stereo, suffix)
            if same and all((e["version"], e["rate"], e["channels"], Path(e["file"]).suffix) == wanted and (o.out/e["file"]).exists() for e in same):
                print(f"{package} {version}: there already"); continue
            entries, left_out = fetch(package, version, o.out, o.rate, o.stereo, suffix)
        except (RuntimeError, OSError) as e: print(f"{package}: skipped: {e}", file=sys.stderr); continue
        for e in same:
            if e["file"] not in {x["file"] for x in entries}: (o.out/e["file"]).unlink(missing_ok=True)
        listed = [e for e in listed if e["package"] != package] + entries
        write_list(path, listed)
        licences = ", ".join(sorted({e["licence"] for e in entries})) or "nothing free"
        print(f"{package} {version}: {len(entries)} files, {sum(e['seconds'] for e in entries)/60:.1f} minutes, {licences}")
        for line in left_out: print(f"    left out: {line}")
    print(f"{len(listed)} files, {sum(e['seconds'] for e in listed)/3600:.2f} hours listed in {path}")
    return 0 if listed else 1


if __name__ == "__main__": sys.exit(main())
