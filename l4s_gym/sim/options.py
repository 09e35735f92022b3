"""Options of the queue disciplines, a table for each: the same name may have another unit in another law."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from msgspec.structs import fields

from l4s_gym.errors import L4SError, unknown

Positive = Annotated[float, Meta(gt=0.0, le=1e9)]
NonNegative = Annotated[float, Meta(ge=0.0, le=1e9)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Interval = Annotated[float, Meta(ge=0.001, le=1e9)]
Gain = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Count = Annotated[int, Meta(ge=0, le=1_000_000)]
Scheduler = Literal["wrr", "time_shifted"]


class FreeBSDOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """`dualpi2_freebsd`, the testbed's kernel.

    Attributes:
        target_ms: Target delay.
        tupdate_ms: Control interval.
        max_burst_ms: Burst allowance.
        alpha: Integral gain, 1/8192.
        beta: Proportional gain, 1/8192.
        max_ecn_threshold: Probability (1/8192) from which ECN packets are dropped.
        quirks_off: Names of `Quirk` to switch off; "all" for all of them.
        drr_weight: Bytes of L for each of C while both queues wait (2, or 1: there are kernels of both).
        step_ms: Step threshold of L, without the quirk `no_l4s_step`.
        scheduler: Without the quirk `drr`: `wrr` or `time_shifted`, as RFC 9332's.
        classic_weight: Share of C in that round robin.
        shift_ms: Time shift of that `time_shifted` scheduler.
    """

    target_ms: NonNegative = 15.0
    tupdate_ms: Interval = 15.0
    max_burst_ms: NonNegative = 150.0
    alpha: Gain = 1024
    beta: Gain = 10240
    max_ecn_threshold: Annotated[int, Meta(ge=0, le=8192)] = 819
    quirks_off: tuple[str, ...] = ()
    drr_weight: Annotated[int, Meta(ge=1, le=64)] = 2
    step_ms: NonNegative = 1.0
    scheduler: Scheduler = "wrr"
    classic_weight: Fraction = 1 / 16
    shift_ms: Positive = 50.0


class RFC9332Options(Struct, frozen=True, forbid_unknown_fields=True):
    """`dualpi2_rfc9332`, the standard's appendix A.

    Attributes:
        target_ms: Target delay.
        tupdate_ms: Control interval.
        alpha: Integral gain, Hz (rounded to 2^-48 per ns).
        beta: Proportional gain, Hz, likewise.
        coupling: k (rounded to 1/256).
        min_th_us: Foot of the L ramp.
        range_us: Width of the L ramp.
        th_len: No native L mark while L holds at most so many packets.
        p_c_max: Overload threshold on p_C.
        scheduler: `wrr` or `time_shifted`.
        classic_weight: Share of C in the round robin (rounded to 1/65536).
        shift_ms: Time shift of the `time_shifted` scheduler.
    """

    target_ms: NonNegative = 15.0
    tupdate_ms: Interval = 16.0
    alpha: NonNegative = 0.16
    beta: NonNegative = 3.2
    coupling: Positive = 2.0
    min_th_us: NonNegative = 800.0
    range_us: Positive = 400.0
    th_len: Count = 1
    p_c_max: Fraction = 0.25
    scheduler: Scheduler = "wrr"
    classic_weight: Fraction = 1 / 16
    shift_ms: Positive = 50.0


class LinuxOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """`dualpi2_linux`, that kernel's `sch_dualpi2`.

    Attributes:
        target_ms: Target delay.
        tupdate_ms: Control interval.
        alpha: Integral gain, 1/256 Hz, as netlink has it.
        beta: Proportional gain, 1/256 Hz.
        coupling: k.
        step_ms: Step threshold of L.
        step_packets: Step threshold of L in packets, instead of `step_ms`; 0: by time.
        min_qlen_step: The step is for packets that find at least so many in L.
        classic_protection: Share of C in the round robin, per cent; 0: L has strict priority.
        drop_on_overload: Drop L too in overload.
    """

    target_ms: NonNegative = 15.0
    tupdate_ms: Interval = 16.0
    alpha: Gain = 41
    beta: Gain = 819
    coupling: Annotated[int, Meta(ge=1, le=255)] = 2
    step_ms: NonNegative = 1.0
    step_packets: Count = 0
    min_qlen_step: Count = 0
    classic_protection: Annotated[int, Meta(ge=0, le=100)] = 10
    drop_on_overload: bool = True


class PIEOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """`pie`, RFC 8033.

    Attributes:
        target_ms: Target delay.
        tupdate_ms: Control interval.
        max_burst_ms: Burst allowance.
        alpha: Integral gain, Hz.
        beta: Proportional gain, Hz.
        derandomise: Section 5.4.
        ecn_threshold: Probability above which ECN packets are dropped.
    """

    target_ms: NonNegative = 15.0
    tupdate_ms: Interval = 15.0
    max_burst_ms: NonNegative = 150.0
    alpha: NonNegative = 0.125
    beta: NonNegative = 1.25
    derandomise: bool = True
    ecn_threshold: Fraction = 0.1


class CoDelOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """`codel`, RFC 8289.

    Attributes:
        target_ms: Target delay.
        interval_ms: Interval.
    """

    target_ms: NonNegative = 5.0
    interval_ms: Positive = 100.0


class REDOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """`red`.

    Attributes:
        min_ms: Lower threshold, as the delay at the link's rate.
        max_ms: Upper threshold, likewise.
        max_p: Probability at the upper threshold.
        weight: Weight of a new sample.
    """

    min_ms: Positive = 15.0
    max_ms: Positive = 45.0
    max_p: Fraction = 0.1
    weight: Fraction = 0.002


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """A table for each discipline that has options; the discipline that runs reads its own."""

    dualpi2_freebsd: FreeBSDOptions = FreeBSDOptions()
    dualpi2_rfc9332: RFC9332Options = RFC9332Options()
    dualpi2_linux: LinuxOptions = LinuxOptions()
    pie: PIEOptions = PIEOptions()
    codel: CoDelOptions = CoDelOptions()
    red: REDOptions = REDOptions()


OPTIONS = {table.name: tuple(each.name for each in fields(table.type)) for table in fields(Options)}
"""Names of the options of each discipline."""


def check(name: str, *option: str) -> None:
    """Refuse what is no option of a discipline.

    Args:
        name: Of the discipline.
        option: Of the option, if it is one that is looked for.

    Raises:
        L4SError: There is none; the error tells whose options there are.
    """
    if name not in OPTIONS:
        if owners := [aqm for aqm, names in OPTIONS.items() if name in names]:
            raise L4SError(
                f"options.{name}: each discipline has options of its own: "
                f"write {' or '.join(f'options.{aqm}.{name}' for aqm in owners)}"
            )
        raise unknown("discipline with options", name, tuple(OPTIONS))
    for each in option[:1]:
        if each not in OPTIONS[name]:
            owners = [aqm for aqm, names in OPTIONS.items() if each in names]
            of = f" (it is one of {', '.join(owners)})" if owners else ""
            raise L4SError(f"options.{name}: {unknown(f'option of {name}{of}', each, OPTIONS[name])}")


def check_tables(tables: Any) -> None:
    """`check` for each name in the tables of a scenario.

    Raises:
        L4SError: One is unknown.
    """
    for name, table in tables.items() if isinstance(tables, dict) else ():
        check(name)
        for option in table if isinstance(table, dict) else ():
            check(name, option)
