"""Scripts and ControlNet over AUTOMATIC1111's API, and what its lists tell of a library."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
import webuiapi
from PIL import Image
from safetensors.torch import save_file

from danqing.adapters.pose import Person, Posing
from danqing.library.settings import load_settings
from danqing.serve import a1111_controlnet
from danqing.serve.a1111 import router
from danqing.serve.cache import ModelCache
from danqing.serve.engine import Engine
from danqing.serve.settings import ServeSettings
from danqing.serve.store import Store
from served import served
from studio import FakePainter


class Site:
    def __init__(self, engine: Engine, painter: FakePainter, port: int, folder: Path) -> None:
        self.engine, self.painter, self.folder = engine, painter, folder
        self.base = f"http://127.0.0.1:{port}"
        self.client: Any = webuiapi.WebUIApi(port=port)

    def post(self, path: str, body: Any) -> requests.Response:
        return requests.post(self.base + path, json=body, timeout=20)

    def get(self, path: str) -> Any:
        return requests.get(self.base + path, timeout=20).json()

    def last(self) -> dict[str, Any]:
        return dict(self.engine.jobs(("done",), limit=1)[0].request)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A studio with a library: files of all kinds that hold next to nothing."""
    folder = tmp_path_factory.mktemp("library")
    models = folder / "webui" / "models"
    small = {"x": torch.zeros(1)}
    files = {
        "Stable-diffusion/foo.safetensors": small,
        "Stable-diffusion/sub/Bar.safetensors": small,
        "VAE/soft.safetensors": small,
        "hypernetworks/hyper.safetensors": small,
        "ControlNet/control_canny.safetensors": small,
        "ControlNet/ip-adapter_sd15.safetensors": small,
        "RealESRGAN/RealESRGAN_x4plus.pth": small,
        "GFPGAN/GFPGANv1.4.pth": small,
    }
    for name, tensors in files.items():
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, models / name)
    (models / "Lora").mkdir()
    save_file(small, models / "Lora" / "ink.safetensors", {"ss_output_name": "inky", "ss_network_dim": "4"})
    (folder / "webui" / "embeddings").mkdir()
    save_file({"emb_params": torch.zeros(3, 768)}, folder / "webui" / "embeddings" / "word.safetensors")
    (folder / "webui" / "adetailer").mkdir()
    (folder / "webui" / "adetailer" / "face_yolov8n.onnx").write_bytes(b"onnx")
    (folder / "webui" / "styles.csv").write_text("name,prompt,negative_prompt\noil,oil painting of {prompt},photo\n")
    data = folder / "data"
    data.mkdir()
    (data / "config.toml").write_text(f"folders = [{str(folder / 'webui')!r}]\nhub_cache = {str(folder / 'hub')!r}\n")
    settings = load_settings(data / "config.toml", data)
    painter = FakePainter(data)
    engine = Engine(Store(f"sqlite:///{data / 'studio.db'}"), data, ModelCache(settings=settings), painter)
    engine.start()
    with served(router(engine, ServeSettings())) as port:
        yield Site(engine, painter, port, folder)
    engine.close()


