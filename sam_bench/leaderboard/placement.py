"""Where labels go so that they cover neither markers nor one another."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

_DISTANCES = (0.0, 7.0, 16.0, 28.0, 44.0, 64.0)
_ANGLES = (0, 180, 90, 270, 30, 150, 330, 210, 60, 120, 300, 240)
_GAP = 3.0
_CLEAR = 4.0
_MOST_ROUNDS = 8
# What a fault costs, in square pixels of overlap.
_AMBIGUOUS, _CROSSING, _PER_STEP = 20.0, 80.0, 0.6


@dataclass(frozen=True)
class Box:
    """A rectangle, in pixels."""

    x0: float
    y0: float
    x1: float
    y1: float

    def overlap(self, other: Box) -> float:
        """Area shared with another box."""
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        return max(0.0, width) * max(0.0, height)

    def outside(self, frame: Box) -> float:
        """Area that sticks out of a frame."""
        return (self.x1 - self.x0) * (self.y1 - self.y0) - self.overlap(frame)

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of the box nearest to (x, y)."""
        return min(max(x, self.x0), self.x1), min(max(y, self.y0), self.y1)


@dataclass(frozen=True)
class Marker:
    """A disc that a label belongs to: centre and radius in pixels, and the label's width and height."""

    x: float
    y: float
    radius: float
    width: float
    height: float

    @property
    def box(self) -> Box:
        """The square around the disc."""
        return Box(self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius)

    def gap(self, box: Box) -> float:
        """Distance from the disc's edge to a box; negative where they touch."""
        return math.dist(box.nearest(self.x, self.y), (self.x, self.y)) - self.radius


def needs_line(marker: Marker, box: Box, others: Sequence[Marker]) -> bool:
    """Whether a label is so far from its marker, or so near another, that a line has to join them."""
    own = marker.gap(box)
    return own > _GAP + 8 or any(other.gap(box) < own + _CLEAR for other in others)


def place_labels(markers: Sequence[Marker], frame: Box, obstacles: Sequence[Box] = ()) -> list[Box]:
    """A box for each marker's label.

    Each label takes the cheapest of the positions around its marker, given where the others are,
    until none moves: overlaps with labels, markers and obstacles cost most, being nearer to another
    marker less, distance a little.

    Args:
        markers: The discs, with the sizes of their labels.
        frame: The area labels should stay in.
        obstacles: Boxes that labels should not cover.
    """
    options = [_positions(marker) for marker in markers]
    fixed = [_fixed_costs(index, markers, boxes, frame, obstacles) for index, boxes in enumerate(options)]
    chosen = [boxes[costs.index(min(costs))] for boxes, costs in zip(options, fixed, strict=True)]
    for _ in range(_MOST_ROUNDS):
        before = list(chosen)
        for index, boxes in enumerate(options):
            others = [(markers[number], box) for number, box in enumerate(chosen) if number != index]
            costs = [
                cost + sum(_clash(markers[index], box, marker, other) for marker, other in others)
                for box, cost in zip(boxes, fixed[index], strict=True)
            ]
            chosen[index] = boxes[costs.index(min(costs))]
        if chosen == before:
            break
    return chosen


def _fixed_costs(
    index: int, markers: Sequence[Marker], boxes: Sequence[Box], frame: Box, obstacles: Sequence[Box]
) -> list[float]:
    """What each position of a label costs wherever the other labels are."""
    marker = markers[index]
    others = [other for number, other in enumerate(markers) if number != index]
    costs = []
    for order, box in enumerate(boxes):
        cost = _PER_STEP * order + 4 * box.outside(frame)
        cost += sum(box.overlap(other.box) for other in markers) + sum(box.overlap(other) for other in obstacles)
        cost += _AMBIGUOUS * sum(other.gap(box) < marker.gap(box) + _CLEAR for other in others)
        cost += _CROSSING * sum(_crosses(marker, box, other) for other in others)
        costs.append(cost)
    return costs


def _clash(marker: Marker, box: Box, other_marker: Marker, other: Box) -> float:
    """What two labels cost together: the area they share, and each line that runs through the other's text."""
    lines = _runs_through(marker, box, other) + _runs_through(other_marker, other, box)
    return box.overlap(Box(other.x0 - 1, other.y0 - 1, other.x1 + 1, other.y1 + 1)) + _CROSSING * lines


def _runs_through(marker: Marker, box: Box, text: Box) -> bool:
    """Whether the line from a label to its marker runs through another text."""
    x, y = box.nearest(marker.x, marker.y)
    # Most lines are nowhere near: not worth a walk along them.
    if max(x, marker.x) <= text.x0 or min(x, marker.x) >= text.x1:
        return False
    if max(y, marker.y) <= text.y0 or min(y, marker.y) >= text.y1:
        return False
    steps = (step / 12 for step in range(1, 12))
    points = ((x + step * (marker.x - x), y + step * (marker.y - y)) for step in steps)
    return any(text.x0 < px < text.x1 and text.y0 < py < text.y1 for px, py in points)


def _crosses(marker: Marker, box: Box, other: Marker) -> bool:
    """Whether the line from a label to its marker runs over another disc."""
    x, y = box.nearest(marker.x, marker.y)
    length = math.dist((x, y), (marker.x, marker.y))
    if length <= marker.radius + _GAP or math.dist((other.x, other.y), (marker.x, marker.y)) <= marker.radius:
        return False
    along = ((other.x - x) * (marker.x - x) + (other.y - y) * (marker.y - y)) / length**2
    along = min(max(along, 0.0), 1.0)
    foot = (x + along * (marker.x - x), y + along * (marker.y - y))
    return math.dist(foot, (other.x, other.y)) < other.radius


def _positions(marker: Marker) -> list[Box]:
    """Candidate boxes, the preferred first: right, left, above, below, between, then further away."""
    boxes = []
    for distance, angle in itertools.product(_DISTANCES, _ANGLES):
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        reach = marker.radius + _GAP + distance
        # The label's near side touches the ray: its centre lies half a label further out.
        x = marker.x + cosine * reach + _sign(cosine) * marker.width / 2
        y = marker.y + sine * reach + _sign(sine) * marker.height / 2
        boxes.append(Box(x - marker.width / 2, y - marker.height / 2, x + marker.width / 2, y + marker.height / 2))
    return boxes


def _sign(value: float) -> float:
    return 0.0 if abs(value) < 1e-9 else math.copysign(1.0, value)
