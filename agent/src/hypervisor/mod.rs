//! What runs guests. QEMU is the only hypervisor so far; everything that is peculiar to it stays in [`qemu`].

pub mod qemu;
