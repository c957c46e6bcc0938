"""Compact CTC recognisers by acoustic distillation. Nothing heavy is imported until the adapter is asked for."""

ADAPTER = "adapter:SpeechAdapter"
COMMANDS = "use.commands"
