"""Launchers: how a process is started in a place, found again, signalled and cleared up.

`launcher` has the protocol, `registry` the table of them, `local` the one for a process of this
machine, `torchrun` for several, `slurm` for jobs of a cluster; `process` is what the operating
system offers. To add a launcher:

1. Write a class in a module of its own that keeps the protocol `launcher.Launcher`. Its handle is
   any JSON object; nobody else reads it, and a daemon that starts anew gets it back from the row.
2. Start by exec, with the token in `process.TOKEN_VARIABLE` or in the name of the engine's job, so
   that `find` succeeds after a daemon was killed between `spawn` and the commit of the handle.
3. Answer `is_alive` with `unreachable` when the engine does not answer: silence of a controller is
   not the death of a job, and the supervisor then waits. Never block: poll a slow engine in a
   thread, and answer from what it saw last.
4. Send a signal only to what is certainly the same process or job; in doubt return False.
5. Enter it in `registry.make`, and name it in the orders that need it.
6. Run `tests/server/test_launchers.py` on it: the laws there hold for every kind.
"""
