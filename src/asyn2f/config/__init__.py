"""The only reader of configs: defaults, schema, building."""
