"""Replacements and steering plans: what they do at a hook point, the hooks that steer, their files, and exports to other libraries."""

from psr_lens.replacement.acting import Acting, InWeights, check_acting, in_force
from psr_lens.replacement.actions import SPANS
from psr_lens.replacement.adapter import Adapter
from psr_lens.replacement.added_neurons import AddedNeurons
from psr_lens.replacement.attach_to_transformers import Attached, read_on_transformers
from psr_lens.replacement.checkpoint_export import NeuronFidelity
from psr_lens.replacement.compatibility import check_compatible
from psr_lens.replacement.learning_curve import LearningCurve
from psr_lens.replacement.replacement import Part, Replacement, SteeringPlan
from psr_lens.replacement.saved_files import PLAN_FILE
from psr_lens.replacement.site import Rule, Site
from psr_lens.replacement.spec import ReplacementSpec, Tokens
from psr_lens.replacement.steering import Steering
from psr_lens.replacement.steering_hooks import SteeringHooks

__all__ = [
    "PLAN_FILE",
    "SPANS",
    "Acting",
    "Adapter",
    "AddedNeurons",
    "Attached",
    "InWeights",
    "LearningCurve",
    "NeuronFidelity",
    "Part",
    "Replacement",
    "ReplacementSpec",
    "Rule",
    "Site",
    "Steering",
    "SteeringHooks",
    "SteeringPlan",
    "Tokens",
    "check_acting",
    "check_compatible",
    "in_force",
    "read_on_transformers",
]