def picture(size: tuple[int, int] = (64, 64)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    image.paste((0, 0, 0), (16, 16, 48, 48))
    return image


def encoded(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


# --- the library ------------------------------------------------------------------------------------------------------


def test_lists_tell_what_is_in_the_library(site: Site) -> None:
    models = {row["title"]: row for row in site.client.get_sd_models()}
    assert set(models) == {"danqing", "foo.safetensors", "sub/Bar.safetensors"}
    assert models["foo.safetensors"]["model_name"] == "foo"
    assert models["foo.safetensors"]["filename"].endswith("models/Stable-diffusion/foo.safetensors")
    assert [row["model_name"] for row in site.client.get_sd_vae()] == ["soft.safetensors"]
    assert [row["name"] for row in site.client.get_hypernetworks()] == ["hyper"]
    lora = site.client.get_loras()[0]
    assert (lora["name"], lora["alias"], lora["metadata"]["ss_network_dim"]) == ("ink", "inky", "4")
    assert site.client.get_embeddings()["loaded"]["word"]["vectors"] == 3
    upscalers = {row["name"]: row for row in site.client.get_upscalers()}
    assert upscalers["R-ESRGAN 4x+"]["model_name"] == "RealESRGAN_x4plus.pth"
    assert site.client.get_realesrgan_models()[0]["scale"] == 4
    assert [row["name"] for row in site.client.get_face_restorers()] == ["GFPGANv1.4"]
    assert site.client.get_prompt_styles() == [
        {"name": "oil", "prompt": "oil painting of {prompt}", "negative_prompt": "photo"}
    ]


def test_a_checkpoint_is_switched_by_its_title_in_any_case(site: Site) -> None:
    site.client.util_set_model("bar")
    assert site.client.util_get_current_model() == "sub/Bar.safetensors"
    site.client.txt2img(prompt="a")
    assert site.last()["model"] == "sub/Bar.safetensors"
    site.client.txt2img(prompt="a", override_settings={"sd_model_checkpoint": "foo"})
    assert site.last()["model"] == "foo"
    site.client.set_options({"sd_model_checkpoint": "danqing"})
    assert site.client.util_get_current_model() == "danqing"


def test_an_unknown_checkpoint_is_a_404(site: Site) -> None:
    answer = site.post("/sdapi/v1/options", {"sd_model_checkpoint": "fo.safetensors"})
    assert answer.status_code == 404
    assert "did you mean foo.safetensors" in answer.json()["detail"]
    for path in ("/etc/passwd", "/etc/no such file", "../../x", "x\0y"):
        answers = [
            site.post("/sdapi/v1/options", {"sd_model_checkpoint": path}),
            site.post("/sdapi/v1/txt2img", {"override_settings": {"sd_model_checkpoint": path}}),
        ]
        assert [answer.status_code for answer in answers] == [400, 400]
        assert all("model folders" in answer.json()["detail"] for answer in answers)
    answer = site.post("/sdapi/v1/txt2img", {"override_settings": {"sd_model_checkpoint": "fooo"}})
    assert answer.status_code == 404
    assert answer.json()["detail"].startswith("Model not found: ")


def test_styles_by_their_names(site: Site) -> None:
    info = site.client.txt2img(prompt="a cat", styles=["oil"]).info
    assert info["prompt"] == "oil painting of a cat"
    assert info["styles"] == ["oil"]


def test_labels_of_upscalers_mean_files(site: Site) -> None:
    site.client.extra_single_image(picture(), upscaler_1=webuiapi.Upscaler.ESRGAN_4x, gfpgan_visibility=0.5)
    request = site.last()
    assert (request["upscaler"], request["face_restorer"]) == ("RealESRGAN_x4plus", "GFPGANv1.4.pth")
    assert (request["face_visibility"], request["faces_first"]) == (0.5, True)
    site.client.txt2img(prompt="a", enable_hr=True, hr_upscaler=webuiapi.HiResUpscaler.ESRGAN_4x)
    assert site.last()["hr_upscaler"] == "RealESRGAN_x4plus"


def test_faces_are_restored_in_what_is_answered(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from danqing.serve import a1111_paint

    asked: list[Any] = []
    monkeypatch.setattr(a1111_paint, "load_face_detector", lambda name, settings: name)
    monkeypatch.setattr(a1111_paint, "load_restorer", lambda path, **options: asked.append((path.name, options)))
    monkeypatch.setattr(a1111_paint, "restore_faces", lambda image, detect, restore: (image.rotate(90), 1))
    overrides = {"face_restoration_model": "GFPGAN", "code_former_weight": 0.25}
    result = site.client.txt2img(prompt="a", width=64, height=128, restore_faces=True, override_settings=overrides)
    assert asked[0][0] == "GFPGANv1.4.pth"
    assert asked[0][1]["fidelity"] == 0.25
    assert result.image.info["parameters"].endswith(", Face restoration: GFPGAN")
    assert (result.info["restore_faces"], result.info["face_restoration_model"]) == (True, "GFPGAN")
    assert result.info["infotexts"][0] == result.image.info["parameters"]


def test_restored_faces_need_a_restorer(site: Site) -> None:
    answer = site.post("/sdapi/v1/txt2img", {"prompt": "a", "restore_faces": True})
    assert answer.status_code == 404
    assert "in the model folders there is GFPGANv1.4" in answer.json()["detail"]


# --- selectable scripts -----------------------------------------------------------------------------------------------


def test_x_y_z_plot_by_numbers_of_axes(site: Site) -> None:
    args = [4, "3,5", [], 6, "1-2", [], 0, "", [], True, True, False, False, False, False, False, 0, True]
    result = site.client.txt2img(
        prompt="a", seed=1, width=64, height=64, script_name="X/Y/Z plot", script_args=args, save_images=True
    )
    assert len(result.images) == 5
    assert result.image.width > 128
    info = result.info
    assert info["index_of_first_image"] == 1
    assert "X Type: Steps" in info["infotexts"][0]
    assert [json_steps(text) for text in info["infotexts"][1:]] == [3, 5, 3, 5]
    assert info["all_seeds"] == [1, 1, 1, 1]


def json_steps(infotext: str) -> int:
    return int(infotext.partition("Steps: ")[2].partition(",")[0])


def test_x_y_z_plot_by_choices_with_sub_grids_and_without_sub_images(site: Site) -> None:
    args = ["Sampler", "", ["Euler", "DPM++ 2M"], "Nothing", "", [], "Seed", "1,2", [], False, False, True]
    result = site.client.txt2img(prompt="a", width=64, height=64, script_name="x/y/z plot", script_args=args)
    assert [image.size for image in result.images] == [(256, 64), (128, 64), (128, 64)]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([99, "1"], "axis 99 is unknown"),
        (["Checkpoint name", "/etc/passwd"], "outside the model folders"),
        (["Styles", "/etc/x.csv:y"], "names a file"),
        (["Steps", "many"], "axis Steps"),
        (["UniPC Order", "1"], "unknown"),
        ([0] * 30, "takes 18 arguments, not 30"),
        ([4, "1,2", [], 0, "", [], 0, "", [], True, True, False, False, False, False, False, "wide"], "of other types"),
    ],
)
def test_plots_that_make_no_sense(site: Site, args: list[Any], words: str) -> None:
    answer = site.post("/sdapi/v1/txt2img", {"prompt": "a", "script_name": "X/Y/Z plot", "script_args": args})
    assert 400 <= answer.status_code < 500
    assert words in answer.json()["detail"]


def test_prompt_matrix(site: Site) -> None:
    result = site.client.txt2img(
        prompt="a cat|red|big", seed=2, width=64, height=64, script_name="Prompt matrix",
        script_args=[False, True, "positive", "space", 4],
    )  # fmt: skip
    assert len(result.images) == 5
    assert result.info["all_prompts"] == ["a cat", "a cat red", "a cat big", "a cat red big"]
    assert result.info["all_seeds"] == [2, 3, 4, 5]


def test_prompts_from_a_textbox(site: Site) -> None:
    lines = 'a cat\n--prompt "a dog" --steps 3 --negative_prompt bad'
    result = site.client.txt2img(
        prompt="oil", seed=2, script_name="Prompts from file or textbox", script_args=[True, False, "end", lines]
    )
    assert result.info["all_prompts"] == ["oil a cat", "oil a dog"]
    assert result.info["all_seeds"] == [2, 3]
    assert result.info["index_of_first_image"] == 0
    old = site.client.txt2img(script_name="Prompts from file or textbox", script_args=[False, True, "a\nb"])
    assert old.info["all_prompts"] == ["a", "b"]
    assert old.info["all_seeds"][0] == old.info["all_seeds"][1]


def test_a_line_of_prompts_names_no_path(site: Site) -> None:
    for line in ("--sd_model /etc/passwd", "--refiner_checkpoint ../../x", "--style /etc/x.csv:y"):
        body = {"script_name": "Prompts from file or textbox", "script_args": [False, False, "start", line]}
        answer = site.post("/sdapi/v1/txt2img", body)
        assert answer.status_code == 400
        assert "out" in answer.json()["detail"] or "names a file" in answer.json()["detail"]


def test_scripts_of_img2img(site: Site) -> None:
    site.client.img2img(images=[picture()], script_name="Loopback", script_args=[3, 0.2, "Aggressive", "None"])
    request = site.last()
    assert (request["loops"], request["final_denoising_strength"], request["denoising_curve"]) == (3, 0.2, "aggressive")
    site.client.img2img(images=[picture()], script_name="SD upscale", script_args=["", 32, 1, 2.5])
    assert site.last()["sd_upscale"] == {"scale": 2.5, "overlap": 32, "upscaler": "Lanczos"}
    site.client.img2img(
        images=[picture()], script_name="Poor man's outpainting", script_args=[64, 4, "original", ["left", "up"]]
    )
    job = site.engine.jobs(("done",), limit=1)[0]
    assert (job.kind, job.request["left"], job.request["up"]) == ("outpaint", 64, 64)
    assert job.request["inpainting_fill"] == "original"
    answer = site.post(
        "/sdapi/v1/img2img",
        {"init_images": [encoded(picture())], "script_name": "Outpainting mk2", "script_args": ["", 8]},
    )
    assert answer.status_code == 200
    assert site.post("/sdapi/v1/txt2img", {"script_name": "Loopback"}).status_code == 422


# --- always on --------------------------------------------------------------------------------------------------------


def test_adetailer_sag_and_others(site: Site) -> None:
    site.client.has_adetailer = False
    site.client.txt2img(
        prompt="a",
        adetailer=[webuiapi.ADetailer(ad_model="face_yolov8n.pt", ad_prompt="a face", ad_use_steps=True, ad_steps=7)],
        sag=webuiapi.Sag(scale=0.6, mask_threshold=1.2),
        alwayson_scripts={
            "Dynamic Prompts v2.17.1": {"args": [True, False]},
            "FreeU Integrated": {"args": [True, 1.1, 1.2, 0.9, 0.8]},
            "Dynamic Thresholding (CFG Scale Fix)": {"args": [True, 5, 0.99]},
        },
    )
    request = site.last()
    detailer = request["detailers"][0]
    assert detailer["detector"] == str(site.folder / "webui" / "adetailer" / "face_yolov8n.onnx")
    assert (detailer["prompt"], detailer["steps"]) == ("a face", 7)
    assert request["sag"] == {"scale": 0.6, "threshold": 1.2}
    assert request["dynamic"] == "random"
    assert (request["freeu"]["b2"], request["dynamic_thresholding"]["percentile"]) == (1.2, 0.99)


def test_scripts_that_are_switched_off_change_nothing(site: Site) -> None:
    off = {
        name: {"args": [False]}
        for name in ("ADetailer", "Self Attention Guidance", "Refiner", "Tiled Diffusion", "Hypertile")
    }
    site.client.txt2img(
        prompt="a", alwayson_scripts={**off, "ControlNet": {"args": [{"enabled": False, "model": "x"}]}}
    )
    assert not {"detailers", "sag", "refiner_checkpoint", "tiled_diffusion", "controls"} & site.last().keys()


def test_a_detector_is_one_of_the_model_folders(site: Site) -> None:
    body = {"alwayson_scripts": {"ADetailer": {"args": [{"ad_model": "/etc/passwd"}]}}}
    answer = site.post("/sdapi/v1/txt2img", body)
    assert answer.status_code == 422
    assert "no 'passwd.onnx'" in answer.json()["detail"]


# --- ControlNet -------------------------------------------------------------------------------------------------------


def test_webuiapi_steers_by_a_controlnet_and_sees_what_was_detected(site: Site) -> None:
    unit = webuiapi.ControlNetUnit(
        image=picture(),
        module="canny",
        model="control_canny",
        threshold_a=50,
        threshold_b=150,
        weight=0.8,
        control_mode=2,
    )
    result = site.client.txt2img(prompt="a", controlnet_units=[unit])
    asked = site.last()["controls"][0]
    assert (asked["model"], asked["module"], asked["weight"]) == ("control_canny", "canny", 0.8)
    assert (asked["threshold_a"], asked["threshold_b"], asked["processor_res"]) == (50, 150, 512)
    assert (asked["control_mode"], asked["resize_mode"]) == ("controlnet is more important", "resize and fill")
    assert len(result.images) == 2
    assert result.images[1].getextrema() == ((0, 255),) * 3
    assert len(result.info["infotexts"]) == 2
    quiet = site.client.txt2img(
        prompt="a", controlnet_units=[unit], override_settings={"control_net_no_detectmap": True}
    )
    assert len(quiet.images) == 1


def test_webuiapi_knows_that_controlnet_is_there_and_lets_go_of_its_units(site: Site) -> None:
    assert site.client.has_controlnet
    unit = webuiapi.ControlNetUnit(image=picture(), model="control_canny")
    for call in (site.client.txt2img, lambda **more: site.client.img2img(images=[picture()], **more)):
        call(prompt="a", controlnet_units=[unit])
        assert len(site.last()["controls"]) == 1
        call(prompt="a")
        assert "controls" not in site.last()
    answer = site.post("/sdapi/v1/txt2img", {"script_name": "controlnet m2m"})
    assert (answer.status_code, "videos" in answer.json()["detail"]) == (422, True)


def test_units_in_every_form_of_a_picture_and_with_old_names(site: Site) -> None:
    data = encoded(picture())
    forms = [data, {"image": data, "mask": None}, [data, data], [{"image": data}], f"data:image/png;base64,{data}"]
    for form in forms:
        unit = {"input_image": form, "model": "control_canny", "guidance": 0.6, "lowvram": True, "pixel_perfect": True,
                "processor_res": 512, "resize_mode": "Envelope (Outer Fit)", "threshold_a": -1}  # fmt: skip
        answer = site.post("/sdapi/v1/txt2img", {"alwayson_scripts": {"controlnet": {"args": [unit]}}})
        assert answer.status_code == 200, answer.text
        asked = site.last()["controls"][0]
        assert asked["guidance_end"] == 0.6
        assert asked["resize_mode"] == "resize and fill"
        assert asked["image"].startswith("inputs/")
        assert not {"processor_res", "threshold_a"} & asked.keys()


def test_image_prompts_and_reference(site: Site) -> None:
    data = encoded(picture())
    units = [
        {
            "image": [{"image": data}, {"image": data}],
            "module": "ip-adapter-auto",
            "model": "ip-adapter_sd15",
            "weight": 0.5,
        },
        {"image": data, "module": "reference_only", "threshold_a": 0.9},
    ]
    answer = site.post("/sdapi/v1/txt2img", {"alwayson_scripts": {"ControlNet": {"args": units}}})
    assert answer.status_code == 200, answer.text
    adapter, reference = site.last()["image_prompts"]
    assert (adapter["model"], len(adapter["images"]), adapter["weight"]) == ("ip-adapter_sd15", 2, 0.5)
    assert (reference["model"], reference["style_fidelity"]) == ("reference only", 0.9)


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        ({"module": "canny", "image": "aGVsbG8="}, "needs a model"),
        ({"module": "no such", "model": "control_canny"}, "Module not available: 'no such'"),
        ({"module": "depth:/etc/passwd", "model": "control_canny"}, "Module not available"),
        ({"model": "/etc/passwd"}, "outside the model folders"),
        ({"model": "control_canny", "image": 3}, "base64"),
        ({"model": "control_canny", "guidance_start": 0.9, "guidance_end": 0.1}, "guidance_start"),
        ({"model": "control_canny", "union_control_type": "Nose"}, "union_control_type"),
    ],
)
def test_units_that_make_no_sense(site: Site, unit: Any, words: str) -> None:
    answer = site.post("/sdapi/v1/txt2img", {"alwayson_scripts": {"ControlNet": {"args": [unit]}}})
    assert 400 <= answer.status_code < 500
    assert words in answer.json()["detail"]


