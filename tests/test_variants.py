"""What the variants change: gains and mixtures, latent noise, levels factored out, fine-tuning from another variant."""
import math
from dataclasses import replace

import pytest
import torch

from latentalign import Autoencoder
from latentalign.training.alignment import AlignmentConfig, add_latent_noise, draw_times
from latentalign.codec.autoencoder import fingerprint, fit_code
from latentalign.codec.consistency import StepConfig, consistency_step
from latentalign.base.levels import level
from latentalign.training.linearity import LinearityConfig, draw_gains, gain_bounds, linear_paths
from latentalign.codec.network import PRESETS
from latentalign.training.objective import ConsistencyObjective, objective_of
from latentalign.training.recipes import RECIPES, VARIANTS
from latentalign.training.options import RunOptions, parse_changes
from latentalign.training.run import start_model
from latentalign.training.settings import learning_rate

pytestmark = pytest.mark.usefixtures('one_thread')
ROWS = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0][:8]
generator = lambda seed=0: torch.Generator().manual_seed(seed)
sounds = lambda n=4: .1 * torch.randn(n, 320, generator=generator(1))


class Encoder:
    "A map on frames of 32 samples that counts what it encodes."
    def __init__(self, f): self.f, self.count = f, 0
    def __call__(self, wave):
        self.count += len(wave)
        return self.f(wave.unflatten(-1, (-1, 32)).mT)


@pytest.mark.parametrize('p, bounds', [(0, (0, 3)), (.2, (0, 3)), (.55, (.5, 2)), (.9, (1, 1)), (1, (1, 1))])
def test_schedules(p, bounds):
    "Gains as the paper has them (C = 1, 1, ½, 0, 0), held for the public code; Δt and learning rate by their closed forms."
    assert gain_bounds(p, LinearityConfig()) == pytest.approx(bounds, abs=1e-12)
    assert gain_bounds(p, RunOptions('lin-no-anneal', 'tiny').recipe().linearity) == (0, 3)
    assert consistency_step(p, StepConfig()) == pytest.approx(.1 ** (1 + p)) and consistency_step(p, StepConfig(end_exponent=3)) == pytest.approx(.1 ** (1 + 2 * p))
    paper = RECIPES['paper'].train
    k = round(p * (paper.steps - 1))
    expected = paper.learning_rate / paper.warmup if k == 0 else 1e-6 + (1e-4 - 1e-6) * (1 + math.cos(math.pi * (k - 10_000) / (799_999 - 10_000))) / 2
    assert learning_rate(k, paper) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('homogeneity', [False, True])
@pytest.mark.parametrize('additivity', [False, True])
@pytest.mark.parametrize('mixtures', ['sum', 'convex', 'none'])
def test_a_linear_encoder_makes_no_difference(homogeneity, additivity, mixtures):
    encode = Encoder(lambda x: ROWS @ x)
    for progress in (0, .5, 1):
        encode.count = 0
        sound, z = linear_paths(sounds(), encode, progress, LinearityConfig(homogeneity, additivity, mixtures), generator())
        assert encode.count == (4 if additivity or mixtures == 'none' else 8) and len(sound) == len(z) == (4 if mixtures == 'none' else 8)
        assert torch.allclose(ROWS @ sound.unflatten(-1, (-1, 32)).mT, z, atol=1e-6)


def test_paths_of_an_encoder_that_is_not_linear():
    "With Enc(x) = x³: gain a on the latent differs from the encoding by a³ against a; the latent of u + v is u³ + v³."
    cube, wave = Encoder(lambda x: x ** 3), sounds(2)
    frames = lambda x: x.unflatten(-1, (-1, 32)).mT
    sound, z = linear_paths(wave, cube, 0, LinearityConfig(True, True, gain_probability=0.), generator())
    assert torch.equal(sound[2:], wave + wave.roll(1, 0)) and torch.allclose(z[2:], (frames(wave) ** 3).sum(0).expand(2, -1, -1))
    sound, z = linear_paths(wave, cube, 0, LinearityConfig(True, False, 'none', gain_probability=1.), generator())
    gain = (sound.norm(dim=1) / wave.norm(dim=1))[:, None, None]
    assert torch.allclose(z, gain * frames(wave) ** 3, atol=1e-9) and not torch.allclose(gain, torch.ones(2, 1, 1), atol=.05)


def test_baseline_and_linear_variant_see_the_same_sounds():
    a, b = (linear_paths(sounds(), Encoder(lambda x: x), .1, RunOptions(v, 'tiny').recipe().linearity, generator(5))[0] for v in ('m2l', 'lin'))
    assert torch.equal(a, b)


