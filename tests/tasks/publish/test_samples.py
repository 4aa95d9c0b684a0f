"""The manifest joins what is known of the kept rows, and says every column once."""

import pyarrow as pa

from catalog.inputs import Inputs
from catalog.schema import CLUSTERS, DECISIONS, IMAGES, LOCAL, SAMPLE_ID, SOURCE, score, vector
from tasks.publish import Samples

EXTRA = pa.schema([*SOURCE, pa.field("WIDTH", pa.int32()), pa.field("license", pa.string()), *LOCAL])
EMBEDDINGS = pa.schema([SAMPLE_ID, vector("clip", 4, ""), score("clip_score", "clip", 1, "")])
AVAILABLE = {"source": EXTRA, "images": IMAGES, "decisions": DECISIONS, "embeddings": EMBEDDINGS, "clusters": CLUSTERS}


def test_every_column_once_and_ours_before_the_sources() -> None:
    names = Samples().output(AVAILABLE).names
    assert len({n.lower() for n in names}) == len(names)
    assert {"sample_id", "url", "caption", "license", "width", "shard", "byte_offset", "clip_score", "cluster"} <= set(
        names
    )
    assert not {"WIDTH", "clip", "local_path", "keep", "representative"} & set(names)


def test_rows_are_joined_and_rejected_ones_left_out() -> None:
    stage = Samples()
    inputs = Inputs.of(
        source=pa.table({"sample_id": [0, 1, 2], "caption": ["a", "b", "c"]}),
        images=pa.table({"sample_id": [0, 1, 2], "status": ["success", "failed", "success"], "width": [5, None, 7]}),
        clusters=pa.table({"sample_id": [0, 2], "cluster": [4, 3]}),
        decisions=pa.table({"sample_id": [0, 2], "keep": [False, True]}),
    )
    columns = stage.inputs({name: inputs.schema(name) for name in inputs.tables()})
    step = stage.open("cpu", {})
    rows = pa.concat_tables(step(inputs.batches(columns))).to_pylist()
    assert rows == [{"sample_id": 2, "caption": "c", "status": "success", "width": 7, "cluster": 3}]


def test_a_source_alone_is_enough() -> None:
    assert Samples().inputs({"source": SOURCE}) == {"source": ("url", "caption", "label")}
