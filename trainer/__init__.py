"""The worker of traind: the training process and every job that needs torch.

Importing this package must stay free of torch: the server imports `trainer.contract`.
"""
