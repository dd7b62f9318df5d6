"""What the routes of AUTOMATIC1111's API are sent: names and types of its modules/api/models.py and processing.py.

What a body leaves out is None wherever Danqing has a better default than 512x512 pixels, 50 steps and CFG 7: the model's
own. Fields that AUTOMATIC1111 does not know are kept in `model_extra`, so that the answer can name them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Encoded = Annotated[str, Field(description="a picture: base64, or a data:image/...;base64, URL")]


class Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


class Painted(Body):
    """What txt2img and img2img share."""

    prompt: str | None = ""
    negative_prompt: str | None = ""
    styles: list[str] | None = None
    seed: int | None = -1
    subseed: int | None = -1
    subseed_strength: Number | None = 0
    seed_resize_from_h: int | None = -1
    seed_resize_from_w: int | None = -1
    seed_enable_extras: bool | None = True
    sampler_name: str | None = Field(None, description="a label of /sdapi/v1/samplers, or any alias")
    sampler_index: str | None = Field(None, description="an old name of sampler_name, used where that is empty")
    scheduler: str | None = Field(None, description="a name or label of /sdapi/v1/schedulers")
    batch_size: int | None = 1
    n_iter: int | None = 1
    steps: int | None = Field(None, description="unset is the model's default")
    cfg_scale: Number | None = Field(None, description="unset is the model's default")
    width: int | None = Field(None, description="unset is the model's default, or the picture's")
    height: int | None = Field(None, description="see width")
    restore_faces: bool | None = None
    tiling: bool | None = None
    do_not_save_samples: bool | None = False
    do_not_save_grid: bool | None = False
    eta: Number | None = None
    s_min_uncond: Number | None = None
    s_churn: Number | None = None
    s_tmax: Number | None = None
    s_tmin: Number | None = None
    s_noise: Number | None = None
    override_settings: dict[str, Any] | None = None
    override_settings_restore_afterwards: bool | None = True
    refiner_checkpoint: str | None = None
    refiner_switch_at: Number | None = None
    disable_extra_networks: bool | None = False
    firstpass_image: Encoded | None = Field(None, description="no counterpart: it is left out")
    comments: dict[str, Any] | None = None
    script_name: str | None = None
    script_args: list[Any] | None = Field(default_factory=list)
    send_images: bool = True
    save_images: bool = False
    alwayson_scripts: dict[str, Any] | None = Field(default_factory=dict)
    force_task_id: str | None = None
    infotext: str | None = Field(None, description="fills the fields that are not given")


class Txt2Img(Painted):
    """The body of txt2img."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "a red apple", "steps": 20, "width": 128, "height": 128, "seed": 7}]}
    )

    enable_hr: bool | None = False
    denoising_strength: Number | None = None
    firstphase_width: int | None = 0
    firstphase_height: int | None = 0
    hr_scale: Number | None = 2.0
    hr_upscaler: str | None = None
    hr_second_pass_steps: int | None = 0
    hr_resize_x: int | None = 0
    hr_resize_y: int | None = 0
    hr_checkpoint_name: str | None = None
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_prompt: str | None = ""
    hr_negative_prompt: str | None = ""


class Img2Img(Painted):
    """The body of img2img; with a mask it paints anew what is white in it."""

    init_images: list[Encoded] | None = None
    resize_mode: int | None = Field(
        0, description="0 just resize, 1 crop and resize, 2 resize and fill, 3 latent upscale"
    )
    denoising_strength: Number | None = 0.75
    image_cfg_scale: Number | None = None
    mask: Encoded | None = None
    mask_blur_x: int | None = 4
    mask_blur_y: int | None = 4
    mask_blur: int | None = None
    mask_round: bool | None = True
    inpainting_fill: int | None = Field(0, description="0 fill, 1 original, 2 latent noise, 3 latent nothing")
    inpaint_full_res: bool | None = True
    inpaint_full_res_padding: int | None = 0
    inpainting_mask_invert: int | None = 0
    initial_noise_multiplier: Number | None = None
    latent_mask: Encoded | None = None
    include_init_images: bool = False


class Extras(Body):
    """What both routes of extras share."""

    resize_mode: Literal[0, 1] = Field(0, description="0 by upscaling_resize, 1 to upscaling_resize_w x _h")
    show_extras_results: bool = True
    gfpgan_visibility: Share = 0
    codeformer_visibility: Share = 0
    codeformer_weight: Share = 0
    upscaling_resize: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2
    upscaling_resize_w: Annotated[int, Field(ge=1)] = 512
    upscaling_resize_h: Annotated[int, Field(ge=1)] = 512
    upscaling_crop: bool = True
    upscaler_1: str = "None"
    upscaler_2: str = "None"
    extras_upscaler_2_visibility: Share = 0
    upscale_first: bool = False


class ExtrasSingle(Extras):
    image: Encoded = ""


class FileData(Body):
    data: Encoded
    name: str


class ExtrasBatch(Extras):
    imageList: list[FileData]


class PngInfo(Body):
    image: Encoded


class Interrogate(Body):
    image: Encoded | None = ""
    model: str = "clip"


class Detect(Body):
    """The body of /controlnet/detect; webuiapi calls the pictures controlnet_images."""

    controlnet_module: str = "none"
    controlnet_input_images: list[Encoded] = Field(default_factory=list)
    controlnet_images: list[Encoded] = Field(default_factory=list)
    controlnet_processor_res: int = -1
    controlnet_threshold_a: Number = -1
    controlnet_threshold_b: Number = -1
    controlnet_masks: list[Encoded] = Field(default_factory=list)
    low_vram: bool = False


class PosePerson(BaseModel):
    """A person as OpenPose writes one: X, Y and a confidence for each point; a point below 1 is not there."""

    pose_keypoints_2d: list[Number] | None = Field(None, max_length=54)
    hand_right_keypoints_2d: list[Number] | None = Field(None, max_length=63)
    hand_left_keypoints_2d: list[Number] | None = Field(None, max_length=63)
    face_keypoints_2d: list[Number] | None = Field(None, max_length=300)


class Pose(BaseModel):
    """A picture of people."""

    people: list[PosePerson] = Field(max_length=100)
    canvas_width: Annotated[int, Field(ge=1, le=8192)]
    canvas_height: Annotated[int, Field(ge=1, le=8192)]
