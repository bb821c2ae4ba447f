"""The regime of newer papers: many workers, strong label skew, client churn."""
