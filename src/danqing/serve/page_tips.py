"""What is said of the controls that stand for no field of a request: fields have their descriptions and the glossary's words."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from typing import Any

from danqing.serve.page_controls import Control
from danqing.serve.page_texts import LANGUAGES, Language

TIPS: Mapping[str, tuple[str, str]] = {
    # a control's id, or what of it comes after the tab's name -> English, Chinese
    "paint": ("Put this into the queue; Ctrl+Enter does so, too.", "加入队列开始作画；也可按 Ctrl+Enter。"),
    "interrupt": ("End this job after the present step and keep what is painted; Esc.", "画完这一步就结束任务，保留已画的；Esc。"),
    "skip": ("Leave out the batch that is being painted, and go on with the next.", "放弃正在画的一批，继续下一批。"),
    "cancel": ("End this job; what is being painted is lost, finished pictures stay.", "结束任务；正在画的会丢掉，画完的保留。"),
    "keep_seed": ("Put the seed of this picture into its box, to paint it again or change it a little.", "把这张图的种子填入，以重画或微调。"),
    "copy": ("Write a copy into the folder of pictures, named as the settings say.", "按设置的文件名，把副本写入图片文件夹。"),
    "to-txt2img": ("Fill in there what this picture was made with.", "把这张图的生成设置填到那里。"),
    "to-img2img": ("Paint this picture over; what it was made with is filled in.", "在这张图上重绘，并填入它的生成设置。"),
    "to-upscale": ("Make this picture larger.", "放大这张图。"),
    "to-plot": ("Plot it: what it was made with is filled into “Text to picture”.", "画图表：它的生成设置会填到“文生图”。"),
    "to-pnginfo": ("Show what is written in its file.", "显示图片文件里的信息。"),
    # picture to picture
    "img2img-mode": (
        "Paint over: the whole picture. Sketch: what you draw. Inpaint: the part under the brush. Outpaint: beyond its edges.",
        "重绘：整张图。涂鸦：你画的草图。局部重绘：画笔涂过的部分。外绘扩图：画面之外。",
    ),
    "img2img-brush": ("What the brush covers is painted anew; the rest stays.", "画笔涂过的部分重新画，其余不变。"),
    "img2img-sketch": ("Draw with colours; it is painted over like any picture.", "用颜色涂画，再像图片一样重绘。"),
    # plots
    "plot-source": ("The tab whose prompt, picture and settings are painted in all cells.", "每一格都按哪一页的提示词、图片与设置来画。"),
    "plot-way": (
        "Along up to three axes; with every subset of a prompt's parts; or a list of prompts.",
        "沿至多三条轴；提示词各部分的所有组合；或一列提示词。",
    ),
    "plot-axis": (
        "X/Y/Z plot: what changes along columns (X), rows (Y) and sheets side by side (Z).",
        "X/Y/Z 图表：各列 (X)、各行 (Y)、并排的各张 (Z) 改变什么。",
    ),
    "plot-values": (
        "Values apart by commas; 1-5 counts, 10-30 (+10) in tens, 1-10 [4] takes four.",
        "以逗号分隔；1-5 逐个，10-30 (+10) 每次加十，1-10 [4] 取四个。",
    ),
    # gallery
    "gallery-words": ("All of the words are in prompt, model or tags; “in this order” with quotation marks.", "提示词、模型或标签含有所有的词；加引号则按原样查找。"),
    "gallery-search": ("Find pictures with these words and filters.", "按这些词与筛选条件查找。"),
    "gallery-kind": ("What painted the picture.", "图片是怎么画的。"),
    "gallery-least": ("Only pictures with so many stars or more.", "只看这么多星及以上的图片。"),
    "gallery-model": ("A part of the model's name.", "模型名称的一部分。"),
    "gallery-tag": ("Only pictures that you gave this tag.", "只看加了这个标签的图片。"),
    "gallery-seed": ("The number from which the noise was made.", "生成噪声的数。"),
    "gallery-since": ("Painted on this day or later: 2026-11-21.", "这一天或之后画的：2026-11-21。"),
    "gallery-until": ("Painted on this day or earlier: 2026-11-21.", "这一天或之前画的：2026-11-21。"),
    "gallery-favourites": ("Only those that you marked with a heart.", "只看收藏的图片。"),
    "gallery-bin": ("What was deleted in the last 30 days.", "最近 30 天删除的图片。"),
    "gallery-earlier": ("The page of newer pictures.", "较新的一页。"),
    "gallery-later": ("The page of older pictures.", "较旧的一页。"),
    "gallery-favourite": ("Mark this picture; the filter finds those that are.", "收藏这张图，可在筛选里找到。"),
    "gallery-rating": ("One to five stars; the filter finds them.", "一到五星，可在筛选里找到。"),
    "gallery-tags": ("Words of your own, by which the search finds it; Enter saves them.", "自己的标签，可用来搜索；按回车保存。"),
    "gallery-delete": ("Into the bin, from which it is taken for good after 30 days.", "移入回收站，30 天后彻底删除。"),
    "gallery-undo": ("Take it out of the bin.", "从回收站取回。"),
    "compare-left": ("Take the chosen picture as the left one.", "把选中的图作为左图。"),
    "compare-right": ("Take the chosen picture as the right one.", "把选中的图作为右图。"),
    "gallery-import": (
        "Bring in what lies in the data folder's studio/import, and in the folders of --import-dir.",
        "导入数据文件夹 studio/import 与 --import-dir 文件夹里的图片。",
    ),
    # models, PNG info, glossary
    "models-name": ("A part of the file's name.", "文件名的一部分。"),
    "models-kind": ("Checkpoint, LoRA, VAE, ControlNet ...", "检查点、LoRA、VAE、ControlNet……"),
    "pnginfo-picture": ("A picture's own record of how it was made (infotext) is read; nothing is painted.", "读取图片自带的生成信息；不会作画。"),
    "glossary-words": ("A word in English or Chinese.", "中文或英文的词。"),
    # settings
    "dq-language": ("Of this page, in this browser.", "此浏览器中本页的语言。"),
    "dq-theme": ("Of this page, in this browser.", "此浏览器中本页的主题。"),
    "settings-previews": ("A small picture of what there is by now, while it is painted.", "作画时显示当前进度的小图。"),
    "settings-pause": ("Stop after the present step; nothing is lost.", "画完这一步就停；什么都不会丢。"),
    "settings-resume": ("Go on with the queue.", "继续队列。"),
    "settings-clear": ("Cancel the jobs that wait; what is being painted goes on.", "取消所有等待的任务；正在画的继续。"),
    "settings-unload": ("Let go of the models in memory; they are loaded again when needed.", "释放内存中的模型；用到时再加载。"),
    "settings-refresh": ("Show the queue and memory as they are now.", "显示当前的队列与内存。"),
    "settings-default_model": ("The model (checkpoint) that paints where none is named.", "没有指定模型（检查点）时用的模型。"),
    "settings-output_format": ("Of copies; the gallery's pictures stay PNG.", "副本的格式；图库里仍是 PNG。"),
    "settings-picture_lossless": ("Larger files, each pixel kept.", "文件较大，每个像素都保留。"),
    "settings-write_metadata": ("Prompt, seed and settings (infotext) are written into copies.", "把提示词、种子与设置（生成信息）写入副本。"),
    "settings-save": ("Keep what stands on this tab.", "保存本页的设置。"),
}  # fmt: skip
LINED = frozenset({"textbox", "dropdown", "checkbox", "checkboxgroup", "radio", "slider", "number"})
"""Components under whose label Gradio shows a line, where the label is shown."""
PAINTED = frozenset({"image", "imageeditor", "file"})
_LABEL = ':is([data-testid="block-label"], [aria-dropeffect])'
"""A picture's label, and the place to drop one."""


def tip(identity: str, language: Language) -> str:
    """What is said of the control with this id, or nothing."""
    row = TIPS.get(identity) or TIPS.get(identity.rpartition("-")[0]) or TIPS.get(identity.partition("-")[2])
    return "" if row is None else row[LANGUAGES.index(language)]


def explain(components: Iterable[Any], controls: Iterable[Control], language: Language) -> str:
    """Give the controls their lines, where Gradio shows one; for the others, HTML from which `page.js` takes them.

    Pictures and editors are explained at their labels and while they are empty, for later one paints on them.
    """
    own = {control.component._id: control.said for control in controls}
    tips = {}
    for each in components:
        said = own.get(each._id) or tip(each.elem_id or "", language)
        if not said:
            continue
        if each.get_block_name() in LINED and each.show_label is not False:
            each.info = said
            continue
        place = f"#{each.elem_id}" if each.elem_id else f".{each.elem_classes[-1]}"
        tips[f"{place} {_LABEL}" if each.get_block_name() in PAINTED else place] = said
    told = html.escape(json.dumps(tips, ensure_ascii=False), quote=True)
    return f'<div hidden data-dq-tips="{told}"></div>'
