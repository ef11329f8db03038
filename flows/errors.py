"""The errors of `flows`: one root, each message one line that says what is wrong, where, and what to do."""


class FlowError(Exception):
    """Bad usage or input: nothing was done. The command line exits with 2."""

    exit_code = 2

    def __init__(self, problem: str, advice: str = "") -> None:
        """Say what is wrong and where (`problem`) and what to do about it (`advice`)."""
        problem = " ".join(problem.split())
        super().__init__(f"{problem}: {advice}" if advice else problem)
        self.advice = advice


class Refused(FlowError):
    """The question was fine and the answer is no. The command line exits with 1."""

    exit_code = 1
