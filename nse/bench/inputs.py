"""What all parts of a benchmark share: its files and options, checked, and what is made of them once."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nse.architecture import EditableModel
from nse.batch import Progress
from nse.bench.job import BASE, Job, editor_of
from nse.bench.streams import Dataset, read_dataset
from nse.calibration.record import write_whole
from nse.chat import needed_chat_context
from nse.contexts import read_contexts, sample_contexts
from nse.corpus import open_corpus
from nse.editors import get_editor
from nse.errors import HyperparameterError, RequestError, StatisticsError, TrainingError
from nse.evaluation.capability import TaskSet, read_task_sets
from nse.evaluation.suites import read_suite
from nse.fingerprint import json_digest
from nse.hyperparameters import HyperparameterFile
from nse.statistics import ESTIMATE, collect_second_moments, read_second_moments


@dataclass(frozen=True, slots=True)
class BenchFiles:
    """What a benchmark reads and writes.

    Attributes:
        model: Folder of the model.
        dataset: Cases to edit: a file of requests, or a suite.
        hparams: Hyper-parameters, with a section per method where one has settings of its own.
        output: The record, JSON. Finished parts are kept beside it, in `<output>.parts`.
        second_moment: Second moments; made from the corpus, once for all, if not given.
        corpus: Text, for second moments, perplexity and consistency.
        contexts: Context templates; sampled from the model if not given.
        suite: Known facts to ask about besides, and which misleading questions; the dataset itself, where that is a suite.
        architecture: Description of the model's family.
        plot: The plot, if one is wanted.
        trained: By method, what `nse train` made for it.
        tasks: Task files for capability (`nse.evaluation.capability`).
    """

    model: Path
    dataset: Path
    hparams: Path
    output: Path
    second_moment: Path | None = None
    corpus: Path | None = None
    contexts: Path | None = None
    suite: Path | None = None
    architecture: Path | None = None
    plot: Path | None = None
    trained: Mapping[str, Path] = field(default_factory=dict)
    tasks: tuple[Path, ...] = ()

    @property
    def parts(self) -> Path:
        """The folder of finished parts, and of what all of them share."""
        return self.output.with_name(f"{self.output.name}.parts")


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What a benchmark does.

    Attributes:
        methods: Names of the methods; "+consolidate" after one solves all edits so far in one shot at each checkpoint.
        edits: Cases in the stream.
        batch_size: Cases in a round.
        orders: Permutations of the stream.
        checkpoints: How often all facts edited so far are tested, the end included.
        seed: Of the orders, of what methods draw, of sampled contexts.
        hold: Whether methods are given known facts, the suite's or the dataset's, to be left in place.
        asked: Most questions of a kind about a case; 0 asks all. Of misleading ones a suite says it.
        prose: Most cases of which a text is written, for fluency and consistency, at five checkpoints at most.
        task_questions: Most questions of a task file; 0 asks all.
        chat: Whether everything is asked in the chat format as well; the tokenizer must have one.
        isolated: Whether every part runs in a process of its own.
        dtype: Name of the type of the model's weights.
        device_map: As transformers takes it.
        memory: Most bytes of activations at a time.
    """

    methods: tuple[str, ...]
    edits: int = 100
    batch_size: int = 100
    orders: int = 3
    checkpoints: int = 5
    seed: int = 0
    hold: bool = False
    asked: int = 0
    prose: int = 20
    task_questions: int = 200
    chat: bool = False
    isolated: bool = True
    dtype: str = "float32"
    device_map: str | None = None
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class Shared:
    """What all parts share: the job of the base, what was read for each method and once, digests of everything that went in."""

    job: Job
    settings: Mapping[str, HyperparameterFile]
    dataset: Dataset
    tasks: tuple[TaskSet, ...]
    digests: dict[str, Any]


def check_options(options: BenchOptions) -> None:
    """Checks what needs no file.

    Raises:
        RequestError: If a count is below 1.
        HyperparameterError: If no method is named, or one twice, or one that nobody knows.
    """
    for name in ("edits", "batch_size", "orders", "checkpoints"):
        if getattr(options, name) < 1:
            raise RequestError(f"{name} is {getattr(options, name)}: give 1 or more")
    if not options.methods or len(set(options.methods)) < len(options.methods):
        raise HyperparameterError(f"methods {', '.join(options.methods) or 'none'}: name each once, at least one")
    for name in options.methods:
        get_editor(editor_of(name))


