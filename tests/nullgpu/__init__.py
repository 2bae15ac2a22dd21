"""A null GPU: NVIDIA's driver and libraries as stubs below torch's own CUDA build.

The stubs report a GPU (an RTX 4070, a 3090, an H200, a T4) with its memory, and compute nothing.
The caching allocator and its peaks, dispatch, the compilers down to machine code, streams, pinned
memory, launches, copies, waits and errors are real. Values and kernel times are meaningless. A test
runs a function in a process on such a GPU (`conftest.py`: `on_card`).
"""
