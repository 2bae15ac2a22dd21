"""Runtime of trainer and job processes: device, control, compiler, autotuning."""
