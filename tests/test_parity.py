"""The same numbers as the published implementations, on the same random weights; and what is refused as weights."""
import os
from types import SimpleNamespace

import pytest
import torch
import yaml

from latentalign.codec.autoencoder import Autoencoder
from latentalign.codec.network import AutoencoderNetwork
from latentalign.codec.public_weights import PUBLIC
from latentalign.codec.transform import to_spec, to_wave
from latentalign.codec.windows import frame_noise

HOP, FRAME, TAIL = 512, 4096, 1536          # of the published network: a hop, a latent frame, the overlap of STFT windows
TOLERANCE = 1e-4
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # the packages ask for CUDA autocast wherever they run


def randomise(net, seed):
    "Give every parameter, those that start at zero included, random values that keep outputs of order 1."
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in net.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            if p.ndim > 1 and not name.endswith("gain.scale"): p.copy_(noise/p[0].numel()**.5)
            else: p.copy_(.1*noise + (name.endswith(("gain.scale", ".weight"))))
    return net.eval()


def assert_close(ours, theirs, of=""):
    assert ours.shape == theirs.shape, of
    assert torch.isfinite(theirs).all() and theirs.std() > 1e-3, of
    error = float((ours - theirs).norm()/theirs.norm()), float((ours - theirs).abs().max()/theirs.abs().max())
    assert max(error) < TOLERANCE, f"{of}: relative error {error[0]:.1e} in the mean, {error[1]:.1e} at most"


def sound(seconds_or_samples, channels=1):
    "Noise with a fading level, at most ±1."
    n = round(44100*seconds_or_samples) if isinstance(seconds_or_samples, float) else seconds_or_samples
    x = torch.rand(channels, n, generator=torch.Generator().manual_seed(n)) - .5
    return x*torch.linspace(1, .05, n)


