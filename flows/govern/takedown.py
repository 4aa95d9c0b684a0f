"""Take rows down: erase them from every version of every dataset that has them, so that no later build restores them.

The take-down first locks and lists every dataset that it reaches (`catalog.takedown.reach`). It then writes one order,
which holds digests and numbers only, into the dataset that was named; from that moment the take-down is in force. Every
other dataset gets an order in its own ledger (`catalog.takedown.ledger`), so that no build of it can begin. Finally all
orders are executed, that of the named dataset last. Every step can be repeated: after a kill at any moment, the same
command resumes the take-down in all datasets.
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
    confirm: Confirm = lambda record: True,
) -> Record:
    """Take rows down and return the record of the take-down; with `dry_run`, the record that it would have.

    `copies` is one of `catalog.takedown.reach.CHOICES`. `confirm` receives the record while all datasets are locked;
    nothing is erased if it returns False. An interrupted take-down is completed first; without `names`, that is all.
    Raises UserError if there is nothing to do or `confirm` refused, BusyError while one of the datasets is being built,
    BuildError if something of the rows remains.
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
    """No row has any of the names, and no name is new to the ledger."""


class _Held:
    """The datasets that this take-down has locked, and the receiver of its messages."""

    def __init__(self, catalog: Catalog, stack: ExitStack, message: Say) -> None:
        self.catalog = catalog
        self.message = message
        self._stack = stack
        self._leases: dict[str, Lease] = {}

    @classmethod
    @contextmanager
    def open(cls, dataset: Dataset, message: Say) -> "Iterator[_Held]":
        """Lock one dataset for the duration of the block; `add` locks more."""
        with ExitStack() as stack:
            held = cls(dataset.catalog, stack, message)
            held.add(dataset.name)
            yield held

    def add(self, name: str, wait_s: float | None = 0.0) -> None:
        """Lock another dataset. Raises BusyError."""
        if name not in self._leases:
            dataset = self.catalog.dataset(name)
            self._leases[name] = self._stack.enter_context(hold(dataset, wait_s, self.message))

    def check(self) -> None:
        """Raise BusyError if another process has taken over one of the leases."""
        for lease in self._leases.values():
            lease.check()


