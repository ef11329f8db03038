"""The errors of `nse`: one root, each message one line that says what is wrong, where, and what to do."""


class NseError(Exception):
    """Root of every error that a user of `nse` can cause or mend."""


class RequestError(NseError):
    """An edit request is malformed."""


class HyperparameterError(NseError):
    """A hyper-parameter file is malformed or does not fit the model."""


class TokenError(NseError):
    """A text cannot be expressed in the model's tokens, or a subject cannot be found in them."""


class ArchitectureError(NseError):
    """A model cannot be loaded, or its architecture is not known."""


class StatisticsError(NseError):
    """A second-moment file is missing, malformed, or made for another model."""


class DeltaError(NseError):
    """A delta file is malformed, damaged, or made for another base model."""


class SuiteError(NseError):
    """A regression suite is malformed."""


class TaskError(NseError):
    """A task file is missing or malformed."""


class TrainingError(NseError):
    """A method that trains before it edits lacks its trained file, or that is malformed or made for another model."""


class ImportFailed(NseError):
    """A model that other people made cannot be imported."""


class GgufError(NseError):
    """A GGUF file is damaged, of a kind that is not read, or does not hold the model it is taken for."""
