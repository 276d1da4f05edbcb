"""`psr-lens demo`: from prompts to a report, on the shipped organism or on a chat model."""

from psr_lens.apps.demo.chat_demo import INSTRUCTIONS, ChatDemoConfig
from psr_lens.apps.demo.held_out import DemoResult
from psr_lens.apps.demo.organism_demo import DemoConfig
from psr_lens.apps.demo.run import run_demo

__all__ = ["INSTRUCTIONS", "ChatDemoConfig", "DemoConfig", "DemoResult", "run_demo"]
