"""Linear and perceptually aligned latent spaces for audio."""
__version__ = "0.1.0"
__all__ = ["Autoencoder", "Surprisal"]

from .base.extras import name_extras

name_extras()

_HOMES = {"Autoencoder": "codec.autoencoder", "Surprisal": "surprisal.model"}


def __getattr__(name):
    "Import `Autoencoder` or `Surprisal`, and torch with it, only when it is asked for: `import latentalign` alone costs nothing."
    if name not in _HOMES: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__(): return sorted([*globals(), *__all__])
