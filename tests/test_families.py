"""The table of families: each row's own facts, and how the rows relate."""

import pytest
import torch

from danqing.checkpoints.checkpoint import networks
from danqing.families import FAMILIES, LDSR, SD1, SD2, SDXL, Family, variant


def test_names_are_keys() -> None:
    assert all(row.name == name for name, row in FAMILIES.items())
    assert len({row.title for row in FAMILIES.values()}) == len(FAMILIES)


@pytest.mark.parametrize(("suffix", "channels"), [("inpaint", 9), ("pix2pix", 8)])
def test_variants_by_input_channels(suffix: str, channels: int) -> None:
    rows = [row for name, row in FAMILIES.items() if name.endswith(suffix)]
    assert {row.variant for row in rows} == {suffix}
    assert {row.denoiser.in_channels for row in rows} == {channels}
    assert all(row.variant == "base" for row in FAMILIES.values() if row not in rows and row.denoiser.in_channels == 4)


@pytest.mark.parametrize("row", FAMILIES.values(), ids=lambda row: row.name)
def test_text_is_as_wide_as_the_denoiser_expects(row: Family) -> None:
    assert sum(encoder.config.width for encoder in row.text_encoders) == row.denoiser.context_width
    if row.denoiser.pooled_width:
        assert row.text_encoders[-1].config.projection == row.denoiser.pooled_width
    assert row.denoiser.size_ids == {"none": 0, "base": 6, "refiner": 5}[row.size_ids]


@pytest.mark.parametrize("row", FAMILIES.values(), ids=lambda row: row.name)
def test_every_level_divides_into_heads_and_groups(row: Family) -> None:
    unet = row.denoiser
    assert all(width % heads == 0 and width % unet.groups == 0 for width, heads in zip(unet.channels, unet.heads))
    # a skip per residual block, per change of size and for the first convolution: as many as the way up takes
    left = 1 + sum(len(depths) for depths in unet.down_depth) + len(unet.channels) - 1
    assert left == sum(len(depths) for depths in unet.up_depth)


def test_only_v_and_edm_rows_change_the_process() -> None:
    assert {name for name, row in FAMILIES.items() if row.process.prediction == "v"} == {
        "danqing",
        "sd2-v",
        "sdxl-v",
    }
    assert {name for name, row in FAMILIES.items() if row.process.prediction == "edm"} == {"playground-v2.5"}
    assert FAMILIES["sdxl-v"].process.sigma_max > 4000
    assert FAMILIES["playground-v2.5"].process.sigma_max == pytest.approx(80)
    assert FAMILIES["playground-v2.5"].process.sigma_min == pytest.approx(0.002)
    assert torch.equal(FAMILIES["sdxl-turbo"].process.sigmas, SDXL.process.sigmas)


def test_refiner_reads_the_second_encoder_alone() -> None:
    refiner = FAMILIES["sdxl-refiner"]
    assert [encoder.name for encoder in refiner.text_encoders] == ["text_encoder_2"]
    assert not refiner.zero_empty_negative


def test_variant_reaches_into_its_parts() -> None:
    row = variant(SD1, "x", "X", denoiser_in_channels=9, process_prediction="v", size_ids="base")
    assert (row.name, row.title, row.denoiser.in_channels, row.process.prediction) == ("x", "X", 9, "v")
    assert row.size_ids == "base"
    assert SD1.denoiser.in_channels == 4
    assert SD1.text_encoders == row.text_encoders != SD2.text_encoders


def test_ldsr_is_as_large_as_it_is_told() -> None:
    """The diffusion's weights take 455 MB in float32 (CompVis/latent-diffusion, issue 141)."""
    parts = networks(LDSR)
    assert parts.keys() == {"unet", "vae"}
    assert sum(4 * p.numel() for p in parts["unet"].parameters()) / 1e6 == pytest.approx(455, abs=1)
    assert LDSR.variant == "upscale"
