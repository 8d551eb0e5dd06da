"""The candidates that are chosen would teach the predictor most, together."""

from __future__ import annotations

from typing import Any

from benchbridge_plugin.planning.choice import Subject, choose


def subject(model: str = "m", device: str = "cuda/A", batch_size: int = 8, **more: Any) -> Subject:
    return Subject(
        **{"model": model, "family": model, "device": device, "precision": "fp16", "mode": "inference", "batch_size": batch_size, **more}
    )


def chosen(
    candidates: list[Subject], widths: list[float | None] | None = None, measured: list[Subject] | None = None, limit: int = 3
) -> list[Subject]:
    found = choose(candidates, widths if widths is not None else [1.0] * len(candidates), measured or [], limit)
    return [candidates[one.place] for one in found]


def test_the_list_is_not_the_batch_sizes_of_one_model() -> None:
    """Of three models with twelve batch sizes each, the first three of the list are three models, and so are the next three."""
    found = chosen([subject(model, batch_size=2**power) for model in ("a", "b", "c") for power in range(12)], limit=6)
    assert {one.model for one in found[:3]} == {one.model for one in found[3:]} == {"a", "b", "c"}
    assert len(set(found)) == 6


def test_a_model_on_a_device_comes_once_in_five_places_while_there_are_others() -> None:
    """Also where it stands for so much more that the sum would name it each time."""
    large = [subject("large", batch_size=size) for size in range(1, 101)]
    found = chosen([*large, *(subject(f"m{number}") for number in range(20))], limit=20)
    assert [one.model for one in found].count("large") == 4
    assert [one.model for one in found[:5]].count("large") == 1
    assert len(chosen(large, limit=20)) == 20


def test_a_model_that_stands_for_more_comes_first() -> None:
    """Its measurement says something of each of them."""
    found = choose([subject("one"), *(subject("many", batch_size=size) for size in (1, 2, 4))], [1.0] * 4, [], 1)
    assert (found[0].place > 0, found[0].stands_for) == (True, 2)


def test_a_device_that_nothing_was_measured_on_comes_before_one_that_is_known() -> None:
    """As long as it is not known either."""
    candidates = [subject(f"m{number}", device) for device in ("cuda/A", "cuda/B") for number in range(30)]
    measured = [subject(f"old{number}", "cuda/A") for number in range(40)]
    found = chosen(candidates, measured=measured, limit=40)
    assert all(one.device == "cuda/B" for one in found[:10])
    assert any(one.device == "cuda/A" for one in found)


def test_the_wider_interval_is_measured_first_and_no_answer_is_the_widest() -> None:
    """Of candidates that are alike in all else."""
    candidates = [subject(name) for name in ("narrow", "wide", "silent")]
    assert [one.model for one in chosen(candidates, [0.2, 1.5, None])] == ["silent", "wide", "narrow"]


def test_the_batch_size_is_in_the_middle_and_then_far_from_what_was_taken() -> None:
    """Also from what was measured before."""
    sizes = [subject(batch_size=size) for size in (1, 4, 16, 64, 256)]
    assert [one.batch_size for one in chosen(sizes)][:2] == [16, 1]
    assert chosen(sizes, measured=[subject(batch_size=512)], limit=1)[0].batch_size == 1


def test_gains_are_parts_of_what_is_left_to_learn() -> None:
    """All of them together take no more than there is."""
    candidates = [subject(f"m{number % 7}", f"cuda/{number % 3}", 2 ** (number % 5)) for number in range(105)]
    gains = [one.gain for one in choose(candidates, [1.0] * 105, [], 105)]
    assert len(gains) == 105
    assert gains[0] == max(gains)
    assert all(gain > 0 for gain in gains)
    assert sum(gains) < 1


def test_a_longer_list_begins_with_the_shorter_one() -> None:
    """Each step is the best one after those before it, however many follow; and the same question has the same answer."""
    candidates = [subject(f"m{number % 5}", f"cuda/{number % 2}", 1 + number) for number in range(40)]
    widths: list[float | None] = [0.1 + (number * 7 % 11) / 10 for number in range(40)]
    whole = choose(candidates, widths, [], 40)
    assert sorted(one.place for one in whole) == list(range(40))
    for limit in (1, 7, 39):
        assert choose(candidates, widths, [], limit) == whole[:limit]


def test_nothing_to_choose_from_is_no_choice() -> None:
    """And a limit beyond all of them is all of them."""
    assert choose([], [], [subject()], 5) == []
    assert len(choose([subject()], [None], [], 5)) == 1
