"""`accelerate launch -m latentalign.train --variant lin`: a training as it stands in `nbs/3_training/80_run.ipynb`."""
from .training.run import parse_options, train

if __name__ == '__main__': train(parse_options())
