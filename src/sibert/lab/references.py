"""The works that the library rests on, as BibTeX, and which of them a run has used."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["REFERENCES", "bibtex", "references_of_run"]


def _entry(kind: str, key: str, **fields: str) -> str:
    lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
    return f"@{kind}{{{key},\n{lines}\n}}"


def _paper(key: str, title: str, author: str, booktitle: str, year: str, arxiv: str) -> tuple[str, str]:
    entry = _entry(
        "inproceedings", key, title=title, author=author, booktitle=booktitle, year=year, eprint=arxiv,
        archiveprefix="arXiv",
    )  # fmt: skip
    return key, entry


NEURIPS = "Advances in Neural Information Processing Systems"
ICLR = "International Conference on Learning Representations"
ICML = "International Conference on Machine Learning"

REFERENCES: dict[str, str] = dict(
    [
        _paper(
            "li2022robust",
            "Robust Training of Neural Networks using Scale Invariant Architectures",
            "Li, Zhiyuan and Bhojanapalli, Srinadh and Zaheer, Manzil and Reddi, Sashank J. and Kumar, Sanjiv",
            ICML, "2022", "2202.00980",
        ),
        _paper(
            "devlin2019bert",
            "{BERT}: Pre-training of Deep Bidirectional Transformers for Language Understanding",
            "Devlin, Jacob and Chang, Ming-Wei and Lee, Kenton and Toutanova, Kristina",
            "Proceedings of {NAACL-HLT}", "2019", "1810.04805",
        ),
        _paper(
            "you2020large",
            "Large Batch Optimization for Deep Learning: Training {BERT} in 76 minutes",
            "You, Yang and Li, Jing and Reddi, Sashank and Hseu, Jonathan and Kumar, Sanjiv and Bhojanapalli, Srinadh "
            "and Song, Xiaodan and Demmel, James and Keutzer, Kurt and Hsieh, Cho-Jui",
            ICLR, "2020", "1904.00962",
        ),
        _paper(
            "loshchilov2019decoupled", "Decoupled Weight Decay Regularization", "Loshchilov, Ilya and Hutter, Frank",
            ICLR, "2019", "1711.05101",
        ),
        _paper(
            "arora2019auto", "Theoretical Analysis of Auto Rate-Tuning by Batch Normalization",
            "Arora, Sanjeev and Li, Zhiyuan and Lyu, Kaifeng", ICLR, "2019", "1812.03981",
        ),
        _paper(
            "li2020exponential", "An Exponential Learning Rate Schedule for Deep Learning",
            "Li, Zhiyuan and Arora, Sanjeev", ICLR, "2020", "1910.07454",
        ),
        _paper(
            "li2020reconciling",
            "Reconciling Modern Deep Learning with Traditional Optimization Analyses: The Intrinsic Learning Rate",
            "Li, Zhiyuan and Lyu, Kaifeng and Arora, Sanjeev", NEURIPS, "2020", "2010.02916",
        ),
        _paper(
            "li2021validity", "On the Validity of Modeling {SGD} with Stochastic Differential Equations ({SDE}s)",
            "Li, Zhiyuan and Malladi, Sadhika and Arora, Sanjeev", NEURIPS, "2021", "2102.12470",
        ),
        _paper(
            "li2022zero", "What Happens after {SGD} Reaches Zero Loss? -- A Mathematical Framework",
            "Li, Zhiyuan and Wang, Tianhao and Arora, Sanjeev", ICLR, "2022", "2110.06914",
        ),
        _paper(
            "arora2022understanding", "Understanding Gradient Descent on Edge of Stability in Deep Learning",
            "Arora, Sanjeev and Li, Zhiyuan and Panigrahi, Abhishek", ICML, "2022", "2205.09745",
        ),
        _paper(
            "li2021convolutional", "Why Are Convolutional Nets More Sample-Efficient than Fully-Connected Nets?",
            "Li, Zhiyuan and Zhang, Yi and Arora, Sanjeev", ICLR, "2021", "2010.08515",
        ),
        _paper(
            "wan2021spherical",
            "Spherical Motion Dynamics: Learning Dynamics of Normalized Neural Network using {SGD} and Weight Decay",
            "Wan, Ruosi and Zhu, Zhanxing and Zhang, Xiangyu and Sun, Jian", NEURIPS, "2021", "2006.08419",
        ),
        _paper(
            "kosson2024rotational", "Rotational Equilibrium: How Weight Decay Balances Learning Across Neural Networks",
            "Kosson, Atli and Messmer, Bettina and Jaggi, Martin", ICML, "2024", "2305.17212",
        ),
        _paper(
            "malladi2022sdes", "On the {SDE}s and Scaling Rules for Adaptive Gradient Algorithms",
            "Malladi, Sadhika and Lyu, Kaifeng and Panigrahi, Abhishek and Arora, Sanjeev",
            NEURIPS, "2022", "2205.10287",
        ),
        _paper(
            "lyu2022understanding",
            "Understanding the Generalization Benefit of Normalization Layers: Sharpness Reduction",
            "Lyu, Kaifeng and Li, Zhiyuan and Arora, Sanjeev", NEURIPS, "2022", "2206.07085",
        ),
        _paper(
            "cohen2021gradient",
            "Gradient Descent on Neural Networks Typically Occurs at the Edge of Stability",
            "Cohen, Jeremy M. and Kaur, Simran and Li, Yuanzhi and Kolter, J. Zico and Talwalkar, Ameet",
            ICLR, "2021", "2103.00065",
        ),
        (
            "warner2024smarter",
            _entry(
                "article", "warner2024smarter",
                title="Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder for Fast, Memory Efficient, and "
                "Long Context Finetuning and Inference",
                author="Warner, Benjamin and Chaffin, Antoine and Clavi{\\'e}, Benjamin and Weller, Orion and "
                "Hallstr{\\\"o}m, Oskar and Taghadouini, Said and Gallagher, Alexis and Biswas, Raja and Ladhak, "
                "Faisal and Aarsen, Tom and Cooper, Nathan and Adams, Griffin and Howard, Jeremy and Poli, Iacopo",
                journal="arXiv preprint arXiv:2412.13663", year="2024",
            ),
        ),
        _paper(
            "chen2023symbolic", "Symbolic Discovery of Optimization Algorithms",
            "Chen, Xiangning and Liang, Chen and Huang, Da and Real, Esteban and Wang, Kaiyuan and Pham, Hieu and "
            "Dong, Xuanyi and Luong, Thang and Hsieh, Cho-Jui and Lu, Yifeng and Le, Quoc V.",
            NEURIPS, "2023", "2302.06675",
        ),
        (
            "mccandlish2018empirical",
            _entry(
                "article", "mccandlish2018empirical", title="An Empirical Model of Large-Batch Training",
                author="McCandlish, Sam and Kaplan, Jared and Amodei, Dario and {OpenAI Dota Team}",
                journal="arXiv preprint arXiv:1812.06162", year="2018",
            ),
        ),
        (
            "sibert",
            _entry(
                "software", "sibert", title="sibert: pre-training scale-invariant {BERT} encoders with plain {SGD}",
                author="{The sibert developers}", year="2026",
            ),
        ),
    ]
)  # fmt: skip
"""BibTeX entries by key."""


def bibtex(keys: Iterable[str]) -> str:
    """Entries, each once, in the order of the table.

    Args:
        keys: Of `REFERENCES`.
    """
    wanted = set(keys)
    return "\n\n".join(entry for key, entry in REFERENCES.items() if key in wanted) + "\n"


def references_of_run(run: Path) -> Sequence[str]:
    """What a run of `sibert pretrain` or `finetune` has used.

    Args:
        run: Its folder.

    Returns:
        Keys of `REFERENCES`.

    Raises:
        ValueError: If the folder holds no recipe.
    """
    names = [name for name in ("recipe.json", "finetune.json") if (run / name).is_file()]
    try:
        recipe: dict[str, Any] = json.loads((run / (names or ["recipe.json"])[0]).read_text(encoding="utf-8"))
        if not isinstance(recipe, dict):
            raise TypeError(f"expected a JSON object, got {type(recipe).__name__}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{run} is no run: it has no readable recipe.json or finetune.json") from error
    keys = ["sibert"]
    model = _architecture(run, recipe) if names == ["finetune.json"] else str(recipe.get("model", "sibert"))
    invariant = model == "sibert" or bool(recipe.get("convert"))
    optimizer = str(recipe.get("optimizer") or ("clipped_sgd" if invariant else "adamw"))
    if invariant or optimizer == "clipped_sgd":
        keys.append("li2022robust")
    if "bert" in model:
        keys.append("devlin2019bert")
    if "modernbert" in model:
        keys.append("warner2024smarter")
    if optimizer == "lamb":
        keys.append("you2020large")
    if optimizer == "adamw":
        keys.append("loshchilov2019decoupled")
    return keys


def _architecture(run: Path, recipe: dict[str, Any]) -> str:
    """What a fine-tuned model is, by its own configuration or that of where it comes from, else by that name."""
    name = str(recipe.get("model", ""))
    for folder in (run, Path(name)):
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            return str(config["model_type"]).lower()
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue  # the run is not finished, or the model is on the hub
    return Path(name).name.lower()
