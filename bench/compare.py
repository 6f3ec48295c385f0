# SPDX-License-Identifier: GPL-2.0-or-later
"""Interleaved measurements, their medians and ratios.

compare() measures all candidates of a cell in turn, pair after pair, in an order that rotates, so that a busy minute of
the machine meets all of them. The ratio of two candidates is the median of the ratios within the pairs, with the lowest
and the highest of them in brackets."""
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

RESULTS = pathlib.Path(__file__).resolve().parent / "results"


def spread(values):
    return statistics.median(values), min(values), max(values)


def number(value):
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def with_spread(values):
    middle, low, high = spread(values)
    return f"{number(middle)} ({number(low)}..{number(high)})"


def commit():
    return subprocess.run(["git", "-C", RESULTS.parent, "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                          check=False).stdout.strip()


class Report:
    """The cells of one row of the table, printed as they come and kept as JSON. The cells share `seconds` evenly; each gets
    one pair in any case, and a further one if it will probably end in time."""

    def __init__(self, row, title, pairs, versions, seconds=float("inf"), cells=1):
        self.row, self.pairs, self.cells = row, pairs, []
        self.end, self.cells_left = time.monotonic() + seconds, cells
        self.head = {
            "row": row, "title": title, "pairs": pairs, "versions": versions, "cpus": os.cpu_count(),
            "kernel": platform.release(), "started": datetime.datetime.now(datetime.timezone.utc).isoformat("T", "seconds"),
            "commit": commit()}
        print(f"\n{row}: {title}")
        sys.stdout.flush()

    def compare(self, cell, candidates, better):
        """candidates: {name: function that measures once and returns {metric: number}}, ours first. better: {metric:
        "more", "less", or None: shown without a ratio}. Ratios are to each other candidate; more than 1 is good for us."""
        names = list(candidates)
        runs = {name: [] for name in names}
        loads = []
        began = time.monotonic()
        end = began + (self.end - began) / max(1, self.cells_left)
        self.cells_left -= 1
        for pair in range(self.pairs):
            now = time.monotonic()
            if pair > 0 and now + (now - began) / pair > end:
                break
            turn = pair % len(names)
            for name in names[turn:] + names[:turn]:
                runs[name].append(candidates[name]())
            loads.append(os.getloadavg()[0])
        print(f"  {cell}")
        ratios = {}
        for metric, direction in better.items():
            for name in names:
                values = [run[metric] for run in runs[name] if run.get(metric) is not None]
                if not values:
                    continue
                line = f"    {metric:<20} {name:<14} {with_spread(values):>36}"
                if direction and name != names[0] and len(values) == len(loads):
                    pairs = [ours[metric] / theirs[metric] if direction == "more" else theirs[metric] / ours[metric]
                             for ours, theirs in zip(runs[names[0]], runs[name]) if ours[metric] and theirs[metric]]
                    if pairs:
                        ratios[metric, name] = statistics.median(pairs)
                        line += f"   {names[0]} is {with_spread(pairs)} times as good"
                print(line)
        sys.stdout.flush()
        self.cells.append({"cell": cell, "runs": runs, "load": loads,
                           "ratios": [{"metric": m, "to": n, "ratio": r} for (m, n), r in ratios.items()]})

    def save(self, folder=RESULTS):
        """Raw figures of the row."""
        folder.mkdir(exist_ok=True)
        path = folder / f"{self.row.lower()}.json"
        path.write_text(json.dumps({**self.head, "cells": self.cells}, indent=1) + "\n")
        print(f"  raw figures: {path}")
