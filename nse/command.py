"""The contracts `nse edit` and `nse stats`: files in, files out, no ledger. Everything that went in is named in the report."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nse.architecture import EditableModel, load_model
from nse.batch import Progress, silent
from nse.contexts import ContextTemplates, read_contexts, sample_contexts
from nse.corpus import open_corpus
from nse.delta import WHOLE_ROUND, Delta, LayerDelta, Memory
from nse.description import Architecture, read_architecture
from nse.editors import EditContext, EditResult, get_editor, read_settings
from nse.errors import NseError, RequestError
from nse.fingerprint import file_digest, json_digest
from nse.patch import compose, patched, version_digest
from nse.presets import preset_or_file
from nse.request import read_requests
from nse.statistics import PartialFile, Sample, SecondMoments, collect_second_moments, read_second_moments
from nse.subjects import HeldFact, fact_key


@dataclass(frozen=True, slots=True)
class EditFiles:
    """The inputs of `nse edit`, all but the first three optional."""

    model: Path
    requests: Path
    hparams: Path
    method: str = "nse"
    second_moment: Path | None = None
    contexts: Path | None = None
    hold: Path | None = None
    architecture: Path | None = None
    trained: Path | None = None


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How a stream is edited.

    Attributes:
        batch_size: Requests per round; all in one if not given.
        seed: Of the context templates that are sampled where no file is given.
        memory: Most bytes of activations at a time, by estimate; by the device if not given.
        dtype: Type of the model's weights.
        device_map: As transformers takes it, e.g. "auto"; needs accelerate.
    """

    batch_size: int | None = None
    seed: int = 0
    memory: int | None = None
    dtype: torch.dtype = torch.float32
    device_map: str | None = None


