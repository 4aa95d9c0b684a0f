"""The mailbox of Ray workers keeps the last value of each key, and an answer that does not come is no error."""

from collections.abc import Iterator

import pytest

from flows.build.ray_mailbox import Mailbox


@pytest.fixture
def mailbox(ray_started: None) -> Iterator[Mailbox]:
    made = Mailbox()
    yield made
    made.close()


def test_the_last_value_of_a_key_is_read_until_it_is_taken(mailbox: Mailbox) -> None:
    assert mailbox.get("progress") is None
    mailbox.put("progress", (1, 4, "rows"))
    mailbox.put("progress", (2, 4, "rows"), wait=True)
    mailbox.put("limit", "too slow", wait=True)
    assert mailbox.get("progress") == mailbox.take("progress") == (2, 4, "rows")
    assert mailbox.take("progress") is None
    assert mailbox.take("limit") == "too slow"


def test_workers_put_values_that_the_driver_reads(mailbox: Mailbox) -> None:
    import ray

    def put(box: Mailbox) -> None:
        box.put("key", "from a worker", wait=True)

    ray.get(ray.remote(put).remote(mailbox))
    assert mailbox.get("key") == "from a worker"


def test_a_mailbox_that_has_ended_has_no_value(ray_started: None) -> None:
    mailbox = Mailbox()
    mailbox.put("key", 1, wait=True)
    mailbox.close()
    mailbox.put("key", 2, wait=True)
    assert mailbox.get("key") is None
