"""Slurm: an attempt is a job, submitted by sbatch, whose tasks srun starts, one for each device.

`script` renders the job, `client` runs Slurm's commands, `answers` reads what they print, `poller`
is the thread that alone calls them, and `launcher` answers the supervisor from what that saw last.

A job is known by its number and by its name, which is derived from the attempt's token: a daemon
that was killed between sbatch and the commit finds it by name, and nothing is sent to another job
that was given the same number by a cluster set up anew.
"""
