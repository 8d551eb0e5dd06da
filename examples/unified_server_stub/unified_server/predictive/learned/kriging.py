"""What a model's own measurements say beyond the rest: residuals carried from one configuration of a model to another.

The covariance of two residuals of one model falls with the distance of their configurations; residuals of two models are independent, so that each
model is a small system of equations of its own. The errors of leaving out each row in turn come with the solution
(Rasmussen and Williams, Gaussian Processes for Machine Learning, 5.4.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from unified_server.predictive.learned.features import NUMBERS, Floats, Ints, Rows, effort

_AXES = ("items", "batch", "length", "effort", "image", "gmacs", "parameters", "version", "devices")
_EFFORT = _AXES.index("effort")
_WORDS = ("platform", "device", "precision", "mode", "compile", "layout", "framework")
#: How far apart two configurations are: for each doubling or so along an axis, and for each word that differs. Far: what changes the whole level of
#: a model; near: what changes one configuration.
_FAR = np.array([0.15, 0.05, 0.05, 0.1, 0.3, 1.0, 1.0, 0.1, 0.3, 0.3, 0.2, 0.15, 1.0, 0.1, 0.1, 0.5])
_NEAR = np.array([0.6, 0.15, 0.15, 0.6, 1.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.5])
_ALONG = 0.05  # what is left of distances in batch size and length where effort is the measure


class Setting(NamedTuple):
    """How residuals carry over. ``share`` of the far part, ``noise``, ``scale`` of distances; ``smooth``: figures bend slowly along batch size and length.

    ``bend``: the effort at which a step takes longer than its overhead. Below it batch size and length change nothing, so that all such rows tell of
    each other; above it they change the figure by the effort that they add. None: effort is no measure of distance.
    """

    share: float
    noise: float
    scale: float
    smooth: bool
    bend: float | None


_SETTINGS = [
    Setting(share, noise, scale, smooth, bend)
    for share, scale in ((0.4, 0.15), (0.8, 0.4), (0.4, 1.0))
    for noise in (0.003, 0.02, 0.1)
    for smooth, bend in ((False, None), (True, None), (True, -2.0), (True, -1.0), (True, 0.0))
]
_PLAIN = _SETTINGS[0]
MOST_IN_BLOCK = 160
_SHORTEST = 3


@dataclass(frozen=True, slots=True)
class Kriging:
    """Weights of the rows of each model. ``blocks``: where a model's rows begin and end in ``places``."""

    setting: Setting
    words: Mapping[str, int]
    blocks: Mapping[str, tuple[int, int]]
    places: Floats
    weights: Floats

    @classmethod
    def fit(cls, rows: Rows, residuals: Floats, setting: Setting | None = None) -> tuple[Kriging, Floats]:
        """The weights, and for each row the residual that is left when it is told from the other rows of its model."""
        words = {word: i for i, word in enumerate(sorted({f"{kind}:{word}" for kind in _WORDS for word in rows.words[kind]}))}
        places = _places(rows, words)
        groups = _groups(rows.words["model"])
        chosen = setting or _choose(list(groups.values()), places, residuals)
        left = residuals.copy()
        kept: list[Ints] = []
        weights: list[Floats] = []
        blocks: dict[str, tuple[int, int]] = {}
        at = 0
        for model, index in groups.items():
            for part in _parts(index):
                solved, left[part] = _solve(places[part], residuals[part], chosen)
            blocks[model] = (at, at + len(part))
            at += len(part)
            kept.append(part)
            weights.append(solved)
        return cls(chosen, words, blocks, places[np.concatenate(kept)], np.concatenate(weights)), left

    def predict(self, rows: Rows) -> Floats:
        """The residual to expect; 0 for a model without measurements."""
        expected = np.zeros(len(rows))
        places = _places(rows, self.words)
        for model, index in _groups(rows.words["model"]).items():
            if model in self.blocks:
                start, end = self.blocks[model]
                expected[index] = _kernel(places[index], self.places[start:end], self.setting) @ self.weights[start:end]
        return expected

    def nearest(self, rows: Rows) -> Floats:
        """How far the nearest measured configuration of the same model is, in the unit of the near part; infinite without one."""
        distance = np.full(len(rows), np.inf)
        places = _places(rows, self.words)
        for model, index in _groups(rows.words["model"]).items():
            if model in self.blocks:
                start, end = self.blocks[model]
                distance[index] = _distances(places[index], self.places[start:end], _PLAIN)[0].min(axis=1)
        return distance

    def arrays(self) -> dict[str, Any]:
        return {"places": self.places, "weights": self.weights}

    def facts(self) -> dict[str, Any]:
        return {
            "setting": list(self.setting),
            "words": dict(self.words),
            "blocks": {name: list(ends) for name, ends in self.blocks.items()},
        }

    @classmethod
    def of(cls, arrays: Mapping[str, Any], facts: Mapping[str, Any]) -> Kriging:
        blocks = {name: (int(start), int(end)) for name, (start, end) in facts["blocks"].items()}
        return cls(Setting(*facts["setting"]), facts["words"], blocks, arrays["places"], arrays["weights"])


