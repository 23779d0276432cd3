"""Which predictors and runners there are: what the user registered, and what installed plugins offer."""
