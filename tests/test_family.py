"""A family in a given time on a machine that has PyTorch and little else: killed, resumed, measured and packed."""
import json
import os
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from latentalign import Autoencoder
from latentalign.tools import family
from latentalign.training import loop as training
from latentalign.data.pool import write_pack
from latentalign.base.models import load_weights
from latentalign.training.objective import objective_of
from latentalign.training.run import held_out_clips, held_out_error, start_model, train, training_source

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.usefixtures('one_thread')
TOY = 'model.code.width=8 train.batch_size=2 train.log_every=5 train.checkpoint_every=5 train.warmup=5 pool=8 train.compile=false'
WORDS = f'--ratio 16 --minutes 20 --size large --device cpu --only m2l-0 lin-0 --changes'.split() + [TOY]

# what is asked of the network, of notebooks or of renderers is not to be had: as if it were not installed
ALONE = textwrap.dedent('''
    import sys
    HAVE = {'torch', 'numpy', 'soundfile', '_soundfile', '_soundfile_data', 'soxr', 'einops', 'safetensors', 'latentalign'}
    HAVE |= {'cffi', '_cffi_backend', 'pycparser', 'filelock', 'typing_extensions', 'sympy', 'mpmath', 'networkx', 'jinja2', 'markupsafe', 'fsspec', 'triton', 'nvidia', 'torchgen', 'functorch'}
    class Only:
        def __init__(self, finder): self.finder = finder
        def find_spec(self, name, *rest):
            first = name.partition('.')[0]
            return self.finder.find_spec(name, *rest) if first in HAVE | set(sys.stdlib_module_names) or first.startswith('_sysconfigdata') else None
        def __getattr__(self, name): return getattr(self.finder, name)
    sys.meta_path[:] = [Only(f) for f in sys.meta_path if hasattr(f, 'find_spec')]
    for name in ('accelerate', 'tqdm', 'huggingface_hub', 'music21', 'symusic', 'pretty_midi', 'matplotlib', 'scipy'):
        try: __import__(name)
        except ModuleNotFoundError: continue
        raise SystemExit(f'{name} is not hidden')
    import torch
    torch.set_num_threads(1)
    from latentalign.tools import family
    from latentalign.training import loop as training
    training.plan_steps = lambda *given: 30
    real = family.share_out
    def brief(spare, around, per_step, wanted):
        assert real(spare, around, per_step, wanted) and 0 < spare < 1140 and around > 0
        return {m: .03 for m in wanted}
    family.LEAST_STEPS, family.share_out = 5, brief
    family.main(sys.argv[1:])
''')


def tones(count, seed):
    "Excerpts of two seconds: decaying harmonic tones."
    rng, t = np.random.default_rng(seed), np.arange(44100) / 22050
    return np.stack([.1 * sum(np.sin(2 * np.pi * k * f * t) / k for k in range(1, 8)) * np.exp(-t) for f in rng.uniform(100, 900, count)]).astype(np.float32)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    "An empty cache with a pack in it."
    folder = tmp_path_factory.mktemp('machine')
    write_pack(folder / 'pack-22050.npz', {'train': tones(8, 0), 'valid': tones(3, 1), 'test': tones(2, 2)}, 22050)
    return folder


@pytest.fixture(scope='module')
def run(place):
    "A run that is killed in its first training and goes on."
    def start():
        env = os.environ | {'PYTHONPATH': str(ROOT), 'LATENTALIGN_CACHE': str(place), 'OMP_NUM_THREADS': '1'}
        return subprocess.Popen([sys.executable, '-c', ALONE, *WORDS, '--out', str(place / 'run')], cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process, log = start(), place / 'run/m2l-0/metrics.jsonl'
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) >= 2): time.sleep(.02)
    process.send_signal(signal.SIGKILL)
    first = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL and (place / 'run/m2l-0/checkpoint.pt').exists() and not (place / 'run/m2l-0/record.json').exists(), first
    process = start()
    second = process.communicate()[0]
    assert process.returncode == 0, second
    return first, second


def test_speed_comes_first_and_the_schedule_before_the_work(run):
    lines = run[0].splitlines()
    assert 'samples a second' in lines[0] and float(lines[0].split()[0].replace(',', '')) > 0
    assert [line.split()[0] for line in lines[1:4]] == ['m2l', 'lin', 'and'] and lines[4] == 'to do     m2l-0, lin-0'
    assert 'begins: m2l-0' in lines[5:]
    assert 'samples a second' not in run[1]                # what was planned stands


