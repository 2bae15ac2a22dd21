"""Data: corpora, tokenizer, token cache, packing, and a loader with an exact cursor."""
