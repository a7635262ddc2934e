"""`torchrun -m dgfast.profile` and `python -m dgfast.profile`: the same as `dgfast profile`."""

from dgfast.commands.profile import main
from dgfast.launcher import run

if __name__ == "__main__":
    run(main)
