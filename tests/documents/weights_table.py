"""The table of weights in README.md and README_zh.md, made from models_vit.BACKBONES."""

from pathlib import Path

import models_vit

ROOT = Path(__file__).parents[2]
PAGES = {"en": ROOT / "README.md", "zh": ROOT / "README_zh.md"}
START, END = "<!-- table of weights, made by python -m tests.documents -->", "<!-- end of that table -->"
PUBLISHERS = {
    "Dinov3": "[Meta, DINOv3](https://ai.meta.com/resources/models-and-libraries/dinov3-downloads/)",
    "Dinov2": "[Meta, DINOv2](https://github.com/facebookresearch/dinov2)",
    "RETFound_Green": "[J. Engelmann, RETFound-Green](https://github.com/justinengelmann/RETFound_Green)",
    "DERETFound": "[Y. Sun et al., RETFound-DE](https://zenodo.org/records/13340936)",
    "VisionFM": "[J. Qiu et al., VisionFM](https://github.com/ABILab-CUHK/VisionFM)",
}
WORDS = {
    "en": {
        "header": ("Parameters", "Weights come from", "Licence of the weights", "Features compared with"),
        "hub": "hub: ",
        "file": "a file that you fetch: ",
        "same": "as above",
        "any": "any name that timm knows",
        "or nothing": "a file, or nothing",
        "own page": "that model's own page",
        "card": "see timm's model card",
    },
    "zh": {
        "header": ("参数量", "权重来源", "权重的许可", "特征与什么比较过"),
        "hub": "hub：",
        "file": "自行获取的文件：",
        "same": "同上",
        "any": "timm 认识的任何名称",
        "or nothing": "一个文件，或不给",
        "own page": "该模型自己的页面",
        "card": "见 timm 的模型卡",
        models_vit.AUTHORS: "作者代码的数值",
        models_vit.SECOND: "第二种计算",
        models_vit.NAMES: "仅名称",
        "non-commercial research only": "仅限非商业研究",
        "not stated (code: MIT)": "未说明（代码：MIT）",
        "not stated": "未说明",
        "research and education only": "仅限研究与教育",
    },
}


def table(language: str) -> str:
    """The table in Markdown: a row a weight file, and one for timm's models."""
    words, named = WORDS[language], set()
    lines = [("`--model`", "`--model_arch`", "`--finetune`", *words["header"]), ["---"] * 7]
    for backbone in models_vit.BACKBONES:
        for name in backbone.weights:
            if backbone.on_hub or name.startswith("hf:"):
                repository = repository_of(name)
                source = f"{words['hub']}[{repository}](https://huggingface.co/{repository})"
            elif backbone.model in named:
                source = words["same"]
            else:
                source = words["file"] + PUBLISHERS[backbone.model]
                named.add(backbone.model)
            lines.append((f"`{backbone.model}`", f"`{backbone.arch}`", f"`{name}`",
                          millions(backbone.parameters), source,
                          words.get(backbone.licence, backbone.licence),
                          words.get(backbone.compared, backbone.compared)))
    lines.append((f"`{models_vit.TIMM}`", words["any"], words["or nothing"], "–", words["own page"],
                  words["card"], "–"))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def repository_of(name: str) -> str:
    """owner/repo on the hub of a name that --finetune takes."""
    if name.startswith("hf:"):
        return "/".join(name.removeprefix("hf:").split("/")[:2])
    return models_vit.HUB_FILES[name][0]


def millions(parameters: int) -> str:
    number = parameters / 1e6
    return f"{number:.1f} M" if number < 1000 else f"{number:.0f} M"


def page(language: str) -> str:
    """The whole README with the table between its marks. ValueError where they are not there once each."""
    text = PAGES[language].read_text(encoding="utf-8")
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end) or START in after or END in after:
        raise ValueError(f"{PAGES[language].name} needs {START} and {END}, once each")
    return f"{before}{START}\n{table(language)}\n{END}{after}"
