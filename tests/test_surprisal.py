"""Surprisal: the published layout, closed forms, invariances, causality and bad input."""
import copy
import hashlib
import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from latentalign import Autoencoder, Surprisal
from latentalign.base.audio import write_audio
from latentalign.data.recordings import level_db
from latentalign.codec.autoencoder import fingerprint
from latentalign.tools.command import main
from latentalign.surprisal.effects import paired_effect, phrase, repetition, wrong_note
from latentalign.surprisal.flow import MixtureFlow, Velocity, check_noise_levels, draw_levels, stretch
from latentalign.surprisal.hearing import SILENCES, energy_span, heard_latents
from latentalign.surprisal.likelihood import EXACT, INTEGRATORS, LikelihoodConfig, PROBES, adaptive_nll
from latentalign.surprisal.likelihood import exact_divergence, integrate, path_nll, probe_divergence
from latentalign.surprisal.likelihood import separate_nll, stepped_nll, transport
from latentalign.codec.public_weights import PUBLIC
from latentalign.data.rendering import RenderedScores
from latentalign.surprisal.listener import SEQUENCE_PRESETS, SequenceConfig, VelocityNetwork
from latentalign.surprisal.slopes import FrameVelocity
from latentalign.surprisal.sequence import SequenceModel, convert_sequence
from latentalign.base.models import bundled_models, load_strictly
from latentalign.surprisal.published import PUBLIC_SURPRISAL
from latentalign.surprisal.model import MonteCarlo, NOISINGS, SurprisalConfig, frame_nll
from latentalign.surprisal.listener import LEAST_VARIANCE
from latentalign.surprisal.training import FrameCrops, SURPRISAL_RECIPES, SurprisalOptions, autoregression_nll
from latentalign.surprisal.training import gaussian_nll, mixture_nll, train_surprisal


def stirred(module, seed=0):
    "The module with random values everywhere, also in parameters that start at zero."
    g = torch.Generator().manual_seed(seed)
    for p in module.parameters(): p.data += .5 * torch.randn(p.shape, generator=g) / p.shape[-1] ** .5
    return module.eval()


