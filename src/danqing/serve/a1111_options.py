"""AUTOMATIC1111's options (modules/shared_options.py): what tools set by /sdapi/v1/options and by override_settings.

An option either says something of a request, or of the form of an answer, or is only remembered: tools read all of
them and send them back.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from danqing.errors import DanqingError
from danqing.serve.store import Store
from danqing.vocabulary import nearest, quoted

Fields = dict[str, Any]
_KEY = "sdapi"
"""Of the database's options: ours."""


@dataclass(frozen=True)
class Option:
    """An option: its default, and which fields of a request a value means."""

    default: Any
    fields: Callable[[Any], Fields] | None = None
    """None where it says nothing of a request."""
    fixed: bool = False
    """Set where the server is started, never by a request."""
    acts: bool = True
    """False where it is only remembered."""


def _as(field: str) -> Callable[[Any], Fields]:
    return lambda value: {field: value}


def _nonzero(field: str) -> Callable[[Any], Fields]:
    """AUTOMATIC1111's 0 is the schedule's own."""
    return lambda value: {field: value or None}


def _named(field: str) -> Callable[[Any], Fields]:
    return lambda value: {field: None if value in (None, "", "None", "Automatic") else value}


def _merging(part: str) -> Callable[[Any], Fields]:
    return lambda value: {"token_merging": {part: value}}


def _tile(part: str) -> Callable[[Any], Fields]:
    return lambda value: {"hypertile": {part: value}}


_SOURCES = {"GPU": None, "CPU": "cpu", "NV": "philox"}

