"""Runs that are killed, resumed, spread over processes, and the one home of every default."""
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from dataclasses import asdict, fields, replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from latentalign import Autoencoder
from latentalign.base.audio import write_audio
from latentalign.codec.consistency import NoiseConfig, decode_steps, draw_positions
from latentalign.codec.network import PRESETS
from latentalign.base.config import change_config
from latentalign.base.models import load_pickled_weights, load_weights, save_state
from latentalign.codec.autoencoder import fit_code
from latentalign.training.objective import StagedObjective, objective_of
from latentalign.training.recipes import CONTROLS, RECIPES, VARIANTS
from latentalign.training.options import RunOptions
from latentalign.training.run import start_from, train
from latentalign.training.settings import TrainConfig, step_generator
from latentalign.training.loop import DivergenceError, fit

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(autouse=True)
def few_crops(monkeypatch):
    "A code is fitted to few crops, in no time."
    monkeypatch.setattr('latentalign.training.run.FIT_CROPS', 40)


@pytest.fixture(scope='module')
def sounds(tmp_path_factory):
    "A folder with three short recordings."
    folder = tmp_path_factory.mktemp('sounds')
    t = np.arange(30_000) / 22050
    for i, f in enumerate((220, 330, 550)):
        write_audio(folder / f'{i}.wav', (.3 * np.sin(2 * np.pi * f * t) * np.exp(-t)).astype(np.float32), 22050)
    return folder


# A real run, small enough to be killed often: the tiny recipe with narrow branches, few sounds in memory and a checkpoint every second step.
SCRIPT = textwrap.dedent('''
    import sys
    from dataclasses import replace
    import torch
    from latentalign.training import fitting, recipes, run as module
    from latentalign.codec.autoencoder import code_config
    torch.set_num_threads(2)
    tiny = recipes.RECIPES['tiny']
    fitting.EXCERPT_SECONDS, module.FIT_CROPS = 1., 40
    recipes.RECIPES['tiny'] = replace(tiny, model=code_config('linear', 64, 22050, width=8), pool=4, crop_frames=64,
                                     train=replace(tiny.train, workers=0, log_every=2, checkpoint_every=2))
    {patch}
    module.train(module.RunOptions(preset='tiny', data=sys.argv[1], out=sys.argv[2], steps=24, batch_size=2, device='cpu'))
''')
KILLED_WHILE_WRITING = textwrap.dedent('''
    import os, pathlib, signal
    write, checkpoints = pathlib.Path.write_bytes, []
    def half(path, data):
        checkpoints.extend([path] if path.suffix == '.pt' else [])  # temporary names say nothing else
        if len(checkpoints) < 4: return write(path, data)
        write(path, data[:len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    pathlib.Path.write_bytes = half
''')


SMALL = 'model.code.width=16 pool=4'  # changes of the recipe


def run(sounds, out, patch='', kill_after=None):
    "Run SCRIPT in a process of its own; returns its exit status."
    process = subprocess.Popen([sys.executable, '-c', SCRIPT.format(patch=patch), str(sounds), str(out)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try: _, errors = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL); _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode


def test_killed_runs_end_with_the_same_bits(sounds, tmp_path):
    begin = time.monotonic()
    assert run(sounds, tmp_path / 'whole') == 0
    duration = time.monotonic() - begin
    assert run(sounds, tmp_path / 'killed', KILLED_WHILE_WRITING) == -signal.SIGKILL   # while the 4th checkpoint is written
    assert run(sounds, tmp_path / 'killed', kill_after=.8 * duration) in (0, -signal.SIGKILL)   # anywhere
    assert run(sounds, tmp_path / 'killed') == 0
    whole, killed = (load_weights(tmp_path / name / 'model.safetensors') for name in ('whole', 'killed'))
    assert all(torch.equal(whole[k], killed[k]) for k in whole) and whole.keys() == killed.keys()
    records = [[(r['step'], r['loss'], r['gradient_norm']) for r in map(json.loads, open(tmp_path / name / 'metrics.jsonl'))] for name in ('whole', 'killed')]
    assert records[0] == records[1] and len(records[0]) == 12


def test_two_processes_train_one_model(sounds, tmp_path):
    "Data-parallel training through accelerate, on CPU processes: runs, writes one run folder, and its model loads."
    command = ['-m', 'accelerate.commands.launch', '--cpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no',
               '-m', 'latentalign.train', '--preset', 'tiny', '--data', str(sounds), '--steps', '2', '--batch_size', '2', '--changes', SMALL, '--out', str(tmp_path / 'run')]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-2000:]
    assert len((tmp_path / 'run/metrics.jsonl').read_text().splitlines()) == 1
    Autoencoder.from_pretrained(tmp_path / 'run')


