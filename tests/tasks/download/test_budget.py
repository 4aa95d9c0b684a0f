import asyncio

import pytest

from tasks.download.budget import ByteBudget, Holding, NoRoomError


def test_rows_wait_for_bytes_and_the_head_never_does():
    async def play():
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


def test_who_waits_goes_on_when_it_becomes_the_head():
    async def play():
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
