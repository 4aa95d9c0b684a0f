import numpy as np
import pyarrow as pa

from catalog.inputs import Inputs
from tasks.report._thumbnails import thumbnails
from tests.tasks.report.gallery import jpeg


def test_the_budget_bounds_a_card() -> None:
    rng = np.random.default_rng(0)
    data = [jpeg(rng.integers(0, 255, (200, 200, 3), dtype=np.uint8)) for _ in range(20)]
    images = pa.table({"sample_id": range(20), "image": pa.array(data, pa.large_binary())})
    inputs = Inputs.of(alive_only=False, images=images)
    everything = thumbnails(inputs, range(20))
    assert list(everything) == list(range(20))
    budget = sum(map(len, everything.values())) // 2
    some = thumbnails(inputs, [5, 5, 3, *range(20), 99], budget)
    assert list(some)[:2] == [5, 3]
    assert 0 < sum(map(len, some.values())) <= budget