def test_gains_do_not_overdrive_and_leave_silence_alone():
    wave = torch.stack([.9 * torch.ones(100), torch.zeros(100)]).repeat(500, 1)
    gains = draw_gains(wave, 0, LinearityConfig(gain_probability=1.), generator())
    assert (gains[0::2] <= 1 / .9 + 1e-6).all() and gains[1::2].max() > 2.5 and gains.isfinite().all()


@pytest.mark.parametrize('gain', [.25, 4., 1e-3, 7.3])
def test_levels_factored_out_make_gain_exact(gain):
    "Any weights, several windows of different levels, two channels; a power of two to the last bit."
    ae = Autoencoder(replace(PRESETS['tiny'], factor_level=True, window=16, context=2)).eval()
    torch.nn.init.normal_(ae.denoiser.conv_out.weight, std=.05, generator=generator())
    wave = torch.linspace(.01, .3, 9000) * torch.randn(2, 9000, generator=generator(2))
    z = ae.encode(wave)
    y, scaled_z, scaled_y = ae.decode(z, length=9000), ae.encode(gain * wave), ae.decode(gain * z, length=9000)
    assert y.std() > .01
    if math.log2(gain).is_integer(): assert torch.equal(scaled_z, gain * z) and torch.equal(scaled_y, gain * y)
    assert (scaled_z - gain * z).norm() < 1e-4 * gain * z.norm() and (scaled_y - gain * y).norm() < 1e-4 * gain * y.norm()


def test_levels_factored_out_are_another_model_with_the_same_weights():
    torch.manual_seed(0)
    plain = Autoencoder.from_preset('tiny')
    exact = Autoencoder(replace(plain.config, factor_level=True))
    exact.load_state_dict(plain.state_dict())
    assert fingerprint(exact) != fingerprint(plain)


def test_a_single_sound_has_no_neighbour():
    encode = Encoder(lambda x: x)
    with pytest.raises(ValueError, match="the batch has 1"): linear_paths(sounds(1), encode, 0, LinearityConfig(True, True), generator())
    assert len(linear_paths(sounds(1), encode, 0, LinearityConfig(True, mixtures='none'), generator())[0]) == 1


def test_levels_factored_out_define_silence():
    ae = Autoencoder(replace(PRESETS['tiny'], factor_level=True)).eval()
    assert (ae.encode(torch.zeros(5000)) == 0).all() and (ae.decode(torch.zeros(64, 20)) == 0).all()
    assert ae.features(torch.zeros(5000)).isfinite().all()


def test_relative_noise_goes_with_gain_and_fixes_the_ratio():
    config = AlignmentConfig('relative', gamma=2.)
    z = 10 ** torch.linspace(-3, 2, 6)[:, None, None] * torch.randn(6, 64, 400, generator=generator())
    noisy, t = add_latent_noise(z, 1., config, generator(3)), draw_times(6, config, generator(3))[:, None, None]
    assert torch.equal(add_latent_noise(8 * z, 1., config, generator(3)), 8 * noisy)
    ratio = level((1 - t) * z) / level(noisy - (1 - t) * z)
    assert torch.allclose(ratio, (1 - t) / (2 * t), rtol=.03)


@pytest.mark.parametrize('bad', [dict(noise='white'), dict(times='normal'), dict(gamma=0), dict(gamma=math.inf), dict(t_std=-1), dict(t_mean=math.nan)])
def test_bad_alignment(bad):
    with pytest.raises(ValueError, match=str(list(bad.values())[0])): AlignmentConfig(**bad)


def test_a_share_of_latents_stays_clean():
    config, z = AlignmentConfig('relative', clean=.25), torch.randn(4000, 3, 5, generator=generator())
    same = (add_latent_noise(z, 1., config, generator()) == z).all((1, 2))
    assert abs(same.float().mean() - .25) < .03
    noisy = draw_times(4000, config, generator())[~same]
    assert abs(noisy.median() - .5) < .02 and (noisy > 0).all()
    assert torch.equal(draw_times(9, AlignmentConfig(), generator()), torch.sigmoid(torch.randn(9, generator=generator()))), "without it, draws are as they were"
    for bad in (1., -.1, math.nan):
        with pytest.raises(ValueError, match='clean'): AlignmentConfig(clean=bad)


def test_gains_must_be_finite():
    with pytest.raises(ValueError, match='inf'): LinearityConfig(gain_range=(0., math.inf))


