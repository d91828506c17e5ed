"""The one door to all deployments. Every entrance calls it; it knows none of them."""
