"""Reports: pages with plots, and numbers as people write them. Knows nothing of what is reported."""
