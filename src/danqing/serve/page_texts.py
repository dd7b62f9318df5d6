"""The page's words in English and Chinese, and which of both a browser wants."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

from danqing.serve.page_fields import FIELDS, GLOSSARY

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
COOKIE = "danqing_language"
FILES = Path(__file__).parents[1] / "assets" / "page"
Say = Callable[[str], str]
"""A key of `WORDS` -> the word."""

WORDS: Mapping[str, tuple[str, str]] = {
    "title": ("Danqing", "丹青"),
    "tagline": ("a studio for pictures", "画室"),
    # tabs
    "txt2img": ("Text to picture", "文生图"),
    "img2img": ("Picture to picture", "图生图"),
    "upscale": ("Upscale", "放大"),
    "plot": ("Plots", "图表"),
    "gallery": ("Gallery", "图库"),
    "models": ("Models", "模型"),
    "pnginfo": ("PNG info", "图片信息"),
    "settings": ("Settings", "设置"),
    "glossary": ("Glossary", "术语表"),
    # painting
    "paint": ("Paint", "作画"),
    "enlarge": ("Enlarge", "放大"),
    "hint_prompt": ("What shall be painted?", "想画什么？"),
    "hint_negative_prompt": ("What to keep away from", "要避开什么"),
    "keep_seed": ("Use its seed", "沿用种子"),
    "copy": ("Save a copy", "保存副本"),
    "copied": ("saved as", "已保存为"),
    "welcome_txt2img": (
        "Your picture will appear here. Press Paint, or try one of these:",
        "图片会出现在这里。点“作画”，或试试这些：",
    ),
    "welcome_img2img": (
        "Give a picture, say what it should become, and press Paint.",
        "选一张图片，说说要变成什么，再点“作画”。",
    ),
    "welcome_upscale": ("Give one picture or several; they come back larger.", "选一张或几张图片，放大后显示在这里。"),
    "welcome_plot": (
        "The plot will appear here, each cell a picture of the gallery.",
        "图表会出现在这里，每一格也在图库里。",
    ),
    "examples": (
        "a red apple, 3d style|a cat face, flat style|a rainbow, noto style|a sailboat, twemoji style",
        "红苹果，立体风格|猫脸，扁平风格|彩虹，诺托风格|帆船，推特风格",
    ),
    "keys": ("Ctrl+Enter paints, Esc interrupts", "Ctrl+Enter 作画，Esc 中断"),
    "interrupt": ("Interrupt", "中断"),
    "skip": ("Skip", "跳过"),
    "cancel": ("Cancel", "取消"),
    "auto": ("Automatic", "自动"),
    "on": ("on", "启用"),
    "tokens": ("tokens", "词元"),
    "results": ("Results", "结果"),
    "result_info": ("How it was made", "生成信息"),
    "mode": ("What to do", "做什么"),
    "mode_img2img": ("Paint over", "重绘"),
    "mode_sketch": ("Sketch", "涂鸦"),
    "mode_inpaint": ("Inpaint", "局部重绘"),
    "mode_outpaint": ("Outpaint", "外绘扩图"),
    "no_picture": ("give a picture first", "请先选一张图片"),
    "no_mask": ("paint over the part that shall change first", "请先用画笔涂出要改变的部分"),
    "brush": ("Picture: paint with the brush over what shall change", "图片：用画笔涂出要改变的部分"),
    "sketch": ("Picture to draw on, or an empty sheet", "在图片或空白画布上涂画"),
    "queued": ("waits in the queue", "排队中"),
    "running": ("painting", "作画中"),
    "paused": ("paused", "已暂停"),
    "done": ("done", "完成"),
    "failed": ("failed", "失败"),
    "cancelled": ("cancelled", "已取消"),
    "interrupted": ("interrupted", "已中断"),
    "seconds_left": ("s left", "秒后完成"),
    "before": ("before it", "个任务在前"),
    "step": ("step {}/{}", "第 {}/{} 步"),
    "gone": ("this job is not there any more", "此任务已不存在"),
    # groups of controls
    "group_hires": ("Hires fix", "高分辨率修复"),
    "group_seeds": ("Seeds and noise", "种子与噪声"),
    "group_reading": ("How the prompt is read", "提示词的解读"),
    "group_guidance": ("Guidance", "引导"),
    "group_details": ("Samplers and schedules", "采样与调度"),
    "group_sdxl": ("What SDXL is told of the picture", "告诉 SDXL 的尺寸"),
    "group_refiner": ("Refiner", "精修模型"),
    "group_speed": ("Large pictures, speed", "大图与加速"),
    "group_lora": ("LoRAs and regions", "LoRA 与分区"),
    "group_mask": ("Mask", "蒙版"),
    "group_masking": ("Mask from a picture or words, soft inpainting", "由图片或文字得到蒙版、柔和重绘"),
    "group_over": ("Colours, loops, inversion, SD upscale", "颜色、回送、反演、SD 放大"),
    "group_control": ("ControlNet and image prompts", "ControlNet 与图像提示"),
    "group_detail": ("Faces and details painted again", "面部与细节修复"),
    "group_outpaint": ("Where to paint on", "向哪里扩展"),
    "group_faces": ("Faces", "面部"),
    "group_more": ("More", "更多"),
    # plot
    "plot_source": ("What is plotted", "画什么"),
    "plot_axes": ("X/Y/Z plot", "X/Y/Z 图表"),
    "plot_matrix": ("Prompt matrix", "提示词矩阵"),
    "plot_hint": (
        "Paints what stands on that tab, with these settings changed.",
        "按该页的设置作画，并逐一改变下列参数。",
    ),
    "no_axis": ("Nothing", "无"),
    "values_hint": ("1, 2, 3 or 10-30 (+10)", "1, 2, 3 或 10-30 (+10)"),
    "matrix_hint": (
        "Write “a castle | night | snow” as that tab's prompt: painted with night, with snow, with both, with neither.",
        "在该页的提示词里写“城堡 | 夜晚 | 下雪”：分别画夜晚、下雪、两者兼有与两者皆无的城堡。",
    ),
    "matrix_negative": ("Split the negative prompt", "拆分反向提示词"),
    "matrix_negative_hint": (
        "Its parts are combined, in place of the prompt's.",
        "组合反向提示词的各部分，而非提示词的。",
    ),
    "plot_prompts": ("Prompts", "提示词列表"),
    "prompts_hint": (
        'a line for each picture: a prompt, or --prompt "a castle" --steps 30',
        '每行一张：一条提示词，或 --prompt "城堡" --steps 30',
    ),
    "seed_each": ("A seed for each cell", "每格不同种子"),
    "seed_each_hint": ("The seed counts up; else all cells have the same.", "种子逐格加一；否则各格相同。"),
    "legend": ("Labels", "标签"),
    "legend_hint": ("The values, beside the rows and above the columns.", "在行首与列首标出取值。"),
    "margin": ("Space between pictures", "图片间距"),
    "margin_hint": ("In pixels.", "像素。"),
    "axis": ("Axis", "坐标轴"),
    "values": ("Values", "取值"),
    "vary_seeds": ("Vary seeds along", "沿哪些轴改变种子"),
    "vary_seeds_hint": ("Along these axes each cell has the next seed.", "沿这些轴，每格的种子加一。"),
    # gallery
    "words": ("Words in prompt, model or tags", "提示词、模型或标签中的词"),
    "search": ("Search", "搜索"),
    "filters": ("Filters", "筛选"),
    "all": ("All", "全部"),
    "newer": ("‹ Newer", "‹ 较新"),
    "older": ("Older ›", "较旧 ›"),
    "of_model": ("Model name contains", "模型名称包含"),
    "kind_txt2img": ("Text to picture", "文生图"),
    "kind_img2img": ("Picture to picture", "图生图"),
    "kind_inpaint": ("Inpaint", "局部重绘"),
    "kind_outpaint": ("Outpaint", "外绘扩图"),
    "kind_upscale": ("Upscale", "放大"),
    "kind_plot": ("Plot", "图表"),
    "rating": ("Rating, at least", "评分至少"),
    "rate": ("Rating", "评分"),
    "favourite": ("Favourite", "收藏"),
    "favourites": ("Favourites only", "仅收藏"),
    "bin": ("Bin", "回收站"),
    "tag": ("Tag", "标签"),
    "tags": ("Tags, apart by commas", "标签，以逗号分隔"),
    "kind": ("Kind", "类型"),
    "seed": ("Seed", "种子"),
    "since": ("From the day", "起始日期"),
    "until": ("To the day", "截止日期"),
    "day": ("2026-11-21", "2026-11-21"),
    "wrong_filter": ("a seed is a whole number, a day is written as 2026-11-21", "种子是整数，日期写作 2026-11-21"),
    "none_found": ("no pictures", "没有图片"),
    "save": ("Save", "保存"),
    "kept": ("saved", "已保存"),
    "delete": ("Delete", "删除"),
    "undo": ("Undo delete", "撤销删除"),
    "sent": ("sent", "已发送"),
    "choose": ("choose a picture first", "请先选一张图片"),
    "compare": ("Compare two pictures", "对比两张图片"),
    "compare_hint": (
        "Choose a picture above and take it as one side, then another as the other side.",
        "在上面选一张图片作为一侧，再选另一张作为另一侧。",
    ),
    "as_left": ("Take as left", "作为左图"),
    "as_right": ("Take as right", "作为右图"),
    "differs": ("Field", "不同之处"),
    "left": ("Left", "左"),
    "right": ("Right", "右"),
    "same": ("made with the same settings", "设置完全相同"),
    "import": ("Import pictures", "导入图片"),
    "imported": ("imported from", "已导入，来自"),
    "deleted": ("in the bin for 30 days", "已移入回收站，保留 30 天"),
    # models
    "refresh": ("Refresh", "刷新"),
    "filter": ("Name contains", "名称包含"),
    "trigger": ("trigger words", "触发词"),
    "family": ("family", "家族"),
    "size": ("size", "大小"),
    "problem": ("problem", "问题"),
    "add": ("Add to the prompt", "加入提示词"),
    "paint_with": ("Paint with it", "用它作画"),
    "no_models": (
        "Only the bundled model is here. Put files into the model folders, or run: danqing models add NAME",
        "目前只有内置模型。请将文件放入模型文件夹，或运行：danqing models add 名称",
    ),
    # PNG info
    "a_picture": ("A picture made by any tool", "任何工具生成的图片"),
    "pnginfo_hint": (
        "Drop a picture: what AUTOMATIC1111, ComfyUI, NovelAI, InvokeAI or Danqing wrote into it stands here.",
        "放入一张图片，这里显示 AUTOMATIC1111、ComfyUI、NovelAI、InvokeAI 或丹青写入的生成信息。",
    ),
    "made_with": ("made with", "生成工具"),
    # settings
    "language": ("Language", "语言"),
    "theme": ("Theme", "主题"),
    "light": ("light", "浅色"),
    "dark": ("dark", "深色"),
    "system": ("as the system", "跟随系统"),
    "appearance": ("Appearance", "外观"),
    "previews": ("Live previews while painting", "作画时显示实时预览"),
    "studio": ("Queue and memory", "队列与内存"),
    "waiting": ("waiting", "个等待中"),
    "defaults": ("Filled in when the page opens", "打开页面时预填"),
    "defaults_hint": (
        "For “Text to picture”. What is left empty is the model's own.",
        "用于“文生图”。留空则用模型自己的默认值。",
    ),
    "copies": ("Model and copies", "模型与副本"),
    "copies_hint": (
        "The gallery keeps every picture as PNG; “Save a copy” writes one into the folder of pictures like this.",
        "图库以 PNG 保存每张图片；“保存副本”按以下设置写入图片文件夹。",
    ),
    "default_model": ("Default model", "默认模型"),
    "output_pattern": ("Name pattern", "文件名格式"),
    "pattern_hint": ("such as [date]/[seed]-[prompt_words]", "例如 [date]/[seed]-[prompt_words]"),
    "output_format": ("Format", "格式"),
    "picture_quality": ("Quality", "质量"),
    "quality_hint": ("of JPEG and AVIF, and of WebP and JPEG XL with loss", "JPEG、AVIF，以及有损的 WebP、JPEG XL"),
    "picture_lossless": ("WebP, JPEG XL without loss", "WebP、JPEG XL 无损"),
    "write_metadata": ("How it was made, too", "写入生成信息"),
    "every_setting": ("All settings", "全部设置"),
    "queue": ("Queue", "队列"),
    "pause": ("Pause the queue", "暂停队列"),
    "resume": ("Resume", "继续"),
    "clear": ("Cancel all that wait", "取消所有排队任务"),
    "loaded": ("Models in memory", "内存中的模型"),
    "unload": ("Unload all", "全部卸载"),
    "setting": ("Setting", "设置"),
    "value": ("Value", "值"),
    "source": ("From", "来源"),
    "jobs": ("Jobs", "任务"),
    "state": ("State", "状态"),
    "prompt": ("Prompt", "提示词"),
    "job_first": ("Paint it first", "移到最前"),
    "job_earlier": ("Earlier", "提前"),
    "job_later": ("Later", "推后"),
    "job_cancel": ("Cancel", "取消"),
    "origin": ("Asked by", "来自"),
    "pictures": ("Pictures", "图片"),
}

CHOICES: Mapping[str, str] = {
    # values of choices in Chinese; one that is missing is shown as it is
    "none": "无", "random": "随机", "all": "全部", "both": "双向", "cpu": "CPU", "gpu": "GPU", "philox": "philox",
    "original": "原始", "no norm": "不归一化", "ignore": "忽略", "merge": "相加", "switch": "轮换", "composite": "合成",
    "just resize": "直接缩放", "crop and resize": "裁剪后缩放", "resize and fill": "缩放后填充",
    "latent upscale": "潜空间放大", "aggressive": "先快后慢", "linear": "线性", "lazy": "先慢后快", "fill": "填充",
    "latent noise": "潜空间噪声", "latent nothing": "潜空间留空", "balanced": "均衡",
    "my prompt is more important": "偏向提示词", "controlnet is more important": "偏向 ControlNet",
    "guess mode": "猜测模式", "concat": "并列", "average": "平均", "add": "相加", "subtract": "相减",
    "norm average": "归一化平均", "ease in": "渐入", "ease out": "渐出", "ease in-out": "渐入渐出",
    "reverse in-out": "两端强", "weak input": "弱输入", "weak middle": "弱中间", "weak output": "弱输出",
    "strong middle": "强中间", "style transfer": "风格迁移", "composition": "构图", "strong style transfer": "强风格迁移",
    "style and composition": "风格与构图", "style transfer precise": "精确风格迁移", "composition precise": "精确构图",
}  # fmt: skip


def say_in(language: Language) -> Say:
    """The words of a language. The function raises KeyError for a key that there is not."""
    index = LANGUAGES.index(language)
    return lambda key: WORDS[key][index]


def wanted(cookie: str, accept_language: str) -> Language:
    """The language that a person switched to (the cookie's), or else the first of the browser's that there is."""
    match = re.search(rf"(?:^|;\s*){COOKIE}=(\w+)", cookie)
    if match is not None and match[1] in LANGUAGES:
        return "zh" if match[1] == "zh" else "en"
    ranked = []
    for order, part in enumerate(accept_language.split(",")):
        name, _, quality = part.strip().casefold().partition(";q=")
        try:
            ranked.append((-float(quality or 1), order, name.strip()[:2]))
        except ValueError:
            continue
    return next(("zh" if name == "zh" else "en" for _, _, name in sorted(ranked) if name in LANGUAGES), "en")


@lru_cache(maxsize=1)
def glossary() -> tuple[tuple[str, str, str, str], ...]:
    """The glossary's rows: word, 中文, meaning, 说明."""
    rows = []
    for line in (FILES / "glossary.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 4 and cells[0] != "word" and set(cells[0]) != {"-"}:
            rows.append((cells[0], cells[1], cells[2], cells[3]))
    return tuple(rows)


def term(word: str) -> tuple[str, str, str, str] | None:
    """The glossary's row that begins so."""
    return next((row for row in glossary() if word in re.split(r", | \(|: ", row[0])), None)


def label(group: str, field: str, language: Language) -> str:
    """What a control is called."""
    row = _row(group, field)
    if row is None:
        return field.replace("_", " ").capitalize()
    return row[LANGUAGES.index(language)]


def tooltip(group: str, field: str, description: str, language: Language) -> str:
    """What is said of a control: its field's description and, where the glossary has the word, what that means."""
    row = _row(group, field)
    said = row[2] if language == "zh" and row is not None else description
    found = term(GLOSSARY[field]) if field in GLOSSARY and not group else None
    meaning = "" if found is None else found[3 if language == "zh" else 2]
    if not meaning or meaning in said or said in meaning:
        return meaning if len(meaning) > len(said) else said
    return f"{said} — {meaning}"


def choice(value: str, language: Language) -> str:
    """A choice as it is shown."""
    return CHOICES.get(value, value) if language == "zh" else value


def _row(group: str, field: str) -> tuple[str, str, str] | None:
    return FIELDS.get(f"{group}.{field}") or FIELDS.get(field)
