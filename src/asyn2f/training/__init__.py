"""What one experiment computes, as jitted functions."""
