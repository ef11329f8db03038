"""Which tensor of a GGUF file is which parameter of a model, by the `gguf` package's own table of names."""

from collections.abc import Iterable

from nse.errors import GgufError
from nse.gguf_file import GgufFile

SUFFIXES = (".weight", ".bias")


def tensor_names(head: GgufFile, parameters: Iterable[str]) -> dict[str, str]:
    """Tensor name in the file by parameter name, for those parameters that the file's family has a tensor for.

    Raises:
        GgufError: If the `gguf` package does not know the family.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    family = next((arch for arch, name in MODEL_ARCH_NAMES.items() if name == head.architecture), None)
    if family is None:
        raise GgufError(f"{head.path}: the gguf package does not know {head.architecture!r}: update it")
    table = get_tensor_name_map(family, int(head.metadata.get(f"{head.architecture}.block_count", 0)))
    found = {}
    for parameter in parameters:
        name = table.get_name(parameter, try_suffixes=SUFFIXES)
        if name is not None and name in head.tensors:
            found[parameter] = name
    return found
