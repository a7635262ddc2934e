"""`torchrun -m dgfast.train` and `python -m dgfast.train`: the same as `dgfast train`."""

from dgfast.commands.train import main
from dgfast.launcher import run

if __name__ == "__main__":
    run(main)
