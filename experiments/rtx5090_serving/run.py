"""gpt-oss-120b served by an RTX 5090: python experiments/rtx5090_serving/run.py

Prints the tables of README.md; writes results.json and serving.png beside this file (or to --out).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from serving_cells import Cell, key_of, routing
from serving_study import HERE, PUBLISHED, study
from serving_tables import draw, tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the results")
    parser.add_argument("--workers", type=int, default=2, help="processes; 2")
    parser.add_argument("--tables", action="store_true", help="of the results in --out")
    parser.add_argument("--no-plot", action="store_true")
    parser.add_argument(
        "--trace-out", type=Path, help="only write the fitted routing: for uvmsim serve"
    )
    args = parser.parse_args()
    kept = args.out / "results.json"
    if args.trace_out:
        s = json.loads(kept.read_text(encoding="utf-8"))["fits"]["fit"]["stickiness"]
        routing(key_of(Cell("uvm", stickiness=s))).save(args.trace_out)
        return
    if args.tables:
        made = json.loads(kept.read_text(encoding="utf-8"))
    else:
        made = study(args.workers)
        args.out.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_suffix(".tmp")
        temporary.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        temporary.replace(kept)
    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    print("\n\n".join(tables(made, published)))
    if not args.no_plot:
        draw(made, published, args.out / "serving.png")


if __name__ == "__main__":
    main()
