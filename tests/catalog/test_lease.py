"""Leases: one builder at a time, the next one waits or says who it is waiting for, and a kill gives it back."""

import os
import subprocess
import threading
import time
from collections.abc import Callable

import pytest

from catalog.dataset import Catalog, Dataset
from catalog.errors import BusyError
from catalog.lease import FILE, hold, holder


def test_second_builder_is_told_who_builds(dataset: Dataset) -> None:
    assert holder(dataset) is None
    with hold(dataset) as lease:
        lease.check()
        assert f"process {os.getpid()} on " in (holder(dataset) or "")
        with pytest.raises(BusyError, match=f"'birds' is being built by process {os.getpid()} on .*; wait for it"):
            hold(dataset).__enter__()
    assert holder(dataset) is None
    with hold(dataset):
        pass


def test_an_error_gives_it_back(dataset: Dataset) -> None:
    with pytest.raises(KeyError), hold(dataset):
        raise KeyError
    assert holder(dataset) is None


def test_datasets_do_not_wait_for_each_other(catalog: Catalog) -> None:
    with hold(catalog.dataset("birds")), hold(catalog.dataset("cats")):
        pass


def test_waiting_ends_when_the_other_ends(dataset: Dataset) -> None:
    messages: list[str] = []
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with hold(dataset):
            entered.set()
            leave.wait(20)

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(20)

    def on_wait(message: str) -> None:
        messages.append(message)
        leave.set()

    with hold(dataset, wait_s=20, on_wait=on_wait):
        thread.join(20)
        assert not thread.is_alive()
    assert len(messages) == 1
    assert "is being built by process" in messages[0]


def test_never_two_at_once(dataset: Dataset) -> None:
    inside, most = [0], [0]

    def build() -> None:
        for _ in range(3):
            with hold(dataset, wait_s=None):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.01)
                inside[0] -= 1

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (inside, most) == ([0], [1])


def test_a_killed_builder_gives_it_back(catalog: Catalog, builder: Callable[..., "subprocess.Popen[str]"]) -> None:
    birds = catalog.dataset("birds")
    with builder("hold", catalog.uri, 3) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert f"process {process.pid} on " in (holder(birds) or "")
        process.kill()
    with hold(birds, wait_s=0 if birds.storage.is_local else 30, life_s=3) as lease:
        lease.check()


def test_a_live_lease_is_renewed(bucket: str) -> None:
    birds = Catalog(bucket).dataset("birds")
    with hold(birds, life_s=2) as lease:
        with pytest.raises(BusyError):
            hold(birds, wait_s=4.0, life_s=2).__enter__()
        lease.check()


def test_a_lost_lease_is_noticed(bucket: str) -> None:
    birds = Catalog(bucket).dataset("birds")
    with hold(birds, life_s=2) as lease:
        birds.storage.put(FILE, b'{"token": "another", "until_s": 1e12, "pid": 1, "host": "far", "since": "now"}')
        deadline = time.monotonic() + 20
        while not _lost(lease.check) and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(BusyError, match="taken this dataset over"):
            lease.check()
    assert "process 1 on far" in (holder(birds) or ""), "the new holder's lease was given back by the old one"


def _lost(check: Callable[[], None]) -> bool:
    try:
        check()
    except BusyError:
        return True
    return False


def test_a_damaged_lease_object_holds_nothing(bucket: str) -> None:
    birds = Catalog(bucket).dataset("birds")
    birds.storage.put(FILE, b"{")
    with hold(birds):
        pass
