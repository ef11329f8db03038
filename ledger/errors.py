"""The errors of this package: one root, one line each, with advice for the person who reads it."""


class LedgerError(Exception):
    """Something is wrong with the ledger or with what it was asked; `str()` is one line."""

    def __init__(self, problem: str, advice: str = "") -> None:
        """Say what is wrong and where (`problem`) and what to do about it (`advice`)."""
        problem = " ".join(problem.split())  # one line, whatever a driver's message holds
        super().__init__(f"{problem}: {advice}" if advice else problem)
        self.problem = problem
        self.advice = advice


class SchemaError(LedgerError):
    """The ledger's schema is not the one this program knows."""


class HeadMoved(LedgerError):
    """The head is no longer the one the caller expected: somebody else moved it first."""


class DecisionRefused(LedgerError):
    """The rules of decisions do not allow this one."""


class ArtifactError(LedgerError):
    """An artifact cannot be stored, is missing, or does not hold the bytes the ledger recorded."""


class ErasureRefused(LedgerError):
    """This text cannot be erased now."""