def _places(rows: Rows, words: Mapping[str, int]) -> Floats:
    axes = rows.numbers[:, [NUMBERS.index(axis) for axis in _AXES if axis in NUMBERS]]
    numbers = np.column_stack([axes[:, 0] + np.nan_to_num(axes[:, 1]), axes[:, :2], effort(rows), axes[:, 2:]])
    coded = [[float(words.get(f"{kind}:{word}", -1)) for word in rows.words[kind]] for kind in _WORDS]
    return np.column_stack([np.nan_to_num(numbers), *coded]) if len(rows) else np.zeros((0, len(_FAR)))


def _groups(models: Sequence[str]) -> dict[str, Ints]:
    names, codes = np.unique(np.array(models, object).astype(str), return_inverse=True)
    order = np.argsort(codes, kind="stable")
    bounds = np.searchsorted(codes[order], np.arange(len(names) + 1))
    return {str(name): order[bounds[i] : bounds[i + 1]] for i, name in enumerate(names)}


def _parts(index: Ints) -> list[Ints]:
    """A model with thousands of rows in parts that are solved apart; the last, which predicts, has the newest."""
    count = -(-len(index) // MOST_IN_BLOCK)
    return [part for part in np.array_split(index, count) if len(part)]


def _distances(ours: Floats, theirs: Floats, setting: Setting) -> tuple[Floats, Floats]:
    """By _NEAR and by _FAR. ``smooth`` and ``bend`` of the setting say what batch size and sequence length count."""
    near, far = np.zeros((len(ours), len(theirs))), np.zeros((len(ours), len(theirs)))
    varies = (ours != theirs[0]).any(axis=0) | (theirs != theirs[0]).any(axis=0)  # within a model few axes do
    for i in np.flatnonzero(varies):
        here, there, counts = ours[:, i], theirs[:, i], 1.0
        if i == _EFFORT:
            if setting.bend is None:
                continue
            here, there = np.logaddexp(0.0, here - setting.bend), np.logaddexp(0.0, there - setting.bend)
        elif i < _EFFORT and setting.bend is not None:
            counts = _ALONG
        apart = here[:, None] - there
        if i >= len(_AXES):
            apart = (apart != 0).astype(float)
        elif setting.smooth and i <= _EFFORT:
            apart = apart**2
        else:
            apart = np.abs(apart)
        near += _NEAR[i] * counts * apart
        far += _FAR[i] * counts * apart
    return near, far


def _kernel(ours: Floats, theirs: Floats, setting: Setting) -> Floats:
    return _falling(*_distances(ours, theirs, setting), setting)


def _falling(near: Floats, far: Floats, setting: Setting) -> Floats:
    covariance: Floats = setting.share * np.exp(-setting.scale * far) + (1 - setting.share) * np.exp(-setting.scale * near)
    return covariance


def _solve(places: Floats, residuals: Floats, setting: Setting) -> tuple[Floats, Floats]:
    return _solved(_kernel(places, places, setting), residuals, setting)


def _solved(covariance: Floats, residuals: Floats, setting: Setting) -> tuple[Floats, Floats]:
    """The weights, and what is left of each row when it is left out."""
    inverse = np.linalg.inv(covariance + setting.noise * np.eye(len(residuals)))
    weights: Floats = inverse @ residuals
    return weights, weights / np.diag(inverse)


def _choose(groups: Sequence[Ints], places: Floats, residuals: Floats) -> Setting:
    """The setting that leaves the least when each row is left out in turn, tried on some 60 models."""
    tried = [index[:MOST_IN_BLOCK] for index in groups if len(index) >= _SHORTEST]
    tried = tried[:: max(1, len(tried) // 60)]
    if not tried:
        return _PLAIN
    errors = dict.fromkeys(_SETTINGS, 0.0)
    for index in tried:
        distances: dict[tuple[bool, float | None], tuple[Floats, Floats]] = {}  # which settings share: they take the longest
        for setting in _SETTINGS:
            ruler = setting.smooth, setting.bend
            if ruler not in distances:
                distances[ruler] = _distances(places[index], places[index], setting)
            errors[setting] += float(np.abs(_solved(_falling(*distances[ruler], setting), residuals[index], setting)[1]).sum())
    return min(errors, key=errors.__getitem__)
