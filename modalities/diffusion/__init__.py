"""Few-step diffusion samplers by step distillation. Nothing heavy is imported until the adapter is asked for."""

ADAPTER = "adapter:DiffusionAdapter"
COMMANDS = "use.commands"