def test_notebook_parameters_are_the_options():
    "The parameters cell of nbs/train.ipynb repeats RunOptions: same names, order, types and values."
    nb = nbformat.read(ROOT / 'nbs/train.ipynb', as_version=4)
    source = next(c.source for c in nb.cells if 'parameters' in c.metadata.get('tags', []))
    scope = {}
    exec(source, scope)
    assert {k: scope[k] for k in scope['__annotations__']} == {f.name: f.default for f in fields(RunOptions)}
    assert scope['__annotations__'] == {f.name: f.type for f in fields(RunOptions)}


NARROW = {'model.network.base_channels': 16, 'model.network.bottleneck_channels': 32, 'model.network.noise_channels': 16}  # two cores cannot afford the width for every variant
STEPS = ([(variant, {'preset': name}) for name in RECIPES for variant in VARIANTS] + [(variant, {'preset': 'tiny', 'start': 'random'}) for variant in VARIANTS]
         + [(variant, {'preset': 'tiny'}) for variant in CONTROLS] + [(variant, {'preset': 'tiny', 'texture': .5}) for variant in ('m2l', 'lin', 'align')])


@pytest.mark.parametrize('variant, given', STEPS, ids=lambda p: p if isinstance(p, str) else '-'.join(map(str, p.values())))
def test_every_recipe_and_variant_takes_a_step(variant, given):
    recipe = RunOptions(variant, device='cpu', **given).recipe()
    recipe = change_config(recipe, ({'model.code.width': 16} if recipe.model.code else {}) | (NARROW if recipe.model.network else {}))
    torch.manual_seed(0)
    model = Autoencoder(recipe.model)
    frames, overlap = 4 * model.frame_length, recipe.model.transform.overlap
    if recipe.model.code: fit_code(model, .1 * torch.randn(48, frames + overlap))
    objective, wave = objective_of(model, recipe), .1 * torch.randn(2, frames // 2 + overlap)
    optimizer = torch.optim.RAdam([p for p in objective.parameters() if p.requires_grad], lr=recipe.train.learning_rate)
    trained = model.denoiser.conv_out.weight if recipe.model.network else model.magnitude.axes
    before, start = trained.clone(), model.encoder.axes.clone() if recipe.model.code else None
    loss = objective(wave, .95, step_generator(0, 0)); loss.backward(); optimizer.step()
    assert torch.isfinite(loss) and not torch.equal(before, trained)
    if start is not None: assert torch.equal(start, model.encoder.axes) == (recipe.frozen or bool(given.get('texture')))


def test_the_paper_recipe_builds():
    with torch.device('meta'): model = Autoencoder(PRESETS['paper'])
    assert sum(p.numel() for p in model.parameters()) == 58_185_026


def test_fine_tuning_starts_from_the_saved_weights(sounds, tmp_path):
    first = RunOptions(preset='tiny', data=str(sounds), steps=1, batch_size=2, device='cpu', changes=SMALL, out=str(tmp_path / 'a'))
    train(first)
    second = replace(first, init_from=str(tmp_path / 'a'), seed=1, out=str(tmp_path / 'b'))
    train(second)
    a, b = (load_weights(tmp_path / name / 'model.safetensors') for name in 'ab')
    for k in ('encoder.axes', 'encoder.branch.conv_in.weight', 'magnitude.axes', 'magnitude.branch.conv_in.weight'):
        assert (a[k] - b[k]).norm() < .05 * a[k].norm(), k                                  # a step from there, not other random weights
    assert not torch.equal(a['magnitude.axes'], b['magnitude.axes'])
    with pytest.raises(ValueError, match='another code'): start_from(Autoencoder(PRESETS['tiny']), str(tmp_path / 'a'))
    Autoencoder(replace(PRESETS['tiny'], network=replace(PRESETS['tiny'].network, bottleneck_blocks=2))).save_pretrained(tmp_path / 'other')
    with pytest.raises(ValueError, match='another network'): start_from(Autoencoder(PRESETS['tiny']), str(tmp_path / 'other'))
    with pytest.raises(ValueError, match='another code'): train(replace(second, init_from=str(tmp_path / 'other'), out=str(tmp_path / 'c')))


def test_loss_that_is_not_finite_stops_the_run(sounds, tmp_path, monkeypatch):
    forward = StagedObjective.forward
    monkeypatch.setattr(StagedObjective, 'forward', lambda self, *a: forward(self, *a) * float('inf'))
    with pytest.raises(DivergenceError, match='step 1'):
        train(RunOptions(preset='tiny', data=str(sounds), steps=1, batch_size=2, device='cpu', changes=SMALL, out=str(tmp_path / 'run')))
    assert not (tmp_path / 'run/model.safetensors').exists()


# ---- one run a folder, and what is left of a log

class Mean(torch.nn.Module):
    "Least squares: w must find the mean of the items."
    def __init__(self): super().__init__(); self.model = torch.nn.Linear(3, 1, bias=False); torch.nn.init.zeros_(self.model.weight)
    def forward(self, batch, progress, generator): return (self.model.weight - batch).square().mean()


class Items(torch.utils.data.Dataset):
    def __len__(self): return 10 ** 6
    def __getitem__(self, i): return torch.tensor([1., 2., 3.]) + .1 * (i % 5)


SHORT = TrainConfig(steps=12, batch_size=2, learning_rate=.3, warmup=2, average=.9, average_every=5, workers=0, log_every=1, checkpoint_every=6)


def fitted(out, config=SHORT, **options): return fit(Mean(), Items(), config, out, asdict(config), device='cpu', **options)


def test_a_folder_has_one_run_at_a_time(tmp_path):
    told = []
    def intrude(records, state):
        for config in (SHORT, replace(SHORT, seed=1)):
            with pytest.raises(ValueError, match='another run is at work') as e: fitted(tmp_path, config, resume=False)
            told.append(str(e.value))
    state = fitted(tmp_path, on_log=intrude)
    assert len(told) == 24 and str(tmp_path) in told[0]
    assert [json.loads(line)['step'] for line in open(tmp_path / 'metrics.jsonl')] == list(range(1, 13))
    assert torch.equal(state.objective.model.weight, fitted(tmp_path / 'alone').objective.model.weight)


def test_settings_are_written_before_the_first_step(tmp_path):
    def stop(records, state): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fitted(tmp_path, on_log=stop)
    assert not (tmp_path / 'checkpoint.pt').exists() and json.loads((tmp_path / 'settings.json').read_text()) == json.loads(json.dumps(asdict(SHORT)))
    with pytest.raises(ValueError, match='seed was 0, now 1'): fitted(tmp_path, replace(SHORT, seed=1))
    assert fitted(tmp_path, replace(SHORT, seed=1), resume=False).step == 12
    (tmp_path / 'checkpoint.pt').unlink(); (tmp_path / 'settings.json').write_text('{')
    with pytest.raises(ValueError, match='settings.json'): fitted(tmp_path)


@pytest.mark.parametrize('odd', ['[1, 2]', 'null', '7', '"text"', '{"step": "3"}', '{"loss": 1.0}', '{"step": 2.5, "loss": 1.0}', '{"step": true, "loss": 1.0}', '{"step": 1, "loss": 1.0}', '{"step": 3}', '\udcff', '[' * 5000])
def test_an_odd_line_in_the_log_does_not_end_a_resume(tmp_path, odd):
    fitted(tmp_path)
    lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
    (tmp_path / 'metrics.jsonl').write_bytes('\n'.join([*lines[:2], odd, *lines[2:]]).encode('utf-8', 'surrogateescape') + b'\n')
    with pytest.warns(UserWarning, match='1 lines are no records.*line 3'): fitted(tmp_path)
    assert (tmp_path / 'metrics.jsonl').read_text().splitlines() == lines


def test_a_damaged_checkpoint_is_refused(tmp_path):
    fitted(tmp_path)
    data = bytearray((tmp_path / 'checkpoint.pt').read_bytes())
    weights = load_pickled_weights(tmp_path / 'checkpoint.pt')['model']['model.weight'].numpy().tobytes()
    data[data.index(weights) + 5] ^= 1  # a bit of a weight (the file has gaps, too, where a bit means nothing)
    (tmp_path / 'checkpoint.pt').write_bytes(data)
    with pytest.raises(ValueError, match='checkpoint.pt'): fitted(tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    fitted(tmp_path)
    state = load_pickled_weights(tmp_path / 'checkpoint.pt')
    for change, words in (({'model': {'model.weight': torch.zeros(1, 4)}}, '1 of another shape'), ({'model': {'model.weight': torch.full((1, 3), torch.nan)}}, 'NaN'), ({'averages': [{}]}, 'averages of other weights')):
        save_state(tmp_path / 'checkpoint.pt', state | change)
        with pytest.raises(ValueError, match=words): fitted(tmp_path)


def test_the_last_weights_are_in_the_average(tmp_path):
    "Twelve steps, averaged every fifth: after 5, 10, and at the end."
    seen = {}
    def look(records, state): seen[state.step] = state.objective.model.weight.detach().clone()
    state, expected = fitted(tmp_path, on_log=look), torch.zeros(1, 3)
    for n, step in enumerate((5, 10, 12)): expected = expected.lerp(seen[step], 1 - min(.9, (1 + n) / (10 + n)))
    assert state.average.updates == 3 and torch.allclose(state.average.values['model.weight'], expected, atol=1e-6)


def test_the_number_of_averages_comes_back(tmp_path):
    "With it the decay of the next update: a resumed run that counts from 0 forgets its past."
    def stop(records, state):
        if state.step == 7: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fitted(tmp_path, on_log=stop)
    resumed, whole = fitted(tmp_path), fitted(tmp_path / 'whole')
    assert resumed.average.updates == whole.average.updates == 3 and torch.equal(resumed.average.values['model.weight'], whole.average.values['model.weight'])


def test_re_noising_leaves_room_for_the_least_level():
    "Between two steps an image that counts as clean at sigma_min gets noise of variance sigma² − sigma_min²."
    config = NoiseConfig(sigma_min=1., sigma_max=4., rho=1.)
    given = []
    noises = [torch.full((1, 2, 1, 1), v) for v in (1., 10.)]
    decode_steps(lambda x, sigma: given.append((x.clone(), sigma)) or torch.full_like(x, 100.), noises, config)
    assert given[0][0][0, 0, 0, 0] == 4. and given[1][1].item() == 2.5 and given[1][0][0, 0, 0, 0].item() == pytest.approx(100 + 10 * (2.5 ** 2 - 1) ** .5)


def test_ladder_positions_are_counted_in_steps():
    "Three points have two steps: position t lies in step floor(2 t), and no position reaches 1."
    config = NoiseConfig(levels=3, p_mean=12., p_std=1.)  # all weight on the last step
    t = draw_positions(1000, config, torch.Generator().manual_seed(0))
    assert .5 <= t.min() < .51 and .99 < t.max() < 1


def test_a_length_is_judged_at_the_rate_that_was_asked_for():
    "Latents of 4000 samples at 22050 Hz are 8000 at 44100 Hz: a frame more is filled in silence, more than that with a warning."
    model = Autoencoder.from_preset('tiny')
    z, frame = torch.zeros(64, 20), 2 * model.frame_length
    samples = model.decode(z, sample_rate=44100).shape[-1]
    with warnings.catch_warnings(action='error'): model.decode(z, length=samples + frame, sample_rate=44100)
    with pytest.warns(UserWarning, match='filled with silence'): model.decode(z, length=samples + frame + 1, sample_rate=44100)
