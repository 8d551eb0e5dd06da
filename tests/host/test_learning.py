"""The predictor learns from what is recorded, says how sure it is, and says so where it knows nothing."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from unified_server.config import LearningConfig
from unified_server.predictive.measurement import TABLE_SCHEMA, aligned
from unified_server.predictive.service import PredictivePerformance

from .calls import API, done
from .conftest import MakeApp

pytest.importorskip("sklearn", reason="the extra learn is not installed")

import numpy as np
from unified_server.predictive.learned.features import read_rows
from unified_server.predictive.learned.predictor import Predictor
from unified_server.predictive.learned.regressor import calibrated
from unified_server.predictive.learned.versions import Untrusted, Versions

DEVICES = {"NVIDIA GeForce RTX 4090": 3.0, "NVIDIA GeForce RTX 3090": 1.5}


def measured(model: int, batch_size: int, device: str = "NVIDIA GeForce RTX 4090", platform: str = "cuda") -> dict[str, Any]:
    """A model of so many GMACs at 1/device of a millisecond each, with a floor of 2 ms a step and 100 MB beside its parameters."""
    gmacs = 0.5 * model
    latency = 2.0 + gmacs * batch_size / DEVICES.get(device, 1.0) * (1 + 0.05 * math.sin(7 * model))
    extras = {"gmacs": gmacs, "macts_million": 8 * gmacs, "parameters_million": 5 * gmacs}
    return {
        "model_name": f"net{model}",
        "model_family": f"family{model % 7}",
        "hardware_platform": platform,
        "batch_size": batch_size,
        "precision": "fp16",
        "throughput": batch_size * 1000 / latency,
        "latency": latency,
        "memory_usage": 100 + 10 * gmacs * (2 + batch_size),
        "metadata": json.dumps({"device_name": device, "assumed": ["sequence_length"], "extras": extras}),
    }


ROWS = [measured(model, 2**power, device) for model in range(1, 15) for power in (0, 2, 4, 5) for device in DEVICES]
TABLE = aligned(pa.Table.from_pylist(ROWS, schema=TABLE_SCHEMA))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.fit(TABLE)


@pytest.fixture(scope="module")
def learned(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PredictivePerformance]:
    """A service with a version that was learned from ROWS."""
    file = tmp_path_factory.mktemp("learned") / "predictive.duckdb"
    service = PredictivePerformance(str(file), learning=LearningConfig(enabled=True))
    service.record_measurement_table(TABLE)
    summary = {"trained_at": "2026-11-26T00:00:00+00:00", "rows": len(ROWS), "recorded": len(ROWS), "errors": predictor.summary()}
    Versions(f"{file}.predictor").save(predictor, summary)
    yield service
    service.close()


@pytest.mark.timeout(300)
def test_the_server_trains_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The version is in force when the process has ended; its measurements are not left behind."""
    service = PredictivePerformance(str(tmp_path / "p.duckdb"), learning=LearningConfig(enabled=True, minimum_rows=20))
    service.record_measurement_table(TABLE.slice(0, 40))
    assert service.learning.train(), service.learning.describe()
    told = service.learning.describe()
    assert (told["version"], told["rows"], told["failure"], told["next"]["new_rows"]) == (1, 40, None, 0)
    assert not list(tmp_path.glob("p.duckdb.predictor/*.arrow"))
    service.close()


def test_a_configuration_that_was_not_measured_is_told_from_the_others(learned: PredictivePerformance) -> None:
    """Between two batch sizes the truth lies inside the interval, and the prediction is near it."""
    truth = measured(5, 8)
    answer = learned.predict("net5", "cuda", batch_size=8, precision="fp16")["cuda"]
    assert answer["source"] == "learned"
    assert answer["seen"] == {"model": True, "hardware": True}
    assert answer["predictor_version"] == learned.learning.describe()["version"]
    assert answer["prediction_id"].startswith("prediction-")
    for figure in ("throughput", "latency", "memory_usage"):
        low, high = answer["interval"][figure]
        assert low <= answer[figure] <= high
        assert answer[figure] == pytest.approx(truth[figure], rel=0.6)


def test_the_very_configuration_that_was_measured_stays_a_median_of_measurements(service: PredictivePerformance) -> None:
    """What is known is not replaced by what is guessed."""
    service.record_measurements([{**ROWS[0], "throughput": value} for value in (90.0, 100.0, 110.0)])
    answer = service.predict("net1", "cuda", batch_size=1, precision="fp16")["cuda"]
    assert (answer["source"], answer["throughput"]) == ("measured", 100.0)


