"""Cache of the features of frozen layers, shared by runs with equal inputs.

Attention that is inserted into loaded weights starts as the identity, so runs that differ in it alone, or in the head,
have the same features for the linear probe.
"""

import os
import shutil
from pathlib import Path

from fieldmark.core.io import atomic_path, read_json, write_json
from fieldmark.training.frozen_features import TRAIN_FEATURES, VAL_FEATURES, VAL_MAPS, FrozenFeatures
from fieldmark.training.phase_builder import PhaseBuilder


class FeatureCache:
    """A folder with an entry for each fingerprint of features.

    Args:
        folder: made where it does not exist.
        features: of one run.
        fingerprint: of the features, see `PhaseBuilder.features_fingerprint`.
    """

    def __init__(self, folder: Path, features: FrozenFeatures, fingerprint: str) -> None:
        self.features, self.entry = features, folder / fingerprint
        self.maps_file = self.entry / f"val_maps-{str(features.last_frozen_layer).replace('/', '_')}.npy"

    def restore(self) -> float:
        """Link cached features into the run's folder.

        Returns:
            the seconds that they took to compute; 0 if there are none.
        """
        seconds_file, folder = self.entry / "seconds.json", self.features.folder
        if not seconds_file.exists():
            return 0.0
        if not len(self.features.prefix) or self.maps_file.exists():
            for name in (TRAIN_FEATURES, VAL_FEATURES):
                _link_or_copy(self.entry / name, folder / name)
            if self.maps_file.exists():
                _link_or_copy(self.maps_file, folder / VAL_MAPS)
        else:  # the validation features are computed again, and the maps with them
            _link_or_copy(self.entry / TRAIN_FEATURES, folder / TRAIN_FEATURES)
        return read_json(seconds_file)

    def store(self, seconds: float) -> None:
        """Keep this run's features, which took `seconds` to compute."""
        folder = self.features.folder
        places = {folder / name: self.entry / name for name in (TRAIN_FEATURES, VAL_FEATURES)}
        if not all(file.exists() for file in places):
            return
        self.entry.mkdir(parents=True, exist_ok=True)
        for file, place in [*places.items(), (folder / VAL_MAPS, self.maps_file)]:
            if file.exists() and not place.exists():
                _link_or_copy(file, place)
        if not (self.entry / "seconds.json").exists():
            write_json(self.entry / "seconds.json", seconds)


def for_run(folder: Path, builder: PhaseBuilder, run: Path) -> FeatureCache:
    """The cache in `folder` for a run whose images are audited and split, before its training starts."""
    fingerprint = builder.features_fingerprint(
        read_json(run / "audit.json")["fingerprint"], (run / "split.csv").read_bytes()
    )
    return FeatureCache(folder, builder.frozen_features, fingerprint)


def _link_or_copy(file: Path, place: Path) -> None:
    """Make `place` the same file; these files are never changed once they are whole."""
    place.unlink(missing_ok=True)
    try:
        os.link(file, place)
    except OSError:  # a file system without links
        with atomic_path(place) as partial:
            shutil.copyfile(file, partial)
