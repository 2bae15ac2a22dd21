"""Request and response models of the API, a module for each subject.

Every number carries its unit in its name: seconds, bytes, tokens, watts, joules; times are unix
seconds. NaN and infinity never occur: a value that is not finite is null.
"""
