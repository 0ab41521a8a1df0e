"""The settings of a study: what each may be, how a config becomes them, and which go together."""

from jaxseg.settings.parse import differences, digest, from_json, from_tree, parse, parse_model, to_dict, to_json
from jaxseg.settings.schema import (
    AnalysisSettings,
    ArmSettings,
    Compute,
    EvaluateSettings,
    LossSettings,
    ModelSettings,
    OptimSettings,
    PretrainSettings,
    ReportSettings,
    RuntimeSettings,
    StudySettings,
    TrainSettings,
)
from jaxseg.settings.task_schema import AugmentSettings, TaskSettings

__all__ = [
    "AnalysisSettings",
    "ArmSettings",
    "AugmentSettings",
    "Compute",
    "EvaluateSettings",
    "LossSettings",
    "ModelSettings",
    "OptimSettings",
    "PretrainSettings",
    "ReportSettings",
    "RuntimeSettings",
    "StudySettings",
    "TaskSettings",
    "TrainSettings",
    "differences",
    "digest",
    "from_json",
    "from_tree",
    "parse",
    "parse_model",
    "to_dict",
    "to_json",
]
