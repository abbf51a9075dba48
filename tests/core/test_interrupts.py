"""A signal asks for the end, a second one interrupts, and a command says what is kept."""

from __future__ import annotations

import signal
import threading

import pytest

from nlora_lab.core.interrupts import (
    SIGNALS,
    Interrupted,
    Signalled,
    exit_status,
    never_stop,
    raise_if_stopped,
    raise_on_signal,
    signal_number,
    stop_on_signal,
)

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


def test_all_three_signals_are_heard():
    assert set(SIGNALS) == set(STATUS)
    assert {number: exit_status(number) for number in SIGNALS} == STATUS


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_stops_and_the_second_interrupts(number):
    before = signal.getsignal(number)
    with stop_on_signal() as should_stop:
        assert not should_stop()
        signal.raise_signal(number)
        assert should_stop()
        assert should_stop.number == number
        with pytest.raises(Interrupted):
            raise_if_stopped(should_stop)
        with pytest.raises(Signalled) as raised:
            signal.raise_signal(signal.SIGINT)
        assert signal_number(raised.value) == signal.SIGINT
        assert should_stop.number == number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_of_training_every_signal_interrupts(number):
    before = signal.getsignal(number)
    with raise_on_signal():
        with pytest.raises(Signalled) as raised:
            signal.raise_signal(number)
        assert signal_number(raised.value) == number
        with stop_on_signal() as should_stop:  # inside it the first one only asks
            signal.raise_signal(number)
            assert should_stop()
        with pytest.raises(Signalled):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_an_interrupt_without_a_signal_counts_as_ctrl_c():
    assert signal_number(KeyboardInterrupt()) == signal_number(Interrupted()) == signal.SIGINT


@pytest.mark.parametrize("listen", [raise_on_signal, stop_on_signal])
def test_what_nohup_ignores_stays_ignored(listen):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listen() as should_stop:
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert should_stop is None or not should_stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_are_left_alone_where_they_cannot_be_heard():
    checks = []

    def elsewhere():
        with raise_on_signal(), stop_on_signal() as should_stop:
            checks.append(should_stop())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert checks == [False]
    raise_if_stopped(never_stop)


def test_where_there_is_nothing_to_finish_the_first_signal_interrupts():
    with stop_on_signal() as should_stop:
        should_stop.patient = False
        with pytest.raises(Signalled):
            signal.raise_signal(signal.SIGTERM)
        assert should_stop()
        assert should_stop.number == signal.SIGTERM
