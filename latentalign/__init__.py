"""Linear and perceptually aligned latent spaces for audio."""
__version__ = "0.1.0"
__all__ = ["Autoencoder", "Surprisal"]

from .extras import name_extras

name_extras()


def __getattr__(name):
    "Import `Autoencoder` or `Surprisal`, and torch with it, only when it is asked for: `import latentalign` alone costs nothing."
    if name not in __all__: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from .docments import document
    globals()[name] = document(getattr(import_module(f".{name.lower()}", __name__), name))
    return globals()[name]


def __dir__(): return sorted([*globals(), *__all__])
