"""Linear and perceptually aligned latent spaces for audio."""
__version__ = "0.1.0"

from .base.extras import name_extras

name_extras()

_HOMES = {  # what is public from here → the module that has it
    "Autoencoder": "codec.autoencoder", "Surprisal": "surprisal.model", "ExpectationModel": "perception.expectation",
    "read_audio": "base.audio", "write_audio": "base.audio", "read_melody": "perception.corpora", "corpus_melodies": "perception.corpora",
    "open_source": "data.datasets", "evaluate": "evaluation.reports",
}
__all__ = list(_HOMES)


def __getattr__(name):
    "Import what is public here only when it is asked for, with what it needs: `import latentalign` alone costs nothing."
    if name not in _HOMES: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from .base.docments import document
    globals()[name] = document(getattr(import_module(f".{_HOMES[name]}", __name__), name))
    return globals()[name]


def __dir__(): return sorted([*globals(), *__all__])