def test_controlnets_routes(site: Site) -> None:
    assert site.client.controlnet_version() == 3
    models = site.client.controlnet_model_list()
    assert any(name.startswith("control_canny [") for name in models)
    modules = site.client.controlnet_module_list()
    assert {"none", "canny", "tile_resample", "reference_only"} <= set(modules)
    detail = site.get("/controlnet/module_list?alias_names=true")["module_detail"]
    assert [slider["name"] for slider in detail["canny"]["sliders"]] == ["Preprocessor Resolution", "low", "high"]
    types = site.get("/controlnet/control_types")["control_types"]
    assert types["Canny"]["default_option"] == "canny"
    assert types["Canny"]["default_model"].startswith("control_canny")
    assert set(types["All"]["module_list"]) == set(modules)
    assert site.get("/controlnet/settings") == {"control_net_unit_count": 3}


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("Loopback", ["many", {}, [], "None"]),
        ("SD upscale", ["", {}, 1, 2]),
        ("Outpainting mk2", ["", 8, 8, [[]]]),
        ("Poor man's outpainting", [None, "x"]),
    ],
)
def test_arguments_of_other_types_are_the_callers_fault(site: Site, name: str, args: list[Any]) -> None:
    body = {"init_images": [encoded(picture())], "script_name": name, "script_args": args}
    assert 400 <= site.post("/sdapi/v1/img2img", body).status_code < 500


