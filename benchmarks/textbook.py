"""What sam-bench is measured against: the loop as papers' code usually has it.

float32, NCHW, a DataLoader that decodes and transforms one PIL image after the other, SAM one tensor
at a time, and PGD that calls `loss.backward()`, which fills the parameters' gradients at every step.
Nothing here is slowed down on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from sam_bench.data import Split

EPS, STEP_SIZE, STEPS, RHO = 8 / 255, 2 / 255, 10, 0.1


class PilImages(Dataset[tuple[Tensor, int]]):
    """Images kept as arrays, made PIL images and transformed when asked for."""

    def __init__(self, split: Split, *, flip: bool) -> None:
        self.arrays = split.images.permute(0, 2, 3, 1).squeeze(-1).numpy()
        self.labels = split.labels.tolist()
        size = split.images.shape[-1]
        steps = [transforms.RandomCrop(size, padding=4, padding_mode="reflect")]
        if flip:
            steps.append(transforms.RandomHorizontalFlip())
        self.transform = transforms.Compose([*steps, transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.arrays[index])), self.labels[index]


def loader(
    split: Split, *, batch_size: int, workers: int, flip: bool, pinned: bool, drop_last: bool
) -> DataLoader[tuple[Tensor, int]]:
    """Shuffled batches, drawn from PyTorch's global stream."""
    return DataLoader(
        PilImages(split, flip=flip),
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=pinned,
        persistent_workers=workers > 0,
        drop_last=drop_last,
    )


def forever(batches: DataLoader[tuple[Tensor, int]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch, on the device."""
    while True:
        for x, y in batches:
            yield x.to(device, non_blocking=True), y.to(device, non_blocking=True)


def pgd(model: nn.Module, x: Tensor, y: Tensor, start: Tensor | None = None) -> Tensor:
    """PGD as it is commonly written; the caller clears the gradients it leaves behind."""
    x_adv = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp(0, 1) if start is None else start
    for _ in range(STEPS):
        x_adv = x_adv.detach().requires_grad_(True)
        F.cross_entropy(model(x_adv), y).backward()
        assert x_adv.grad is not None
        x_adv = x_adv.detach() + STEP_SIZE * x_adv.grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - EPS), x + EPS).clamp(0, 1)
    return x_adv.detach()


class Textbook:
    """One of the three methods, a step at a time."""

    def __init__(self, model: nn.Module, method: str, *, lr: float, momentum: float, weight_decay: float) -> None:
        self.model, self.method = model, method
        self.optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)

    def __call__(self, x: Tensor, y: Tensor, *, lr: float, start: Tensor | None = None) -> None:
        """Learn from one batch; `start` is where PGD begins."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.method == "at":
            x = pgd(self.model, x, y, start)
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(x), y).backward()
        if self.method == "sam":
            with torch.no_grad():
                gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
                norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
                moves = []
                for p in self.model.parameters():
                    if p.grad is not None:
                        move = p.grad * (RHO / (norm + 1e-12))
                        p.add_(move)
                        moves.append((p, move))
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(x), y).backward()
            with torch.no_grad():
                for p, move in moves:
                    p.sub_(move)
        self.optimizer.step()
