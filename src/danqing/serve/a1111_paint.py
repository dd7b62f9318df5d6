"""AUTOMATIC1111's routes that paint or change pictures: a body becomes jobs, and these an answer."""

from __future__ import annotations

import base64
import html
import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from PIL import Image

from danqing.errors import DanqingError
from danqing.library.folders import BUNDLED, Entry
from danqing.library.hash_cache import HashCache
from danqing.metadata.files import PictureFile, read_picture
from danqing.metadata.infotext import infotext
from danqing.metadata.read import as_infotext, tell
from danqing.pipeline.caption import find_captioner, load_captioner
from danqing.pipeline.expand import fix_seeds
from danqing.pipeline.faces import load_face_detector, load_restorer, restore_faces
from danqing.pipeline.images import open_picture
from danqing.pipeline.plot import Place, Plot, sheet
from danqing.requests import Painting, Upscale, read
from danqing.serve.a1111_answers import Shown, encoded, info, parameters, png_parameters, shown
from danqing.serve.a1111_bodies import (
    Detect,
    Extras,
    ExtrasBatch,
    ExtrasSingle,
    Img2Img,
    Interrogate,
    Painted,
    Txt2Img,
)
from danqing.serve.a1111_controlnet import detected, module_named, old_units
from danqing.serve.a1111_library import entries, stem, upscaler_name
from danqing.serve.a1111_lists import sd_model
from danqing.serve.a1111_options import OPTIONS, Fields, plain_json, without_effect
from danqing.serve.a1111_requests import Asked, img2img, txt2img
from danqing.serve.a1111_script import Layout, Work, apply, arguments_of, script_values
from danqing.serve.a1111_scripts import apply_alwayson, find_script
from danqing.serve.a1111_studio import Studio
from danqing.serve.accept import check_name, check_picture, decoded, model_roots
from danqing.serve.engine import Engine
from danqing.serve.store import Job
from danqing.serve.work import Enlarge
from danqing.vocabulary import find_module, quoted

OWN_FAULT = "an error of Danqing's own"
"""How the engine begins the error of a job that no request is to blame for."""
Restore = Callable[[Image.Image], Image.Image]


def paint(studio: Studio, body: Painted) -> Fields:
    """The answer to txt2img or img2img, once its pictures are painted. Blocks.

    Raises HTTPException or DanqingError for a body that makes no sense.
    """
    if not plain_json(body):
        raise HTTPException(422, "body: numbers should be finite, text valid Unicode, and nothing nested without end")
    engine, settings = studio.engine, studio.engine.models.settings
    options = studio.options.with_overrides(body.override_settings)
    if isinstance(body, Txt2Img):
        asked = txt2img(body, options, settings)
    elif isinstance(body, Img2Img):
        asked = img2img(body, options, settings, studio.fetch)
    else:
        raise TypeError(type(body).__name__)
    notes = [*asked.notes, *without_effect(body.override_settings or {})]
    requests, layout = _requests(studio, body, asked, notes)
    for name in {request.model for request in requests}:
        check_model(engine, name)
    restored = body.restore_faces if body.restore_faces is not None else options["face_restoration"]
    restore = _restorer(options, engine) if restored else None
    if body.override_settings and body.override_settings_restore_afterwards is False:
        studio.options.set(body.override_settings)
    waiting = submitted(engine, requests, "sdapi")
    studio.tasks.add(body.force_task_id, waiting)
    jobs = finished(engine, waiting)
    pictures = [_shown(studio, job, options, restore) for job in jobs]
    flat = [picture for row in pictures for picture in row]
    grids = _grids(layout, pictures, body, options, notes) if flat else []
    maps = [] if options["control_net_no_detectmap"] else _maps(studio, body, requests[0], options)
    lone = flat if layout is None or layout.lone else []
    images = [*(image for image, _ in grids), *(picture.image for picture in lone), *maps]
    return {
        "images": images if body.send_images else [],
        "parameters": parameters(body, flat),
        "info": info(
            body,
            jobs,
            flat,
            grids=[text for _, text in grids],
            maps=len(maps),
            notes=notes,
            face_restorer=str(options["face_restoration_model"]) if restore else None,
        ),
    }


