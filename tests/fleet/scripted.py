"""A generator whose prompts say what happens, and a replica process that holds one.

    python -m tests.fleet.scripted FD SPEC-JSON

A prompt is JSON of a `Script`; any other text is the script of its defaults. `slots` run at a time, the rest waits.
"""

import os
import signal
import socket
import sys
import time
from functools import partial
from itertools import islice

import msgspec

from foretell.core.errors import ForetellError, InvalidInput, Overloaded
from foretell.core.generation import Event, Finished, GenerateRequest, Load, Piece, Started
from foretell.fleet import wire
from foretell.fleet.generate_loop import GenerateLoop, send, warm_up
from foretell.fleet.launcher import LocalProcess


class Script(msgspec.Struct, omit_defaults=True):
    """`reading` steps before `Started`; then `tokens` tokens, each named after its number. The process `die`s (by
    SIGKILL), `hang`s, or the generator `breaks` (raises from `step`) before that token, -1 while reading; `fails`:
    this request alone. `refuse`: "invalid" or "overloaded" or "bug". `step_s`: how long a step with it takes.
    """

    tokens: int = 3
    reading: int = 1
    die: int | None = None
    hang: int | None = None
    breaks: int | None = None
    fails: int | None = None
    refuse: str = ""
    step_s: float = 0.0
    once: str = ""

    def due(self, when: int | None, said: int) -> bool:
        """Whether it happens now; with `once` (a file) only the first time in all processes."""
        if when != said:
            return False
        if self.once:
            try:
                os.close(os.open(self.once, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return False
        return True


def prompt(**fields) -> str:
    return msgspec.json.encode(Script(**fields)).decode()


class _Run:
    def __init__(self, request: GenerateRequest, script: Script) -> None:
        self.request = request
        self.script = script
        self.read = 0
        self.said = -1


class ScriptedGenerator:
    """Implements `core.model.Generator`. `cancelled` keeps the numbers that were cancelled in time."""

    def __init__(self, slots: int = 4) -> None:
        self._slots = slots
        self._runs: dict[int, _Run] = {}
        self.cancelled: list[int] = []

    def submit(self, number: int, request: GenerateRequest) -> None:
        assert number not in self._runs
        try:
            script = msgspec.json.decode(str(request.prompt), type=Script)
        except msgspec.DecodeError:
            script = Script(tokens=request.stops.max_tokens or 3)
        if script.refuse == "invalid":
            raise InvalidInput("this prompt is not taken")
        if script.refuse == "overloaded":
            raise Overloaded("no memory left", 1.5)
        if script.refuse:
            raise RuntimeError("a bug in submit")
        self._runs[number] = _Run(request, script)

    def cancel(self, number: int) -> None:
        if self._runs.pop(number, None) is not None:
            self.cancelled.append(number)

    def step(self) -> list[tuple[int, Event | ForetellError]]:
        came: list[tuple[int, Event | ForetellError]] = []
        running = list(islice(self._runs.items(), self._slots))
        time.sleep(max((run.script.step_s for _, run in running), default=0.0))
        for number, run in running:
            came += [(number, event) for event in self._advance(number, run)]
        return came

    def _advance(self, number: int, run: _Run) -> list[Event | ForetellError]:
        script = run.script
        if script.due(script.die, run.said):
            os.kill(os.getpid(), signal.SIGKILL)
        if script.due(script.hang, run.said):
            time.sleep(600)
        if script.due(script.breaks, run.said):
            raise RuntimeError("the engine is broken")
        if script.fails == run.said:
            del self._runs[number]
            return [InvalidInput("this one cannot go on")]
        if run.said < 0:
            run.read += 1
            if run.read < script.reading:
                return []
            run.said = 0
            return [Started(7, 2)]
        if run.said < script.tokens:
            run.said += 1
            return [Piece(choice, f" {run.said - 1}", [run.said - 1]) for choice in range(run.request.n)]
        del self._runs[number]
        return [Finished(choice, "stop", run.said) for choice in range(run.request.n)]

    def load(self) -> Load:
        running = min(len(self._runs), self._slots)
        return Load(running, len(self._runs) - running, sum(r.said + 7 for r in self._runs.values()), 1000)

    def close(self) -> None:
        self._runs.clear()


launch_scripted = partial(LocalProcess, main="tests.fleet.scripted")
"""A `Launcher` of replicas that hold a `ScriptedGenerator`."""


def main() -> None:
    sock = socket.socket(fileno=int(sys.argv[1]))
    generator = ScriptedGenerator()
    warm_up(generator)
    send(sock, wire.frame(wire.Ready(0.0, [], generator.load())))
    GenerateLoop(sock, generator).run()


if __name__ == "__main__":
    main()
