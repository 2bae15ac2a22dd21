"""Launchers: start, find, signal and clean up the processes of runs and jobs.

`launcher` defines the protocol, `registry` lists the implementations: `local` for one process on
this machine, `torchrun` for several, `slurm` for jobs of a cluster. `process` wraps the operating
system's calls. To add a launcher:

1. Implement the protocol `launcher.Launcher` in a new module. The handle is any JSON object; it is
   stored in the execution's row and read only by its launcher, also after a restart.
2. Start processes by exec, with the token in `process.TOKEN_VARIABLE` or in the name of the
   engine's job, so that `find` works after a crash between `spawn` and the commit of the handle.
3. Return `unreachable` from `is_alive` while the engine does not respond: that is no evidence of
   an ended job, and the supervisor waits. Never block: poll a slow engine in a thread and return
   its latest result.
4. Send signals only after the identity of the process or job is verified; otherwise return False.
5. Register it in `registry.make`, and name it in the orders that need it.
6. Run `tests/server/test_launchers.py` on it: its tests apply to every launcher.
"""
