"The recipe of a reproduction: its commands are true, its sums are right, and it runs, stops and goes on."
import json
import re
import shlex
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import nbformat
import pytest
import soundfile
import torch

from latentalign.tools import steps as reproduction
from latentalign.tools.command import main
from latentalign.data.stems import LAYOUTS
from latentalign.evaluation.protocols import protocol_named
from latentalign.tools.steps import KINDS, Reproduction, STARTS, lacking, measure, plan, share_batch, start_of
from latentalign.tools.steps import work_of
from latentalign.tools.reproduction import claim, duration, expected, run_plan, script
from latentalign.surprisal.training import SURPRISAL_RECIPES
from latentalign.training.recipes import RECIPES, VARIANTS
from latentalign.training.run import parse_options

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.usefixtures('one_thread')
EVERYTHING = [(data, preset, gpus) for data in ('papers:/data', 'scores', 'my music') for preset in RECIPES for gpus in (1, 3, 8)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    "An empty folder with two seconds of noise in `noise`; what is started there imports this checkout and uses one thread."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    Path('noise').mkdir()
    for i in range(2): soundfile.write(f'noise/{i}.wav', .1 * torch.randn(44100, generator=torch.Generator().manual_seed(i)).numpy(), 44100)
    return tmp_path


def all_steps(wanted): return [step for steps in plan(wanted) for step in steps]


def parameters(notebook):
    "Names and types in the parameters cell."
    nb = nbformat.read(ROOT / notebook, as_version=4)
    scope = {}
    exec(next(c.source for c in nb.cells if 'parameters' in c.metadata.get('tags', [])), scope)
    return scope['__annotations__']


def test_every_variant_has_its_start_and_every_start_is_a_variant():
    assert STARTS.keys() == VARIANTS.keys()
    assert all(start == '' or STARTS[start][0] == '' for start, _ in STARTS.values())
    assert {v for v, (start, _) in STARTS.items() if not start} >= {'m2l', 'lin', 'lin-no-additivity', 'lin-no-homogeneity'}  # Lin-CAE trains all models for 800 000 steps
    assert STARTS['align'][0] == 'm2l'                                                                                         # the aligned paper fine-tunes


@pytest.mark.parametrize('data, preset, gpus', EVERYTHING)
def test_trainings_are_the_papers_on_any_number_of_gpus(data, preset, gpus):
    for step in all_steps(Reproduction(data, preset, tuple(STARTS), gpus)):
        if step.kind != 'train': continue
        words = list(step.command)
        options = parse_options(words[words.index('latentalign.train') + 1:])
        processes = int(words[words.index('--num_processes') + 1]) if 'accelerate' in words else 1
        recipe, start = RECIPES[preset], start_of(options.variant, preset)
        assert processes * options.batch_size == recipe.train.batch_size and (processes == 1 or options.batch_size >= 3)
        part = .5 if start else 1
        assert (options.steps, options.minutes) == ((0, part * recipe.train.minutes) if recipe.train.minutes else (part * recipe.train.steps, 0))
        assert options.init_from == (f'runs/{preset}/{start}' if start else '') and options.folder == step.result.parent and options.data == data
        last = 3 if options.variant == 'align' and not recipe.model.code else recipe.step.end_exponent          # the aligned paper starts from Music2Latent, e_K = 3
        if start: assert options.recipe().step.first == pytest.approx(recipe.step.first ** last)
        if preset == 'paper' and not start: assert processes * options.batch_size == 20 and options.steps == 800_000


@pytest.mark.parametrize('data, preset, gpus', EVERYTHING)
def test_steps_beside_each_other_have_their_own_gpus_and_ports(data, preset, gpus):
    for steps in plan(Reproduction(data, preset, gpus=gpus)):
        if gpus == 1: assert len(steps) == 1 and steps[0].command[0] != 'env'; continue
        used = [list(map(int, step.command[1].removeprefix('CUDA_VISIBLE_DEVICES=').split(','))) for step in steps]
        everything = sum(used, [])
        assert len(set(everything)) == len(everything) and set(everything) <= set(range(gpus))
        ports = [step.command[step.command.index('--main_process_port') + 1] for step in steps if 'accelerate' in step.command]
        assert len(set(ports)) == len(ports)
        for step, mine in zip(steps, used):
            assert len(mine) == (int(step.command[step.command.index('--num_processes') + 1]) if 'accelerate' in step.command else 1)


@pytest.mark.parametrize('data', ['papers:/data', 'scores', 'my music'])
def test_what_a_step_reads_is_there_when_its_round_begins(data):
    wanted, there = Reproduction(data, gpus=8), {}
    for steps in plan(wanted):
        for step in steps:
            for path in re.findall(r'runs/paper/[\w/.-]+', step.reads): assert path in there or path in map(str, there.values()), (step.name, path)
        there |= {str(step.result.parent if step.kind in ('train', 'surprisal') else step.result): step.result for step in steps}
    assert len(there) == len(all_steps(wanted)) and {s.kind for s in all_steps(wanted)} == set(KINDS)


@pytest.mark.parametrize('data, preset, gpus', EVERYTHING)
def test_notebooks_and_their_parameters_exist(data, preset, gpus):
    for step in all_steps(Reproduction(data, preset, gpus=gpus)):
        words = list(step.command)
        if 'papermill' not in words: continue
        notebook = words[words.index('papermill') + 1]
        given = {words[i + 1]: words[i + 2] for i, word in enumerate(words) if word == '-p'}
        assert given.keys() <= parameters(notebook).keys() and not set(words[words.index('papermill') + 3::3]) - {'-p'}
        for name, value in given.items(): assert parameters(notebook)[name] is str or int(value) >= 0
        if step.kind == 'surprisal':
            assert {f.name for f in fields(step.options)} >= given.keys() and given['preset'] in SURPRISAL_RECIPES
            assert step.options.recipe().train.batch_size == SURPRISAL_RECIPES[preset].train.batch_size and step.options.folder == step.result.parent


@pytest.mark.parametrize('data', ['papers:/data', 'scores'])
def test_evaluations_are_valid_commands(data, monkeypatch):
    seen = []
    import latentalign.evaluation.quantities
    import latentalign.evaluation.reports
    monkeypatch.setattr(latentalign.evaluation.quantities, 'report_path', lambda checkpoint, out: seen.append((checkpoint, out)) or Path(__file__))  # stops before any work: is there already
    monkeypatch.setattr(latentalign.evaluation.quantities, 'read_report', lambda path: {}); monkeypatch.setattr(latentalign.evaluation.reports, 'report_differences', lambda *a: ([], []))
    monkeypatch.setattr('latentalign.tools.measuring.load_model', lambda *a: None); monkeypatch.setattr('latentalign.tools.measuring.fingerprint', lambda model: '')
    steps = [s for s in all_steps(Reproduction(data)) if s.kind == 'evaluate']
    for step in steps:
        assert main(list(step.command[1:])) == 0 and seen[-1] == (str(step.result.parent), str(step.result))
        given = dict(zip(step.command[3::2], step.command[4::2]))
        protocol_named(given['--protocol'], given['--changes'])
        assert all(s in ('scores', 'melodies') or s.partition(':')[0] in LAYOUTS for s in given['--data'].split(','))
        sets = [s.partition(':')[0] for s in given['--data'].split(',')]
        compare = next(s.command for s in all_steps(Reproduction(data)) if s.name == f"compare-{given['--protocol']}")
        assert list(compare[compare.index('clips') + 1::3][:2]) == sets and sets[0] in ('musdb18-hq', 'scores')   # in stems, as compare.ipynb needs
        assert f'={step.result}' in compare[compare.index('runs') + 1]
    assert len(steps) == 8 * len(Reproduction(data).tests)


def test_the_dry_run_is_a_script_and_writes_nothing(place, capsys):
    assert main(['reproduce', '--data', 'papers:over there', '--gpus', '2']) == 2  # blanks
    assert 'over there' in capsys.readouterr().err
    line = ['reproduce', '--data', 'my music', '--preset', 'paper', '--gpus', '8']
    before = sorted(place.rglob('*'))
    assert main(line) == 0
    text = capsys.readouterr().out
    assert sorted(place.rglob('*')) == before
    assert subprocess.run(['bash', '-n'], input=text, text=True).returncode == 0
    wanted = Reproduction('my music', gpus=8)
    commands = [tuple(shlex.split(x.removesuffix(' &'))) for x in text.splitlines() if x.startswith(('env ', 'python ', 'papermill ', 'latentalign '))]
    assert commands == [step.command for step in all_steps(wanted)]
    assert '# MISSING my music: no such folder' in text and "8 days on one L40S" in text and 'theirs' in text
    assert text.count('#   not measured on this machine') == sum(s.options is not None for s in all_steps(wanted)) == 11 and ' s a step' not in text


def test_times_are_sums_over_rounds_of_the_longest(place):
    wanted = Reproduction('noise', 'small', ('m2l', 'lin', 'align'), gpus=2, out='sum')
    seconds = {'m2l': .5, 'lin': .75, 'align': 2., 'surprisal': .125}
    records = [work_of(s.options) | {'seconds_per_step': seconds[work_of(s.options)['model']], 'bytes': 3 * 2**30} for s in all_steps(wanted) if s.options]
    Path('sum').mkdir()
    Path('sum/throughput.json').write_text(json.dumps([{**r, 'device': 'another', 'seconds_per_step': 99.} for r in records] + records + [{**records[0], 'device': 'another'}]))
    hours = (20_000 * .75 + 10_000 * 2. + 20_000 * .125) / 3600       # m2l beside lin; align; two surprisal models side by side
    assert f'# {duration(hours * 3600)}: expected of 5 of the 5 trainings' in script(wanted) and f'{hours:.1f} h' == duration(hours * 3600)
    assert '#   4.2 h: 0.75 s a step; 3.0 GiB a process' in script(wanted)
    for model in ('m2l', 'lin'): Path('sum', model).mkdir(); Path('sum', model, 'model.safetensors').touch()
    assert f'# {duration(10_000 * 2. + 20_000 * .125)}: expected of 3 of the 3 trainings' in script(wanted)
    Path('sum/throughput.json').write_text(json.dumps([{**r, 'device': 'another'} for r in records]))
    assert '# not measured on this machine: expected of 0 of the 3' in script(wanted)


def test_other_batches_are_not_measured_alike():
    one, eight = (all_steps(Reproduction('scores', gpus=n))[0] for n in (1, 8))
    record = work_of(one.options) | {'seconds_per_step': 1., 'bytes': 1}
    assert expected(one, [record])[0] == 800_000 and expected(eight, [record]) == (None, None)


def test_a_measurement_is_of_real_steps(place):
    found = measure(all_steps(Reproduction('noise', 'tiny', ('m2l',), device='cpu', out='here'))[1].options, 2)   # the notebook measures an autoencoder
    assert found['batch_size'] == 4 and found['preset'] == 'tiny' and found['model'] == 'surprisal' and found['steps'] == 2 and found['device'].startswith('CPU')
    assert .01 < found['seconds_per_step'] < 60 and 2**27 < found['bytes'] < 2**35 and found['environment']['torch']
    assert not Path('here').exists()


def test_two_steps_run_and_a_second_run_skips_what_is_done(place, capfd):
    wanted = Reproduction('noise', 'tiny', ('align',), steps=2, device='cpu', out='runs/trial')
    steps = plan(wanted)[:2]
    assert [s.name for part in steps for s in part] == ['train-m2l', 'train-align']
    assert run_plan(wanted, steps[:1]) == 0
    done = steps[0][0].result.stat().st_mtime_ns
    assert run_plan(wanted, steps) == 0 and steps[0][0].result.stat().st_mtime_ns == done
    assert 'train-m2l: done already' in capfd.readouterr().err
    runs = [json.loads(Path(f'runs/trial/{v}/run.json').read_text()) for v in ('m2l', 'align')]
    assert [r['train']['steps'] for r in runs] == [2, 1] and runs[1]['init_from'] == 'runs/trial/m2l' and runs[1]['step']['first'] == runs[1]['step']['first'] ** runs[1]['step']['end_exponent']
    text = script(wanted)
    assert text.count('; done already') == 2 and all(f'\n# {shlex.join(s[0].command)}\n' in text for s in steps)
    with pytest.raises(ValueError, match="runs/trial holds another reproduction .*preset was 'tiny', now 'small'"): claim(replace(wanted, preset='small'))


def test_a_step_that_fails_is_named_and_the_rest_waits(place, capfd):
    wanted = Reproduction('noise', 'tiny', ('align',), steps=2, device='cpu', out='bad')
    steps = plan(wanted)[:2]
    broken = [replace(steps[0][0], command=(sys.executable, '-c', 'raise SystemExit("no luck")'))]
    assert run_plan(wanted, [broken, steps[1]]) == 1
    assert 'failed: train-m2l' in capfd.readouterr().err and 'no luck' in Path('bad/train-m2l.log').read_text() and not Path('bad/align').exists()
    silent = [replace(steps[0][0], command=(sys.executable, '-c', ''))]   # says that all is well and leaves nothing
    assert run_plan(wanted, [silent]) == 1


@pytest.mark.parametrize('words, given', [(("'papr'", 'tiny'), {'preset': 'papr'}), (("'lim'", 'lin-exact-align'), {'variants': ('lim',)}),
                                          (("'musdb'", 'papers', 'musdb18-hq'), {'data': 'musdb:/data'}), (('got', '0'), {'gpus': 0}), (('-1',), {'steps': -1}),
                                          (("'gpu'", 'cpu'), {'device': 'gpu'}), (("'cpu'", '8'), {'device': 'cpu', 'gpus': 8}), (('()',), {'variants': ()}), (("'a,b'",), {'out': 'a,b'})])
def test_bad_input_is_refused_by_name(words, given):
    with pytest.raises(ValueError) as error: Reproduction(**{'data': 'scores'} | given)
    assert all(word in str(error.value) for word in words), error.value


def test_more_gpus_than_there_are_and_missing_data_are_refused_only_when_running(place, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert main(['reproduce', '--data', 'papers:/nowhere', '--gpus', '8', '--out', str(place / 'x')]) == 0
    assert capsys.readouterr().out.count('# MISSING') == len(lacking(Reproduction('papers:/nowhere'))) == 7
    for line, word in ((['--gpus', '8'], '8 GPUs are asked for, this machine has 2'), (['--gpus', '2'], 'mtg-jamendo:/nowhere/mtg-jamendo')):
        assert main(['reproduce', '--data', 'papers:/nowhere', *line, '--out', str(place / 'x'), '--run']) == 2
        assert word in capsys.readouterr().err
    monkeypatch.chdir(place)
    assert main(['reproduce', '--data', 'noise', '--preset', 'tiny', '--device', 'cpu', '--run']) == 2
    assert 'checkout' in capsys.readouterr().err and not (place / 'x').exists() and not Path('runs').exists()


def test_batches_are_shared_evenly():
    assert [share_batch(20, n) for n in range(1, 9)] == [1, 2, 2, 4, 5, 5, 5, 5]
    assert share_batch(8, 8) == 2 and share_batch(7, 2) == 1 and reproduction.share_batch(2, 2) == 1
