"""Taking rows down: they leave every version of every dataset that has them, and no later build brings them back.

What is reached (`catalog.takedown.reach`) is held, listed, and written down as one order in the dataset that was named:
digests
and numbers only. That is the moment from which it counts. Then each other dataset gets its own order in its own ledger
(`catalog.takedown.ledger`), so that nobody builds it meanwhile, and all orders are carried out, that of the named
dataset
last. Every step may be repeated. So after a kill at any moment the same command goes on, through all datasets.
"""

import getpass
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog.dataset import Catalog, Dataset
from catalog.errors import BuildError, NotFoundError, UserError
from catalog.lease import Lease, hold
from catalog.takedown import erase
from catalog.takedown.erase import ErasurePlan
from catalog.takedown.ledger import Ledger
from catalog.takedown.reach import Names, Reach, listed_rows, reach
from catalog.takedown.scrub import Scrubber, Words, scrub, words_of
from catalog.wording import amount
from flows.govern import cards, traces

if TYPE_CHECKING:
    from rich.console import RenderableType

Record = dict[str, Any]
Say = Callable[[str], None]
Confirm = Callable[[Record], bool]


def take_down(
    dataset: Dataset,
    names: Names | None,
    reason: str = "",
    copies: str = "bytes",
    dry_run: bool = False,
    message: Say = lambda line: None,
    confirm: Confirm = lambda told: True,
) -> Record:
    """Take rows down, and return the record of it; with `dry_run`, what it would be.

    `copies` is one of `catalog.takedown.reach.CHOICES`. `confirm` is shown what would be erased while everything that
    is reached
    is held; nothing is erased where it returns False. A takedown that was interrupted is carried through first;
    without `names` that is all. Raises UserError where there is nothing to do or it was not confirmed, BusyError while
    somebody builds one of the datasets, BuildError where something is left of the rows.
    """
    if dry_run and names is not None:
        return _planned(dataset, names, copies, "")[1] | {"dry_run": True}
    with _Held.open(dataset, message) as held:
        resumed = _go_on(held, dataset) if Ledger.read(dataset.storage).pending is not None else None
        if names is None:
            if resumed is None:
                raise UserError("nothing to take down: name the rows with --file, like --file ids.csv")
            return resumed
        try:
            found, facts = _planned(dataset, names, copies, reason)
        except NoRowError:
            if resumed is not None:
                return resumed
            raise
        while _take_in(held, found):
            found, facts = _planned(dataset, names, copies, reason)
        if not confirm(facts):
            raise UserError("nothing was erased")
        held.check()
        _write_down(held, dataset, names, copies, found, facts)
        return _carry_group(held, dataset)


class NoRowError(UserError):
    """No row has any of the names, and there is nothing to remember either."""


class _Held:
    """The datasets that this takedown holds, and who is told what it does."""

    def __init__(self, catalog: Catalog, stack: ExitStack, message: Say) -> None:
        self.catalog = catalog
        self.message = message
        self._stack = stack
        self._leases: dict[str, Lease] = {}

    @classmethod
    @contextmanager
    def open(cls, dataset: Dataset, message: Say) -> "Iterator[_Held]":
        """Hold one dataset for the length of the block; more by `add`."""
        with ExitStack() as stack:
            held = cls(dataset.catalog, stack, message)
            held.add(dataset.name)
            yield held

    def add(self, name: str, wait_s: float | None = 0.0) -> None:
        """Hold a dataset too. Raises BusyError."""
        if name not in self._leases:
            dataset = self.catalog.dataset(name)
            self._leases[name] = self._stack.enter_context(hold(dataset, wait_s, self.message))

    def check(self) -> None:
        """Raise BusyError where somebody has taken one of them over."""
        for lease in self._leases.values():
            lease.check()


