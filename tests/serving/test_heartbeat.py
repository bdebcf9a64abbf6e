"""When an event loop counts as blocked."""

from serving.telemetry.heartbeat import BEAT_S, SILENT_S, Heartbeat


def test_a_loop_is_silent_after_several_beats_were_missed_and_well_after_the_next() -> None:
    now_s = 10.0
    heartbeat = Heartbeat(clock=lambda: now_s, whose="worker 7")
    now_s += SILENT_S
    assert heartbeat.problem() == ""
    now_s += 2.4
    assert heartbeat.problem() == "worker 7 has not responded for 7 s"
    heartbeat.beat()
    now_s += 2 * BEAT_S
    assert heartbeat.problem() == ""
