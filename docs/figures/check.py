"""The picture of the checker's output: `python docs/figures/check.py` writes docs/figures/check.svg."""

import re
from io import StringIO
from pathlib import Path

import torch
from rich.console import Console
from transformers import BertConfig, BertModel

from sibert.homogeneity import analyze
from sibert.homogeneity.presentation import as_renderable, blockers

config = BertConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=2, intermediate_size=64, vocab_size=50)
torch.manual_seed(0)
report = analyze(BertModel(config, add_pooling_layer=False).eval(), (torch.randint(5, 50, (2, 8)),))
console = Console(record=True, width=118, file=StringIO(), highlight=False)
console.print(as_renderable(report))
console.print("\nx all parameters together: not proved", style="bold red")
console.print(blockers(report.blockers("*", up_to_epsilon=True)), end="")
svg = console.export_svg(title="sibert check bert --up-to-epsilon")
# No fonts from elsewhere: the page reads the same without a network.
svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S).replace("Fira Code, monospace", "monospace")
target = Path(__file__).with_name("check.svg")
target.write_text(svg, encoding="utf-8")
print(f"wrote {target}")
