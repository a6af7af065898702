"""The files of a classifier beside those of its network, by name."""

ADAPTED = "classifier.safetensors"
"""The head; of an inner loop, the tokens and labels of the examples instead."""
ACCOUNT = "adaptation.json"
"""What cross-validation told. It has texts of the examples, and is not pushed to a hub."""
