"""The command ``crosspref plan``: what a recipe will take, before anything is spent."""

import argparse
import json
from dataclasses import asdict, replace

from crosspref.commands import RECIPE, add_set
from crosspref.errors import ModelError, RecipeError
from crosspref.plan.accelerators import Accelerator, find_hardware
from crosspref.plan.costs import assumed_speeds, assumptions
from crosspref.plan.observed import observe_run
from crosspref.plan.planner import PhasePlan, Plan, Planner
from crosspref.plan.probe import Probe, this_machine
from crosspref.plan.work import Lengths
from crosspref.reports.table import Report, print_reports, without_repeats
from crosspref.run.layout import given_recipe
from crosspref.run.progress import Reporter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Say for every phase of a recipe what it will take, before anything is spent. Hours need a device: a named "
        "one, this machine (--probe), or a run that was done before (--from)."
    )
    parser.add_argument("recipe", help=RECIPE)
    parser.add_argument("--hardware", metavar="NAME[xCOUNT]", help="an accelerator, such as H100-SXM or A100-80GBx8")
    parser.add_argument("--memory", type=float, metavar="GB", help="memory of one device, instead of the table's")
    parser.add_argument("--tflops", type=float, metavar="T", help="dense bfloat16 TFLOPS of one device")
    parser.add_argument("--bandwidth", type=float, metavar="TB/S", help="memory bandwidth of one device")
    parser.add_argument("--price", type=float, metavar="P", help="what one device costs per hour, in any currency")
    measured = parser.add_mutually_exclusive_group()
    measured.add_argument("--probe", action="store_true", help="measure this machine for about two minutes")
    measured.add_argument("--from", dest="run", metavar="RUN", help="plan from the figures of a run done before")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    add_set(parser)


def execute(options: argparse.Namespace) -> None:
    plan = _made(options)
    if options.json:
        print(json.dumps(asdict(plan), indent=1))  # noqa: T201 - all is ASCII
    else:
        _show(plan)
    if plan.misfits:
        raise ModelError("\n".join(["Not everything fits.", *plan.misfits]))


def _made(options: argparse.Namespace) -> Plan:
    for name in ("memory", "tflops", "bandwidth", "price"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise RecipeError(f"--{name} must be above 0, but it is {value}.")
    if options.probe and options.hardware:
        raise RecipeError("--probe measures this machine, and --hardware names another: give one of them.")
    recipe = given_recipe(options.recipe, options.overrides)
    hardware = find_hardware(options.hardware, options.memory, options.tflops, options.bandwidth)
    planner = Planner(recipe)
    if options.probe:
        return _probed(planner, options.price)
    device = hardware or Accelerator("no device")
    speeds, lengths = assumed_speeds(device), Lengths()
    if options.run is not None:
        speeds, lengths = observe_run(options.run, planner.width)
        speeds = replace(speeds, together=True)
        note = f"Hours: as measured in {options.run}, on what that run had; --hardware only says what fits and costs."
    elif speeds is not None:
        note = assumptions(device)
    else:
        note = "Hours: name a device (--hardware), or measure this machine (--probe), or plan --from RUN."
    return planner.plan(lengths, speeds, device, options.price, [note])


def _probed(planner: Planner, price: float | None) -> Plan:
    """Measure this machine, unless the recipe does not fit into it."""
    device, planner.width = this_machine(planner.recipe)
    phases = planner.work(Lengths(), device)
    misfits = planner.misfits(device, phases)
    if misfits:
        raise ModelError("\n".join(["Nothing was measured, since not everything fits.", *misfits]))
    rows = next(work.rows for phase in phases for work in phase.parts if work.kind == "sample")
    probe = Probe(planner.recipe, planner.texts, planner.shape, rows, planner.width)
    speeds, lengths = probe.measure(Reporter())
    took = f"Hours: measured on {device.name} in {probe.seconds:.0f} s; other work on it counts too."
    return planner.plan(lengths, speeds, device, price, [took])


def _show(plan: Plan) -> None:
    header = ["iteration", "phase", "tokens", "FLOPs", "memory", "fits", "time"]
    rows = without_repeats([_cells(row) for row in plan.rows])
    tokens, flops = sum(row.tokens for row in plan.rows), sum(row.flops for row in plan.rows)
    most = max(row.memory for row in plan.rows)
    rows.append(["", "total", _short(tokens), f"{flops:.1e}", _bytes(most), "", _time(plan.seconds)])
    notes = [f"Disk: {_bytes(plan.disk_kept)} stay, and {_bytes(plan.disk_peak)} more while a policy is trained."]
    if plan.price is not None:
        notes.append(f"Price: {plan.price:,.2f}, at the price given per device and hour.")
    notes += [f"Memory is that of one device, and rough. {plan.notes[0]}", *plan.notes[1:]]
    parts = {row.phase: row.parts for row in plan.rows if row.parts}
    held = [[phase, part, _bytes(size)] for phase, sizes in parts.items() for part, size in sizes.items()]
    memory = Report("What the memory of one device holds", ["phase", "part", "memory"], without_repeats(held), [])
    print_reports([Report("What the run will take", header, rows, notes), memory])


def _cells(row: PhasePlan) -> list[str]:
    work = ["", "", "", ""]
    if row.tokens:
        fits = {None: "", True: "yes", False: "no"}[row.fits]
        work = [_short(row.tokens), f"{row.flops:.1e}", _bytes(row.memory), fits]
    return [str(row.iteration), row.phase, *work, _time(row.seconds)]


def _short(number: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number:,.0f}"


def _bytes(number: float) -> str:
    return f"{number / 1e9:,.1f} GB" if number >= 1e8 else f"{number / 1e6:,.1f} MB"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
