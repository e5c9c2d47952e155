"""From a list of names to an artifact, kept in a cache: what ``tag --vocabulary`` stands on."""

from pvp_fast.files import cache_folder
from pvp_fast.names.add import add_names
from pvp_fast.names.cache import NameVectors
from pvp_fast.names.learn import Prepared, Request, prepare
from pvp_fast.names.plan import Costs, Plan
from pvp_fast.names.zero_shot import zero_shot

__all__ = [
    "Costs",
    "NameVectors",
    "Plan",
    "Prepared",
    "Request",
    "add_names",
    "cache_folder",
    "prepare",
    "zero_shot",
]
