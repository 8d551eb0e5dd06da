"""Boosted trees as plain arrays: scikit-learn grows them, and they can be kept in a file without pickle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor

from unified_server.predictive.learned.features import Floats

_NO_CATEGORIES = np.zeros((0, 8), np.uint32)


@dataclass(frozen=True, slots=True)
class Trees:
    """A sum of trees: the nodes of all of them, where each begins, and what is added."""

    nodes: npt.NDArray[np.void]
    starts: npt.NDArray[np.int64]
    baseline: float

    @classmethod
    def grow(cls, features: Floats, target: Floats, rising: Sequence[int], *, rounds: int, seed: int = 0) -> Trees:
        """Least absolute error, which is what a median of errors asks for. ``rising``: columns along which the answer must never fall."""
        constraints = np.zeros(features.shape[1], int)
        constraints[list(rising)] = 1
        # scikit-learn cannot bin a column without two values.
        usable = np.array([len(np.unique(column[~np.isnan(column)])) > 1 for column in features.T])
        grown = HistGradientBoostingRegressor(
            loss="absolute_error",
            max_iter=rounds,
            learning_rate=0.08,
            max_leaf_nodes=31,
            min_samples_leaf=min(10, max(2, len(target) // 40)),
            max_features=0.4,
            monotonic_cst=constraints,
            early_stopping=False,
            random_state=seed,
        ).fit(np.where(usable, features, np.arange(len(features))[:, None] % 2 * 1e-9), target)
        parts = [round_[0].nodes for round_ in grown._predictors]
        starts = np.cumsum([0, *(len(part) for part in parts)])
        return cls(np.concatenate(parts), starts, float(np.ravel(grown._baseline_prediction)[0]))

    def predict(self, features: Floats) -> Floats:
        total = np.full(len(features), self.baseline)
        features = np.ascontiguousarray(features, np.float64)
        for start, end in zip(self.starts[:-1], self.starts[1:], strict=True):
            tree = TreePredictor(self.nodes[start:end], _NO_CATEGORIES, _NO_CATEGORIES)
            total += tree.predict(features, _NO_CATEGORIES, np.zeros(features.shape[1], np.uint32), 1)
        return total

    def arrays(self) -> dict[str, Any]:
        return {"nodes": self.nodes, "starts": self.starts, "baseline": np.array(self.baseline)}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, Any]) -> Trees:
        return cls(cast("npt.NDArray[np.void]", arrays["nodes"]), arrays["starts"], float(arrays["baseline"]))
