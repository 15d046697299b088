import pytest

# Its assertions are the scenarios': without this pytest shows nothing of what they compared.
pytest.register_assert_rewrite("tests.scenarios.policy_ground")
