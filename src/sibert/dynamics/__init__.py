"""Instruments of training dynamics, for any torch model in any loop: torch alone."""

from sibert.dynamics.curvature import Estimate, Hessian, stability_line
from sibert.dynamics.equilibrium import (
    Equilibrium,
    adamw_equilibrium,
    equilibrium,
    lion_equilibrium,
    sgd_equilibrium,
)
from sibert.dynamics.exponential_lr import (
    EquivalentExponentialLR,
    ExponentialSchedule,
    characteristic_root,
    texp,
    texp_plus_plus,
)
from sibert.dynamics.flows import (
    Drift,
    Minimiser,
    follow,
    function_of,
    label_noise_velocity,
    normalized_gd_velocity,
    project,
    sphere_velocity,
    sqrt_loss_velocity,
)
from sibert.dynamics.lightning import LightningRotation
from sibert.dynamics.noise import GradientNoise, gradient_noise, square_root_scaling
from sibert.dynamics.rotation import Rotation, RotationRecorder
from sibert.dynamics.svag import SVAG, gaussian_example_weights, svag_coefficients
from sibert.dynamics.svag_runs import SVAGComparison, compare_svag

__all__ = [  # noqa: RUF022  (grouped by what they do)
    # what a step does to a scale-invariant group
    "LightningRotation",
    "Rotation",
    "RotationRecorder",
    # what theory predicts of a scale-invariant group
    "Equilibrium",
    "adamw_equilibrium",
    "equilibrium",
    "lion_equilibrium",
    "sgd_equilibrium",
    # curvature
    "Estimate",
    "Hessian",
    "stability_line",
    # noise of the gradient
    "SVAG",
    "SVAGComparison",
    "GradientNoise",
    "compare_svag",
    "gaussian_example_weights",
    "gradient_noise",
    "square_root_scaling",
    "svag_coefficients",
    # weight decay as a schedule
    "EquivalentExponentialLR",
    "ExponentialSchedule",
    "characteristic_root",
    "texp",
    "texp_plus_plus",
    # after the loss has reached its minimum
    "Drift",
    "Minimiser",
    "follow",
    "function_of",
    "label_noise_velocity",
    "normalized_gd_velocity",
    "project",
    "sphere_velocity",
    "sqrt_loss_velocity",
]
