"""What every trainer and job process needs: device, control, compiler, autotuning."""
