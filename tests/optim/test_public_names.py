import sibert.optim


def test_the_public_names_are_these():
    assert set(sibert.optim.__all__) == {
        "ClippedSGD",
        "GroupStatistics",
        "Hybrid",
        "Lamb",
        "SCHEDULES",
        "ScaleInvariantModel",
        "Schedule",
        "build_optimizer",
        "default_intrinsic_lr",
        "param_groups",
        "schedule",
        "schedule_groups",
    }
    assert all(hasattr(sibert.optim, name) for name in sibert.optim.__all__)
