"""A stream gives the photos of its holder, to however many processes at once."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from containers import CONTAINERS
from slow import mark_slow_except

from fieldmark.data import dataset
from fieldmark.data.cache.stream import StreamedImages
from fieldmark.data.image import decode
from fieldmark.data.readers import read_catalog

FORKS = multiprocessing.get_start_method() == "fork"


@pytest.mark.parametrize("container", mark_slow_except(("zip", "tar", "parquet", "shards"), CONTAINERS))
@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more than there are cores, on purpose
@pytest.mark.skipif(not FORKS, reason="loaders share an open file where they are forked")
def test_forked_loaders_do_not_disturb_each_other(container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dataset, "_num_workers", lambda *_: 3)
    catalog = read_catalog(CONTAINERS[container](tmp_path))
    paths = [photo.path for photo in catalog.photos]
    StreamedImages.write_record(tmp_path, 20, "bicubic")
    stream = StreamedImages(tmp_path, catalog, paths)
    wanted = [np.asarray(decode(catalog.read_bytes(photo), 20, squash=True)) for photo in catalog.photos]
    assert len(stream) == len(wanted) and all(np.array_equal(stream[k], wanted[k]) for k in range(len(wanted)))
    which = np.tile(np.arange(len(paths)), 50)
    batches = dataset.iter_eval_batches(stream, which, 20, batch_size=5)
    seen = np.concatenate([batch.permute(0, 2, 3, 1).numpy() for batch in batches])
    centres = [photo[:, (photo.shape[1] - 20) // 2 :][:, :20] for photo in wanted]
    assert np.array_equal(seen, np.stack(centres)[which])
