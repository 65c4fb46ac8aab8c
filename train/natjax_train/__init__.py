"""Training of natjax models: data, augmentation, train step, sharding, checkpoints, evaluation, recipes."""
