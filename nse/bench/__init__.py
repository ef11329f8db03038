"""The benchmark of editing methods: every method on the same stream, everything re-tested after it, by the same questions."""

from nse.bench.inputs import BenchFiles, BenchOptions
from nse.bench.job import BASE
from nse.bench.run import bench

__all__ = ["BASE", "BenchFiles", "BenchOptions", "bench"]
