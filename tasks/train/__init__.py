"""The `train` family: models that a recipe trains on its own samples."""

from tasks.train.train_clip import TrainClip

AnyTrain = TrainClip

__all__ = ["AnyTrain", "TrainClip"]
