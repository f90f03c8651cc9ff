"""A machine from what it reports: outputs of nvidia-smi, lspci, dmidecode and udev, and their lack."""

from __future__ import annotations

import json
import sys
import time

import pytest
from click.testing import CliRunner

import uvmsim
from traces.errors import InputError
from uvmsim.commands.lists import hardware
from uvmsim.machine import detect, reports
from uvmsim.machine.cuda_facts import ATTRIBUTES
from uvmsim.machine.cuda_facts import facts as facts_of_library
from uvmsim.machine.detect import nearest
from uvmsim.machine.hardware import Hardware
from uvmsim.machine.parts import part
from uvmsim.machine.reports import System

MIB = 1 << 20

DMI_HEAD = """# dmidecode 3.3
Getting SMBIOS data from sysfs.
SMBIOS 3.3.0 present.

Handle 0x000F, DMI type 16, 23 bytes
Physical Memory Array
\tLocation: System Board Or Motherboard
\tNumber Of Devices: 4
"""
DMI = """
Handle 0x{n:04X}, DMI type 17, 92 bytes
Memory Device
\tTotal Width: 64 bits
\tSize: {size}
\tForm Factor: DIMM
\tLocator: {locator}
\tBank Locator: {bank}
\tType: {kind}
\tSpeed: {speed} MT/s
\tManufacturer: Unknown
\tConfigured Memory Speed: {now} MT/s
"""
DMI_EMPTY = """
Handle 0x0099, DMI type 17, 40 bytes
Memory Device
\tSize: No Module Installed
\tLocator: DIMM X
\tType: Unknown
"""
LSPCI = """01:00.0 VGA compatible controller: NVIDIA Corporation GA106 [GeForce RTX 3060] (rev a1)
\tSubsystem: ZOTAC International (MCO) Ltd. Device 1630
\tControl: I/O+ Mem+ BusMaster+
\tCapabilities: [78] Express (v2) Legacy Endpoint, MSI 00
\t\tLnkCap:\tPort #0, Speed 16GT/s, Width x16, ASPM L0s L1
\t\tLnkSta:\tSpeed 2.5GT/s (downgraded), Width x8 (downgraded)

01:00.1 Audio device: NVIDIA Corporation GA106 High Definition Audio Controller (rev a1)
\tSubsystem: ZOTAC International (MCO) Ltd. Device 1630
"""
CPUINFO = "processor\t: 0\nmodel name\t: {}\n\nprocessor\t: 1\nmodel name\t: {}\n"


class Fake(System):
    """A machine that answers what a test wants; what it does not know is not installed."""

    def __init__(self, cpu: str = "AMD Ryzen 7 5800X 8-Core Processor", **answers: str):
        self.answers = answers
        self.files = {
            "/proc/meminfo": "MemTotal:       65762212 kB\nMemFree:        1000 kB\n",
            "/proc/cpuinfo": CPUINFO.format(cpu, cpu),
        }
        self.asked: list[tuple[str, ...]] = []

    def run(self, *command):
        self.asked.append(command)
        return self.answers.get(command[0].replace("-", "_"))

    def read(self, path):
        return self.files.get(path)


def smi(name="NVIDIA GeForce RTX 3090", total="24576", used="1021", gen="4", gen_now="1",
        width="16", width_most="16", driver="550.54.14") -> str:  # fmt: skip
    return ", ".join([name, total, used, gen, gen_now, width, width_most, driver]) + "\n"


def dmi(*places: tuple[str, str], kind="DDR4", speed=3200, now=3200, empty=0) -> str:
    modules = [
        DMI.format(n=n, size="16 GB", locator=a, bank=b, kind=kind, speed=speed, now=now)
        for n, (a, b) in enumerate(places, 16)
    ]
    return DMI_HEAD + "".join(modules) + DMI_EMPTY * empty


FOUR = tuple((f"DIMM {n}", f"P0 CHANNEL {c}") for c in "AB" for n in (0, 1))


