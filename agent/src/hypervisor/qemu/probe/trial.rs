//! Whether an accelerator really runs guests: a guest of a few hundred bytes is given a kernel's work, and a limit.
//!
//! ```text
//!   reset vector ─▶ 'S' ─▶ 32 bits ─▶ page tables ─▶ 64 bits ─▶ remap, and reload CR3 ─▶ compute ─▶ 'D'
//!                    └───────────────────────── WORK_WAIT_MAX ─────────────────────────────────────┘
//! ```
//!
//! `/dev/kvm` being there says little, and so does a guest that starts. A KVM without VMX and SVM (kvm-pvm) runs firmware,
//! but interprets a kernel that does not know of it, one instruction after the other, so that it does not boot in minutes.
//! Only doing what a kernel does, at its privilege level, shows that: the same loop at level 3 runs at full speed there.
//! Paging is not what is slow; but it is part of the work, and an accelerator that gets it wrong is found out.
//!
//! Measured on a shared 2-core machine with that KVM, Linux 6.18, QEMU 10.0.2:
//!
//! | Accelerator | 4 × 512 pages remapped and read | 40 million instructions | the same at level 3 |
//! |---|---|---|---|
//! | TCG | 1 ms to 22 ms | 52 ms to 58 ms | 46 ms |
//! | kvm-pvm | 11 ms to 60 ms | 47 s to 64 s (over 1 µs each) | 7 ms |
//!
//! So the limit is nearly fifty times less than that KVM needs, and more than ten times what TCG needs. Where the processor
//! executes the guest, the loop takes the 7 ms; the few thousand page faults and writes to page tables, which nested
//! virtualisation makes dear, may then take 0.1 ms each.
//!
//! The guest's marks go through QEMU's debug console to a pipe. So the clock starts with the guest: a host that has just
//! booted may take seconds to load QEMU, and that says nothing of its accelerator.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use sterna_shared::host::Accelerator;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::ProbeError;

/// How long QEMU may take until its guest executes.
const START_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long the guest's work may take. The module says what was measured.
pub const WORK_WAIT_MAX: Duration = Duration::from_secs(1);
/// How long QEMU may take to end once it is killed.
const END_WAIT_MAX: Duration = Duration::from_secs(2);

/// The guest's marks on the debug console: it executes, and its work is done. Nothing else is success.
const STARTED: u8 = b'S';
const DONE: u8 = b'D';

/// What came of an accelerator's trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The guest did its work in time.
    Works,
    /// It executes, but it was not done in time.
    TooSlow,
    /// QEMU refuses the accelerator, or the guest crashed or computed wrongly.
    Unusable,
}

/// Tries an accelerator with a guest that has `work_max` to do its work, [`WORK_WAIT_MAX`] outside tests. `scratch` is a
/// directory to write its ROM to, which is removed again.
///
/// # Errors
/// [`ProbeError::Run`], [`ProbeError::Scratch`]. QEMU refusing the accelerator is [`Verdict::Unusable`].
pub async fn try_out(
    qemu: &Path,
    accelerator: Accelerator,
    work_max: Duration,
    scratch: &Path,
) -> Result<Verdict, ProbeError> {
    let path = scratch.join(format!("probe-{}.rom", std::process::id()));
    let unwritable = |source| ProbeError::Scratch { path: path.clone(), source };
    tokio::fs::write(&path, rom()).await.map_err(unwritable)?;
    let verdict = run(qemu, accelerator, work_max, &path).await;
    tokio::fs::remove_file(&path).await.map_err(unwritable)?;
    verdict
}

async fn run(qemu: &Path, accelerator: Accelerator, work_max: Duration, rom: &Path) -> Result<Verdict, ProbeError> {
    let mut child = Command::new(qemu)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "16", "-machine"])
        .arg(format!("pc,accel={}", accelerator.as_str()))
        .args(["-debugcon", "stdio", "-bios"])
        .arg(rom)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| ProbeError::Run { program: qemu.to_owned(), source })?;
    let marks = child.stdout.take().ok_or(ProbeError::NoPipe)?;
    let verdict = judge(marks, work_max).await;
    // The guest has said what it had to say; how QEMU ends does not matter, only that it does.
    let _ = timeout(END_WAIT_MAX, child.kill()).await;
    Ok(verdict)
}

async fn judge(mut marks: impl AsyncRead + Unpin, work_max: Duration) -> Verdict {
    for (mark, wait_max) in [(STARTED, START_WAIT_MAX), (DONE, work_max)] {
        match timeout(wait_max, marks.read_u8()).await {
            Ok(Ok(said)) if said == mark => {}
            // It says that its work went wrong, or QEMU ended: at once, or at a triple fault.
            Ok(_) => return Verdict::Unusable,
            Err(_) => return Verdict::TooSlow,
        }
    }
    Verdict::Works
}

