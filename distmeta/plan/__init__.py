"""What a run will take, before it is started: memory, operations, time and money."""

from distmeta.plan.forecast import make_plan, sweep_totals, write_plan
from distmeta.plan.memory import asha_share, check_memory, check_model_states_fit, choose_weights
from distmeta.plan.table import plan_table

__all__ = [
    "asha_share",
    "check_memory",
    "check_model_states_fit",
    "choose_weights",
    "make_plan",
    "plan_table",
    "sweep_totals",
    "write_plan",
]
