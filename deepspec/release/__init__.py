"""Release: engine folders, scores, calibration and a model card that says where everything came from."""
