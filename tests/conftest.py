"""For all tests."""

import os

# No test asks the real hub; those of the hub talk to one of their own on the loopback.
os.environ["HF_HUB_OFFLINE"] = "1"
