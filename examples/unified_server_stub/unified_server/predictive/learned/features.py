"""From the measurement table to numbers: what a measurement says of its model, its device, its shape and its software.

Only what arrives at the server is read: the columns of the wire, and ``metadata`` as the bridge fills it (``device_name``, ``assumed``, and the
benchmark's own extras). Figures of the row itself are never a feature.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from unified_server.predictive.learned.specs import DeviceSpec, plain_name, published_specs

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Logarithms, NaN where unknown. The ratios help trees, which split on one axis at a time.
NUMBERS = ("batch", "length", "image", "gmacs", "macts", "parameters", "bandwidth", "rate", "memory", "units", "version", "devices")
RATIOS = (("gmacs", "macts"), ("gmacs", "parameters"), ("macts", "parameters"), ("gmacs", "image"), ("macts", "image"))
_SAID_FIGURES = NUMBERS[2:]
KINDS = ("model", "family", "platform", "device", "precision", "mode", "compile", "layout", "framework", "modality")
_plain = lru_cache(10_000)(plain_name)
_CARD = ("gmacs", "macts", "parameters", "image")
_FULL = re.compile(r"(fp|float)?(32|64)?$")  # of precisions; others are done by faster units of a graphics card
_PASSES, _QUICKER = math.log(3), 1.5  # of training: forward, and backward to inputs and weights; of those units, as a logarithm
_NUMBER = re.compile(r"\d+")
_VERSION = re.compile(r"(\d+)\.(\d+)")
_TAG = re.compile(r"\.[A-Za-z_].*$")  # of weights, in timm's names; 'qwen2-0.5b' keeps its half


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows as numbers (a column for each of NUMBERS) and words (one list for each of KINDS)."""

    numbers: Floats
    words: Mapping[str, list[str]]

    def __len__(self) -> int:
        return len(self.numbers)

    def column(self, name: str) -> Floats:
        values: Floats = self.numbers[:, NUMBERS.index(name)]
        return values

    def take(self, index: Ints) -> Rows:
        return Rows(self.numbers[index], {kind: [words[i] for i in index] for kind, words in self.words.items()})


@dataclass(frozen=True, slots=True)
class Cards:
    """What is known of each model, so that a row that does not say its size can be told: (model, image) and model -> medians."""

    known: Mapping[str, Sequence[float]]

    @classmethod
    def of(cls, rows: Rows) -> Cards:
        found: dict[str, list[Floats]] = {}
        image = NUMBERS.index("image")
        columns = [NUMBERS.index(name) for name in _CARD]
        for model, numbers in zip(rows.words["model"], rows.numbers, strict=True):
            card = numbers[columns]
            if not np.isnan(card).all():
                found.setdefault(model, []).append(card)
                found.setdefault(_sized(model, numbers[image]), []).append(card)
        return cls({name: [_median([card[i] for card in cards]) for i in range(len(_CARD))] for name, cards in found.items()})

    def fill(self, rows: Rows) -> Rows:
        """The rows with the gaps filled from the same model at the same image size, else from the same model."""
        numbers = rows.numbers.copy()
        image = NUMBERS.index("image")
        columns = [NUMBERS.index(name) for name in _CARD]
        for i in np.flatnonzero(np.isnan(numbers[:, columns]).any(axis=1)):
            model = rows.words["model"][i]
            for name in (_sized(model, numbers[i, image]), model):
                for column, value in zip(columns, self.known.get(name, ()), strict=False):
                    if math.isnan(numbers[i, column]):
                        numbers[i, column] = value
        return Rows(numbers, rows.words)


def read_rows(table: pa.Table, specs: Mapping[str, DeviceSpec] | None = None) -> Rows:
    """The rows of a table in ``measurement.TABLE_SCHEMA``."""
    specs = published_specs() if specs is None else specs
    columns = {name: table.column(name).to_pylist() for name in ("model_name", "model_family", "hardware_platform", "precision", "mode")}
    batches, lengths = table.column("batch_size").to_pylist(), table.column("sequence_length").to_pylist()
    texts = table.column("metadata").to_pylist()
    parsed = {text: _said(text, specs) for text in set(texts)}  # rows of one model and setting often say the same
    said = [parsed[text] for text in texts]
    stated = [None if one.length_assumed else length for one, length in zip(said, lengths, strict=True)]
    figures = np.array([one.figures for one in said], float).reshape(-1, len(_SAID_FIGURES))
    with np.errstate(divide="ignore", invalid="ignore"):
        shape = np.log(np.array([batches, stated], float).T.reshape(-1, 2))
        numbers = np.column_stack([shape, np.log(figures)])
    numbers[:, NUMBERS.index("version")] = figures[:, _SAID_FIGURES.index("version")]
    numbers[~np.isfinite(numbers)] = np.nan
    models = {name: _TAG.sub("", name or "") for name in set(columns["model_name"])}
    words = {
        "model": [models[name] for name in columns["model_name"]],
        "family": [family or models[name] for name, family in zip(columns["model_name"], columns["model_family"], strict=True)],
        "platform": [platform or "" for platform in columns["hardware_platform"]],
        "device": [one.device or platform or "" for one, platform in zip(said, columns["hardware_platform"], strict=True)],
        "precision": [precision or "" for precision in columns["precision"]],
        "mode": [mode or "" for mode in columns["mode"]],
    }
    words |= {kind: [one.words[i] for one in said] for i, kind in enumerate(KINDS[len(words) :])}
    return Rows(numbers, words)


