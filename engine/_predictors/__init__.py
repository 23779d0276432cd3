"""How a predictor is implemented: its record, its signature, its profile, and any function seen as one iterator."""
