"""What /openapi.json says besides types: a line for each route, a body to send, and what is answered to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

JOB = "9b94dac055506c5f49c755b21a2f9079"
IMAGE = "abecde7edd097306d54733792260867f"
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJAAAAUElEQVR42u3PQREAAAQAMATRP4pYUni42xospzs+q3hOQEBAQEBAQEBAQEBA"
    "QEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBA4N4CQ3UBhF8gRisAAAAASUVORK5CYII="
)
"""A picture that may be sent as it is: 64x64 pixels, red."""
_SHORT = "iVBORw0KGgoAAAANSUhEUgAA..."


@dataclass(frozen=True)
class Example:
    """Of one route."""

    summary: str | None = None
    """None leaves the route's own."""
    answer: Any = None
    body: Any = None


_job = {
    "id": JOB, "kind": "txt2img", "request": {"prompt": "a red apple", "steps": 20, "seed": 7}, "total": 1,
    "origin": "api", "state": "done", "priority": 0, "created": 1795333578.01, "started": 1795333578.02,
    "ended": 1795333579.64, "error": None, "notes": [], "skipped": [],
}  # fmt: skip
_infotext = (
    "a red apple\nSteps: 20, Sampler: DPM++ 2M, Schedule type: SGM Uniform, CFG scale: 3, Seed: 7, Size: 128x128"
)
_picture = {
    "id": IMAGE, "job": JOB, "index": 0, "infotext": _infotext, "prompt": "a red apple", "negative_prompt": "",
    "model": "danqing", "sampler": "DPM++ 2M", "seed": 7, "kind": "txt2img", "width": 128, "height": 128,
    "created": 1795333579.63, "rating": 4, "favourite": False, "tags": ["fruit"], "deleted": None,
    "url": f"/api/v1/pictures/{IMAGE}/file", "thumbnail": f"/api/v1/pictures/{IMAGE}/thumbnail",
}  # fmt: skip
_states = {"queued": 2, "running": 1, "done": 40, "failed": 0, "cancelled": 1, "interrupted": 0}
_queue = {"paused": False, "painting": JOB, "jobs": _states}
_info = {"prompt": "a red apple", "all_prompts": ["a red apple"], "seed": 7, "all_seeds": [7], "infotexts": [_infotext]}
_painting = {
    "images": [_SHORT],
    "parameters": {"prompt": "a red apple", "seed": 7, "steps": 20, "width": 128, "height": 128},
    "info": json.dumps(_info),
}
_over = {
    "init_images": [PNG], "prompt": "a green apple", "denoising_strength": 0.6, "steps": 20, "width": 128,
    "height": 128, "seed": 7,
}  # fmt: skip
_text = {"prompt": "a red apple", "steps": 20, "width": 128, "height": 128, "seed": 7}
_state = {
    "skipped": False, "interrupted": False, "stopping_generation": False, "job": f"txt2img {JOB}", "job_count": 1,
    "job_timestamp": "20261122074618", "job_no": 0, "sampling_step": 10, "sampling_steps": 20,
}  # fmt: skip
_pose = {
    "people": [{"pose_keypoints_2d": [64.0, 20.0, 1.0, 64.0, 40.0, 1.0, *[0.0] * 48]}],
    "canvas_width": 128,
    "canvas_height": 128,
}
_image_answer = {
    "created": 1795333578,
    "data": [
        {
            "revised_prompt": "a red apple",
            "b64_json": _SHORT,
            "url": f"http://127.0.0.1:7860/api/v1/pictures/{IMAGE}/file",
        }
    ],
    "output_format": "png",
    "size": "128x128",
}

