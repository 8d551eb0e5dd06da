"""One figure learned: physics, trees on what physics leaves, each device's own correction, and each model's own measurements.

The target is the logarithm of milliseconds a step, or of megabytes. In order:

1. a roofline-like prior: time falls with the square root of the device's bandwidth times its rate; a ridge on logarithms of size and shape;
2. boosted trees on the rest. There are FOLDS of them, each grown without a third of the model families, so that what they leave of a row is honest;
3. a ridge for each device on the rest (shift and slopes), shrunk to zero: this is what ten rows of a new device calibrate;
4. kriging over each model's own rows (``kriging``), once over what the trees leave and once, smoother, over what the line leaves; they are mixed as
   leaving out each row in turn says.

A model without rows of its own gets the line and trees over all rows, which stand last in ``lines`` and ``trees``; there are more of those trees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unified_server.predictive.learned.conformal import FEW
from unified_server.predictive.learned.features import NUMBERS, RISING, Floats, Ints, Rows, derived
from unified_server.predictive.learned.kriging import Kriging
from unified_server.predictive.learned.trees import Trees

FOLDS = 3
_WORDS = ("platform", "device", "precision", "mode", "compile", "layout", "framework", "modality")
_SHIFT_PENALTY, _SLOPE_PENALTY = 0.05, 6.0
_FAR_OFF, _STEPS = 0.15, 10  # a logarithm; of reweighting
_KNOTS = (-4.0, -2.0, 0.0, 2.0, 4.0)
_ROUNDS = 200  # of trees, where there are rows enough to feed them


@dataclass(frozen=True, slots=True)
class Line:
    """A ridge on standardised columns; a value that is not known counts as the mean. ``words`` have a number each for the trees."""

    means: Floats
    scales: Floats
    weights: Floats
    intercept: float
    words: Mapping[str, float]

    @classmethod
    def fit(cls, rows: Rows, target: Floats) -> Line:
        columns = _linear(rows)
        with np.errstate(all="ignore"):
            known = ~np.isnan(columns)
            count = np.maximum(known.sum(axis=0), 1)
            means = np.where(known, columns, 0).sum(axis=0) / count
            scales = np.sqrt(np.where(known, (columns - means) ** 2, 0).sum(axis=0) / count)
        scales = np.where(scales > 1e-6, scales, np.inf)  # what never varied has no effect that could be known
        scaled = np.where(known, (columns - means) / scales, 0)
        penalty = np.full(scaled.shape[1], 1.0 + 0.001 * len(target))
        for name in ("bandwidth", "rate", "memory", "units", "version"):
            penalty[NUMBERS.index(name)] += 100.0 * len(target)  # a few devices teach no slope; physics has one
        intercept = float(np.median(target))
        weights = np.linalg.solve(scaled.T @ scaled + np.diag(penalty), scaled.T @ (target - intercept))
        weights[NUMBERS.index("batch")] = max(weights[NUMBERS.index("batch")], 0.0)
        left = target - intercept - scaled @ weights
        words: dict[str, float] = {}
        for kind in _WORDS:
            names = np.array(rows.words[kind], object).astype(str)
            levels = {str(name): float(np.median(left[names == name])) for name in np.unique(names)}
            words |= {f"{kind}:{name}": float(i) for i, name in enumerate(sorted(levels, key=lambda n: (levels[n], n)))}
        return cls(means, scales, weights, intercept, words)

    def predict(self, rows: Rows) -> Floats:
        columns = _linear(rows)
        total: Floats = np.where(np.isnan(columns), 0, (columns - self.means) / self.scales) @ self.weights + self.intercept
        return total

    def features(self, rows: Rows) -> Floats:
        """What the trees see: the numbers, their ratios, and the words in the order of their effect."""
        words = [[self.words.get(f"{kind}:{word}", np.nan) for word in rows.words[kind]] for kind in _WORDS]
        return np.column_stack([derived(rows.numbers), *words])


@dataclass(frozen=True, slots=True)
class Regressor:
    """One figure, fitted. ``folds``: which of the trees have not seen a model."""

    timed: bool  # the target is a time, which physics knows something about
    lines: Sequence[Line]
    trees: Sequence[Trees]
    folds: Mapping[str, int]
    devices: Mapping[str, Sequence[float]]
    rough: Kriging
    smooth: Kriging
    mix: float
    few: frozenset[str]  # devices with so few rows that only their own line knows them: the line of all rows does not

    @classmethod
    def fit(
        cls, rows: Rows, target: Floats, *, timed: bool, rounds: int = _ROUNDS, like: Regressor | None = None
    ) -> tuple[Regressor, Residuals]:
        """The fitted figure, and what its parts left of rows that they had not seen. ``like``: another one, whose settings are taken, not chosen anew."""
        rounds = min(rounds, 40 + len(target) // 20)
        families = _fold(rows.words["family"])
        fold = np.array([families[name] for name in rows.words["family"]])
        target = target - _physics(rows, timed)
        lines, trees = [], []
        residuals = np.zeros(len(target))
        for k in range(FOLDS + 1):  # the last leaves nobody out
            train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            train = train if len(train) else test
            line = Line.fit(rows.take(train), target[train])
            features, base = line.features(rows), line.predict(rows)
            grown = Trees.grow(features[train], target[train] - base[train], RISING, rounds=rounds * (1 + (k == FOLDS)), seed=k)
            residuals[test] = target[test] - base[test] - grown.predict(features[test])
            lines.append(line)
            trees.append(grown)
        rough, left = Kriging.fit(rows, residuals, like.rough.setting if like else None)
        devices = _device_lines(rows, left)
        unseen = residuals - _by_device(rows, devices)
        rough, left = Kriging.fit(rows, unseen, rough.setting)
        smooth, smooth_left = Kriging.fit(rows, target - lines[-1].predict(rows), like.smooth.setting if like else None)
        mix = min((0.0, 0.25, 0.5, 0.75, 1.0), key=lambda m: float(np.mean(np.abs(m * left + (1 - m) * smooth_left))))
        seen = mix * left + (1 - mix) * smooth_left
        folds = dict(zip(rows.words["model"], fold.tolist(), strict=True))
        few = frozenset(name for name, count in Counter(rows.words["device"]).items() if count < FEW)
        return cls(timed, lines, trees, folds, devices, rough, smooth, mix, few), Residuals(seen, unseen, residuals)

    def predict(self, rows: Rows) -> Floats:
        """The logarithm of the figure for each row."""
        fold = np.array([self.folds.get(model, FOLDS) for model in rows.words["model"]], int)
        total = np.zeros(len(rows))
        for k in range(FOLDS + 1):
            index = np.flatnonzero(fold == k)
            if len(index):
                part = rows.take(index)
                total[index] = self.lines[k].predict(part) + self.trees[k].predict(self.lines[k].features(part))
        total += _by_device(rows, self.devices) + self.rough.predict(rows)
        seen = np.flatnonzero(fold < FOLDS)
        if len(seen) and self.mix < 1:
            part = rows.take(seen)
            mix = np.array([1.0 if device in self.few else self.mix for device in part.words["device"]])
            total[seen] = mix * total[seen] + (1 - mix) * (self.lines[-1].predict(part) + self.smooth.predict(part))
        return total + _physics(rows, self.timed)


@dataclass(frozen=True, slots=True)
class Residuals:
    """Logarithm of measured over predicted: model seen (each row left out), model not seen, and device correction left out too."""

    seen: Floats
    unseen: Floats
    bare: Floats


def _fold(families: Sequence[str]) -> dict[str, int]:
    """A fold for each family, the largest first into the smallest fold."""
    names, counts = np.unique(np.array(families, object).astype(str), return_counts=True)
    sizes = [0] * FOLDS
    folds: dict[str, int] = {}
    for i in np.argsort(-counts, kind="stable"):
        k = sizes.index(min(sizes))
        folds[str(names[i])] = k
        sizes[k] += int(counts[i])
    return folds


def _linear(rows: Rows) -> Floats:
    numbers = rows.numbers
    shape = numbers[:, [NUMBERS.index(name) for name in ("batch", "length", "image", "gmacs", "macts", "parameters")]]
    unknown = np.isnan(shape[:, 1:]).astype(float)
    flags = [
        [float(word == value) for word in rows.words[kind]]
        for kind, value in (("platform", "cpu"), ("mode", "training"), ("precision", "fp32"))
    ]
    # A step takes its overhead until its work exceeds it: smooth hinges along the work of a step let a line bend there.
    work = derived(numbers)[:, len(NUMBERS) + 1] - np.nan_to_num(rows.column("rate"), nan=3.0)
    with np.errstate(invalid="ignore"):  # of a model without a size it is not known
        hinges = [np.logaddexp(0.0, work - knot) for knot in _KNOTS]
    return np.column_stack([numbers, unknown, *flags, *hinges])


def _physics(rows: Rows, timed: bool) -> Floats:
    """Time falls with what the device can do; nothing is assumed about memory."""
    if not timed:
        return np.zeros(len(rows))
    prior: Floats = -0.5 * np.nan_to_num(rows.column("bandwidth"), nan=6.5) - 0.5 * np.nan_to_num(rows.column("rate"), nan=3.0)
    return prior


def _slopes(rows: Rows) -> Floats:
    """1, and size and intensity around their usual values: what a device can differ in."""
    gmacs, macts, parameters = (np.nan_to_num(rows.column(name), nan=np.nan) for name in ("gmacs", "macts", "parameters"))
    columns = [gmacs - 1.5, macts - gmacs - 1.0, parameters - gmacs - 2.0, rows.column("batch") - 5.0]
    flags = [[float(word == "torch_compile") - 0.5 for word in rows.words["compile"]]]
    return np.column_stack([np.ones(len(rows)), *(np.clip(np.nan_to_num(column) / 2, -2, 2) for column in columns), *flags])


def _device_lines(rows: Rows, left: Floats) -> dict[str, list[float]]:
    slopes = _slopes(rows)
    penalty = np.diag([_SHIFT_PENALTY] + [_SLOPE_PENALTY] * (slopes.shape[1] - 1))
    names = np.array(rows.words["device"], object).astype(str)
    lines = {}
    for name in np.unique(names):
        index: Ints = np.flatnonzero(names == name)
        lines[str(name)] = _robust(slopes[index], left[index], penalty).tolist()
    return lines


def _robust(x: Floats, y: Floats, penalty: Floats) -> Floats:
    """A ridge in which a row that is far off counts for less (Huber's weights): of ten rows one odd model would move a device by a fifth."""
    found: Floats = np.zeros(x.shape[1])
    off = np.abs(y - np.median(y))
    for _ in range(_STEPS):
        weighted = x.T * (_FAR_OFF / np.maximum(off, _FAR_OFF))
        found = np.asarray(np.linalg.solve(weighted @ x + penalty, weighted @ y), np.float64)
        off = np.abs(y - x @ found)
    return found


def _by_device(rows: Rows, devices: Mapping[str, Sequence[float]]) -> Floats:
    none = [0.0] * 6
    weights = np.array([devices.get(device, none) for device in rows.words["device"]]).reshape(len(rows), -1)
    total: Floats = (_slopes(rows) * weights).sum(axis=1)
    return total


def calibrated(rows: Rows, left: Floats, known: Ints) -> Floats:
    """What is left of rows of one device once some of them are known."""
    return left - _by_device(rows, _device_lines(rows.take(known), left[known]))


def state(regressor: Regressor) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fitted figure as arrays and as JSON."""
    arrays: dict[str, Any] = {f"rough.{name}": value for name, value in regressor.rough.arrays().items()}
    arrays |= {f"smooth.{name}": value for name, value in regressor.smooth.arrays().items()}
    lines = []
    for k, (line, trees) in enumerate(zip(regressor.lines, regressor.trees, strict=True)):
        arrays |= {f"trees{k}.{name}": value for name, value in trees.arrays().items()}
        arrays |= {f"line{k}.means": line.means, f"line{k}.scales": line.scales, f"line{k}.weights": line.weights}
        lines.append({"intercept": line.intercept, "words": dict(line.words)})
    facts = {
        "timed": regressor.timed,
        "lines": lines,
        "folds": dict(regressor.folds),
        "devices": {name: list(weights) for name, weights in regressor.devices.items()},
        "rough": regressor.rough.facts(),
        "smooth": regressor.smooth.facts(),
        "mix": regressor.mix,
        "few": sorted(regressor.few),
    }
    return arrays, facts


def restored(arrays: Mapping[str, Any], facts: Mapping[str, Any]) -> Regressor:
    """The reverse of ``state``."""

    def under(prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}

    lines = []
    for k, line in enumerate(facts["lines"]):
        found = under(f"line{k}.")
        lines.append(Line(found["means"], found["scales"], found["weights"], line["intercept"], line["words"]))
    trees = [Trees.of_arrays(under(f"trees{k}.")) for k in range(len(lines))]
    rough, smooth = (Kriging.of(under(f"{name}."), facts[name]) for name in ("rough", "smooth"))
    return Regressor(facts["timed"], lines, trees, facts["folds"], facts["devices"], rough, smooth, facts["mix"], frozenset(facts["few"]))