OPTIONS: Mapping[str, Option] = {
    "sd_model_checkpoint": Option(None, _named("model")),
    "sd_checkpoint_hash": Option(""),
    "sd_vae": Option("Automatic", _named("vae")),
    "sd_unet": Option("Automatic", acts=False),
    "CLIP_stop_at_last_layers": Option(1, _as("clip_skip")),
    "eta_noise_seed_delta": Option(0, _as("eta_noise_seed_delta")),
    "randn_source": Option("GPU", lambda value: {"noise_source": _SOURCES.get(value, value)}),
    "emphasis": Option("Original", _as("emphasis")),
    "enable_emphasis": Option(True, lambda value: {} if value else {"emphasis": "none"}),
    "tiling": Option(False, lambda value: {"tiling": "both" if value else "none"}),
    "skip_early_cond": Option(0.0, _as("guidance_start")),
    "s_min_uncond": Option(0.0, _as("s_min_uncond")),
    "s_churn": Option(0.0, _as("s_churn")),
    "s_tmin": Option(0.0, _as("s_tmin")),
    "s_tmax": Option(0.0, _nonzero("s_tmax")),
    "s_noise": Option(1.0, _as("s_noise")),
    "eta_ddim": Option(0.0),
    "eta_ancestral": Option(1.0),
    "k_sched_type": Option("Automatic", _as("scheduler")),
    "sigma_min": Option(0.0, _nonzero("sigma_min")),
    "sigma_max": Option(0.0, _nonzero("sigma_max")),
    "rho": Option(0.0, _nonzero("rho")),
    "always_discard_next_to_last_sigma": Option(False, lambda value: {"discard_penultimate": True} if value else {}),
    "sdxl_crop_top": Option(0, _as("crop_top")),
    "sdxl_crop_left": Option(0, _as("crop_left")),
    "sdxl_refiner_low_aesthetic_score": Option(2.5, _as("negative_aesthetic_score")),
    "sdxl_refiner_high_aesthetic_score": Option(6.0, _as("aesthetic_score")),
    "img2img_color_correction": Option(False, _as("color_correction")),
    "img2img_fix_steps": Option(False, _as("exact_steps")),
    "img2img_background_color": Option("#ffffff", _as("background_color")),
    "img2img_extra_noise": Option(0.0, _as("extra_noise")),
    "initial_noise_multiplier": Option(1.0, _as("initial_noise_multiplier")),
    "inpainting_mask_weight": Option(1.0, _as("inpainting_mask_weight")),
    "token_merging_ratio": Option(0.0, _merging("ratio")),
    "token_merging_ratio_img2img": Option(0.0),
    "token_merging_ratio_hr": Option(0.0, _merging("hr_ratio")),
    "hypertile_enable_unet": Option(False, lambda value: {"hypertile": {} if value else None}),
    "hypertile_max_depth_unet": Option(3, _tile("max_depth")),
    "hypertile_max_tile_unet": Option(256, _tile("tile_size")),
    "hypertile_swap_size_unet": Option(3, _tile("swap_size")),
    # the form of answers
    "samples_format": Option("png"),
    "jpeg_quality": Option(80),
    "webp_lossless": Option(False),
    "enable_pnginfo": Option(True),
    "return_grid": Option(True),
    "control_net_no_detectmap": Option(False),
    "live_previews_enable": Option(True),
    # faces, upscalers, captions
    "face_restoration": Option(False),
    "face_restoration_model": Option("CodeFormer"),
    "code_former_weight": Option(0.5),
    "ESRGAN_tile": Option(192),
    "interrogate_clip_num_beams": Option(1),
    "interrogate_clip_min_length": Option(24),
    "interrogate_clip_max_length": Option(48),
    # set where the server is started
    "api_enable_requests": Option(False, fixed=True),
    "api_forbid_local_requests": Option(True, fixed=True),
    "api_useragent": Option("", fixed=True),
    # remembered alone
    **{
        name: Option(default, acts=False)
        for name, default in {
            "return_mask": False, "samples_save": True, "samples_filename_pattern": "", "save_images_add_number": True, "grid_save": True,
            "grid_format": "png", "grid_extended_filename": False, "grid_only_if_multiple": True,
            "grid_prevent_empty_spots": False, "n_rows": -1, "save_txt": False, "export_for_4chan": True,
            "img_max_size_mp": 200, "save_selected_only": True, "save_init_img": False, "save_mask": False,
            "save_mask_composite": False, "save_incomplete_images": False, "outdir_samples": "",
            "outdir_txt2img_samples": "", "outdir_img2img_samples": "", "outdir_extras_samples": "", "outdir_grids": "",
            "outdir_txt2img_grids": "", "outdir_img2img_grids": "", "outdir_save": "", "outdir_init_images": "",
            "save_to_dirs": True, "grid_save_to_dirs": True, "directories_filename_pattern": "[date]",
            "ESRGAN_tile_overlap": 8, "realesrgan_enabled_models": [], "upscaler_for_img2img": None,
            "face_restoration_unload": False, "sd_checkpoints_limit": 1, "sd_checkpoints_keep_in_cpu": True,
            "sd_checkpoint_cache": 0, "sd_vae_checkpoint_cache": 0, "sd_vae_overrides_per_model_preferences": True,
            "sd_vae_as_default": True, "auto_vae_precision": True, "enable_quantization": False,
            "enable_batch_seeds": True, "comma_padding_backtrack": 20, "upcast_attn": False, "fp8_storage": "Disable",
            "cache_fp16_weight": False, "cross_attention_optimization": "Automatic", "sd_hypernetwork": "None",
            "sd_lora": "None", "lora_preferred_name": "Alias from file", "add_model_hash_to_info": True,
            "add_model_name_to_info": True, "add_version_to_infotext": True, "add_vae_name_to_info": True,
            "add_vae_hash_to_info": True, "use_old_emphasis_implementation": False,
            "use_old_karras_scheduler_sigmas": False, "use_old_scheduling": False, "hires_fix_use_firstpass_conds": False,
            "hires_fix_refiner_pass": "second pass", "no_dpmpp_sde_batch_determinism": False,
            "sgm_noise_multiplier": False, "uni_pc_variant": "bh1", "uni_pc_skip_type": "time_uniform",
            "uni_pc_order": 3, "uni_pc_lower_order_final": True, "ddim_discretize": "uniform", "sd_noise_schedule": "Default",
            "pad_cond_uncond": False, "pad_cond_uncond_v0": False, "persistent_cond_cache": True, "batch_cond_uncond": True,
            "interrogate_keep_models_in_memory": False, "interrogate_return_ranks": False,
            "interrogate_clip_dict_limit": 1500, "interrogate_clip_skip_categories": [],
            "interrogate_deepbooru_score_threshold": 0.5, "deepbooru_sort_alpha": True, "deepbooru_use_spaces": True,
            "deepbooru_escape": True, "deepbooru_filter_tags": "", "show_progress_every_n_steps": 10,
            "show_progress_type": "Approx NN", "show_progress_grid": True, "live_preview_content": "Prompt",
            "live_preview_refresh_period": 1000, "live_previews_image_format": "png", "show_progressbar": True,
            "hide_samplers": [], "quicksettings_list": ["sd_model_checkpoint"], "localization": "None",
            "do_not_show_images": False, "send_seed": True, "send_size": True, "disable_all_extensions": "none",
            "disabled_extensions": [], "control_net_unit_count": 3, "control_net_models_path": "",
            "control_net_model_cache_size": 1, "control_net_detectmap_autosaving": False,
        }.items()
    },
}  # fmt: skip
"""By their names, with AUTOMATIC1111's defaults."""


