"""Memories that methods keep beside the weights (GRACE, SERAC): how each kind is put in force, and taken out again.

A kind is a function that takes the model and the memories of that kind, in ledger order, and gives a context manager inside
which the model remembers. A kind that answers some prompts by other means than the rest has a router as well. Nothing is
written into the weights.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from nse.architecture import EditableModel
from nse.delta import Memory
from nse.errors import DeltaError
from nse.fingerprint import json_digest, tensor_digest
from nse.memories import grace, serac
from nse.memories.route import Route

Remember = Callable[[EditableModel, Sequence[Memory]], AbstractContextManager[None]]
Router = Callable[[EditableModel, Sequence[Memory], Sequence[str]], list[Route]]
MEMORIES: dict[str, Remember] = {grace.KIND: grace.recalled, serac.KIND: serac.recalled}
"""By `Memory.kind`."""
ROUTERS: dict[str, Router] = {serac.KIND: serac.routed}
"""By `Memory.kind`: of kinds that look at a prompt's text before it is asked. A round's memories have one such kind."""

__all__ = ["MEMORIES", "ROUTERS", "Route", "memory_digest", "remembering", "routed"]


@contextmanager
def remembering(editable: EditableModel, memories: Sequence[Memory]) -> Iterator[None]:
    """Puts `memories` in force inside the block, in place of those in force around it.

    Raises:
        DeltaError: If one is of an unknown kind, or does not fit the model or the others.
    """
    before = editable.memories
    if len(memories) == len(before) and all(a is b for a, b in zip(memories, before, strict=True)):
        yield  # in force already
        return
    kinds = list(dict.fromkeys(memory.kind for memory in memories))
    if unknown := next((kind for kind in kinds if kind not in MEMORIES), None):
        raise DeltaError(f"memory of kind {unknown!r} is unknown: upgrade the program")
    try:
        editable.memories = (*memories,)  # a tuple of its own: by it a kind knows whether it is in force
        with ExitStack() as stack:
            for kind in kinds:
                stack.enter_context(MEMORIES[kind](editable, [m for m in memories if m.kind == kind]))
            yield
    finally:
        editable.memories = before


def routed(editable: EditableModel, prompts: Sequence[str]) -> list[Route]:
    """Who answers each prompt under the memories in force; every prompt is in one route.

    Raises:
        TokenError: If a prompt does not fit the model.
    """
    for kind, router in ROUTERS.items():
        if own := [memory for memory in editable.memories if memory.kind == kind]:
            return router(editable, own, prompts)
    return [Route(tuple(range(len(prompts))), ("",) * len(prompts))]


def memory_digest(memory: Memory) -> str:
    """Digest of all that a memory holds."""
    tensors = {**memory.entries, **{f"shared {name}": tensor for name, tensor in memory.shared.items()}}
    digests = {name: tensor_digest(tensor) for name, tensor in sorted(tensors.items())}
    return json_digest([memory.kind, digests, memory.case_index.tolist(), dict(memory.settings), list(memory.texts)])
