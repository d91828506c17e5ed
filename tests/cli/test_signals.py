"""Ctrl-C and SIGTERM under an event loop: they reach the loop while it runs, and afterwards mean what they meant."""

import asyncio
import os
import signal

import pytest
import uvloop

from foretell.cli.signals import on_interrupt


async def _interrupted(number: int) -> str:
    asked = asyncio.Event()
    with on_interrupt(asked.set):
        os.kill(os.getpid(), number)
        await asyncio.wait_for(asked.wait(), 10)
    return "asked"


@pytest.fixture
def as_python_has_them():
    """Other tests of this process may have left a handler (Ray's ends its cluster)."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("as_python_has_them")
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_loop_hears_of_it_and_afterwards_python_does_again(number, new_loop):
    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(_interrupted(number)) == "asked"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
