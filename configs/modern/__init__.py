"""What newer papers run: many workers, strong label skew, workers that drop out."""
