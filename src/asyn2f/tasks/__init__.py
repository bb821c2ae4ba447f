"""Model, loss and data of an experiment; pure once loaded."""
