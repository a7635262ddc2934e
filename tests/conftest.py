"""What several test files share."""

import os

# One thread a process: spinning OpenMP threads on a loaded machine cost more than they give on tensors this small.
os.environ.setdefault("OMP_NUM_THREADS", "1")
