"""The replicas of a tier: found by address or DNS, watched, and chosen for each call.

The modules, from below: `routing` chooses by load and affinity, `ejection` counts failures, `discovery` finds
addresses, `replica` is one connection with its calls, `health` watches it, `replica_set` has all of a tier.
"""

from __future__ import annotations

from gateway.replicas.discovery import Discovery, parse_target
from gateway.replicas.health import HealthPolicy
from gateway.replicas.replica import Attempt
from gateway.replicas.replica_set import ReplicaSet

__all__ = ["Attempt", "Discovery", "HealthPolicy", "ReplicaSet", "parse_target"]
