import pytest
import torch

from sibert.models import SibertConfig


@pytest.fixture(params=["joint", "matrix"])
def config(request):
    return SibertConfig.of_size("nano", vocab_size=97, max_position_embeddings=40, invariance=request.param)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(5, 97, (4, 19), generator=generator)
    attention_mask = torch.ones(4, 19, dtype=torch.long)
    attention_mask[1, 11:] = 0
    attention_mask[3] = 0  # padding throughout
    return {"input_ids": input_ids, "attention_mask": attention_mask}
