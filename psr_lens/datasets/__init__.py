"""Readers for files of questions and instructions, and for published data sets; tasks of several steps with one right answer."""

from psr_lens.datasets.axbench import Axbench, AxbenchConcept, AxbenchRow, read_axbench
from psr_lens.datasets.ifeval import IfevalRow, Instruction, read_ifeval
from psr_lens.datasets.pairs import PairLine, read_pairs
from psr_lens.datasets.persona import Contrast, PersonaTrait, read_persona
from psr_lens.datasets.procedure_tasks import Procedure, procedures
from psr_lens.datasets.questions import everyday_questions, read_questions

__all__ = [
    "Axbench",
    "AxbenchConcept",
    "AxbenchRow",
    "Contrast",
    "IfevalRow",
    "Instruction",
    "PairLine",
    "PersonaTrait",
    "Procedure",
    "everyday_questions",
    "procedures",
    "read_axbench",
    "read_ifeval",
    "read_pairs",
    "read_persona",
    "read_questions",
]
