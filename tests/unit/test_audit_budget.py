from api.http.audit_budget import HOUR_SECONDS, AuditBudget


def test_the_budget_is_full_again_after_an_hour() -> None:
    seconds = 0.0
    budget = AuditBudget(2, now=lambda: seconds)
    assert [budget.left("t", "77") for _ in range(3)] == [2, 1, 0]
    assert budget.left("t", "78") == 2
    seconds = HOUR_SECONDS
    assert budget.left("t", "77") == 2
