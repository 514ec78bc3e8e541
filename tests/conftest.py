"""One thread for every test and every process that a test starts: the tiny model's matrices are too small to share.

On two busy cores the threads waited for each other ten times as long as they worked.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
