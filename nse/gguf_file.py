"""The container format GGUF: where each key and each tensor lies in a file, and a copy of it with some tensors replaced.

It knows bytes, not models. The `gguf` package has a reader and a writer of its own; they decode every string of a vocabulary
(a quarter of a minute where this reader takes a fraction of a second) and write all keys anew. Here keys and tensors that stay
are copied byte by byte. How numbers are packed into blocks is the package's knowledge alone.

References:
    The format: "GGUF" in the documentation of ggml. All numbers are little-endian; version 1 had other sizes.
"""

import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nse.errors import GgufError

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY, UINT32 = 8, 9, 4
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Struct formats by the number of a value's type."""
MOST_DIMENSIONS = 8
PIECE = 2**24

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies.

    Attributes:
        name: As the file calls it, e.g. `blk.0.ffn_down.weight`.
        shape: In the order of torch: a matrix is (d_out, d_in).
        kind: How its numbers are packed.
        start: First byte in the file.
        size: Bytes.
    """

    name: str
    shape: tuple[int, ...]
    kind: "GGMLQuantizationType"
    start: int
    size: int


@dataclass(frozen=True)
class GgufFile:
    """What the head of a file says.

    Attributes:
        path: The file.
        version: Of the format.
        metadata: Values by key; an array is left in the file, its length stands here.
        pairs: First and last byte + 1 of each key with its value.
        tensors: By name, in the file's order.
        alignment: Tensors start at multiples of it.
    """

    path: Path
    version: int
    metadata: Mapping[str, Any]
    pairs: Mapping[str, tuple[int, int]]
    tensors: Mapping[str, GgufTensor]
    alignment: int

    @property
    def architecture(self) -> str:
        """The family's name in this format, e.g. llama."""
        return str(self.metadata.get("general.architecture", ""))

    @cached_property
    def _bytes(self) -> npt.NDArray[np.uint8]:
        return np.memmap(self.path, mode="r", dtype=np.uint8)

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor, a row of it in each row."""
        tensor = self.tensors[name]
        return self._bytes[tensor.start : tensor.start + tensor.size].reshape(*tensor.shape[:-1], -1)

    def numbers(self, name: str) -> Floats:
        """A tensor's numbers, unpacked.

        Raises:
            GgufError: If the `gguf` package cannot unpack its type.
        """
        from gguf import dequantize

        tensor = self.tensors[name]
        try:
            return dequantize(np.ascontiguousarray(self.raw(name)), tensor.kind).reshape(tensor.shape)
        except NotImplementedError as error:
            raise GgufError(
                f"{self.path}: {name} is {tensor.kind.name}, which the gguf package cannot unpack: use another file"
            ) from error


def need_gguf() -> None:
    """Checks that what reads GGUF is installed.

    Raises:
        GgufError: If it is not.
    """
    for package in ("gguf", "accelerate"):
        if find_spec(package) is None:
            raise GgufError(f"GGUF files need the package {package}: pip install 'nse-pipeline[gguf]'")


def read_gguf(path: Path) -> GgufFile:
    """Reads the head of a GGUF file and checks that all its tensors are there.

    Raises:
        GgufError: If it is no GGUF file, not whole, of a version or byte order that is not read, or one part of several.
    """
    need_gguf()
    if not path.is_file():
        raise GgufError(f"{path} is not a file: check the path")
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise GgufError(f"{path} is not a GGUF file (it does not begin with GGUF): give another file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            head = _head(path, data)
    if int(head.metadata.get("split.count", 1)) > 1:
        part, count = head.metadata.get("split.no", 0) + 1, head.metadata["split.count"]
        raise GgufError(f"{path} is part {part} of {count} of a split file: join them first (llama-gguf-split --merge)")
    return head


def packed(name: str, weight: Floats, kind: "GGMLQuantizationType") -> npt.NDArray[np.uint8]:
    """A matrix (d_out, d_in) packed into blocks: bytes, a row in each row.

    Raises:
        GgufError: If the `gguf` package cannot pack into that type, rows do not fit its blocks, or a number is too large for it.
    """
    from gguf import QuantError, quantize  # type: ignore[attr-defined]

    if kind.name == "F16" and float(np.abs(weight).max()) > np.finfo(np.float16).max:
        raise GgufError(f"{name} has numbers too large for F16: give --edited-type BF16 or F32")
    try:
        blocks = quantize(np.ascontiguousarray(weight, dtype=np.float32), kind)
    except NotImplementedError as error:
        problem = f"{name} is {kind.name} in the file, and the gguf package cannot pack numbers into {kind.name}"
        raise GgufError(f"{problem}: give --edited-type F16, say") from error
    except QuantError as error:
        problem = f"{name} has rows of {weight.shape[-1]} numbers, which do not fill blocks of {kind.name}"
        raise GgufError(f"{problem}: give --edited-type F16, say") from error
    return np.ascontiguousarray(blocks).view(np.uint8).reshape(*weight.shape[:-1], -1)


def write_with(
    original: GgufFile,
    path: Path,
    *,
    tensors: Mapping[str, tuple["GGMLQuantizationType", npt.NDArray[np.uint8]]],
    metadata: Mapping[str, str | Sequence[str]],
) -> None:
    """Copies a file with some tensors replaced and keys added.

    Args:
        original: What is copied. All keys but those of `metadata`, and all tensors but those of `tensors`, stay byte by byte.
        path: The file to write; it is overwritten.
        tensors: By name, the type and the bytes of those that are replaced; their shapes stay.
        metadata: Keys to add; those that the file has already get the new value.
    """
    kept = [span for key, span in original.pairs.items() if key not in metadata]
    with original.path.open("rb") as source, path.open("wb") as file:
        file.write(MAGIC + struct.pack("<IQQ", original.version, len(original.tensors), len(kept) + len(metadata)))
        for start, end in kept:
            _copy(source, file, start, end)
        for key, value in metadata.items():
            file.write(_pair(key, value))
        place = 0
        for tensor in original.tensors.values():
            kind, size = tensor.kind, tensor.size
            if tensor.name in tensors:
                kind, size = tensors[tensor.name][0], tensors[tensor.name][1].nbytes
            shape = tuple(reversed(tensor.shape))
            file.write(_string(tensor.name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, int(kind), place))
            place += size + -size % original.alignment
        file.write(bytes(-file.tell() % original.alignment))
        for tensor in original.tensors.values():
            if tensor.name in tensors:
                file.write(tensors[tensor.name][1].tobytes())
            else:
                _copy(source, file, tensor.start, tensor.start + tensor.size)
            file.write(bytes(-file.tell() % original.alignment))


class _Reader:
    """Reads numbers and strings one after the other."""

    def __init__(self, data: mmap.mmap, place: int) -> None:
        self.data = data
        self.place = place

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self.data, self.place)
        self.place += struct.calcsize(form)
        return values

    def skip(self, size: int) -> int:
        """Passes over bytes that must be there, and says where they began."""
        start = self.place
        self.place += size
        if self.place > len(self.data):
            raise struct.error("it ends too early")
        return start

    def string(self) -> str:
        (length,) = self.take("<Q")
        start = self.skip(length)
        return self.data[start : self.place].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.take(SCALARS[kind])[0]
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise struct.error(f"a value is of type {kind}, which there is not")
        of, length = self.take("<IQ")
        if of in SCALARS:
            self.skip(length * struct.calcsize(SCALARS[of]))
        elif of == STRING:
            for _ in range(length):
                self.skip(*self.take("<Q"))
        else:
            raise struct.error(f"an array is of type {of}, which there is not")
        return length


def _head(path: Path, data: mmap.mmap) -> GgufFile:
    reader = _Reader(data, len(MAGIC))
    try:
        (version,) = reader.take("<I")
        if version not in VERSIONS:
            swapped = int.from_bytes(struct.pack("<I", version), "big") in VERSIONS
            told = "is big-endian" if swapped else f"is of version {version} of the format"
            raise GgufError(f"{path} {told}, which is not read: convert the model again with a current program")
        count, keys = reader.take("<QQ")
        metadata: dict[str, Any] = {}
        pairs: dict[str, tuple[int, int]] = {}
        for _ in range(keys):
            start = reader.place
            key = reader.string()
            metadata[key] = reader.value(*reader.take("<I"))
            pairs[key] = (start, reader.place)
        alignment = int(metadata.get("general.alignment", 32))
        entries = [_entry(reader) for _ in range(count)]
        first = reader.place + -reader.place % alignment
        tensors = {name: _tensor(path, name, shape, kind, first + place) for name, shape, kind, place in entries}
    except (struct.error, UnicodeDecodeError, ZeroDivisionError, OverflowError, MemoryError) as error:
        raise GgufError(f"{path} is not a whole GGUF file ({error}): fetch it again") from error
    last = max((tensor.start + tensor.size for tensor in tensors.values()), default=first)
    if last > len(data):
        raise GgufError(f"{path} has {len(data):,} bytes where its tensors need {last:,}: fetch it again")
    return GgufFile(path, version, metadata, pairs, tensors, alignment)


def _entry(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and place, from the first tensor's on, of the next tensor."""
    name = reader.string()
    (dimensions,) = reader.take("<I")
    if dimensions > MOST_DIMENSIONS:
        raise struct.error(f"{name} has {dimensions} dimensions")
    shape = reader.take(f"<{dimensions}Q")
    kind, place = reader.take("<IQ")
    return name, tuple(reversed(shape)), kind, place


def _tensor(path: Path, name: str, shape: tuple[int, ...], number: int, start: int) -> GgufTensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        kind = GGMLQuantizationType(number)
    except ValueError as error:
        raise GgufError(
            f"{path}: {name} is of type {number}, which the gguf package does not know: update it"
        ) from error
    block, size = GGML_QUANT_SIZES[kind]
    return GgufTensor(name, shape, kind, start, prod(shape) // block * size)


def _copy(source: Any, target: Any, start: int, end: int) -> None:
    source.seek(start)
    for piece in _pieces(end - start):
        target.write(source.read(piece))


def _pieces(size: int) -> Iterator[int]:
    for start in range(0, size, PIECE):
        yield min(PIECE, size - start)


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _pair(key: str, value: str | Sequence[str]) -> bytes:
    if isinstance(value, str):
        return _string(key) + struct.pack("<I", STRING) + _string(value)
    return _string(key) + struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
