"""What exporters tell of a loop, by the names of LoopMetrics."""

from __future__ import annotations

COUNTERS = {
    "turns": "Turns of the loop.",
    "waits": "Polls of the kernel that were allowed to block.",
    "wake_ups": "Wake-ups by other threads.",
    "events": "Events that the kernel reported.",
    "callbacks": "Callbacks run.",
    "timers_fired": "Timers that became due.",
    "accepted": "Connections accepted.",
    "bytes_received": "Bytes that transports received.",
    "bytes_sent": "Bytes that transports sent.",
    "waited": "Seconds spent waiting for the kernel.",
    "busy": "Seconds spent outside of waiting while the loop ran.",
}
GAUGES = {
    "ready": "Callbacks that are ready to run.",
    "ready_peak": "The most callbacks that were ready at the beginning of a turn.",
    "timers": "Timers that wait.",
    "utilisation": "The share of its running time that the loop was busy.",
}
