"""What every test may count on."""

from __future__ import annotations

import sys
from pathlib import Path

# `team`, for the tests of every folder.
sys.path.insert(0, str(Path(__file__).parent))

# `make` puts torchattacks, an oracle, into a folder of its own: in the environment itself it would
# overwrite robustbench with an old copy. Last on the path, so that it hides nothing.
sys.path.append(str(Path(sys.prefix) / "torchattacks"))
