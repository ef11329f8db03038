"""One job of a benchmark: a method, an order of the stream, and all that its result depends on, as a file can hold it."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from nse.errors import ArchitectureError

BASE = "base"
"""In place of a method: nothing is edited, everything is asked."""
CONSOLIDATED = "+consolidate"
"""After a method's name: at each checkpoint all edits so far are solved in one shot from the base, in place of the stream."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is told.

    Attributes:
        method: Name of the method, with `CONSOLIDATED` after it or not, or `BASE`.
        order: Number of the order of the stream.
        model: Folder of the model.
        dataset: Cases to edit: a file of requests, or a suite.
        hparams: Hyper-parameter file.
        contexts: Context templates.
        moments: Second moments, if the method needs them.
        values: Folder in which z's are kept, if any.
        suite: Known facts to ask about besides, and which misleading questions.
        corpus: Text for perplexity and consistency.
        architecture: Description of the model's family.
        trained: What `nse train` made for the method.
        tasks: Task files for capability.
        task_questions: Most questions of each of them; 0 asks all.
        edits: Cases that are edited.
        batch_size: Cases in a round.
        checkpoints: How often all is tested.
        seed: Of the order and of what the method draws.
        hold: Whether the method is given known facts, the suite's or the dataset's, to be left in place.
        asked: Most questions of a kind about a case; 0 asks all. Of misleading ones a suite says it.
        prose: Most cases of which a text is written, for fluency and consistency.
        chat: Whether everything is asked in the chat format as well.
        dtype: Name of the type of the model's weights.
        device_map: As transformers takes it.
        memory: Most bytes of activations at a time.
    """

    method: str
    order: int
    model: Path
    dataset: Path
    hparams: Path
    contexts: Path
    moments: Path | None = None
    values: Path | None = None
    suite: Path | None = None
    corpus: Path | None = None
    architecture: Path | None = None
    trained: Path | None = None
    tasks: tuple[Path, ...] = ()
    task_questions: int = 200
    edits: int = 100
    batch_size: int = 100
    checkpoints: int = 5
    seed: int = 0
    hold: bool = False
    asked: int = 0
    prose: int = 20
    chat: bool = False
    dtype: str = "float32"
    device_map: str | None = None
    memory: int | None = None

    @property
    def editor(self) -> str:
        """Name of the method alone."""
        return editor_of(self.method)

    @property
    def consolidated(self) -> bool:
        """Whether all is solved in one shot at each checkpoint."""
        return self.method.endswith(CONSOLIDATED)

    def to_json(self) -> str:
        """The job as JSON."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> "Job":
        """A job as `to_json` wrote it."""
        paths = {f.name for f in fields(cls) if f.type in (Path, Path | None)}
        told: dict[str, Any] = json.loads(text)
        given: dict[str, Any] = {n: Path(v) if n in paths and v is not None else v for n, v in told.items()}
        return cls(**given | {"tasks": tuple(Path(v) for v in told["tasks"])})


def editor_of(method: str) -> str:
    """The method that a name in a benchmark stands for, solved round upon round or in one shot."""
    return method.removesuffix(CONSOLIDATED)


def torch_dtype(name: str) -> torch.dtype:
    """The type of weights of that name.

    Raises:
        ArchitectureError: If torch has none.
    """
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ArchitectureError(f"dtype {name!r} is no type of weights: use float32, float16 or bfloat16")
    return found
