"""What was measured, for people."""
from statistics import median

import cells

MIB = 1024 * 1024
VOLUME = 100 * MIB  # CPU is told for so many bytes


def figures(way, runs):
    """The medians of one way's rounds. CPU in seconds for VOLUME bytes."""
    def cpu(run, end, process=None):
        used = run[end]["processes"][process] if process else run[end]["busy"]
        return used * VOLUME / run["bytes"]

    def per_request(run, end, what):
        return run[end][what] / run["requests"]

    speeds = [run["bytes"] / run["seconds"] / 1e6 for run in runs]
    return {
        "speed": median(speeds),
        "speed_least": min(speeds),
        "speed_most": max(speeds),
        "server": median(cpu(run, "server") for run in runs),
        "client": median(cpu(run, "client") for run in runs),
        "process": median(cpu(run, "server", way.server) for run in runs),
        "load": median(cpu(run, "client", "load") for run in runs),
        "siw_server": median(cpu(run, "server", "siw") for run in runs),
        "server_switches": median(per_request(run, "server", "switches")
                                  for run in runs),
        "client_switches": median(per_request(run, "client", "switches")
                                  for run in runs),
        "server_segments": median(
            per_request(run, "server", "segments_out") for run in runs),
        "client_segments": median(
            per_request(run, "client", "segments_out") for run in runs),
        "requests": sum(run["requests"] for run in runs),
    }


def summary(cell):
    """The medians of all ways of one cell, by name."""
    return {way.name: figures(way, cell["ways"][way.name])
            for way in cells.WAYS if way.name in cell["ways"]}


def share(way):
    """Of the requests by RDMA; a run in which one was not has failed."""
    return "-" if way.how == "tcp" else "100 %"


HEAD = f"""\
{'':22} {'MB/s':>6} {'least..most':>14}   {'server':>6} {'client':>6} \
{'httpd':>6}   {'MB/s':>5} {'server':>6} {'client':>6}   {'by RDMA':>7}"""


def table(results, cell):
    setting = cell["cell"]
    found = cell["medians"]
    base = found.get(cells.BASE.name)
    lines = [
        f"{setting['driver']} Soft-iWARP, MTU {setting['mtu']}, bodies of "
        f"{cells.amount(setting['size'])}iB, {setting['clients']} client"
        f"{'s' if setting['clients'] > 1 else ''}; medians of "
        f"{results['rounds']} rounds",
        f"{'':22} {'':6} {'':14}   {'CPU s for 100 MiB':^20}   "
        f"{'times ' + cells.BASE.name:^19}", HEAD]
    for way in cells.WAYS:
        if way.name not in found:
            continue
        one = found[way.name]
        ratios = [f"{one[key] / base[key]:.2f}" if base else "-"
                  for key in ("speed", "server", "client")]
        spread = f"{one['speed_least']:.1f}..{one['speed_most']:.1f}"
        lines.append(
            f"{way.name:22} {one['speed']:6.1f} {spread:>14}   "
            f"{one['server']:6.3f} {one['client']:6.3f} {one['process']:6.3f}"
            f"   {ratios[0]:>5} {ratios[1]:>6} {ratios[2]:>6}   "
            f"{share(way):>7}")
    return "\n".join(lines)


def text(results):
    idle = " and ".join(f"{100 * part:.0f} %" for part in results["idle"])
    packages = ", ".join(f"{name} {version}" for name, version in
                         results["packages"].items())
    lines = [
        f"mod_rdma {results['mod_rdma']}; two guests of one CPU each "
        f"({results['accel']}, {results['cpu']}),\nwhich use {idle} of it when "
        f"idle; Linux {results['kernel']},\n{packages}"]
    lines += ["\n" + table(results, cell) for cell in results["cells"]]
    lines.append(
        "\nhttpd: the serving processes alone (`verbs`: bench/verbs). CPU of "
        "both hosts is\nall of it, the kernel's RDMA driver included. Only "
        "ratios within one run count.")
    if results["others"] > 0.1:
        lines.append(
            f"Other programs used {results['others']:.1f} CPUs of this machine "
            "in the meantime:\nthe figures are worse than they need be.")
    return "\n".join(lines)
