"""Tasks of lm-evaluation-harness in a suite: the standard benchmarks, or task files of one's own. An optional extra.

Task files that name local data work offline. The harness asks the model itself: it does not see what a method answers beside
the model, by the text of the prompt.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from nse.architecture import EditableModel
from nse.errors import SuiteError
from nse.memories import ROUTERS

BATCH = 8
"""Rows of a batch: a fixed number, so that rounding is the same in every run."""


@dataclass(frozen=True, slots=True)
class Harness:
    """What the harness is asked for.

    Attributes:
        tasks: Names of tasks.
        include: Folder of task files of one's own.
        limit: Most documents of each task; all if not given.
    """

    tasks: tuple[str, ...]
    include: Path | None = None
    limit: int | None = None


def harness_metrics(editable: EditableModel, harness: Harness) -> dict[str, float]:
    """Runs the tasks on the weights in force.

    Returns:
        `harness.<task>.<metric>`, with the name of the filter behind the metric's if there are several; standard errors left out.

    Raises:
        SuiteError: If the package is not installed, or there is no such task.
    """
    if routers := sorted({memory.kind for memory in editable.memories} & set(ROUTERS)):
        problem = f"the suite asks for tasks of lm-evaluation-harness, which would ask past the memory of {routers[0]}"
        raise SuiteError(f"{problem}: leave out `harness`")
    try:
        package, models, tasks = (
            import_module(name) for name in ("lm_eval", "lm_eval.models.huggingface", "lm_eval.tasks")
        )
    except ImportError as error:
        problem = f"the suite asks for tasks of lm-evaluation-harness, which cannot be imported ({error})"
        raise SuiteError(f"{problem}: install it with `pip install 'nse-pipeline[harness]'`") from error
    manager = _manager(tasks.TaskManager, harness)
    if unknown := next((task for task in harness.tasks if task not in manager.all_tasks), None):
        raise SuiteError(f"lm-evaluation-harness has no task {unknown!r}: see harness.tasks and harness.include")
    found = package.simple_evaluate(
        model=models.HFLM(pretrained=editable.model, tokenizer=editable.tokenizer, batch_size=BATCH),
        tasks=list(harness.tasks),
        task_manager=manager,
        limit=harness.limit,
        bootstrap_iters=0,
        log_samples=False,
    )
    return {
        f"harness.{task}.{metric.removesuffix(',none').replace(',', '-')}": float(value)
        for task, values in found["results"].items()
        for metric, value in sorted(values.items())
        if isinstance(value, int | float) and "_stderr" not in metric and metric != "sample_len"
    }


def _manager(make: Callable[..., Any], harness: Harness) -> Any:
    """Knows where tasks are. The harness's own, which are thousands of files, are read only if one of them is asked for."""
    if harness.include is None:
        return make()
    own = make(include_path=str(harness.include), include_defaults=False)
    return own if set(harness.tasks) <= set(own.all_tasks) else make(include_path=str(harness.include))
