"""The mistakes that people commonly make on the page, in Chinese; messages that are not here stay English."""

from __future__ import annotations

import re
from collections.abc import Mapping

from danqing.serve.page_fields import FIELDS
from danqing.serve.page_texts import Language

ERRORS: Mapping[str, str] = {
    # a pattern of the English message, or of a part of it -> Chinese
    r"should be a valid (?:number|decimal)": "应为数字",
    r"should be a valid integer": "应为整数",
    r"should be greater than or equal to ([\d.]+)": r"不能小于 \1",
    r"should be greater than ([\d.]+)": r"应大于 \1",
    r"should be less than or equal to ([\d.]+)": r"不能大于 \1",
    r"should be less than ([\d.]+)": r"应小于 \1",
    r"Field required, but it is .+": "不能为空",
    r", but it is (.+?)(?=; |$)": r"，但给的是 \1",
    r"(\w+) ('.+?') is unknown": r"找不到\1 \2",
    r", and none of yours is known yet: (`.+?`) adds one": r"：还没有添加过，可用 \1 添加",
    r", and no file of styles is there; .+": "：还没有风格预设的文件",
    r"; \d+ are known; .+": "",
    r"; `danqing models list` shows the (\d+) that are": r"；`danqing models list` 列出已有的 \1 个",
    r"no such file, and no \w[\w ]* of that name is known": "没有这个文件，也没有这个名称",
    r" or (?=[^;]*\?(?:; |$))": "、",
    r"; did you mean (.+?)\?": r"；是不是 \1？",
    r"; choose one of: ": "；可选：",
    r"no such file or folder": "没有这个文件或文件夹",
    r"('.+?') (?:is a path|leads) out(?:side)? (?:of )?the model folders; give a model's name": r"\1 不在模型文件夹里；请填模型的名称",
    r"is no picture that can be read": "不是能读的图片",
    r"(\w+) pictures are not taken; send (.+)": r"不接受 \1 图片；可用：\2",
    r"the picture has more than (\d+) MB": r"图片超过 \1 MB",
    r"the picture has (\d+) million pixels; at most (\d+)": r"图片有 \1 百万像素；最多 \2 百万",
    r"the picture has more pixels than can be opened safely": "图片的像素太多，打开不安全",
    r"the picture is damaged: .+": "图片已损坏",
    r"was not uploaded, or is not there any more; give the picture again": "图片没有上传或已不在；请重新选一次",
    r"\S+ is not there any more; send the picture again": "图片已不在；请重新选一次",
    r"a picture of (\d+) million pixels(?: would come of it)?; at most (\d+)": r"会得到 \1 百万像素的图片；最多 \2 百万",
    r"has (\d+) characters; at most (\d+)": r"有 \1 个字符；最多 \2",
    r"(\d+) pictures (?:in one job|come of this); at most (\d+)": r"一个任务 \1 张图片；最多 \2 张",
    r"nothing to paint; give pixels for at least one of left, right, up, down": "没有要画的；请在左、右、上、下至少填一个像素数",
    r"give one, or a picture that is transparent where to paint": "请给出蒙版，或要重绘处透明的图片",
    r"a mask comes from a picture or from words, not from both": "蒙版由图片或文字得到，不能两者都给",
    r"give axes \(x, y, z\), or matrix, or prompts": "请选一个坐标轴，或填提示词",
    r"\baxis (.+?): it has no values": r"坐标轴 \1：没有填取值",
    r"\baxis (?=.+?: )": "坐标轴 ",
    r"('.+?') is in neither prompt; the first value is the text to replace": r"提示词里没有 \1；第一个取值是要替换的文字",
    r"it would have (\d+) cells, more than (\d+)": r"会有 \1 格，多于 \2 格",
    r"a matrix has from 1 to (\d+) parts that vary, such as .+": r"要有 1 到 \1 个变化的部分，例如“城堡 | 夜晚 | 下雪”",
    r"queue: (\d+) jobs wait already; try again when some are done": r"队列里已有 \1 个任务；请等一些完成后再试",
    r"job: there is none with the id .+": "没有这个任务",
    r"job: \w+ is \w+; only what waits has a place in the queue": "这个任务已不在排队",
    r"picture: there is none with the id .+": "没有这张图片",
    r"memory: there is too little of it; ask for smaller or fewer pictures": "内存不够；请画小一些或少一些",
    r"out of memory even with the leanest plan; choose a smaller size or batch, or close programs":
        "内存不够；请减小尺寸或单批数量，或关闭其他程序",
    r"an error of Danqing's own": "丹青自己的错误",
    r"rating: should be 0 to 5": "评分应为 0 到 5",
}  # fmt: skip
NAMES: Mapping[str, str] = {
    # what is named before a colon, or as what was not found, and is no field
    "checkpoint": "模型", "lora": "LoRA", "embedding": "嵌入", "hypernetwork": "超网络", "upscaler": "放大器",
    "sampler": "采样器", "scheduler": "调度器", "style": "风格预设", "wildcard": "通配符", "axis": "坐标轴",
    "x": "图表", "plot": "图表", "prompts": "提示词列表",
}  # fmt: skip
_NAME = re.compile(r"(?:^|(?<=; )|(?<=：)|(?<=: ))([a-z_]\w*): |(?<=找不到)(\w+)")


def explained(text: str, language: Language) -> str:
    """What went wrong, in the reader's language as far as there are words for it."""
    if language == "en":
        return text
    for pattern, chinese in ERRORS.items():
        text = re.sub(pattern, chinese, text)
    return _NAME.sub(_named, text)


def _named(match: re.Match[str]) -> str:
    field, kind = match.groups()
    name = NAMES.get(field or kind) or (FIELDS[field][1] if field in FIELDS else None)
    return match[0] if name is None else f"{name}：" if field else name
