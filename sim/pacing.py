"""`Pacer`: keeps simulated time in step with wall time, and owns up when it cannot."""

from __future__ import annotations


class Pacer:
    """All arguments in seconds: `wall` of a monotonic clock, `simulated` of the simulation's own.

    lost_s: wall seconds by which the simulation fell behind for good, because no physics is skipped.
    """

    def __init__(self, speed: float, wall: float, simulated: float) -> None:
        self.lost_s = 0.0
        self.restart(speed, wall, simulated)

    def restart(self, speed: float, wall: float, simulated: float) -> None:
        """From here on, `speed` simulated seconds pass in one second."""
        self.speed = speed
        self._wall, self._simulated = wall, simulated
        self._mark = (wall, simulated)

    def lag(self, wall: float, simulated: float) -> float:
        """Wall seconds by which this point of simulated time is late; negative: it is not due yet."""
        return wall - self._wall - (simulated - self._simulated) / self.speed

    def forgive(self, wall: float, simulated: float) -> None:
        """Too far behind: the schedule starts again from here."""
        self.lost_s += self.lag(wall, simulated)
        self._wall, self._simulated = wall, simulated

    def factor(self, wall: float, simulated: float) -> float:
        """Simulated seconds per wall second since the last call; NaN when no time has passed."""
        (wall_before, simulated_before), self._mark = self._mark, (wall, simulated)
        passed = wall - wall_before
        return (simulated - simulated_before) / passed if passed > 0 else float("nan")
