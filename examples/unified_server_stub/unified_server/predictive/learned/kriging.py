"""What a model's own measurements say beyond the rest: residuals carried from one configuration of a model to another.

The covariance of two residuals of one model falls with the distance of their configurations; residuals of two models are independent, so that each
model is a small system of equations of its own. The errors of leaving out each row in turn come with the solution
(Rasmussen and Williams, Gaussian Processes for Machine Learning, 5.4.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unified_server.predictive.learned.features import NUMBERS, Floats, Ints, Rows

_AXES = ("items", "batch", "length", "image", "gmacs", "parameters", "version", "devices")
_WORDS = ("platform", "device", "precision", "mode", "compile", "layout", "framework")
#: How far apart two configurations are: for each doubling or so along an axis, and for each word that differs. Far: what changes the whole level of
#: a model; near: what changes one configuration.
_FAR = np.array([0.15, 0.05, 0.05, 0.3, 1.0, 1.0, 0.1, 0.3, 0.3, 0.2, 0.15, 1.0, 0.1, 0.1, 0.5])
_NEAR = np.array([0.6, 0.15, 0.15, 1.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.5])
#: Share of the far part, noise, scale of distances, smoothness along batch size and length.
_SETTINGS = [
    (share, noise, scale, smooth)
    for share, scale in ((0.4, 0.15), (0.8, 0.4), (0.4, 1.0))
    for noise in (0.003, 0.02, 0.1)
    for smooth in (0.0, 1.0)
]
Setting = tuple[float, float, float, float]
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
                distance[index] = _distance(places[index], self.places[start:end], _NEAR).min(axis=1)
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
        share, noise, scale, smooth = facts["setting"]
        blocks = {name: (int(start), int(end)) for name, (start, end) in facts["blocks"].items()}
        return cls((share, noise, scale, smooth), facts["words"], blocks, arrays["places"], arrays["weights"])


def _places(rows: Rows, words: Mapping[str, int]) -> Floats:
    axes = rows.numbers[:, [NUMBERS.index(axis) for axis in _AXES[1:]]]
    numbers = np.column_stack([axes[:, 0] + np.nan_to_num(axes[:, 1]), axes])
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


def _distance(ours: Floats, theirs: Floats, scales: Floats, smooth: float = 0.0) -> Floats:
    """``smooth``: batch size and sequence length count by the square of their difference, so that figures bend slowly along them."""
    total = np.zeros((len(ours), len(theirs)))
    for i, scale in enumerate(scales):
        difference = ours[:, i : i + 1] - theirs[:, i]
        if smooth and i < 3:
            total += scale * smooth * difference**2
        else:
            total += scale * (np.abs(difference) if i < len(_AXES) else difference != 0)
    return total


def _kernel(ours: Floats, theirs: Floats, setting: Setting) -> Floats:
    share, _, scale, smooth = setting
    near = np.exp(-scale * _distance(ours, theirs, _NEAR, smooth))
    return share * np.exp(-scale * _distance(ours, theirs, _FAR, smooth)) + (1 - share) * near


def _solve(places: Floats, residuals: Floats, setting: Setting) -> tuple[Floats, Floats]:
    inverse = np.linalg.inv(_kernel(places, places, setting) + setting[1] * np.eye(len(places)))
    weights: Floats = inverse @ residuals
    return weights, weights / np.diag(inverse)


def _choose(groups: Sequence[Ints], places: Floats, residuals: Floats) -> Setting:
    """The setting that leaves the least when each row is left out in turn, tried on some 60 models."""
    tried = [index[:MOST_IN_BLOCK] for index in groups if len(index) >= _SHORTEST]
    tried = tried[:: max(1, len(tried) // 60)]
    if not tried:
        return _SETTINGS[0]
    return min(
        _SETTINGS,
        key=lambda setting: float(np.mean(np.abs(np.concatenate([_solve(places[i], residuals[i], setting)[1] for i in tried])))),
    )
