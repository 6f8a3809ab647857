"""The controller's loop and the picker together, in virtual time: real prompts with real scores on a plan of three models."""