def shared_by_all(
    editable: EditableModel,
    files: BenchFiles,
    options: BenchOptions,
    settings: Mapping[str, HyperparameterFile],
    progress: Progress,
) -> Shared:
    """Reads and makes what all parts share.

    Raises:
        NseError: If something is missing or does not fit.
    """
    for name, read in settings.items():
        editable.check_layers(read.settings.layers)
        method = editor_of(name)
        if "trained" in get_editor(method).needs and method not in files.trained:
            made = f"make a file with `nse train --method {method}`, give --trained {method}=FILE"
            raise TrainingError(f"{method} must be trained first: {made}")
    if options.chat:
        needed_chat_context(editable.tokenizer)
    dataset = read_dataset(files.dataset, editable.tokenizer, edits=options.edits, seed=options.seed)
    suite = read_suite(files.suite) if files.suite else dataset.suite
    tasks = read_task_sets(files.tasks, most=options.task_questions)
    contexts = read_contexts(files.contexts) if files.contexts else sample_contexts(editable, seed=options.seed)
    kept = files.parts / f"contexts-{json_digest(contexts)[:16]}.json"
    write_whole(kept, json.dumps(contexts, ensure_ascii=False) + "\n")
    moments = _moments(editable, files, settings, progress)
    corpus = open_corpus(files.corpus).digest() if files.corpus else None
    job = Job(
        BASE,
        0,
        files.model.resolve(),
        files.dataset.resolve(),
        files.hparams,
        kept.resolve(),
        moments=moments.resolve() if moments else None,
        suite=files.suite.resolve() if files.suite else None,
        corpus=files.corpus.resolve() if files.corpus else None,
        architecture=files.architecture.resolve() if files.architecture else None,
        tasks=tuple(path.resolve() for path in files.tasks),
        task_questions=options.task_questions,
        edits=options.edits,
        batch_size=options.batch_size,
        checkpoints=options.checkpoints,
        seed=options.seed,
        hold=options.hold,
        asked=options.asked,
        prose=options.prose,
        chat=options.chat,
        dtype=options.dtype,
        device_map=options.device_map,
        memory=options.memory,
    )
    digests = {
        "base": editable.base_digest,
        "tokenizer": editable.tokenizer_digest,
        "dataset": dataset.digest,
        "suite": suite.digest if suite else None,
        "contexts": json_digest(contexts),
        # those that are made follow from the corpus, layer by layer, whichever layers the other methods have
        "second_moment": open_corpus(files.second_moment).digest() if moments and files.second_moment else None,
        "corpus": corpus,
        **({"tasks": {own.name: own.digest for own in tasks}} if tasks else {}),
    }
    return Shared(job, settings, dataset, tasks, digests)


def _moments(
    editable: EditableModel, files: BenchFiles, settings: Mapping[str, HyperparameterFile], progress: Progress
) -> Path | None:
    """The file of second moments of all layers that a method needs them of; made if none is given, nothing if none needs any."""
    needs = {name: get_editor(editor_of(name)).needs for name in settings}
    needing = [read.settings.layers for name, read in settings.items() if "second_moments" in needs[name]]
    layers = sorted({layer for own in needing for layer in own})
    if not layers:
        return None
    if files.second_moment is not None:
        modules = {editable.projection_name(layer) for layer in layers}
        given = read_second_moments(
            files.second_moment, module=min(modules) if len(modules) == 1 else None, only=modules
        )
        if given.metadata.get("model_digest", editable.base_digest) != editable.base_digest:
            raise StatisticsError(f"{files.second_moment} was made for another model: make it with `nse stats`")
        for module in sorted(modules):
            given.of(module)
        return files.second_moment
    if files.corpus is None:
        raise StatisticsError("there is neither text nor second moments: give --corpus or --second-moment")
    made_of = [editable.base_digest, editable.tokenizer_digest, open_corpus(files.corpus).digest(), layers, ESTIMATE]
    path = files.parts / f"moments-{json_digest(made_of)[:16]}.safetensors"
    if not path.is_file():
        collect_second_moments(editable, files.corpus, layers=layers, progress=progress).save(path)
    return path
