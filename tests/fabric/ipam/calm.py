"""Hypothesis without limits of time: on a busy machine a slow case says nothing about the code."""

from hypothesis import HealthCheck, settings

CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
