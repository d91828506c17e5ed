"""`foretell serve`."""

import asyncio
import functools
import gc
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from foretell import __version__
from foretell.app.config import Config, ModelSettings, load_config
from foretell.app.packages import is_package, is_path, name_of, open_store
from foretell.app.service import Service
from foretell.cli.console import busy
from foretell.cli.options import DatabaseUrl, StoreUrl, TrustCode
from foretell.cli.signals import on_interrupt
from foretell.core.errors import ConfigError, PackageError
from foretell.telemetry.log import setup_logging

if sys.platform == "win32":
    new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
else:
    from uvloop import new_event_loop


def run(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[REF|PATH]...", help="References of the store, packages, model files."),
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="foretell.toml; flags win over it.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port; 0 picks a free one.", show_default="8080")] = None,
    grpc_port: Annotated[
        int | None, typer.Option(help="gRPC port; 0 picks a free one, -1 is none.", show_default="8081")
    ] = None,
    replicas: Annotated[
        int | None, typer.Option(help="Processes of each model named here.", show_default="by the package")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of each replica.", show_default="the cores divided")
    ] = None,
    access_log: Annotated[
        str | None, typer.Option(metavar="FILE", help="A file, - for standard error, none for none.", show_default="-")
    ] = None,
    observations: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Keep observations as Parquet files.", show_default="off")
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "warning",
    trust_code: TrustCode = False,
    store: StoreUrl = "",
    database: DatabaseUrl = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the addresses as one JSON line when ready.")] = False,
) -> None:
    """Serve models over REST and gRPC (Open Inference Protocol) and OpenAI's API.

    New versions and moved aliases of the store are picked up while serving. Ctrl-C or SIGTERM finishes what was
    admitted, then stops; a second Ctrl-C stops at once.

    \b
    Examples:
      foretell serve minilm digits@2 ./other.onnx
      foretell serve digits --port 0 --grpc-port -1 --json
      foretell serve --config foretell.toml
    """
    setup_logging(log_level)
    flags = {
        "serve": models or None,
        "server": {"host": host, "port": port, "grpc_port": grpc_port, "trust_code": trust_code or None},
        "observations": {"access_log": "" if access_log == "none" else access_log, "folder": observations},
        "store": {"home": store or None, "database": database or None},
    }
    settings = _with_replicas(load_config(config, flags), replicas, threads)
    if not settings.serve:
        raise ConfigError('nothing to serve: name models, foretell serve NAME…, or set serve = ["NAME"] in --config')
    with tempfile.TemporaryDirectory(prefix="foretell-serve-") as scratch:
        with busy("importing model files"):
            settings = _imported(settings, Path(scratch))
        code = _serve(settings, as_json, scratch)
    raise typer.Exit(code)


def _with_replicas(config: Config, count: int | None, threads: int | None) -> Config:
    """`config` with --replicas and --threads on every served model."""
    given = {key: value for key, value in (("count", count), ("threads", threads)) if value is not None}
    if not given:
        return config
    models = dict(config.models)
    for item in config.serve:
        name = name_of(Path(item)) if is_path(item) else item.partition("@")[0]
        settings = models.get(name, ModelSettings())
        models[name] = msgspec.structs.replace(settings, replicas={**settings.replicas, **given})
    return msgspec.structs.replace(config, models=models)


def _imported(config: Config, scratch: Path) -> Config:
    """`config` with model files replaced by packages, made in a process of their own: the gateway stays small."""
    items = []
    for item in config.serve:
        if is_path(item) and not is_package(Path(item)):
            out = scratch / name_of(Path(item))
            trust = ["--trust-code"] if config.server.trust_code else []
            made = subprocess.run(
                [sys.executable, "-m", "foretell", "pack", item, str(out), "--no-measure", *trust],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            if made.returncode:
                last = (made.stderr.strip().splitlines() or ["the import died"])[-1]
                raise PackageError(last.removeprefix("error: "))
            item = str(out)
        items.append(item)
    return msgspec.structs.replace(config, serve=tuple(items))


def _serve(config: Config, as_json: bool, scratch: str) -> int:
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(_until_stopped(config, as_json, scratch))


async def _until_stopped(config: Config, as_json: bool, scratch: str) -> int:
    stopping = asyncio.Event()
    began = time.perf_counter()
    with (
        on_interrupt(functools.partial(_stop, stopping, scratch)),
        open_store(config.store.home, config.store.database, config.store.files) as store,
    ):
        service = Service(config, store)
        starting = asyncio.create_task(service.start())
        asked = asyncio.create_task(stopping.wait())
        await asyncio.wait((starting, asked), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait((starting,))
            return 0
        try:
            await starting
            gc.freeze()  # what start-up made stays for good: scanning it again would stop every request for 70 ms
            _announce(service, time.perf_counter() - began, as_json)
            await asked
        finally:
            asked.cancel()
        if not as_json:
            print("draining; Ctrl-C again stops at once", file=sys.stderr, flush=True)
        await service.stop()
    return 0


def _stop(stopping: asyncio.Event, scratch: str) -> None:
    """First SIGINT or SIGTERM: drain. Second: end at once; replicas die with this process."""
    if stopping.is_set():
        shutil.rmtree(scratch, ignore_errors=True)
        os._exit(130)
    stopping.set()


def _announce(service: Service, took_s: float, as_json: bool) -> None:
    host = service.config.server.host
    shown = (
        "127.0.0.1" if host in ("", "0.0.0.0") else "[::1]" if host == "::" else f"[{host}]" if ":" in host else host
    )
    served = [f"{info.name}@{info.version}" for info in service.plane.models()]
    if as_json:
        ready = {
            "ready": True,
            "url": f"http://{shown}:{service.http_port}",
            "grpc": f"{shown}:{service.grpc_port}" if service.grpc_port else "",
            "models": served,
            "pid": os.getpid(),
            "start_s": round(took_s, 3),
        }
        sys.stdout.write(msgspec.json.encode(ready).decode() + "\n")
        sys.stdout.flush()
        return
    print(f"foretell {__version__} serves {', '.join(served)}")
    print(f"  HTTP  http://{shown}:{service.http_port}  (try it: /docs, metrics: /metrics)")
    if service.grpc_port:
        print(f"  gRPC  {shown}:{service.grpc_port}")
    print(f"ready after {took_s:.2f} s; Ctrl-C drains and stops", flush=True)
