"""Download damaged images again: they are the only content of a dataset that its recipe does not determine.

Every other part is made again under its name, with the same content. The web may return other images, and parts that
were made from the old images must not be published together with new ones. So the images of lost files are first
downloaded into parts and shards with names of their own:

    downloaded bytes                           result
    equal to the recorded digests              they are moved to the old names: no other part is made again
    different, or no digest is known           they remain a new attempt, as after a retry (`flows.build.plan.RETRIES`):
                                               the parts that depend on them are made again

Where samples of a shard were erased by a take-down, the gaps are put back at their offsets (`_stretched`).

Versions that list the old images are not changed, and `verify` reports their files as missing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from catalog.dataset import Dataset
from catalog.parts import PartFile, describe_part, fingerprint_of, part_path
from catalog.repair import beside, pending, rewrite, set_pending
from catalog.shards import Span, put_back, put_recorded, shard_path, stem
from catalog.takedown.ledger import Ledger
from catalog.wording import amount
from flows.build.engine import Engine
from flows.build.plan import RETRIES, Plan, PlannedPart, PlannedStage, retry_parts
from flows.build.worker import LOST, jobs_of, work_of

_IMAGES: Final = "images"


def mend(
    plan: Plan,
    engine: Callable[[], Engine],
    make: Callable[[PlannedStage], object],
    message: Callable[[str], object],
) -> bool:
    """Download the images that `verify --repair` quarantined again; return whether a new plan is required.

    `make` makes the missing parts of a stage; stages before the download come first. The caller must hold the lease.
    Safe to repeat after a kill.
    """
    dataset = plan.dataset
    waiting = pending(dataset)
    planned = next((stage for stage in plan.stages if stage.stage.table == _IMAGES), None)
    if planned is None or not (waiting["shards"] or any(p.startswith(f"{_IMAGES}/") for p in waiting["parts"])):
        return False
    trials = dict(_trials(planned, dataset, waiting))
    for earlier in plan.stages[: plan.stages.index(planned)]:
        if earlier.missing:
            make(earlier)
    message(f"fetching the pictures of {amount(len(trials), 'damaged file')} again")
    _make(plan, planned, list(trials.values()), engine)
    adopted: dict[int, list[str]] = {}
    for path, trial in trials.items():
        if not _restored(dataset, path, trial, waiting):
            adopted.setdefault(trial.number or 0, []).append(_lost(path))
    retries: Mapping[str, Any] = dataset.state(RETRIES)
    for number, reasons in adopted.items():
        retries = retry_parts(plan, planned.stage.name, reasons, [number])
        dataset.set_state(RETRIES, retries)
    settled = {part_path(_IMAGES, part.fingerprint) for part in planned.parts}
    left = {path: sha256 for path, sha256 in waiting["parts"].items() if path not in settled}
    restored = {p: s for p, s in waiting["parts"].items() if p in settled and dataset.storage.exists(p)}
    set_pending(dataset, left | restored, {})
    if adopted:
        changed = sum(map(len, adopted.values()))
        message(f"{changed} of them differ from before: the parts that depend on them are made again")
    return True


def _lost(path: str) -> str:
    """Return the reason with which a retry selects the rows of a lost shard or part."""
    return f"{LOST}{path}"


def _trials(planned: PlannedStage, dataset: Dataset, waiting: Mapping[str, Any]) -> Iterator[tuple[str, PlannedPart]]:
    """Yield (lost file, part that downloads its images again)."""
    for part in planned.parts:
        path = part_path(_IMAGES, part.fingerprint)
        if path in waiting["parts"] and not dataset.storage.exists(path):
            yield path, replace(part, fingerprint=_attempt(part, path))
        elif dataset.storage.exists(path):
            named = describe_part(dataset.storage, path).files
            for shard, record in waiting["shards"].items():
                if shard in named or (record is None and _is_of(shard, part.number)):
                    yield (
                        shard,
                        replace(
                            part,
                            fingerprint=_attempt(part, shard),
                            chunk=None,
                            earlier=((path, (_lost(shard),)), *part.earlier),
                        ),
                    )


def _attempt(part: PlannedPart, path: str) -> str:
    """Return the fingerprint of the attempt that follows a part's (as `flows.build.plan` does)."""
    return fingerprint_of("retry", part.fingerprint, [_lost(path)])