def edit_stream(
    files: EditFiles,
    *,
    output: Path,
    options: StreamOptions = StreamOptions(),
    save_model: Path | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Edits a stream of batches and writes `delta.safetensors`, `values.safetensors` and `report.json` into `output`.

    Args:
        files: What to edit, with what.
        output: Folder; made if missing. Nothing is written before all batches are done.
        options: How.
        save_model: Folder for the edited model in transformers' own format.
        progress: Called as `progress(stage, done, total)`.

    Returns:
        The report.

    Raises:
        NseError: If an input is malformed or does not fit.
    """
    requests = read_requests(files.requests)
    if not requests:
        raise RequestError(f"{files.requests} holds no request: there is nothing to edit")
    hparams = read_settings(files.hparams, files.method)
    described = read_architecture(files.architecture) if files.architecture else None
    editable = load_model(files.model, dtype=options.dtype, architecture=described, device_map=options.device_map)
    editable.check_layers(hparams.settings.layers)
    contexts = read_contexts(files.contexts) if files.contexts else sample_contexts(editable, seed=options.seed)
    needed = "second_moments" in get_editor(files.method).needs
    moments = _second_moments(editable, files, hparams.settings.layers) if needed else SecondMoments({}, {})
    known = _known(files.hold) if files.hold else ()
    context = EditContext(
        hparams.settings,
        moments,
        contexts,
        trained=files.trained,
        seed=options.seed,
        memory=options.memory,
        progress=progress,
    )
    results: list[EditResult] = []
    size = len(requests) if options.batch_size is None else options.batch_size
    if size < 1:
        raise RequestError(f"batch size {size} is no number of requests: give 1 or more")
    for start in range(0, len(requests), size):
        progress("batch", start // size + 1, -(-len(requests) // size))
        batch = requests[start : start + size]
        corrected = {fact_key(r) for r in requests[: start + size]}
        written = {case for r in results for case in r.delta.case_ids}
        now = replace(
            context,
            previous=tuple(r.delta for r in results),
            earlier=tuple(r for r in requests[:start] if r.case_id in written),
            held=tuple(fact for fact in known if fact_key(fact) not in corrected),
        )
        results.append(get_editor(files.method).edit(editable, batch, now))
    delta = merge([r.delta for r in results])
    weights = compose(editable, [delta])
    report = {
        "schema": 1,
        "method": files.method,
        "requests": [asdict(case) for r in results for case in r.cases],
        "batches": [{"size": len(r.cases), "seconds": r.seconds} for r in results],
        "hyper_parameters": {k: v for k, v in hparams.settings.to_dict().items() if v != float("inf")},
        "unused_keys": list(hparams.unused),
        "differences": list(hparams.differences),
        "warnings": moments.warnings(),
        "contexts": contexts,
        "seed": options.seed,
        "digests": _digests(editable, files, weights, contexts),
        "versions": versions(),
    }
    _write(output, delta, torch.cat([r.values for r in results]), report)
    if save_model is not None:
        with patched(editable, weights):
            editable.model.save_pretrained(save_model)
        editable.tokenizer.save_pretrained(save_model)
    return report


def collect(
    *,
    model: Path,
    corpus: Path,
    layers: Sequence[int],
    output: Path,
    sample: Sample | None = None,
    dtype: torch.dtype = torch.float32,
    architecture: Architecture | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Estimates second moments and writes them; returns their metadata and what to be wary of.

    Unfinished sums are kept in `<output>.partial` on the way: the same command goes on from there after an interruption.

    Raises:
        NseError: If the model or the corpus cannot be read, or a layer does not exist.
    """
    begun = time.perf_counter()
    editable = load_model(model, dtype=dtype, architecture=architecture)
    partial = PartialFile(output.with_name(f"{output.name}.partial"))
    moments = collect_second_moments(editable, corpus, layers=layers, sample=sample, partial=partial, progress=progress)
    moments.save(output)
    partial.path.unlink(missing_ok=True)
    told = {"modules": sorted(moments.moments), "warnings": moments.warnings(), "seconds": time.perf_counter() - begun}
    return {**moments.metadata, **told}


def merge(deltas: Sequence[Delta]) -> Delta:
    """One delta whose columns are those of all, in order: base + left @ right is the end of the stream."""
    names = [name for delta in deltas for name in delta.case_ids]
    layers: dict[str, LayerDelta] = {}
    for parameter in dict.fromkeys(p for delta in deltas for p in delta.layers):
        offset, parts = 0, []
        for delta in deltas:
            if parameter in delta.layers:
                own = delta.layers[parameter]
                index = torch.where(own.case_index >= 0, own.case_index + offset, WHOLE_ROUND).to(torch.int32)
                first, more = own.keys[: len(delta.case_ids)], own.keys[len(delta.case_ids) :]
                parts.append((own.left, own.right, index, first, more, own.further_index + offset))
            offset += len(delta.case_ids)
        left, right, indices, firsts, others, further = zip(*parts, strict=True)
        keys = torch.cat([*firsts, *others])
        layers[parameter] = LayerDelta(
            torch.cat(left, dim=1), torch.cat(right), torch.cat(indices), keys, torch.cat(further)
        )
    return Delta(layers, tuple(names), deltas[0].base_digest, dict(deltas[0].metadata), _merged_memory(deltas))


def _merged_memory(deltas: Sequence[Delta]) -> Memory | None:
    """One memory with the entries of all, in order; a method's rounds share the rest."""
    offset, blocks = 0, []
    for delta in deltas:
        if delta.memory is not None:
            blocks.append((delta.memory, delta.memory.case_index + offset))
        offset += len(delta.case_ids)
    if not blocks:
        return None
    first = blocks[0][0]
    entries = {name: torch.cat([memory.entries[name] for memory, _ in blocks]) for name in first.entries}
    index = torch.cat([index for _, index in blocks])
    texts = tuple(text for memory, _ in blocks for text in memory.texts)
    return Memory(first.kind, entries, index, first.shared, first.settings, texts)


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {name: version(name) for name in ("torch", "transformers", "safetensors", "numpy")}


def _second_moments(editable: EditableModel, files: EditFiles, layers: Sequence[int]) -> SecondMoments:
    if files.second_moment is None:
        raise NseError(
            "no second moments: make them with `nse stats --model ... --corpus ... --layers ...`, give --second-moment"
        )
    module = editable.projection_name(layers[0]) if len(layers) == 1 else None
    only = {editable.projection_name(layer) for layer in layers}
    moments = read_second_moments(files.second_moment, module=module, only=only)
    made_for = moments.metadata.get("model_digest", editable.base_digest)
    if made_for != editable.base_digest:
        raise NseError(
            f"{files.second_moment} was made for model {made_for[:12]}, this is {editable.base_digest[:12]}: run `nse stats`"
        )
    for layer in layers:
        moments.of(editable.projection_name(layer))
    return moments


def _digests(
    editable: EditableModel, files: EditFiles, weights: dict[str, torch.Tensor], contexts: ContextTemplates
) -> dict[str, str]:
    return {
        "base": editable.base_digest,
        "edited": version_digest(editable, weights),
        "tokenizer": editable.tokenizer_digest,
        "requests": file_digest(files.requests),
        "hparams": file_digest(preset_or_file(files.hparams)),
        "second_moment": open_corpus(files.second_moment).digest() if files.second_moment else "",
        **{name: file_digest(path) for name in ("hold", "trained") if (path := getattr(files, name)) is not None},
        "contexts": json_digest(contexts),
    }


def _known(path: Path) -> tuple[HeldFact, ...]:
    """The facts to hold in a file of any layout of requests: `target_true` is what the model knows."""
    facts = read_requests(path)
    if without := next((r.case_id for r in facts if r.target_true is None), None):
        raise RequestError(f"{path}: case {without} has no target_true: it is the object to be held")
    return tuple(HeldFact(r.subject, r.prompt_template, r.target_true or "", r.relation) for r in facts)


def _write(output: Path, delta: Delta, values: torch.Tensor, report: dict[str, Any]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    delta.save(output / "delta.safetensors")
    save_file({"z": values.contiguous()}, output / "values.safetensors")
    (output / "report.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")
