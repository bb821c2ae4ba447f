"""What a person looks at: metrics, the live table and the report of a run."""
