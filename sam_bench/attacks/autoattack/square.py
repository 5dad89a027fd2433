"""Square (Andriushchenko et al. 2020, arXiv 1912.00049): random search by squares, without gradients.

Every row has its own query counter, hence its own size of square; squares are masks over the whole
image, so that rows of any sizes share one batch and nothing has to be read back from the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sam_bench.attacks.autoattack import losses
from sam_bench.attacks.autoattack.square_init import channel_norm, tile_table
from sam_bench.attacks.autoattack.state import AttackState, Search, norms, wide
from sam_bench.errors import InputError
from sam_bench.perturb.l1 import l1_correction

_SHARE = 0.8  # p_init: share of the image that the first squares cover
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
_TILES = 5  # squares along a side of the start in L2 and L1
_INSIDE = 1.0 - 1e-6  # of the radius, in L1: that much is left to rounding
_TINY = 1e-12
_PATIENCE = 16  # steps
_MOST_AHEAD = 32  # queries: most are not taken, but not all


@dataclass
class SquareState(AttackState):
    """What a trial remembers.

    Attributes:
        best: The point of smallest margin.
        margin: Its margin, as the search computes it; the row is through when that is not positive.
    """

    best: Tensor
    margin: Tensor


def sides(queries: int, height: int, width: int, *, norm: str) -> list[int]:
    """Side of the square at each query: it covers a share of the image that halves on schedule.

    In L2 and L1 sides are odd and at least 3.
    """
    found = []
    for query in range(queries):
        share = _SHARE / 2 ** sum(query > limit for limit in _HALVINGS)
        side = round(math.sqrt(share * height * width))
        if norm == "Linf":
            side = max(side, 1)
        else:
            side = max(side, 3)
            side += 1 - side % 2
        found.append(min(side, height, width))
    return found


def refuse_small_images(height: int, width: int, norm: str) -> None:
    """Stop before any work where Square's start does not fit.

    Raises:
        InputError: In L2 and L1, images of fewer than five pixels along a side.
    """
    if norm != "Linf" and min(height, width) < _TILES:
        raise InputError(
            f"attack square in {norm} needs images of at least {_TILES}x{_TILES} pixels, not {height}x{width}: "
            f"use {'the attack pgd' if norm == 'L2' else 'autoattack-screen'}"
        )


def refuse_what_upstreams_square_cannot(height: int, width: int, norm: str) -> None:
    """Stop before any work where upstream's own Square fails: its start puts tiles over the image's edge.

    Raises:
        InputError: In L2 and L1, images that are too small for any Square, or whose sides such tiles do not fit.
    """
    if norm == "Linf":
        return
    if height < _TILES:
        refuse_small_images(height, width, norm)
    side = height // _TILES
    first = (height - side * _TILES) // 2
    over = any(first + length // side * side > length for length in (height, width))
    # A tile of one pixel vanishes at the edge, and a width of less than a tile has none.
    if over and width >= side > 1:
        raise InputError(
            f"attack square in {norm}, as its authors wrote it, fails on images of {height}x{width} pixels, where the "
            "tiles of its start do not fit: use `engine='fast'`"
        )


class Square(Search[SquareState]):
    """Random search on the margin: a proposal is kept where it lowers the margin.

    Args:
        queries: Proposals of a trial, after its start.
    """

    def __init__(self, *args: Any, queries: int = 5000, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._queries = queries
        height, width = self.examples.x.shape[-2:]
        sizes = sides(queries, height, width, norm=self.ball.norm)
        device = self.device
        # The first step evaluates the start; its side is never used.
        each = [sizes[0], *sizes] if sizes else [1]
        self._sides = torch.tensor(each, device=device)
        self._rows = torch.arange(height, device=device).view(1, -1, 1)
        self._columns = torch.arange(width, device=device).view(1, 1, -1)
        if self.ball.norm != "Linf":
            occurring = sorted({*each, height // _TILES})
            self._tiles = tile_table(occurring, norm=self.ball.norm, device=device)
            # About ten sides occur; a table of every side up to the largest would fill the memory at 1,000 pixels.
            self._numbers = torch.tensor([occurring.index(side) for side in each], device=device)
            self._number_at_start = occurring.index(height // _TILES)

    @property
    def check_every(self) -> int:
        """A row that is through changes no more, so that it can wait where asking makes the device idle."""
        return 1 if self.device.type == "cpu" or self.rng.in_step else _PATIENCE

    @property
    def steps(self) -> int:
        """Queries, and the evaluation of the start."""
        return self._queries + 1

    def init(self, row: Tensor, trial: Tensor) -> SquareState:
        """Vertical stripes in Linf, a grid of tiles in L2 and L1."""
        common = self.initial(row, trial)
        clean = common["clean"]
        start = self._stripes(common) if self.ball.norm == "Linf" else self._grid(common)
        return SquareState(
            **common,
            best=start,
            margin=torch.full((len(clean),), torch.inf, dtype=self.logits_dtype, device=clean.device),
        )

    @torch.no_grad()
    def step(self, state: SquareState) -> None:
        """The next queries of every row that is not through, up to the first that is taken.

        Where rows are few, the rest of a pass holds queries further ahead, made as if none before them were taken:
        those before the first that is taken are as they would have been one by one, the others are dropped and made
        anew.
        """
        ahead = 1 if self.rng.in_step else min(max(self.rows_a_pass // len(state), 1), _MOST_AHEAD)
        look = torch.arange(ahead, device=state.iteration.device)
        each = state
        if ahead > 1:
            each = state.take(torch.arange(len(state), device=look.device).repeat_interleave(ahead))
            each.iteration = (state.iteration[:, None] + look).flatten()
        proposals = self._propose(each)
        margins = self._margin(self.model.logits(proposals), each.label).view(len(state), ahead)
        query = each.iteration.view(len(state), ahead)
        taken = (query == 0) | (margins < state.margin[:, None]) | (margins <= 0)
        # A row that is through or spent waits for the next harvest.
        through = state.margin <= 0
        taken &= (state.margin > 0)[:, None] & (query < self.steps)
        first, any_taken = taken.int().argmax(1), taken.any(1)
        proposal = proposals.view(len(state), ahead, *proposals.shape[1:])[
            torch.arange(len(state), device=first.device), first
        ]
        state.best = torch.where(wide(any_taken, proposal), proposal, state.best)
        state.margin = torch.where(any_taken, margins.gather(1, first[:, None]).squeeze(1), state.margin)
        # One that is through asks nothing while it waits. If its candidate is rejected, it goes on from there.
        asked = torch.where(any_taken, first + 1, torch.where(through, 0, ahead))
        state.note(state.margin <= 0, state.best)
        state.iteration = state.iteration + asked

    @torch.no_grad()
    def on_rejected(self, state: SquareState, which: Tensor) -> Tensor:
        """A row stops at margin zero, as upstream's does, misclassified or not, but not at one of bfloat16 or TF32."""
        # With upstream's draws, rows fill a batch as large as the search's: the size decides how margins are rounded.
        checked = state if self.rng.in_step else state.take(which)
        margin = self._margin(self.model.exact_logits(checked.best), checked.label)
        margin = margin[which] if self.rng.in_step else margin
        state.margin[which] = margin
        return (margin <= 0).cpu()

    def _margin(self, logits: Tensor, label: Tensor) -> Tensor:
        margin = losses.margin(logits, label)
        # NaN is no right answer to the verifier, and no smaller margin than any to upstream.
        return margin if self.rng.in_step else margin.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)

    def _propose(self, state: SquareState) -> Tensor:
        start = state.iteration == 0
        if self.rng.in_step and bool(start.all()):
            return state.best  # nothing is drawn for it
        proposal = self._square(state) if self.ball.norm == "Linf" else self._moved_tile(state)
        return torch.where(wide(start, proposal), state.best, proposal)

    def _side(self, state: SquareState) -> Tensor:
        return self._sides[state.iteration.clamp_max(self._queries)]

    def _where(self, state: SquareState) -> tuple[Tensor, Tensor, Tensor]:
        return state.row, state.trial, state.iteration

    def _window(self, side: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """Mask of a square per row, bool [B, 1, H, W]; arguments int64 [B]."""
        top, left, side = (each.view(-1, 1, 1) for each in (top, left, side))
        inside = (self._rows >= top) & (self._rows < top + side)
        return (inside & (self._columns >= left) & (self._columns < left + side))[:, None]

    def _corner(self, uniform: Tensor, length: int, side: Tensor) -> Tensor:
        """First row or column of a square; as in upstream, the last possible one is never taken."""
        return ((length - side) * uniform.squeeze(1)).long()

    # Linf

    def _stripes(self, common: dict[str, Tensor]) -> Tensor:
        clean = common["clean"]
        _, channels, _, width = clean.shape
        where = common["row"], common["trial"], common["iteration"]
        signs = (2.0 * self.rng.uniform(*where, (channels, 1, width), stream=0) - 1.0).sign()
        return (clean + self.ball.eps * signs).clamp(0.0, 1.0)

    def _square(self, state: SquareState) -> Tensor:
        _, channels, height, width = state.clean.shape
        side = self._side(state)
        down, right, signs = self.rng.proposals(*self._where(state), (1, 1, channels), stream=1)
        window = self._window(side, self._corner(down, height, side), self._corner(right, width, side))
        change = 2.0 * self.ball.eps * (2.0 * signs - 1.0).sign()[:, :, None, None]
        moved = state.best + change * window
        return moved.clamp(state.clean - self.ball.eps, state.clean + self.ball.eps).clamp(0.0, 1.0)

    # L2 and L1

    def _grid(self, common: dict[str, Tensor]) -> Tensor:
        clean = common["clean"]
        _, channels, height, width = clean.shape
        side = height // _TILES
        where = common["row"], common["trial"], common["iteration"]
        delta = torch.zeros_like(clean)
        first = (height - side * _TILES) // 2
        stream = 2
        for top in range(first, first + height // side * side, side):
            for left in range(first, first + width // side * side, side):
                (turn,) = self.rng.proposals(*where, (1,), stream=stream)
                signs = (2.0 * self.rng.uniform(*where, (channels, 1, 1), stream=stream + 1) - 1.0).sign()
                tile = self._tiles[self._number_at_start, (turn.squeeze(1) > 0.5).long(), :side, :side][:, None]
                there = delta[:, :, top : top + side, left : left + side]
                there += (tile * signs)[:, :, : there.shape[2], : there.shape[3]]
                stream += 2
        return self._into_ball(delta, clean)

    def _moved_tile(self, state: SquareState) -> Tensor:
        """Take the perturbation out of one window and put its mass, with a tile added, into another."""
        _, channels, height, width = state.clean.shape
        side, norm = self._side(state), self.ball.norm
        down, right, down2, right2, turn = self.rng.proposals(*self._where(state), (1, 1, 1, 1, 1), stream=1)
        top, left = self._corner(down, height, side), self._corner(right, width, side)
        window = self._window(side, top, left)
        emptied = self._window(side, self._corner(down2, height, side), self._corner(right2, width, side))
        signs = (2.0 * self.rng.uniform(*self._where(state), (channels, 1, 1), stream=0) - 1.0).sign()

        delta = state.best - state.clean
        # Where all rows share a window, its norm is summed in upstream's order: two tiles that cancel leave
        # nothing but rounding, which is then scaled up to the window's whole mass.
        shared = (int(side[0]), int(top[0]), int(left[0])) if self.rng.in_step else None
        inside = delta * window
        old = inside / (_TINY + channel_norm(inside, norm, shared))
        mass = channel_norm(delta * (window | emptied), norm)
        new = (self._tile_at(state, top, left, (turn.squeeze(1) > 0.5).long()) * signs + old) * window
        new = new / (_TINY + channel_norm(new, norm, shared))
        radius, used = torch.full_like(mass, self.ball.eps), wide(norms(delta, norm), delta)
        if norm == "L2":
            new = new * ((radius**2 - used**2).clamp_min(0.0) / channels + mass**2).sqrt()
        else:
            new = new * ((radius - used).clamp_min(0.0) / channels + mass) * channels
        delta = torch.where(window, new, torch.where(emptied, torch.zeros_like(delta), delta))
        return self._into_ball(delta, state.clean)

    def _tile_at(self, state: SquareState, top: Tensor, left: Tensor, turned: Tensor) -> Tensor:
        """A row's tile in the window's place, [B, 1, H, W]; outside the window it means nothing."""
        last = self._tiles.shape[-1] - 1
        number = self._numbers[state.iteration.clamp_max(self._queries)].view(-1, 1, 1)
        row = (self._rows - top.view(-1, 1, 1)).clamp(0, last)
        column = (self._columns - left.view(-1, 1, 1)).clamp(0, last)
        return self._tiles[number, turned.view(-1, 1, 1), row, column][:, None]

    def _into_ball(self, delta: Tensor, clean: Tensor) -> Tensor:
        """Onto the sphere, then into the box, in L2; to the nearest point of both in L1."""
        if self.ball.norm == "L1":
            return clean + delta + l1_correction(delta, clean, self.ball.eps * _INSIDE, as_upstream=self.rng.in_step)
        return (clean + delta / (wide(norms(delta, "L2"), delta) + _TINY) * self.ball.eps).clamp(0.0, 1.0)