def test_a_card_with_a_preset_in_a_desktop():
    system = Fake(nvidia_smi=smi(gen="3", width="8"), dmidecode=dmi(*FOUR, empty=2))
    h, base = Hardware.detect(system), Hardware.load("rtx3090")
    assert (h.name, h.gpu) == ("auto", "NVIDIA GeForce RTX 3090")
    assert h.vram_bytes == int(24576 * 0.97) * MIB
    assert h.reserve_bytes == 1021 * MIB
    assert h.h2d_bytes_per_s == part("pcie3x8").bytes_per_s
    assert h.cpu_bytes_per_s == part("ddr4-3200x2").bytes_per_s
    assert h.host_bytes == 65762212 * 1024
    assert h.memory_bytes_per_s == base.memory_bytes_per_s
    assert h.compute_flops == base.compute_flops and h.uvm.sm_count == base.uvm.sm_count
    for key, told in (
        ("vram_bytes", "estimate: 97% of 24,576 MiB (nvidia-smi, driver 550.54.14: memory.total)"),
        ("reserve_bytes", "nvidia-smi, driver 550.54.14: memory.used"),
        ("h2d_bytes_per_s", "nvidia-smi: PCIe generation 3 (gen.max), 8 lanes (width.current)"),
        ("cpu_bytes_per_s", "dmidecode: DDR4, 3,200 MT/s, 4 modules in 2 channels"),
        ("host_bytes", "/proc/meminfo"),
    ):
        assert told in h.sources[key], key
    assert h.sources["h2d_bytes_per_s"].startswith("estimate:")
    assert h.summary == (
        "this machine (AMD Ryzen 7 5800X 8-Core Processor, DDR4-3200 x2, 62.7 GiB); "
        "speeds of the rtx3090 preset"
    )
    assert {k for k, _, _ in h.quantities()} == set(h.sources)


def test_an_idle_link_is_not_taken_for_a_slow_one():
    """Without load a link steps down to generation 1; what it can do is what counts."""
    h = Hardware.detect(Fake(nvidia_smi=smi(gen_now="1")))
    assert h.h2d_bytes_per_s == Hardware.load("rtx3090").h2d_bytes_per_s
    unknown = Hardware.detect(Fake(nvidia_smi=smi(gen="[N/A]", gen_now="3", width="[N/A]")))
    assert unknown.h2d_bytes_per_s == part("pcie3").bytes_per_s
    silent = smi(gen="[N/A]", gen_now="[N/A]", width="[N/A]", width_most="[N/A]")
    assert Hardware.detect(Fake(nvidia_smi=silent)).h2d_bytes_per_s == 27_300_000_000


@pytest.mark.parametrize(
    ("name", "mib", "preset", "exact"),
    [
        ("NVIDIA GeForce RTX 3060", 12288, "rtx3060", True),
        ("NVIDIA GeForce RTX 3060", 8192, "rtx3060", False),
        ("NVIDIA GeForce RTX 3060 Ti", 8192, "rtx3060", False),
        ("NVIDIA GeForce RTX 3090", 24576, "rtx3090", True),
        ("NVIDIA GeForce RTX 3090 Ti", 24564, "rtx3090", False),
        ("NVIDIA GeForce RTX 4060 Ti", 16380, "rtx4060ti", True),
        ("NVIDIA GeForce RTX 4060 Ti", 8188, "rtx4060ti", False),
        ("NVIDIA GeForce RTX 4090", 24564, "rtx4090", True),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16376, "rtx4090", False),
        ("NVIDIA GeForce RTX 5070 Ti", 16303, "rtx5070ti", True),
        ("NVIDIA GeForce RTX 5090", 32607, "rtx5090", True),
        ("NVIDIA RTX 6000 Ada Generation", 49140, "rtx6000ada", True),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", 97887, "rtxpro6000", True),
        ("NVIDIA A100-SXM4-80GB", 81920, "a100", True),
        ("NVIDIA A100 80GB PCIe", 81920, "a100", True),
        ("NVIDIA A100-SXM4-40GB", 40960, "a100", False),
        ("NVIDIA A30", 24576, "a30", True),
        ("NVIDIA H100 80GB HBM3", 81559, "h100", True),
        ("NVIDIA H200", 143771, "h200", True),
        ("NVIDIA GeForce RTX 4070", 12282, "rtx4060ti", False),
        ("NVIDIA GeForce RTX 5080", 16303, "rtx5070ti", False),
        ("NVIDIA GeForce RTX 4080", 16376, "rtx4090", False),
        ("NVIDIA GeForce RTX 3070", 8192, "rtx3060", False),
    ],
)  # fmt: skip
def test_the_nearest_preset(name, mib, preset, exact):
    assert nearest(name, mib * MIB) == (preset, exact)
    made = Hardware.detect(Fake(nvidia_smi=smi(name, total=str(mib))))
    guess = made.sources["memory_bytes_per_s"].startswith(f"estimate: the {preset} preset's")
    assert guess != exact
    assert (f"no preset; speeds as {preset}" in made.summary) != exact


