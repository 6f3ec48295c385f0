# SPDX-License-Identifier: GPL-2.0-or-later
"""Draws results/latency.json as results/latency.svg: one panel for each server, on the same scales."""
import math

WIDTH, HEIGHT = 1080, 470
LEFT, RIGHT, TOP, BOTTOM, GAP = 92, 24, 124, 58, 28
INK, SOFT, GRID, BAND = "#1f2430", "#667085", "#e4e7ec", "#fdf1dc"
LINES = {"p99_us": ("#c2410c", "p99"), "p50_us": ("#2563eb", "p50")}
FONT = "font-family=\"Inter, 'Segoe UI', 'DejaVu Sans', sans-serif\""


def duration(us):
    """Microseconds for a reader: 87 µs, 2.1 ms, 34 ms, 1.2 s."""
    for limit, unit, name in ((1000, 1, "µs"), (1e6, 1e3, "ms"), (math.inf, 1e6, "s")):
        if us < limit:
            value = us / unit
            whole = value >= 10 or value == int(value) or unit == 1
            return f"{value:.0f} {name}" if whole else f"{value:.1f} {name}"
    raise AssertionError


def text(x, y, words, size=12, color=INK, anchor="start", weight="400"):
    words = words.replace("&", "&amp;").replace("<", "&lt;")
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{color}" text-anchor="{anchor}" '
            f'font-weight="{weight}">{words}</text>')


def line(x1, y1, x2, y2, color, width=1.0, dash=""):
    dash = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width}"{dash}/>'


def scale_of(runs):
    """Whole decades that hold every drawn figure, in microseconds, and the seconds that the longest run took."""
    figures = [b[key] for run in runs for b in run["buckets"] for key in LINES if b[key]]
    low, high = 10 ** math.floor(math.log10(min(figures))), 10 ** math.ceil(math.log10(max(figures)))
    return low, max(high, low * 100), max(run["phases"]["after"]["to_s"] for run in runs)


def panel(x0, width, run, title, scale, first):
    low, high, seconds = scale
    height = HEIGHT - TOP - BOTTOM

    def x_of(at):
        return x0 + at / seconds * width

    def y_of(us):
        return TOP + height * (1 - math.log10(us / low) / math.log10(high / low))

    out = [text(x0, TOP - 42, title, 14, INK, weight="600")]
    during = run["phases"]["during"]
    begin, end = x_of(during["from_s"]), x_of(during["to_s"])
    out.append(f'<rect x="{begin:.1f}" y="{TOP}" width="{end - begin:.1f}" height="{height}" fill="{BAND}"/>')
    decade = low
    while decade <= high * 1.001:
        y = y_of(decade)
        out.append(line(x0, y, x0 + width, y, GRID))
        if first:
            out.append(text(x0 - 10, y + 4, duration(decade), 12, SOFT, "end"))
        for step in range(2, 10):
            if decade * step < high:
                out.append(line(x0, y_of(decade * step), x0 + 4, y_of(decade * step), GRID))
        decade *= 10
    tick = 5 if seconds <= 45 else 10
    for at in range(0, int(seconds) + 1, tick):
        out += [line(x_of(at), TOP + height, x_of(at), TOP + height + 5, SOFT),
                text(x_of(at), TOP + height + 20, str(at), 12, SOFT, "middle")]
    out.append(line(x0, TOP + height, x0 + width, TOP + height, SOFT))
    for name, phase in run["phases"].items():
        middle = x_of((phase["from_s"] + phase["to_s"]) / 2)
        label = f"{'backup' if name == 'during' else name}"
        if name == "during":
            label += f", {phase['to_s'] - phase['from_s']:.1f} s" + ("" if run["pull_complete"] else " (cut short)")
        out.append(text(middle, TOP - 18, label, 12, "#92400e" if name == "during" else SOFT, "middle", "600"))
        if phase["p99_us"]:
            out.append(text(middle, TOP - 5, f"{phase['iops']:,.0f}/s, p99 {duration(phase['p99_us'])}", 11,
                            "#92400e" if name == "during" else SOFT, "middle"))
        if name != "before":
            out.append(line(x_of(phase["from_s"]), TOP, x_of(phase["from_s"]), TOP + height, "#d6a458", 1, "3 3"))
    for key, (color, _) in LINES.items():
        parts, last = [], None
        for bucket in run["buckets"]:
            if not bucket[key]:
                continue
            joined = last is not None and bucket["at_s"] - last < 1.5
            parts.append(f"{'L' if joined else 'M'}{x_of(bucket['at_s'] + 0.125):.1f} {y_of(bucket[key]):.1f}")
            last = bucket["at_s"]
        out.append(f'<path d="{" ".join(parts)}" fill="none" stroke="{color}" stroke-width="1.8" stroke-linejoin="round" '
                   'stroke-linecap="round"/>')
    return out


def write_plot(row, path):
    """row: what is in latency.json. Of the pairs the one is drawn whose p99 during our backup is the median."""
    cell, about = row["cells"][0], row["about"]
    names = list(cell["runs"])
    order = sorted(range(len(cell["runs"][names[0]])), key=lambda i: cell["runs"][names[0]][i]["p99_us"] or 0)
    chosen = order[len(order) // 2]
    runs = {name: cell["runs"][name][chosen] for name in names}
    scale = scale_of(runs.values())
    width = (WIDTH - LEFT - RIGHT - GAP * (len(names) - 1)) / len(names)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
           f'height="{HEIGHT}" {FONT}>',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
           text(LEFT, 30, "What the guest's writes take while its disk is backed up", 19, INK, weight="700"),
           text(LEFT, 52, f"4 KiB random writes at {about['rate']:,} a second to a disk of "
                f"{about['size_bytes'] / 2**30:.3g} GiB over NBD; the snapshot is pulled by nbdcopy at full speed. "
                f"Each point: {about['bucket_ms']} ms.", 12, SOFT)]
    for i, (color, name) in enumerate((LINES["p50_us"], LINES["p99_us"])):
        x = WIDTH - RIGHT - 130 + i * 70
        out += [line(x, 26, x + 22, 26, color, 2.5), text(x + 28, 30, name, 13)]
    for i, name in enumerate(names):
        version = row["versions"].get(name, "")
        shown = version.split(" (")[0].replace("version ", "") if version else name
        out += panel(LEFT + i * (width + GAP), width, runs[name], shown, scale, i == 0)
    out += [text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, "seconds", 12, SOFT, "middle"),
            f'<g transform="translate(22 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)">'
            + text(0, 0, "latency of a write (logarithmic)", 12, SOFT, "middle") + "</g>", "</svg>"]
    path.write_text("\n".join(out) + "\n", encoding="utf-8")
    print(f"  plot: {path}")