def _requests(
    studio: Studio, body: Painted, asked: Asked, notes: list[str]
) -> tuple[tuple[Painting, ...], Layout | None]:
    """What is to be painted: one request, one for each picture to begin with, or those that a script makes of it."""
    settings = studio.engine.models.settings
    work = Work(asked.kind, dict(asked.fields), notes, studio.opened, settings)
    if "hr_upscaler" in work.fields:
        work.fields["hr_upscaler"] = upscaler_name(work.fields["hr_upscaler"], settings)
    units = old_units(body.model_extra or {})
    apply_alwayson(work, {**(body.alwayson_scripts or {}), **({"ControlNet": {"args": units}} if units else {})})
    script = find_script(body.script_name, asked.kind, False) if body.script_name else None
    values: Mapping[str, Any] = {}
    if script is not None:
        if script.alwayson:
            raise HTTPException(422, f"Script {quoted(body.script_name)} is always on; give it in alwayson_scripts")
        values = script_values(script, body.script_args or [])
        apply(script, work, values)
    notes[:] = list(dict.fromkeys(notes))
    if not asked.images:
        bases = [read(work.kind, work.fields)]
    else:
        bases = [read(work.kind, {**work.fields, "image": image}) for image in asked.images]
    if script is not None and script.plot is not None:
        with arguments_of(script):
            layout = script.plot(bases[0], values, settings, notes)
        return tuple(request for cell in layout.plot.cells for request in cell.requests), layout
    if len(bases) > 1:  # pictures of one batch: their seeds count up
        seed = fix_seeds(bases[0]).seed or 0
        bases = [base.model_copy(update={"seed": seed + index}) for index, base in enumerate(bases)]
    return tuple(bases), None


def _maps(studio: Studio, body: Painted, request: Painting, options: Mapping[str, Any]) -> list[str]:
    """What the modules of ControlNet's units made of their pictures: the extension shows them after the paintings."""
    found = []
    for unit in request.controls:
        source = unit.image or getattr(request, "image", None)
        module = find_module(unit.module)[0]
        if module is not None and module.name != "none" and isinstance(source, str):
            picture = opened_picture(studio, source)
            image, _ = detected(module, picture, unit.processor_res, unit.threshold_a, unit.threshold_b)
            found.append(encoded(image, None, options))
    return found


def check_model(engine: Engine, name: str | None) -> None:
    """Raises DanqingError for a path out of the model folders, HTTPException (404) for a name that nothing has."""
    if name is not None:
        check_name(name, "model", model_roots(engine.models.settings))
    try:
        engine.models.check(name)
    except DanqingError as error:
        raise HTTPException(404, f"Model not found: {error}") from None


def submitted(engine: Engine, requests: Sequence[Painting | Enlarge], origin: str) -> list[Job]:
    """All of them as jobs; where one is refused, none is painted. Raises DanqingError."""
    jobs: list[Job] = []
    try:
        for request in requests:
            jobs.append(engine.submit(request, origin=origin))
    except DanqingError:
        for job in jobs:
            engine.cancel(job.id)
        raise
    return jobs


def finished(engine: Engine, jobs: Sequence[Job]) -> list[Job]:
    """The jobs once they are over; when one is interrupted or fails, those that wait are cancelled.

    Raises HTTPException where one failed: 500 where the fault is Danqing's own, else 400; 503 where the studio ends.
    """
    done: list[Job] = []
    stopped = False
    for job in jobs:
        if stopped:
            engine.cancel(job.id)
        job = engine.wait(job.id)
        done.append(job)
        stopped = stopped or job.state != "done"
    failed = next((job for job in done if job.state == "failed"), None)
    if failed is not None:
        error = failed.error or "failed"
        raise HTTPException(500 if error.startswith(OWN_FAULT) else 400, error)
    if any(not job.over for job in done):
        raise HTTPException(503, f"the studio is ending; job {done[0].id} is painted when it runs again")
    return done


def _shown(studio: Studio, job: Job, options: Mapping[str, Any], restore: Restore | None) -> list[Shown]:
    engine = studio.engine
    stored = engine.pictures(job.id)
    if restore is None:
        return [shown(engine.path(picture), picture, options) for picture in stored]
    rows = []
    for picture in stored:
        plain = shown(engine.path(picture), picture, options)
        text = f"{picture.infotext.rstrip()}, Face restoration: {options['face_restoration_model']}"
        image = restore(read_picture(engine.path(picture)).image)
        rows.append(replace(plain, image=encoded(image, text, options), infotext=text))
    return rows


