"""What a job does, one module each: `run(order, process) -> result`."""
