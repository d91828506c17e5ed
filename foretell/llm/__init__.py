"""The LLM engine: scheduling, caching, speculation and sampling are ours, the kernels are the executor's."""