def _grids(
    layout: Layout | None,
    pictures: Sequence[Sequence[Shown]],
    body: Painted,
    options: Mapping[str, Any],
    notes: list[str],
) -> list[tuple[str, str]]:
    """(picture in base64, infotext) of those that stand before the others: a script's sheet, then its parts."""
    if layout is None:
        several = [picture for row in pictures for picture in row]
        if not (body.save_images and options["return_grid"] and len(several) > 1):
            return []
        from danqing.pipeline.picture import grid

        text = several[0].infotext
        return [(encoded(grid([_image(picture) for picture in several]), text, options), text)]
    if not layout.sheet:
        return []
    plot = layout.plot
    owners = [cell.place for cell in plot.cells for _ in cell.requests]
    by_place: dict[Place, list[Image.Image]] = {}
    first: Shown | None = None
    for place, row in zip(owners, pictures):
        by_place.setdefault(place, []).extend(map(_image, row))
        first = first or next(iter(row), None)
    record = first.record if first is not None else None
    text = infotext(record, plot.script or {}) if record is not None else ""
    plots = [(plot, by_place)]
    if layout.sub_grids:
        plots += [_slice(plot, by_place, index) for index in range(len(plot.sheets))]
    made = []
    for part, found in plots:
        if any(found.values()):
            image = sheet(part, found, legend=layout.legend, margin=layout.margin, note=notes.append)
            made.append((encoded(image, text, options), text))
    return made


def _slice(
    plot: Plot, pictures: Mapping[Place, list[Image.Image]], index: int
) -> tuple[Plot, dict[Place, list[Image.Image]]]:
    """One sheet of a plot alone."""
    found = {(x, y, 0): images for (x, y, z), images in pictures.items() if z == index}
    return replace(plot, sheets=(plot.sheets[index],)), found


def _image(picture: Shown) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(picture.image)))
    image.load()
    return image


def _restorer(options: Mapping[str, Any], engine: Engine) -> Restore:
    """What restores faces, by the options. Raises HTTPException where its weights are not there."""
    settings = engine.models.settings
    entry = _face_restorer(str(options["face_restoration_model"] or "CodeFormer"), entries(settings, "face_restorer"))
    detect = load_face_detector(Upscale.model_fields["face_detector"].default, settings=settings)
    restore = load_restorer(entry.path, fidelity=options["code_former_weight"], settings=settings)
    return lambda image: restore_faces(image, detect, restore)[0]


def _face_restorer(name: str, known: Sequence[Entry]) -> Entry:
    wanted = name.casefold().replace(" ", "")
    entry = next((entry for entry in known if wanted in stem(entry).casefold()), None)
    if entry is None:
        there = ", ".join(stem(entry) for entry in known) or "none"
        raise HTTPException(404, f"Face restorer not found: {quoted(name)}; in the model folders there is {there}")
    return entry


# --- pictures that are there already ----------------------------------------------------------------------------------


def extras(studio: Studio, body: ExtrasSingle | ExtrasBatch) -> Fields:
    """The answer to both routes of extras. Blocks. Raises HTTPException or DanqingError."""
    engine, options = studio.engine, studio.options.all()
    single = isinstance(body, ExtrasSingle)
    sources = [body.image] if isinstance(body, ExtrasSingle) else [file.data for file in body.imageList]
    if not sources or not all(sources):
        raise HTTPException(400, "Invalid encoded image")
    images = tuple(studio.opened(source) for source in sources)
    tile = options["ESRGAN_tile"]
    tiled = {} if tile == OPTIONS["ESRGAN_tile"].default else {"tile": max(tile, 64) if tile else 16384}  # 0 is whole
    request = read(Enlarge, {"images": images, **_enlarged(body, engine), **tiled})
    job = finished(engine, submitted(engine, [request], "sdapi"))[0]
    stored = engine.pictures(job.id)
    texts = list(dict.fromkeys(picture.infotext for picture in stored if picture.infotext))
    lines = "".join(f"<p>{html.escape(line)}</p>" for line in (*texts, *job.notes))
    found = [shown(engine.path(picture), picture, options).image for picture in stored]
    if not body.show_extras_results:
        found = []
    if single:
        return {"html_info": lines, "image": found[0] if found else None}
    return {"html_info": lines, "images": found}


def _enlarged(body: Extras, engine: Engine) -> Fields:
    """The fields of `Upscale`. Where no upscaler is chosen the size stays, as in AUTOMATIC1111."""
    settings = engine.models.settings
    fields: Fields = {"upscaler": upscaler_name(body.upscaler_1, settings), "crop": body.upscaling_crop}
    if body.upscaler_1 in ("", "None"):
        fields |= {"upscaler": "None", "scale": 1.0}
    elif body.resize_mode == 0:
        fields["scale"] = body.upscaling_resize
    else:
        fields |= {"width": body.upscaling_resize_w, "height": body.upscaling_resize_h}
    if body.upscaler_2 not in ("", "None") and body.extras_upscaler_2_visibility > 0:
        fields["upscaler_2"] = upscaler_name(body.upscaler_2, settings)
        fields["upscaler_2_visibility"] = body.extras_upscaler_2_visibility
    asked = {"GFPGAN": body.gfpgan_visibility, "CodeFormer": body.codeformer_visibility}
    wanted = [(name, visibility) for name, visibility in asked.items() if visibility > 0]
    if len(wanted) > 1:
        raise HTTPException(400, "codeformer_visibility: one face restorer at a time; set it or gfpgan_visibility to 0")
    for name, visibility in wanted:
        entry = _face_restorer(name, entries(settings, "face_restorer"))
        fields |= {"face_restorer": entry.name, "face_visibility": visibility, "faces_first": not body.upscale_first}
        if name == "CodeFormer":
            fields["fidelity"] = body.codeformer_weight
    return fields