def test_units_of_other_types_are_the_callers_fault(site: Site) -> None:
    for unit in (
        {"ad_model": "face_yolov8n", "ad_mask_k_largest": "x"},
        {"ad_model": {"a": 1}},
        {"ad_model": "face_yolov8n", "ad_confidence": []},
    ):
        answer = site.post("/sdapi/v1/txt2img", {"alwayson_scripts": {"ADetailer": {"args": [unit]}}})
        assert 400 <= answer.status_code < 500
    for unit in ({"model": {}, "module": []}, {"model": "control_canny", "processor_res": "x", "weight": {}}, [1]):
        answer = site.post("/sdapi/v1/txt2img", {"alwayson_scripts": {"ControlNet": {"args": [unit]}}})
        assert 400 <= answer.status_code < 500


def test_a_detail_of_a_narrow_picture_is_no_bomb(site: Site) -> None:
    body = {
        "controlnet_module": "canny",
        "controlnet_input_images": [encoded(Image.new("L", (1, 4000)))],
        "controlnet_processor_res": 8192,
    }
    answer = site.post("/controlnet/detect", body)
    assert (answer.status_code, "processor_res" in answer.json()["detail"]) == (400, True)


def test_detect(site: Site) -> None:
    found = site.client.controlnet_detect([picture(), picture()], module="canny", processor_res=128)
    assert [image.size for image in found.images] == [(128, 128)] * 2
    assert found.info == "Success"
    for body in ({"controlnet_module": "canny"}, {"controlnet_module": "x", "controlnet_input_images": ["aGVsbG8="]}):
        assert site.post("/controlnet/detect", body).status_code == 422
    wanting = {"controlnet_module": "depth_midas", "controlnet_input_images": [encoded(picture())]}
    answer = site.post("/controlnet/detect", wanting)
    assert (answer.status_code, "needs" in answer.json()["detail"]) == (400, True)