def test_a_machine_without_a_driver_is_read_from_lspci():
    h = Hardware.detect(Fake(lspci=LSPCI))
    assert h.gpu == "NVIDIA GeForce RTX 3060" and h.reserve_bytes is None
    assert h.vram_bytes == Hardware.load("rtx3060").vram_bytes
    assert h.h2d_bytes_per_s == part("pcie4x8").bytes_per_s
    assert "lspci: the card's PCIe generation 4 (LnkCap), 8 lanes" in h.sources["h2d_bytes_per_s"]
    hidden = LSPCI[: LSPCI.index("\tCapabilities")] + "\tCapabilities: <access denied>\n"
    assert Hardware.detect(Fake(lspci=hidden)).h2d_bytes_per_s == 27_300_000_000


@pytest.mark.parametrize(
    ("answers", "memory"),
    [
        ({"dmidecode": dmi(("ChannelA-DIMM0", "BANK 0"), ("ChannelB-DIMM0", "BANK 2"),
                           kind="DDR5", speed=6000, now=5200)}, "ddr5-5200x2"),
        ({"dmidecode": dmi(("DIMM_A2", "Unknown"), ("DIMM_B2", "Unknown"))}, "ddr4-3200x2"),
        ({"dmidecode": dmi(("DIMM_A2", "Unknown"))}, "ddr4-3200x1"),
        ({"dmidecode": dmi(("Controller0-ChannelA-DIMM0", "BANK 0"),
                           ("Controller1-ChannelA-DIMM0", "BANK 0"), kind="DDR5", now=5600)},
         "ddr5-5600x2"),
        ({"dmidecode": dmi(*[("Slot", "x")] * 4)}, "ddr4-3200x2"),
        ({"udevadm": "".join(
            f"MEMORY_DEVICE_{n}_TYPE=DDR5\nMEMORY_DEVICE_{n}_SPEED_MTS=6000\n"
            f"MEMORY_DEVICE_{n}_CONFIGURED_SPEED_MTS=5600\nMEMORY_DEVICE_{n}_SIZE=17179869184\n"
            f"MEMORY_DEVICE_{n}_LOCATOR=DIMM {n % 2}\n"
            f"MEMORY_DEVICE_{n}_BANK_LOCATOR=P0 CHANNEL {'AB'[n // 2]}\n"
            for n in range(4)) + "MEMORY_DEVICE_4_PRESENT=0\nMEMORY_DEVICE_4_SIZE=1\n"},
         "ddr5-5600x2"),
        ({"dmidecode": dmi(("DIMM_A1", "x"), kind="DDR3", now=1600)}, None),
        ({"dmidecode": dmi(("DIMM_A1", "x"), now=99)}, None),
        ({"dmidecode": "/dev/mem: Permission denied\n"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_memory_modules(answers, memory):
    h = Hardware.detect(Fake(nvidia_smi=smi(), **answers))
    if memory is None:
        assert h.cpu_bytes_per_s == Hardware.load("rtx3090").cpu_bytes_per_s
        assert h.sources["cpu_bytes_per_s"].startswith("estimate: as derived on the rtx5090")
    else:
        assert h.cpu_bytes_per_s == part(memory).bytes_per_s


def test_a_server_has_a_channel_a_module():
    many = dmi(*[("DIMM", "x")] * 8)
    h = Hardware.detect(Fake("AMD EPYC 7543 32-Core Processor", nvidia_smi=smi(), dmidecode=many))
    assert h.cpu_bytes_per_s == part("ddr4-3200x8").bytes_per_s
    assert "8 channels guessed from 8 modules" in h.sources["cpu_bytes_per_s"]


def test_a_machine_of_several_gpus_is_the_first_of_them():
    h = Hardware.detect(Fake(nvidia_smi=smi() + smi("NVIDIA A30", "24576")))
    assert h.gpu == "NVIDIA GeForce RTX 3090" and h.summary.endswith("the first of 2 GPUs")


@pytest.mark.parametrize("answer", ["", "No devices were found\n", "[N/A], 1, 1, 1, 1, 1, 1, 1\n"])
def test_no_gpu_is_one_line(answer):
    with pytest.raises(InputError, match="auto: no NVIDIA GPU is reported here") as e:
        Hardware.detect(Fake(nvidia_smi=answer, lspci=""))
    assert "name a preset" in str(e.value) and "\n" not in str(e.value)


@pytest.fixture
def this_machine(monkeypatch):
    system = Fake(nvidia_smi=smi(), dmidecode=dmi(*FOUR))
    monkeypatch.setattr(detect, "_real", lambda: detect._detect(system))
    return system


def test_auto_is_taken_wherever_hardware_is(this_machine, tmp_path):
    want = Hardware.detect(this_machine)
    assert Hardware.load("auto") == want
    assert Hardware.load("auto+pcie3").h2d_bytes_per_s == part("pcie3").bytes_per_s
    (tmp_path / "mine.toml").write_text('base = "auto"\n')
    assert Hardware.load(str(tmp_path / "mine.toml")).numbers() | {"name": "auto"} == want.numbers()
    run = uvmsim.Scenario(hardware="auto", limit=20, mechanisms="resident").compare()[0]
    assert run.job.hardware == want
    (tmp_path / "s.toml").write_text('hardware = ["auto", "auto+pcie3"]\nlimit = 20\n')
    from uvmsim.studies.sweep.config import load

    assert load(tmp_path / "s.toml").hardware == ["auto", "auto+pcie3"]


def test_the_command_prints_a_file_that_can_be_edited(this_machine, tmp_path):
    def run(*words):
        return CliRunner().invoke(hardware, words, catch_exceptions=False)

    shown = run("--detect")
    assert shown.exit_code == 0 and "this machine (AMD Ryzen" in shown.stdout
    path = tmp_path / "mine.toml"
    path.write_text(run("--detect", "--toml").stdout)
    assert Hardware.load(str(path)) == Hardware.load("auto")
    assert json.loads(run("auto", "--json").stdout) == json.loads(run("--detect", "--json").stdout)
    for words in (("--detect", "h100"), ("--toml",), ("h100", "--toml", "--json")):
        with pytest.raises(InputError, match=r"leave out|of one machine"):
            run(*words)


# ---- the CUDA driver -------------------------------------------------------------------------------

# As deviceQuery shows them: MHz, multiprocessors, memory MHz, bits, capability.
CARDS = {
    "NVIDIA GeForce RTX 3070": (1725, 46, 7001, 256, (8, 6)),
    "NVIDIA GeForce RTX 4090": (2520, 128, 10501, 384, (8, 9)),
    "NVIDIA RTX A6000": (1800, 84, 8001, 384, (8, 6)),
}


def driver(name: str, total: int = 8 << 30, **more) -> dict[str, str]:
    mhz, sms, memory, bits, (major, minor) = CARDS[name]
    facts = {
        "name": name, "total_bytes": total, "clock_khz": mhz * 1000, "sm_count": sms,
        "memory_khz": memory * 1000, "bus_bits": bits, "threads_per_sm": 1536, "copy_engines": 2,
        "major": major, "minor": minor,
    }  # fmt: skip
    return {sys.executable.replace("-", "_"): json.dumps(facts | more)}


def test_a_card_without_a_preset_has_the_speeds_that_its_driver_knows():
    name = "NVIDIA GeForce RTX 3070"
    h = Hardware.detect(Fake(nvidia_smi=smi(name, "8192"), **driver(name, 8_361_000_000)))
    # NVIDIA's specifications: 448 GB/s, 40.6 TFLOPS with FP32 accumulate (twice the 20.3 of FP32).
    assert h.memory_bytes_per_s == pytest.approx(0.89 * 448e9, rel=1e-3)
    assert h.compute_flops == pytest.approx(0.6 * 40.6e12, rel=2e-3)
    assert h.vram_bytes == 8_361_000_000
    assert (h.uvm.sm_count, h.uvm.ctas_per_sm) == (46, 12)
    assert h.sources["memory_bytes_per_s"].startswith("estimate: 89% of 448 GB/s (CUDA driver: 256")
    assert h.sources["vram_bytes"].startswith("CUDA driver")
    pro = Hardware.detect(Fake(**driver("NVIDIA RTX A6000")))  # full rate: 154.8 at this clock
    assert pro.compute_flops == pytest.approx(0.6 * 84 * 1.8e9 * 1024)
    assert pro.gpu == "NVIDIA RTX A6000"


def test_a_card_with_a_preset_keeps_its_speeds():
    name, base = "NVIDIA GeForce RTX 4090", Hardware.load("rtx4090")
    h = Hardware.detect(Fake(nvidia_smi=smi(name, "24564"), **driver(name, base.vram_bytes)))
    assert h.memory_bytes_per_s == base.memory_bytes_per_s and h.vram_bytes == base.vram_bytes
    assert h.uvm == base.uvm
    other = Hardware.detect(Fake(nvidia_smi=smi(), **driver(name)))  # another card than the first
    assert other.vram_bytes == int(24576 * 0.97) * MIB
    odd = {sys.executable.replace("-", "_"): "no JSON"}
    assert Hardware.detect(Fake(nvidia_smi=smi(), **odd)) == Hardware.detect(Fake(nvidia_smi=smi()))


@pytest.mark.parametrize("name", ["a100", "h100", "rtx3090", "rtx4090", "rtx5090", "rtxpro6000"])
def test_operations_a_clock_are_those_of_the_datasheets(name):
    """SMs x boost clock x operations gives the dense FP16 rate (FP32 accumulate) of each generation."""
    sms, mhz, capability, tflops = {
        "a100": (108, 1410, "8.0", 312), "h100": (132, 1830, "9.0", 989.4),
        "rtx3090": (82, 1695, "8.6", 71), "rtx4090": (128, 2520, "8.9", 165.2),
        "rtx5090": (170, 2407, "12.0", 209.5), "rtxpro6000": (188, 2617, "12.0", 503.8),
    }[name]  # fmt: skip
    each = detect.OPERATIONS[capability]
    each //= 2 if "GeForce" in Hardware.load(name).gpu else 1
    assert sms * mhz * 1e6 * each == pytest.approx(tflops * 1e12, rel=0.005)


def test_asking_the_driver_here():
    """On a machine without one the child says nothing; with one, what `_told_by_cuda` reads."""
    facts = reports.cuda_facts(System())
    assert facts is None or {"name", "total_bytes", *ATTRIBUTES} == set(facts)


def test_the_driver_is_asked_as_its_header_says():
    """A library that stores each attribute's number as its value."""

    class Library:
        def __getattr__(self, name):
            return lambda *given: self.call(name, *given)

        def call(self, name, *given):
            if name == "cuDeviceGetName":
                given[0].value = b"NVIDIA Toy"
            elif name == "cuDeviceTotalMem_v2":
                given[0]._obj.value = 5 << 30
            elif name == "cuDeviceGetAttribute":
                given[0]._obj.value = given[1]
            return 0

    told = facts_of_library(Library())
    assert told == {"name": "NVIDIA Toy", "total_bytes": 5 << 30} | ATTRIBUTES


# ---- the real thing --------------------------------------------------------------------------------


def test_commands_that_are_not_there_fail_or_hang_say_nothing(monkeypatch):
    system = System()
    assert system.run("no-such-program-anywhere") is None
    assert system.run(sys.executable, "-c", "print(1); raise SystemExit(3)") is None
    assert system.run(sys.executable, "-c", "print('told')") == "told\n"
    monkeypatch.setattr(reports, "SECONDS", 0.2)
    start = time.monotonic()
    assert system.run(sys.executable, "-c", "import time; time.sleep(30)") is None
    assert time.monotonic() - start < 10
    assert system.read("/no/such/file") is None


def test_this_machines_memory_and_cpu():
    assert reports.meminfo(System()) > 1 << 28
    assert reports.cpu_name(Fake()) == "AMD Ryzen 7 5800X 8-Core Processor"