def derived(numbers: Floats) -> Floats:
    """The numbers, the WORK of a step, and RATIOS: trees split on one axis at a time, so what acts as a product is given as one."""
    at = {name: numbers[:, i] for i, name in enumerate(NUMBERS)}
    batch, length = at["batch"], np.nan_to_num(at["length"])
    items = batch + length
    multiplied = batch + np.where(np.isnan(at["gmacs"]), at["parameters"] + length - 7.0, at["gmacs"])
    moved = batch + at["macts"]
    ratios = [at[a] - at[b] * (2 if b == "image" else 1) for a, b in RATIOS]
    return np.column_stack([numbers, items, multiplied, moved, *ratios])


def effort(rows: Rows) -> Floats:
    """About how long a step keeps the device busy, as a logarithm (0: about 2 ms at the rate of its specification): work over rate.

    A step takes its overhead until it is busy for longer, so time bends along this.
    """
    training = np.array([mode == "training" for mode in rows.words["mode"]], bool)
    exact = [_FULL.match(p) is not None or d == "cpu" for p, d in zip(rows.words["precision"], rows.words["platform"], strict=True)]
    work = derived(rows.numbers)[:, len(NUMBERS) + 1] - np.nan_to_num(rows.column("rate"), nan=3.0)
    busy: Floats = work + _PASSES * training - _QUICKER * ~np.array(exact, bool)
    return busy


#: The columns of ``derived`` along which neither time nor memory falls: the batch size, and what is a product with it.
RISING = (NUMBERS.index("batch"), *range(len(NUMBERS), len(NUMBERS) + 3))


@dataclass(frozen=True, slots=True)
class _Said:
    """What metadata says, in the order of _SAID_FIGURES and of the last of KINDS."""

    device: str
    figures: Sequence[float | None]
    words: Sequence[str]
    length_assumed: bool


def _said(text: str | None, specs: Mapping[str, DeviceSpec]) -> _Said:
    """The metadata with the benchmark's extras on one level; nearer levels win."""
    try:
        outer = json.loads(text) if text else None
    except ValueError:
        outer = None
    said: dict[str, Any] = {}
    _merge(outer, said)
    device = _plain(str(said.get("base_device_name") or said.get("device_name") or ""))
    spec = specs.get(device)
    version = _VERSION.search(str(said.get("software") or ""))
    image = _figure(said.get("img_size")) or _figure(said.get("image_size")) or _side(said.get("input_resolution"))
    sizes = (_figure(said.get("gmacs")), _figure(said.get("macts_million")), _figure(said.get("parameters_million")))
    rates = (spec.bandwidth_gb_s, spec.fp32_tflops, spec.memory_gb, spec.units) if spec else (None, None, None, None)
    release = int(version[1]) + int(version[2]) / 100 if version else None
    figures = (image, *sizes, *rates, release, _figure(said.get("num_devices")) or 1.0)
    words = [str(said.get(key) or "") for key in ("compile_mode", "memory_layout", "framework", "modality")]
    assumed = said.get("assumed")
    return _Said(device, figures, words, isinstance(assumed, list) and "sequence_length" in assumed)


def _merge(outer: Any, said: dict[str, Any], depth: int = 0) -> None:
    if isinstance(outer, dict) and depth < 4:
        for key in ("extras", "metrics", "metadata", "model"):
            if key in outer:
                _merge(outer[key], said, depth + 1)
        said.update(outer)


def _figure(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0 else None


def _side(resolution: Any) -> float | None:
    """'1x3x224x224' as the side of a square with as many elements."""
    sides = [int(side) for side in _NUMBER.findall(str(resolution or ""))[:6]]
    return math.sqrt(math.prod(sides)) if sides and all(0 < side < 1e6 for side in sides) else None


def _sized(model: str, image: float) -> str:
    return f"{model}@{image:.2f}"


def _median(values: list[Any]) -> float:
    known = sorted(value for value in values if not math.isnan(value))
    return float(known[len(known) // 2]) if known else math.nan
