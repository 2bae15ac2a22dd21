"""The model: parameters, forward pass, attention, loss head and kernels."""
