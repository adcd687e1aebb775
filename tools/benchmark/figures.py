"""Draws what bench.py has found, as SVG."""
import math
import os

COLORS = {"dust 1": "#7a9e3f", "dust 3": "#c2452d", "dust 5": "#8a2be2", "plain WAL FULL": "#222222", "plain WAL NORMAL": "#888888",
          "plain DELETE FULL": "#bbbbbb", "etcd 3": "#2b6cb0", "dqlite 3": "#c98a1b"}
W, H, LEFT, TOP, RIGHT, BOTTOM = 760, 420, 70, 40, 150, 50


def ticks(low, high):
    """1, 2 and 5 times the powers of ten between."""
    found, e = [], math.floor(math.log10(low))
    while 10 ** e <= high:
        found += [m * 10 ** e for m in (1, 2, 5) if low <= m * 10 ** e <= high]
        e += 1
    return found


class Plot:
    """Lines over a number of clients, both axes logarithmic."""

    def __init__(self, title, xs, unit):
        self.title, self.xs, self.unit, self.lines = title, xs, unit, []

    def add(self, name, points):
        """(x, least, median, most) each."""
        self.lines.append((name, points))

    def svg(self):
        ys = [v for _, points in self.lines for _, low, _, high in points for v in (low, high)]
        low, high = min(ys) / 1.2, max(ys) * 1.2

        def x(v):
            a, b = math.log(self.xs[0]), math.log(self.xs[-1])
            return LEFT + (math.log(v) - a) / ((b - a) or 1) * (W - LEFT - RIGHT)

        def y(v):
            return H - BOTTOM - (math.log(v) - math.log(low)) / (math.log(high) - math.log(low)) * (H - TOP - BOTTOM)

        out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">' % (W, H),
               '<rect width="%d" height="%d" fill="white"/>' % (W, H),
               '<text x="%d" y="22" font-size="15">%s</text>' % (LEFT, self.title)]
        for v in ticks(low, high):
            out.append('<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#e4e4e4"/>' % (LEFT, W - RIGHT, y(v), y(v)))
            out.append('<text x="%d" y="%.1f" text-anchor="end">%s</text>' % (LEFT - 6, y(v) + 4, "{:,g}".format(v)))
        for v in self.xs:
            out.append('<text x="%.1f" y="%d" text-anchor="middle">%d</text>' % (x(v), H - BOTTOM + 18, v))
        out.append('<text x="%.1f" y="%d" text-anchor="middle">%s</text>' % ((LEFT + W - RIGHT) / 2, H - 12, self.unit))
        names = []
        for name, points in self.lines:
            color = COLORS.get(name, "#000000")
            out.append('<polyline fill="none" stroke="%s" stroke-width="%s" points="%s"/>' % (
                color, 3 if name == "dust 3" else 1.5, " ".join("%.1f,%.1f" % (x(p[0]), y(p[2])) for p in points)))
            for at, least, mid, most in points:
                out.append('<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="%s" stroke-opacity="0.5"/>' % (
                    x(at), x(at), y(least), y(most), color))
                out.append('<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>' % (x(at), y(mid), color))
            names.append([y(points[-1][2]), name, color])
        names.sort()
        for i in range(1, len(names)):  # names do not lie on one another
            names[i][0] = max(names[i][0], names[i - 1][0] + 15)
        for at, name, color in names:
            out.append('<text x="%d" y="%.1f" fill="%s">%s</text>' % (W - RIGHT + 10, at + 4, color, name))
        return "\n".join(out + ["</svg>", ""])


def draw(result, folder):
    os.makedirs(folder, exist_ok=True)
    for group, prefix, title, file in (
            ("writers", "insert, ", "One-row transactions a second, all durable, by number of writers", "writers.svg"),
            ("updates", "update by key, ", "Updates by key a second, by number of writers", "updates.svg")):
        mine = [c for c in result if c["group"] == group and c["name"].startswith(prefix)]
        numbers = [int(c["name"][len(prefix):].split()[0]) for c in mine]
        if len(mine) < 2 or not mine[0]["systems"]:
            continue
        plot = Plot(title, numbers, "writers")
        for name in mine[0]["systems"]:
            plot.add(name, [(n, min(c["systems"][name]["rates"]), c["systems"][name]["rate"], max(c["systems"][name]["rates"]))
                            for n, c in zip(numbers, mine)])
        with open(os.path.join(folder, file), "w") as f:
            f.write(plot.svg())
