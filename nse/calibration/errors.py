"""The error of a calibration that cannot be made."""

from nse.errors import NseError


class CalibrationError(NseError):
    """A calibration lacks facts, text or a library; the message says which, and how much is needed."""
