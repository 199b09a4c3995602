"""The tour: convert the demo model that comes with Kumquant, check it, and ask it a few things.

The demo model is real but tiny: it tells short stories and does small sums. Nothing is downloaded.
"""

from __future__ import annotations

import argparse

from ..demo import DEFAULT_OUTPUT, QUESTIONS, convert_demo
from . import bench, inspect, verify
from .options import add_quantization, add_threads