def _planned(dataset: Dataset, names: Names, copies: str, reason: str) -> tuple[Reach, Record]:
    """Return the rows that are meant, and what the record says. Raises NoRowError where there is nothing to do."""
    ledger = Ledger.read(dataset.storage)
    found = reach(dataset, names, copies)
    fresh = [url for url in names.urls if ledger.url(url) not in ledger.urls]
    fresh += [digest for digest in names.sha256 if ledger.content(digest) not in ledger.contents]
    if not any(map(len, found.sample_ids.values())) and not fresh:
        old = len(names) - len(names.sample_ids)
        said = f"{old:,} were taken down before" if old else "there is no such sample_id"
        raise NoRowError(f"no row of {dataset.name!r} has any of these {amount(len(names), 'name')}: {said}")
    scrubbed = ledger.ordered(ledger.digests(found.names), None).scrubbed(reason)
    told = {
        "id": secrets.token_hex(8),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "by": _user(),
        "reason": scrubbed,
        "given": {"url": len(names.urls), "sha256": len(names.sha256), "sample_id": len(names.sample_ids)},
        "unknown": len(found.unknown),
        "choice": copies,
        "copies": found.copies,
        "choices": {choice: dict(rows) for choice, rows in found.choices.items()},
    }
    digests = sorted({d for listed in ledger.digests(found.names).values() for d in listed})
    places = {
        name: _places(erase.order_for(dataset.catalog.dataset(name), ids)) for name, ids in found.sample_ids.items()
    }
    root = places.pop(dataset.name)
    last = dataset.last()
    return found, told | root | {"digests": digests, "last_version": last.number if last else None, "others": places}


def _places(order: ErasurePlan) -> Record:
    """Return what a record says of where the rows of one dataset are."""
    return {
        "samples": len(order.sample_ids),
        "rows": dict(order.rows),
        "versions": list(order.versions),
        "files": [*order.parts, *order.spans],
        "shards": len(order.spans),
    }


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def _take_in(held: _Held, found: Reach, wait_s: float | None = 0.0) -> bool:
    """Hold all datasets that are reached; say whether a takedown of one of them had to be carried through first."""
    went_on = False
    for name in sorted(found.sample_ids):
        held.add(name, wait_s)
        dataset = held.catalog.dataset(name)
        if Ledger.read(dataset.storage).pending is not None:
            _go_on(held, dataset)
            went_on = True
    return went_on


def _write_down(held: _Held, dataset: Dataset, names: Names, copies: str, found: Reach, facts: Record) -> None:
    """Write the order into the ledger of the dataset that was named: from here on it counts.

    Then look again: a search that is being saved has written its edges before it looks whether there is an order. So
    either it sees this one, or it is seen here.
    """
    while True:
        others = {}
        for name in found.sample_ids:
            if name != dataset.name:
                member = held.catalog.dataset(name)
                ledger = Ledger.read(member.storage)
                ledger.save(member.storage)  # its key must not change any more
                others[name] = {"sample_ids": found.sample_ids[name].tolist(), "digests": ledger.digests(found.names)}
        ledger = Ledger.read(dataset.storage)
        order = erase.order_for(dataset, found.sample_ids[dataset.name])
        order = replace(order, facts=facts, id=facts["id"], others=others)
        ledger.ordered(ledger.digests(found.names), order.to_json()).save(dataset.storage)
        again = reach(dataset, names, copies)
        if _counts(again) == _counts(found):
            return
        found = again
        for name in sorted(found.sample_ids):
            held.add(name, None)


def _counts(found: Reach) -> dict[str, int]:
    return {name: len(ids) for name, ids in found.sample_ids.items()}


def _go_on(held: _Held, dataset: Dataset) -> Record:
    """Carry through what is pending in a dataset, from the dataset that was named."""
    held.message(f"going on with the takedown of {dataset.name} that was interrupted")
    order = _pending(dataset)
    assert order is not None
    if order.root:
        try:
            root = held.catalog.existing(order.root)
        except NotFoundError:
            return _carry_alone(held, dataset)
        held.add(root.name)
        of_root = _pending(root)
        if of_root is None or of_root.id != order.id:
            return _carry_alone(held, dataset)
        dataset = root
    return _carry_group(held, dataset)


