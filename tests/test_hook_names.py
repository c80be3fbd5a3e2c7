"""What the names of hook points say."""

import pytest

from monosem.hook_names import from_transformer_lens, layer_of, to_transformer_lens


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resid_post.2", 2),
        ("mlp_mid.017", 17),
        ("7", 7),
        ("final_norm", None),
        ("transformer.h", None),
        ("resid_post.", None),
        ("resid_post.-1", None),
        ("resid_post.\u00b2", None),  # a digit, and no number
        ("resid_post." + "9" * 5000, None),
        ("", None),
        (None, None),
    ],
)
def test_the_layer_is_the_number_at_the_end(name: str | None, layer: int | None) -> None:
    assert layer_of(name) == layer


def test_names_go_there_and_back() -> None:
    for name in ("resid_post.2", "mlp_mid.10", "final_norm"):
        assert from_transformer_lens(to_transformer_lens(name) or "") == name