def test_poses_that_are_detected_are_told_and_may_be_drawn_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    body = tuple((30.0 + point, 10.0 * point) if point else None for point in range(18))
    hand = tuple((50.0 + point, 60.0) for point in range(21))
    people = [Person(body, ((), hand), ((20.0, 20.0), None)), Person(())]
    made = Posing(lambda picture: people)
    monkeypatch.setattr(a1111_controlnet, "find_preprocessor", lambda *paths, **numbers: made)
    monkeypatch.setattr(a1111_controlnet, "module_files", lambda request: {})
    asked = {"controlnet_module": "openpose_full", "controlnet_input_images": [encoded(picture())] * 2}
    answer = site.post("/controlnet/detect", asked).json()
    assert answer.keys() == {"info", "images", "poses"}
    assert len(answer["poses"]) == 2
    pose = answer["poses"][0]
    assert (pose["canvas_width"], pose["canvas_height"]) == (512, 512)
    assert pose["people"][0]["pose_keypoints_2d"][:6] == [0, 0, 0, 31, 10, 1]
    assert pose["people"][0]["hand_left_keypoints_2d"] is None
    assert len(pose["people"][0]["hand_right_keypoints_2d"]) == 63
    assert pose["people"][0]["face_keypoints_2d"] == [20, 20, 1, 0, 0, 0]
    drawn = site.post("/controlnet/render_openpose_json", answer["poses"]).json()
    assert drawn["images"] == answer["images"]
    monkeypatch.undo()
    plain = {"controlnet_module": "canny", "controlnet_input_images": [encoded(picture())]}
    assert "poses" not in site.post("/controlnet/detect", plain).json()