def _pending(dataset: Dataset) -> ErasurePlan | None:
    pending = Ledger.read(dataset.storage).pending
    return None if pending is None else ErasurePlan.of_json(pending)


def _carry_alone(held: _Held, dataset: Dataset) -> Record:
    order = _pending(dataset)
    assert order is not None
    words = words_of(dataset, order.ids)
    traces.overwrite(words)
    return _carry_out(held, dataset, words)


def _carry_group(held: _Held, root: Dataset) -> Record:
    """Do what is pending in a dataset and in all others that its order names, and keep the records."""
    order = _pending(root)
    assert order is not None
    present = set(held.catalog.datasets())
    others = {name: about for name, about in order.others.items() if name in present}
    words = words_of(root, order.ids)
    for name, about in others.items():
        held.add(name)
        if _begin(held, root, order, name, about):
            member = held.catalog.dataset(name)
            own = _pending(member)
            words = words.joined(words_of(member, own.ids)) if own is not None else words
    traces.overwrite(words)
    told: dict[str, Record] = {}
    for name in others:
        member = held.catalog.dataset(name)
        pending = _pending(member)
        if pending is not None and pending.id == order.id:
            told[name] = _carry_out(held, member, words)
        else:
            told[name] = dict(next(r for r in Ledger.read(member.storage).records if r.get("id") == order.id))
    summary = {
        name: {k: record[k] for k in ("samples", "rows", "versions", "files", "shards", "index", "published")}
        for name, record in told.items()
    }
    return _carry_out(held, root, words, others=summary)


def _begin(held: _Held, root: Dataset, order: ErasurePlan, name: str, about: Mapping[str, Any]) -> bool:
    """Write the order of one other dataset into its ledger, unless it is there; say whether it is still to be done."""
    member = held.catalog.dataset(name)
    pending = _pending(member)
    if pending is not None and pending.id != order.id:
        _go_on(held, member)
        pending = None
    ledger = Ledger.read(member.storage)
    if pending is None:
        if any(record.get("id") == order.id for record in ledger.records):
            return False
        ledger = ledger.ordered(about["digests"], None)
        ids = np.union1d(np.array(about["sample_ids"], np.int64), listed_rows(member, ledger))
        own = erase.order_for(member, ids)
        last = member.last()
        facts = {k: v for k, v in order.facts.items() if k in ("at", "by", "reason", "given", "choice")}
        facts |= _places(own) | {"id": order.id, "root": root.name, "unknown": 0, "copies": 0}
        facts |= {"digests": sorted({d for listed in about["digests"].values() for d in listed})}
        facts |= {"last_version": last.number if last else None}
        own = replace(own, facts=facts, id=order.id, root=root.name)
        ledger.ordered({}, own.to_json()).save(member.storage)
    return True


def _carry_out(held: _Held, dataset: Dataset, words: Words, **more: Any) -> Record:
    """Erase what is pending in one dataset, and keep the record."""
    order = _pending(dataset)
    assert order is not None
    told: Record = {"index": [], "published": None, "erased": dict(order.spans)} | dict(order.facts) | more
    ledger = Ledger.read(dataset.storage)
    if order.sample_ids:
        scrubber = Scrubber(words, ledger)
        scrub(dataset, order.ids, order.clusters, scrubber)
        cards.redraw_mentioning(dataset, scrubber, held.message)
        erase.erase_shards(dataset, order)
        erase.erase_parts(dataset, order, scrubber)
        told["index"] = _forget(dataset, order)
        cards.remake(dataset, order.versions, held.message)
        erase.sweep(dataset)
        erase.settle(dataset, order)
        told["published"] = _publish(dataset, told["last_version"])
        cards.redraw(dataset, order.versions, held.message)
        if left := erase.remaining(dataset, order, ledger):
            raise BuildError(f"something is left in {left[0]} ({amount(len(left), 'file')}): run the takedown again")
    ledger.done(told).save(dataset.storage)
    return told


