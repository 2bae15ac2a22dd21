"""Starting processes by exec, identifying them again, signalling only the right one."""