def test_poses_are_drawn(site: Site) -> None:
    body = [number for point in range(18) for number in (0.1 + 0.04 * point, 0.5, 1.0)]
    hand = [number for point in range(21) for number in (20.0 + point, 30.0, 1.0)]
    poses = [
        {"people": [{"pose_keypoints_2d": body}], "canvas_width": 128, "canvas_height": 64},
        {"people": [{"hand_left_keypoints_2d": hand, "face_keypoints_2d": [9, 9, 1, 1e9, 1, 1]}], "canvas_width": 64,
         "canvas_height": 96},
        {"people": [], "canvas_width": 8, "canvas_height": 8},
    ]  # fmt: skip
    answer = site.post("/controlnet/render_openpose_json", poses).json()
    drawn = [Image.open(io.BytesIO(base64.b64decode(image))) for image in answer["images"]]
    assert answer["info"] == "Success"
    assert [image.size for image in drawn] == [(128, 64), (64, 96), (8, 8)]
    assert [image.getbbox() is None for image in drawn] == [False, False, True]
    assert site.post("/controlnet/render_openpose_json", []).json() == {"info": "No pose data detected."}
    wide = {"people": [], "canvas_width": 99_999, "canvas_height": 8}
    assert site.post("/controlnet/render_openpose_json", [wide]).status_code == 422


