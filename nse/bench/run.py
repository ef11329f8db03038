"""A benchmark from files to files: each finished part is kept, the record is written after every order of the stream."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nse.architecture import EditableModel, load_model
from nse.batch import Progress, silent
from nse.bench.inputs import BenchFiles, BenchOptions, Shared, check_options, shared_by_all
from nse.bench.job import BASE, Job, editor_of, torch_dtype
from nse.bench.part import finite, run_part
from nse.bench.plot import check_plot, draw
from nse.bench.program import program_digest
from nse.bench.summary import against_base, summary
from nse.bench.worker import run_apart
from nse.calibration.record import write_whole
from nse.command import versions
from nse.description import read_architecture
from nse.editors import get_editor, read_settings
from nse.errors import NseError
from nse.fingerprint import file_digest, json_digest

SCHEMA = 3


def bench(
    files: BenchFiles,
    options: BenchOptions,
    *,
    progress: Progress = silent,
    say: Callable[[str], None] = lambda _line: None,
    after_order: Callable[[dict[str, Any]], None] = lambda _record: None,
) -> dict[str, Any]:
    """Runs every method on every order of the stream and writes the record.

    A part that is kept from an earlier run with the very same inputs, program included, is not run again. A method that fails
    does not stop the others; its record says how.

    Args:
        files: What is read and written.
        options: What is done.
        progress: Called as `progress(stage, done, total)`.
        say: Called with a line about each part that is done, and how long the others will take.
        after_order: Called with the record after each order of the stream.

    Returns:
        The record.

    Raises:
        NseError: If an input is missing, malformed or does not fit; nothing is run then.
    """
    check_options(options)
    if files.plot is not None:
        check_plot()
    settings = {name: read_settings(files.hparams, editor_of(name)) for name in options.methods}
    described = read_architecture(files.architecture) if files.architecture else None
    editable: EditableModel | None = load_model(
        files.model,
        dtype=torch_dtype(options.dtype),
        architecture=described,
        device_map=options.device_map,
    )
    assert editable is not None
    shared = shared_by_all(editable, files, options, settings, progress)
    if options.isolated:
        editable = None  # each worker has its own
    names = [(name, order) for order in range(options.orders) for name in (BASE, *options.methods)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in (BASE, *options.methods)}
    record: dict[str, Any] = {}
    for done, (name, order) in enumerate(names, start=1):
        progress("parts", done - 1, len(names))
        part, how = _part(editable, shared, files, name, order, progress)
        found[name].append(part if name == BASE else against_base(part, found[BASE][order]))
        left = remaining([n for n, _ in names[done:]], found)
        say(f"{name}, order {order + 1}: {how}; {done} of {len(names)} parts{f', about {left} left' if left else ''}")
        if done % len(found) == 0:
            record = _record(files, replace(options, orders=order + 1), shared, found)
            write_whole(files.output, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
            if files.plot is not None:
                draw(record, files.plot)
            after_order(record)
    progress("parts", len(names), len(names))
    return record


def remaining(names: Sequence[str], found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """How long the parts of the methods in `names` will take, in words; empty if there are none.

    A method that has run takes as long as before, on the mean; another one as long as those that have run, the base aside.
    """
    known = {name: statistics.fmean(part["seconds"]["all"] for part in parts) for name, parts in found.items() if parts}
    others = [seconds for name, seconds in known.items() if name != BASE] or list(known.values())
    if not names or not others:
        return ""
    return in_words(sum(known.get(name, statistics.fmean(others)) for name in names))


def in_words(seconds: float) -> str:
    """A duration in seconds, or minutes, or hours and minutes."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _record(
    files: BenchFiles, options: BenchOptions, shared: Shared, found: Mapping[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    told = ("edits", "batch_size", "orders", "checkpoints", "seed", "hold", "asked", "prose")
    tasks = {own.name: {"questions": len(own.choices), "chance": own.chance} for own in shared.tasks}
    record: dict[str, Any] = finite(
        {
            "schema": SCHEMA,
            "stream": {
                "dataset": files.dataset.name,
                **{name: getattr(options, name) for name in told},
                **({"chat": True} if options.chat else {}),
                **({"tasks": tasks} if tasks else {}),
                "left_out": [list(pair) for pair in shared.dataset.left_out],
            },
            "digests": shared.digests,
            "versions": versions(),
            "methods": {name: _told(shared, name, parts) for name, parts in found.items()},
        }
    )
    return record


def _part(
    editable: EditableModel | None, shared: Shared, files: BenchFiles, name: str, order: int, progress: Progress
) -> tuple[dict[str, Any], str]:
    """One part, from where it is kept or made now, and how it went."""
    method = editor_of(name)
    trained = files.trained.get(method)
    needs = get_editor(method).needs if name != BASE else frozenset()
    values = files.parts / "values" / method if "values" in needs else None
    unread = set() if "second_moments" in needs else {"second_moment"}
    digests = {what: digest for what, digest in shared.digests.items() if what not in unread}
    job = replace(
        shared.job,
        method=name,
        order=order,
        moments=None if unread else shared.job.moments,
        trained=trained.resolve() if trained else None,
        values=values.resolve() if values else None,
    )
    program = program_digest(method)
    inputs = [SCHEMA, program, digests, versions(), _settings_of(shared, name), _plain(job), _digest(trained)]
    path = files.parts / f"{name}-{order}-{json_digest(inputs)[:16]}.json"
    if path.is_file():
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return kept, "kept from an earlier run"
    begun = time.monotonic()
    record = _made(
        editable, job, lambda stage, done, total: progress(f"{name}, order {order + 1}: {stage}", done, total)
    )
    seconds = time.monotonic() - begun
    record |= {"program": program, "seconds": {**record.get("seconds", {}), "all": seconds}}
    if record["failed"] is not None:
        return record, f"failed: {record['failed']['reason']}"
    write_whole(path, json.dumps(record) + "\n")
    return record, f"done in {in_words(seconds)}"


def _made(editable: EditableModel | None, job: Job, progress: Progress) -> dict[str, Any]:
    """A part's record, of this process's model or of a process of its own."""
    if editable is None:
        return run_apart(job, progress=progress)
    try:
        return run_part(editable, job, progress=progress)
    except NseError as error:
        reason = " ".join(str(error).split())
        return {
            "method": job.method,
            "order": job.order,
            "failed": {"edits": None, "reason": reason},
            "checkpoints": [],
        }


def _settings_of(shared: Shared, name: str) -> dict[str, Any]:
    """The settings of a method; none for the base."""
    return shared.settings[name].settings.to_dict() if name != BASE else {}


def _plain(job: Job) -> dict[str, Any]:
    """What of a job is no path: files count by their digests."""
    return {
        name: value
        for name, value in json.loads(job.to_json()).items()
        if name != "tasks" and not isinstance(getattr(job, name), Path)
    }


def _digest(path: Path | None) -> str | None:
    return file_digest(path) if path else None


def _told(shared: Shared, name: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    unused = list(shared.settings[name].unused) if name != BASE else []
    return {
        "settings": _settings_of(shared, name),
        "unused_keys": unused,
        "summary": summary(parts),
        "parts": parts,
    }