def test_fine_tuning_across_variants(tmp_path):
    "An aligned model starts from a baseline's weights under its own normalisation; the step stays where the baseline's ended."
    torch.manual_seed(3)
    base = Autoencoder(RunOptions('m2l', 'tiny', start='random', device='cpu').recipe().model); base.latent_std.fill_(.5)
    base.save_pretrained(tmp_path)
    options = RunOptions('align', 'tiny', start='random', init_from=str(tmp_path), device='cpu')
    model, recipe = start_model(options), options.recipe()
    assert torch.equal(model.encoder.conv_in.weight, base.encoder.conv_in.weight) and model.config.network.bottleneck == 'layer_norm'
    assert math.isclose(model.latent_std, .06, rel_tol=1e-6) and [consistency_step(p, recipe.step) for p in (0, .5, 1)] == [.5 ** 3] * 3  # Music2Latent's e_K = 3
    paper = RunOptions('align', 'paper', init_from='x', device='cpu').recipe()
    assert consistency_step(.3, paper.step) == pytest.approx(.001) and paper.linearity.mixtures == 'none' and paper.linearity.gain_probability == 0
    assert paper.model.noise.p_mean == pytest.approx(-1.1 + 4 / 7)  # the public code's weighting of levels
    z = model.encode(.1 * torch.randn(9000, generator=generator()))
    assert torch.allclose(z.square().mean(0), torch.ones(z.shape[1]), atol=1e-2)     # every frame has unit power
    uniform = start_model(replace(options, variant='align-uniform'))
    assert uniform.latent_std == .5                                                    # the unit of its fixed noise
    with pytest.raises(ValueError, match='48000'):
        Autoencoder(replace(base.config, transform=replace(base.config.transform, sample_rate=48000))).save_pretrained(tmp_path / 'other')
        start_model(replace(options, init_from=str(tmp_path / 'other')))


def test_no_reward_for_large_latents():
    "Where levels are factored out, the target does not pull at the latent's level."
    recipe = RunOptions('lin-exact', 'tiny', start='random').recipe()
    objective = ConsistencyObjective(Autoencoder(recipe.model), recipe)
    objective(.1 * torch.randn(2, 256 * 11, generator=generator()), 0., generator()).backward()   # the denoiser still answers zero
    assert all(p.grad is None or p.grad.abs().max() < 1e-6 for p in objective.model.encoder.parameters())


@pytest.mark.parametrize('text, message', [('distance', 'NAME=VALUE'), ('=3', 'NAME=VALUE'), ('linearity.mixtures=product', 'product'), ('linearity.gain=2', 'known:'), ('distance=bark', 'bark'), ('train.steps=many', 'many')])
def test_bad_changes(text, message):
    with pytest.raises(ValueError, match=message):
        recipe = RunOptions(preset='tiny', start='random', changes=text).recipe()
        objective_of(Autoencoder(recipe.model), recipe)


def test_numbers_may_begin_with_a_point():
    assert parse_changes('a=.5 b=-.25 c=[.1,2.5] d=x/v.2 e=["x/v.2"] f=convex') == dict(a=.5, b=-.25, c=[.1, 2.5], d='x/v.2', e=['x/v.2'], f='convex')


def test_changes_come_last():
    options = RunOptions('lin', 'tiny', start='random', changes='linearity.additivity=false alignment.noise=relative step.first=0.4', init_from='anything')
    recipe = options.recipe()
    assert recipe.linearity == LinearityConfig(True, False) and recipe.alignment.noise == 'relative' and recipe.step == StepConfig(.4, 1.)
    assert parse_changes('') == {} and set(VARIANTS) > {'m2l', 'lin', 'align', 'lin-align', 'lin-exact'}


@pytest.mark.parametrize('start', ['random', 'closed'])
@pytest.mark.parametrize('variant', list(VARIANTS))
def test_silence_in_a_batch_leaves_the_gradient_finite(variant, start):
    small = ' model.code.width=16' * (start == 'closed')
    recipe = RunOptions(variant, 'tiny', start=start, changes='linearity.gain_range=[0,1] linearity.least_gain=0.9' + small).recipe()   # nearly every gain is 0
    model = Autoencoder(recipe.model)
    if recipe.model.code: fit_code(model, .1 * torch.randn(48, 256 * 35, generator=generator()))
    objective, last = objective_of(model, recipe), model.magnitude.branch if recipe.model.code else model.denoiser
    torch.nn.init.normal_(last.conv_out.weight, std=.1, generator=generator())
    wave = .1 * torch.randn(4, 256 * 11, generator=generator()); wave[1] = 0
    objective(wave, 0., generator()).backward()
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)
    assert last.conv_out.weight.grad.abs().max() > 0
