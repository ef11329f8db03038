"""The weights of a late version from base and deltas on disk, against the time of the multiplications alone.

Prints a table and writes JSON. One command; needs only `nse`. The deltas are random and lie in files as rounds leave them: 365
rounds of 100 facts on five layers are 37 GB, of which 27 are read to compose. Layers are composed one after the other, so the
figures of one layer times five are those of five:

    python -m benchmarks.compose --layers 5 --json build/compose.json
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nse.architecture import ARCHITECTURES, EditableModel
from nse.delta import Delta, LayerDelta
from nse.patch import BLOCK, SnapshotStore, compose, version_digest

LEFT_OUT = 0.01
"""Size of the left factors: updates are small against the weights."""


def base_model(options: argparse.Namespace) -> EditableModel:
    """A random Llama with layers as wide as asked, and nothing else of any size."""
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=options.d_out,
        intermediate_size=options.d_in,
        num_hidden_layers=options.layers,
        num_attention_heads=32,
        num_key_value_heads=1,
        max_position_embeddings=16,
    )
    torch.manual_seed(options.seed)
    model = LlamaForCausalLM(config).train(False).requires_grad_(False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))  # type: ignore[no-untyped-call]
    return EditableModel(model, tokenizer, ARCHITECTURES["llama"])


def write_deltas(editable: EditableModel, folder: Path, options: argparse.Namespace) -> list[Path]:
    """One file per round; the numbers are drawn once per layer and turned round by round, which is quicker and as good."""
    random = torch.Generator().manual_seed(options.seed)
    facts, index = options.facts, torch.arange(options.facts, dtype=torch.int32)
    names = [editable.parameter_name(layer) for layer in range(options.layers)]
    left = torch.randn(options.d_out, facts, generator=random, dtype=torch.float64) * LEFT_OUT
    right = torch.randn(facts, options.d_in, generator=random, dtype=torch.float64)
    keys = torch.zeros(facts, options.d_in)
    paths = []
    for number in track(range(options.rounds), "write deltas"):
        layers = {
            name: LayerDelta(left.roll(number, 0), right.roll(3 * number + layer, 1), index.clone(), keys.clone())
            for layer, name in enumerate(names)
        }
        cases = tuple(f"{number} {fact}" for fact in range(facts))
        paths.append(folder / f"{number:05}.safetensors")
        Delta(layers, cases, editable.base_digest).save(paths[-1])
    return paths


def gemm_rate(options: argparse.Namespace) -> float:
    """Multiplications and additions per second of a float64 product of these shapes that accumulates: the best of three."""
    depth = max(options.facts, 512)
    left = torch.randn(options.d_out, depth, dtype=torch.float64)
    right = torch.randn(depth, options.d_in, dtype=torch.float64)
    total = torch.zeros(options.d_out, options.d_in, dtype=torch.float64)
    best = float("inf")
    flops: float = 2.0 * options.d_out * options.d_in * depth
    for _ in range(3):
        begun = time.perf_counter()
        total.addmm_(left, right)
        best = min(best, time.perf_counter() - begun)
    return flops / best


def anonymous_memory() -> int:
    """Memory of this process that is no file's, in bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


def composed(
    editable: EditableModel,
    paths: list[Path],
    snapshots: SnapshotStore | None,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Composes one version from the files, with the time, the rounds that were multiplied and the most memory."""
    done: list[int] = []
    before, most = anonymous_memory(), [0]

    def watch(_stage: str, at: int, _rounds: int) -> None:
        done.append(at)
        most[0] = max(most[0], anonymous_memory() - before)

    begun = time.perf_counter()
    deltas = [Delta.load(path) for path in paths]
    opened = time.perf_counter() - begun
    names = [path.name for path in paths]
    weights = compose(editable, deltas, identities=names, snapshots=snapshots, progress=watch)
    seconds = time.perf_counter() - begun
    rounds = len(paths) - max(0, done[0] - -(-BLOCK // options.facts))  # less those that a snapshot held
    flops = 2 * options.d_out * options.d_in * options.facts * rounds * options.layers
    return {
        "rounds": rounds,
        "seconds": seconds,
        "seconds_to_open": opened,
        "gigabytes_read": 8e-9 * (options.d_out + options.d_in) * options.facts * rounds * options.layers,
        "flops": flops,
        "gigabytes_of_memory": most[0] / 1e9,
        "version": version_digest(editable, weights),
    }


def main() -> None:
    """Writes deltas, composes with and without snapshots, and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d-out", type=int, default=4096)
    parser.add_argument("--d-in", type=int, default=14336)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=365)
    parser.add_argument("--facts", type=int, default=100)
    parser.add_argument("--every", type=int, default=50, help="rounds between snapshots")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--folder", type=Path, help="where the deltas lie meanwhile; the system's temporary one if not given"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    editable = base_model(options)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        paths = write_deltas(editable, Path(name) / "deltas", options)
        editable.base_digest  # noqa: B018 - hashed before the clock runs
        snapshots = SnapshotStore(Path(name) / "snapshots", every=options.every)
        rate = gemm_rate(options)
        runs = {
            "without snapshots": composed(editable, paths, None, options),
            "writing snapshots": composed(editable, paths, snapshots, options),
            "from the last snapshot": composed(editable, paths, snapshots, options),
        }
        rate = max(rate, gemm_rate(options))
    table = Table(
        title=f"version {options.rounds}: {options.facts} facts a round, {options.layers} layers of {options.d_out} x "
        f"{options.d_in}, {options.threads} threads, {rate / 1e9:.0f} Gflop/s"
    )
    for column in ("", "rounds multiplied", "GB read", "seconds", "floor (s)", "ratio", "memory (GB)"):
        table.add_column(column, justify="right" if column else "left")
    for title, run in runs.items():
        run["floor"] = run["flops"] / rate
        run["ratio"] = run["seconds"] / run["floor"]
        shown = (f"{run[key]:.1f}" for key in ("gigabytes_read", "seconds", "floor", "ratio", "gigabytes_of_memory"))
        table.add_row(title, str(run["rounds"]), *shown)
    console = Console(width=140)
    console.print(table)
    same = len({run["version"] for run in runs.values()}) == 1
    console.print("the same version to the bit" if same else "[red]THE VERSIONS DIFFER")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        kept = ("d_out", "d_in", "layers", "rounds", "facts", "every", "seed", "threads")
        record = {name: getattr(options, name) for name in kept} | {"flops_per_second": rate, "runs": runs}
        options.json.write_text(json.dumps({**record, "torch": torch.__version__}, indent=1) + "\n")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
