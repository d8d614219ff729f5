"""Experiments that compare the theory of training dynamics with numbers: one file each, with verdicts that can fail."""

from sibert.lab import (
    auto_rate_tuning,
    balanced_rotation,
    edge_of_stability,
    equilibrium,
    exponential_schedule,
    intrinsic_clock,
    label_noise,
    never_settles,
    real_networks,
    robustness,
    sample_complexity,
    scaling_rules,
    svag,
)
from sibert.lab.diagnosis import Diagnosis, GroupDiagnosis, Stability, diagnose
from sibert.lab.diagnosis_advice import Finding
from sibert.lab.diagnosis_groups import Rates, Standing
from sibert.lab.diagnosis_page import write_diagnosis
from sibert.lab.diagnosis_run import diagnose_run
from sibert.lab.experiment import Experiment, Scale, Verdict
from sibert.lab.page import write_page
from sibert.lab.references import REFERENCES, bibtex, references_of_run
from sibert.lab.results import Outcome, load_outcome, run_experiment

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in map(
        Experiment.of,
        [
            auto_rate_tuning,
            exponential_schedule,
            equilibrium,
            intrinsic_clock,
            balanced_rotation,
            never_settles,
            svag,
            scaling_rules,
            label_noise,
            edge_of_stability,
            real_networks,
            sample_complexity,
            robustness,
        ],
    )
}
"""By name, in the order of the report."""

__all__ = [
    "EXPERIMENTS",
    "REFERENCES",
    "Diagnosis",
    "Experiment",
    "Finding",
    "GroupDiagnosis",
    "Outcome",
    "Rates",
    "Scale",
    "Stability",
    "Standing",
    "Verdict",
    "bibtex",
    "diagnose",
    "diagnose_run",
    "load_outcome",
    "references_of_run",
    "run_experiment",
    "write_diagnosis",
    "write_page",
]
