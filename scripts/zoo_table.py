"""docs/zoo.md from the rows of docs/zoo.json."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from action_export.precision import BOUNDS

Row = dict[str, Any]

_ZOO = 125
_WIDTH = 98

_HEAD = """\
# The zoo

Every recognizer of mmaction2 1.2's `configs/recognition`, through the whole job: a checkpoint, the
export, the proof, publishing. `scripts/zoo` wrote this page, and `zoo.json` and `precisions.json`,
which have more figures.

{summary}

{codes}

- The weights are random, of a variance that deep layers keep, with BatchNorm statistics and the
  scale of the classifier measured on real videos, because trained ones could not be downloaded.
- *views*: clips and crops of the config's test pipeline; *proved*: views of the proof, with the
  centre crop. A view is independent of the others, so one or two stand for thirty. The samplers and
  crops themselves are held to mmaction2's by the tests of the runtime, and through a live server by
  `tests/e2e/test_pipelines.py`.
- *error*: the largest difference from mmaction2's scores in ONNX Runtime, as a share of their
  spread over the classes, on batches of one, two and three rows of different videos; the bound is
  1e-4. *top-1*, *top-5*: share of the best classes that are the same.
- *time*: ONNX Runtime's time on the exported graph, from uint8 clips to averaged scores, over its
  time on the plain graph of the same network, from normalised float32 to logits, which torch
  exported for one fixed shape: without our patches, or with them (*) where torch cannot export it
  otherwise. The median of alternating runs on a CPU that other work shared: a few per cent are
  noise.
- *seconds*: the export, its proof included. *peak*: resident memory of the export above that of its
  imports. *limit*: three times the checkpoint and what mmaction2's forward takes for the three
  videos of the proof's largest batch. All sizes in MiB.
"""

_COLUMNS = (
    "config", "layout", "views", "proved", "opset", "nodes", "checkpoint", "graph", "seconds",
    "peak", "limit", "error", "top-1", "top-5", "time", "verdict",
)  # fmt: skip


def table(rows: list[Row], precisions: list[Row]) -> str:
    """The page. Rows must be sorted by family; precisions: those of the second table.

    Beside what a row is in its file, `older` tells whether another code than today's made it.
    """
    proved = sum(row["verdict"] == "proved" for row in rows)
    parts = [_HEAD.format(summary=_summary(proved, len(rows)), codes=_codes(rows, precisions))]
    for family in dict.fromkeys(row["family"] for row in rows):
        of_family = [row for row in rows if row["family"] == family]
        parts.append(f"\n## {family}\n\n{_told_of(of_family)}\n\n")
        parts.append("| " + " | ".join(_COLUMNS) + " |\n")
        parts.append("|---|---|---|" + "---:|" * (len(_COLUMNS) - 4) + "---|\n")
        parts += [_line(row) for row in of_family]
    parts += _precisions(precisions)
    options = [
        f"- `{row['config']}`: `--cfg-options {' '.join(row['cfg_options'])}`\n"
        for row in rows
        if row.get("cfg_options")
    ]
    if options:
        parts += ["\n## Configs that need an option beside today's packages\n\n", *options]
    return "".join(parts)


_PRECISIONS_HEAD = """
## Precisions, and TensorRT

One config of each family in each precision, as `--accelerator tensorrt` writes it: one graph that
ONNX Runtime and TensorRT both read.

- *graph*: its size in MiB. *error*: as above, and of the scores that a live server gave to four
  concurrent requests ({server}); of fp16 also of the graph that rounds as a GPU does. The bounds
  are 1e-4, {fp16:.3g} and {int8:.3g}.
- *plan*: its size in MiB, built by NVIDIA's parser and builder without a GPU ({plans}). None
  has run: [tensorrt.md](tensorrt.md) says what was checked where.
- {agreement}
- {told}
- Weights that no training made robust lose more in int8 than trained ones do: what breaks the bound
  is refused, as it would be for a user, and so is what moves a video's scores nearer to another's
  (*inconclusive*).

