"""Training, evaluation and ablation of the emotion network: run from a checkout only."""
