"""What can be set for one deployed model. model.toml holds the package's own values, foretell.toml overrides.

Each group stands beside the room that reads it; nobody below `app` sees more than its own group.
"""

import msgspec


class BatchingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How requests become batches. The defaults need no tuning.

    max_batch_size: rows per batch. max_batch_bytes: input bytes per batch (the cost budget).
    max_queue_delay_ms: how long a batch may be held open for more rows while a replica is free.
    max_queue_rows: rows that may wait; beyond it requests are rejected with 429.
    target_p99_ms: if set, batches grow only as far as this latency allows, from learned service times.
    timeout_ms: deadline of requests that bring none (0: none).
    """

    max_batch_size: int = 64
    max_batch_bytes: int = 64 * 2**20
    max_queue_delay_ms: float = 0.0
    max_queue_rows: int = 4096
    target_p99_ms: float | None = None
    timeout_ms: float = 0.0


class CacheSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Response cache of one model: off while `max_bytes` is 0. `ttl_s` 0 keeps answers until evicted."""

    max_bytes: int = 0
    ttl_s: float = 0.0


class ReplicaSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The processes that hold a model.

    count: processes (0: one for a light model, up to four that share the cores for a heavy one). threads: intra-op
    threads of each (0: the cores divided).
    device: auto, cpu, cuda, tensorrt, openvino, coreml. memory_limit_mb: a replica above it is replaced after
    its batch (0: no limit). hang_timeout_s: a batch that runs longer than this means the replica hangs; it is
    killed. start_timeout_s: loading and warm-up may take this long.
    """

    count: int = 0
    threads: int = 0
    device: str = "auto"
    memory_limit_mb: int = 0
    hang_timeout_s: float = 60.0
    start_timeout_s: float = 300.0


class GenerationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a replica of a language model runs.

    slots: sequences at a time; more wait. Memory is taken as they grow, so empty slots cost nothing. kv_memory_mb: for
    their keys and values (0: 40 % of the replica's memory limit, or of its part of the machine's). prefix_cache_mb: for
    prompts seen before (None: 10 %; 0: no prefix cache). speculate: guess tokens where that measurably pays; it never
    changes what comes. draft: the reference or folder of a smaller model with the same tokens that guesses; without
    one, tokens are guessed from what the text said before.
    """

    slots: int = 64
    kv_memory_mb: int = 0
    prefix_cache_mb: int | None = None
    speculate: bool = True
    draft: str = ""
