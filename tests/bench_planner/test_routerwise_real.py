import json

import numpy as np
import pytest

from routerwise.real import DATA, scores

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the measured scores are not here (SERVINGPLAN_DATA)")


def test_taking_equal_prompts_together_keeps_every_mean() -> None:
    models = ("mistral-7b-instruct-v0.3", "codegemma-7b")
    with (DATA / "quality/llmrouter_scores.jsonl").open() as lines:
        rows = np.array([[score[model] for model in models] for score in (json.loads(line)["scores"] for line in lines)])
    found = scores(models)
    assert len(found.shares) < len(rows) / 10
    assert found.shares.sum() == pytest.approx(1)
    assert found.means == pytest.approx(rows.mean(axis=0))
    assert found.ceiling == pytest.approx(rows.max(axis=1).mean())
