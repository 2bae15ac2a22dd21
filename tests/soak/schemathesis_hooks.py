"""Hooks for schemathesis: half of the requests go to existing resources, since a random name would
always give 404. THERE contains the names as JSON.

A rename uses a name that no other request draws: completions of an existing run wait for a process,
which the app under test, without a supervisor, never starts."""

from __future__ import annotations

import json
import os
import random
from typing import Any

import schemathesis

THERE: dict[str, list[str]] = json.loads(os.environ.get("THERE", "{}"))
DRAW = random.Random(int(os.environ.get("THERE_SEED", "0")))


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:
    if (
        case.method == "PATCH"
        and isinstance(case.body, dict)
        and isinstance(case.body.get("name"), str)
    ):
        case.body["name"] = f"renamed-{DRAW.randrange(10**9)}"
    phase = getattr(getattr(case.meta, "phase", None), "name", None)
    if str(phase) == "stateful" or DRAW.random() < 0.5:
        return
    for name in case.path_parameters or {}:
        if name in THERE:
            case.path_parameters[name] = DRAW.choice(THERE[name])