def test_the_old_interface_of_controlnet(site: Site) -> None:
    old = webuiapi.ControlNetInterface(site.client, show_deprecation_warning=False)
    old.txt2img(prompt="a", controlnet_image=[picture()], controlnet_module="canny", controlnet_model="control_canny")
    assert site.last()["controls"][0]["weight"] == 0.5
    old.img2img(
        init_images=[picture()], controlnet_image=[picture()], controlnet_model="control_canny", sampler_index="Euler"
    )
    assert site.last()["controls"][0]["module"] == "none"
    assert any(name.startswith("control_canny") for name in old.model_list())
    unit = webuiapi.ControlNetUnit(image=picture(), model="control_canny")
    site.client.txt2img(prompt="a", controlnet_units=[unit], use_deprecated_controlnet=True)
    assert len(site.last()["controls"]) == 1


def test_instruct_pix2pix(site: Site) -> None:
    painted = webuiapi.InstructPix2PixInterface(site.client).img2img(
        images=[picture((128, 64))], prompt="make it snow", seed=5, randomize_seed=False, output_image_width=256
    )
    request = site.last()
    assert (request["width"], request["height"], request["image_cfg_scale"]) == (256, 128, 1.5)
    assert (request["cfg_scale"], request["denoising_strength"]) == (7.5, 1.0)
    assert painted.info["seed"] == 5


def test_prompts_are_written_by_a_model_of_the_library(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from danqing.library.folders import Entry
    from danqing.pipeline import caption, promptgen

    assert site.client.list_prompt_gen_models() == []
    with pytest.raises(RuntimeError, match="Model not found"):
        site.client.prompt_gen(text="a cat")
    entry = Entry("other", "owner/words", Path("/nowhere"), "Hub")
    monkeypatch.setattr(caption, "language_models", lambda settings, kind: [entry])
    monkeypatch.setattr(promptgen, "load_writer", lambda path: lambda text, how: [f"{text}, {how.top_k}"] * how.count)
    assert site.client.list_prompt_gen_models() == ["owner/words"]
    assert site.client.prompt_gen("owner/words", batch_count=2, batch_size=1, text="a cat") == ["a cat, 12"] * 2


def test_answers_are_json_that_any_reader_takes(site: Site) -> None:
    answer = site.post("/sdapi/v1/txt2img", {"prompt": "图 \U0001f408"})
    assert json.loads(answer.json()["info"])["prompt"] == "图 \U0001f408"