def opened_picture(studio: Studio, url: str) -> Image.Image:
    """The picture of a data URL, RGB or RGBA. Raises DanqingError."""
    check_picture(decoded(url, "image", studio.engine.rules), "image", studio.engine.rules)
    return open_picture(url)


def png_info(studio: Studio, source: str) -> Fields:
    """The answer to png-info: a picture's infotext, all other texts that it carries, and the infotext's pairs."""
    file = picture_file(studio, source)
    text = file.texts.get("parameters", "")
    if not text:
        try:
            text = as_infotext(tell(file))
        except DanqingError:
            text = ""
    items = {name: value for name, value in file.texts.items() if name != "parameters"}
    return {"info": text, "items": items, "parameters": png_parameters(text)}


def picture_file(studio: Studio, source: str) -> PictureFile:
    """A body's picture, opened safely. Raises HTTPException or DanqingError."""
    rules = studio.engine.rules
    data = decoded(studio.opened(source.strip()), "image", rules)
    form = check_picture(data, "image", rules)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"picture.{form.lower()}"
        path.write_bytes(data)
        return read_picture(path)


def interrogated(studio: Studio, body: Interrogate) -> Fields:
    """A caption. AUTOMATIC1111's other model, deepdanbooru, is not there."""
    if not body.image:
        raise HTTPException(404, "Image not found")
    picture = opened_picture(studio, studio.opened(body.image)).convert("RGB")
    folder = find_captioner(studio.engine.models.settings) if body.model == "clip" else None
    if folder is None:
        hint = "put the folder of a BLIP captioner, as transformers writes it, into a model folder"
        other = f"Model not found: {quoted(body.model)}; there is clip"
        raise HTTPException(404, f"Model not found: {hint}" if body.model == "clip" else other)
    options = studio.options.all()
    beams, least, most = (options[f"interrogate_clip_{name}"] for name in ("num_beams", "min_length", "max_length"))
    most = min(max(most, 1), 256)
    caption = load_captioner(folder, beams=min(max(beams, 1), 16), least=min(max(least, 0), most), most=most)
    return {"caption": caption(picture)}


def detect(studio: Studio, body: Detect) -> Fields:
    module = module_named(body.controlnet_module)
    sources = body.controlnet_input_images or body.controlnet_images
    if not sources:
        raise HTTPException(422, "No image selected")
    options = studio.options.all()
    size = body.controlnet_processor_res if body.controlnet_processor_res > 0 else 512
    if not 64 <= size <= 8192:
        raise HTTPException(422, f"controlnet_processor_res: should be from 64 to 8192, but it is {size}")
    found = []
    poses = []
    for source in sources:
        picture = opened_picture(studio, studio.opened(source)).convert("RGB")
        image, people = detected(module, picture, size, body.controlnet_threshold_a, body.controlnet_threshold_b)
        found.append(encoded(image, None, {**options, "samples_format": "png"}))
        if people is not None:
            poses.append(people)
    return {"info": "Success", "images": found, **({"poses": poses} if poses else {})}


def all_options(studio: Studio) -> Fields:
    """All options; the checkpoint by its title, which is never unset: where none was chosen, it is the default one."""
    values = studio.options.all()
    models = studio.engine.models
    try:
        entry = models.check(values["sd_model_checkpoint"]) or BUNDLED
    except DanqingError:  # chosen once, and gone since
        return values
    row = sd_model(entry, HashCache(models.settings.data_dir))
    return values | {"sd_model_checkpoint": row["title"], "sd_checkpoint_hash": row["sha256"] or ""}


def set_options(studio: Studio, values: Fields) -> None:
    current = all_options(studio)
    changed = {name: value for name, value in values.items() if name not in current or value != current[name]}
    name = changed.get("sd_model_checkpoint")
    if isinstance(name, str):
        check_model(studio.engine, name)
    studio.options.set(changed)
