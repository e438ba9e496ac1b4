"""The wire between rank 0 and the run's own process: nothing that was said is lost, and nobody is awaited in vain."""

from __future__ import annotations

import time

from engine.launch.event_relay import RelayJournal, RelayServer
from engine.protocol.events import LogLine


def test_what_a_rank_said_last_is_heard_however_slow_the_listener():
    heard = []

    def take(event):
        time.sleep(0.005)
        heard.append(event.text)

    server = RelayServer(take)
    journal = RelayJournal(server.address, "run")
    for number in range(100):
        journal.append(LogLine(level="info", text=str(number)))
    journal._connection.close()  # the rank has ended
    server.close()
    assert heard == [str(number) for number in range(100)]


def test_a_rank_that_never_came_is_not_waited_for():
    server = RelayServer(lambda event: None)
    thread = server._thread
    server.close()
    assert not thread.is_alive()
