"""Description of an architecture: five lines that say where a model's parts are, checked against it, or guessed from it.

The families that are known by name are rows of the table in `nse.architecture`; any other is described in the same words.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nse.errors import ArchitectureError, RequestError
from nse.request import read_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Names of the parts of one family, as transformers names them.

    Attributes:
        block: Path of a layer with `{}` for its number; its output is the hidden state.
        output_projection: Path, inside a block, of the MLP's output projection: its input is the key. Where blocks differ,
            several paths: the first that a block has is taken.
        transposed: Whether that weight is stored (d_in, d_out), as transformers' Conv1D does.
        final_norm: Path of the norm before the language-model head.
        post_norm: Path, inside a block, of the RMSNorm between that projection and the residual stream, if there is one.
    """

    block: str
    output_projection: str | tuple[str, ...]
    transposed: bool = False
    final_norm: str
    post_norm: str | None = None

    def projection_in(self, block: nn.Module) -> str:
        """Path of the output projection inside `block`.

        Raises:
            ArchitectureError: If the block has none of the paths.
        """
        paths = self.output_projection
        for path in (paths,) if isinstance(paths, str) else paths:
            if _has(block, path):
                return path
        raise ArchitectureError(f"a layer has no {paths}: correct output_projection")

    def line(self) -> str:
        """The description as one line of YAML, as `architecture_of` reads it."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["output_projection"] = (
            list(self.output_projection) if isinstance(self.output_projection, tuple) else self.output_projection
        )
        return yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=1000).strip()


def architecture_of(data: Any, *, where: str) -> Architecture:
    """Builds a description from a mapping of the five keys.

    Raises:
        ArchitectureError: If a key is missing, unknown or of the wrong type; `where` names the file.
    """
    if not isinstance(data, Mapping):
        raise ArchitectureError(
            f"{where} is not a mapping: write the lines block, output_projection, transposed, final_norm, post_norm"
        )
    known = {f.name for f in fields(Architecture)}
    if wrong := sorted(set(map(str, data)) - known):
        raise ArchitectureError(f"{where}: {wrong[0]} is not a part of an architecture: use {', '.join(sorted(known))}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    paths = values.get("output_projection")
    several = (paths,) if isinstance(paths, str) else paths
    fine = {
        "block": isinstance(values.get("block"), str) and values["block"].count("{}") == 1,
        "output_projection": isinstance(several, tuple) and bool(several) and all(isinstance(p, str) for p in several),
        "transposed": isinstance(values.get("transposed", False), bool),
        "final_norm": isinstance(values.get("final_norm"), str),
        "post_norm": isinstance(values.get("post_norm"), str | None),
    }
    if bad := next((name for name, good in fine.items() if not good), None):
        raise ArchitectureError(f"{where}: {bad} = {values.get(bad)!r}: {_EXPECTED[bad]}")
    return Architecture(**values)


_EXPECTED = {
    "block": "give the path of a layer with one {} for its number, such as model.layers.{}",
    "output_projection": "give its path inside a layer, such as mlp.down_proj",
    "transposed": "write true (Conv1D) or false (Linear)",
    "final_norm": "give the path of the norm before the head, such as model.norm",
    "post_norm": "give its path inside a layer, or leave it out",
}


def read_architecture(path: Path) -> Architecture:
    """Reads a description from a YAML file of the five lines.

    Raises:
        ArchitectureError: If the file cannot be read or does not describe an architecture.
    """
    try:
        data = yaml.safe_load(read_text(path))
    except RequestError as error:
        raise ArchitectureError(str(error)) from error
    except yaml.YAMLError as error:
        raise ArchitectureError(f"{path} is not YAML ({' '.join(str(error).split())}): mend it there") from error
    return architecture_of(data, where=str(path))


def check_paths(model: PreTrainedModel, architecture: Architecture) -> None:
    """Checks that the described parts are in the model, in every layer, and that the projection is oriented as described.

    Raises:
        ArchitectureError: If they are not; the message names the first.
    """
    if not _has(model, architecture.final_norm):
        raise ArchitectureError(f"the model has no {architecture.final_norm}: correct final_norm")
    width = int(model.config.hidden_size)
    for layer in range(int(model.config.num_hidden_layers)):
        name = architecture.block.format(layer)
        if not _has(model, name):
            raise ArchitectureError(f"the model has no {name}: correct block")
        block = model.get_submodule(name)
        path = architecture.projection_in(block)
        weight = getattr(block.get_submodule(path), "weight", None)
        if not isinstance(weight, torch.Tensor) or weight.dim() != 2:
            raise ArchitectureError(f"{name}.{path} has no weight matrix: correct output_projection")
        if weight.shape[1 if architecture.transposed else 0] != width:
            raise ArchitectureError(
                f"{name}.{path} does not put out {width} numbers, its weight is {tuple(weight.shape)}: "
                "correct output_projection or transposed"
            )
        if architecture.post_norm is not None and not _has(block, architecture.post_norm):
            raise ArchitectureError(f"{name} has no {architecture.post_norm}: correct post_norm")


@torch.no_grad()
def check_behaviour(
    model: PreTrainedModel, architecture: Architecture, head: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Checks by three tokens that the described parts play their parts; a table row needs no such check, the tests make it.

    Args:
        model: The model, whose parts exist (`check_paths`).
        architecture: Its description.
        head: Logits (..., vocabulary) of final hidden states (..., d_model).

    Raises:
        ArchitectureError: If the projection's output does not reach the hidden state as it is, a token sees those after it, or
            the head makes other logits than the model.
    """
    ids = torch.arange(3, device=next(model.get_input_embeddings().parameters()).device)[None]
    for layer in (0, int(model.config.num_hidden_layers) - 1):
        before, out = _run(model, architecture, layer, ids, None)
        wave = torch.arange(before.numel(), device=before.device).sin()  # not constant: a LayerNorm would not see that
        shift = before.float().norm() * wave / wave.norm()
        after, moved = _run(model, architecture, layer, ids, shift)
        if (after - before - shift).norm() > 0.05 * shift.norm():
            raise ArchitectureError(
                f"layer {layer}: what the output projection gives is scaled, gated or normed before it is added to the hidden "
                "state: correct output_projection, or name the norm in post_norm"
            )
        if not _near(moved[:, :-1], out[:, :-1]):
            raise ArchitectureError("a token sees those that follow it: only causal models can be edited")
    logits = model(input_ids=ids, use_cache=False).logits.float()
    if not _near(head(out), logits):
        raise ArchitectureError("the logits are not the head's: this model does more with them than is known here")