def test_a_table_is_predicted_row_by_row_in_its_order(learned: PredictivePerformance) -> None:
    """Known models, a model known by its size alone, and one that nothing is known of."""
    unknown = {"model_name": "never-seen", "hardware_platform": "cuda", "batch_size": 4, "precision": "fp16"}
    sized = {**measured(40, 4), "model_name": "net40", "model_family": "another", "throughput": None}
    asked = pa.Table.from_pylist([ROWS[8], unknown, sized], schema=TABLE_SCHEMA)
    found = learned.predict_measurements(asked)
    assert found.column("source").to_pylist() == ["learned", "insufficient_measurements", "learned"]
    assert found.column("model_seen").to_pylist() == [True, False, False]
    assert found.column("throughput").to_pylist()[1] is None
    rows = found.to_pylist()
    assert rows[0]["throughput"] == pytest.approx(ROWS[8]["throughput"], rel=0.5)
    assert rows[0]["throughput_lo"] < rows[0]["throughput"] < rows[0]["throughput_hi"]
    assert "predict_bulk" in learned.describe()["capabilities"]


def test_one_odd_row_of_ten_does_not_move_what_is_expected_of_a_device() -> None:
    """A device takes 0.6 of the time that its specification says, but one of the ten rows known of it seven times as long: it timed something else."""
    rows = read_rows(aligned(pa.Table.from_pylist([measured(model, 2, "NVIDIA L4") for model in range(1, 21)], schema=TABLE_SCHEMA)))
    left = np.where(np.arange(20) == 4, 1.9, -0.5)
    assert np.abs(calibrated(rows, left, np.arange(10))[10:]).max() < 0.1


def test_the_own_figures_of_a_row_do_not_change_what_is_expected_of_it(learned: PredictivePerformance) -> None:
    """Else a wrong result would vouch for itself."""
    right, wrong = ROWS[20], {**ROWS[20], "throughput": 1e9, "latency": 1e-6, "memory_usage": 1.0}
    found = learned.predict_measurements(pa.Table.from_pylist([right, wrong], schema=TABLE_SCHEMA)).to_pylist()
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"hardware_platform": "webnn", "metadata": None}, "nothing was measured on this platform"),
        ({"batch_size": 100_000}, "more than 8 times away"),
        ({"model_name": "x", "metadata": '{"device_name": "NVIDIA GeForce RTX 4090"}'}, "size is not known"),
        ({"metadata": '{"device_name": "Unheard Of 9"}'}, "specification is not known"),
    ],
)
def test_far_from_anything_measured_it_says_so(predictor: Predictor, changed: dict[str, Any], why: str) -> None:
    """No figure, and the reason."""
    forecast = predictor.forecast(pa.Table.from_pylist([{**ROWS[0], **changed}], schema=TABLE_SCHEMA))
    assert why in forecast.reasons[0]
    assert all(math.isnan(figure[0][0]) for figure in forecast.figures.values())


def test_a_version_predicts_the_same_after_it_was_written_and_read(predictor: Predictor, tmp_path: Path) -> None:
    """Arrays and JSON hold all of it; the key is for the owner alone."""
    versions = Versions(tmp_path)
    number = versions.save(predictor, {"rows": len(ROWS)})
    restored = Versions(tmp_path).load(number)
    assert restored.summary["rows"] == len(ROWS)
    before, after = predictor.forecast(TABLE), restored.predictor.forecast(TABLE)
    for figure, arrays in before.figures.items():
        for one, other in zip(arrays, after.figures[figure], strict=True):
            assert one.tolist() == other.tolist()
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_only_the_newest_versions_are_kept(predictor: Predictor, tmp_path: Path) -> None:
    """Five trainings leave three versions."""
    versions = Versions(tmp_path)
    for _ in range(5):
        versions.save(predictor, {})
    assert sorted(file.name for file in tmp_path.glob("*.npz")) == ["3.npz", "4.npz", "5.npz"]


@pytest.mark.parametrize("end", ["npz", "json"])
def test_a_version_that_was_changed_on_disk_is_not_read(predictor: Predictor, tmp_path: Path, end: str) -> None:
    """Neither its arrays nor its words."""
    versions = Versions(tmp_path)
    file = tmp_path / f"{versions.save(predictor, {'rows': 5})}.{end}"
    content = bytearray(file.read_bytes())
    at = content.index(b'"rows": 5') + 8 if end == "json" else len(content) // 2
    content[at] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(Untrusted, match="was not written by this server"):
        versions.load(1)


