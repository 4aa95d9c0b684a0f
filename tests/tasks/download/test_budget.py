import asyncio
import itertools
import subprocess
import sys

import pytest

from tasks.download._budget import ByteBudget, Holding, NoRoomError
from tasks.download._http import BUDGET_BYTES
from tests.hostile_server import HostileServer
from tests.pictures import jpeg

CONCURRENCY = 128
CHILD = """
import sys
from collections import Counter
from tasks.download import Download
from tasks.download._base import Request
from tasks.download._http import HttpEngine
good, hostile, host, reason, concurrency = sys.argv[1:]
stage = Download(allow_hosts=[host], respect_robots=False, respect_tdm=False, timeout_s=100, retries=1, backoff_s=0.1,
                 per_host=int(concurrency), concurrency=int(concurrency), max_bytes=4_000_000)
def memory(what):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(what))
assert next(HttpEngine(stage).outcomes([Request(good)])).image
before = memory("VmRSS")
outcomes = HttpEngine(stage).outcomes(Request(f"{hostile}?{i}") for i in range(160))
assert Counter(o.reason for o in outcomes) == {reason: 160}
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads its peak memory from /proc")
@pytest.mark.parametrize("what", ["bodies", "interim responses"])
def test_endless_responses_stay_within_the_budget(server: HostileServer, what: str) -> None:
    """160 concurrent endless bodies, or heads: a real process's peak memory, beyond that of one picture."""
    endless = itertools.repeat(b"HTTP/1.1 103 Early Hints\r\nLink: " + b"x" * 30_000 + b"\r\n\r\n")
    url, reason = {
        "bodies": (server.endless(), "body_too_large"),
        "interim responses": (server.raw_pieces(endless), "bad_response"),
    }[what]
    arguments = [server.body(jpeg()), url, "127.0.0.1", reason, str(CONCURRENCY)]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, timeout=200, check=False
    )
    assert child.returncode == 0, child.stderr[-2000:]
    buffers = CONCURRENCY * (512 << 10)  # of the connections themselves
    assert int(child.stdout) < BUDGET_BYTES + buffers


def test_rows_wait_for_bytes_except_the_head() -> None:
    async def play() -> None:
        budget = ByteBudget(100)
        first, second, third = (Holding(budget, row) for row in range(3))
        second.grow(90)
        with pytest.raises(NoRoomError) as caught:
            third.grow(20)
        assert caught.value.size == 20
        first.grow(500)  # the head: over the limit, but never refused
        assert budget.exhausted
        waiting = asyncio.create_task(third.wait_for(20))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        first.shrink(0)
        second.shrink(70)
        await asyncio.wait_for(waiting, 1)
        assert third.size == 20

    asyncio.run(play())


def test_a_waiting_row_resumes_when_it_becomes_the_head() -> None:
    async def play() -> None:
        budget = ByteBudget(10)
        Holding(budget, 0).grow(10)
        later = Holding(budget, 1)
        waiting = asyncio.create_task(later.wait_for(50))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        budget.advance(1)
        budget.wake()
        await asyncio.wait_for(waiting, 1)

    asyncio.run(play())
