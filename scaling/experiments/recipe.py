"""The settings that every size is trained with: muP carries them from small to large."""

from typing import Any

from scaling.mup import MaximalUpdate

RECIPE: dict[str, Any] = {
    "parametrization": MaximalUpdate(),
    "optimizer": "muon",
    "learning_rate": 4e-3,
    "batch_size": 64,
    "num_pixels": 1024,
    "precision": "float16",
    "cooldown": 0.35,
}
