"""Which candidates to measure: those that would take most from the predictor's error, together.

**The formula.** A candidate has a width: the logarithm of the upper over the lower bound that the predictor gives of it, which is what it does not
know of it. Where it has no answer it knows least: the width is the largest there is, and that of a factor of 100 at least.

What is not known of a candidate is taken for a sum of effects: of its model, of its model on its device, of its family in its setting (device,
precision and mode), and of the setting itself, its offset and its slopes. What is left of an effect after n measurements with it falls as the
variance of a mean does, under a prior that is worth p measurements, with 1 / (1 + n / p) (the random-effects model; see Searle, Casella and
McCulloch, Variance Components, 1992). So measuring s gains

    sum over the effects g of s:  part(g) x W(g) x (1 / (1 + n(g) / p(g)) - 1 / (1 + (n(g) + 1) / p(g)))

where W(g) is the sum of the widths of all candidates with that effect, and n(g) how many configurations with it were measured or chosen before.
Candidates are chosen one after the other, the largest gain first. Diversity comes with the sum: a second batch size of a model gains little after the
first, and a device that nothing was measured on outweighs all else until it has some measurements; then what is measured spreads over families and
settings. It is a sum of concave functions of counts, so it is submodular, and the greedy choice reaches 1 - 1/e of the best there is (Nemhauser,
Wolsey and Fisher, 1978). A gain is told as a part of all that is left to learn.

A runner works through the list from its head, and the sum alone can name a model that stands for much again and again: so a model on a device comes
once in the first five, twice in the first ten and so on, as long as there is anything else.

Among candidates with the same effects the widest is taken first, then the batch size that is farthest from those measured and chosen.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

#: Of each effect how much of what is not known it is, and how many measurements its prior is worth. A setting is an offset, which a few measurements
#: show, and slopes over the size of a model, which take many. docs/decisions/predictor.md says how these were found.
EFFECTS: Mapping[str, tuple[float, float]] = {
    "model": (0.05, 1.0),
    "model_on_device": (0.05, 1.0),
    "family_in_setting": (0.3, 1.0),
    "setting": (0.25, 2.0),
    "slopes_of_setting": (0.35, 20.0),
}
WIDEST = math.log(100)
_BETWEEN = 5  # a model on a device comes once in so many places of the list, as long as there are others


@dataclass(frozen=True, slots=True)
class Subject:
    """What has effects: a candidate, or a configuration that was measured. `device` stands for one on one hardware."""

    model: str
    family: str
    device: str
    precision: str
    mode: str
    batch_size: int

    def effects(self) -> tuple[tuple[str, ...], ...]:
        return (
            ("model", self.model, self.mode),
            ("model_on_device", self.model, self.mode, self.device),
            ("family_in_setting", self.family, self.device, self.precision, self.mode),
            ("setting", self.device, self.precision, self.mode),
            ("slopes_of_setting", self.device, self.precision, self.mode),
        )


@dataclass(frozen=True, slots=True)
class Chosen:
    """`place` in the candidates; `gain`: a part of all that is left to learn; `stands_for`: the other candidates of its model."""

    place: int
    gain: float
    stands_for: int


@dataclass(slots=True)
class _Effect:
    part: float
    prior: float
    weight: float = 0.0
    measured: int = 0
    candidates: int = 0

    def left(self, more: int = 0) -> float:
        return self.part * self.weight / (1 + (self.measured + more) / self.prior)


@dataclass(slots=True)
class _Alike:
    """Candidates with the same effects."""

    effects: Sequence[_Effect]
    places: list[int]

    def gain(self) -> float:
        return sum(effect.left() - effect.left(1) for effect in self.effects)


def choose(candidates: Sequence[Subject], widths: Sequence[float | None], measured: Iterable[Subject], limit: int) -> list[Chosen]:
    """At most so many, the largest gain first. `widths`: None where the predictor has no answer. The same question has the same answer."""
    widest = max([WIDEST, *(width for width in widths if width is not None)])
    known = [widest if width is None else width for width in widths]
    effects: dict[tuple[str, ...], _Effect] = {}
    alike: dict[tuple[tuple[str, ...], ...], _Alike] = {}
    for place, (one, width) in enumerate(zip(candidates, known, strict=True)):
        keys = one.effects()
        for key in keys:
            effect = effects.setdefault(key, _Effect(*EFFECTS[key[0]]))
            effect.weight += width
            effect.candidates += 1
        alike.setdefault(keys, _Alike([effects[key] for key in keys], [])).places.append(place)
    taken: dict[tuple[str, ...], list[float]] = {}  # logarithms of batch sizes, by model on device
    for one in measured:
        keys = one.effects()
        for key in keys:
            if key in effects:
                effects[key].measured += 1
        taken.setdefault(keys[1], []).append(math.log(one.batch_size))
    left = sum(effect.left() for effect in effects.values()) or 1.0
    heap = [(-one.gain(), order, one) for order, one in enumerate(alike.values())]
    heapq.heapify(heap)
    chosen: list[Chosen] = []
    named: Counter[tuple[str, ...]] = Counter()
    resting: list[tuple[float, int, _Alike]] = []  # of models on devices that the list has often enough for now
    while len(chosen) < limit and (heap or resting):
        if not heap:
            heap, resting = resting, []
            named.clear()  # there is nothing else left
            heapq.heapify(heap)
        _, order, best = heapq.heappop(heap)
        gain = best.gain()  # it can only have fallen since it was looked at
        cell = candidates[best.places[0]].effects()[1]
        if named[cell] > len(chosen) // _BETWEEN:
            resting.append((-gain, order, best))
            continue
        if heap and -heap[0][0] > gain:
            heapq.heappush(heap, (-gain, order, best))
            continue
        place = _farthest(best.places, candidates, known, sizes := taken.setdefault(cell, []))
        chosen.append(Chosen(place, gain / left, best.effects[0].candidates - 1))
        best.places.remove(place)
        sizes.append(math.log(candidates[place].batch_size))
        named[cell] += 1
        for effect in best.effects:
            effect.measured += 1
        if best.places:
            resting.append((-best.gain(), order, best))
        for rested in resting:
            heapq.heappush(heap, rested)
        resting = []
    return chosen


def _farthest(places: Sequence[int], candidates: Sequence[Subject], widths: Sequence[float], taken: Sequence[float]) -> int:
    """The widest; among those the batch size farthest from those taken, or in the middle where none was."""
    sizes = sorted(math.log(candidates[place].batch_size) for place in places)
    middle = sizes[len(sizes) // 2]

    def rank(place: int) -> tuple[float, float, float]:
        size = math.log(candidates[place].batch_size)
        return round(widths[place], 3), min((abs(size - other) for other in taken), default=-abs(size - middle)), -size

    return max(places, key=rank)
