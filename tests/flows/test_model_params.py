"""The model section of params.yaml: an architecture that no table knows, described in five lines."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import BloomConfig

from flows.config import ModelParams, Params, read_params, write_params
from flows.errors import FlowError
from flows.session import Session
from nse.architecture import load_model
from nse.description import Architecture
from nse.errors import ArchitectureError
from tests.conformance.families import write
from tests.nse.conftest import VOCABULARY

LINES = """
    block: "transformer.h.{}"
    output_projection: mlp.dense_4h_to_h
    transposed: false
    final_norm: transformer.ln_f
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1)
    return write(config, tmp_path_factory.mktemp("bloom"))


@pytest.fixture(scope="module")
def digest(folder) -> str:
    row = Architecture(block="transformer.h.{}", output_projection="mlp.dense_4h_to_h", final_norm="transformer.ln_f")
    return load_model(folder, architecture=row).base_digest


def params_of(tmp_path: Path, model: str) -> Params:
    path = tmp_path / "params.yaml"
    path.write_text(f"model:\n  name: bloom\n  path: somewhere\n{model}")
    return read_params(path)


def test_a_session_loads_a_described_model(folder, digest, tmp_path) -> None:
    params = params_of(tmp_path, f"  digest: {digest}\n  architecture:{LINES}")
    session = Session(SimpleNamespace(params=params, model_path=folder))
    assert session.editable.parameter_name(1) == "transformer.h.1.mlp.dense_4h_to_h.weight"


def test_without_its_lines_the_model_is_refused_with_them(folder, digest, tmp_path) -> None:
    session = Session(SimpleNamespace(params=params_of(tmp_path, f"  digest: {digest}\n"), model_path=folder))
    with pytest.raises(
        ArchitectureError, match=r"describe it in params\.yaml, perhaps `model\.architecture: \{block: .transformer\.h"
    ):
        _ = session.editable


def test_a_wrong_line_is_named_with_its_place(folder, digest, tmp_path) -> None:
    params = params_of(tmp_path, f"  digest: {digest}\n  architecture:{LINES.replace('h.{}', 'h')}")
    with pytest.raises(ArchitectureError, match=r"^params\.yaml: model\.architecture: block = 'transformer\.h'"):
        _ = Session(SimpleNamespace(params=params, model_path=folder)).editable
    with pytest.raises(FlowError, match=r"model\.architecture\.norm: is not a setting"):
        params_of(tmp_path, f"  digest: {digest}\n  architecture:{LINES}    norm: ln\n")


def test_params_that_are_not_set_are_not_written(digest, tmp_path) -> None:
    path = tmp_path / "params.yaml"
    plain = Params(model=ModelParams(name="m", path="p", digest=digest))
    write_params(path, plain)
    assert "architecture" not in path.read_text()
    assert "device_map" not in path.read_text()
    assert read_params(path) == plain
    described = params_of(tmp_path, f"  digest: {digest}\n  device_map: auto\n  architecture:{LINES}")
    write_params(path, described)
    assert read_params(path) == described