def test_killed_and_resumed_without_accelerate_is_never_killed_and_with_it(run, place, tmp_path):
    steps = json.loads((place / 'run/m2l-0/record.json').read_text())['steps']
    assert steps == 30
    given = family.parse_words([*WORDS, '--data', f"pack:{place / 'pack-22050.npz'}"])
    options = family.base_options(given)
    assert options.recipe().on_device and options.recipe().train.optimizer == 'adam'
    train(replace(options, steps=steps, out=str(tmp_path)))
    a, b = load_weights(tmp_path / 'model.safetensors'), load_weights(place / 'run/m2l-0/model.safetensors')
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    started = Autoencoder(options.recipe().model).state_dict()
    assert any((a[k] != started[k]).any() for k in a if 'branch.conv_out' in k)   # trained indeed


def test_the_table_has_every_model_and_the_pieces_are_models(run, place):
    text = (place / 'run/table.md').read_text()
    assert text.strip() in run[1]
    for part in text.split('\n\n'):
        assert [line.split('|')[1].strip() for line in part.splitlines()][2:] == ['linear:16', 'magnitude:16', 'compressed:16', 'm2l-0', 'lin-0']
    pieces = sorted((place / 'run/packed').glob('m2l-0.tar.*'))
    with tarfile.open(fileobj=BytesIO(b''.join(p.read_bytes() for p in pieces))) as f: f.extractall(place / 'back', filter='data')
    whole, half = (Autoencoder.from_pretrained(p) for p in (place / 'run/m2l-0', place / 'back/m2l-0'))
    clips = held_out_clips(replace(family.base_options(family.parse_words([*WORDS, '--data', f"pack:{place / 'pack-22050.npz'}"]))), 3)
    assert held_out_error(half, clips) == pytest.approx(held_out_error(whole, clips), rel=.01)


def test_nothing_is_done_twice_and_the_rest_is_told(run, place, capsys, monkeypatch):
    monkeypatch.setenv('LATENTALIGN_CACHE', str(place))
    words = [*WORDS, '--data', f"pack:{place / 'pack-22050.npz'}", '--out', str(place / 'run')]
    family.main([*words, '--status'])
    told = capsys.readouterr().out
    assert 'finished  m2l-0, lin-0' in told and 'about 0 minutes left' in told
    with pytest.raises(SystemExit, match='holds a run'): family.main([w if w != '20' else '3' for w in words])


def test_too_slow_says_what_would_be_enough(place, monkeypatch, tmp_path):
    monkeypatch.setattr(family, 'probe', lambda options: {'seconds_per_step': 2., 'samples': 44100, 'overhead': 10.})
    monkeypatch.setattr(family, 'closed_records', lambda options: [])
    words = [w if w != '20' else '2' for w in WORDS] + ['--data', f"pack:{place / 'pack-22050.npz'}", '--out', str(tmp_path)]
    with pytest.raises(SystemExit, match=r'22,050 samples a second.*of 2 minutes 1\.[67] are left.*100 steps need 3\.3.*--minutes 4 or more'): family.main(words)


def test_neither_renderer_nor_pack_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv('LATENTALIGN_CACHE', str(tmp_path))
    monkeypatch.setattr(family, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match='--rate 44100 --pack FILE makes one'): family.sound_for('auto', 44100)
    assert family.sound_for('scores', 44100) == 'scores'


def test_without_a_compiler_it_trains_uncompiled(monkeypatch, capsys):
    seen = []
    class Compiles:
        changes = ''
        def recipe(self): return replace(family.RunOptions('m2l', 'tiny', device='cpu').recipe(), train=replace(family.RunOptions('m2l', 'tiny', device='cpu').recipe().train, compile=True))
    def probe(options):
        seen.append(options)
        if len(seen) == 1: raise RuntimeError('no gcc')
        return {}
    monkeypatch.setattr(family, 'probe', probe)
    monkeypatch.setattr(family, 'replace', lambda options, changes: changes)
    assert family.try_compiled(Compiles())[0].strip() == 'train.compile=false' and 'no gcc' in capsys.readouterr().out


@pytest.mark.parametrize('variant', list(family.SHARES))
def test_no_step_reads_a_number_where_that_would_stop_a_queue(place, variant, monkeypatch):
    "Reading a scalar or counting what is not zero is what a GPU has to be waited for; crops, loss, gradients and update do neither."
    options = family.base_options(family.parse_words([*WORDS, '--data', f"pack:{place / 'pack-22050.npz'}"]))
    options = replace(options, variant=variant, precision='no')
    recipe = options.recipe()
    objective, source = objective_of(start_model(options), recipe), training_source(options)
    state, reads = training.RunState(objective, recipe.train, {}, 'none'), []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default): reads.append(function)
            return function(*args, **(kwargs or {}))

    def step(at_once):
        monkeypatch.setattr(training, 'reads_at_once', lambda device: at_once)
        with Watched(): training._train_step(training.OneProcess('no', False), objective, state, map(source.batch, [[0, 1]]), recipe.train)
        return len(reads)
    assert step(False) == 0 and step(True) > 0             # the counter sees the check that a processor makes at once
