"""Scores from camera to camera: each cell is what the protocol says of that part of the data set alone."""

import numpy as np
import torch

from dgfast.errors import UserError
from dgfast.retrieval.cameras import camera_pairs
from dgfast.retrieval.metrics import cmc_map


def test_each_cell_is_the_score_of_its_part():
    rng = np.random.default_rng(0)
    distances = rng.integers(0, 40, (61, 90)).astype(np.float32)  # with ties
    q_ids, q_cams = rng.integers(-1, 6, 61), rng.choice([2, 3, 11], 61)
    g_ids, g_cams = rng.integers(-1, 6, 90), rng.choice([3, 4, 11], 90)
    found = camera_pairs(torch.from_numpy(distances), q_ids, q_cams, g_ids, g_cams)
    assert (found.query_cameras, found.gallery_cameras) == ([2, 3, 11], [3, 4, 11])
    for a, query_camera in enumerate(found.query_cameras):
        for b, gallery_camera in enumerate(found.gallery_cameras):
            rows, columns = q_cams == query_camera, g_cams == gallery_camera
            try:
                part = distances[rows][:, columns]
                expected = cmc_map(part, q_ids[rows], q_cams[rows], g_ids[columns], g_cams[columns])
            except UserError:  # nobody to find
                assert query_camera == gallery_camera
                assert np.isnan([found.rank1[a, b], found.mAP[a, b]]).all() and found.queries[a, b] == 0
                continue
            cell = found.rank1[a, b], found.mAP[a, b], found.queries[a, b]
            assert cell == (expected.rank1, expected.mAP, expected.queries)


def test_cells_without_queries_are_empty_and_named():
    # Camera 1 looks for persons 5 and 6; camera 2 has only seen 5, camera 3 a distractor and nobody else.
    distances = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    found = camera_pairs(distances, [5, 6], [1, 1], [7, 5, 0], [2, 2, 3])
    assert found.to_json() == {
        "query_cameras": [1], "gallery_cameras": [2, 3],
        "rank1": [[0.0, None]], "mAP": [[50.0, None]], "queries": [[1, 0]],
    }  # fmt: skip
    lines = [line.split() for line in found.text().splitlines()]
    assert lines == [
        ["Rank-1,", "%", "c2", "c3"], ["c1", "0.0", "-"],
        ["mAP,", "%", "c2", "c3"], ["c1", "50.0", "-"],
        ["queries", "that", "count", "c2", "c3"], ["c1", "1", "0"],
    ]  # fmt: skip
