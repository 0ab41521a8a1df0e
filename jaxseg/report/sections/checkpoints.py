"""Checkpoints of others that arms start from: what is known of them, and what is said beside every number of theirs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jaxseg.report.blocks import Notice, Section, Styles, sentence
from jaxseg.report.tables import Tables
from jaxseg.study.claims.rules import of_checkpoint
from jaxseg.study.record import Checkpoint
from jaxseg.text import listing


def checkpoint_notes(tables: Tables) -> dict[str, str]:
    """Return what must be said beside the numbers of each arm that starts from a checkpoint of someone else's."""
    return {name: f"{made.file}: {of_checkpoint(made.trained_on)}" for name, made in checkpoints(tables).items()}


def checkpoints(tables: Tables) -> Mapping[str, Checkpoint]:
    """Return the checkpoint of each arm that starts from one."""
    made = {name: arm.pretrain for name, arm in tables.study.arms.items()}
    return {name: one.checkpoint for name, one in made.items() if one is not None and one.checkpoint is not None}


def with_notes(section: Section, styles: Styles) -> Section:
    """Return a section that says below its first words what its readers must know of arms marked with a dagger."""
    arms: dict[str, list[str]] = {}
    for arm, style in styles.items():
        if style.note:
            arms.setdefault(style.note, []).append(arm)
    notes = [Notice(sentence("† {arms}: {note}.", arms=listing(named), note=note)) for note, named in arms.items()]
    return dataclasses.replace(section, blocks=(*section.blocks[:1], *notes, *section.blocks[1:]))


def checkpoint_words(tables: Tables) -> str | None:
    """Return all that is known of the checkpoints, each once; None without any."""
    said = {}
    for made in checkpoints(tables).values():
        known = {
            "": made.file,
            "SHA-256 ": made.sha256,
            "from ": made.origin,
            "licence ": made.licence or "unknown",
            "trained on ": made.trained_on or "unknown images",
        }
        said[made] = ", ".join(f"{what}{value}" for what, value in known.items() if value)
    return "; ".join(said.values()) or None
