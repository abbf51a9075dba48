"""A signal asks for the end; a second one interrupts."""

from __future__ import annotations

import signal
import threading

import pytest

from nlora_lab.core.interrupts import Interrupted, never_stop, raise_if_stopped, stop_on_signal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_and_the_second_interrupts(number):
    before = signal.getsignal(number)
    with stop_on_signal() as should_stop:
        assert not should_stop()
        signal.raise_signal(number)
        assert should_stop()
        with pytest.raises(Interrupted):
            raise_if_stopped(should_stop)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_signals_are_left_alone_where_they_cannot_be_heard_or_are_not_wanted():
    checks = []

    def elsewhere():
        with stop_on_signal() as should_stop:
            checks.append(should_stop)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    with stop_on_signal(enabled=False) as should_stop:
        checks.append(should_stop)
    assert checks == [never_stop, never_stop]
    raise_if_stopped(never_stop)
