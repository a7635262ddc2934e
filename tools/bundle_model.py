"""The bundled model from a run of `--preset showcase`: weights in half precision, the settings and the model card.

python tools/bundle_model.py RUN_DIR
"""

import sys

import dgfast
from dgfast.run_directory import BUNDLED

if __name__ == "__main__":
    model = dgfast.load(sys.argv[1])
    (BUNDLED / "README.md").unlink()  # git has it, so no copy need be kept beside the new one
    model.save_pretrained(BUNDLED, licence="apache-2.0", half=True)
