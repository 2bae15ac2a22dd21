"""Slurm launcher: an attempt is a job submitted by sbatch, with one srun task per device.

`script` renders the job, `client` runs Slurm's commands, `answers` parses their output, `poller`
is the only thread that calls them, and `launcher` returns its latest results to the supervisor.

A job is identified by its id and by its name, which is derived from the attempt's token. After a
crash between sbatch and the commit the daemon finds the job by name; a job of a reinstalled
cluster that has the same id never receives a signal.
"""
