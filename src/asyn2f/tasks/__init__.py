"""Tasks: a model, its loss, and its data cut into the shards of workers."""