def check(values: Mapping[str, Any], current: Mapping[str, Any]) -> Fields:
    """`values` with each of its option's type. Raises DanqingError: an unknown option, a wrong type, one that is fixed."""
    checked: Fields = {}
    for name, value in values.items():
        option = OPTIONS.get(name)
        if option is None:
            like = nearest(name, OPTIONS)
            hint = f"; did you mean {' or '.join(like)}?" if like else "; /sdapi/v1/options lists those that are known"
            raise DanqingError(f"option {quoted(name)} is unknown{hint}")
        if option.fixed and value != current.get(name, option.default):
            raise DanqingError(f"{name}: is said where the server is started, and never by a request")
        checked[name] = _typed(name, value, option.default)
    return checked


def without_effect(values: Mapping[str, Any]) -> list[str]:
    """A line for each option that was set and is only remembered."""
    idle = (name for name, value in values.items() if not OPTIONS[name].acts and value != OPTIONS[name].default)
    return [f"option {name} has no effect here" for name in idle]


def plain_json(value: Any) -> bool:
    """Whether every reader of JSON takes it: no NaN or infinity, text that is Unicode, no endless nesting."""
    try:
        if isinstance(value, BaseModel):
            value = value.model_dump()
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError):
        return False
    return _shallow(value, 64)


def _shallow(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return levels > 0 and all(_shallow(each, levels - 1) for each in inner)


def _typed(name: str, value: Any, default: Any) -> Any:
    if not plain_json(value):
        raise DanqingError(f"{name}: numbers should be finite, and text valid Unicode")
    kind = type(default)
    if default is None or (value is None and isinstance(default, str)):
        fits = value is None or isinstance(value, str)
    elif kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    elif kind is int:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and value == int(value)
        value = int(value) if fits else value
    else:
        fits = isinstance(value, kind)
    if not fits:
        wanted = {bool: "true or false", int: "a whole number", float: "a number", list: "a list"}.get(kind, "text")
        raise DanqingError(f"{name}: should be {wanted}, but it is {quoted(value)}")
    return value


def request_fields(values: Mapping[str, Any], known: Mapping[str, object]) -> Fields:
    """The fields of a request (those in `known`) that options say, where they are not at their defaults."""
    fields: Fields = {}
    for name, value in values.items():
        option = OPTIONS[name]
        if option.fields is None or value == option.default:
            continue
        for field, what in option.fields(value).items():
            if field not in known or what is None:
                continue
            if isinstance(what, dict):  # settings of one field, said by several options
                fields[field] = {**fields.get(field, {}), **what}
            else:
                fields[field] = what
    if not values.get("hypertile_enable_unet", False):
        fields.pop("hypertile", None)
    ratio = values.get("token_merging_ratio_img2img", 0) if "image" in known else 0
    if ratio and "token_merging" in known:
        fields["token_merging"] = {"ratio": ratio}
    if fields.get("token_merging", {"ratio": 1}).get("ratio") is None:
        fields["token_merging"]["ratio"] = 0
    return fields


class Options:
    """The options of a server that were set, kept in its database; threads may share it."""

    def __init__(self, store: Store, fixed: Mapping[str, Any] | None = None) -> None:
        """`fixed` are those said where the server was started."""
        self._store = store
        self._lock = threading.Lock()
        self._fixed = dict(fixed or {})

    def all(self) -> Fields:
        """Every option with its value."""
        return {name: option.default for name, option in OPTIONS.items()} | self._stored() | self._fixed

    def set(self, values: Mapping[str, Any]) -> None:
        """Set options for all later requests. Raises DanqingError, and sets none then."""
        checked = check(values, self._fixed)
        with self._lock:
            changed = {name: value for name, value in checked.items() if not OPTIONS[name].fixed}
            self._store.set_options({_KEY: {**self._stored(), **changed}})

    def with_overrides(self, overrides: Mapping[str, Any] | None) -> Fields:
        """Every option, some of them otherwise for one request. Raises DanqingError as `set` does."""
        return self.all() | check(overrides or {}, self._fixed)

    def _stored(self) -> Fields:
        stored: Fields = self._store.options().get(_KEY) or {}
        return {name: value for name, value in stored.items() if name in OPTIONS}
