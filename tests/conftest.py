"""Settings for all tests in the process of pytest."""

import torch

# What is measured of a pass (its peak memory, its operations) is seen in its own thread alone.
torch.set_num_threads(1)
