"""Jobs, one module each: `run(order, process) -> result`."""
