"""The core pool: results in the order of the items, one thread an item, torch's threads as before."""

import threading
from collections.abc import Iterator

import pytest
import torch

from tasks.vectors.core_pool import on_cores


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("four_threads")
def test_results_come_in_order_and_items_run_in_threads_of_their_own() -> None:
    def work(item: int) -> tuple[int, int, int]:
        return item, threading.get_ident(), torch.get_num_threads()

    found = list(on_cores(work, range(100), "cpu"))
    assert [item for item, _, _ in found] == list(range(100))
    assert threading.get_ident() not in {thread for _, thread, _ in found}
    assert {threads for _, _, threads in found} == {1}
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_torch_has_its_threads_again_after_an_error() -> None:
    def fail(item: int) -> int:
        raise ValueError(f"item {item} fails")

    with pytest.raises(ValueError, match="item 0 fails"):
        list(on_cores(fail, range(3), "cpu"))
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_a_gpu_gets_all_work_from_the_callers_thread() -> None:
    assert set(on_cores(lambda _: threading.get_ident(), range(9), "cuda")) == {threading.get_ident()}