def _planned(dataset: Dataset, names: Names, copies: str, reason: str) -> tuple[Reach, Record]:
    """Return the rows that the names reach, and the record. Raises NoRowError if there is nothing to do."""
    ledger = Ledger.read(dataset.storage)
    found = reach(dataset, names, copies)
    fresh = [url for url in names.urls if ledger.url(url) not in ledger.urls]
    fresh += [digest for digest in names.sha256 if ledger.content(digest) not in ledger.contents]
    if not any(map(len, found.sample_ids.values())) and not fresh:
        old = len(names) - len(names.sample_ids)
        why = f"{old:,} were taken down before" if old else "there is no such sample_id"
        raise NoRowError(f"no row of {dataset.name!r} has any of these {amount(len(names), 'name')}: {why}")
    scrubbed = ledger.ordered(ledger.digests(found.names), None).scrubbed(reason)
    facts = {
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
    return found, facts | root | {"digests": digests, "last_version": last.number if last else None, "others": places}


def _places(order: ErasurePlan) -> Record:
    """Return the part of a record that locates the rows of one dataset."""
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
    """Lock all datasets that are reached; return whether an interrupted take-down of one had to be completed first."""
    resumed = False
    for name in sorted(found.sample_ids):
        held.add(name, wait_s)
        dataset = held.catalog.dataset(name)
        if Ledger.read(dataset.storage).pending is not None:
            _go_on(held, dataset)
            resumed = True
    return resumed


def _write_down(held: _Held, dataset: Dataset, names: Names, copies: str, found: Reach, facts: Record) -> None:
    """Write the order into the ledger of the dataset that was named. From then on the take-down is in force.

    Then compute the reach again: a concurrent `search --save` writes its edges before it looks for an order. So either
    it sees this order, or its edges are seen here.
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
    """Complete the pending take-down of a dataset, starting from the dataset that was named."""
    held.message(f"completing the interrupted take-down of {dataset.name}")
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
    """Execute the pending orders of a dataset and of all others that its order names, and store the records."""
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
    done: dict[str, Record] = {}
    for name in others:
        member = held.catalog.dataset(name)
        pending = _pending(member)
        if pending is not None and pending.id == order.id:
            done[name] = _carry_out(held, member, words)
        else:
            done[name] = dict(next(r for r in Ledger.read(member.storage).records if r.get("id") == order.id))
    summary = {
        name: {k: record[k] for k in ("samples", "rows", "versions", "files", "shards", "index", "published")}
        for name, record in done.items()
    }
    return _carry_out(held, root, words, others=summary)


def _begin(held: _Held, root: Dataset, order: ErasurePlan, name: str, about: Mapping[str, Any]) -> bool:
    """Write the order of another dataset into its ledger unless it is there; return whether it is still pending."""
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
    """Execute the pending order of one dataset, and store the record."""
    order = _pending(dataset)
    assert order is not None
    record: Record = {"index": [], "published": None, "erased": dict(order.spans)} | dict(order.facts) | more
    ledger = Ledger.read(dataset.storage)
    if order.sample_ids:
        scrubber = Scrubber(words, ledger)
        scrub(dataset, order.ids, order.clusters, scrubber)
        cards.redraw_mentioning(dataset, scrubber, held.message)
        erase.erase_shards(dataset, order)
        erase.erase_parts(dataset, order, scrubber)
        record["index"] = _forget(dataset, order)
        cards.remake(dataset, order.versions, held.message)
        erase.sweep(dataset)
        erase.settle(dataset, order)
        record["published"] = _publish(dataset, record["last_version"])
        cards.redraw(dataset, order.versions, held.message)
        if left := erase.remaining(dataset, order, ledger):
            raise BuildError(f"rows remain in {left[0]} ({amount(len(left), 'file')}): run the take-down again")
    ledger.done(record).save(dataset.storage)
    return record


def _publish(dataset: Dataset, before: int | None) -> str | None:
    """Publish the version without the rows, once; return its label."""
    last = dataset.last()
    if last is None:
        return None
    return (dataset.republish() if last.number == before else last).label


def _forget(dataset: Dataset, order: ErasurePlan) -> list[str]:
    """Remove the samples from the search indexes."""
    if "_index" not in dataset.storage.folders():
        return []
    from flows.explore.index import forget

    return forget(dataset, order.ids)


def records(dataset: Dataset) -> list[Record]:
    """Return the take-downs of a dataset for a table, oldest first."""
    ledger = Ledger.read(dataset.storage)
    pending = [dict(ErasurePlan.of_json(ledger.pending).facts)] if ledger.pending else []
    kept: list[Record] = [dict(record) for record in ledger.records]
    return [
        {
            "at": record["at"],
            "by": record["by"],
            "reason": record["reason"],
            "samples": record["samples"],
            "copies": record["copies"],
            "files": len(record["files"]),
            "versions": ", ".join(map(str, record["versions"])),
            "others": ", ".join(f"{name}: {at['samples']}" for name, at in record.get("others", {}).items()),
            "named_in": record.get("root") or dataset.name,
            "published": record.get("published"),
            "state": "interrupted" if record in pending else "done",
        }
        for record in (*kept, *pending)
    ]


def confirmation(dataset: str, yes: bool) -> Confirm:
    """Return a function that shows what would be erased and asks on the terminal; with `yes`, one that agrees.

    Raises UserError if there is no terminal to ask on.
    """
    if yes:
        return lambda record: True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UserError(
            "erasing cannot be undone and needs a confirmation, but there is no terminal to ask on: "
            "give --yes, or --dry-run to look"
        )

    def ask(record: Record) -> bool:
        from rich.console import Console
        from rich.prompt import Confirm as Question

        console = Console(stderr=True)
        console.print(render(dataset, record | {"dry_run": True}))
        return Question.ask("Erase all of it? This cannot be undone.", console=console, default=False)

    return ask


def render(dataset: str, record: Record) -> "RenderableType":
    """Render a record for a terminal: what is, or would be, erased, and where."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    places: dict[str, Record] = {dataset: record} | record.get("others", {})
    samples = sum(place["samples"] for place in places.values())
    verb = "would be taken down" if record.get("dry_run") else "taken down"
    copies = f", {record['copies']:,} of them copies of rows that were named" if record["copies"] else ""
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
    if record["unknown"]:
        lines.append(
            f"{amount(record['unknown'], 'name is', 'names are')} of no row; "
            "their URLs and digests are recorded, so that no later build takes them"
        )
    lines += _other_choices(record)
    for place in places.values():
        lines += place.get("index") or []
        if place.get("published"):
            lines.append(f"{place['published']} is published without them")
    return Group(head, *([table] if samples else []), *map(Text, lines))


def _other_choices(record: Record) -> list[str]:
    """Return how many samples the other choices of `--copies` would take."""
    counts = {choice: sum(rows.values()) for choice, rows in record.get("choices", {}).items()}
    if not counts or len(set(counts.values())) == 1:
        return []
    listed = ", ".join(f"{choice} {rows:,}" for choice, rows in counts.items())
    return [f"samples by --copies: {listed}; this take-down used {record['choice']}"]