def _near(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two results are the same up to rounding, in half precision too."""
    return torch.allclose(one, other, rtol=0, atol=1e-2 * float(other.abs().max()))


def _run(
    model: PreTrainedModel, architecture: Architecture, layer: int, ids: torch.Tensor, shift: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the projection's output is added to (d_model,) at the last token, and the model's final hidden states (1, t, d_model).

    Args:
        model: The model.
        architecture: Its description.
        layer: Whose projection.
        ids: Token ids (1, t).
        shift: Added to the projection's output at the last token, (d_model,).
    """
    block = model.get_submodule(architecture.block.format(layer))
    post_norm = block.get_submodule(architecture.post_norm) if architecture.post_norm else None
    seen: list[torch.Tensor] = []

    def add(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if output.dim() != 3:
            raise ArchitectureError(
                "the output projection does not see texts as (n, t, d): this architecture is not supported"
            )
        output = output.clone()
        output[:, -1] += 0 if shift is None else shift.to(output)
        return output

    def keep(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        hidden = inputs[0] if post_norm is not None else output[0] if isinstance(output, tuple) else output
        seen.append(hidden[0, -1].to(ids.device))

    projection = block.get_submodule(architecture.projection_in(block))
    handles = [projection.register_forward_hook(add), (post_norm or block).register_forward_hook(keep)]
    try:
        out: torch.Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    return seen[-1], out


def guessed(model: nn.Module, *, layers: int, width: int) -> Architecture | None:
    """A description by the looks of a model's modules, for a person to check; nothing if they look like no transformer's.

    Args:
        model: The model, on any device.
        layers: Number of its layers.
        width: Its d_model.
    """
    modules = dict(model.named_modules())
    stacks = [name for name, m in modules.items() if isinstance(m, nn.ModuleList) and len(m) == layers]
    norms = [name for name in modules if _NORM.search(name.rpartition(".")[2]) and not name.startswith(tuple(stacks))]
    if not stacks or not norms:
        return None
    blocks = [modules[f"{stacks[0]}.{i}"] for i in (layers - 1, 0)]  # a mixture's first layers may be dense
    paths = [path for block in blocks if (path := _projection(block, width))]
    if len(paths) < len(blocks):
        return None
    own = {name for name, _ in blocks[0].named_children()}
    return Architecture(
        block=f"{stacks[0]}.{{}}",
        output_projection=paths[0] if paths[0] == paths[1] else tuple(paths),
        transposed=isinstance(blocks[0].get_submodule(paths[0]), Conv1D),
        final_norm=norms[-1],
        post_norm=next((name for name in sorted(own) if name.startswith("post_f") and _NORM.search(name)), None),
    )


def is_mixture(model: nn.Module) -> bool:
    """Whether some of a model's weights are experts, among which a router chooses."""
    return any("experts" in name for name, _ in model.named_parameters())


_NORM = re.compile("norm|^ln", re.IGNORECASE)
_ATTENTION = re.compile("att|mixer", re.IGNORECASE)


def _projection(block: nn.Module, width: int) -> str | None:
    """Path of the last linear module of a block that is not attention's and puts out `width` numbers."""
    paths = [
        name
        for name, m in block.named_modules()
        if (isinstance(m, nn.Linear) and m.out_features == width) or (isinstance(m, Conv1D) and m.nf == width)
        if not _ATTENTION.search(name)
    ]
    return paths[-1] if paths else None


def _has(module: nn.Module, path: str) -> bool:
    try:
        module.get_submodule(path)
    except AttributeError:
        return False
    return True
