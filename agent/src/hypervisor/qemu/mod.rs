//! QEMU, driven over QMP.
