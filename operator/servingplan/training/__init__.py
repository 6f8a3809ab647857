"""Trains the picker's predictor of quality and output length from scored prompts, and judges it on prompts it has not seen."""
