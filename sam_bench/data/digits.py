"""scikit-learn's handwritten digits: real images that come with a dependency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sam_bench.data.splits import Dataset, Split

TRAIN_EXAMPLES = 1297


def load_digits(data_dir: Path, test_only: bool) -> Dataset:
    """The 1,797 digits at 8x8, divided once and for all into 1,297 training and 500 test images.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (its test part).

    Args:
        data_dir: Not used; nothing is downloaded.
        test_only: Leave the training part out.
    """
    from sklearn import datasets

    digits = datasets.load_digits()
    # Values 0 to 16 become 0 to 255; the division is by a power of two, hence exact before rounding.
    images = torch.from_numpy(np.round(digits.images * 255 / 16).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    # RandomState's stream is frozen across NumPy versions: this order never changes.
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(labels)))
    train, test = order[:TRAIN_EXAMPLES], order[TRAIN_EXAMPLES:]
    return Dataset(
        name="digits",
        train=None if test_only else Split(images[train], labels[train]),
        test=Split(images[test], labels[test]),
        classes=tuple(str(digit) for digit in range(10)),
        mirrors=False,
    )