@pytest.fixture
def one_noise(monkeypatch):
    "Lets `torch.randn` and `torch.randn_like`, with which the packages draw, give the noise that ours draws with seed 0."
    def start():
        steps = iter(range(100))
        def draw(shape):
            noise = frame_noise(0, shape[-1]*HOP//FRAME, next(steps), 0, (shape[2], FRAME//HOP))
            return noise.expand(shape[0], -1, -1, -1).clone()
        monkeypatch.setattr(torch, "randn", lambda shape, **_: draw(shape))
        monkeypatch.setattr(torch, "randn_like", lambda x: draw(x.shape))
    return start


@pytest.fixture(scope="module")
def m2l(tmp_path_factory):
    "music2latent's network with random weights, the file they would be published in, and our network with the same."
    models = pytest.importorskip("music2latent.models")
    net, path = randomise(models.UNet(), 0), tmp_path_factory.mktemp("m2l")/"music2latent.pt"
    torch.save({"gen_state_dict": net.state_dict(), "it": 0}, path)
    return SimpleNamespace(gen=net, file=path, ours=Autoencoder.from_public("music2latent", path))


def size(net): return sum(p.numel() for p in net.parameters())


def test_size(m2l):
    assert size(m2l.gen) == size(AutoencoderNetwork(m2l.ours.config)) == 58_185_026


def test_transform(m2l):
    audio = pytest.importorskip("music2latent.audio")
    x = sound(1.5, 2)
    spec = audio.to_representation_encoder(x)
    assert_close(to_spec(x, m2l.ours.config.transform), spec)
    assert_close(to_wave(spec, m2l.ours.config.transform), audio.to_waveform(spec))


@pytest.mark.parametrize("samples, channels", [(TAIL + FRAME, 1), (44_111, 2), (TAIL + 8*FRAME - 1, 1), (66_150, 1)])
def test_encoding(m2l, samples, channels):
    inference = pytest.importorskip("music2latent.inference")
    x, ours = sound(samples, channels), m2l.ours.with_window(None)
    for features, method in ((False, ours.encode), (True, ours.features)):
        theirs = inference.encode_audio_inference(x, m2l, 44100*60, 1, device="cpu", extract_features=features)
        assert_close(method(x), theirs, f"features={features}")


@torch.no_grad()
def test_pyramid_and_denoiser(m2l):
    g = torch.Generator().manual_seed(1)
    z, spec = torch.randn(2, 64, 2, generator=g).tanh(), torch.randn(2, 2, 1024, 16, generator=g)
    theirs, ours = m2l.gen.decoder(z), m2l.ours.upsampler(z)
    assert len(ours) == len(theirs) == 5
    for level, pair in enumerate(zip(ours, theirs)): assert_close(*pair, f"level {level}")
    for sigma in (.002, .0021, .5, 80.):
        noisy = sigma*spec
        answer = m2l.ours.denoise(noisy, torch.full((2,), sigma), ours)
        assert_close(answer, m2l.gen(z, noisy, sigma, theirs), f"σ = {sigma}")
    levels = torch.tensor([.1, 10.])        # another level for each item
    assert_close(m2l.ours.denoise(spec, levels, ours), m2l.gen(z, spec, levels, theirs), "two levels")


@pytest.mark.parametrize("frames, channels, steps", [(12, 1, 1), (2, 2, 2)])
def test_decoding(m2l, one_noise, frames, channels, steps):
    inference = pytest.importorskip("music2latent.inference")
    z = torch.randn(channels, 64, frames, generator=torch.Generator().manual_seed(2))
    ours = m2l.ours.with_window(None).decode(z, steps=steps, seed=0)
    one_noise()
    theirs = inference.decode_latent_inference(z, m2l, 44100*60, channels, diffusion_steps=steps, device="cpu")
    assert theirs.abs().max() < 1, "theirs is clipped at ±1, ours is not: this comparison needs quieter weights"
    assert_close(ours, theirs)


def test_aligned_weights(m2l, tmp_path):
    "pa-audioic's bottleneck: a layer normalisation over channels instead of the tanh."
    class Normalise(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.l = torch.nn.LayerNorm(64)
            torch.nn.init.constant_(self.l.weight, .06)
            torch.nn.init.normal_(self.l.bias, std=.01, generator=torch.Generator().manual_seed(0))
        def forward(self, x): return self.l(x.transpose(1, 2)).transpose(1, 2)

    inference = pytest.importorskip("music2latent.inference")
    tanh, m2l.gen.encoder.activation_bottleneck = m2l.gen.encoder.activation_bottleneck, Normalise()
    try:
        torch.save({"gen_state_dict": m2l.gen.state_dict()}, tmp_path/"music2latent.pt")
        ours, x = Autoencoder.from_public("pa-music2latent", tmp_path).with_window(None), sound(TAIL + 5*FRAME)
        assert size(ours) == 58_185_026
        assert_close(ours.encode(x), inference.encode_audio_inference(x, m2l, 44100*60, 1, device="cpu"))
    finally: m2l.gen.encoder.activation_bottleneck = tanh


@pytest.fixture(scope="module")
def lin_cae(tmp_path_factory):
    "linear-cae's autoencoder with random weights and its own constants of the transform, and ours with the same."
    package, folder = pytest.importorskip("linear_cae"), tmp_path_factory.mktemp("lin")
    frontend = dict(hop_size=HOP, n_fft_factor=4, alpha_rescale=.6, beta_rescale=.4, sample_rate=44100)
    theirs = randomise(package.Autoencoder(frontend, dict(hop=HOP), {}, name="lin-cae", max_batch_size=9), 3)
    torch.save(theirs.state_dict(), folder/"autoencoder_inference_model_last.pth")
    (folder/"frontend_kwargs_last.yaml").write_text(yaml.safe_dump(frontend))
    return SimpleNamespace(theirs=theirs, ours=Autoencoder.from_public("lin-cae", folder).with_window(None))


@torch.no_grad()
def test_linear_cae(lin_cae, one_noise):
    ours, theirs, x = lin_cae.ours, lin_cae.theirs, sound(TAIL + 6*FRAME, 2)
    assert size(theirs.generator) == size(ours) == 58_185_026
    spec, z = theirs.frontend.to_representation(x), theirs.encode(x)
    assert_close(to_spec(x, ours.config.transform), spec, "transform")
    assert_close(to_wave(spec, ours.config.transform), theirs.frontend.to_waveform(spec), "inverse")
    assert_close(ours.encode(x), z, "latents")
    assert_close(ours.features(x), theirs.encode(x, extract_features=True)/theirs.scale_factor, "features")
    z = z[:, :, :2]
    pyramid = theirs.generator.decoder(z/theirs.scale_factor)
    for level, pair in enumerate(zip(ours.upsampler(z*ours.latent_std), pyramid)): assert_close(*pair, f"level {level}")
    decoded = [ours.decode(z, steps=steps) for steps in (1, 2)]
    for steps, wave in zip((1, 2), decoded):
        one_noise()
        assert_close(wave, theirs.decode(z, diffusion_steps=steps), f"{steps} steps")


def test_scales_of_the_latents():
    inference = pytest.importorskip("linear_cae.inference")
    assert set(inference.id_to_scale_factor) == {"m2l", "lin-cae", "lin-cae-2"}
    for name, scale in inference.id_to_scale_factor.items(): assert PUBLIC[name].latent_std == pytest.approx(1/scale)
    assert PUBLIC["music2latent"].latent_std == pytest.importorskip("music2latent.hparams_inference").sigma_rescale


def test_converted_weights_are_saved_and_come_back(m2l, tmp_path):
    m2l.ours.save_pretrained(tmp_path)
    again, ours = Autoencoder.from_pretrained(tmp_path).state_dict(), m2l.ours.state_dict()
    assert set(again) == set(ours) and all(torch.equal(again[k], ours[k]) for k in ours)


class Code:
    "A pickle of it makes a folder when it is read."
    def __init__(self, folder): self.folder = str(folder)
    def __reduce__(self): return os.mkdir, (self.folder,)


def test_code_in_a_pickle_does_not_run(tmp_path):
    torch.save({"gen_state_dict": Code(tmp_path/"it-ran")}, tmp_path/"music2latent.pt")
    with pytest.raises(ValueError, match="refused"): Autoencoder.from_public("music2latent", tmp_path/"music2latent.pt")
    assert not (tmp_path/"it-ran").exists()


def test_truncated_weights(m2l, tmp_path):
    with open(m2l.file, "rb") as f: (tmp_path/"music2latent.pt").write_bytes(f.read(5_000_000))
    with pytest.raises(ValueError, match="music2latent.pt is refused"): Autoencoder.from_public("music2latent", tmp_path)


@pytest.mark.parametrize("change, message", [
    (lambda w: w.pop("conv_out.weight"), "1 weights missing, 0 unknown, 0 of another shape .*denoiser.conv_out.weight"),
    (lambda w: w.update(more=torch.zeros(1)), "0 weights missing, 1 unknown, 0 of another shape .*more"),
    (lambda w: w.update({"conv_out.bias": torch.zeros(3)}), "0 weights missing, 0 unknown, 1 of another shape .*denoiser.conv_out.bias")])
def test_weights_that_do_not_fit(m2l, tmp_path, change, message):
    weights = dict(m2l.gen.state_dict())
    change(weights)
    torch.save({"gen_state_dict": weights}, tmp_path/"music2latent.pt")
    with pytest.raises(ValueError, match=message): Autoencoder.from_public("music2latent", tmp_path/"music2latent.pt")


def test_foreign_and_unknown(tmp_path):
    (tmp_path/"a.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="a.pt is refused"): Autoencoder.from_public("m2l", tmp_path/"a.pt")
    torch.save([1, 2], tmp_path/"b.pt")
    with pytest.raises(ValueError, match="b.pt holds no state dict"): Autoencoder.from_public("m2l", tmp_path/"b.pt")
    with pytest.raises(ValueError, match="unknown public model 'music3latent'; known: " + ", ".join(PUBLIC)):
        Autoencoder.from_public("music3latent", tmp_path)
    with pytest.raises(ValueError, match="holds no music2latent.pt"): Autoencoder.from_public("music2latent", tmp_path)
