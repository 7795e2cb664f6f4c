"""Which system calls a reward worker may make: a filter of the Linux kernel, set by ctypes alone.

No new process, no program, no network, no signal to or look into another process, no change of the
machine. Threads are allowed. A refused call fails with EPERM, which Python raises as
PermissionError. See seccomp(2); the numbers are those of x86-64, other machines have no filter.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterable

_ARCHITECTURE = 0xC000003E
_X32 = 0x40000000
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
_CLONE, _CLONE3, _PRLIMIT = 56, 435, 302
_CLONE_THREAD = 0x00010000
_SOCKETPAIR, _STREAM, _TYPE_BITS = 53, 1, 0xF
_AND = 0x54
_BY_COMMAND = {"fcntl": (72, (8, 10, 15, 1024, 1026)), "ioctl": (16, (0x8901, 0x8902, 0x5412))}
"""Number and refused commands: who gets a descriptor's signals (F_SETOWN, F_SETSIG, F_SETOWN_EX,
FIOSETOWN, SIOCSPGRP), leases and notices of files (F_SETLEASE, F_NOTIFY), typing into a terminal
(TIOCSTI)."""
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2

_TO_PROCESS = {"kill": 62, "tgkill": 234}
"""Their first argument is the process that is meant; this one's own is allowed."""

_REFUSED = """
    fork=57 vfork=58 execve=59 execveat=322 socket=41 connect=42 bind=49 io_uring_setup=425
    tkill=200 rt_sigqueueinfo=129 rt_tgsigqueueinfo=297 pidfd_open=434 pidfd_send_signal=424
    pidfd_getfd=438 ptrace=101 process_vm_readv=310 process_vm_writev=311 kcmp=312 unshare=272
    setns=308 mount=165 umount2=166 pivot_root=155 chroot=161 mknod=133 mknodat=259
    open_by_handle_at=304 bpf=321 perf_event_open=298 userfaultfd=323 add_key=248
    request_key=249 keyctl=250 init_module=175 finit_module=313 delete_module=176 kexec_load=246
    reboot=169 swapon=167 swapoff=168 sethostname=170 setdomainname=171 settimeofday=164
    clock_settime=227 adjtimex=159 clock_adjtime=305 setrlimit=160 shmget=29 semget=64 msgget=68
    mq_open=240 shmat=30 shmctl=31 semop=65 semctl=66 semtimedop=220 msgsnd=69 msgrcv=70 msgctl=71
    setpriority=141 sched_setparam=142 sched_setscheduler=144 sched_setaffinity=203
    sched_setattr=314 ioprio_set=251 migrate_pages=256 move_pages=279 fanotify_init=300
    fanotify_mark=301 inotify_init=253 inotify_init1=294 inotify_add_watch=254 syslog=103 acct=163
    fsopen=430 fsconfig=431 fsmount=432 fspick=433 open_tree=428 move_mount=429 mount_setattr=442
    quotactl=179 quotactl_fd=443 memfd_create=319 memfd_secret=447 sync=162 syncfs=306
    process_madvise=440 process_mrelease=448 vhangup=153 iopl=172 ioperm=173 capset=126
    landlock_create_ruleset=444
"""
# memfd: memory that no limit of the address space counts. fanotify: it can hold up every open().
_METADATA = """
    chmod=90 fchmod=91 fchmodat=268 fchmodat2=452 chown=92 fchown=93 lchown=94 fchownat=260
    setxattr=188 lsetxattr=189 fsetxattr=190 removexattr=197 lremovexattr=198 fremovexattr=199
    utime=132 utimes=235 futimesat=261 utimensat=280
"""
# The latter are changes of files that Landlock does not know.

_Instruction = tuple[int, int, int, int]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def refuse_calls(metadata: bool) -> bool:
    """From now on, for this process and its threads; metadata: also changes of files' modes.

    Returns whether the kernel took the filter; it cannot be taken off again.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    refused = _REFUSED + (_METADATA if metadata else "")
    program = _program([int(call.partition("=")[2]) for call in refused.split()], os.getpid())
    code = b"".join(
        kind.to_bytes(2, "little") + bytes((yes, no)) + value.to_bytes(4, "little")
        for kind, yes, no, value in program
    )
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_ = _Program(len(program), ctypes.addressof(buffer))
    prctl = ctypes.CDLL(None).prctl
    calls = ((_PR_SET_NO_NEW_PRIVS, 1, 0), (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(filter_)))
    return all(prctl(*call, 0, 0) == 0 for call in calls)


def _program(refused: Iterable[int], pid: int) -> list[_Instruction]:
    """(kind, jump if true, jump if false, value) of each instruction of the filter."""
    no, yes = (_RETURN, 0, 0, _ERRNO | _EPERM), (_RETURN, 0, 0, _ALLOW)
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _ARCHITECTURE),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),  # the same calls under other numbers
        no,
        # Its flags lie in memory, where no filter sees them; the C library then uses clone.
        (_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _ERRNO | _ENOSYS),
        *[(_EQUAL, 0, 4, _CLONE), (_LOAD, 0, 0, _ARGUMENTS), (_ANY_BIT, 1, 0, _CLONE_THREAD)],
        *[no, yes],
        # Limits may be read: then there is no new one, a null pointer of two halves.
        *[(_EQUAL, 0, 6, _PRLIMIT), (_LOAD, 0, 0, _ARGUMENTS + 16), (_EQUAL, 0, 3, 0)],
        *[(_LOAD, 0, 0, _ARGUMENTS + 20), (_EQUAL, 0, 1, 0), yes, no],
    ]
    for number in _TO_PROCESS.values():
        program += [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, _ARGUMENTS), (_EQUAL, 1, 0, pid), no, yes]
    # The ends of a stream are each other's alone; a datagram may go to any socket with a path.
    program += [(_EQUAL, 0, 5, _SOCKETPAIR), (_LOAD, 0, 0, _ARGUMENTS + 8)]
    program += [(_AND, 0, 0, _TYPE_BITS), (_EQUAL, 1, 0, _STREAM), no, yes]
    for number, commands in _BY_COMMAND.values():
        n = len(commands)
        program += [(_EQUAL, 0, n + 3, number), (_LOAD, 0, 0, _ARGUMENTS + 8)]
        program += [(_EQUAL, n - i, 0, command) for i, command in enumerate(commands)]
        program += [yes, no]
    for number in refused:
        program += [(_EQUAL, 0, 1, number), no]
    return [*program, yes]
