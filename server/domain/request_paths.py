"""Validates paths that a request names on the daemon's machine."""

from __future__ import annotations

from pathlib import Path


def found(path: str) -> tuple[Path | None, str]:
    """Resolve a path of a request: (the path, "") or (None, why it is invalid)."""
    if "\0" in path:
        return None, f"{path!r} must be an absolute path on the daemon's machine."
    try:
        place = Path(path).expanduser()
        if not place.is_absolute():
            return None, f"{path!r} must be an absolute path on the daemon's machine."
        place.stat()
    except FileNotFoundError:
        return None, f"{path} does not exist on the daemon's machine."
    except RuntimeError as error:  # ~nosuchuser
        return None, f"{path}: {error}"
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        return None, f"{path} cannot be used on the daemon's machine: {why}."
    return place, ""
