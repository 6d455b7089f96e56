"""Runs that are killed, resumed, spread over processes, and the one home of every default."""
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import fields, replace
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from latentalign import Autoencoder
from latentalign.audio import write_audio
from latentalign.network import PRESETS
from latentalign.storage import change_config, load_weights
from latentalign.autoencoder import fit_code
from latentalign.train import CONTROLS, RECIPES, VARIANTS, RunOptions, StagedObjective, objective_of, start_from, train
from latentalign.training import DivergenceError, step_generator

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(autouse=True)
def few_crops(monkeypatch):
    "A code is fitted to few crops, in no time."
    monkeypatch.setattr('latentalign.train.FIT_CROPS', 40)


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
    from latentalign import fitting, train as module
    from latentalign.autoencoder import code_config
    torch.set_num_threads(2)
    tiny = module.RECIPES['tiny']
    fitting.EXCERPT_SECONDS, module.FIT_CROPS = 1., 40
    module.RECIPES['tiny'] = replace(tiny, model=code_config('linear', 64, 22050, width=8), pool=4, crop_frames=64,
                                     train=replace(tiny.train, workers=0, log_every=2, checkpoint_every=2))
    {patch}
    module.train(module.RunOptions(preset='tiny', data=sys.argv[1], out=sys.argv[2], steps=24, batch_size=2, device='cpu'))
''')
KILLED_WHILE_WRITING = textwrap.dedent('''
    import os, pathlib, signal
    write, checkpoints = pathlib.Path.write_bytes, []
    def half(path, data):
        checkpoints.extend([path] if 'checkpoint' in path.name else [])
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
        assert 0 < (a[k] - b[k]).norm() < .05 * a[k].norm(), k                              # a step from there, not other random weights
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
