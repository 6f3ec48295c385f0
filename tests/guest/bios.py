#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""SeaBIOS starts a disk of ours: its own driver, which polls the ring and takes no interrupts, reads a boot sector, and the
boot sector reads and writes through it."""
import subprocess

import harness
import vm
from vm import MIB

# Reads the 8 sectors behind itself, says the text in them on the serial port, writes them to sector 33 (of 63 in a track),
# and ends QEMU with status 1 + 2 * 16; with another status when the BIOS reports an error.
BOOT_SECTOR = """
.code16
start:  xor %ax, %ax
        mov %ax, %ds
        mov %ax, %es
        mov %ax, %ss
        mov $0x7c00, %sp
        mov $0x7e00, %bx
        mov $0x0208, %ax
        mov $0x0002, %cx
        xor %dh, %dh
        int $0x13
        jc failed
        mov $0x7e00, %si
        mov $0x3f8, %dx
        cld
next:   lodsb
        test %al, %al
        jz said
        outb %al, %dx
        jmp next
said:   mov $0x7e00, %bx
        mov $0x0308, %ax
        mov $0x0021, %cx
        mov $0x80, %dl
        xor %dh, %dh
        int $0x13
        jc failed
        mov $0x10, %ax
end:    mov $0xf4, %dx
        outb %al, %dx
        hlt
failed: mov $0x20, %ax
        jmp end
.org 510
        .word 0xaa55
"""
TEXT = "".join(f"line {n} of a disk of Fleece\n" for n in range(130)).encode()


def assemble(t):
    t.path("boot.s").write_text(BOOT_SECTOR)
    t.run("as", "--32", "-o", t.path("boot.o"), t.path("boot.s"))
    t.run("ld", "-m", "elf_i386", "--oformat", "binary", "-Ttext", "0x7c00", "-e", "start", "-o", t.path("boot"),
          t.path("boot.o"))
    return t.path("boot").read_bytes()


def boot(t, kind):
    harness.need("qemu-system-x86_64", "as", "ld")
    sectors = TEXT.ljust(8 * 512, b"\0")
    images = {"vda": t.disk("vda.raw", MIB, fill=assemble(t) + sectors)}
    d = vm.serve(t, kind, images)
    console = t.path("console")
    arguments = ["qemu-system-x86_64", "-accel", "tcg", "-nodefaults", "-display", "none", "-serial", f"file:{console}",
                 "-device", "isa-debug-exit,iobase=0xf4,iosize=4", *vm.memory_arguments(kind, 32),
                 *vm.disk_arguments(t, kind, "vda", d)]
    qemu = t.spawn(*arguments)
    try:
        status = qemu.wait(vm.WAIT * harness.FACTOR)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"the disk did not start; the console:\n{console.read_bytes()[-500:]}") from None
    assert status == 33, f"QEMU ended with {status}, not 33; the console:\n{console.read_bytes()[-500:]}"
    assert console.read_bytes() == TEXT, console.read_bytes()
    d.stop()
    assert images["vda"].read_bytes()[32 * 512:40 * 512] == sectors, "what the boot sector wrote is not in the image"


def test_boot_over_vhost_user(t):
    boot(t, vm.VHOST_USER)


def test_boot_over_nbd(t):
    boot(t, vm.NBD)


harness.main()
