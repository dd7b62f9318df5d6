"""AUTOMATIC1111's API as its clients see it: the real webuiapi, and bare HTTP for what that never sends."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import webuiapi
from PIL import Image

from danqing.serve.a1111 import LISTS, router
from danqing.serve.a1111_lists import TABLES
from danqing.serve.app import create_app
from danqing.serve.engine import Engine
from danqing.serve.security import write_users
from danqing.serve.settings import ServeSettings
from served import served
from studio import STEPS, FakePainter, fake_studio


@dataclass
class Site:
    engine: Engine
    painter: FakePainter
    base: str
    client: Any

    def post(self, path: str, body: Any) -> requests.Response:
        return requests.post(self.base + path, json=body, timeout=20)

    def get(self, path: str) -> Any:
        answer = requests.get(self.base + path, timeout=20)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    engine, painter = fake_studio(tmp_path_factory.mktemp("studio") / "data")
    with served(router(engine, ServeSettings())) as port:
        yield Site(engine, painter, f"http://127.0.0.1:{port}", webuiapi.WebUIApi(port=port))
    engine.close()


@pytest.fixture
def gated(tmp_path: Path) -> Iterator[tuple[Site, threading.Semaphore]]:
    gate = threading.Semaphore(0)
    engine, painter = fake_studio(tmp_path / "data", gate=gate)
    with served(router(engine, ServeSettings())) as port:
        yield Site(engine, painter, f"http://127.0.0.1:{port}", webuiapi.WebUIApi(port=port)), gate
        gate.release(100_000)
    engine.close()


def picture(size: tuple[int, int] = (64, 64), colour: tuple[int, ...] = (200, 30, 30)) -> Image.Image:
    return Image.new("RGB", size, colour)


def encoded(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def last_request(site: Site) -> dict[str, Any]:
    return dict(site.engine.jobs(("done",), limit=1)[0].request)


def until(true: Any, seconds: float = 5.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not come about"
        time.sleep(0.005)


# --- txt2img ----------------------------------------------------------------------------------------------------------


def test_webuiapi_paints_text(site: Site) -> None:
    result = site.client.txt2img(
        prompt="a cat", negative_prompt="a dog", seed=7, batch_size=2, n_iter=2, width=128, height=64, steps=9,
        sampler_name="DPM++ 2M", scheduler="karras", cfg_scale=5.5,
    )  # fmt: skip
    assert len(result.images) == 4
    assert result.image.size == (128, 64)
    assert result.image.info["parameters"].startswith("a cat\nNegative prompt: a dog\nSteps: 9")
    assert result.parameters["prompt"] == "a cat"
    assert result.parameters["batch_size"] == 2
    info = result.info
    assert (info["prompt"], info["negative_prompt"]) == ("a cat", "a dog")
    assert info["all_prompts"] == ["a cat"] * 4
    assert (info["seed"], info["all_seeds"]) == (7, [7, 8, 9, 10])
    assert (info["width"], info["height"], info["steps"], info["cfg_scale"]) == (128, 64, 9, 5.5)
    assert info["sampler_name"] == "DPM++ 2M"
    assert (info["batch_size"], info["index_of_first_image"], info["clip_skip"]) == (2, 0, 1)
    assert (info["sd_model_name"], info["sd_model_hash"]) == ("fake", "ababababab")
    assert len(info["infotexts"]) == 4
    assert "Seed: 10" in info["infotexts"][3]
    assert info["extra_generation_params"]["Schedule type"] == "Karras"
    assert len(info["job_timestamp"]) == 14
    assert last_request(site)["scheduler"] == "Karras"


def test_info_has_every_key_of_automatic1111_in_its_order(site: Site) -> None:
    info = json.loads(site.post("/sdapi/v1/txt2img", {"prompt": "a"}).json()["info"])
    keys = [
        "prompt",
        "all_prompts",
        "negative_prompt",
        "all_negative_prompts",
        "seed",
        "all_seeds",
        "subseed",
        "all_subseeds",
        "subseed_strength",
        "width",
        "height",
        "sampler_name",
        "cfg_scale",
        "steps",
        "batch_size",
        "restore_faces",
        "face_restoration_model",
        "sd_model_name",
        "sd_model_hash",
        "sd_vae_name",
        "sd_vae_hash",
        "seed_resize_from_w",
        "seed_resize_from_h",
        "denoising_strength",
        "extra_generation_params",
        "index_of_first_image",
        "infotexts",
        "styles",
        "job_timestamp",
        "clip_skip",
        "is_using_inpainting_conditioning",
        "version",
    ]
    assert list(info)[: len(keys)] == keys


def test_what_a_body_leaves_out_is_the_models_own_and_is_echoed_as_painted(site: Site) -> None:
    answer = site.post("/sdapi/v1/txt2img", {"prompt": "a"}).json()
    assert (answer["parameters"]["width"], answer["parameters"]["steps"]) == (64, STEPS)
    assert "width" not in last_request(site)
    assert last_request(site)["dialect"] == "a1111"


def test_a_drawn_seed_is_told(site: Site) -> None:
    info = site.client.txt2img(prompt="a").info
    assert info["seed"] >= 0
    assert f"Seed: {info['seed']}," in info["infotexts"][0]


def test_a_hires_fix(site: Site) -> None:
    site.client.txt2img(
        prompt="a",
        enable_hr=True,
        hr_scale=1.5,
        hr_upscaler=webuiapi.HiResUpscaler.LatentBicubic,
        denoising_strength=0.4,
    )
    request = last_request(site)
    assert (request["enable_hr"], request["hr_scale"], request["hr_upscaler"]) == (True, 1.5, "Latent (bicubic)")
    assert request["denoising_strength"] == 0.4


def test_without_a_hires_fix_its_fields_do_not_matter(site: Site) -> None:
    site.client.txt2img(prompt="a")
    assert not {"hr_scale", "hr_upscaler", "denoising_strength"} & last_request(site).keys()


def test_the_old_way_to_say_a_first_pass(site: Site) -> None:
    body = {"enable_hr": True, "width": 256, "height": 128, "firstphase_width": 128, "firstphase_height": 64}
    assert site.post("/sdapi/v1/txt2img", body).status_code == 200
    request = last_request(site)
    assert (request["width"], request["height"]) == (128, 64)
    assert (request["hr_resize_x"], request["hr_resize_y"]) == (256, 128)


def test_variation_seeds_and_the_rest_of_the_common_fields(site: Site) -> None:
    body = {
        "prompt": "a <lora:x:1>", "seed": 5, "subseed": 9, "subseed_strength": 0.3, "seed_resize_from_w": 64,
        "seed_resize_from_h": 128, "tiling": True, "eta": 0.5, "s_churn": 1, "s_tmax": 0, "s_noise": 1.1,
        "s_min_uncond": 2, "disable_extra_networks": True,
    }  # fmt: skip
    info = json.loads(site.post("/sdapi/v1/txt2img", body).json()["info"])
    request = last_request(site)
    assert (request["subseed"], request["subseed_strength"]) == (9, 0.3)
    assert (request["seed_resize_from_w"], request["seed_resize_from_h"]) == (64, 128)
    assert (request["tiling"], request["eta"], request["s_churn"], request["s_noise"]) == ("both", 0.5, 1, 1.1)
    assert request["prompt"] == "a "
    assert "s_tmax" not in request
    assert (info["subseed"], info["subseed_strength"], info["all_subseeds"]) == (9, 0.3, [9])


def test_an_unknown_sampler_is_a_400_that_names_the_choices(site: Site) -> None:
    with pytest.raises(RuntimeError) as raised:
        site.client.txt2img(prompt="a", sampler_name="Eular")
    status, text = raised.value.args
    error = json.loads(text)
    assert status == 400
    assert error["error"] == "HTTPException"
    assert error["detail"].startswith("Sampler not found: 'Eular'; choose one of: DPM++ 2M, DPM++ SDE")
    assert {"body", "errors"} <= error.keys()


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"scheduler": "Karas"}, 400, "Scheduler not found: 'Karas'; choose one of: Automatic, Uniform"),
        ({"steps": 0}, 400, "steps"),
        ({"width": 17}, 400, "width"),
        ({"seed": 10**30}, 400, "seed"),
        ({"n_iter": 1000, "batch_size": 64}, 400, "at most"),
        ({"override_settings": {"sd_model_chekpoint": "x"}}, 400, "did you mean sd_model_checkpoint"),
        ({"override_settings": {"CLIP_stop_at_last_layers": "two"}}, 400, "whole number"),
        ({"styles": ["/etc/passwd.csv:x"]}, 400, "names a file"),
        ({"styles": ["no such style"]}, 400, "no such style"),
        ({"alwayson_scripts": {"roop": {"args": []}}}, 422, "Script 'roop' not found; there are ControlNet, ADetailer"),
        ({"alwayson_scripts": {"X/Y/Z plot": {"args": []}}}, 422, "Cannot have a selectable script"),
        ({"alwayson_scripts": {"ControlNet": {"args": 3}}}, 422, "a list"),
        ({"script_name": "no such script"}, 422, "Script 'no such script' not found"),
        ({"script_name": "ControlNet"}, 422, "always on"),
        ({"override_settings": {"sd_model_checkpoint": "/etc/passwd"}}, 400, "model"),
        ({"prompt": "<lora:/etc/passwd:1>"}, 400, "outside the model folders"),
    ],
)
def test_what_makes_no_sense_is_the_callers_fault(site: Site, body: Any, status: int, words: str) -> None:
    answer = site.post("/sdapi/v1/txt2img", body)
    assert answer.status_code == status
    assert words in answer.json()["detail"]


def test_a_body_of_wrong_types_is_fastapis_422_without_what_was_sent(site: Site) -> None:
    answer = site.post("/sdapi/v1/txt2img", {"steps": "secret words"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "steps"]
    assert "secret" not in answer.text


def test_text_that_is_no_unicode_and_numbers_that_are_none(site: Site) -> None:
    for raw in ('{"prompt": "\\ud800"}', '{"override_settings": {"rho": NaN}}'):
        headers = {"Content-Type": "application/json"}
        answer = requests.post(site.base + "/sdapi/v1/txt2img", data=raw, headers=headers, timeout=20)
        assert answer.status_code == 422
        assert "Unicode" in answer.json()["detail"]


def test_bodies_nested_without_end(site: Site) -> None:
    headers = {"Content-Type": "application/json"}
    for depth in (300, 900, 20_000):
        nested = "[" * depth + "]" * depth
        for raw in (f'{{"script_args": {nested}}}', f'{{"override_settings": {{"rho": {nested}}}}}', nested):
            answer = requests.post(site.base + "/sdapi/v1/txt2img", data=raw, headers=headers, timeout=20)
            assert 200 <= answer.status_code < 500
            answer = requests.post(site.base + "/sdapi/v1/options", data=raw, headers=headers, timeout=20)
            assert 400 <= answer.status_code < 500


def test_a_first_pass_of_ones_own_is_left_out_and_that_is_said(site: Site) -> None:
    answer = site.post("/sdapi/v1/txt2img", {"prompt": "a", "firstpass_image": encoded(picture())}).json()
    assert json.loads(answer["info"])["notes"] == ["firstpass_image has no counterpart here and is left out"]


def test_fields_that_are_unknown_are_named_in_the_answer(site: Site) -> None:
    info = json.loads(site.post("/sdapi/v1/txt2img", {"prompt": "a", "promt": "b"}).json()["info"])
    assert info["notes"] == ["field 'promt' is unknown and left out"]


def test_an_infotext_fills_what_is_not_given(site: Site) -> None:
    text = "a horse\nNegative prompt: ugly\nSteps: 12, Sampler: Euler a, CFG scale: 3, Seed: 99, Size: 128x192"
    site.post("/sdapi/v1/txt2img", {"infotext": text, "prompt": "a cow"})
    request = last_request(site)
    assert (request["prompt"], request["negative_prompt"]) == ("a cow", "ugly")
    assert (request["steps"], request["seed"], request["width"]) == (12, 99, 128)


def test_send_images_false_and_save_images_with_a_grid(site: Site) -> None:
    assert site.post("/sdapi/v1/txt2img", {"prompt": "a", "send_images": False}).json()["images"] == []
    result = site.client.txt2img(prompt="a", seed=1, n_iter=4, width=64, height=64, save_images=True)
    assert len(result.images) == 5
    assert result.image.size == (128, 128)
    assert result.info["index_of_first_image"] == 1
    assert len(result.info["infotexts"]) == 5


def test_override_settings_reach_the_request_and_leave_the_options_alone(site: Site) -> None:
    overrides = {
        "CLIP_stop_at_last_layers": 2, "sd_vae": "None", "eta_noise_seed_delta": 31337, "randn_source": "CPU",
        "sdxl_crop_top": 3, "token_merging_ratio": 0.3, "always_discard_next_to_last_sigma": True, "rho": 0,
    }  # fmt: skip
    site.client.txt2img(prompt="a", override_settings=overrides)
    request = last_request(site)
    assert (request["clip_skip"], request["eta_noise_seed_delta"], request["noise_source"]) == (2, 31337, "cpu")
    assert (request["crop_top"], request["discard_penultimate"]) == (3, True)
    assert request["token_merging"]["ratio"] == 0.3
    assert "vae" not in request
    assert site.client.get_options()["CLIP_stop_at_last_layers"] == 1


def test_options_that_are_only_remembered_are_named_where_a_request_sets_them(site: Site) -> None:
    overrides = {"pad_cond_uncond": True, "uni_pc_order": 3, "CLIP_stop_at_last_layers": 2}
    info = site.client.txt2img(prompt="a", override_settings=overrides).info
    assert info["notes"] == ["option pad_cond_uncond has no effect here"]


def test_the_option_of_tiles_reaches_upscalers(site: Site) -> None:
    for value, tile in ((256, 256), (0, 16384), (192, 512)):
        site.client.set_options({"ESRGAN_tile": value})
        site.client.extra_single_image(picture(), upscaler_1="Lanczos")
        assert last_request(site).get("tile", 512) == tile


def test_override_settings_that_are_not_restored_afterwards_stay(site: Site) -> None:
    site.client.txt2img(
        prompt="a", override_settings={"CLIP_stop_at_last_layers": 3}, override_settings_restore_afterwards=False
    )
    assert site.client.get_options()["CLIP_stop_at_last_layers"] == 3
    site.client.txt2img(prompt="a")
    assert last_request(site)["clip_skip"] == 3
    site.client.set_options({"CLIP_stop_at_last_layers": 1})


def test_pictures_in_other_formats(site: Site) -> None:
    for name, form in (("jpg", "JPEG"), ("webp", "WEBP")):
        result = site.client.txt2img(prompt="a", override_settings={"samples_format": name})
        assert result.image.format == form
    answer = site.post("/sdapi/v1/txt2img", {"prompt": "a", "override_settings": {"samples_format": "gif"}})
    assert answer.status_code == 400
    plain = site.client.txt2img(prompt="a", override_settings={"enable_pnginfo": False})
    assert "parameters" not in plain.image.info


# --- img2img ----------------------------------------------------------------------------------------------------------


def test_webuiapi_paints_over_a_picture(site: Site) -> None:
    result = site.client.img2img(
        images=[picture((96, 64))], prompt="a", seed=3, denoising_strength=0.6, width=128, height=128, resize_mode=2
    )
    job = site.engine.jobs(("done",), limit=1)[0]
    assert job.kind == "img2img"
    assert job.request["resize_mode"] == "resize and fill"
    assert job.request["denoising_strength"] == 0.6
    assert result.info["denoising_strength"] == 0.6
    assert result.parameters["init_images"] is None


def test_init_images_come_back_where_they_are_asked_for(site: Site) -> None:
    result = site.client.img2img(images=[picture()], prompt="a", include_init_images=True)
    assert result.parameters["init_images"][0].startswith("data:image/png;base64,")


def test_several_pictures_are_painted_over_with_seeds_that_count_up(site: Site) -> None:
    result = site.client.img2img(images=[picture(), picture(colour=(1, 2, 3))], prompt="a", seed=40)
    assert result.info["all_seeds"] == [40, 41]


def test_webuiapi_inpaints(site: Site) -> None:
    mask = Image.new("L", (64, 64), 255)
    site.client.img2img(
        images=[picture()], mask_image=mask, mask_blur=7, inpainting_fill=2, inpaint_full_res=True,
        inpaint_full_res_padding=16, inpainting_mask_invert=1, prompt="a", initial_noise_multiplier=0.9,
    )  # fmt: skip
    job = site.engine.jobs(("done",), limit=1)[0]
    assert job.kind == "inpaint"
    wanted = {
        "mask_blur": 7, "inpainting_fill": "latent noise", "inpaint_full_res": True, "inpaint_full_res_padding": 16,
        "inpainting_mask_invert": True, "initial_noise_multiplier": 0.9,
    }  # fmt: skip
    assert {name: job.request[name] for name in wanted} == wanted


def test_bare_base64_and_blurs_that_differ(site: Site) -> None:
    body = {"init_images": [encoded(picture())], "mask": encoded(picture()), "mask_blur_x": 2, "mask_blur_y": 9}
    assert site.post("/sdapi/v1/img2img", body).status_code == 200
    request = last_request(site)
    assert (request["mask_blur"], request["mask_blur_y"]) == (2, 9)
    assert (request["inpainting_fill"], request["inpaint_full_res_padding"]) == ("fill", 0)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 404, "Init image not found"),
        ({"init_images": []}, 404, "Init image not found"),
        ({"init_images": ["?"]}, 400, "Invalid encoded image"),
        ({"init_images": ["data:image/png;base64,"]}, 400, "Invalid encoded image"),
        ({"init_images": ["/etc/passwd"]}, 400, "Invalid encoded image"),
        ({"init_images": ["http://127.0.0.1/x.png"]}, 400, "Requests not allowed"),
        ({"init_images": ["aGVsbG8="]}, 400, "no picture"),
        ({"init_images": ["aGVsbG8="], "latent_mask": "aGVsbG8="}, 400, "latent_mask"),
    ],
)
def test_pictures_that_are_none(site: Site, body: Any, status: int, words: str) -> None:
    answer = site.post("/sdapi/v1/img2img", body)
    assert answer.status_code == status
    assert words in answer.json()["detail"]


def test_urls_where_they_are_switched_on_never_lead_to_private_addresses(site: Site) -> None:
    with served(router(site.engine, ServeSettings(urls=True))) as port:
        for url in (f"{site.base}/x.png", "http://127.0.0.1/x.png", "http://169.254.169.254/", "http://[::1]/"):
            body = {"init_images": [url]}
            answer = requests.post(f"http://127.0.0.1:{port}/sdapi/v1/img2img", json=body, timeout=20)
            assert answer.status_code == 400
            assert "Invalid" not in answer.json()["detail"]
    assert site.client.get_options()["api_enable_requests"] is False


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_and_interrupt_and_skip(gated: tuple[Site, threading.Semaphore]) -> None:
    site, gate = gated
    idle = site.client.get_progress()
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0.0, 0, None)
    answers: list[Any] = []
    worker = threading.Thread(
        target=lambda: answers.append(site.client.txt2img(prompt="a", seed=1, n_iter=3, width=64, height=64))
    )
    worker.start()
    gate.release(STEPS + 2)
    until(lambda: site.client.get_progress()["state"]["sampling_step"] == 2)
    now = site.client.get_progress()
    assert (now["state"]["job_no"], now["state"]["job_count"], now["state"]["sampling_steps"]) == (1, 3, STEPS)
    assert 0.4 < now["progress"] < 0.6
    assert now["eta_relative"] > 0
    assert Image.open(io.BytesIO(base64.b64decode(now["current_image"]))).size == (8, 8)
    assert site.get("/sdapi/v1/progress?skip_current_image=true")["current_image"] is None
    assert site.client.skip() is None
    gate.release(2)
    until(lambda: site.client.get_progress()["state"]["job_no"] == 2)
    assert site.client.interrupt() == {}
    gate.release(1000)
    worker.join(10)
    assert answers[0].info["all_seeds"] == [1, 3]  # the third as it was by then
    site.client.util_wait_for_ready(check_interval=0.01)


def test_sixty_four_wait_and_progress_still_answers(gated: tuple[Site, threading.Semaphore]) -> None:
    site, gate = gated
    answers: list[Any] = []

    def ask(seed: int) -> None:
        answers.append(site.post("/sdapi/v1/txt2img", {"prompt": "a", "seed": seed, "width": 64, "height": 64}).json())

    workers = [threading.Thread(target=ask, args=(seed,)) for seed in range(64)]
    for worker in workers:
        worker.start()
    until(lambda: site.engine.store.counts()["queued"] == 63, 60)
    assert site.client.get_progress()["state"]["job_count"] == 1  # and the gate is still shut
    gate.release(1000)
    for worker in workers:
        worker.join(60)
    assert sorted(json.loads(answer["info"])["seed"] for answer in answers) == [*range(64)]


def test_a_task_by_the_name_its_client_gave_it(gated: tuple[Site, threading.Semaphore]) -> None:
    site, gate = gated

    def task(**more: Any) -> Any:
        return site.post("/internal/progress", {"id_task": "task(1)", **more}).json()

    assert task()["textinfo"] == "Waiting..."
    bodies = ({"prompt": "a", "n_iter": 2, "force_task_id": "task(1)"}, {"prompt": "b", "force_task_id": "task(2)"})
    workers = [threading.Thread(target=site.post, args=("/sdapi/v1/txt2img", body)) for body in bodies]
    workers[0].start()
    until(lambda: task()["active"])
    workers[1].start()
    until(lambda: site.get("/internal/pending-tasks") == {"size": 1, "tasks": ["task(2)"]})
    assert site.post("/internal/progress", {"id_task": "task(2)"}).json()["queued"] is True
    gate.release(2)
    until(lambda: task()["progress"] == 2 / STEPS / 2)
    now = task()
    assert now["live_preview"].startswith("data:image/png;base64,")
    assert task(id_live_preview=now["id_live_preview"])["live_preview"] is None
    gate.release(1000)
    for worker in workers:
        worker.join(10)
    assert task()["completed"] is True
    assert site.get("/internal/ping") == {}


@pytest.mark.parametrize("cancelled", [False, True])
def test_interrupted_in_the_first_picture(gated: tuple[Site, threading.Semaphore], cancelled: bool) -> None:
    """It is answered as it is by then, as AUTOMATIC1111 does; of a job that was cancelled there is none."""
    site, gate = gated
    answers: list[Any] = []
    worker = threading.Thread(target=lambda: answers.append(site.client.txt2img(prompt="a cat", seed=4)))
    worker.start()
    gate.release(1)
    until(lambda: site.client.get_progress()["state"]["sampling_step"] == 1)
    if cancelled:
        site.engine.cancel(site.engine.jobs()[0].id)
    else:
        site.client.interrupt()
    gate.release(1000)
    worker.join(10)
    assert len(answers[0].images) == (0 if cancelled else 1)
    assert (answers[0].info["prompt"], answers[0].info["seed"]) == ("a cat", 4)


def test_a_plot_that_is_interrupted_leaves_the_rest_unpainted(gated: tuple[Site, threading.Semaphore]) -> None:
    site, gate = gated
    answers: list[Any] = []
    args = ["Seed", "1,2,3", [], "Nothing", "", [], "Nothing", "", [], True, True]
    work = {"prompt": "a", "width": 64, "height": 64, "script_name": "X/Y/Z plot", "script_args": args}
    worker = threading.Thread(target=lambda: answers.append(site.client.txt2img(**work)))
    worker.start()
    gate.release(STEPS + 1)
    until(lambda: len(site.engine.jobs(("done",))) == 1 and site.client.get_progress()["state"]["sampling_step"] == 1)
    site.client.interrupt()
    gate.release(1000)
    worker.join(10)
    assert answers[0].info["all_seeds"] == [1, 2]
    assert len(answers[0].images) == 3
    assert sorted(job.state for job in site.engine.jobs()) == ["cancelled", "done", "interrupted"]


def test_a_job_that_fails_by_danqings_own_fault_is_a_500_else_a_400(site: Site) -> None:
    from danqing.errors import DanqingError

    site.painter.error = DanqingError("vae: no such file")
    answer = site.post("/sdapi/v1/txt2img", {"prompt": "a"})
    assert (answer.status_code, answer.json()["detail"]) == (400, "vae: no such file")
    site.painter.error = ZeroDivisionError("x")
    assert site.post("/sdapi/v1/txt2img", {"prompt": "a"}).status_code == 500
    site.painter.error = None


def test_every_answer_says_how_long_it_took(site: Site) -> None:
    answer = requests.get(site.base + "/sdapi/v1/samplers", timeout=20)
    assert float(answer.headers["X-Process-Time"]) >= 0


# --- extras, png-info -------------------------------------------------------------------------------------------------


def test_webuiapi_enlarges_one_and_several(site: Site) -> None:
    result = site.client.extra_single_image(picture(), upscaler_1=webuiapi.Upscaler.Lanczos, upscaling_resize=1.5)
    assert result.image.size == (32, 32)
    assert result.info == "<p>Postprocess upscale by: 2</p>"
    request = last_request(site)
    assert (request["upscaler"], request["scale"]) == ("Lanczos", 1.5)
    several = site.client.extra_batch_images(
        [picture(), picture()], resize_mode=1, upscaling_resize_w=96, upscaling_resize_h=80, upscaler_1="Nearest",
        upscaler_2="Lanczos", extras_upscaler_2_visibility=0.25,
    )  # fmt: skip
    assert len(several.images) == 2
    request = last_request(site)
    assert (request["width"], request["height"], request["crop"]) == (96, 80, True)
    assert (request["upscaler_2"], request["upscaler_2_visibility"]) == ("Lanczos", 0.25)


def test_extras_without_an_upscaler_keep_the_size(site: Site) -> None:
    site.client.extra_single_image(picture())
    assert last_request(site)["scale"] == 1.0


def test_extras_that_make_no_sense(site: Site) -> None:
    body = {"image": encoded(picture()), "codeformer_visibility": 1}
    answer = site.post("/sdapi/v1/extra-single-image", body)
    assert (answer.status_code, "Face restorer not found: 'CodeFormer'" in answer.json()["detail"]) == (404, True)
    assert site.post("/sdapi/v1/extra-single-image", body | {"gfpgan_visibility": 1}).status_code == 400
    assert site.post("/sdapi/v1/extra-single-image", {}).status_code == 400
    assert site.post("/sdapi/v1/extra-batch-images", {"imageList": []}).status_code == 400
    assert site.post("/sdapi/v1/extra-single-image", {**body, "codeformer_visibility": 2}).status_code == 422


def test_png_info_reads_what_was_painted(site: Site) -> None:
    painted = site.client.txt2img(prompt="a cat", seed=7, width=64, height=128).image
    answer = site.client.png_info(painted)
    assert answer.info.startswith("a cat\n")
    assert answer.parameters["Prompt"] == "a cat"
    assert (answer.parameters["Size-1"], answer.parameters["Size-2"]) == ("64", "128")
    assert answer.parameters["Seed"] == "7"
    assert answer.parameters["Hires prompt"] == ""
    assert "danqing" in answer.json["items"]


def test_png_info_of_a_picture_that_says_nothing(site: Site) -> None:
    answer = site.client.png_info(picture())
    assert (answer.info, answer.json["items"], answer.parameters) == ("", {}, {})


def test_interrogate_without_a_captioner_is_a_404(site: Site) -> None:
    for model, words in (("clip", "BLIP"), ("deepdanbooru", "there is clip")):
        with pytest.raises(RuntimeError, match=words) as raised:
            site.client.interrogate(picture(), model=model)
        assert raised.value.args[0] == 404


def test_interrogate_with_a_captioner(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from danqing.serve import a1111_paint

    asked: list[Any] = []
    monkeypatch.setattr(a1111_paint, "find_captioner", lambda settings: Path("/blip"))
    monkeypatch.setattr(
        a1111_paint,
        "load_captioner",
        lambda folder, **how: asked.append(how) or (lambda image: f"a {image.mode} picture"),
    )
    assert site.client.interrogate(picture()).info == "a RGB picture"
    assert asked == [{"beams": 1, "least": 24, "most": 48}]


# --- options and lists ------------------------------------------------------------------------------------------------


def test_options_are_kept_and_all_may_be_sent_back(site: Site) -> None:
    options = site.client.get_options()
    assert options["sd_model_checkpoint"] == "danqing"
    assert options["samples_format"] == "png"
    assert site.client.set_options({**options, "jpeg_quality": 91}) is None
    assert site.client.get_options() == {**options, "jpeg_quality": 91}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"no_such_option": 1}, "unknown"),
        ({"jpeg_quality": "high"}, "whole number"),
        ({"samples_format": 3}, "text"),
        ({"api_enable_requests": True}, "where the server is started"),
    ],
)
def test_options_that_are_none(site: Site, values: Any, words: str) -> None:
    answer = site.post("/sdapi/v1/options", values)
    assert answer.status_code == 400
    assert words in answer.json()["detail"]


def test_lists(site: Site) -> None:
    samplers = {row["name"]: row for row in site.client.get_samplers()}
    assert samplers["Euler a"]["options"] == {"uses_ensd": "True"}
    assert "k_dpmpp_2m" in samplers["DPM++ 2M"]["aliases"]
    schedulers = {row["name"]: row for row in site.client.get_schedulers()}
    assert schedulers["karras"]["default_rho"] == 7.0
    assert schedulers["sgm_uniform"]["label"] == "SGM Uniform"
    assert site.client.util_get_sampler_names() == sorted(samplers)
    assert site.client.util_get_scheduler_names() == sorted(schedulers)
    assert [row["name"] for row in site.client.get_upscalers()][:3] == ["None", "Lanczos", "Nearest"]
    assert site.client.get_latent_upscale_modes()[0] == {"name": "Latent"}
    assert site.client.util_get_model_names() == ["danqing"]
    assert site.client.util_get_current_model() == "danqing"
    for call in ("get_sd_vae", "get_loras", "get_hypernetworks", "get_face_restorers", "get_realesrgan_models",
                 "get_prompt_styles", "get_artist_categories"):  # fmt: skip
        assert getattr(site.client, call)() == []
    assert site.client.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert site.client.get_cmd_flags()["port"] == 7860
    memory = site.client.get_memory()
    assert 0 < memory["ram"]["used"] < memory["ram"]["total"]
    assert "x/y/z plot" in site.client.get_scripts()["txt2img"]
    assert site.client.refresh_checkpoints() is None
    for name in ("vae", "loras", "embeddings"):
        assert site.post(f"/sdapi/v1/refresh-{name}", None).json() is None
    assert site.get("/sdapi/v1/extensions") == []


def test_script_info_tells_every_script_with_its_arguments(site: Site) -> None:
    rows = site.get("/sdapi/v1/script-info")
    names = site.client.get_scripts()
    for tab, flag in (("txt2img", False), ("img2img", True)):
        assert [row["name"] for row in rows if row["is_img2img"] is flag] == names[tab]
    matrix = next(row for row in rows if row["name"] == "prompt matrix")
    assert matrix["is_alwayson"] is False
    assert matrix["args"][2] == {
        "label": "Select prompt", "value": "positive", "minimum": None, "maximum": None, "step": None,
        "choices": ["positive", "negative"],
    }  # fmt: skip


def test_unload_and_reload(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(site.engine.models, "unload", lambda: called.append("unload"))
    monkeypatch.setattr(site.engine.models, "get", lambda name: called.append(name))
    assert site.post("/sdapi/v1/unload-checkpoint", None).json() == {}
    assert site.post("/sdapi/v1/reload-checkpoint", None).json() == {}
    assert called == ["unload", None]


# --- in the studio ----------------------------------------------------------------------------------------------------


def test_behind_the_studios_guard_with_a_password(site: Site, tmp_path: Path) -> None:
    users = tmp_path / "users"
    write_users(users, [("ann", "secret")])
    app = create_app(site.engine, ServeSettings(page=False, users=users))
    with served(app=app) as port:
        client = webuiapi.WebUIApi(port=port, username="ann", password="secret")
        assert client.txt2img(prompt="a", seed=3).info["all_seeds"] == [3]
        answer = requests.get(f"http://127.0.0.1:{port}/sdapi/v1/samplers", timeout=20)
        assert (answer.status_code, answer.headers["WWW-Authenticate"].split()[0]) == (401, "Basic")


def test_the_openapi_description_has_automatic1111s_fields_and_errors(site: Site) -> None:
    described = create_app(site.engine, ServeSettings(page=False)).openapi()
    fields = described["components"]["schemas"]["Txt2Img"]["properties"]
    assert {
        "enable_hr",
        "hr_upscaler",
        "s_tmax",
        "override_settings",
        "alwayson_scripts",
        "script_args",
    } <= fields.keys()
    assert {"200", "400", "404", "422", "429"} <= described["paths"]["/sdapi/v1/txt2img"]["post"]["responses"].keys()
    assert "/v1/images/generations" in described["paths"]


def test_the_routes_are_there_before_torch_is_loaded() -> None:
    code = "import sys, danqing.serve.a1111, danqing.serve.openai; print([m for m in ('torch', 'cv2') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_list_has_its_table() -> None:
    assert set(LISTS) == set(TABLES)
