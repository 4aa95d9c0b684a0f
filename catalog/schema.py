"""Arrow schemas of the tables, with what each column means.

A field's metadata may carry `role`, which the part writer and the readers act on:

    image       encoded image bytes: leave the table for a tar shard, and become shard, byte_offset, byte_size
    sidecar     goes into the shard's sidecar (caption, url), not into the table
    vector      an embedding: float16 fixed-size list, no dictionary
    score       a float32 that some scorer gave; `scorer` and `version` say which
    annotation  repeats what other columns imply: in no fingerprint, so parts that lack it stay valid, and give null

Every table that is about samples begins with `sample_id`, and is sorted by it.
"""

import os
from collections.abc import Collection, Sequence
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

import pyarrow as pa

SAMPLE_BITS: Final = 24
"""`sample_id` = part number << SAMPLE_BITS | row: a part has at most 2**24 rows."""

SUCCESS: Final = "success"
FAILED: Final = "failed"
TAKEN_URL: Final = "taken-down:"
"""What stands for the URL of a row that was taken down (`catalog.takedown.ledger`): a URL by its form, so that nothing
stumbles; nobody can fetch it."""


def field(name: str, type_: pa.DataType, about: str, role: str = "", **more: str) -> pa.Field:
    """Return a nullable field whose metadata says what it means, and its role."""
    metadata = {"about": about} | ({"role": role} if role else {}) | more
    return pa.field(name, type_, metadata=metadata)


def role(field_: pa.Field) -> str:
    """Return the role in `field_`'s metadata, or the empty string."""
    return str((field_.metadata or {}).get(b"role", b""), "ascii")


def vector(name: str, dim: int, about: str, **more: str) -> pa.Field:
    """Return the field of an embedding: float16, `dim` numbers a row, null where there is none."""
    return field(name, pa.list_(pa.float16(), dim), about, "vector", **more)


def score(name: str, scorer: str, version: int, about: str) -> pa.Field:
    """Return the field of a score: float32, null where it could not be computed."""
    return field(name, pa.float32(), about, role="score", scorer=scorer, version=str(version))


def without_absent(schema: pa.Schema, parts: Collection[Sequence[str]]) -> pa.Schema:
    """Return the schema of a table without the annotations that none of its parts has: with them, a table of an older
    release would change although it gained no part. `parts`: the columns of the parts."""
    there = {name for names in parts for name in names}
    absent = [f.name for f in schema if parts and role(f) == "annotation" and f.name not in there]
    return pa.schema([f for f in schema if f.name not in absent], schema.metadata) if absent else schema


SAMPLE_ID: Final = field("sample_id", pa.int64(), "part number << 24 | row; unique in its dataset")

SOURCE: Final = pa.schema(
    [
        SAMPLE_ID,
        field("url", pa.string(), "where the image is, as the source says"),
        field("caption", pa.string(), "the text that came with it, as the source says"),
        field("label", pa.string(), "the class that came with it"),
    ]
)
"""The columns that every source has; any others that came along follow them."""

LOCAL: Final = [
    field("local_path", pa.string(), "the file that holds the bytes, for sources that are not on the web"),
    field("local_offset", pa.int64(), "where in that file the bytes begin (null: the whole file)"),
    field("local_size", pa.int64(), "how many bytes"),
]
"""Columns that only folder and WebDataset sources may write; other sources rename a column that is called so."""

_BYTES: Final = "bytes:"


