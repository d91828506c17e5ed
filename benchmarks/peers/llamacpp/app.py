"""llama.cpp's own HTTP server (C++), started through the xllamacpp wheel; serves until it is ended.

Continuous batching over `BENCH_SLOTS` slots; each slot has room for `BENCH_CONTEXT` tokens.
"""

import json
import os
import signal

import xllamacpp

SLOTS = int(os.environ.get("BENCH_SLOTS", "32"))
THREADS = int(os.environ.get("BENCH_THREADS", "2"))


def parameters() -> xllamacpp.CommonParams:
    params = xllamacpp.CommonParams()
    params.model.path = os.environ["BENCH_MODEL"]
    params.port = int(os.environ["BENCH_PORT"])
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * int(os.environ.get("BENCH_CONTEXT", "1024"))
    params.kv_unified = os.environ.get("BENCH_UNIFIED", "0") == "1"
    params.n_batch = int(os.environ.get("BENCH_BATCH", "2048"))
    params.n_ubatch = int(os.environ.get("BENCH_UBATCH", "512"))
    params.cpuparams.n_threads = THREADS
    params.cpuparams_batch.n_threads = int(os.environ.get("BENCH_THREADS_BATCH", str(THREADS)))
    params.cont_batching = True
    params.n_gpu_layers = 0
    # Work that only a console of its own would show.
    params.ui = False
    params.show_timings = False
    flash = xllamacpp.llama_flash_attn_type
    params.flash_attn_type = {
        "auto": flash.LLAMA_FLASH_ATTN_TYPE_AUTO,
        "on": flash.LLAMA_FLASH_ATTN_TYPE_ENABLED,
        "off": flash.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    }[os.environ.get("BENCH_FLASH", "auto")]
    return params


if __name__ == "__main__":
    params = parameters()
    server = xllamacpp.Server(params)
    system = xllamacpp.get_system_info()
    print(json.dumps({"address": server.listening_address, "system": system}), flush=True)
    # Ended by SIGTERM without ceremony: the server's threads would otherwise be waited for.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.pause()
