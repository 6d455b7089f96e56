"""Surprisal: the published layout, closed forms, invariances, causality and bad input."""
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from latentalign.flow import MixtureFlow, check_noise_levels, sampled_mix
from latentalign.sequence import SEQUENCE_PRESETS, SequenceConfig, SequenceModel, convert_sequence
from latentalign.storage import load_strictly


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