def _publish(dataset: Dataset, before: int | None) -> str | None:
    """Publish the version without the rows, once; return its label."""
    last = dataset.last()
    if last is None:
        return None
    return (dataset.republish() if last.number == before else last).label


def _forget(dataset: Dataset, order: ErasurePlan) -> list[str]:
    """Take the samples out of the search indexes."""
    if "_index" not in dataset.storage.folders():
        return []
    from flows.explore.index import forget

    return forget(dataset, order.ids)


def records(dataset: Dataset) -> list[Record]:
    """Return the takedowns of a dataset as a table shows them, oldest first."""
    ledger = Ledger.read(dataset.storage)
    pending = [dict(ErasurePlan.of_json(ledger.pending).facts)] if ledger.pending else []
    kept: list[Record] = [dict(record) for record in ledger.records]
    return [
        {
            "at": told["at"],
            "by": told["by"],
            "reason": told["reason"],
            "samples": told["samples"],
            "copies": told["copies"],
            "files": len(told["files"]),
            "versions": ", ".join(map(str, told["versions"])),
            "others": ", ".join(f"{name}: {at['samples']}" for name, at in told.get("others", {}).items()),
            "named_in": told.get("root") or dataset.name,
            "published": told.get("published"),
            "state": "interrupted" if told in pending else "done",
        }
        for told in (*kept, *pending)
    ]


def confirmation(dataset: str, yes: bool) -> Confirm:
    """Return what asks on the terminal, after it has shown what would be erased; with `yes`, what agrees.

    Raises UserError where there is no terminal to ask on.
    """
    if yes:
        return lambda told: True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UserError("erasing is for good and asks first, and this is no terminal: give --yes, or --dry-run to look")

    def ask(told: Record) -> bool:
        from rich.console import Console
        from rich.prompt import Confirm as Question

        console = Console(stderr=True)
        console.print(render(dataset, told | {"dry_run": True}))
        return Question.ask("Erase all of it, for good?", console=console, default=False)

    return ask


def render(dataset: str, told: Record) -> "RenderableType":
    """Return a record as a terminal shows it: what is, or would be, erased where."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    places: dict[str, Record] = {dataset: told} | told.get("others", {})
    samples = sum(place["samples"] for place in places.values())
    verb = "would be taken down" if told.get("dry_run") else "taken down"
    copies = f", {told['copies']:,} of them copies of rows that were named" if told["copies"] else ""
    head = Text(f"{amount(samples, 'sample')} {verb}{copies}", style="bold")
    table = Table(box=None, header_style="bold")
    for name, justify in (("dataset", "left"), ("versions", "left"), ("samples", "right"), ("rows", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("files", justify="right")
    table.add_column("of them shards", justify="right")
    for name, place in places.items():
        rows = ", ".join(f"{n:,} of {where}" for where, n in place["rows"].items()) or "none"
        versions = ", ".join(map(str, place["versions"])) or "none"
        counts = (str(len(place["files"])), str(place.get("shards", 0)))
        table.add_row(name, versions, f"{place['samples']:,}", rows, *counts)
    lines = []
    if told["unknown"]:
        lines.append(
            f"{amount(told['unknown'], 'name is', 'names are')} of no row; "
            "URLs and digests are remembered and will not come in"
        )
    lines += _other_choices(told)
    for place in places.values():
        lines += place.get("index") or []
        if place.get("published"):
            lines.append(f"{place['published']} is published without them")
    return Group(head, *([table] if samples else []), *map(Text, lines))


def _other_choices(told: Record) -> list[str]:
    """Return what the other choices of `--copies` would take."""
    counts = {choice: sum(rows.values()) for choice, rows in told.get("choices", {}).items()}
    if not counts or len(set(counts.values())) == 1:
        return []
    said = ", ".join(f"{choice} {rows:,}" for choice, rows in counts.items())
    return [f"samples by --copies: {said}; this was {told['choice']}"]
