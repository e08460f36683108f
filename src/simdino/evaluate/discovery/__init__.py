"""Objects without labels: masks and boxes."""
