"""Replacements and plans: what they do at a hook point, the hooks that steer, their files, and the ways out."""

from psr_lens.replacement.learning_curve import LearningCurve
from psr_lens.replacement.plan import Part, SteeringPlan
from psr_lens.replacement.replacement import Replacement, Tokens
from psr_lens.replacement.site import Rule, Site
from psr_lens.replacement.steering import Steering

__all__ = ["LearningCurve", "Part", "Replacement", "Rule", "Site", "Steering", "SteeringPlan", "Tokens"]
