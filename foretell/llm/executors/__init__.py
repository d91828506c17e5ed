"""What runs one step of an LLM on a device. `base` is the contract, each other file one way to keep it."""
