"""From a checkpoint to a tensor cache: ``convert`` and what it reports, ``plan`` before it."""

from .conversion import ConvertReport, convert
from .plan import ModePlan, PlanReport, TensorPlan, plan
from .routes import RouteUse

__all__ = ["ConvertReport", "ModePlan", "PlanReport", "RouteUse", "TensorPlan", "convert", "plan"]