# The published model, put together from x_transformers and a velocity network written down from its description.
class PublishedLayer(torch.nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.ff = torch.nn.ModuleDict({'to_mlp': torch.nn.Linear(dim, 4 * dim, bias=False), 'to_out': torch.nn.Linear(2 * dim, dim, bias=False)})
        self.norm = torch.nn.ModuleDict({'scale_proj': torch.nn.Linear(dim, dim)})

    def forward(self, x, e):
        a, b = self.ff['to_mlp'](torch.nn.functional.layer_norm(x, x.shape[-1:]) * (1 + self.norm['scale_proj'](e))).chunk(2, -1)
        return x + self.ff['to_out'](torch.nn.functional.silu(a) * b)


class PublishedVelocity(torch.nn.Module):
    def __init__(self, data, dim):
        super().__init__()
        nn = torch.nn
        self.emb_proj = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU())
        self.time_emb = nn.Module(); self.time_emb.register_buffer('freqs', 32 * torch.pi * torch.randn(dim // 2))
        self.linear_input, self.linear_output = nn.Linear(data + dim, dim), nn.Linear(dim, data)
        self.norm_output = nn.ModuleDict({'scale_proj': nn.Linear(dim, dim), 'shift_proj': nn.Linear(dim, dim)})
        self.layers = nn.ModuleList([PublishedLayer(dim) for _ in range(8)])

    def forward(self, t, x, state):
        angles = (2 * t - 1)[..., None] * self.time_emb.freqs
        e = self.emb_proj(torch.cat([angles.cos(), angles.sin()], -1))
        h = self.linear_input(torch.cat([x, state], -1))
        for layer in self.layers: h = layer(h, e)
        h = torch.nn.functional.layer_norm(h, h.shape[-1:]) * (1 + self.norm_output['scale_proj'](e)) + self.norm_output['shift_proj'](e)
        return self.linear_output(h)


@pytest.fixture(scope='module')
def published():
    "The published architecture with random weights; its state dict has the names of the published file."
    x_transformers = pytest.importorskip('x_transformers')
    torch.manual_seed(0)
    model = torch.nn.Module()
    layers = x_transformers.Decoder(dim=256, depth=12, heads=8, attn_flash=True, attn_dropout=.1, ff_dropout=.1, rotary_pos_emb=True)
    model.backbone = x_transformers.ContinuousTransformerWrapper(dim_in=64, dim_out=None, max_seq_len=4600, attn_layers=layers, emb_dropout=.1)
    model.diff_mlp = PublishedVelocity(64, 256)
    model.ode = torch.nn.Module(); model.ode.ode_approx = model.diff_mlp
    return stirred(model)


@pytest.fixture(scope='module')
def converted(published):
    "The same weights in this package."
    model = SequenceModel(SEQUENCE_PRESETS['paper']).eval()
    load_strictly(model, convert_sequence(published.state_dict()), 'published')
    return model


@torch.no_grad()
def test_listener_agrees_with_x_transformers(published, converted):
    frames = torch.randn(2, 70, 64)
    theirs = published.backbone(frames, mask=torch.ones(2, 70, dtype=torch.bool))
    assert (theirs - converted.states(frames.mT)).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize('noise_level', [0., .3, 1.])
def test_velocity_agrees_with_the_published_one_in_the_other_direction(published, converted, noise_level):
    x, state = torch.randn(9, 64), torch.randn(9, 256)
    theirs = published.diff_mlp(torch.full((9,), 1 - noise_level), x, state)
    assert (theirs + converted.velocity(x, torch.full((9,), noise_level), state)).abs().max() < 1e-4


def test_paper_preset_has_the_published_size(published):
    count = lambda module: sum(p.numel() for p in module.parameters())
    assert count(SequenceModel(SEQUENCE_PRESETS['paper'])) == count(published) == 16_720_704


@pytest.mark.parametrize('change, message', [
    (lambda w: w.update(stray=torch.zeros(1)), '1 unknown'),
    (lambda w: w.pop('diff_mlp.linear_output.bias') is None or w.pop('ode.ode_approx.linear_output.bias'), '1 weights missing'),
    (lambda w: w.update({'ode.ode_approx.linear_output.bias': torch.ones(64)}), 'differs from its copy'),
    (lambda w: w.update({'backbone.attn_layers.rotary_pos_emb.inv_freq': torch.ones(16)}), 'rates')])
def test_foreign_weights_are_refused(published, change, message):
    weights = dict(published.state_dict()); change(weights)
    with pytest.raises(ValueError, match=message): load_strictly(SequenceModel(SEQUENCE_PRESETS['paper']), convert_sequence(weights), 'file')


# Closed forms.
DOUBLE = dict(dtype=torch.float64)


def mixture(channels, components, seed=0):
    "A mixture of Gaussians with random means and covariances."
    g = torch.Generator().manual_seed(seed)
    roots = torch.randn(components, channels, channels, generator=g, **DOUBLE) / channels ** .5
    return MixtureFlow(torch.ones(components), torch.randn(components, channels, generator=g, **DOUBLE), roots @ roots.mT + .05 * torch.eye(channels, **DOUBLE))


@pytest.mark.parametrize('noise_level', [0., .1, .3, .5, .7, .9, .99])
def test_gaussian_density_is_met_to_a_ten_thousandth(noise_level):
    flow, g = mixture(8, 1), torch.Generator().manual_seed(1)
    x = (1 - noise_level) * flow.sample(3, g) + noise_level * torch.randn(3, 8, generator=g, **DOUBLE)
    mean, c = (1 - noise_level) * flow.means[0], (1 - noise_level) ** 2 * flow.covariances[0] + noise_level ** 2 * torch.eye(8, **DOUBLE)
    true = -torch.distributions.MultivariateNormal(mean, c).log_prob(x)
    assert (path_nll(flow, x, noise_level, LikelihoodConfig(nodes=16, probes=0, method='butcher6')).nll - true).abs().max() < 1e-4
    assert (stepped_nll(flow, x, noise_level, 40, 'butcher6') - true).abs().max() < 1e-4


@pytest.mark.parametrize('method', INTEGRATORS)
def test_integrators_have_their_order(method):
    "y' = y cos s has the solution exp(sin s)."
    slope = lambda y, s: y * math.cos(s)
    errors = [abs(integrate(slope, torch.ones(1, **DOUBLE), np.linspace(0, 1, n + 1).tolist(), method)[-1].item() - math.exp(math.sin(1))) for n in (8, 16)]
    assert abs(math.log2(errors[0] / errors[1]) - INTEGRATORS[method].order) < .5


@pytest.mark.parametrize('kind', PROBES)
def test_probes_have_the_exact_trace_as_their_mean(kind):
    flow, g = mixture(4, 2), torch.Generator().manual_seed(2)
    x = flow.sample(3, g)
    _, exact = exact_divergence(flow, x, .2)
    _, estimates = probe_divergence(flow, x, .2, PROBES[kind]((4000, 3, 4), g).double())
    assert ((estimates.mean(0) - exact).abs() < 4 * estimates.std(0) / 4000 ** .5 + 1e-9).all()
    v = PROBES[kind]((4000, 1, 4), g)[:, 0]
    assert torch.allclose(v.T @ v / 4000, torch.eye(4), atol=.15)


def test_the_plain_procedure_is_euler_with_probes():
    flow, g = mixture(3, 2), torch.Generator().manual_seed(3)
    x, probes = flow.sample(4, g), PROBES['rademacher']((2, 4, 3), g).double()
    plain = separate_nll(lambda y, s, state: flow(y, s[0]), x, torch.zeros(4, 1), .1, probes, 10)
    assert torch.allclose(plain, stepped_nll(flow, x, .1, 10, 'euler', probes).mean(0))


def test_adaptive_integration_agrees():
    pytest.importorskip('torchdiffeq')
    flow = mixture(3, 2); x = flow.sample(4, torch.Generator().manual_seed(4))
    assert (adaptive_nll(flow, x, .2, 1e-6) - path_nll(flow, x, .2, LikelihoodConfig(nodes=32, steps=2, probes=0)).nll).abs().max() < 1e-3


def test_transport_is_undone_by_its_reverse():
    flow = mixture(3, 2); x = flow.sample(4, torch.Generator().manual_seed(5))
    assert torch.allclose(transport(flow, transport(flow, x, 0., .7, 40), .7, 0., 40), x, atol=1e-5)


@pytest.mark.parametrize('precondition', [False, True])
def test_written_out_slopes_are_those_of_automatic_differentiation(precondition):
    torch.manual_seed(0)
    config = SequenceConfig(channels=6, width=32, depth=1, heads=2, head_width=16, rotary_width=8, flow_depth=2, precondition=precondition)
    network, x, state = stirred(VelocityNetwork(config)), torch.randn(5, 6), torch.randn(5, 32)
    if precondition: network.gaussian.fit(torch.randn(200, 6) @ torch.randn(6, 6) + 1)
    plain = type('Plain', (Velocity,), {'__call__': lambda _, y, s: network(y, torch.tensor(s), state)})()
    tangents = torch.randn(4, 5, 6)
    with torch.no_grad():
        for s in (0., .3, 1.):
            for ours, theirs in zip(FrameVelocity(network, state).push(x, s, tangents), plain.push(x, s, tangents)):
                assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
            assert torch.allclose(FrameVelocity(network, state)(x, s), plain(x, s), atol=1e-4)


def test_levels_of_training_are_stratified():
    levels = draw_levels((500, 4), torch.Generator().manual_seed(0)).sort(-1).values
    assert (torch.bucketize(levels, torch.tensor([stretch(k / 4) for k in (1, 2, 3)])) == torch.arange(4)).all()


# Sound.
@pytest.fixture(scope='module')
def autoencoder(tmp_path_factory):
    "The papers' form with random weights, 64 channels and a latent frame for 256 samples; its latents have unit deviation over tones."
    model, folder = Autoencoder.from_preset('tiny', seed=1), tmp_path_factory.mktemp('m2l')
    model.latent_std.fill_(float(model.encode(torch.stack([tones(1.6, k) for k in range(4)]), 22050).std()))
    model.save_pretrained(folder)
    found = Autoencoder.from_pretrained(folder)
    found.place = str(folder)
    return found


@pytest.fixture(scope='module')
def surprisal(autoencoder):
    "A model with random weights and a short context."
    torch.manual_seed(0)
    config = SurprisalConfig(replace(SEQUENCE_PRESETS['tiny'], depth=2, flow_depth=2, context=12), autoencoder.place, fingerprint(autoencoder), pool=8, scale=.7)
    return stirred(Surprisal(config)).attach(autoencoder)


def tones(seconds, seed=0):
    "A run of tones."
    t = torch.arange(int(seconds * 22050)) / 22050
    pitches = 200 + 400 * torch.rand(int(seconds * 5) + 1, generator=torch.Generator().manual_seed(seed))
    return .3 * torch.sin(2 * torch.pi * pitches[(t * 5).long()] * t)


def same(a, b, tolerance=2e-3):
    "Equal to rounding, undefined where undefined."
    return torch.equal(a.isnan(), b.isnan()) and (a - b).nan_to_num().abs().max() < tolerance


LEVELS = (0., .4)


@pytest.mark.parametrize('likelihood', [LikelihoodConfig(), EXACT], ids=['probes', 'exact'])
def test_a_piece_alone_and_in_any_company(surprisal, likelihood):
    short, long = tones(1.6), tones(3., 1)
    alone = surprisal(short, noise_levels=LEVELS, silence='none', likelihood=likelihood)
    for others in ([short, long[:len(short)]], [long[-len(short):], short]):
        batch = surprisal(torch.stack(others), noise_levels=LEVELS, silence='none', likelihood=likelihood)
        assert batch.shape == (2, *alone.shape) and same(batch[0 if others[0] is short else 1], alone)
    backwards = surprisal(short, noise_levels=LEVELS[::-1], silence='none', likelihood=likelihood)
    assert same(backwards.flip(0), alone)


@pytest.mark.parametrize('silence', ['music', 'voice'])
def test_zeros_around_a_piece_are_no_part_of_it(surprisal, silence):
    "As in a batch with longer pieces: bit for bit, at the place where the piece lies."
    wave, frame = tones(2.), surprisal.frame_samples
    alone = surprisal(wave[1:], noise_levels=LEVELS, silence=silence)
    for before, after in ((0, 30_001), (5, 4)):
        wide = surprisal(torch.nn.functional.pad(wave[1:], (before * frame, after * frame // 3)), noise_levels=LEVELS, silence=silence)
        assert torch.equal(wide[:, before:before + alone.shape[1]].nan_to_num(), alone.nan_to_num()) and wide[:, before + alone.shape[1]:].isnan().all()


def test_chunks_of_another_size(surprisal):
    frames = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    whole = frame_nll(surprisal.sequence, frames, .2)
    for chunk in (1, 7, 39):
        parts = frame_nll(surprisal.sequence, frames, .2, chunk=chunk)
        assert (parts.nll - whole.nll).abs().max() < 2e-3


@pytest.mark.parametrize('noising', NOISINGS)
def test_the_future_of_latents_does_not_matter(surprisal, noising):
    z = torch.randn(64, 8 * 40, generator=torch.Generator().manual_seed(1))
    whole = surprisal.of_latents(z, LEVELS, noising)
    for cut in (2, 12, 13, 30):
        assert same(surprisal.of_latents(z[:, :8 * cut], LEVELS, noising), whole[:, :cut])
        changed = z.clone(); changed[:, 8 * cut:] *= -1
        assert same(surprisal.of_latents(changed, LEVELS, noising)[:, :cut], whole[:, :cut])
        assert (surprisal.of_latents(changed, LEVELS, noising)[:, cut:] - whole[:, cut:]).abs().max() > .1


def test_a_sliding_context_forgets(surprisal):
    "With a context of 12 the first frame is heard by the frames up to 12, and by no later one."
    z = torch.randn(64, 8 * 40, generator=torch.Generator().manual_seed(2))
    changed = z.clone(); changed[:, :8] += .5
    difference = (surprisal.of_latents(changed) - surprisal.of_latents(z))[0].abs()
    assert difference[1:13].min() > 1e-3 and difference[13:].max() < 2e-3


def test_latents_as_heard_know_no_future(autoencoder):
    wave, step = tones(1.2), autoencoder.frame_length
    cut = wave.clone(); cut[64 * step:] = 0
    assert torch.equal(heard_latents(autoencoder, wave, 8)[:, :64], heard_latents(autoencoder, cut, 8)[:, :64])
    assert not torch.allclose(autoencoder.encode(wave)[:, :64], autoencoder.encode(cut)[:, :64], atol=1e-3)


def test_a_model_that_hears_gives_the_past_of_sound_alone(surprisal, autoencoder):
    heard = Surprisal(replace(surprisal.config, heard=True)).eval().attach(autoencoder)
    heard.load_state_dict(surprisal.state_dict())
    wave, samples = tones(1.5), surprisal.frame_samples
    whole = heard(wave, noise_levels=LEVELS, silence='none')
    for frames in (3, 9): assert same(heard(wave[:frames * samples], noise_levels=LEVELS, silence='none')[:, :frames], whole[:, :frames])


def test_times_are_ends_of_frames(surprisal):
    assert surprisal.frame_samples == 8 * 256 and np.allclose(surprisal.times(3), np.array([1, 2, 3]) * 2048 / 22050)


def test_numpy_in_numpy_out_at_any_rate(surprisal):
    ic = surprisal(np.random.default_rng(0).normal(0, .1, (2, 44100)).astype(np.float32), 44100, noise_levels=LEVELS)
    assert isinstance(ic, np.ndarray) and ic.shape == (2, 2, 10) and np.isnan(ic[..., 0]).all() and np.isfinite(ic[..., 1:]).all()


def test_only_frames_that_end_within_the_sound_count(surprisal):
    for samples, frames in ((4 * 2048 - 1, 3), (4 * 2048, 4)):
        ic = surprisal(tones(1.)[:samples], silence='none')
        assert ic.shape == (1, frames) and surprisal.times(frames)[-1] <= samples / 22050


def test_levels_come_as_a_number_a_list_an_array_or_a_tensor(surprisal):
    z = torch.randn(64, 40, generator=torch.Generator().manual_seed(0))
    one = surprisal.of_latents(z, [.25])
    for levels in (.25, np.array([.25]), torch.tensor([.25]), torch.tensor(.25), np.float32(.25)): assert same(surprisal.of_latents(z, levels), one, 1e-6)


def test_silence_is_nan_and_no_error(surprisal):
    for silence in SILENCES:
        ic = surprisal(torch.zeros(22050), silence=silence)
        assert ic.isnan().all() or silence == 'none'
    framed = surprisal(torch.cat([torch.zeros(22050), tones(1.), torch.zeros(22050)]))
    times = surprisal.times(framed.shape[1])
    defined = times[~framed[0].isnan().numpy()]
    assert 1.1 < defined[0] < 1.3 and 1.9 < defined[-1] < 2.2
    assert surprisal(torch.nn.functional.pad(torch.ones(20), (9000, 9000)), silence='music').shape == (1, 8)


def test_levels_are_found_from_the_loudest_moment():
    hiss = 1e-4 * torch.randn(66150, generator=torch.Generator().manual_seed(0))
    start, stop = energy_span(hiss + torch.nn.functional.pad(tones(1.), (22050, 22050)), 22050)
    assert abs(start - 22050) < 1024 and abs(stop - 44100) < 1024 and energy_span(hiss * 1e-2, 22050) is None


@pytest.mark.parametrize('levels, message', [((1.,), 'nothing is left'), ((1,), 'nothing is left'), ((0., 1.2), r'\[0, 1\)'), (-.1, r'\[0, 1\)'), (float('nan'), r'\[0, 1\)'), ((), 'no noise level'), ('clean', "number.*'clean'"), ((None,), 'number')])
def test_bad_noise_levels_are_refused(surprisal, levels, message):
    with pytest.raises(ValueError, match=message): check_noise_levels(levels)
    with pytest.raises(ValueError, match=message): surprisal(tones(1.), noise_levels=levels)


@pytest.mark.parametrize('call, message', [
    (lambda s: s(tones(.1)), 'too short'), (lambda s: s(torch.zeros(0)), 'empty'), (lambda s: s(torch.full((9000,), torch.nan)), 'NaN'),
    (lambda s: s(torch.ones(9000, dtype=torch.int16)), 'floating point'), (lambda s: s(tones(1.), silence='noise'), 'known: music, voice, none'),
    (lambda s: s(tones(1.), noising='guess'), 'known: expectation, monte_carlo, flow'), (lambda s: s(tones(1.), sample_rate=0), 'sample rate'),
    (lambda s: s.of_latents(torch.randn(64, 15)), 'two frames are needed.*got 1'), (lambda s: s.of_latents(torch.randn(64, 7)), 'two frames are needed.*got 0'), (lambda s: s.of_latents(torch.randn(32, 80)), '64'),
    (lambda s: s.of_latents(.05 * torch.randn(64, 80)), 'another scale'), (lambda s: s.of_latents(30 * torch.randn(64, 80)), 'another scale'),
    (lambda s: s.of_latents(torch.full((64, 80), torch.inf)), 'infinity'), (lambda s: MonteCarlo(0), '1 draw'),
    (lambda s: LikelihoodConfig(nodes=0), 'nodes'), (lambda s: LikelihoodConfig(method='rk5'), 'known: euler'), (lambda s: LikelihoodConfig(kind='sobol'), 'known: rademacher'),
    (lambda s: LikelihoodConfig(probes=-1), 'probes'), (lambda s: SurprisalConfig(pool=0), 'pool'), (lambda s: SurprisalConfig(scale=0.), 'scale'),
    (lambda s: SequenceConfig(width=0), 'width'), (lambda s: SequenceConfig(rotary_width=128), 'rotary_width'), (lambda s: SequenceConfig(context=1), 'context'),
    (lambda s: SurprisalOptions(preset='huge').recipe(), 'known: paper'), (lambda s: SurprisalOptions(device='tpu').recipe(), 'known: auto, cpu'),
    (lambda s: Surprisal(s.config)(tones(1.)), 'attach'),
    (lambda s: FrameCrops([torch.zeros(3, 64)], 4), 'as long as a crop'), (lambda s: paired_effect([1.]), '2 differences')])
def test_bad_input_is_named(surprisal, call, message):
    with pytest.raises(ValueError, match=message): call(surprisal)


def test_foreign_autoencoders_are_refused_unless_asked(surprisal, tmp_path):
    surprisal.save_pretrained(tmp_path)
    other = Autoencoder.from_preset('tiny')
    with pytest.raises(ValueError, match=fingerprint(other)): Surprisal.from_pretrained(tmp_path, other)
    assert Surprisal.from_pretrained(tmp_path, other, any_autoencoder=True).autoencoder is other
    with pytest.raises(ValueError, match='elsewhere'): Surprisal.from_pretrained(tmp_path, 'elsewhere')
    with pytest.raises(ValueError, match='8 latent channels'):
        config = replace(other.config, network=replace(other.config.network, latent_channels=8))
        Surprisal.from_pretrained(tmp_path, Autoencoder(config), any_autoencoder=True)
    wave = tones(1.)
    assert same(Surprisal.from_pretrained(tmp_path)(wave), surprisal(wave), 1e-6)


def test_bits_and_units(surprisal, autoencoder):
    z = torch.randn(64, 80, generator=torch.Generator().manual_seed(3))
    nats = surprisal.of_latents(z)
    assert same(surprisal.of_latents(z, bits=True) * math.log(2), nats)
    other = Surprisal(replace(surprisal.config, scale=1.4)).eval().attach(autoencoder)
    other.load_state_dict(surprisal.state_dict())
    assert same(other.of_latents(2 * z), nats + 64 * math.log(2))  # the same frames, measured in units half as large


@pytest.mark.parametrize('name', bundled_models('surprisal'))
def test_a_quiet_copy_is_told_of_and_brought_to_the_level_of_the_training(name):
    model, wave = Surprisal.from_pretrained(name), tones(.8)
    loud = wave * 10 ** ((model.config.level - level_db(np.asarray(wave))) / 20)
    right = model(loud)
    quiet = loud * 10 ** (-26 / 20)
    with warnings.catch_warnings(record=True, action='always') as told:
        try: model(quiet); refused = False
        except ValueError as error: refused = 'another scale' in str(error)
    assert refused or any('quieter than that of the training' in str(w.message) for w in told)
    assert same(model(quiet, level='training'), right, .05)
    assert same(model(loud, level=model.config.level), right, .05) and not same(model(loud, level=model.config.level - 9), right, .05)


def test_levels_that_are_none_are_refused(surprisal):
    for level, message in (('training', 'does not say'), ('loud', 'level must be'), (float('nan'), 'level must be'), (1e3, 'level must be'), (True, 'level must be')):
        with pytest.raises(ValueError, match=message): surprisal(tones(1.), level=level)


@pytest.mark.parametrize('gain', [1e30, 1e38, 1e39])
def test_what_is_not_finite_never_leaves(surprisal, gain):
    try: assert surprisal(gain * tones(.5), silence='none')[:, 1:].isfinite().all()
    except ValueError: pass
    broken = copy.deepcopy(surprisal)
    broken.sequence.velocity.out.bias.data[3] = math.nan
    with pytest.raises(ValueError, match='not finite'): broken.of_latents(torch.randn(64, 80, generator=torch.Generator().manual_seed(0)))


def test_a_surprisal_model_from_before_levels_and_digests_is_opened(surprisal, autoencoder, tmp_path):
    surprisal.save_pretrained(tmp_path)
    data = json.loads((tmp_path / 'config.json').read_text())
    t, c = autoencoder.config.transform, autoencoder.config
    known = hashlib.sha256(repr((t.sample_rate, t.hop_length, t.alpha, t.beta, c.window, c.context)).encode())  # as it was before more settings counted
    for name, weight in sorted(autoencoder.state_dict().items()): known.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode()); known.update(weight.contiguous().numpy().data)
    (tmp_path / 'config.json').write_text(json.dumps({k: v for k, v in data.items() if k not in ('level', 'weights')} | {'fingerprint': known.hexdigest()[:16]}))
    old = Surprisal.from_pretrained(tmp_path)
    assert old.config.level is None and torch.equal(old.sequence.velocity.out.weight, surprisal.sequence.velocity.out.weight)


@pytest.mark.parametrize('change', [{'scale': math.inf}, {'scale': 1e30}, {'pool': 10 ** 9}, {'level': 1e9}, {'sequence.depth': 10 ** 9}, {'sequence.width': 2 ** 40}, {'sequence.context': 10 ** 15},
                                    {'sequence.frequency': math.inf}, {'sequence.frequency': 0.}, {'sequence.heads': 10 ** 7}, {'sequence.flow_depth': 5000}])
def test_absurd_settings_are_refused_before_anything_is_built(surprisal, tmp_path, change):
    surprisal.save_pretrained(tmp_path)
    data = json.loads((tmp_path / 'config.json').read_text())
    for name, value in change.items(): (data['sequence'] if '.' in name else data)[name.split('.')[-1]] = value
    (tmp_path / 'config.json').write_text(json.dumps(data))
    with pytest.raises(ValueError, match='config.json'): Surprisal.from_pretrained(tmp_path)


# Published weights.
def test_published_file_loads_and_scores(published, tmp_path, autoencoder, capsys):
    torch.save({'model_state_dict': published.state_dict(), 'max_seq_length': 4600, 'model_type': 'LTM-rectflows', 'model_kwargs': {}}, tmp_path / 'pa_rectflow.pt')
    model = Surprisal.from_public('pa-audioic', tmp_path, autoencoder)
    assert 'CC BY-NC 4.0' in capsys.readouterr().out and model.config.sequence == SEQUENCE_PRESETS['paper'] and model.licence == 'CC BY-NC 4.0'
    frames, probes = torch.randn(6, 64), PROBES['rademacher']((2, 5, 64), torch.Generator().manual_seed(0))
    states = published.backbone(frames[None], mask=torch.ones(1, 6, dtype=torch.bool))[0, :-1].detach()
    velocity = lambda x, s, state: -published.diff_mlp(1 - s, x, state)
    theirs = separate_nll(velocity, frames[1:], states, .3, probes, 20)
    ours = stepped_nll(FrameVelocity(model.sequence.velocity, model.sequence.states(frames.T[None])[0, :-1]), frames[1:], .3, 20, 'euler', probes).mean(0)
    assert (ours - theirs.detach()).abs().max() < 1e-2


def test_the_published_model_brings_the_autoencoder_of_its_repository(published, tmp_path, autoencoder, monkeypatch):
    torch.save({'model_state_dict': published.state_dict(), 'max_seq_length': 4600, 'model_type': 'LTM-rectflows'}, tmp_path / 'pa_rectflow.pt')
    asked = []
    monkeypatch.setattr(Autoencoder, 'from_public', classmethod(lambda cls, name, file=None: asked.append((name, file)) or autoencoder))
    assert Surprisal.from_public('pa-audioic', tmp_path).autoencoder is autoencoder
    (tmp_path / 'music2latent.pt').touch()
    assert Surprisal.from_public('pa-audioic', tmp_path / 'pa_rectflow.pt').config.autoencoder == 'public:pa-music2latent'
    assert asked == [('pa-music2latent', None), ('pa-music2latent', tmp_path / 'music2latent.pt')]
    assert PUBLIC['pa-music2latent'].repo == PUBLIC_SURPRISAL['pa-audioic'][0]


class Trap:
    def __reduce__(self): return print, ('code was run',)


@pytest.mark.parametrize('content, message', [
    ({'model_state_dict': Trap(), 'max_seq_length': 9, 'model_type': 'LTM-rectflows'}, 'refused'), ({'gen_state_dict': {}}, 'no published surprisal'), (b'cut', 'refused'),
    ({'model_state_dict': {}, 'max_seq_length': 9, 'model_type': 'GPT'}, 'unknown model type'), ({'model_state_dict': {}, 'max_seq_length': 9, 'model_type': 'LTM-rectflows', 'model_kwargs': {'n_cls': 2}}, 'n_cls'),
    ({'model_state_dict': [], 'max_seq_length': 9, 'model_type': 'LTM-rectflows'}, 'no published surprisal'), ({'model_state_dict': {'stray': 1}, 'max_seq_length': 9, 'model_type': 'LTM-rectflows'}, 'no published surprisal'),
    ({'model_state_dict': {}, 'max_seq_length': '9', 'model_type': 'LTM-rectflows'}, 'no published surprisal'), ({'model_state_dict': {}, 'max_seq_length': 9, 'model_type': 'LTM-rectflows', 'model_kwargs': [1]}, 'by name'),
    ({'model_state_dict': {}, 'max_seq_length': 9, 'model_type': 'LTM-rectflows', 'model_kwargs': {'causal_transformer_hparams': {'heads': '8'}}}, 'expected int'),
    ({'model_state_dict': {}, 'max_seq_length': 9, 'model_type': 'LTM-rectflows'}, 'missing')])
def test_foreign_files_are_refused(tmp_path, autoencoder, content, message, capsys):
    path = tmp_path / 'pa_rectflow.pt'
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=message): Surprisal.from_public('pa-audioic', path, autoencoder)
    assert 'code was run' not in capsys.readouterr().out


def test_unknown_public_models_are_refused():
    with pytest.raises(ValueError, match='known: pa-audioic'): Surprisal.from_public('pa-audio')


# Training.
@pytest.fixture
def tiny_run(tmp_path, monkeypatch):
    "Options of a run that takes seconds, with dropout."
    for i in range(2): write_audio(tmp_path / 'sound' / f'{i}.wav', tones(2., i), 22050)
    sequence = SequenceConfig(width=16, depth=1, heads=2, head_width=8, rotary_width=4, flow_depth=1, context=16, precondition=True)
    recipe = SURPRISAL_RECIPES['tiny']
    train = replace(recipe.train, steps=4, batch_size=2, log_every=1, checkpoint_every=1)
    monkeypatch.setitem(SURPRISAL_RECIPES, 'try', replace(recipe, sequence=sequence, train=train, crop=8, pieces=3, seconds=2.))
    return SurprisalOptions(data=str(tmp_path / 'sound'), preset='try', device='cpu', out=str(tmp_path / 'run'))


def test_a_stopped_run_ends_with_the_same_bits(tiny_run, tmp_path):
    whole = train_surprisal(tiny_run)
    class Stop(Exception): pass
    def stop(records, state):
        if state.step == 3: raise Stop
    again = replace(tiny_run, out=str(tmp_path / 'again'))
    with pytest.raises(Stop): train_surprisal(again, stop)
    train_surprisal(again)
    assert (whole / 'model.safetensors').read_bytes() == (tmp_path / 'again' / 'model.safetensors').read_bytes()
    with pytest.raises(ValueError, match='pool'): train_surprisal(replace(again, pool=2))
    with pytest.raises(ValueError, match='steps was 4, now 5'): train_surprisal(replace(again, steps=5))


def test_baselines_bear_latents_in_a_plane():
    "Aligned autoencoders normalise over the channels, whose sum is then the same for every frame."
    frames = torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    plane = frames - frames.mean(1, keepdim=True)
    turn = torch.linalg.qr(torch.cat([torch.ones(4, 1), torch.eye(4)[:, :3]], 1))[0][:, 1:]  # axes of the plane
    inside = -torch.distributions.MultivariateNormal(torch.zeros(3), torch.cov((plane @ turn).T)).log_prob(plane @ turn)
    assert torch.allclose(gaussian_nll(plane, torch.zeros(4), torch.cov(plane.T)).float(), inside + math.log(2 * math.pi * LEAST_VARIANCE) / 2, atol=1e-3)
    for nll in (mixture_nll(plane, plane, 2, 2), autoregression_nll([plane], [plane], 2, 2)): assert nll.isfinite().all()


# Effects.
class Oracle:
    "Surprised by every frame of sound that it has not heard, sample for sample, in the same piece."
    frame_samples, autoencoder = 2048, type('Rate', (), {'sample_rate': 22050})

    def __call__(self, wave, sample_rate, noise_levels, silence):
        frames = wave[:len(wave) // 2048 * 2048].reshape(-1, 2048)
        new = [float(k > 0 and not any(torch.equal(frames[k], frames[i]) for i in range(k))) for k in range(len(frames))]
        return torch.tensor([new for _ in noise_levels])


def test_repetition_compares_one_sound_after_two_pasts():
    source = RenderedScores('valid', sample_rate=22050)
    found = repetition(Oracle(), source, range(2), LEVELS, seconds=3.)
    assert np.allclose(found['control'], 1.) and np.allclose(found['plain'], 1.) and found['plain'].shape == (2, 2)


def test_a_wrong_note_changes_nothing_before_it():
    source, heard = RenderedScores('valid', sample_rate=22050), []
    class Listener(Oracle):
        def __call__(self, wave, *args, **options): heard.append(wave); return super().__call__(wave, *args, **options)
    wrong_note(Listener(), source, [0], LEVELS, seconds=6.)
    right, *wrong = heard
    onsets = [n.onset for n in phrase(source.melody(0).notes, 6.)]
    assert len(wrong) == 6 and right.abs().max() == pytest.approx(.5)
    for wave in wrong:
        change = int(((wave - right).abs() > 1e-4).nonzero()[0, 0]) / 22050
        assert min(abs(change - onset) for onset in onsets[len(onsets) // 2:]) < .02


# The command.
def test_command_writes_tables_resumes_and_goes_on(surprisal, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no run lies
    surprisal.save_pretrained(tmp_path / 'model')
    for name, wave in (('a', tones(1.)), ('deep/b', torch.stack([tones(1.2), tones(1.2, 1)])), ('c', torch.zeros(22050))): write_audio(tmp_path / 'music' / f'{name}.wav', wave, 22050)
    (tmp_path / 'music' / 'broken.wav').write_text('no sound')
    line = ['surprisal', str(tmp_path / 'music'), '--out', str(tmp_path / 'ic'), '--model', str(tmp_path / 'model'), '--noise-levels', '0,0.3', '--plot']
    assert main(line) == 1 and 'broken.wav' in capsys.readouterr().err
    rows = [r.split(',') for r in (tmp_path / 'ic' / 'a.csv').read_text().splitlines()]
    ic = surprisal(tones(1.), noise_levels=(0., .3))
    assert rows[0] == ['Time', 'IC_0.0', 'IC_0.3'] and rows[1] == [f'{2048 / 22050:.6f}', 'NaN', 'NaN'] and len(rows) == ic.shape[1] + 1
    assert abs(float(rows[3][2]) - float(ic[1, 2])) < 2e-3 and (tmp_path / 'ic' / 'deep' / 'b.png').stat().st_size > 1000
    assert all(r.endswith('NaN,NaN') for r in (tmp_path / 'ic' / 'c.csv').read_text().splitlines()[1:])
    (tmp_path / 'music' / 'broken.wav').unlink()
    assert main(line) == 0 and '0 written, 3 there already' in capsys.readouterr().err
    assert main([*line, '--bits', '--noise-levels', '.4']) == 2
    told = capsys.readouterr().err
    assert all(words in told for words in ('noise_levels was [0.0, 0.3], now [0.4]', "unit was 'nats', now 'bits'", '--overwrite'))
    other = Autoencoder.from_preset('tiny'); other.save_pretrained(tmp_path / 'other')
    for asked, code in (([], 2), (['--any-autoencoder'], 0)): assert main(['surprisal', str(tmp_path / 'music' / 'a.wav'), '--out', str(tmp_path / 'third'), '--model', str(tmp_path / 'model'), '--autoencoder', str(tmp_path / 'other'), *asked]) == code
    for wrong in (['--noise-levels', '1'], ['--noise-levels', 'a']):
        with pytest.raises(SystemExit): main([*line, *wrong])
    assert main(['surprisal', str(tmp_path / 'music' / 'a.wav'), '--out', str(tmp_path / 'new')]) == 0   # with a model that comes with the package
    record = json.loads((tmp_path / 'new' / 'latentalign.jsonl').read_text())
    assert record['settings']['command'] == 'surprisal' and record['settings']['silence'] == 'music' and record['sources']['a.wav']['bytes'] == (tmp_path / 'music' / 'a.wav').stat().st_size


def test_command_tells_autoencoders_apart(surprisal, tmp_path, capsys):
    "Tables of another autoencoder are not taken for finished ones, and none is named in vain."
    surprisal.save_pretrained(tmp_path / 'model'); write_audio(tmp_path / 'a.wav', tones(.5), 22050)
    Autoencoder.from_preset('tiny').save_pretrained(tmp_path / 'other')
    line = ['surprisal', str(tmp_path / 'a.wav'), '--out', str(tmp_path / 'ic'), '--any-autoencoder']
    for name, code in ((str(tmp_path / 'other'), 0), (surprisal.config.autoencoder, 2)): assert main([*line, '--model', str(tmp_path / 'model'), '--autoencoder', name]) == code
    assert 'autoencoder was' in capsys.readouterr().err
    assert main([*line, '--model', 'public:pa-audioic', '--autoencoder', str(tmp_path / 'other')]) == 2 and 'leave out --autoencoder' in capsys.readouterr().err
