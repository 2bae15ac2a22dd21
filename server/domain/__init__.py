"""The rules of runs, phases, checkpoints and jobs. None commits or touches a process."""
