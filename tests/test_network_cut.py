"""The network dies in the middle of a run and comes back: nothing is lost, nothing is doubled, and the run that was cut ends by itself."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from benchbridge_plugin.model import SyncRequest
from benchbridge_plugin.sinks.base import Sink
from tests.conftest import Clock, FullServer, MakeSink, World, fill
from tests.kit.base_contract import RECORD, BaseContractServer
from tests.kit.proxy import Cut, CuttableNetwork

RESULTS = 60


@pytest.fixture
def network(server: BaseContractServer) -> Iterator[CuttableNetwork]:
    with CuttableNetwork(server.port) as made:
        yield made


@pytest.mark.sampled(5)
@pytest.mark.parametrize("cut", Cut)
@pytest.mark.parametrize("after", [0, 25, RESULTS - 1])
def test_a_cut_in_the_middle_of_a_run_costs_nothing(
    world: World, server: BaseContractServer, network: CuttableNetwork, http_sink: MakeSink, clock: Clock, cut: Cut, after: int
) -> None:
    """Requests that never arrive, answers that never arrive, both, and connections that break: while `after` results had arrived."""
    fill(world, RESULTS)
    sink = http_sink(network.url, timeout_s=0.3)
    network.cut(cut, when=lambda: server.requests[RECORD] >= after)
    began = time.monotonic()
    _sync_until_it_stops(world, sink)
    assert network.struck.is_set()
    assert time.monotonic() - began < 10, "a dead network is not waited for result by result"
    assert world.accounting.delivered < RESULTS
    network.heal()
    for _ in range(4):
        clock.advance(600)
        world.sync(sink)
    assert world.states() == {"delivered": RESULTS}
    assert Counter(row["throughput"] for row in server.rows) == {800.0 + number: 1 for number in range(RESULTS)}


@pytest.mark.parametrize("cut", [Cut.REQUESTS, Cut.ANSWERS, Cut.BOTH, Cut.RESET])
def test_a_cut_under_a_bulk_request_costs_nothing(
    world: World, full_server: FullServer, http_sink: MakeSink, clock: Clock, cut: Cut
) -> None:
    """The same with the full contract, where one answer is about many results."""
    fill(world, RESULTS)
    with CuttableNetwork(int(full_server.url.rpartition(":")[2])) as network:
        sink = http_sink(network.url, timeout_s=0.6)
        network.cut(cut, when=lambda: len(full_server.stored()) > 0 or cut is Cut.REQUESTS)
        _sync_until_it_stops(world, sink)
        assert network.struck.is_set()
        network.heal()
        for _ in range(4):
            clock.advance(600)
            world.sync(sink)
    assert world.states() == {"delivered": RESULTS}
    assert Counter(row["throughput"] for row in full_server.stored()) == {800.0 + number: 1 for number in range(RESULTS)}


def test_a_network_that_is_cut_again_and_again_delivers_in_the_end(
    world: World, server: BaseContractServer, network: CuttableNetwork, http_sink: MakeSink, clock: Clock
) -> None:
    """A cut of another kind every few results: each run gets on, and the end is the same."""
    fill(world, RESULTS)
    sink = http_sink(network.url, timeout_s=0.3)
    for number, cut in enumerate(Cut, 1):
        network.cut(cut, when=_arrived(server, number * 6))
        _sync_until_it_stops(world, sink)
        network.heal()
        clock.advance(600)
    for _ in range(3):
        world.sync(sink)
        clock.advance(600)
    assert world.states() == {"delivered": RESULTS}
    assert Counter(row["throughput"] for row in server.rows) == {800.0 + number: 1 for number in range(RESULTS)}


def _arrived(server: BaseContractServer, count: int) -> Callable[[], bool]:
    return lambda: server.requests[RECORD] >= count


def _sync_until_it_stops(world: World, sink: Sink) -> None:
    """A run that may find the API gone before it has looked at the file; the accounting looks for itself."""
    engine = world.engine(sink)
    engine.run(SyncRequest())
    engine.refresh()
    world.check_accounts()
