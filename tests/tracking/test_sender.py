"""The sender alone: its deliveries are a list, its server a flag."""

import threading
import time

import pytest

from tunalab.tracking import client as mlflow_client
from tunalab.tracking import tracker as sender
from tunalab.tracking.tracker import Sender


class Server:
    def __init__(self):
        self.up = True
        self.arrived = []
        self.attempts = 0

    def deliver(self, unsent):
        self.attempts += 1
        while unsent:
            if not self.up:
                raise ConnectionError("gone")
            self.arrived.append(unsent.pop(0))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(mlflow_client, "_warned", set())
    monkeypatch.setattr(sender, "GATHER_SECONDS", 0.01)
    monkeypatch.setattr(sender, "RETRY_SECONDS", 0.05)


def until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_everything_arrives_in_order_also_what_a_server_missed(capsys):
    server = Server()
    carrier = Sender("http://lab", server.deliver, failed_at_start=False)
    carrier.put(0)
    until(lambda: server.arrived == [0])
    server.up = False
    for number in range(1, 50):
        carrier.put(number)
    until(lambda: carrier.failing)
    server.up = True
    until(lambda: len(server.arrived) == 50)
    assert carrier.close() == 0 and server.arrived == list(range(50)) and not carrier.failing
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_never_arrives_is_counted(capsys):
    server = Server()
    server.up = False
    carrier = Sender("http://lab", server.deliver, failed_at_start=True)
    for number in range(3):
        carrier.put(number)
    assert carrier.close() == 3 and server.attempts >= 1
    assert "gone" in capsys.readouterr().err


def test_a_server_that_hangs_neither_holds_the_run_up_nor_its_end(monkeypatch):
    monkeypatch.setattr(sender, "PATIENCE_SECONDS", 0.2)
    hang = threading.Event()
    carrier = Sender("http://lab", lambda unsent: hang.wait(60), failed_at_start=False)
    began = time.monotonic()
    for number in range(1000):
        carrier.put(number)
    assert time.monotonic() - began < 0.2
    assert carrier.close() == 1000 and time.monotonic() - began < 5
    hang.set()