def test_a_version_in_the_layout_of_another_release_is_not_read(predictor: Predictor, tmp_path: Path) -> None:
    """It is signed by this server, and yet a part is missing: the formula answers until the next training."""
    versions = Versions(tmp_path)
    number = versions.save(predictor, {})
    arrays, described = (tmp_path / f"{number}.npz").read_bytes(), tmp_path / f"{number}.json"
    said = json.loads(described.read_text())
    del said["facts"]["figures"]["time"]["regressor"]["few"], said["signature"]
    signed = hashlib.sha256(arrays).digest() + json.dumps(said, sort_keys=True).encode()
    said["signature"] = hmac.new((tmp_path / "key").read_bytes(), signed, hashlib.sha256).hexdigest()
    described.write_text(json.dumps(said))
    with pytest.raises(Untrusted, match="layout of another release: KeyError\\('few'\\)"):
        versions.load(number)


def test_another_process_notices_a_new_version(learned: PredictivePerformance) -> None:
    """A service over the same files predicts with what the first has learned, without training."""
    other = PredictivePerformance(str(learned.file.path), learning=LearningConfig(enabled=True))
    found = other.predict_measurements(TABLE.slice(0, 1)).to_pylist()[0]
    assert found == learned.predict_measurements(TABLE.slice(0, 1)).to_pylist()[0]
    assert found["source"] == "learned"
    other.close()


def test_the_predictor_tells_what_it_rests_on(learned: PredictivePerformance) -> None:
    """Version, rows, errors of cross-validation, libraries, and what is missing until the next training."""
    told = learned.learning.describe()
    assert (told["version"], told["rows"], told["failure"]) == (1, len(ROWS), None)
    assert told["errors"]["time"]["seen/known_error_percent"] < 20
    assert "scikit-learn" in told["libraries"]
    assert told["next"]["new_rows"] == 0


def test_without_learning_the_formula_answers_and_the_reason_is_told(make_app: MakeApp) -> None:
    """As before the predictor could learn."""
    client = make_app().test_client()
    told = client.get(f"{API}/predictor").json
    assert (told["enabled"], told["version"]) == (False, None)
    assert "learning.enabled is false" in told["message"]
    answer = client.post(f"{API}/predict-measurements", json={"measurements": [{"model_name": "m", "hardware_platform": "cuda"}]}).json
    assert [row["source"] for row in answer["predictions"]] == ["insufficient_measurements"]


def test_predicting_measurements_over_http_has_the_rules_of_recording(make_app: MakeApp) -> None:
    """A wrong field is named; more than a thousand are refused."""
    client = make_app().test_client()
    bad = client.post(f"{API}/predict-measurements", json={"measurements": [{"model_name": "m", "hardware_platform": "tpu"}]})
    assert bad.status_code == 422
    assert bad.json["detail"][0]["loc"] == ["body", "measurements", "0", "hardware_platform"]
    many = client.post(f"{API}/predict-measurements", json={"measurements": [{}] * 1001})
    assert many.json["detail"][0]["type"] == "too_long"


def test_hardware_is_ranked_for_a_goal_within_a_limit_and_feedback_is_kept(make_app: MakeApp) -> None:
    """Each entry says its value, on how many measurements it rests and where it comes from."""
    client = make_app().test_client()
    for platform, throughput, latency, memory in (("cuda", 500.0, 20.0, 900.0), ("cpu", 50.0, 5.0, 100.0)):
        figures = {"throughput": throughput, "latency": latency, "memory_usage": memory}
        rows = [{"model_name": "m", "hardware_platform": platform, **figures}] * 3
        assert client.post(f"{API}/record-measurements", json={"measurements": rows}).status_code == 200

    def ranked(**more: Any) -> dict[str, Any]:
        return done(client, client.post(f"{API}/predict-hardware", json={"model_name": "m", **more}))

    assert ranked(goal="throughput")["compatible_hardware"] == ["cuda", "cpu"]
    assert ranked(goal="latency")["compatible_hardware"] == ["cpu", "cuda"]
    assert ranked(goal="memory")["primary_recommendation"] == "cpu"
    limited = ranked(goal="throughput", latency_ms_at_most=10)
    assert limited["compatible_hardware"] == ["cpu"]
    assert "Beyond a limit: cuda." in limited["explanation"]
    (entry,) = limited["ranking"]
    assert (entry["value"], entry["unit"], entry["measurements"], entry["source"]) == (50.0, "items/s", 3, "measured")

    path = f"{API}/recommendations/{limited['recommendation_id']}/feedback"
    told = client.post(path, json={"chosen": "cpu", "measured": 40}).json
    assert (told["rank"], told["predicted"], told["error"]) == (1, 50.0, 0.25)
    assert client.post(f"{API}/recommendations/none/feedback", json={"chosen": "cpu"}).status_code == 404