def _is_of(shard: str, number: int | None) -> bool:
    return shard.startswith(f"shards/{number or 0:05d}-")


def _make(plan: Plan, planned: PlannedStage, trials: list[PlannedPart], engine: Callable[[], Engine]) -> None:
    there = plan.dataset.finished(_IMAGES)
    wanted = replace(
        planned, parts=tuple(trials), finished={t.fingerprint: 0 for t in trials if t.fingerprint in there}
    )
    if wanted.missing:
        running = engine()
        work = work_of(wanted, plan.dataset.storage, running.device(wanted.stage.resources), plan.recipe.seed)
        running.map_parts(work, jobs_of(wanted), lambda part, file: None)


def _restored(dataset: Dataset, path: str, trial: PlannedPart, waiting: Mapping[str, Any]) -> bool:
    """Replace a lost file by the result of a trial if their bytes are the same; return whether they are."""
    made = describe_part(dataset.storage, part_path(_IMAGES, trial.fingerprint))
    fresh = shard_path(trial.number or 0, trial.fingerprint)
    old = _shard_of(path, trial.number or 0)
    spans = Ledger.read(dataset.storage).erased(old)
    if spans and fresh in made.files:
        stretched, shard = _stretched(dataset, made, fresh, trial, spans)
        restored = _put(dataset, path, trial, waiting, stretched, shard)
        _remove(dataset, stretched, shard)
    else:
        restored = _put(dataset, path, trial, waiting, made, fresh)
    if restored:
        _remove(dataset, made, fresh)
    return restored


def _shard_of(path: str, number: int) -> str:
    """Return the shard that belongs to a lost file: the file itself, or the shard of a part."""
    fingerprint = path.rpartition("/")[2].removesuffix(".parquet")
    return path if path.endswith(".tar") else shard_path(number, fingerprint)


def _stretched(
    dataset: Dataset, made: PartFile, fresh: str, trial: PlannedPart, spans: Sequence[Span]
) -> tuple[PartFile, str]:
    """Return the part that was made, and its shard, with the gaps of erased samples at their former offsets.

    Without the gaps, a shard from which a take-down erased samples could never get its recorded digest back.
    """
    fingerprint = fingerprint_of("stretched", trial.fingerprint, spans)
    shard = shard_path(trial.number or 0, fingerprint)
    files = {name: facts for name, facts in made.files.items() if stem(name) != stem(fresh)}
    files[shard] = put_back(dataset.storage, fresh, shard, spans)
    files |= put_recorded(dataset.storage, beside(dataset, made.path, shard))
    return rewrite(dataset, made.path, fingerprint, made.notes, files, {fresh: shard}, spans), shard


def _remove(dataset: Dataset, made: PartFile, shard: str) -> None:
    dataset.storage.delete([made.path, *(f"{stem(shard)}{end}" for end in (".tar", ".parquet", "_stats.json"))])


def _put(
    dataset: Dataset, path: str, trial: PlannedPart, waiting: Mapping[str, Any], made: PartFile, fresh: str
) -> bool:
    if path in waiting["parts"]:
        restored = _restored_part(dataset, path, made, fresh, trial.number or 0, waiting["parts"][path])
    else:
        restored = _same(made.files.get(fresh), waiting["shards"][path])
        if restored:
            dataset.storage.move(fresh, path)
    return restored


def _restored_part(dataset: Dataset, path: str, made: PartFile, fresh: str, number: int, expected: str | None) -> bool:
    fingerprint = path.rpartition("/")[2].removesuffix(".parquet")
    old = shard_path(number, fingerprint)
    files = {
        f"{stem(old)}{name.removeprefix(stem(fresh))}" if stem(name) == stem(fresh) else name: facts
        for name, facts in made.files.items()
    }
    remade = rewrite(dataset, made.path, fingerprint, made.notes, files, {fresh: old})
    if expected is None or remade.sha256 != expected:
        dataset.storage.delete([path])
        return False
    for name in made.files:
        if stem(name) == stem(fresh):
            dataset.storage.move(name, f"{stem(old)}{name.removeprefix(stem(fresh))}")
    return True


def _same(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    return one is not None and other is not None and one["sha256"] == other["sha256"]
