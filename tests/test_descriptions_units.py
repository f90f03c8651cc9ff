"""Sizes, rates and times: exact when parsed, readable when printed, refused when ambiguous."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traces.errors import InputError
from uvmsim.core.units import (
    format_bytes,
    format_flops,
    format_ns,
    format_rate,
    parse_bandwidth,
    parse_bytes,
    parse_flops,
    parse_time,
)

SIZES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
         "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("24GiB", 24 * 2**30),
        ("24 GB", 24 * 10**9),
        ("13.2MB", 13_200_000),
        (" 2 MiB ", 2**21),
        ("1234", 1234),
        ("1_000 B", 1000),
        ("24gib", 24 * 2**30),
        ("1e3 kB", 10**6),
        (1234, 1234),
        (12.0, 12),
        ("0", 0),
    ],
)
def test_sizes(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1.5g", "1.5GB (powers of 1000) or 1.5GiB"),
        ("24G", "ambiguous"),
        ("24Gi", "ambiguous"),
        ("64K", "64kB (powers of 1000) or 64KiB"),
        ("8Gb", "counts bits"),
        ("8 Gbit", "counts bits"),
        ("3 apples", "unknown unit 'apples'"),
        ("lots", "write it like 24GiB"),
        ("", "is not a size"),
        ("1.5", "no unit"),
        ("-1GB", "negative"),
        ("1e30 GB", "too large"),
        (float("nan"), "is not a size"),
        (float("inf"), "is not a size"),
        (True, "is not a size"),
    ],
)
def test_bad_sizes_say_what_to_write(text, says):
    with pytest.raises(InputError) as e:
        parse_bytes(text)
    assert says in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_bandwidth, "28 GB/s", 28 * 10**9),
        (parse_bandwidth, "1.79TB/s", 1_790_000_000_000),
        (parse_bandwidth, "1 GiB / s", 2**30),
        (parse_bandwidth, 5, 5),
        (parse_time, "2.3us", 2300),
        (parse_time, "2.3 µs", 2300),
        (parse_time, "0.16 ms", 160_000),
        (parse_time, "3 s", 3 * 10**9),
        (parse_time, "12ns", 12),
        (parse_time, 7, 7),
        (parse_flops, "209.5 TFLOPS", 209_500_000_000_000),
        (parse_flops, "1 TFLOP/s", 10**12),
    ],
)
def test_rates_and_times(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "says"),
    [
        (parse_bandwidth, "28GB", "write it like 28GB/s"),
        (parse_bandwidth, "28", "write it like"),
        (parse_bandwidth, "200 Gbps", "bytes a second"),
        (parse_bandwidth, "200 Gbit/s", "counts bits"),
        (parse_bandwidth, "0 GB/s", "above zero"),
        (parse_bandwidth, "28g/s", "ambiguous"),
        (parse_time, "5", "has no unit"),
        (parse_time, "5 min", "unknown unit 'min'"),
        (parse_time, "-5us", "negative"),
        (parse_flops, "5 apples", "TFLOPS"),
        (parse_flops, "0 TFLOPS", "above zero"),
    ],
)
def test_bad_rates_and_times(parse, text, says):
    with pytest.raises(InputError) as e:
        parse(text)
    assert says in str(e.value)


@given(st.integers(0, 2**40), st.sampled_from(sorted(SIZES)), st.sampled_from(["", " "]))
def test_whole_sizes_are_exact(n, unit, gap):
    n %= 2**62 // SIZES[unit]
    assert parse_bytes(f"{n}{gap}{unit}") == n * SIZES[unit]


@given(st.integers(0, 2**60), st.booleans())
def test_printed_sizes_read_back_to_three_digits(n, binary):
    back = parse_bytes(format_bytes(n, binary=binary))
    assert back == pytest.approx(n, rel=0.005)


@given(st.integers(1, 2**55))
def test_printed_rates_and_times_read_back(n):
    assert parse_bandwidth(format_rate(n)) == pytest.approx(n, rel=0.005)
    assert parse_time(format_ns(n)) == pytest.approx(n, rel=0.005)


def test_printed_forms():
    assert format_bytes(13_219_200) == "13.2 MB"
    assert format_bytes(999_999) == "1.00 MB"
    assert format_bytes(2**21, binary=True) == "2.00 MiB"
    assert format_bytes(0) == "0 B"
    assert format_bytes(17) == "17 B"
    assert format_rate(54_700_000_000) == "54.7 GB/s"
    assert format_ns(2500) == "2.50 µs"
    assert format_ns(160_000) == "160 µs"
    assert format_flops(60_000_000_000_000) == "60.0 TFLOPS"
