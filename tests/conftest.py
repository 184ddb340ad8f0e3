"""Settings of all tests."""

import torch

# Arrays of tests are small: on a busy machine, threads mostly wait for each other.
torch.set_num_threads(1)
