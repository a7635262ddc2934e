"""What tells a training set from another one, so that a run does not go on with other images than it began with."""

import hashlib
import os
from typing import Any

from dgfast.data.records import ReidData


def describe(data: ReidData) -> dict[str, Any]:
    """The training split in a few words, and a fingerprint of it.

    The fingerprint is made of each image's path below the data set's folder, its identity, its camera and its size in
    bytes. So the folder may be moved or copied, but no image left out, exchanged or labelled anew.

    Args:
        data: a data set.
    Returns:
        values for a JSON file: name, root, train_images, train_identities, fingerprint.
    """
    digest = hashlib.sha256()
    for record in data.train:
        try:
            size = record.path.stat().st_size
        except OSError:
            size = -1
        name = os.path.relpath(record.path, data.root)
        digest.update(repr((name, record.person, record.camera, size)).encode(errors="surrogateescape"))
    return {
        "name": data.name,
        "root": str(data.root),
        "train_images": len(data.train),
        "train_identities": data.num_classes,
        "fingerprint": digest.hexdigest(),
    }