"""


def _precisions(rows: list[Row]) -> list[str]:
    served = [row for row in rows if "precisions" in row]
    if not served:
        return []
    done = [each for row in served for each in row["precisions"].values() if "server" in each]
    plans = [each["plan"] for each in done if each["plan"]["verdict"] == "built"]
    head = _PRECISIONS_HEAD.format(
        server=", ".join({each["server"] for each in done}),
        plans=", ".join({f"{p['tensorrt']}, for {p['compute_capability']}" for p in plans}),
        fp16=BOUNDS["fp16"],
        int8=BOUNDS["int8"],
        agreement=_agreement(served),
        told=textwrap.fill(_told_of(served), _WIDTH, subsequent_indent="  "),
    )
    names = ("fp32", "fp16", "int8")
    columns = [f"{name} {what}" for name in names for what in ("graph", "error", "plan")]
    return [
        head,
        "| family | config | " + " | ".join(columns) + " |\n",
        "|---|---|" + "---:|" * len(columns) + "\n",
        *(
            f"| {row['family']} | `{row['config']}` | "
            + " | ".join(cell for name in names for cell in _cells(row["precisions"][name]))
            + " |\n"
            for row in served
        ),
    ]


def _agreement(rows: list[Row]) -> str:
    """For how many the best class of every video stays, by precision."""
    counts = []
    for name in ("fp32", "fp16", "int8"):
        tops = [p["top1"] for row in rows if "top1" in (p := row["precisions"][name])]
        counts.append(f"{sum(top == 1 for top in tops)} of {len(tops)} in {name}")
    return f"The best class of each video stays the same: {', '.join(counts)}."


def _cells(precision: Row) -> tuple[str, str, str]:
    """Graph, error, plan; of what was refused, why."""
    if precision["verdict"] != "proved":
        off = re.search(r"by ([\d.e-]+) of their spread", precision["verdict"])
        if precision["verdict"].startswith("InconclusiveError"):
            return "", "inconclusive", ""
        return "", f"refused: {off[1]}" if off else precision["verdict"], ""
    plan = precision["plan"]
    built = f"{plan['mb']:.0f}" if plan["verdict"] == "built" else plan["verdict"]
    return f"{precision['graph_mb']:.0f}", f"{precision['error']:.1e}", built


def _summary(proved: int, run: int) -> str:
    sentences = [f"**{proved} of {run} configs are proved.**"]
    if proved < run:
        sentences.append("The verdict of the others says why they are not.")
    if run < _ZOO:
        sentences.append(f"{_ZOO - run} of {_ZOO} are not run yet.")
    return " ".join(sentences)


def _codes(rows: list[Row], precisions: list[Row]) -> str:
    older, reduced = (
        f"{sum(row['older'] for row in each)} of {len(each)}" for each in (rows, precisions)
    )
    return textwrap.fill(
        f"**Older than the code beside this page: {older} rows**, and {reduced} of the precisions. "
        "A row tells of the code that made it: above it stands the digest of all that an export of "
        "its family ran through. What has changed since then, it does not tell. `scripts/zoo` "
        "makes such rows again.",
        _WIDTH,
    )


def _told_of(rows: list[Row]) -> str:
    """The digests of the code that made these rows, and how many of them are older than today's."""
    *codes, last = (f"`{code}`" for code in dict.fromkeys(row["code"] for row in rows))
    older = sum(row["older"] for row in rows)
    which = f"older than the code beside this page in {older} of {len(rows)} rows"
    told = f"{', '.join(codes)} and {last}" if codes else last
    return f"Code {told}, {which if older else 'that beside this page'}."


def _line(row: Row) -> str:
    if row["verdict"] != "proved":
        cells = [f"`{row['config']}`", *[""] * (len(_COLUMNS) - 2), row["verdict"]]
    else:
        views = row["config_views"]
        cells = [
            f"`{row['config']}`",
            row["layout"],
            f"{views['num_clips']} x {views['crops']}",
            str(row["proved_views"]),
            str(row["opset"]),
            str(row["nodes"]),
            f"{row['checkpoint_mb']:.0f}",
            f"{row['graph_mb']:.0f}",
            f"{row['seconds']:.0f}",
            str(max(row["peak_mb"].values())),
            str(row["limit_mb"]),
            f"{row['error']:.1e}",
            f"{row['top1']:.0%}",
            f"{row['top5']:.0%}",
            f"{row['time_ratio']:.2f}{'*' if row['plain_patched'] else ''}",
            "proved",
        ]
    return "| " + " | ".join(cells) + " |\n"
