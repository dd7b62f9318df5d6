"""`make demo`: sixteen prompts in two languages, painted by the bundled model, on one sheet: demo.png."""

import sys

import danqing

PROMPTS = (
    "a red apple, 3d style", "a red apple, flat style", "红苹果，诺托风格", "red apple, twemoji style",
    "dog face, 3d style", "cat face, flat style", "猫脸，推特风格", "penguin, noto style",
    "grinning face, 3d style", "rocket, flat style", "火箭，立体风格", "pizza, noto style",
    "red heart, twemoji style", "house, flat style", "rainbow, noto style", "sunflower, 3d style",
)  # fmt: skip

model = danqing.load()
painted = [danqing.paint(prompt, model, seed=1)[0].image for prompt in PROMPTS]
danqing.grid(painted, columns=4).save(sys.argv[1] if len(sys.argv) > 1 else "demo.png")
