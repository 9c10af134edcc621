"""Whether other processes compute: on a machine that is shared, rounds that they disturb tell nothing. Linux only."""

import os
import time

# Of all processors together: what others may take in an undisturbed round, beside the clock ticks' own coarseness.
TOLERATED = 0.05
TICK = 1 / os.sysconf("SC_CLK_TCK")
WINDOW_SECONDS = 0.1


def _busy():
    """Seconds that all processors have computed, for whomever, what the host took away included."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) * TICK


class Watch:
    """What others have computed since it was made."""

    def __init__(self):
        self.start = time.perf_counter(), _busy(), time.process_time()

    def disturbed(self):
        wall, busy, own = (now - then for now, then in zip((time.perf_counter(), _busy(), time.process_time()), self.start))
        cpus = os.cpu_count()
        return busy - own > TOLERATED * cpus * wall + cpus * TICK


def wait(deadline):
    """Returns when nobody else computes, or at the deadline; says whether it is quiet."""
    while time.perf_counter() < deadline:
        watch = Watch()
        time.sleep(WINDOW_SECONDS)
        if not watch.disturbed():
            return True
    return False
