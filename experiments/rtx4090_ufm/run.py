"""The UFM benchmark on an RTX 4090: published numbers, simulated numbers, and what nobody ran.

python experiments/rtx4090_ufm/run.py

Prints the two tables of README.md; writes results.json and ufm.png beside this file (or into
``--out FOLDER``). Takes some seconds, needs no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import ufm_tables  # noqa: E402
from ufm_study import study  # noqa: E402


def main() -> None:
    """Simulate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=HERE, help="folder for results.json and ufm.png"
    )
    parser.add_argument("--engine", choices=("fast", "des"), default="fast")
    parser.add_argument("--no-plot", action="store_true", help="write no picture")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    result = study(args.engine)
    print(ufm_tables.published_table(result["table"]), end="\n\n")
    print(ufm_tables.unrun_table(result["unrun"]))
    target = args.out / "results.json"
    partial = target.with_name(".results.json.partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(target)
    if not args.no_plot:
        ufm_tables.draw(result, args.out / "ufm.png")


if __name__ == "__main__":
    main()
