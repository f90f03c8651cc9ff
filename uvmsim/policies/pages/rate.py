"""How many faults there are in a window of time, for the programs that go by their rate."""

START_NS, FAULTS, WINDOW_NS = 0, 1, 2
"""Places in a window, int64."""


def faults_in_window(window, now_ns):
    """Count a fault: how many there are in its window so far. A window begins with the first fault
    after the last one's end."""
    if now_ns - window[START_NS] >= window[WINDOW_NS]:
        window[START_NS], window[FAULTS] = now_ns, 0
    window[FAULTS] += 1
    return window[FAULTS]