EXAMPLES: Mapping[str, Example] = {
    "GET /healthz": Example(answer={"status": "ok"}),
    # Danqing's own
    "POST /api/v1/jobs": Example(answer={**_job, "state": "queued", "started": None, "ended": None}),
    "GET /api/v1/jobs": Example(answer=[_job]),
    "GET /api/v1/jobs/{job}": Example(answer=_job),
    "DELETE /api/v1/jobs/{job}": Example(answer={**_job, "state": "cancelled"}),
    "PATCH /api/v1/jobs/{job}": Example(body={"priority": 10}, answer={**_job, "state": "queued", "priority": 10}),
    "POST /api/v1/jobs/{job}/move": Example(body={"before": None}, answer={**_job, "state": "queued"}),
    "GET /api/v1/jobs/{job}/pictures": Example(answer=[_picture]),
    "GET /api/v1/jobs/{job}/progress": Example(
        answer={"job": JOB, "share": 0.5, "step": 10, "steps": 20, "picture": 0, "pictures": 1, "left": 0.8,
                "text": "painting"}
    ),
    "GET /api/v1/queue": Example(answer=_queue),
    "POST /api/v1/queue/pause": Example(answer={**_queue, "paused": True}),
    "POST /api/v1/queue/resume": Example(answer=_queue),
    "GET /api/v1/pictures": Example(answer={"total": 1, "pictures": [_picture]}),
    "GET /api/v1/pictures/{picture}": Example(answer=_picture),
    "PATCH /api/v1/pictures/{picture}": Example(body={"rating": 4, "tags": ["fruit"]}, answer=_picture),
    "DELETE /api/v1/pictures/{picture}": Example(answer={**_picture, "deleted": 1795333600.0}),
    "POST /api/v1/pictures/{picture}/restore": Example(answer=_picture),
    "GET /api/v1/pictures/{picture}/request": Example(
        answer={"tool": "Danqing", "kind": "txt2img", "request": {"prompt": "a red apple", "steps": 20, "seed": 7}}
    ),
    "GET /api/v1/pictures/{picture}/differences/{other}": Example(answer={"seed": [7, 8], "steps": [20, 30]}),
    "GET /api/v1/tags": Example(answer={"fruit": 1}),
    "POST /api/v1/pictures/import": Example(body={"folder": ""}, answer={"added": 12, "known": 3, "failed": []}),
    "GET /api/v1/models": Example(
        answer=[{"name": "danqing", "kind": "checkpoint", "family": "danqing", "size": 47383609, "source": "Danqing",
                 "problem": ""}]
    ),
    "GET /api/v1/adapters": Example(
        answer=[{"name": "bird.safetensors", "kind": "lora", "ranks": [4], "words": ["heron"], "problem": ""}]
    ),
    "GET /api/v1/models/loaded": Example(answer={"models": ["danqing"], "bytes": 47383609, "budget": None}),
    "GET /api/v1/samplers": Example(answer={"samplers": ["DPM++ 2M"], "schedulers": ["Automatic"]}),
    "GET /api/v1/version": Example(answer={"version": "0.1.0"}),
    # AUTOMATIC1111's
    "POST /sdapi/v1/txt2img": Example("Paint pictures from a text", _painting, _text),
    "POST /sdapi/v1/img2img": Example("Paint a picture over, or what a mask covers", _painting, _over),
    "POST /sdapi/v1/extra-single-image": Example(
        "Enlarge a picture, restore its faces",
        {"html_info": "<p>Postprocess upscale by: 2</p>", "image": _SHORT},
        {"image": PNG, "upscaler_1": "Lanczos", "upscaling_resize": 2},
    ),
    "POST /sdapi/v1/extra-batch-images": Example(
        "Enlarge several pictures alike",
        {"html_info": "<p>Postprocess upscale by: 2</p>", "images": [_SHORT]},
        {"imageList": [{"data": PNG, "name": "apple.png"}], "upscaler_1": "Lanczos", "upscaling_resize": 2},
    ),
    "POST /sdapi/v1/png-info": Example(
        "What a picture says of itself",
        {"info": _infotext, "items": {}, "parameters": {"Prompt": "a red apple", "Steps": "20", "Seed": "7"}},
        {"image": PNG},
    ),
    "POST /sdapi/v1/interrogate": Example(
        "What a picture shows, in words (extra [caption])",
        {"caption": "a red square"},
        {"image": PNG, "model": "clip"},
    ),
    "GET /sdapi/v1/progress": Example(
        "How far the job is that is painted, with a preview",
        {"progress": 0.5, "eta_relative": 0.8, "state": _state, "current_image": _SHORT, "textinfo": "painting"},
    ),
    "POST /sdapi/v1/interrupt": Example("End what is painted; what there is stays", {}),
    "POST /sdapi/v1/skip": Example("Leave the present batch out"),
    "GET /sdapi/v1/options": Example(
        "All settings", {"sd_model_checkpoint": "danqing", "CLIP_stop_at_last_layers": 1, "samples_format": "png"}
    ),
    "POST /sdapi/v1/options": Example(
        "Change settings, for everybody and for good", None, {"CLIP_stop_at_last_layers": 1}
    ),
    "POST /sdapi/v1/unload-checkpoint": Example("Let the models in memory go", {}),
    "POST /sdapi/v1/reload-checkpoint": Example("Load the chosen checkpoint now", {}),
    "GET /sdapi/v1/cmd-flags": Example(
        "Command-line flags, as far as they say something of this server",
        {"data_dir": "/home/anna/studio", "ckpt": None, "listen": False, "port": 7860, "api": True, "nowebui": False},
    ),
    "GET /sdapi/v1/samplers": Example(
        "Samplers",
        [{"name": "DPM++ 2M", "aliases": ["k_dpmpp_2m", "dpmpp_2m"], "options": {"scheduler": "karras"}}],
    ),
    "GET /sdapi/v1/schedulers": Example(
        "Noise schedules",
        [{"name": "karras", "label": "Karras", "aliases": None, "default_rho": 7.0, "need_inner_model": False}],
    ),
    "GET /sdapi/v1/upscalers": Example(
        "Ways to enlarge pictures",
        [{"name": "Lanczos", "model_name": None, "model_path": None, "model_url": None, "scale": 4.0}],
    ),
    "GET /sdapi/v1/latent-upscale-modes": Example("Ways to enlarge latents", [{"name": "Latent"}]),
    "GET /sdapi/v1/sd-models": Example(
        "Checkpoints",
        [{"title": "danqing", "model_name": "danqing", "hash": None, "sha256": None,
          "filename": "/models/danqing.safetensors", "config": None}],
    ),
    "GET /sdapi/v1/sd-vae": Example("Autoencoders", [{"model_name": "vae.pt", "filename": "/models/VAE/vae.pt"}]),
    "GET /sdapi/v1/hypernetworks": Example("Hypernetworks", [{"name": "ink", "path": "/models/hypernetworks/ink.pt"}]),
    "GET /sdapi/v1/face-restorers": Example(
        "Face restorers", [{"name": "CodeFormer", "cmd_dir": "/models/Codeformer"}]
    ),
    "GET /sdapi/v1/realesrgan-models": Example(
        "Real-ESRGAN's upscalers", [{"name": "RealESRGAN_x4plus", "path": "/models/RealESRGAN_x4plus.pth", "scale": 4}]
    ),
    "GET /sdapi/v1/prompt-styles": Example(
        "Styles", [{"name": "ink", "prompt": "{prompt}, ink", "negative_prompt": "photo"}]
    ),
    "GET /sdapi/v1/artist-categories": Example("Empty, as in AUTOMATIC1111 by now", []),
    "GET /sdapi/v1/embeddings": Example(
        "Textual inversion embeddings",
        {"loaded": {"bad-hands": {"step": 100, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": 768,
                                  "vectors": 4}}, "skipped": {}},
    ),
    "GET /sdapi/v1/loras": Example(
        "LoRAs, with what their trainers wrote into them",
        [{"name": "bird", "alias": "bird", "path": "/models/Lora/bird.safetensors", "metadata": {}}],
    ),
    "GET /sdapi/v1/memory": Example(
        "Memory of the process and the GPU, in bytes",
        {"ram": {"free": 22964801536, "used": 331902976, "total": 25276502016}, "cuda": {"error": "unavailable"}},
    ),
    "GET /sdapi/v1/scripts": Example(
        "Scripts by their names", {"txt2img": ["controlnet", "x/y/z plot"], "img2img": ["controlnet", "loopback"]}
    ),
    "GET /sdapi/v1/script-info": Example(
        "Scripts with their arguments",
        [{"name": "refiner", "is_alwayson": True, "is_img2img": False,
          "args": [{"label": "Switch at", "value": 0.8, "minimum": 0.01, "maximum": 1.0, "step": 0.01,
                    "choices": None}]}],
    ),
    "GET /sdapi/v1/extensions": Example("Empty: there are none", []),
    "POST /sdapi/v1/refresh-checkpoints": Example("Does nothing"),
    "POST /sdapi/v1/refresh-vae": Example("Does nothing"),
    "POST /sdapi/v1/refresh-loras": Example("Does nothing"),
    "POST /sdapi/v1/refresh-embeddings": Example("Does nothing"),
    # its extensions
    "GET /controlnet/version": Example("The version of ControlNet's interface", {"version": 3}),
    "GET /controlnet/model_list": Example("ControlNets and adapters", {"model_list": ["control_canny [0123abcd]"]}),
    "GET /controlnet/module_list": Example(
        "Preprocessors, with the numbers that they take",
        {"module_list": ["none", "canny"], "module_detail": {"none": {"model_free": False, "sliders": []}}},
    ),
    "GET /controlnet/control_types": Example(
        "Preprocessors and models that go together",
        {"control_types": {"Canny": {"module_list": ["none", "canny"], "model_list": ["None"],
                                     "default_option": "canny", "default_model": "None"}}},
    ),
    "GET /controlnet/settings": Example("How many units are shown", {"control_net_unit_count": 3}),
    "POST /controlnet/detect": Example(
        "What a preprocessor makes of pictures; OpenPose's answer `poses`, too",
        {"info": "Success", "images": [_SHORT]},
        {"controlnet_module": "canny", "controlnet_input_images": [PNG], "controlnet_processor_res": 64},
    ),
    "POST /controlnet/render_openpose_json": Example(
        "Draw people as OpenPose's ControlNets are shown them", {"images": [_SHORT], "info": "Success"}, [_pose]
    ),
    "POST /controlnet/txt2img": Example("txt2img with units of ControlNet, in its old form", _painting, _text),
    "POST /controlnet/img2img": Example("img2img with units of ControlNet, in its old form", _painting, _over),
    "GET /promptgen/list_models": Example("Writers of prompts", {"available_models": ["promptgen-lexart"]}),
    "POST /promptgen/generate": Example(
        "Prompts that go on from a text (extra [caption])",
        {"prompts": ["a castle on a hill, morning light"]},
        {"model_name": "promptgen-lexart", "text": "a castle", "batch_size": 1},
    ),
    "POST /instruct-pix2pix/img2img": Example(
        "Change a picture as a text says",
        _painting,
        {"init_images": [PNG], "prompt": "make it green", "steps": 20, "output_image_width": 128},
    ),
    "POST /internal/progress": Example(
        "How far a task is that was named by force_task_id",
        {"active": True, "queued": False, "completed": False, "progress": 0.5, "eta": 0.8,
         "live_preview": f"data:image/png;base64,{_SHORT}", "id_live_preview": 10, "textinfo": "painting"},
        {"id_task": "task(1)", "id_live_preview": -1},
    ),
    "GET /internal/pending-tasks": Example("Tasks that wait", {"size": 1, "tasks": ["task(2)"]}),
    "GET /internal/ping": Example("Whether it answers", {}),
    # OpenAI's
    "POST /v1/images/generations": Example("Paint pictures from a text", _image_answer),
    "POST /v1/images/edits": Example(
        "Paint a picture over, or where it is transparent", _image_answer, {"image": "@apple.png", "prompt": "in winter"}
    ),
}  # fmt: skip
"""By method and path."""


def described(document: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI document with the lines and examples of its routes, put into it."""
    for route, example in EXAMPLES.items():
        method, _, path = route.partition(" ")
        operation = document["paths"].get(path, {}).get(method.lower())
        if operation is None:  # an API that is switched off
            continue
        if example.summary is not None:
            operation["summary"] = example.summary
        for content in operation.get("requestBody", {}).get("content", {}).values():
            if example.body is not None:
                content["example"] = example.body
        for status, answer in operation["responses"].items():
            if status.startswith("2") and example.answer is not None:
                answer["content"]["application/json"]["example"] = example.answer
    return document
