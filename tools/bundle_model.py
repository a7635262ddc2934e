"""The bundled model from a run of `--preset showcase`: weights in half precision, settings, and the threshold.

python tools/bundle_model.py RUN_DIR
"""

import sys
from dataclasses import replace
from pathlib import Path

import dgfast
from dgfast.config import RunConfig
from dgfast.models.dgnet import save_model
from dgfast.run_directory import BUNDLED, MODEL, read_config, read_verification, write_config, write_verification


def main() -> None:
    """Write the model and the settings into the package."""
    run = Path(sys.argv[1])
    networks = dgfast.load(run)
    BUNDLED.mkdir(exist_ok=True)
    # Half precision halves the file; loading turns the weights into single precision again.
    save_model(networks.half(), networks.config, networks.num_classes, BUNDLED / MODEL)
    write_config(replace(read_config(run), run=RunConfig()), BUNDLED)  # where the run lay is nobody's concern
    if values := read_verification(run):
        write_verification(values, BUNDLED)


if __name__ == "__main__":
    main()
