"""Calibration: settings for a model that no one has tuned, found by measuring on facts that it knows. Edits nothing for good."""

from nse.calibration.run import CalibrationFiles, calibrate

__all__ = ["CalibrationFiles", "calibrate"]
