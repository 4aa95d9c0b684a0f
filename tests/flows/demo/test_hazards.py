"""The hazards: each has an outcome that the product knows, an address of its own, and a file that exists."""

import socket
import string

import pytest

from flows.demo.hazards import BY_NAME, HAZARDS, UNREACHABLE_PORT
from flows.demo.pictures import ODD_ENCODINGS, assets
from flows.demo.run import RECIPE
from tasks.reasons import REASONS
from tests.helpers import recipe_in


def fields_of(template: str | None) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(template or "") if field is not None}


def test_every_outcome_is_one_that_the_product_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ESPALIER_DEMO_URLS", "ESPALIER_DEMO_HOST"):
        monkeypatch.setenv(name, "somewhere")
    (chosen,) = (stage for stage in recipe_in(RECIPE).stages if stage.use == "filter")
    for hazard in HAZARDS:
        assert hazard.survives == (hazard.reason is None) == (hazard.stage == ""), hazard
        if hazard.stage == "download":
            assert hazard.reason in REASONS, hazard
        if hazard.stage == "filter":
            assert hazard.reason in chosen.rules, hazard


def test_names_and_addresses_are_unique() -> None:
    assert list(BY_NAME.values()) == list(HAZARDS)
    assert len(BY_NAME) == len(HAZARDS)
    assert all(hazard.rows >= 1 for hazard in HAZARDS)
    for hazard in HAZARDS:
        assert fields_of(hazard.url) <= {"base", "localhost", "file", "n"}, hazard
        assert hazard.rows == 1 or fields_of(hazard.url) & {"file", "n"}, "its rows have the same URL"
        assert ("file" in fields_of(hazard.url)) == bool(hazard.file), hazard
        assert fields_of(hazard.caption) <= {"caption", "long"}, hazard


def test_every_file_exists() -> None:
    stems = {name.partition(".")[0].partition("-white")[0] for name in assets()}
    known = {"", "picture", "png", "webp", *ODD_ENCODINGS, *stems}
    assert {hazard.file for hazard in HAZARDS} <= known
    assert set(ODD_ENCODINGS) <= {hazard.file for hazard in HAZARDS}, "an odd encoding that no hazard has"


def test_nothing_listens_on_the_unreachable_port() -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", UNREACHABLE_PORT), timeout=5)
