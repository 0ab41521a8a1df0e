"""Judges claims C1 to C11b: a study's tables become verdicts with reasons. See docs/claims.md for the rules."""

from jaxseg.study.claims.over_targets import over_studies as over_studies
from jaxseg.study.claims.over_targets import target_table as target_table
from jaxseg.study.claims.rejudged import as_markdown as as_markdown
from jaxseg.study.claims.rejudged import rejudge as rejudge
from jaxseg.study.claims.rules import RULE_VERSION as RULE_VERSION
from jaxseg.study.claims.shown import rule_tables as rule_tables
from jaxseg.study.claims.shown import shown_tables as shown_tables
from jaxseg.study.claims.shown import write_shown as write_shown
from jaxseg.study.claims.study_tables import StudyTables as StudyTables
from jaxseg.study.claims.study_tables import read_study as read_study
from jaxseg.study.claims.table import claims as claims
from jaxseg.study.claims.table import write_claims as write_claims
from jaxseg.study.claims.targets import made_noisy as made_noisy
from jaxseg.study.claims.told import TargetStudy as TargetStudy
from jaxseg.study.claims.told import read_target_study as read_target_study
from jaxseg.study.claims.told import tell as tell
