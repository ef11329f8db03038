"""`params.yaml`, the one configuration file of a workspace, checked once at the door. Inside, nobody reads YAML."""

from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from flows.errors import FlowError
from ledger.policy import Auto, Policy, Rule, When
from ledger.records import Kind

PARAMS = "params.yaml"


def _time_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ValueError(f"{name!r} is no time zone, write e.g. Europe/Berlin") from error
    return name


def _cron(text: str) -> str:
    if len(text.split()) != 5:
        raise ValueError(f"{text!r} has {len(text.split())} fields, a cron line has five, e.g. '0 2 * * *'")
    return text


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ArchitectureParams(_Section):
    """Where the parts of a model are, if its family is not known: the five lines of `nse.description`."""

    block: str
    output_projection: str | list[str]
    transposed: bool = False
    final_norm: str
    post_norm: str | None = None


class ModelParams(_Section):
    """Which model is kept correct; `path` is absolute or relative to the workspace. `device_map: auto` uses all devices."""

    name: str = Field(min_length=1)
    path: str = Field(min_length=1)
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    device_map: Literal["auto"] | None = None
    architecture: ArchitectureParams | None = None


class MethodParams(_Section):
    """How it is edited; paths are relative to the workspace."""

    name: str = "nse"
    hparams: str = "hparams.json"
    contexts: str = "contexts.json"
    second_moment: str = "artifacts/second_moment.safetensors"
    trained: str | None = None
    seed: int = Field(default=0, ge=0)


class RoundParams(_Section):
    """How much one night does.

    Attributes:
        batch_size: Corrections of a round.
        bisection_solves: Rounds tried to find the corrections that make one fail its gates; 0 tries none.
        consolidate_every: After so many applied rounds of edits a night proposes a consolidation instead of a round; 0: never.
    """

    batch_size: int = Field(default=50, ge=1)
    bisection_solves: int = Field(default=12, ge=0)
    consolidate_every: int = Field(default=0, ge=0)


class WhenParams(_Section):
    """Which changesets a rule is about: those that meet every condition that is given, of which there is at least one."""

    relations: list[str] | None = None
    kinds: list[Kind] | None = None
    min_corrections: int | None = Field(default=None, ge=1)
    max_gate_margin: float | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> "WhenParams":
        if not any((self.relations, self.kinds, self.min_corrections, self.max_gate_margin is not None)):
            raise ValueError("give relations, kinds, min_corrections or max_gate_margin")
        return self


class RuleParams(_Section):
    """What such changesets need: so many approvals, of these people if any are named."""

    when: WhenParams
    approvals: int = Field(default=1, ge=1)
    reviewers: list[str] | None = None


class AutoParams(_Section):
    """Which changesets the policy approves itself: those that keep every limit, and that no rule is about."""

    max_corrections: int = Field(ge=1)
    kinds: list[Kind] = ["edit"]
    relations: list[str] | None = None
    min_gate_margin: float | None = None


class ApprovalParams(_Section):
    """Who must approve what. It counts from when a person adopts it: `nse init`, later `nse policy adopt`."""

    approvals: int = Field(default=1, ge=1)
    reviewers: list[str] | None = None
    expires_days: int | None = Field(default=None, ge=1)
    rules: list[RuleParams] | None = None
    keys: Literal["first-use", "enrolled"] = "first-use"
    auto: AutoParams | None = None

    def policy(self) -> Policy:
        """The section as the ledger's rules."""
        return Policy(
            approvals=self.approvals,
            reviewers=tuple(self.reviewers or ()),
            expires_days=self.expires_days,
            rules=tuple(_rule(rule) for rule in self.rules or ()),
            keys=self.keys,
            auto=_auto(self.auto) if self.auto else None,
        )


def _rule(params: RuleParams) -> Rule:
    when = params.when
    about = When(
        relations=tuple(when.relations or ()),
        kinds=tuple(when.kinds or ()),
        min_corrections=when.min_corrections,
        max_gate_margin=when.max_gate_margin,
    )
    return Rule(about, params.approvals, tuple(params.reviewers or ()))


def _auto(params: AutoParams) -> Auto:
    return Auto(
        max_corrections=params.max_corrections,
        kinds=tuple(params.kinds),
        relations=tuple(params.relations or ()),
        min_gate_margin=params.min_gate_margin,
    )


class ScheduleParams(_Section):
    """When `nse serve` runs the nightly flow."""

    cron: Annotated[str, AfterValidator(_cron)] = "0 2 * * *"
    timezone: Annotated[str, AfterValidator(_time_zone)] = "Europe/Berlin"


class Params(_Section):
    """All of `params.yaml`."""

    model: ModelParams
    method: MethodParams = MethodParams()
    round: RoundParams = RoundParams()
    suite: str = "suites/suite.yaml"
    corpus: str = "corpus.txt"
    approval: ApprovalParams = ApprovalParams()
    schedule: ScheduleParams = ScheduleParams()
    threads: int | None = Field(default=None, ge=1)
    """Most threads that compute; default: as many processors as the process may use (`flows.threads`)."""


def read_params(path: Path) -> Params:
    """Reads and checks a `params.yaml`.

    Raises:
        FlowError: If it cannot be read, is not YAML, or a field is missing, unknown or out of range; the line names it.
    """
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FlowError(f"{path} cannot be read ({error.strerror})", "check the path") from error
    except UnicodeDecodeError as error:
        raise FlowError(f"{path.name} is not UTF-8 (byte {error.start})", "save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise FlowError(f"{path.name} is not YAML ({error})", "mend it there") from error
    try:
        return Params.model_validate(data)
    except ValidationError as error:
        raise FlowError(_one_line(path.name, error), f"correct {path.name}") from error


def write_params(path: Path, params: Params) -> None:
    """Writes `params` as YAML, in the order of the fields, less those that are not set."""
    path.write_text(
        yaml.safe_dump(params.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True), encoding="utf-8"
    )


def _one_line(name: str, error: ValidationError) -> str:
    first, *others = error.errors()
    field = ".".join(str(part) for part in first["loc"]) or "the file"
    wrong = "is not a setting" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    return f"{name}: {field}: {wrong}" + (f" (and {len(others)} more)" if others else "")
