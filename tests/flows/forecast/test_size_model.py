"""The forecast of rows and bytes."""

from flows.forecast.interval import Range
from flows.forecast.measurements import MeasuredPart, MeasuredStage
from tasks.cluster import Cluster
from tasks.report import Report
from tasks.stage import Size
from tests.flows.forecast.stages_of_known_cost import at_once, forecast_one, part_by_part, target_of


def test_a_card_has_no_more_rows_for_more_rows() -> None:
    """It has a row a bin, a picture, a cluster: more in the large build of a probe than in the small, then no more."""
    small, large = at_once(Report(), 250, 1.6, kept=0.8), at_once(Report(), 1000, 2.1, kept=0.46)
    assert forecast_one(small, large, target_of(3000, stage=Report(), parts=1)).rows == Range(200, 460, 460)


def test_tables_with_a_row_a_cluster_have_the_recipes_clusters() -> None:
    centroids = Cluster(k=500).expand()[0]
    small, large = (
        MeasuredStage(centroids, Size(n, k), 1.0, 1, (MeasuredPart(n, k, k * 2000, 1.0),))
        for n, k in ((250, 15), (1000, 62))
    )
    found = forecast_one(small, large, target_of(10**6, stage=centroids, clusters=500, parts=1))
    assert found.rows == Range(500, 500, 500)
    assert found.bytes.value == 500 * 2000


def test_rows_that_no_build_kept_are_still_possible() -> None:
    """No row of 1,500 came through: as far as the probe can tell, one in a thousand may."""
    small, large = (part_by_part(n, 4, share=0.0) for n in (250, 1000))
    found = forecast_one(small, large, target_of(10**6))
    assert (found.rows.low, found.rows.value) == (0, 0)
    assert 500 < found.rows.high < 5000
    small, large = (part_by_part(n, 4, share=1.0) for n in (250, 1000))
    assert forecast_one(small, large, target_of(10**6)).rows == Range(10**6, 10**6, 10**6)


def test_no_more_rows_come_through_than_there_are() -> None:
    small, large = (part_by_part(n, 4, share=0.97, noise=0.02) for n in (250, 1000))
    found = forecast_one(small, large, target_of(10**6))
    assert 9e5 < found.rows.low < found.rows.value < found.rows.high <= 10**6
