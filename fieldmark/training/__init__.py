"""Split data and a recipe -> a trained network: linear probe, fine-tuning, budget, checkpoints, loggers."""
