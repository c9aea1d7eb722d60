"""What the paper's experiments share: data, augmentation, models and training."""
