"""`action-export`: parses the command line, shows progress, prints the result."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from action_runtime import terminal

from action_export import __version__
from action_export.cli.failure import report
from action_export.cli.interrupts import Interrupts, interrupts
from action_export.cli.show import ProgressDisplay, next_commands, print_result
from action_export.dependencies import EXPORT, require
from action_export.errors import ActionExportError
from action_export.types import (
    SETTLE_S,
    EngineOptions,
    ExportRequest,
    ExportResult,
    OnStep,
    StepEvent,
    ViewOptions,
)

_EPILOG = """\
Without CONFIG the bundled example recognizer is exported.

examples:
  action-export --triton-repo ./repo
  action-export my_config.py best.pth --triton-repo ./repo --name gestures --labels labels.txt
  action-export tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400-rgb tsn.pth \\
      --triton-repo ./repo --name tsn --num-clips 8 --crops center

docs/errors.md lists the exit codes.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exports; returns the exit code. A bug keeps its traceback."""
    return terminal.run(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not arguments.list and arguments.triton_repo is None:
        parser.error("--triton-repo DIR is required")
    with interrupts() as stop:
        listener = _Listener(stop)
        try:
            return _list(arguments) if arguments.list else _run(arguments, listener)
        except ActionExportError as exc:
            if not stop.arrived:
                return report("action-export", exc, as_json=arguments.json)
        except KeyboardInterrupt:
            pass
        except Exception:
            if not stop.arrived:
                raise
        print(f"action-export: interrupted; {listener.outcome}", file=sys.stderr)
        return stop.exit_code


class _Listener:
    """Hears of each step, to show it and to end the export where a signal was swallowed."""

    def __init__(self, stop: Interrupts) -> None:
        self._stop = stop
        self.outcome = "nothing was published"

    def on_step(self, show: OnStep, event: StepEvent) -> None:
        if event.step == "publish" and event.result is not None:
            self.outcome = f"{event.result} is published"
        else:
            self._stop.check()
        show(event)


def _run(arguments: argparse.Namespace, listener: _Listener) -> int:
    require(*EXPORT, extra="export")
    # Heavy: torch, mmaction2 and onnx come in below here, after --help and wrong options.
    from action_export import api

    with ProgressDisplay(quiet=arguments.quiet or arguments.json) as display:
        result = api.export(_request(arguments), partial(listener.on_step, display.on_step))
    if arguments.json:
        print(terminal.as_json(as_json(result), indent=2))
    else:
        print_result(result, verbose=arguments.verbose)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    require(*EXPORT, extra="export")
    from action_export.cli import zoo

    families = zoo.listing()
    if arguments.json:
        text = {name: [asdict(listed) for listed in found] for name, found in families.items()}
        print(terminal.as_json({"error": None, "families": text}, indent=2))
    else:
        print(zoo.as_text(families))
    return 0


def _request(arguments: argparse.Namespace) -> ExportRequest:
    return ExportRequest(
        triton_repo=arguments.triton_repo,
        config=arguments.config,
        checkpoint=arguments.checkpoint,
        name=arguments.name,
        labels=arguments.labels,
        views=ViewOptions(num_clips=arguments.num_clips, crops=arguments.crops),
        max_batch_size=arguments.max_batch_size,
        device=arguments.device,
        triton_version=arguments.triton_version,
        server_tensorrt=arguments.server_tensorrt,
        opset=arguments.opset,
        format=arguments.format,
        accelerate=arguments.accelerator == "tensorrt",
        plan_in_container=arguments.plan_in_container,
        gpus=tuple(arguments.gpus),
        engine=EngineOptions(
            level=arguments.builder_level,
            workspace_mib=arguments.workspace,
            timing_cache=arguments.timing_cache,
            version_compatible=arguments.version_compatible,
            hardware_compatible=arguments.hardware_compatible,
        ),
        precision=arguments.precision,
        scores=arguments.scores,
        wire=arguments.wire,
        jpeg_quality=arguments.jpeg_quality,
        calibration=tuple(arguments.calibration),
        model_version=arguments.model_version,
        settle_s=arguments.settle,
        cfg_options=tuple(arguments.cfg_options),
        trust_checkpoint=arguments.trust_checkpoint,
        relabel=arguments.relabel,
        videos=tuple(arguments.videos),
        proof=arguments.proof,
        dry_run=arguments.dry_run,
    )


def as_json(result: ExportResult) -> dict[str, Any]:
    """The one object that --json prints on success."""
    return {
        "error": None,
        "dry_run": result.dry_run,
        "name": result.name,
        "version": result.version,
        "repo": str(result.repo),
        "files": list(result.files),
        "contract": json.loads(result.contract.to_json()),
        "checks": [asdict(check) for check in result.checks],
        "steps": [
            {"step": event.step, "result": event.result, "seconds": round(event.seconds, 3)}
            for event in result.steps
        ],
        "notes": list(result.notes),
        "next": next_commands(result),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="action-export",
        description="Export an mmaction2 recognizer to a Triton model repository, and prove that "
        "what is served equals mmaction2 before anything is published.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "config",
        nargs="?",
        help="a config file, which is Python and is run, or the name of one in mmaction2's zoo",
    )
    add("checkpoint", nargs="?", type=Path, help="the .pth file that was trained with it")
    add("--triton-repo", type=Path, metavar="DIR", help="the model repository; required")
    add("--list", action="store_true", help="list mmaction2's zoo by family, and what each needs")
    add("--version", action="version", version=f"action-export {__version__}")

    model = parser.add_argument_group("the model")
    add = model.add_argument
    add("--name", help="its name in Triton (default: the config's)")
    add("--labels", type=Path, metavar="FILE", help="one label a line, in the order of classes")
    add(
        "--relabel",
        action="store_true",
        help="serve --labels although the checkpoint names its classes otherwise",
    )
    add(
        "--num-clips", type=_positive, metavar="N", help="clips of a video, instead of the config's"
    )
    add(
        "--crops",
        choices=("config", "center", "three", "ten"),
        default="config",
        help="crops of a frame (default: the config's)",
    )
    add(
        "--cfg-options",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="override the config, as mmaction2's tools do",
    )
    add(
        "--scores",
        choices=("config", "sigmoid"),
        default="config",
        help="those of mmaction2's predict, or each class's own probability, as of a model of "
        "several labels a video (default: %(default)s)",
    )
    add(
        "--trust-checkpoint",
        action="store_true",
        help="let the checkpoint run code while it is read",
    )

    serving = parser.add_argument_group("serving")
    add = serving.add_argument
    add(
        "--max-batch-size",
        type=_positive,
        metavar="N",
        help="videos in one execution (default: at most 8, by their views and activations)",
    )
    add("--device", choices=("auto", "cpu", "gpu"), default="auto", help="where the graph runs")
    add(
        "--triton-version",
        default="24.10",
        metavar="YY.MM",
        help="the oldest release that must load it; of a plan, the only one (default: %(default)s)",
    )
    add("--opset", type=int, default=18, metavar="N", help="ONNX opset (default: %(default)s)")
    add(
        "--format",
        choices=("onnx", "openvino", "tensorrt"),
        default="onnx",
        help="serve the graph with ONNX Runtime, with OpenVINO on CPUs, or as a plan of TensorRT "
        "(default: %(default)s)",
    )
    add(
        "--precision",
        choices=("fp32", "bf16", "fp16", "int8"),
        default="fp32",
        help="of the recognizer's layers, bf16 with OpenVINO; input and scores keep their types "
        "(default: %(default)s)",
    )
    add(
        "--calibration",
        nargs="+",
        type=Path,
        default=[],
        metavar="VIDEO",
        help="measure the scales of int8 on these: videos of every kind that will be served",
    )
    add(
        "--wire",
        choices=("raw", "jpeg"),
        default="raw",
        help="how clients send frames; jpeg is small, and lossy (default: %(default)s)",
    )
    add("--jpeg-quality", type=int, metavar="Q", help="of --wire jpeg, 75 to 100 (default: 90)")
    add("--model-version", type=_positive, metavar="N", help="default: the next free one")
    add(
        "--settle",
        type=_seconds,
        default=SETTLE_S,
        metavar="SECONDS",
        help="of a further version: how long the old one stays loaded beside it, in which servers "
        "that poll come to load the new one (default: %(default)g, as they poll every 15 s)",
    )

    engine = parser.add_argument_group("TensorRT")
    add = engine.add_argument
    add(
        "--server-tensorrt",
        metavar="VERSION",
        help="the TensorRT in the server's image, for a --triton-version that is not known here",
    )
    add(
        "--accelerator",
        choices=("none", "tensorrt"),
        default="none",
        help="tensorrt: ONNX Runtime runs model.onnx with its TensorRT provider where there is one",
    )
    add(
        "--plan-in-container",
        action="store_true",
        help="write model.onnx, and a script that builds the plan in the image that serves it",
    )
    add(
        "--gpus",
        nargs="+",
        default=[],
        metavar="CAPABILITY",
        help="with it: the kinds of GPU that the repository will serve on, such as 8.6 9.0",
    )
    add("--builder-level", type=int, choices=range(6), help="how long TensorRT tries, 0 to 5")
    add("--workspace", type=_positive, metavar="MIB", help="memory that a layer may use")
    add("--timing-cache", type=Path, metavar="FILE", help="keep what was timed for later builds")
    add(
        "--version-compatible",
        action="store_true",
        help="a plan for later releases of the same major version, too",
    )
    add(
        "--hardware-compatible",
        choices=("none", "ampere_plus", "same_compute_capability"),
        default="none",
        help="GPUs beside the one that builds the plan (default: %(default)s)",
    )

    proof = parser.add_argument_group("the proof")
    add = proof.add_argument
    add(
        "--proof",
        choices=("auto", "graph", "server"),
        default="auto",
        help="graph: leave the live server out; server: insist on it; auto: when there is one",
    )
    add(
        "--videos",
        nargs="+",
        type=Path,
        default=[],
        metavar="VIDEO",
        help="prove on these instead of the bundled clips",
    )

    output = parser.add_argument_group("output")
    add = output.add_argument
    add("--dry-run", action="store_true", help="print the plan and write nothing")
    add("--json", action="store_true", help="print one JSON object, also on failure")
    add("-v", "--verbose", action="store_true", help="list every file and every comparison")
    add("-q", "--quiet", action="store_true", help="no progress")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no time to wait")
    return value


if __name__ == "__main__":
    sys.exit(main())
