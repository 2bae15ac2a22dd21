"""A null GPU: NVIDIA's driver and libraries as stubs below torch's own CUDA build.

The stubs name a card (an RTX 4070, a 3090, an H200, a T4), have its memory, and compute nothing.
Real are the caching allocator and its peaks, dispatch, the compilers down to machine code, streams,
pinned memory, launches, copies, waits and errors. Meaningless are every value and every kernel's
time. A test runs a function in a process on such a card (`conftest.py`: `on_card`).
"""
