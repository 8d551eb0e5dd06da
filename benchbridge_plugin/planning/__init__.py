"""What to measure next: the configurations whose measurement would reduce the predictor's error most."""
