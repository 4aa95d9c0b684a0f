"""Sources of rows. A source lists chunks when a build is planned, and turns each into a part of table `source`."""

from typing import Annotated

from pydantic import Field

from tasks.sources._base import Chunk, Identify, Origin, Source, Survey
from tasks.sources._notes import Note, Notes
from tasks.sources.csv import Csv
from tasks.sources.folder import Folder
from tasks.sources.jsonl import Jsonl
from tasks.sources.parquet import Parquet
from tasks.sources.webdataset import Webdataset

AnySource = Annotated[Parquet | Csv | Jsonl | Folder | Webdataset, Field(discriminator="use")]
"""Every source that a recipe may name."""

__all__ = [
    "AnySource",
    "Chunk",
    "Csv",
    "Folder",
    "Identify",
    "Jsonl",
    "Note",
    "Notes",
    "Origin",
    "Parquet",
    "Source",
    "Survey",
    "Webdataset",
]
