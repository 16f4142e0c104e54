"""What a person sees of an export: its steps while they run, and the table at the end."""

from __future__ import annotations

import shlex
import sys
from types import TracebackType
from typing import Any

from action_runtime.terminal import plain

from action_export.repository import SCRIPT
from action_export.types import ExportResult, StepEvent


class ProgressDisplay:
    """Steps on stderr: a spinner with the elapsed time on a terminal, a line a step elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._status: Any = None

    def __enter__(self) -> ProgressDisplay:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._status = Progress(
                SpinnerColumn(finished_text="[green]✓"),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TextColumn("[dim]{task.fields[result]}"),
                # a file of its own: tracing redirects sys.stderr for a while
                console=Console(file=sys.stderr),
            )
            self._status.start()
        return self

    def on_step(self, event: StepEvent) -> None:
        """The engine's listener."""
        if self._quiet:
            return
        if self._status is None:
            if event.result is not None:
                line = f"{event.step:<16} {event.seconds:6.1f} s  {plain(event.result)}"
                print(line, file=sys.stderr, flush=True)
        elif event.phase:
            self._status.update(self._status.task_ids[-1], result=_unmarked(event.phase))
        elif event.result is None:
            self._status.add_task(f"{event.step:<16}", total=1, result="")
        else:
            self._status.update(
                self._status.task_ids[-1], completed=1, result=_unmarked(event.result)
            )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()


def _unmarked(text: str | None) -> str:
    """As it is, where rich would take brackets for its own marks."""
    from rich.markup import escape

    return escape(plain(text or ""))


def next_commands(result: ExportResult) -> list[str]:
    """What to run now: the server, and a client."""
    client = f"action-client VIDEO --model {result.name}"
    repo = shlex.quote(str(result.repo.absolute()))
    # the tritonserver of action-serve has no TensorRT
    image = f"nvcr.io/nvidia/tritonserver:{result.triton_version}-py3"
    scripts = [path for path in result.files if path.endswith(f"/{SCRIPT}")]
    plans = any(path.endswith(".plan") for path in result.files)
    if not (scripts or plans or result.engine_cache):
        return [f"action-serve {shlex.quote(str(result.repo))}", client]
    options = ["--rm", "--gpus", "all", "--network", "host", "--shm-size=1g"]
    if result.engine_cache:
        # a volume, so that only the first start builds; and float32 that is not TF32
        volume = f"{result.name}-engines:{result.engine_cache}"
        options += ["-v", volume, "-e", "NVIDIA_TF32_OVERRIDE=0"]
    return [
        *(f"docker run --rm --gpus all -v {repo}:/repo {image} bash /repo/{s}" for s in scripts),
        f"docker run {shlex.join(options)} -v {repo}:/models:ro {image} "
        + shlex.join(("tritonserver", "--model-repository=/models", *result.server_flags)),
        client,
    ]


def print_result(result: ExportResult, *, verbose: bool) -> None:
    """The table of steps on stdout, what was decided, and the next two commands."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("step", no_wrap=True)
    table.add_column("result")
    table.add_column("time", justify="right", no_wrap=True)
    for event in result.steps:
        table.add_row(event.step, _unmarked(event.result), f"{event.seconds:.1f} s")
    console.print()
    console.print(table)
    console.print()
    if verbose:
        _print_details(console, result)
    for note in result.notes:
        console.print(f"note: {plain(note)}", markup=False)
    if result.dry_run:
        _print_plan(console, result)
        return
    repo = plain(result.repo)
    console.print(
        f"{result.name} version {result.version} is published in {repo}. Next:", markup=False
    )
    for command in next_commands(result):
        console.print(f"  {plain(command)}", markup=False)


def _print_details(console: Any, result: ExportResult) -> None:
    for check in result.checks:
        line = f"{check.name}: off by {check.error:.3g} {check.unit}, bound {check.bound:g}"
        if check.detail:
            line += f", {check.detail}"
        if check.top1 is not None and check.top5 is not None:
            line += f", top-1 {check.top1:.0%} and top-5 {check.top5:.0%} the same"
        console.print(plain(line), markup=False)
    if not result.dry_run:
        for path in result.files:
            console.print(f"wrote {plain(result.repo / path)}", markup=False)
    console.print()


def _print_plan(console: Any, result: ExportResult) -> None:
    tensors = result.tensors
    repo = plain(result.repo)
    console.print(f"would publish {result.name} version {result.version} in {repo}:", markup=False)
    for path in result.files:
        console.print(f"  {path}", markup=False)
    console.print("tensors:")
    batched = f"up to {tensors.clips.max_batch_size} videos in one execution"
    for spec, note in (
        (tensors.frames, "client to ensemble"),
        (tensors.frame_index, "client to ensemble"),
        (tensors.clips.unbatched(), f"preprocess to recognizer, {batched}"),
        (tensors.scores.unbatched(), "ensemble to client"),
    ):
        console.print(f"  {spec.name} {spec.dtype} {list(spec.dims)}  {note}", markup=False)
    console.print("nothing was written", markup=False)
