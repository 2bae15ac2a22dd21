"""Rules of runs, phases, checkpoints and jobs. No function commits or touches a process."""
