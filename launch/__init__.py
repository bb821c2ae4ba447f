"""The programs: `python -m launch.local`, and the parts of a run by hand."""