def local_name(path: str) -> str:
    """Return a local path as `local_path` holds it: a name that is no UTF-8 becomes `bytes:` and percent-encoded."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return _BYTES + quote_from_bytes(os.fsencode(path))
    return path


def local_file(name: str) -> str:
    """Return the path that `local_name` was given."""
    return os.fsdecode(unquote_to_bytes(name.removeprefix(_BYTES))) if name.startswith(_BYTES) else name


FAULT: Final = [
    field("row_fault", pa.string(), "what the source could not read of this row, from a closed list; else null"),
    field("row_detail", pa.string(), "the evidence: the line that is no record, the files that a sample has"),
]
"""The last columns of every source. A row with a fault and without an image fails for that reason in `images`."""

PLACE: Final = (
    field("shard", pa.string(), "the tar that holds the bytes, relative to the dataset"),
    field("byte_offset", pa.int64(), "where in the tar the bytes begin"),
    field("byte_size", pa.int64(), "how many bytes are stored"),
)
"""Where the bytes of an image lie: null where there are none."""
PLACE_NAMES: Final = tuple(f.name for f in PLACE)

IMAGES: Final = pa.schema(
    [
        SAMPLE_ID,
        field("status", pa.string(), "success or failed"),
        field("reason", pa.string(), "why it failed, from a closed list; null on success"),
        field("detail", pa.string(), "the evidence: status code, limit, error text"),
        *PLACE,
        field("format", pa.string(), "jpg, png or webp: of the stored bytes"),
        field("sha256", pa.string(), "hex digest of the bytes as they were received"),
        field(
            "pixels_sha256", pa.string(), "hex digest of what the picture shows, whatever its metadata and compression"
        ),
        field("width", pa.int32(), "stored, pixels"),
        field("height", pa.int32(), "stored, pixels"),
        field("original_width", pa.int32(), "as received, pixels"),
        field("original_height", pa.int32(), "as received, pixels"),
        field("phash", pa.int64(), "64-bit perceptual hash (DCT); null for flat images"),
        field("brightness", pa.float32(), "mean perceived brightness, 0..1"),
        field("brightness_p5", pa.float32(), "5th percentile of perceived brightness, 0..1"),
        field("brightness_p99", pa.float32(), "99th percentile of perceived brightness, 0..1"),
        field("blur", pa.float32(), "standard deviation of the edge image, 0..255: low is blurry"),
        field("histogram_std", pa.float32(), "standard deviation of the counts of the small grey picture's histogram"),
        field("entropy", pa.float32(), "entropy of the histogram of all channels, bits"),
        field("greyscale", pa.bool_(), "one channel, or three equal ones"),
        field("http_status", pa.int16(), "the last response's status; null where there was none"),
        field("final_url", pa.string(), "after redirects; null where it equals url"),
        field("received_bytes", pa.int64(), "size of the body as received"),
    ]
)

DECISIONS: Final = pa.schema(
    [
        SAMPLE_ID,
        field("stage", pa.string(), "the stage that judged"),
        field("keep", pa.bool_(), "false: the row is out from this stage on"),
        field("reason", pa.string(), "why it is out, from a closed list a stage; null where kept"),
        field("evidence", pa.string(), "the number or the rule that decided, readable"),
        field("representative", pa.int64(), "the sample that stands for this one, for duplicates"),
        field("similarity", pa.float32(), "cosine to the representative; 1 for exact duplicates"),
        field("numbers", pa.map_(pa.string(), pa.float64()), "the numbers in the evidence, by name", "annotation"),
    ]
)

CLUSTERS: Final = pa.schema(
    [
        SAMPLE_ID,
        field("cluster", pa.int32(), "nearest centroid; null where the sample has no embedding"),
        field("distance", pa.float32(), "1 - cosine to that centroid"),
    ]
)

EDGES: Final = pa.schema(
    [
        field("child", pa.int64(), "sample_id of a row of this dataset"),
        field("parent_dataset", pa.string(), "the dataset of the row that it comes from, which may be this one"),
        field("parent_version", pa.int64(), "the version of it that was read; null where that is not known"),
        field("parent", pa.int64(), "sample_id of that row"),
        field("role", pa.string(), "what the parent was for: copy_of, ... (see catalog.edges)"),
        field("weight", pa.float32(), "share of the parent in the child; null where there is none"),
    ]
)
"""Where single rows come from. Ids and names alone, never content: a takedown leaves it as it is."""

MODELS: Final = pa.schema(
    [
        field("name", pa.string(), "how a recipe refers to it"),
        field("family", pa.string(), "open_clip, ..."),
        field("config", pa.string(), "JSON: what rebuilds it around its weights"),
        field("sha256", pa.string(), "hex digest of the weights"),
        field("weights", pa.large_binary(), "safetensors"),
        field("licence", pa.string(), "SPDX name, or a sentence"),
        field("trained_on", pa.string(), "JSON: which rows of which tables"),
        field("metrics", pa.string(), "JSON: losses and scores, by step"),
    ]
)
