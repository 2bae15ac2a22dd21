"""Other programs on a device: when one counts as using it, and when it is gone.

A game of a few seconds must not cost a run two saves, so a program counts only after it has been
present for a while, and is gone only after a longer absence. Off unless a device's policy turns it
on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from server.machine.gpu_programs import GpuProgram

ARRIVES_SECONDS = 5.0
LEAVES_SECONDS = 120.0

# The desktop's programs hold memory as long as a user is logged in.
DESKTOP = frozenset(
    {
        "Xorg", "Xwayland", "X", "gnome-shell", "kwin_x11", "kwin_wayland", "plasmashell", "sway",
        "Hyprland", "mutter", "cinnamon", "xfwm4", "weston", "gdm-x-session", "sddm", "picom",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Watched:
    """Which programs count. yield_to: programs that count with any amount of memory. ignore: those
    that never count, in addition to the desktop's own."""

    least_bytes: int = 512_000_000
    yield_to: frozenset[str] = frozenset()
    ignore: frozenset[str] = frozenset()

    def counts(self, program: GpuProgram) -> bool:
        if program.name in self.yield_to:
            return True
        if program.name in self.ignore or program.name in DESKTOP:
            return False
        return program.memory_bytes is not None and program.memory_bytes >= self.least_bytes


@dataclass
class Neighbours:
    """Other programs per device, tracked between readings. Times on a monotonic clock."""

    _arrived: dict[tuple[str, str], float] = field(default_factory=dict)
    _seen: dict[str, tuple[str, float]] = field(default_factory=dict)

    def update(
        self, device: str, programs: Iterable[GpuProgram], watched: Watched | None, now: float
    ) -> str | None:
        """The name of the program that uses `device`, or None. watched: None is off."""
        names = sorted({p.name for p in programs if watched is not None and watched.counts(p)})
        self._arrived = {
            key: at for key, at in self._arrived.items() if key[0] != device or key[1] in names
        }
        for name in names:
            since = self._arrived.setdefault((device, name), now)
            if now - since >= ARRIVES_SECONDS or self._user(device) == name:
                self._seen[device] = (name, now)
                return name
        if watched is None or now - self._last_seen(device, now) >= LEAVES_SECONDS:
            self._seen.pop(device, None)
        return self._user(device)

    def _user(self, device: str) -> str | None:
        return self._seen[device][0] if device in self._seen else None

    def _last_seen(self, device: str, now: float) -> float:
        return self._seen[device][1] if device in self._seen else now
