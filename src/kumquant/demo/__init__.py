"""The tour that ``kumquant demo`` takes: which model, which commands, which questions."""

from .stops import DEFAULT_OUTPUT, DEFAULT_QUANTIZATION, DEMO_MODEL, MODELS, QUESTIONS, Stop, tour

__all__ = ["DEFAULT_OUTPUT", "DEFAULT_QUANTIZATION", "DEMO_MODEL", "MODELS", "QUESTIONS", "Stop", "tour"]