/// QEMU lays its end at 4 GiB, where the processor starts 16 bytes before, and shows it below 1 MiB as well.
fn rom() -> Vec<u8> {
    const ROM_BYTES: usize = 64 << 10;
    const RESET_VECTOR: usize = ROM_BYTES - 16;
    // jmp start, which is 0 in the same segment.
    const ENTRY: [u8; 3] = [0xe9, 0x0d, 0x00];
    const { assert!(PROGRAM.len() <= RESET_VECTOR) };

    let mut rom = vec![0; ROM_BYTES];
    rom[..PROGRAM.len()].copy_from_slice(&PROGRAM);
    rom[RESET_VECTOR..RESET_VECTOR + ENTRY.len()].copy_from_slice(&ENTRY);
    rom
}

/// The guest, in NASM's notation; it is seen at 0xf0000. Its page tables are at 0x1000 (PML4), 0x2000, 0x3000, and 0x4000
/// and 0x5000: memory below 4 MiB in pages of 4 KiB, each where it is, until `pass` swaps neighbours above 2 MiB. No stack
/// and no interrupts: any fault is a triple fault, which ends QEMU.
#[rustfmt::skip]
const PROGRAM: [u8; 0x126] = [
    // bits 16
    0xb0, STARTED,                                              // 000 start:      mov al, 'S'
    0xe6, 0xe9,                                                 // 002             out 0xe9, al
    0x2e, 0x66, 0x0f, 0x01, 0x16, 0x20, 0x01,                   // 004             o32 lgdt [cs:gdtr]
    0x66, 0xb8, 0x11, 0x00, 0x00, 0x00,                         // 00b             mov eax, 0x11 ; PE, and caches on
    0x0f, 0x22, 0xc0,                                           // 011             mov cr0, eax
    0x66, 0xea, 0x1c, 0x00, 0x0f, 0x00, 0x08, 0x00,             // 014             jmp dword 8:0xf0000 + protected
    // bits 32
    0xb0, 0x10,                                                 // 01c protected:  mov al, 16
    0x8e, 0xd8,                                                 // 01e             mov ds, eax
    0xc7, 0x05, 0x00, 0x10, 0x00, 0x00, 0x03, 0x20, 0x00, 0x00, // 020             mov dword [0x1000], 0x2003
    0xc7, 0x05, 0x00, 0x20, 0x00, 0x00, 0x03, 0x30, 0x00, 0x00, // 02a             mov dword [0x2000], 0x3003
    0xc7, 0x05, 0x00, 0x30, 0x00, 0x00, 0x03, 0x40, 0x00, 0x00, // 034             mov dword [0x3000], 0x4003
    0xc7, 0x05, 0x08, 0x30, 0x00, 0x00, 0x03, 0x50, 0x00, 0x00, // 03e             mov dword [0x3008], 0x5003
    0xbf, 0x00, 0x40, 0x00, 0x00,                               // 048             mov edi, 0x4000
    0xb8, 0x03, 0x00, 0x00, 0x00,                               // 04d             mov eax, 3
    0x89, 0x07,                                                 // 052 .entry:     mov [edi], eax
    0x83, 0xc7, 0x08,                                           // 054             add edi, 8
    0x05, 0x00, 0x10, 0x00, 0x00,                               // 057             add eax, 0x1000
    0x81, 0xff, 0x00, 0x60, 0x00, 0x00,                         // 05c             cmp edi, 0x6000
    0x72, 0xee,                                                 // 062             jb .entry
    0xb8, 0x00, 0x10, 0x00, 0x00,                               // 064             mov eax, 0x1000
    0x0f, 0x22, 0xd8,                                           // 069             mov cr3, eax
    0xb8, 0x20, 0x00, 0x00, 0x00,                               // 06c             mov eax, 0x20 ; PAE
    0x0f, 0x22, 0xe0,                                           // 071             mov cr4, eax
    0xb9, 0x80, 0x00, 0x00, 0xc0,                               // 074             mov ecx, 0xc0000080 ; EFER
    0x0f, 0x32,                                                 // 079             rdmsr
    0x80, 0xcc, 0x01,                                           // 07b             or ah, 1 ; LME
    0x0f, 0x30,                                                 // 07e             wrmsr
    0xb8, 0x11, 0x00, 0x00, 0x80,                               // 080             mov eax, 0x80000011 ; PG
    0x0f, 0x22, 0xc0,                                           // 085             mov cr0, eax
    0xea, 0x8f, 0x00, 0x0f, 0x00, 0x18, 0x00,                   // 088             jmp 24:0xf0000 + kernel
    // bits 64. Each page is told its address, and then to change places with its neighbour ...
    0xbd, 0x04, 0x00, 0x00, 0x00,                               // 08f kernel:     mov ebp, 4
    0xbf, 0x00, 0x00, 0x20, 0x00,                               // 094 .pass:      mov edi, 0x200000
    0xbb, 0x00, 0x50, 0x00, 0x00,                               // 099             mov ebx, 0x5000
    0x48, 0x89, 0x3f,                                           // 09e .write:     mov [rdi], rdi
    0x80, 0x73, 0x01, 0x10,                                     // 0a1             xor byte [rbx + 1], 0x10
    0x83, 0xc3, 0x08,                                           // 0a5             add ebx, 8
    0x81, 0xc7, 0x00, 0x10, 0x00, 0x00,                         // 0a8             add edi, 0x1000
    0x81, 0xff, 0x00, 0x00, 0x40, 0x00,                         // 0ae             cmp edi, 0x400000
    0x72, 0xe8,                                                 // 0b4             jb .write
    0x0f, 0x20, 0xd8,                                           // 0b6             mov rax, cr3
    0x0f, 0x22, 0xd8,                                           // 0b9             mov cr3, rax
    // ... and so its neighbour's address is found in its place.
    0x81, 0xef, 0x00, 0x10, 0x00, 0x00,                         // 0bc .read:      sub edi, 0x1000
    0x89, 0xf8,                                                 // 0c2             mov eax, edi
    0x35, 0x00, 0x10, 0x00, 0x00,                               // 0c4             xor eax, 0x1000
    0x48, 0x39, 0x07,                                           // 0c9             cmp [rdi], rax
    0x75, 0x28,                                                 // 0cc             jne .wrong
    0x81, 0xff, 0x00, 0x00, 0x20, 0x00,                         // 0ce             cmp edi, 0x200000
    0x77, 0xe6,                                                 // 0d4             ja .read
    0xff, 0xcd,                                                 // 0d6             dec ebp
    0x75, 0xba,                                                 // 0d8             jnz .pass
    // 40 million instructions, over those pages.
    0xb9, 0x00, 0x00, 0x80, 0x00,                               // 0da             mov ecx, 8 << 20
    0x89, 0xcf,                                                 // 0df .round:     mov edi, ecx
    0x81, 0xe7, 0xf8, 0xff, 0x1f, 0x00,                         // 0e1             and edi, 0x1ffff8
    0x48, 0x01, 0x8f, 0x00, 0x00, 0x20, 0x00,                   // 0e7             add [rdi + 0x200000], rcx
    0xff, 0xc9,                                                 // 0ee             dec ecx
    0x75, 0xed,                                                 // 0f0             jnz .round
    0xb0, DONE,                                                 // 0f2             mov al, 'D'
    0xeb, 0x02,                                                 // 0f4             jmp .tell
    0xb0, b'W',                                                 // 0f6 .wrong:     mov al, 'W'
    0xe6, 0xe9,                                                 // 0f8 .tell:      out 0xe9, al
    0xf4,                                                       // 0fa .halt:      hlt
    0xeb, 0xfd,                                                 // 0fb             jmp .halt
    0x90, 0x90, 0x90,                                           // 0fd             align 8
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,             // 100 gdt:        dq 0
    0xff, 0xff, 0x00, 0x00, 0x00, 0x9b, 0xcf, 0x00,             // 108 (8)         code, 32 bits
    0xff, 0xff, 0x00, 0x00, 0x00, 0x93, 0xcf, 0x00,             // 110 (16)        data
    0xff, 0xff, 0x00, 0x00, 0x00, 0x9b, 0xaf, 0x00,             // 118 (24)        code, 64 bits
    0x1f, 0x00, 0x00, 0x01, 0x0f, 0x00,                         // 120 gdtr:       dw 31 / dd 0xf0000 + gdt
];

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_guest_that_says_both_in_time_works() {
        for (said, verdict) in [
            (&b"SD"[..], Verdict::Works),
            (b"SW", Verdict::Unusable),
            (b"D", Verdict::Unusable),
            (b"S", Verdict::Unusable),
            (b"", Verdict::Unusable),
        ] {
            assert_eq!(judge(said, WORK_WAIT_MAX).await, verdict, "{said:?}, and then QEMU ends");
        }
        for said in [&b""[..], b"S"] {
            // The other end is held open, and says no more.
            let (silent, _open) = tokio::io::duplex(1);
            assert_eq!(judge(said.chain(silent), WORK_WAIT_MAX).await, Verdict::TooSlow, "{said:?}, and then nothing");
        }
    }
}
