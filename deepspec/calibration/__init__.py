"""Is a draft as sure as it should be: calibration by position, the temperatures that mend it, a picture."""
